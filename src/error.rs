//! Every way this crate can fail. A message says what went wrong, where, and what to do about it;
//! the variant decides the exit code of the program.

use std::path::{Path, PathBuf};

/// Result of every fallible function of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation was given tensors whose shapes do not fit together. A bug of the caller, not of the user.
    #[error("{op}: {what}")]
    Shape {
        /// Name of the operation.
        op: &'static str,
        /// What was expected and what was given.
        what: String,
    },
    /// A flag, an environment variable or a configuration file says something that cannot be done.
    #[error("{what}\n  help: {help}")]
    Config {
        /// The offending setting and its value.
        what: String,
        /// What to write instead.
        help: String,
    },
    /// A folder or a picture cannot be used.
    #[error("{}: {what}\n  help: {help}", path.display())]
    Data {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// How to mend it.
        help: String,
    },
    /// A model, weight or checkpoint file cannot be used.
    #[error("{}: {what}\n  help: {help}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// How to mend it.
        help: String,
    },
    /// The requested device is not there.
    #[error("{what}\n  help: {help}")]
    Device {
        /// Which device, and why not.
        what: String,
        /// What to use instead.
        help: String,
    },
    /// A device has too little memory left.
    #[error("{what}\n  help: {help}")]
    DeviceMemory {
        /// Which device, and how much was wanted.
        what: String,
        /// How to need less.
        help: String,
    },
    /// The operating system refused to read or write.
    #[error("cannot {action} {}: {cause}\n  help: {help}", path.display())]
    Io {
        /// `read`, `write`, `create`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: String,
        /// What to check.
        help: String,
    },
    /// Pictures were found anomalous, and the user wants to know by the exit code.
    #[error("{0}")]
    Anomalous(String),
    /// The user asked to stop; everything needed to go on has been written.
    #[error("interrupted: {0}")]
    Interrupted(String),
}

impl Error {
    /// Exit code of the program: 1 anomalies found, if that was asked for, 2 usage or configuration, 3 data, 4 model file, 5 device, 130 interrupted, 101 a bug.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Anomalous(_) => 1,
            Error::Config { .. } | Error::Io { .. } => 2,
            Error::Data { .. } => 3,
            Error::Model { .. } => 4,
            Error::Device { .. } | Error::DeviceMemory { .. } => 5,
            Error::Interrupted(_) => 130,
            Error::Shape { .. } => 101,
        }
    }

    /// A setting that cannot be used.
    pub fn config(what: impl Into<String>, help: impl Into<String>) -> Self {
        Error::Config { what: what.into(), help: help.into() }
    }

    /// A folder or picture that cannot be used.
    pub fn data(path: impl AsRef<Path>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().into(), what: what.into(), help: help.into() }
    }

    /// A model file that cannot be used.
    pub fn model(path: impl AsRef<Path>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Error::Model { path: path.as_ref().into(), what: what.into(), help: help.into() }
    }

    /// The operating system's refusal, with the advice that fits its kind.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let help = match source.kind() {
            K::NotFound => "check the path: nothing is there",
            K::PermissionDenied => "check that you may read and write there, or choose another folder",
            K::ReadOnlyFilesystem => "the file system is read-only: choose another folder",
            K::StorageFull | K::QuotaExceeded => {
                "the disk is full: make room and run again, nothing written before was harmed"
            }
            K::UnexpectedEof | K::InvalidData => "the file ends early or is damaged: write or copy it again",
            K::AlreadyExists => "it is already there: choose another name",
            _ => "check the disk and the path",
        };
        Error::Io { action, path: path.as_ref().into(), cause: source.to_string(), help: help.into() }
    }
}
