//! Every op, once: [`REGISTRY`] is what tests, fixtures and benchmarks walk, [`AnyOp`] what a tape keeps.

mod activation;
mod add;
mod attention_memory;
mod basic_block;
mod basic_block_cuda;
mod batch_norm;
mod batch_norm_squeeze_excite;
mod channel_scale;
mod composed;
mod concat;
mod conv2d;
mod depthwise_conv2d;
mod entry_read;
mod global_avg_pool;
mod grid_sample;
mod mobile_bottleneck;
mod mobile_bottleneck_cpu;
mod mobile_bottleneck_cuda;
mod mobile_bottleneck_lines;
mod mse_loss;
mod nearest_entry;
mod normalise;
mod normalise_cuda;
mod on_load;
mod pointwise_conv;
mod readers;
mod refinement_gate;
mod score_map;
mod upsample_bilinear;

pub use activation::{Activation, Kind};
pub use add::Add;
pub use attention_memory::AttentionMemory;
pub use basic_block::BasicBlock;
pub use batch_norm::{BatchNorm, Statistics};
pub use batch_norm_squeeze_excite::BatchNormSqueezeExcite;
pub use channel_scale::ChannelScale;
pub use concat::Concat;
pub use conv2d::Conv2d;
pub use depthwise_conv2d::DepthwiseConv2d;
pub use entry_read::EntryRead;
pub use global_avg_pool::GlobalAvgPool;
pub use grid_sample::GridSample;
pub use mobile_bottleneck::MobileBottleneck;
pub use mse_loss::MseLoss;
pub use nearest_entry::NearestEntry;
pub(crate) use normalise::group_images as ghost_group;
pub(crate) use pointwise_conv::FrozenWeights;
pub use pointwise_conv::PointwiseConv;
pub use refinement_gate::RefinementGate;
pub use score_map::ScoreMap;
pub use upsample_bilinear::UpsampleBilinear;

use crate::check::Entry;
use crate::op::RecordedOp;

macro_rules! registry {
    ($($op:ident,)*) => {
        /// Every op with its judges.
        pub static REGISTRY: &[Entry] = &[$(Entry::of::<$op>()),*];

        /// One of the ops, by value: as a tape keeps them, all alike and side by side.
        #[derive(Clone, Debug)]
        pub enum AnyOp {
            $(#[doc = concat!("See [`struct@", stringify!($op), "`].")] $op($op),)*
        }

        impl AnyOp {
            /// Its type forgotten.
            pub(crate) fn recorded(&self) -> &dyn RecordedOp {
                match self {
                    $(AnyOp::$op(op) => op,)*
                }
            }
        }

        $(impl From<$op> for AnyOp {
            fn from(op: $op) -> Self {
                AnyOp::$op(op)
            }
        })*
    };
}

registry! {
    Activation,
    Add,
    AttentionMemory,
    BasicBlock,
    BatchNorm,
    BatchNormSqueezeExcite,
    ChannelScale,
    Concat,
    Conv2d,
    DepthwiseConv2d,
    EntryRead,
    GlobalAvgPool,
    GridSample,
    MobileBottleneck,
    MseLoss,
    NearestEntry,
    PointwiseConv,
    RefinementGate,
    ScoreMap,
    UpsampleBilinear,
}
