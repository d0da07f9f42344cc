//! What is done to a map `[h, w]`: resizing, smoothing, pooling. Sums run in f64 and in one order; a NaN stays a NaN.

use super::Border;
use crate::{Error, Result};

/// Bilinear resize of `[h, w]` to `[out_h, out_w]` with corners aligned, as PyTorch's
/// `interpolate(mode="bilinear", align_corners=True)`. The result is the map before smoothing.
///
/// Errors: [`Error::Shape`] for empty sizes or a map that is not `h * w` long.
pub fn upsample(map: &[f32], h: usize, w: usize, out_h: usize, out_w: usize) -> Result<Vec<f32>> {
    if map.len() != h * w || map.is_empty() || out_h * out_w == 0 {
        let what = format!("a map of {} values cannot be {h}x{w} and become {out_h}x{out_w}", map.len());
        return Err(Error::Shape { op: "score::upsample", what });
    }
    Ok(bilinear(map, w, &taps(h, out_h), &taps(w, out_w)))
}

/// For an output index the two inputs it lies between and how far it is towards the second.
pub(super) type Tap = (usize, usize, f64);

/// Reads a map of rows of `w` pixels at every pair of `rows` and `columns`.
pub(super) fn bilinear(map: &[f32], w: usize, rows: &[Tap], columns: &[Tap]) -> Vec<f32> {
    let mut row = vec![0.0; w];
    let mut out = Vec::with_capacity(rows.len() * columns.len());
    for &(top, bottom, t) in rows {
        let (top, bottom) = (&map[top * w..][..w], &map[bottom * w..][..w]);
        for ((row, &a), &b) in row.iter_mut().zip(top).zip(bottom) {
            *row = f64::from(a) + t * (f64::from(b) - f64::from(a));
        }
        out.extend(columns.iter().map(|&(left, right, t)| (row[left] + t * (row[right] - row[left])) as f32));
    }
    out
}

/// Corners aligned: output i lies at i (from - 1) / (to - 1).
fn taps(from: usize, to: usize) -> Vec<Tap> {
    let tap = |i: usize| {
        // In integers, so that the last output is the last input whatever the sizes.
        let (at, span) = (i * (from - 1), (to - 1).max(1));
        (at / span, (at / span + 1).min(from - 1), (at % span) as f64 / span as f64)
    };
    (0..to).map(tap).collect()
}

/// Pixel centres aligned: output i lies at (i + 1/2) from / to - 1/2, not before the first pixel; as PyTorch's
/// `interpolate(mode="bilinear", align_corners=False)`, which does not average where it shrinks.
pub(super) fn centred(from: usize, to: usize) -> Vec<Tap> {
    let tap = |i: usize| {
        let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let left = (at as usize).min(from - 1);
        (left, (left + 1).min(from - 1), at - left as f64)
    };
    (0..to).map(tap).collect()
}

/// Gaussian of `window` (odd) by `window`, along rows, then along columns.
pub(super) fn gaussian(map: &[f32], h: usize, w: usize, window: usize, sigma: f64, border: Border) -> Vec<f32> {
    let reach = window / 2;
    let weight = |i: usize| (-0.5 * (i.abs_diff(reach) as f64 / sigma).powi(2)).exp();
    let sum: f64 = (0..window).map(weight).sum();
    let weights: Vec<f64> = (0..window).map(|i| weight(i) / sum).collect();
    // The pixel that stands at `at - reach` of `n`.
    let source = |at: usize, n: usize| match border {
        Border::Zero => at.checked_sub(reach).filter(|&i| i < n),
        Border::Reflect => {
            // Mirrored again and again where the window is wider than the map.
            let i = (at + reach / n * 2 * n + 2 * n - reach) % (2 * n);
            Some(if i < n { i } else { 2 * n - 1 - i })
        }
    };
    let columns: Vec<Option<usize>> = (0..w + 2 * reach).map(|at| source(at, w)).collect();
    let mut padded = vec![0.0; columns.len()];
    let mut along_rows: Vec<f64> = Vec::with_capacity(map.len());
    for row in map.chunks_exact(w) {
        padded.iter_mut().zip(&columns).for_each(|(to, from)| *to = from.map_or(0.0, |i| f64::from(row[i])));
        let smoothed = padded.windows(window).map(|seen| seen.iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>());
        along_rows.extend(smoothed);
    }
    let mut out = Vec::with_capacity(map.len());
    let mut sums = vec![0.0; w];
    for y in 0..h {
        sums.fill(0.0);
        for (i, weight) in weights.iter().enumerate() {
            if let Some(from) = source(y + i, h) {
                sums.iter_mut().zip(&along_rows[from * w..][..w]).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        out.extend(sums.iter().map(|&sum| sum as f32));
    }
    out
}

/// Mean of the largest `top` (a share) of the values, NaN if there is one.
pub(super) fn top_mean(map: &[f32], top: f64) -> f32 {
    let n = ((map.len() as f64 * top) as usize).clamp(1, map.len());
    let mut values = map.to_vec();
    // A NaN of either sign must come out on top.
    values.iter_mut().filter(|value| value.is_nan()).for_each(|value| *value = f32::NAN);
    let first = values.len() - n;
    values.select_nth_unstable_by(first, f32::total_cmp);
    let largest = &mut values[first..];
    // In order, so that the sum does not depend on how they were found.
    largest.sort_unstable_by(f32::total_cmp);
    (largest.iter().map(|&value| f64::from(value)).sum::<f64>() / n as f64) as f32
}

/// Mean over `window` x `window` (odd) around every pixel of `[h, w]`; outside counts as zero and is counted.
pub(super) fn smooth(map: &[f32], h: usize, w: usize, window: usize) -> Vec<f32> {
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
pub(super) fn largest_mean(map: &[f32], h: usize, w: usize, window: usize) -> f32 {
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

    #[test]
    fn a_mirrored_border_damps_nothing_and_a_zero_one_does() {
        for (h, w) in [(1, 1), (3, 50), (40, 2)] {
            let ones = vec![1.0; h * w];
            let mirrored = gaussian(&ones, h, w, 33, 4.0, Border::Reflect);
            assert!(mirrored.iter().all(|&x| (x - 1.0).abs() <= 1.2e-7), "{h}x{w}");
        }
        // In a corner 3 of 5 weights remain on either axis.
        let weights: Vec<f64> = (0..5).map(|i| (-(f64::from(i - 2) / 4.0).powi(2) / 2.0).exp()).collect();
        let share = weights[2..].iter().sum::<f64>() / weights.iter().sum::<f64>();
        let damped = gaussian(&[1.0; 100], 10, 10, 5, 4.0, Border::Zero);
        assert!((f64::from(damped[0]) - share * share).abs() <= 6e-8 && (damped[55] - 1.0).abs() <= 1.2e-7);
    }

    #[test]
    fn the_top_share_is_averaged() {
        let map: Vec<f32> = (0..250).map(|i| ((i * 37) % 250) as f32).collect();
        assert_eq!(top_mean(&map, 0.01), 248.5); // two of 250
        assert_eq!(top_mean(&map, 0.001), 249.0);
        assert_eq!(top_mean(&map, 1.0), 124.5);
        assert!(top_mean(&[1.0, -f32::NAN, 2.0], 0.4).is_nan());
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
