//! Golden pictures: a few prepared pictures in the model file, with the scores they must have on every machine.
//!
//! ```text
//! recorded:  picture -> resized to [S, S, 3], bytes -> network -> score, peak       where the model was made
//! replayed:                    the same bytes       -> network -> score, peak       here
//! ```
//! Another processor or device rounds differently: scores then differ in the sixth digit or so, in bf16 in the second.
//! Wrong weights, a wrong normalisation or a broken kernel change them by tens of percent. The bound lies far from both.

use crate::checkpoint::Golden;
use crate::data::{Dataset, Item, Picture, decode_file, resize};
use crate::detector::Detector;
use crate::device::cuda::Precision;
use crate::error::Result;

/// Pictures that a model file keeps.
pub const COUNT: usize = 4;

/// A golden picture, scored again.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// Where the picture came from.
    pub name: String,
    /// Score and peak as the model file has them.
    pub recorded: [f32; 2],
    /// Score and peak here.
    pub here: [f32; 2],
}

impl Replay {
    /// The larger of both differences, as a share of what was recorded.
    pub fn difference(&self) -> f64 {
        let share = |(recorded, here): (f32, f32)| {
            let (recorded, here) = (f64::from(recorded), f64::from(here));
            (here - recorded).abs() / recorded.abs().max(f64::MIN_POSITIVE)
        };
        let [a, b] = [0, 1].map(|i| share((self.recorded[i], self.here[i])));
        if a >= b || a.is_nan() { a } else { b }
    }
}

/// Largest difference that rounding explains, as a share of the score.
pub fn allowed(precision: Precision) -> f64 {
    match precision {
        Precision::F32 | Precision::Tf32 => 0.01,
        Precision::Bf16 => 0.05,
    }
}

/// Golden pictures of a dataset's items, named CLASS/FILE.
///
/// # Errors
/// What decoding and scoring refuse.
pub fn of_items(detector: &Detector, dataset: &Dataset, items: &[&Item]) -> Result<Vec<Golden>> {
    let named = |item: &&Item| {
        let file = item.path.file_name().unwrap_or_default().to_string_lossy();
        Ok((format!("{}/{file}", dataset.class_of(item)), decode_file(&item.path)?))
    };
    record(detector, &items.iter().map(named).collect::<Result<Vec<_>>>()?)
}

/// Scores named pictures for the model file. The last of them gets a square of inverted colours first, so that something
/// anomalous is among them.
///
/// # Errors
/// As [`Detector::score_pictures`].
fn record(detector: &Detector, pictures: &[(String, Picture)]) -> Result<Vec<Golden>> {
    let size = detector.info.image_size;
    let mut prepared: Vec<Picture> = pictures.iter().map(|(_, picture)| prepare(picture, size)).collect();
    if let Some(last) = prepared.last_mut() {
        invert_square(last);
    }
    let scored = detector.score_pictures(&prepared)?;
    let all = pictures.iter().zip(prepared).zip(scored);
    Ok(all
        .map(|(((name, _), picture), scored)| Golden {
            name: name.clone(),
            score: scored.image_score,
            peak: scored.peak(),
            rgb: picture.rgb,
        })
        .collect())
}

/// Scores the golden pictures of a model where it lies now.
///
/// # Errors
/// As [`Detector::score_pictures`].
pub fn replay(detector: &Detector) -> Result<Vec<Replay>> {
    let size = detector.info.image_size;
    let golden = &detector.info.golden;
    let pictures: Vec<Picture> =
        golden.iter().map(|g| Picture { width: size, height: size, rgb: g.rgb.clone() }).collect();
    let scored = detector.score_pictures(&pictures)?;
    let replay = |(golden, scored): (&Golden, crate::score::Scored)| Replay {
        name: golden.name.clone(),
        recorded: [golden.score, golden.peak],
        here: [scored.image_score, scored.peak()],
    };
    Ok(golden.iter().zip(scored).map(replay).collect())
}

/// The bytes that the network's input is made of; resizing them again changes nothing.
fn prepare(picture: &Picture, size: usize) -> Picture {
    let plan = resize::Bilinear::new((picture.width, picture.height), (size, size));
    Picture { width: size, height: size, rgb: plan.apply(&picture.rgb, 3) }
}

/// In the middle, a quarter as wide as the picture.
fn invert_square(picture: &mut Picture) {
    let (side, from) = (picture.width / 4, picture.width * 3 / 8);
    for row in picture.rgb.chunks_exact_mut(3 * picture.width).skip(from).take(side) {
        row[3 * from..3 * (from + side)].iter_mut().for_each(|v| *v = !*v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_difference_counts_and_a_nan_most() {
        let replay = |here| Replay { name: "a".into(), recorded: [2.0, 4.0], here };
        assert_eq!(replay([2.0, 4.0]).difference(), 0.0);
        assert_eq!(replay([2.5, 4.0]).difference(), 0.25);
        assert_eq!(replay([2.0, 2.0]).difference(), 0.5);
        for bad in [[f32::NAN, 4.0], [2.0, f32::NAN], [f32::INFINITY, 4.0]] {
            let difference = replay(bad).difference();
            assert!(difference.is_nan() || difference > allowed(Precision::Bf16), "{difference}");
        }
    }

    #[test]
    fn a_square_in_the_middle_is_inverted() {
        let mut picture = Picture { width: 16, height: 16, rgb: vec![10; 16 * 16 * 3] };
        invert_square(&mut picture);
        let changed: Vec<usize> = (0..16 * 16).filter(|i| picture.rgb[3 * i] == 245).collect();
        assert_eq!((changed.len(), changed[0], *changed.last().unwrap()), (16, 6 * 16 + 6, 9 * 16 + 9));
    }
}
