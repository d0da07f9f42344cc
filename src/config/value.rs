//! Values of settings that are more than a number: how they are written on the command line and in a file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DeviceChoice {
    /// The first CUDA device if there is one, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
    /// The emulated CUDA device: every kernel on the CPU, every access checked. For tests.
    #[cfg(feature = "emulator")]
    Emulated,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            #[cfg(feature = "emulator")]
            "emulated" => Ok(DeviceChoice::Emulated),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| format!("`{text}` is no device: use auto, cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(n) => write!(f, "cuda:{n}"),
            #[cfg(feature = "emulator")]
            DeviceChoice::Emulated => f.write_str("emulated"),
        }
    }
}

/// Constant of the refinement gate.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "TextOrNumber")]
pub enum MseCoef {
    /// `0.5 / mean(x²)` over the training features x: the gate's threshold is their mean energy.
    Auto,
    /// This number.
    Value(f64),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"auto\" or a positive number")]
enum TextOrNumber {
    Text(String),
    Number(f64),
}

impl TryFrom<TextOrNumber> for MseCoef {
    type Error = String;

    fn try_from(written: TextOrNumber) -> Result<Self, String> {
        match written {
            TextOrNumber::Text(text) if text == "auto" => Ok(MseCoef::Auto),
            TextOrNumber::Number(k) if k.is_finite() && k > 0.0 => Ok(MseCoef::Value(k)),
            _ => Err("use auto, or a positive number".into()),
        }
    }
}

impl FromStr for MseCoef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map_or_else(|_| TextOrNumber::Text(text.into()), TextOrNumber::Number).try_into()
    }
}

impl Serialize for MseCoef {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            MseCoef::Auto => to.serialize_str("auto"),
            MseCoef::Value(k) => to.serialize_f64(*k),
        }
    }
}

/// Factors of the learning rates, each from an epoch on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Schedule(pub Vec<(usize, f64)>);

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let step = |step: &str| {
            let (epoch, factor) = step.split_once(':')?;
            Some((epoch.trim().parse().ok()?, factor.trim().parse().ok()?))
        };
        let steps: Option<Vec<_>> = text.split(',').map(step).collect();
        steps.map(Schedule).ok_or_else(|| "write EPOCH:FACTOR, comma-separated, as in 0:1,41:0.1".into())
    }
}

/// Where features are kept between runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "PathBuf")]
pub enum Cache {
    /// Nowhere: they are computed anew each time, and nothing is left on the disk.
    None,
    /// In this folder, which may be removed at any time.
    Folder(PathBuf),
}

impl Cache {
    /// The folder, if features are kept.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Cache::Folder(folder) => Some(folder),
            Cache::None => None,
        }
    }
}

impl Default for Cache {
    /// Beside `runs/`, where the user sees it and can remove it; it needs no home folder.
    fn default() -> Self {
        Cache::Folder([".grad", "cache"].iter().collect())
    }
}

impl From<PathBuf> for Cache {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "none" { Cache::None } else { Cache::Folder(path) }
    }
}

impl FromStr for Cache {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(PathBuf::from(text).into())
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cache::None => f.write_str("none"),
            Cache::Folder(path) => path.display().fmt(f),
        }
    }
}

/// Values written as the text that the command line takes.
macro_rules! written_as_text {
    ($($kind:ident)*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    )*};
}
written_as_text!(DeviceChoice Cache);

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The paths of `GRAD_DATA`, separated as those of `PATH` are.
pub(super) fn data_of_environment() -> Option<Vec<PathBuf>> {
    let paths: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("GRAD_DATA")?).collect();
    let named: Vec<PathBuf> = paths.into_iter().filter(|path| !path.as_os_str().is_empty()).collect();
    Some(named).filter(|paths| !paths.is_empty())
}

/// A path, or a list of paths, in a file.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<PathBuf>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a path or a list of paths")]
    enum Either {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }
    Ok(Some(match Either::deserialize(from)? {
        Either::One(path) => vec![path],
        Either::Many(paths) => paths,
    }))
}

/// `on` or `off`.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("use on or off".into()),
    }
}

/// `on`, `off`, `true` or `false` in a file.
pub(super) fn switch_or_bool<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected true, false, \"on\" or \"off\"")]
    enum Either {
        Bool(bool),
        Text(String),
    }
    match Either::deserialize(from)? {
        Either::Bool(on) => Ok(on),
        Either::Text(text) => switch(&text).map_err(serde::de::Error::custom),
    }
}
