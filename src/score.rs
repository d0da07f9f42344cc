//! From the anomaly map at feature size to the map and the image score that metrics and thresholds are about.
//!
//! Protocol `official`: upsample (bilinear, corners aligned: source = i (n - 1) / (N - 1)) -> mean over 21x21 (stride
//! 1, zero padding 10, divisor always 441, so borders are damped) -> image score = maximum over the means of all
//! 32x32 windows that lie inside the smoothed map. Sums run in f64; the same code serves evaluation and prediction.
//!
//! The other protocols score as two other publications do, so that numbers can be compared; read from their public code:
//! `dinomaly` (Guo et al., CVPR 2025: `utils.py`) and `ader` (Zhang et al., arXiv 2406.03262: `util/metric.py`).

pub mod device;
mod filter;

pub use filter::upsample;

use crate::data::MaskRule;
use crate::{Error, Result};
use filter::{bilinear, centred, gaussian, largest_mean, smooth, top_mean};
use serde::{Deserialize, Serialize};

/// How a map becomes a score. Stored in the model file, because thresholds mean nothing without it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Name that every report prints beside its numbers.
    pub name: String,
    /// How the full-size map is smoothed.
    pub smooth: Smooth,
    /// How the smoothed map becomes the score of the picture.
    pub pool: Pool,
    /// What size the map is brought to before it is smoothed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub map: MapSize,
    /// How the mask is brought to the size of the map.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mask: MaskRule,
}

/// Smoothing of a map. A number in a file is a mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Smooth {
    /// Mean over a window of this side in pixels; odd, 1 for none; outside counts as zero and is counted.
    Mean(usize),
    /// Weights exp(-d^2 / (2 sigma^2)) within a window, divided by their sum.
    Gaussian {
        /// Side of the window in pixels; odd.
        window: usize,
        /// Standard deviation in pixels.
        sigma: f64,
        /// What lies outside the map.
        border: Border,
    },
}

/// What a Gaussian sees outside the map.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Border {
    /// Zeros, which count: borders are damped.
    Zero,
    /// The map mirrored at its edge: `c b a | a b c`.
    Reflect,
}

/// The score of a picture. A number in a file is a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Pool {
    /// The largest mean of all windows of this side inside the map; 1 for the plain maximum.
    LargestMean(usize),
    /// The mean of the largest values.
    Top {
        /// Their share of all pixels, in (0, 1]; rounded down to whole pixels, at least one.
        top: f64,
    },
}

/// Size of the map that is smoothed and measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapSize {
    /// That of the prepared picture.
    #[default]
    Prepared,
    /// This side, straight from feature size (bilinear, corners aligned).
    Enlarged(usize),
    /// This side, from the size of the prepared picture (bilinear, pixel centres aligned).
    Resampled(usize),
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a picture scored.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Smoothed anomaly map `[height, width]` at full size, in units of feature distance. Higher is more anomalous.
    pub map: Vec<f32>,
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
    /// Score of the whole picture, in the same units. NaN if the map holds a NaN.
    pub image_score: f32,
}

impl Scored {
    /// The largest value of the map; NaN if it holds one.
    pub fn peak(&self) -> f32 {
        self.map.iter().copied().fold(f32::NEG_INFINITY, |peak, v| if v <= peak { peak } else { v })
    }
}

impl Default for Protocol {
    fn default() -> Self {
        Self::official()
    }
}

impl Protocol {
    /// Names of the protocols there are.
    pub const NAMES: [&str; 3] = ["official", "dinomaly", "ader"];

    /// The protocol of a name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "official" => Some(Self::official()),
            "dinomaly" => Some(Self::dinomaly()),
            "ader" => Some(Self::ader()),
            _ => None,
        }
    }

    /// The published evaluation: 21x21 smoothing before both metrics, then 32x32 pooling.
    pub fn official() -> Self {
        Self {
            name: "official".into(),
            smooth: Smooth::Mean(21),
            pool: Pool::LargestMean(32),
            map: MapSize::Prepared,
            mask: MaskRule::Nearest,
        }
    }

    /// How Dinomaly scores: map at 256x256, 5x5 Gaussian of sigma 4, mean of the top 1 % of pixels.
    pub fn dinomaly() -> Self {
        Self {
            name: "dinomaly".into(),
            smooth: Smooth::Gaussian { window: 5, sigma: 4.0, border: Border::Zero },
            pool: Pool::Top { top: 0.01 },
            map: MapSize::Resampled(256),
            mask: MaskRule::BilinearThenNearest(448),
        }
    }

    /// How the ADer benchmark scores RD, InvAD and MambaAD: map at 256x256, Gaussian of sigma 4 cut at four sigma,
    /// maximum. It scores UniAD and ViTAD by the largest 16x16 mean instead.
    pub fn ader() -> Self {
        Self {
            name: "ader".into(),
            smooth: Smooth::Gaussian { window: 33, sigma: 4.0, border: Border::Reflect },
            pool: Pool::LargestMean(1),
            map: MapSize::Enlarged(256),
            mask: MaskRule::BilinearHalf,
        }
    }

    /// # Errors
    /// [`Error::Config`] for windows that cannot be used, as a damaged or foreign file may name.
    pub fn check(&self) -> Result<()> {
        // No map is wider; a damaged file must not ask for terabytes.
        let usable = 1..=1 << 14;
        let smooth = match self.smooth {
            Smooth::Mean(window) => window % 2 == 1,
            Smooth::Gaussian { window, sigma, .. } => {
                window % 2 == 1 && usable.contains(&window) && sigma > 0.0 && sigma.is_finite()
            }
        };
        let pool = match self.pool {
            Pool::LargestMean(window) => window > 0,
            Pool::Top { top } => top > 0.0 && top <= 1.0,
        };
        let map = match self.map {
            MapSize::Prepared => true,
            MapSize::Enlarged(side) | MapSize::Resampled(side) => usable.contains(&side),
        };
        if smooth && pool && map && self.mask.check() {
            return Ok(());
        }
        let Self { name, smooth, pool, map, mask } = self;
        Err(Error::config(
            format!("scoring protocol `{name}`: smooth = {smooth:?}, pool = {pool:?}, map = {map:?}, mask = {mask:?}"),
            "smooth must be odd, so that its window has a centre, pool at least 1 or a share above 0, and sizes at most \
             16384; official is 21 and 32",
        ))
    }

    /// One line that says what the numbers mean, printed beside them.
    pub fn describe(&self) -> String {
        let map = match self.map {
            MapSize::Prepared => "map smoothed".into(),
            MapSize::Enlarged(n) => format!("map enlarged to {n}x{n} and smoothed"),
            MapSize::Resampled(n) => format!("map at picture size resampled to {n}x{n} and smoothed"),
        };
        let smooth = match self.smooth {
            Smooth::Mean(window) => format!("{window}x{window} mean (zero padding)"),
            Smooth::Gaussian { window, sigma, border } => {
                let border = match border {
                    Border::Zero => "zero padding",
                    Border::Reflect => "mirrored border",
                };
                format!("{window}x{window} Gaussian of sigma {sigma} ({border})")
            }
        };
        let pool = match self.pool {
            Pool::LargestMean(1) => "largest value".into(),
            Pool::LargestMean(window) => format!("largest {window}x{window} mean"),
            Pool::Top { top } => format!("mean of the top {} %", 100.0 * top),
        };
        let only = match self.map {
            MapSize::Prepared => "",
            _ => "; only scoring follows that publication: pictures are prepared as this model needs them",
        };
        let Self { name, mask, .. } = self;
        format!("{name}: {map} by a {smooth}, image score = {pool} of the smoothed map, {}{only}", mask.describe())
    }

    /// Side of the map, and so of the mask, for pictures prepared at `prepared` x `prepared`.
    pub fn side(&self, prepared: usize) -> usize {
        match self.map {
            MapSize::Prepared => prepared,
            MapSize::Enlarged(side) | MapSize::Resampled(side) => side,
        }
    }

    /// Scores the anomaly map `[h, w]` of a picture prepared at `out_h` x `out_w`. A map smaller than the pooling window
    /// is pooled whole: the window shrinks to the map, side by side.
    ///
    /// # Errors
    /// [`Self::check`]; [`Error::Shape`] for empty sizes or a map that is not `h * w` long.
    pub fn score(&self, map: &[f32], h: usize, w: usize, out_h: usize, out_w: usize) -> Result<Scored> {
        self.check()?;
        let (map, height, width) = match self.map {
            MapSize::Prepared => (upsample(map, h, w, out_h, out_w)?, out_h, out_w),
            MapSize::Enlarged(side) => (upsample(map, h, w, side, side)?, side, side),
            MapSize::Resampled(side) => {
                let map = upsample(map, h, w, out_h, out_w)?;
                (bilinear(&map, out_w, &centred(out_h, side), &centred(out_w, side)), side, side)
            }
        };
        let map = match self.smooth {
            Smooth::Mean(window) => smooth(&map, height, width, window),
            Smooth::Gaussian { window, sigma, border } => gaussian(&map, height, width, window, sigma, border),
        };
        let image_score = match self.pool {
            Pool::LargestMean(window) => largest_mean(&map, height, width, window),
            Pool::Top { top } => top_mean(&map, top),
        };
        Ok(Scored { map, height, width, image_score })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn agrees_with_pytorch_in_double() {
        let file = SafeTensors::deserialize(include_bytes!("../fixtures/metrics.safetensors")).unwrap();
        for (name, (h, w), (out_h, out_w)) in [("small", (5, 7), (40, 33)), ("official", (28, 28), (224, 224))] {
            let read = |what: &str| file.tensor(&format!("score.{name}.{what}")).unwrap().data().to_vec();
            let map: Vec<f32> = bytemuck::pod_collect_to_vec(&read("map"));
            let doubles = |what: &str| -> Vec<f64> { bytemuck::pod_collect_to_vec(&read(what)) };
            let close = |ours: f32, truth: f64| (f64::from(ours) - truth).abs() <= 1.2e-7 * truth.abs();

            let up = upsample(&map, h, w, out_h, out_w).unwrap();
            let scored = Protocol::official().score(&map, h, w, out_h, out_w).unwrap();
            for (what, ours) in [("upsampled", &up), ("smoothed", &scored.map)] {
                let truth = doubles(what);
                assert_eq!(truth.len(), (out_h * out_w).div_ceil(29));
                for (at, (&ours, truth)) in ours.iter().step_by(29).zip(truth).enumerate() {
                    assert!(close(ours, truth), "{name} {what} {at}: {ours} for {truth}");
                }
            }
            let truth = doubles("image")[0];
            assert!(close(scored.image_score, truth), "{name}: {} for {truth}", scored.image_score);
        }
    }

    /// The two foreign protocols against PyTorch and SciPy in double.
    #[test]
    fn agrees_with_the_publications() {
        let file = SafeTensors::deserialize(include_bytes!("../fixtures/metrics.safetensors")).unwrap();
        for protocol in [Protocol::dinomaly(), Protocol::ader()] {
            let name = protocol.name.clone();
            let read = |what: &str| file.tensor(&format!("score.{name}.{what}")).unwrap().data().to_vec();
            let map: Vec<f32> = bytemuck::pod_collect_to_vec(&read("map"));
            let scored = protocol.score(&map, 28, 28, 224, 224).unwrap();
            assert_eq!((scored.height, scored.width, protocol.side(224)), (256, 256, 256));
            let truth: Vec<f64> = bytemuck::pod_collect_to_vec(&read("smoothed"));
            assert_eq!(truth.len(), (256_usize * 256).div_ceil(29));
            // Values are rounded to f32 once or twice on the way, each time by at most 6e-8 of the largest.
            let close = |ours: f32, truth: f64| (f64::from(ours) - truth).abs() <= 1.8e-7 * truth.abs();
            for (at, (&ours, truth)) in scored.map.iter().step_by(29).zip(truth).enumerate() {
                assert!(close(ours, truth), "{name} {at}: {ours} for {truth}");
            }
            let truth: Vec<f64> = bytemuck::pod_collect_to_vec(&read("image"));
            assert!(close(scored.image_score, truth[0]), "{name}: {} for {}", scored.image_score, truth[0]);
        }
    }

    #[test]
    fn zero_padding_dampens_the_border() {
        let scored = Protocol::official().score(&[1.0; 784], 28, 28, 224, 224).unwrap();
        let at = |y: usize, x: usize| scored.map[y * 224 + x];
        for corner in [at(0, 0), at(0, 223), at(223, 0), at(223, 223)] {
            assert!((corner - 0.274376).abs() <= 5e-7, "{corner}");
        }
        for edge in [at(0, 112), at(112, 0), at(223, 100), at(100, 223)] {
            assert!((edge - 0.523810).abs() <= 5e-7, "{edge}");
        }
        assert!((10..214).all(|y| (10..214).all(|x| at(y, x) == 1.0)));
        assert_eq!(scored.image_score, 1.0);
    }

    #[test]
    fn a_small_map_is_pooled_whole() {
        let plain = Protocol { smooth: Smooth::Mean(1), ..Protocol::official() };
        assert_eq!(plain.score(&[1.0, 2.0, 3.0, 6.0], 2, 2, 2, 2).unwrap().image_score, 3.0);
        // One side shrinks, the other slides.
        let mut strip = vec![0.0; 2 * 40];
        strip[39] = 64.0;
        assert_eq!(plain.score(&strip, 2, 40, 2, 40).unwrap().image_score, 1.0);
    }

    #[test]
    fn a_nan_is_never_averaged_away() {
        let mut map = vec![0.5; 784];
        map[400] = f32::NAN;
        let scored = Protocol::official().score(&map, 28, 28, 224, 224).unwrap();
        assert!(scored.image_score.is_nan());
        assert!(scored.map.iter().any(|x| x.is_nan()));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let score = |smooth, pool, len: usize, out_w| {
            let (smooth, pool) = (Smooth::Mean(smooth), Pool::LargestMean(pool));
            let protocol = Protocol { smooth, pool, ..Protocol::official() };
            protocol.score(&vec![0.3; len], 2, 3, 4, out_w)
        };
        assert!(score(3, 2, 6, 5).is_ok());
        assert!(matches!(score(4, 2, 6, 5), Err(Error::Config { .. })));
        assert!(matches!(score(0, 2, 6, 5), Err(Error::Config { .. })));
        assert!(matches!(score(3, 0, 6, 5), Err(Error::Config { .. })));
        assert!(matches!(score(3, 2, 5, 5), Err(Error::Shape { .. })));
        assert!(matches!(score(3, 2, 6, 0), Err(Error::Shape { .. })));
        assert!(matches!(upsample(&[], 0, 3, 2, 2), Err(Error::Shape { .. })));
    }

    #[test]
    fn the_protocol_survives_a_file() {
        let text = serde_json::to_string(&Protocol::official()).unwrap();
        assert_eq!(text, r#"{"name":"official","smooth":21,"pool":32}"#);
        for protocol in Protocol::NAMES.map(|name| Protocol::named(name).unwrap()) {
            let text = serde_json::to_string(&protocol).unwrap();
            assert_eq!(serde_json::from_str::<Protocol>(&text).unwrap(), protocol);
            protocol.check().unwrap();
            assert!(protocol.describe().starts_with(&protocol.name));
        }
        for unusable in [
            r#"{"name":"x","smooth":{"window":4,"sigma":1.0,"border":"zero"},"pool":1}"#,
            r#"{"name":"x","smooth":{"window":5,"sigma":0.0,"border":"zero"},"pool":1}"#,
            r#"{"name":"x","smooth":1,"pool":{"top":0.0}}"#,
            r#"{"name":"x","smooth":1,"pool":1,"map":{"enlarged":100000000}}"#,
            r#"{"name":"x","smooth":1,"pool":1,"mask":{"bilinear_then_nearest":0}}"#,
        ] {
            let protocol: Protocol = serde_json::from_str(unusable).unwrap();
            assert!(matches!(protocol.check(), Err(Error::Config { .. })), "{unusable}");
        }
    }
}
