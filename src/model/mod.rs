//! The trainable head: GRAD, CRAD and CRAD-S.

mod config;
mod head;

pub use config::{HeadConfig, ModelKind};
pub use head::Head;
