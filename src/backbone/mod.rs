//! The frozen feature extractor: a picture in, `[H/8, W/8, C]` features out (specification 4 and 5).
//!
//! | file | holds |
//! |---|---|
//! | [`efficientnet`] | both networks as data, and the one forward pass that runs them |
//! | `weights` | a safetensors file, checked, BatchNorm folded, laid out for our ops |

pub mod efficientnet;
mod weights;

pub use efficientnet::{Backbone, Network};
