//! The trainable head: GRAD, CRAD and CRAD-S.

mod config;
mod folded;
mod head;

pub use config::{HeadConfig, ModelKind};
pub use folded::FoldedHead;
pub use head::Head;
