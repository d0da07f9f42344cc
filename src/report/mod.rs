//! A run as one HTML file: figures, verdicts, pictures, grids, training, timings. It needs no network and no other file.
//!
//! ```text
//! Report (plain data, see `data.rs`) -> page: sections of text and tables -> chart, roc, histogram, curves, scatter: SVG
//!                                             thumbnail: pictures as data URIs
//! ```
//! Whatever comes from outside, names of classes and files, enters the page through one escape function. Colours are
//! classes of `style.css`, light and dark; the little JavaScript sorts, enlarges and switches, and nothing needs it.

mod chart;
mod choose;
mod curves;
mod data;
mod histogram;
mod html;
mod page;
mod roc;
mod scatter;
mod study;
mod table;
#[cfg(test)]
mod tests;
mod thumbnail;

pub use choose::choose;
pub use data::{
    ChannelMap, Class, Decoded, Epoch, Example, Figure, Figures, GlobalMap, GlobalPoint, GridLine, GridSample, Group,
    Kind, LocalMap, LocalPair, LocalPoint, Model, Panels, Report, Run, Scored, Speed, Threshold, Timing,
};
pub use study::study_page;
pub use thumbnail::{Thumbnail, panels};
