//! Every op, once: [`REGISTRY`] is what tests, fixtures and benchmarks walk.

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

/// Every op with its judges.
pub static REGISTRY: &[Entry] = &[
    Entry::of::<Activation>(),
    Entry::of::<Add>(),
    Entry::of::<AttentionMemory>(),
    Entry::of::<BasicBlock>(),
    Entry::of::<BatchNorm>(),
    Entry::of::<BatchNormSqueezeExcite>(),
    Entry::of::<ChannelScale>(),
    Entry::of::<Concat>(),
    Entry::of::<Conv2d>(),
    Entry::of::<DepthwiseConv2d>(),
    Entry::of::<EntryRead>(),
    Entry::of::<GlobalAvgPool>(),
    Entry::of::<GridSample>(),
    Entry::of::<MobileBottleneck>(),
    Entry::of::<MseLoss>(),
    Entry::of::<NearestEntry>(),
    Entry::of::<PointwiseConv>(),
    Entry::of::<RefinementGate>(),
    Entry::of::<ScoreMap>(),
    Entry::of::<UpsampleBilinear>(),
];
