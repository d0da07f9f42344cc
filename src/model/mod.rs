//! The trainable head: GRAD, CRAD and CRAD-S.

mod config;
mod head;

pub(crate) use config::MAX_ENTRIES;
pub use config::{HeadConfig, MemoryKind, ModelKind};
pub use head::Head;
