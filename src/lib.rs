//! GRAD: learns what *good* looks like from photographs and finds defects.
//!
//! Data flow, one way:
//! ```text
//! images -> data -> backbone (frozen) -> features [N, H, W, C] -> cache
//!  cache -> model (coordinates -> grids -> fusion -> reconstruction -> gate)
//!        -> train: mse -> tape.backward -> clip -> AdamW -> checkpoint
//!        -> score: L2 over channels -> upsample -> smooth -> image score -> metrics
//! ```
//! Every op runs where its tensors lie: on the CPU, or on a CUDA device, real or emulated ([`device`]).
#![warn(missing_docs)]

pub mod atomic;
pub mod backbone;
pub mod baseline;
pub mod bench;
pub mod buffer;
pub mod calibrate;
pub mod check;
pub mod checkpoint;
pub mod cli;
mod components;
pub mod config;
pub mod data;
pub mod decoder;
pub mod detector;
pub mod device;
pub mod error;
pub mod evaluate;
pub mod features;
pub mod golden;
pub mod heatmap;
pub mod inference;
pub mod inspect;
pub mod metrics;
pub mod model;
pub mod nn;
pub mod official;
pub mod op;
pub mod ops;
pub mod optim;
pub mod real;
pub mod replay;
pub mod report;
pub mod rng;
pub mod run_folder;
pub mod score;
pub mod shape;
pub mod shortcut;
pub mod storage;
pub mod study;
pub mod tape;
pub mod tensor;
pub mod torch_file;
pub mod train;

pub use error::{Error, Result};
