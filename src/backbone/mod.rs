//! The frozen feature extractor: a picture in, `[H/8, W/8, C]` features out (specification 4 and 5).
//!
//! | file | holds |
//! |---|---|
//! | [`efficientnet`] | the one forward pass that runs every network |
//! | `plan` | the networks as data |
//! | `source` | tensors by name, of a safetensors or a PyTorch file |
//! | `names` | whose names a file has, and whether that is the network computed here |
//! | `weights` | tensors checked, BatchNorm folded, laid out for our ops |
//! | `byte_input` | what a device makes of the bytes of a picture |
//! | `survey` | what a file holds, for looking at it and for converting it |

mod byte_input;
pub mod efficientnet;
mod names;
mod plan;
mod source;
mod survey;
mod weights;

pub(crate) use byte_input::ByteInput;
pub use efficientnet::Backbone;
pub use names::{Names, Naming};
pub use plan::Network;
pub use source::{Entry, Source};
pub use survey::Survey;
