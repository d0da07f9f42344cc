//! Features as a decoder paints them: figures 1, 3 and 4 of the paper.
//!
//! A place of the global grid says nothing of single positions, so the local branch needs a picture. A class is stood for
//! by the training picture that lies nearest to the mean of its places: from its place a line goes to that of the class
//! that lies nearest, once with the local part of the one picture and once with that of the other.

use crate::data::Dataset;
use crate::decoder::Painter;
use crate::detector::Detector;
use crate::error::Result;
use crate::inspect::{coordinates, reconstruction_at, reconstructions};
use crate::report::{Decoded, GridLine, Thumbnail};
use crate::train::FeatureSource;

use super::super::pictures::Selection;

/// Training pictures of a class whose places are looked at: evenly spread, so many at most.
const LOOKED_AT: usize = 12;
/// Places of a line, its ends included.
const STEPS: usize = 5;
/// Lines at most: with hundreds of classes a page would be nothing else.
const LINES: usize = 16;

/// What the model saw of a picture with features x, and what it rebuilt.
///
/// # Errors
/// What the device refuses.
pub fn of(detector: &Detector, painter: &Painter, x: &[f32]) -> Result<Decoded> {
    let rebuilt = reconstructions(detector, &[x])?.remove(0);
    let pictures = painter.paint(&[x, &rebuilt])?;
    Ok(Decoded { features: Thumbnail::photograph(&pictures[0])?, reconstruction: Thumbnail::photograph(&pictures[1])? })
}

/// The training picture that stands for a class in the global grid.
struct Home<'a> {
    class: &'a str,
    at: [f32; 2],
    picture: usize,
}

/// What the model makes of places between classes that lie next to each other; nothing without a global grid.
///
/// # Errors
/// What the device refuses.
pub fn lines(detector: &Detector, painter: &Painter, dataset: &Dataset, train: &Selection) -> Result<Vec<GridLine>> {
    let items = train.items();
    let mut homes = vec![];
    for (class, name) in dataset.classes.iter().enumerate() {
        let of: Vec<usize> = (0..items.len()).filter(|&i| items[i].class == class).collect();
        let looked_at = of.len().min(LOOKED_AT);
        let of: Vec<usize> = (0..looked_at).map(|i| of[i * of.len() / looked_at]).collect();
        let features: Vec<&[f32]> = of.iter().map(|&i| train.get(i)).collect();
        let places = coordinates(detector, &features)?.into_iter().map(|c| c.global);
        let places: Vec<[f32; 2]> = places.collect::<Option<_>>().unwrap_or_default();
        homes.extend(middle(&places).map(|i| Home { class: name, at: places[i], picture: of[i] }));
    }
    if let [home] = &homes[..] {
        return Ok(vec![line(detector, painter, train, &[home], &[home.at])?]);
    }
    let pairs = neighbours(&homes.iter().map(|home| home.at).collect::<Vec<_>>());
    let between = |[a, b]: [usize; 2]| {
        let ends = [&homes[a], &homes[b]];
        let step = |i: usize| {
            let t = i as f32 / (STEPS - 1) as f32;
            [0, 1].map(|axis| (1.0 - t) * ends[0].at[axis] + t * ends[1].at[axis])
        };
        line(detector, painter, train, &ends, &(0..STEPS).map(step).collect::<Vec<_>>())
    };
    pairs.into_iter().take(LINES).map(between).collect()
}

/// These places, with the local part of the picture at each end.
fn line(
    detector: &Detector,
    painter: &Painter,
    train: &Selection,
    ends: &[&Home],
    places: &[[f32; 2]],
) -> Result<GridLine> {
    // Without a local branch it is the same for every picture.
    let rows = if detector.head.config().local { ends } else { &ends[..1] };
    let row = |home: &&Home| {
        let mut pictures = vec![];
        for &at in places {
            if let Some(rebuilt) = reconstruction_at(detector, at, train.get(home.picture))? {
                pictures.push(Thumbnail::photograph(&painter.paint(&[&rebuilt])?[0])?);
            }
        }
        Ok(pictures)
    };
    Ok(GridLine {
        ends: ends.iter().map(|home| home.class.to_owned()).collect(),
        places: places.to_vec(),
        rows: rows.iter().map(row).collect::<Result<_>>()?,
    })
}

fn distance([ax, ay]: [f32; 2], [bx, by]: [f32; 2]) -> f32 {
    (ax - bx).hypot(ay - by)
}

/// Which place lies nearest to the mean of all.
fn middle(places: &[[f32; 2]]) -> Option<usize> {
    let mean = [0, 1].map(|axis| places.iter().map(|place| place[axis]).sum::<f32>() / places.len() as f32);
    (0..places.len()).min_by(|&i, &j| distance(places[i], mean).total_cmp(&distance(places[j], mean)))
}

/// Each place with the one nearest to it, every pair once, in order.
fn neighbours(places: &[[f32; 2]]) -> Vec<[usize; 2]> {
    let nearest = |i: usize| {
        let others = (0..places.len()).filter(|&j| j != i);
        others.min_by(|&j, &k| distance(places[i], places[j]).total_cmp(&distance(places[i], places[k])))
    };
    let mut pairs: Vec<[usize; 2]> =
        (0..places.len()).filter_map(|i| nearest(i).map(|j| [i.min(j), i.max(j)])).collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_live_in_the_middle_and_beside_their_nearest() {
        assert_eq!(middle(&[[0.0, 0.0], [0.6, 0.0], [0.3, 0.1]]), Some(2));
        assert_eq!(middle(&[]), None);
        assert_eq!(neighbours(&[[0.0, 0.0], [0.1, 0.0], [0.9, 0.0], [0.25, 0.0]]), [[0, 1], [1, 3], [2, 3]]);
        assert_eq!(neighbours(&[[0.0, 0.0]]), [[0usize; 2]; 0]);
    }
}
