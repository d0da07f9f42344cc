//! What a report says: plain data, filled by whoever ran the model. `None` and empty lists leave their part out.

use super::Thumbnail;

/// Everything on the page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Heading of the page, for example the name of the run's folder.
    pub title: String,
    /// Where the numbers come from.
    pub run: Run,
    /// What was trained.
    pub model: Model,
    /// How a map became a score, in words: [`crate::score`]'s `Protocol::describe`.
    pub protocol: String,
    /// One per class, in the order of the page.
    pub classes: Vec<Class>,
    /// Unweighted mean of each figure over the classes.
    pub mean: Figures,
    /// What each epoch did, in order.
    pub epochs: Vec<Epoch>,
    /// Where positions of a few pictures lie in the local grid (Figure 3a of the paper).
    pub local: Option<LocalMap>,
    /// Where all test pictures lie in the global grid (Figure 3b), and what is stored there (Figure 4).
    pub global: Option<GlobalMap>,
    /// How long a picture takes.
    pub speed: Option<Speed>,
    /// The machine, as name and value: processor, GPU, threads, operating system.
    pub machine: Vec<(String, String)>,
    /// What a reader must know and the page cannot see itself, one sentence each. Those about an AUROC may be passed
    /// on from `Metrics`: they are not said twice.
    pub warnings: Vec<String>,
}

/// Where the numbers come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Version of the program.
    pub version: String,
    /// Folder of the run.
    pub path: String,
    /// Command that wrote this report.
    pub command: String,
    /// When, in words; empty for a file that depends on the run alone.
    pub date: String,
    /// Every setting of the training, as `config.toml` has it.
    pub settings: String,
}

/// What was trained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// `grad`, `crad` or `crad-s`.
    pub kind: String,
    /// Name of the backbone.
    pub backbone: String,
    /// Trained parameters.
    pub parameters: u64,
    /// Side of the prepared picture, pixels.
    pub image_size: usize,
    /// Epochs trained.
    pub epochs: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Precision of the training.
    pub precision: String,
    /// Digests as name and hexadecimal value: model file, backbone weights, data.
    pub digests: Vec<(String, String)>,
    /// Anything else worth a line, as name and value.
    pub facts: Vec<(String, String)>,
}

/// A figure in [0, 1], with the ends of its 95 % interval where that was estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The value.
    pub value: f64,
    /// Ends of the interval.
    pub interval: Option<[f64; 2]>,
}

impl From<f64> for Figure {
    fn from(value: f64) -> Self {
        Figure { value, interval: None }
    }
}

/// What a class is worth; `None` where a figure is undefined or was not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Area under the ROC of picture scores.
    pub image_auroc: Option<Figure>,
    /// Average precision of picture scores.
    pub image_ap: Option<Figure>,
    /// Best F1 of pictures over all thresholds: an oracle.
    pub image_f1_max: Option<Figure>,
    /// Share of defective pictures found when the stated share of good test pictures is rejected: an oracle.
    pub recall: Option<Figure>,
    /// Area under the ROC of pixels.
    pub pixel_auroc: Option<Figure>,
    /// Average precision of pixels.
    pub pixel_ap: Option<Figure>,
    /// Best F1 of pixels over all thresholds: an oracle.
    pub pixel_f1_max: Option<Figure>,
    /// Area under the per-region overlap curve, up to the usual 30 % false-positive rate.
    pub aupro: Option<Figure>,
}

/// One class.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// Good pictures it was trained on.
    pub train: usize,
    /// Good pictures that were held out of training.
    pub held_out: usize,
    /// Its figures on the test pictures.
    pub figures: Figures,
    /// Its threshold, if one was set.
    pub threshold: Option<Threshold>,
    /// The threshold that these very labels would have liked best; drawn, never used.
    pub oracle_threshold: Option<f32>,
    /// Every test picture.
    pub pictures: Vec<Scored>,
    /// Those that are shown, see [`super::choose`].
    pub examples: Vec<Example>,
}

/// From which score on a picture is rejected.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// The score.
    pub value: f32,
    /// Share of good pictures it is meant to reject.
    pub target: f64,
    /// 95 % interval of the share that it will really reject.
    pub interval: Option<[f64; 2]>,
    /// Good pictures, held out of training, that it was set from.
    pub held_out: usize,
    /// Whose pictures these were, for example `this class` or `all classes`.
    pub basis: String,
}

/// What a test picture is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Without defect.
    Good,
    /// With the named kind of defect; empty if it has no name.
    Defective(String),
}

/// A scored test picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Path below the class's folder.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Raw score.
    pub score: f32,
    /// Calibrated score: share of held-out good pictures that look at least as anomalous.
    pub p_value: Option<f64>,
    /// The verdict at the class's threshold; `None` without one.
    pub rejected: Option<bool>,
}

/// Why a picture is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Good pictures with the highest scores.
    GoodHigh,
    /// Defective pictures with the lowest scores.
    DefectiveLow,
    /// Defective pictures with the highest scores.
    DefectiveHigh,
}

/// A picture that is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Why.
    pub group: Group,
    /// Its place in [`Class::pictures`].
    pub picture: usize,
    /// Its views.
    pub panels: Panels,
    /// What the model saw and what it rebuilt, if there is a decoder to paint them.
    pub decoded: Option<Decoded>,
}

/// Features of a picture, painted by a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Its features: what a decoder cannot paint better.
    pub features: Thumbnail,
    /// The reconstruction, before the gate: what the model thinks the part should look like.
    pub reconstruction: Thumbnail,
}

/// The views of a picture, all of one size; see [`super::panels`].
#[derive(Clone, Debug, PartialEq)]
pub struct Panels {
    /// As it is.
    pub original: Thumbnail,
    /// Under its heat map.
    pub overlay: Thumbnail,
    /// With its defect outlined as it was drawn by hand, if there is a mask.
    pub outline: Option<Thumbnail>,
}

/// What an epoch did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epoch {
    /// Counted from 1.
    pub epoch: usize,
    /// Mean training loss.
    pub loss: f64,
    /// Learning rate of the network.
    pub rate: f64,
    /// Learning rate of the grids.
    pub grid_rate: f64,
    /// Mean global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Mean image AUROC on the test pictures, where it was measured.
    pub image_auroc: Option<f64>,
    /// Mean pixel AUROC on the test pictures, where it was measured.
    pub pixel_auroc: Option<f64>,
}

/// Positions of pictures in the local grid. Coordinates are in [-1, 1], first the grid's columns, then its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalMap {
    /// Side of the grid.
    pub resolution: usize,
    /// Rows and columns of the feature map: position p is row p / columns, column p % columns.
    pub features: [usize; 2],
    /// The pictures.
    pub pairs: Vec<LocalPair>,
}

/// A good and a defective picture, compared position by position.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalPair {
    /// Their class.
    pub class: String,
    /// The good one.
    pub good: Thumbnail,
    /// The defective one.
    pub defective: Thumbnail,
    /// Where the same position of both went.
    pub points: Vec<LocalPoint>,
}

/// One position of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalPoint {
    /// Position in the feature map, row by row.
    pub position: usize,
    /// Its coordinates in the good picture.
    pub good: [f32; 2],
    /// Its coordinates in the defective picture.
    pub defective: [f32; 2],
}

/// Test pictures in the global grid. Coordinates are in [-1, 1], first the grid's columns, then its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalMap {
    /// Side of the grid.
    pub resolution: usize,
    /// One per test picture.
    pub points: Vec<GlobalPoint>,
    /// What is stored at chosen places; all with the same channels.
    pub samples: Vec<GridSample>,
    /// What the model makes of places between classes, as pictures; empty without a decoder.
    pub lines: Vec<GridLine>,
}

/// What a model makes of places on a line through the global grid, painted by a decoder: from the place of a training
/// picture to that of one of another class.
#[derive(Clone, Debug, PartialEq)]
pub struct GridLine {
    /// Classes of the pictures at its ends; one, at its only place, where there is no other class.
    pub ends: Vec<String>,
    /// The places, in order.
    pub places: Vec<[f32; 2]>,
    /// For the local part of the picture at each end, if the model has a local branch: a picture of every place.
    pub rows: Vec<Vec<Thumbnail>>,
}

/// A test picture in the global grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GlobalPoint {
    /// Place of its class in [`Report::classes`].
    pub class: usize,
    /// Place of the picture in [`Class::pictures`].
    pub picture: usize,
    /// Its coordinates.
    pub at: [f32; 2],
}

/// What the global grid holds at one place.
#[derive(Clone, Debug, PartialEq)]
pub struct GridSample {
    /// The place.
    pub at: [f32; 2],
    /// What lies there, for example `bottle` or `between bottle and tile`.
    pub label: String,
    /// A few channels.
    pub channels: Vec<ChannelMap>,
}

/// One channel of a feature map.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelMap {
    /// Which.
    pub channel: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `[height, width]`.
    pub values: Vec<f32>,
}

/// How long a picture takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Speed {
    /// What was timed and how: device, batch, warm-up.
    pub conditions: String,
    /// From file to verdict.
    pub total: Timing,
    /// The parts, in order.
    pub stages: Vec<Timing>,
}

/// Quantiles of a duration.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// What was timed.
    pub name: String,
    /// Median, milliseconds.
    pub p50_ms: f64,
    /// 99 % quantile, milliseconds.
    pub p99_ms: f64,
    /// Times it was measured.
    pub n: usize,
}
