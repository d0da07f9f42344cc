//! Kernel files and the signatures in them.
//!
//! ```text
//! extern "C" __global__ __launch_bounds__(BLOCK) void NAME(TYPE [__restrict__] PARAMETER, ...)
//! ```
//! A pointer whose name ends in `_or_null` may be absent. Tensor maps, `const __grid_constant__ TensorMap`, come first.

use std::path::{Path, PathBuf};

/// The ways in which a file is compiled; see `kernels/common.cuh`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    F32,
    Tf32,
    Bf16,
}

impl Flavour {
    pub const ALL: [Flavour; 3] = [Flavour::F32, Flavour::Tf32, Flavour::Bf16];

    pub fn name(self) -> &'static str {
        ["f32", "tf32", "bf16"][self as usize]
    }

    /// The macro that selects it.
    pub fn define(self) -> &'static str {
        ["FLAVOUR_F32", "FLAVOUR_TF32", "FLAVOUR_BF16"][self as usize]
    }
}

/// One `.cu` file.
pub struct Module {
    pub name: String,
    pub path: PathBuf,
    pub flavours: Vec<Flavour>,
    pub kernels: Vec<Kernel>,
    /// The one architecture that its instructions exist on; none: all, and the emulator.
    pub only: Option<Architecture>,
}

/// A real architecture with the instructions that no later one has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Architecture {
    /// Compute capability, as `GRAD_CUDA_ARCH` names it.
    pub number: u32,
    /// As nvcc calls it.
    pub name: &'static str,
}

/// What `kernels/hopper` is compiled for.
const HOPPER: Architecture = Architecture { number: 90, name: "90a" };

pub struct Kernel {
    pub name: String,
    /// Threads of a block.
    pub block: u32,
    pub parameters: Vec<Parameter>,
}

pub struct Parameter {
    pub name: String,
    pub kind: Kind,
}

/// What a kernel can be given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An array of this Rust element type.
    Array { element: &'static str, writable: bool, nullable: bool },
    /// A size: `usize` in Rust, checked to fit.
    Size,
    /// How the copy engine walks an array.
    Map,
    /// A number of this Rust type.
    Number(&'static str),
}

/// Every `.cu` file of a folder, in the order of their names.
pub fn modules(folder: &Path) -> Result<Vec<Module>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "cu"));
    paths.sort();
    paths.iter().map(|p| module(p)).collect()
}

/// The files of `kernels/hopper`: second implementations of kernels, in bf16, for one architecture.
pub fn hopper(folder: &Path) -> Result<Vec<Module>, String> {
    let found = modules(folder)?.into_iter();
    Ok(found.map(|m| Module { flavours: vec![Flavour::Bf16], only: Some(HOPPER), ..m }).collect())
}

pub fn module(path: &Path) -> Result<Module, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let code = without_comments(&text);
    let stored = code.contains("real");
    let multiplies = code.contains("\"gemm.cuh\"");
    let flavours = Flavour::ALL.into_iter().filter(|f| match f {
        Flavour::F32 => true,
        Flavour::Tf32 => multiplies,
        Flavour::Bf16 => stored || multiplies,
    });
    let name = path.file_stem().and_then(|s| s.to_str()).ok_or("a kernel file needs a name")?;
    let kernels = kernels(&code).map_err(|fault| format!("{}: {fault}", path.display()))?;
    Ok(Module { name: name.into(), path: path.into(), flavours: flavours.collect(), kernels, only: None })
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

fn kernels(code: &str) -> Result<Vec<Kernel>, String> {
    code.split("extern \"C\" __global__").skip(1).map(kernel).collect()
}

fn kernel(text: &str) -> Result<Kernel, String> {
    let shape = "expected `extern \"C\" __global__ __launch_bounds__(N) void NAME(..)`";
    let rest = text.trim_start().strip_prefix("__launch_bounds__(").ok_or(shape)?;
    let (block, rest) = rest.split_once(')').ok_or(shape)?;
    let block: u32 = block.split(',').next().unwrap_or("").trim().parse().map_err(|_| shape)?;
    let rest = rest.trim_start().strip_prefix("void ").ok_or(shape)?;
    let (name, rest) = rest.split_once('(').ok_or(shape)?;
    let (list, _) = rest.split_once(')').ok_or(shape)?;
    let name = name.trim().to_string();
    let parameters: Result<Vec<Parameter>, String> = list.split(',').map(parameter).collect();
    let parameters = parameters.map_err(|fault| format!("{name}: {fault}"))?;
    if !parameters.is_sorted_by_key(|p| p.kind != Kind::Map) {
        return Err(format!("{name}: tensor maps must be the first parameters"));
    }
    Ok(Kernel { parameters, name, block })
}

fn parameter(text: &str) -> Result<Parameter, String> {
    let text = text.replace("__restrict__", " ").replace('*', " * ");
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let name = words.pop().ok_or("a parameter is missing")?.to_string();
    let kind = match words[..] {
        ["uint32_t"] => Kind::Size,
        ["int32_t"] => Kind::Number("i32"),
        ["float"] => Kind::Number("f32"),
        ["double"] => Kind::Number("f64"),
        ["const", "__grid_constant__", "TensorMap"] => Kind::Map,
        ["const", element, "*"] => array(element, false, &name)?,
        [element, "*"] => array(element, true, &name)?,
        _ => return Err(format!("`{}` is no parameter that a launch can pass", words.join(" "))),
    };
    Ok(Parameter { name, kind })
}

fn array(element: &str, writable: bool, name: &str) -> Result<Kind, String> {
    let element = match element {
        "real" => "Real",
        "float" => "f32",
        "double" => "f64",
        "uint32_t" => "u32",
        other => return Err(format!("`{other}` is no element that a launch can pass")),
    };
    Ok(Kind::Array { element, writable, nullable: name.ends_with("_or_null") })
}
