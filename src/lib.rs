//! GRAD: learns what *good* looks like from photographs and finds defects.
//!
//! Data flow, one way:
//! ```text
//! images -> data -> backbone (frozen) -> features [N, H, W, C] -> cache
//!  cache -> model (coordinates -> grids -> fusion -> reconstruction -> gate)
//!        -> train: mse -> tape.backward -> clip -> AdamW -> checkpoint
//!        -> score: L2 over channels -> upsample -> smooth -> image score -> metrics
//! ```
#![warn(missing_docs)]

pub mod atomic;
pub mod data;
pub mod device;
pub mod error;
pub mod heatmap;
pub mod metrics;
pub mod score;

pub use error::{Error, Result};
