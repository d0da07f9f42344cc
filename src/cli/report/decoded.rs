//! Features as a decoder paints them: figures 1, 3 and 4 of the paper.
//!
//! A place of the global grid says nothing of single positions, so the local branch needs a picture: the training picture
//! whose own place lies nearest. Between two classes there are two answers, one with the local part of each.

use crate::data::Dataset;
use crate::decoder::Painter;
use crate::detector::Detector;
use crate::error::Result;
use crate::inspect::{coordinates, reconstruction_at, reconstructions};
use crate::report::{Decoded, GridPicture, Thumbnail};
use crate::train::FeatureSource;

use super::super::pictures::Selection;

/// Training pictures of a class whose places are looked at: evenly spread, so many at most.
const LOOKED_AT: usize = 32;

/// What the model saw of a picture with features x, and what it rebuilt.
///
/// # Errors
/// What the device refuses.
pub fn of(detector: &Detector, painter: &Painter, x: &[f32]) -> Result<Decoded> {
    let rebuilt = reconstructions(detector, &[x])?.remove(0);
    let pictures = painter.paint(&[x, &rebuilt])?;
    Ok(Decoded { features: Thumbnail::photograph(&pictures[0])?, reconstruction: Thumbnail::photograph(&pictures[1])? })
}

/// A class in the global grid: the mean place of its training pictures, and the one of them that lies nearest.
struct Home<'a> {
    class: &'a str,
    at: [f32; 2],
    nearest: usize,
}

/// What is stored where the classes lie, and between those that lie next to each other; nothing without a global grid.
///
/// # Errors
/// What the device refuses.
pub fn stored(
    detector: &Detector,
    painter: &Painter,
    dataset: &Dataset,
    train: &Selection,
) -> Result<Vec<GridPicture>> {
    let items = train.items();
    let mut homes = vec![];
    for (class, name) in dataset.classes.iter().enumerate() {
        let of: Vec<usize> = (0..items.len()).filter(|&i| items[i].class == class).collect();
        let looked_at = of.len().min(LOOKED_AT);
        let of: Vec<usize> = (0..looked_at).map(|i| of[i * of.len() / looked_at]).collect();
        let features: Vec<&[f32]> = of.iter().map(|&i| train.get(i)).collect();
        let places = coordinates(detector, &features)?.into_iter().map(|c| c.global);
        let places: Vec<[f32; 2]> = places.collect::<Option<_>>().unwrap_or_default();
        homes.extend(home(name, &places).map(|home| Home { nearest: of[home.nearest], ..home }));
    }
    let mut pictures = vec![];
    let mut add = |label: String, at: [f32; 2], of: &Home| -> Result<()> {
        if let Some(rebuilt) = reconstruction_at(detector, at, train.get(of.nearest))? {
            let picture = Thumbnail::photograph(&painter.paint(&[&rebuilt])?[0])?;
            pictures.push(GridPicture { at, label, local: of.class.into(), picture });
        }
        Ok(())
    };
    homes.iter().try_for_each(|home| add(home.class.into(), home.at, home))?;
    for [a, b] in neighbours(&homes.iter().map(|home| home.at).collect::<Vec<_>>()) {
        let [a, b] = [&homes[a], &homes[b]];
        let between = [0, 1].map(|axis| (a.at[axis] + b.at[axis]) / 2.0);
        for of in [a, b] {
            add(format!("between {} and {}", a.class, b.class), between, of)?;
        }
    }
    Ok(pictures)
}

fn distance([ax, ay]: [f32; 2], [bx, by]: [f32; 2]) -> f32 {
    (ax - bx).hypot(ay - by)
}

fn home<'a>(class: &'a str, places: &[[f32; 2]]) -> Option<Home<'a>> {
    let at = [0, 1].map(|axis| places.iter().map(|place| place[axis]).sum::<f32>() / places.len() as f32);
    let nearest = (0..places.len()).min_by(|&i, &j| distance(places[i], at).total_cmp(&distance(places[j], at)))?;
    Some(Home { class, at, nearest })
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
        let of = home("a", &[[0.0, 0.0], [0.6, 0.0], [0.3, 0.1]]).unwrap();
        assert_eq!((of.nearest, of.at[0]), (2, 0.3));
        assert!(home("a", &[]).is_none());
        assert_eq!(neighbours(&[[0.0, 0.0], [0.1, 0.0], [0.9, 0.0], [0.25, 0.0]]), [[0, 1], [1, 3], [2, 3]]);
        assert_eq!(neighbours(&[[0.0, 0.0]]), [[0usize; 2]; 0]);
    }
}
