//! The trainable head: GRAD, CRAD and CRAD-S, with grids or the discrete memories they are compared with.

mod branch;
mod config;
mod folded;
mod head;

pub(crate) use config::MAX_ENTRIES;
pub use config::{HeadConfig, MemoryKind, ModelKind};
pub use folded::FoldedHead;
pub use head::Head;
