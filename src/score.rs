//! From the anomaly map at feature size to the map and the image score that metrics and thresholds are about.
//!
//! Protocol `official`: upsample (bilinear, corners aligned: source = i (n - 1) / (N - 1)) -> mean over 21x21 (stride
//! 1, zero padding 10, divisor always 441, so borders are damped) -> image score = maximum over the means of all
//! 32x32 windows that lie inside the smoothed map. Sums run in f64; the same code serves evaluation and prediction.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a map becomes a score. Stored in the model file, because thresholds mean nothing without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Name that every report prints beside its numbers.
    pub name: String,
    /// Side of the smoothing window in pixels of the full-size map; odd, 1 for none.
    pub smooth: usize,
    /// Side of the window whose largest mean is the image score; 1 for the plain maximum.
    pub pool: usize,
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
    /// The published evaluation: 21x21 smoothing before both metrics, then 32x32 pooling.
    pub fn official() -> Self {
        Self { name: "official".into(), smooth: 21, pool: 32 }
    }

    /// Errors: [`Error::Config`] for windows that cannot be used, as a damaged or foreign file may name.
    pub fn check(&self) -> Result<()> {
        if self.smooth % 2 == 1 && self.pool > 0 {
            return Ok(());
        }
        Err(Error::config(
            format!("scoring protocol `{}`: smooth = {}, pool = {}", self.name, self.smooth, self.pool),
            "smooth must be odd, so that its window has a centre, and pool at least 1; official is 21 and 32",
        ))
    }

    /// One line that says what the numbers mean, printed beside them.
    pub fn describe(&self) -> String {
        let Self { name, smooth, pool } = self;
        format!(
            "{name}: map smoothed by a {smooth}x{smooth} mean (zero padding), image score = largest {pool}x{pool} mean \
             of the smoothed map, a pixel is positive where mask > 0"
        )
    }

    /// Scores the anomaly map `[h, w]` at `out_h` x `out_w`. A map smaller than the pooling window is pooled whole:
    /// the window shrinks to the map, side by side.
    ///
    /// Errors: [`Self::check`]; [`Error::Shape`] for empty sizes or a map that is not `h * w` long.
    pub fn score(&self, map: &[f32], h: usize, w: usize, out_h: usize, out_w: usize) -> Result<Scored> {
        self.check()?;
        let map = smooth(&upsample(map, h, w, out_h, out_w)?, out_h, out_w, self.smooth);
        let image_score = largest_mean(&map, out_h, out_w, self.pool);
        Ok(Scored { map, height: out_h, width: out_w, image_score })
    }
}

/// Bilinear resize of `[h, w]` to `[out_h, out_w]` with corners aligned, as PyTorch's
/// `interpolate(mode="bilinear", align_corners=True)`. The result is the map before smoothing.
///
/// Errors: [`Error::Shape`] for empty sizes or a map that is not `h * w` long.
pub fn upsample(map: &[f32], h: usize, w: usize, out_h: usize, out_w: usize) -> Result<Vec<f32>> {
    if map.len() != h * w || map.is_empty() || out_h * out_w == 0 {
        let what = format!("a map of {} values cannot be {h}x{w} and become {out_h}x{out_w}", map.len());
        return Err(Error::Shape { op: "score::upsample", what });
    }
    let columns = taps(w, out_w);
    let mut row = vec![0.0; w];
    let mut out = Vec::with_capacity(out_h * out_w);
    for (top, bottom, t) in taps(h, out_h) {
        let (top, bottom) = (&map[top * w..][..w], &map[bottom * w..][..w]);
        for ((row, &a), &b) in row.iter_mut().zip(top).zip(bottom) {
            *row = f64::from(a) + t * (f64::from(b) - f64::from(a));
        }
        out.extend(columns.iter().map(|&(left, right, t)| (row[left] + t * (row[right] - row[left])) as f32));
    }
    Ok(out)
}

/// For every output index the two inputs it lies between and how far it is towards the second.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f64)> {
    let tap = |i: usize| {
        // In integers, so that the last output is the last input whatever the sizes.
        let (at, span) = (i * (from - 1), (to - 1).max(1));
        (at / span, (at / span + 1).min(from - 1), (at % span) as f64 / span as f64)
    };
    (0..to).map(tap).collect()
}

/// Mean over `window` x `window` (odd) around every pixel of `[h, w]`; outside counts as zero and is counted.
fn smooth(map: &[f32], h: usize, w: usize, window: usize) -> Vec<f32> {
    let (reach, area) = (window / 2, (window * window) as f64);
    let mut out = Vec::with_capacity(map.len());
    box_sums(map, w, (0..h).map(|y| (y.saturating_sub(reach), (y + reach + 1).min(h))), |prefix| {
        out.extend((0..w).map(|x| {
            let sum = prefix[(x + reach + 1).min(w)] - prefix[x.saturating_sub(reach)];
            (sum / area) as f32
        }));
    });
    out
}

/// The largest mean of all windows inside `[h, w]`, NaN if there is one.
fn largest_mean(map: &[f32], h: usize, w: usize, window: usize) -> f32 {
    let (wh, ww) = (window.min(h), window.min(w));
    let area = (wh * ww) as f64;
    let mut largest = f64::NEG_INFINITY;
    box_sums(map, w, (0..=h - wh).map(|y| (y, y + wh)), |prefix| {
        for (right, left) in prefix[ww..].iter().zip(prefix) {
            // `f64::max` would drop a NaN.
            let sum = right - left;
            largest = if sum <= largest { largest } else { sum };
        }
    });
    (largest / area) as f32
}

/// For each band of rows `[from, to)` (neither end may move up) hands over the prefix sums (`w + 1`, first 0) of its
/// column sums: a box sum is then one subtraction. Running sums in f64 gather rounding, at worst 3e-11 of the largest
/// value on a map 2000 wide, where f32 itself has 6e-8. A NaN stays in them, so it is never silently averaged away.
fn box_sums(map: &[f32], w: usize, bands: impl Iterator<Item = (usize, usize)>, mut row: impl FnMut(&[f64])) {
    let mut columns = vec![0.0_f64; w];
    let mut prefix = vec![0.0_f64; w + 1];
    let (mut first, mut last) = (0, 0);
    for (from, to) in bands {
        for y in last..to {
            columns.iter_mut().zip(&map[y * w..][..w]).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        for y in first..from {
            columns.iter_mut().zip(&map[y * w..][..w]).for_each(|(sum, &x)| *sum -= f64::from(x));
        }
        (first, last) = (from, to);
        let mut sum = 0.0;
        for (prefix, column) in prefix[1..].iter_mut().zip(&columns) {
            sum += column;
            *prefix = sum;
        }
        row(&prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
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

    #[test]
    fn upsamples_with_aligned_corners() {
        let up = upsample(&[0.0, 1.0, 2.0], 1, 3, 1, 6).unwrap();
        for (ours, expected) in up.iter().zip([0.0, 0.4, 0.8, 1.2, 1.6, 2.0]) {
            assert!((ours - expected).abs() <= 1e-7, "{up:?}");
        }
        assert_eq!(upsample(&[3.0, 5.0], 2, 1, 3, 2).unwrap(), [3.0, 3.0, 4.0, 4.0, 5.0, 5.0]);
        assert_eq!(upsample(&[3.0, 5.0], 1, 2, 1, 1).unwrap(), [3.0]);
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

    /// The window must fit: on a 224 x 224 map it has 193 x 193 places, so the very corner counts in one of them.
    #[test]
    fn pools_every_place_inside() {
        let mut map = vec![0.0; 224 * 224];
        map[224 * 224 - 1] = 1024.0;
        assert_eq!(largest_mean(&map, 224, 224, 32), 1.0);
        let mut places = (0, 0);
        box_sums(&map, 224, (0..=224 - 32).map(|y| (y, y + 32)), |prefix| {
            places = (places.0 + 1, prefix[32..].len());
        });
        assert_eq!(places, (193, 193));
    }

    #[test]
    fn a_small_map_is_pooled_whole() {
        let plain = Protocol { smooth: 1, ..Protocol::official() };
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
            let protocol = Protocol { name: "x".into(), smooth, pool };
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
        assert_eq!(serde_json::from_str::<Protocol>(&text).unwrap(), Protocol::official());
    }

    proptest! {
        /// Windows of any size on maps of any shape against the plain double loop.
        #[test]
        fn equals_the_plain_loops(
            h in 1_usize..14, w in 1_usize..14, reach in 0_usize..8, pool in 1_usize..16,
            values in proptest::collection::vec(-3.0_f32..50.0, 14 * 14),
        ) {
            let (map, window) = (&values[..h * w], 2 * reach + 1);
            let sum = |top: usize, left: usize, bottom: usize, right: usize| -> f64 {
                (top..bottom).flat_map(|y| (left..right).map(move |x| f64::from(map[y * w + x]))).sum()
            };
            let smoothed = smooth(map, h, w, window);
            for y in 0..h {
                for x in 0..w {
                    let (top, left) = (y.saturating_sub(reach), x.saturating_sub(reach));
                    let truth = sum(top, left, h.min(y + reach + 1), w.min(x + reach + 1)) / (window * window) as f64;
                    prop_assert!((f64::from(smoothed[y * w + x]) - truth).abs() <= 6e-8 * truth.abs() + 1e-11);
                }
            }
            let (ph, pw) = (pool.min(h), pool.min(w));
            let truth = (0..=h - ph)
                .flat_map(|y| (0..=w - pw).map(move |x| (y, x)))
                .map(|(y, x)| sum(y, x, y + ph, x + pw) / (ph * pw) as f64)
                .fold(f64::NEG_INFINITY, f64::max);
            prop_assert!((f64::from(largest_mean(map, h, w, pool)) - truth).abs() <= 6e-8 * truth.abs() + 1e-11);
        }
    }
}
