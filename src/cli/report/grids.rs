//! Where pictures lie in the grids, and what the global one holds: figures 3 and 4 of the paper.

use image::RgbImage;

use super::gather::Judged;
use crate::data::{Dataset, Item, decode_file};
use crate::detector::Detector;
use crate::error::Result;
use crate::inspect::{Coordinates, coordinates, sample_global};
use crate::report::{ChannelMap, GlobalMap, GlobalPoint, GridSample, LocalMap, LocalPair, LocalPoint, Thumbnail};
use crate::train::FeatureSource;

/// Classes whose positions are compared.
const PAIRS: usize = 3;
/// Positions of a picture that are compared: those of its defect first.
const ON_DEFECT: usize = 2;
const ELSEWHERE: usize = 3;
/// Positions that are compared lie at least this far apart, in rows or columns of the feature map.
const APART: usize = 5;
/// Classes whose place in the global grid is sampled, with the point between each two.
const SAMPLED: usize = 3;
/// Channels that are shown of a sample.
const CHANNELS: usize = 4;

/// Both maps for the judged test pictures, class by class; `test` has the features of `items` in the same order. A memory
/// without coordinates has none.
///
/// # Errors
/// What decoding and the device refuse.
pub fn maps(
    detector: &Detector,
    dataset: &Dataset,
    items: &[&Item],
    test: &dyn FeatureSource,
    judged: &[Vec<Judged>],
) -> Result<(Option<LocalMap>, Option<GlobalMap>)> {
    let head = detector.head.config();
    if !head.memory.has_coordinates() {
        return Ok((None, None));
    }
    let inputs: Vec<&[f32]> = (0..items.len()).map(|i| test.get(i)).collect();
    let all = coordinates(detector, &inputs)?;
    let local = if head.local {
        let pairs = judged.iter().filter_map(|class| pair(detector, dataset, items, test, &all, class).transpose());
        let pairs = pairs.take(PAIRS).collect::<Result<Vec<_>>>()?;
        let features = [head.height, head.width];
        (!pairs.is_empty()).then_some(LocalMap { resolution: head.local_resolution, features, pairs })
    } else {
        None
    };
    let global = head.global.then(|| global(detector, dataset, &all, judged)).transpose()?;
    Ok((local, global))
}

/// A middling good picture of a class and its most anomalous one, compared where the defect is and elsewhere.
fn pair(
    detector: &Detector,
    dataset: &Dataset,
    items: &[&Item],
    test: &dyn FeatureSource,
    all: &[Coordinates],
    class: &[Judged],
) -> Result<Option<LocalPair>> {
    let mut good: Vec<&Judged> = class.iter().filter(|j| j.good).collect();
    good.sort_by(|a, b| a.score.total_cmp(&b.score));
    let worst = class.iter().filter(|j| !j.good).max_by(|a, b| a.score.total_cmp(&b.score));
    let (Some(good), Some(worst)) = (good.get(good.len() / 2), worst) else { return Ok(None) };
    let (Some(of_good), Some(of_worst)) = (&all[good.item].local, &all[worst.item].local) else { return Ok(None) };
    let map = detector.raw_map(test.get(worst.item))?;
    let width = detector.head.config().width;
    let point = |position: usize| LocalPoint {
        position,
        good: [of_good[2 * position], of_good[2 * position + 1]],
        defective: [of_worst[2 * position], of_worst[2 * position + 1]],
    };
    let thumbnail = |item: usize| {
        let picture = decode_file(&items[item].path)?;
        let (width, height) = (picture.width as u32, picture.height as u32);
        Thumbnail::photograph(&RgbImage::from_raw(width, height, picture.rgb).expect("three bytes a pixel"))
    };
    Ok(Some(LocalPair {
        class: dataset.class_of(items[good.item]).to_owned(),
        good: thumbnail(good.item)?,
        defective: thumbnail(worst.item)?,
        points: positions(&map, width).into_iter().map(point).collect(),
    }))
}

/// Positions of the highest values of a map, then of the lowest, each apart from those before.
fn positions(map: &[f32], width: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..map.len()).collect();
    order.sort_by(|a, b| map[*b].total_cmp(&map[*a]));
    let mut chosen: Vec<usize> = vec![];
    let apart = |a: usize, b: usize| (a / width).abs_diff(b / width).max((a % width).abs_diff(b % width)) >= APART;
    for (candidates, count) in [(order.clone(), ON_DEFECT), (order.into_iter().rev().collect(), ON_DEFECT + ELSEWHERE)]
    {
        for candidate in candidates {
            if chosen.len() < count && chosen.iter().all(|&c| apart(c, candidate)) {
                chosen.push(candidate);
            }
        }
    }
    chosen
}

fn global(detector: &Detector, dataset: &Dataset, all: &[Coordinates], judged: &[Vec<Judged>]) -> Result<GlobalMap> {
    let at = |j: &Judged| all[j.item].global.unwrap_or_default();
    let point = |class: usize, (picture, j): (usize, &Judged)| GlobalPoint { class, picture, at: at(j) };
    let points = judged.iter().enumerate();
    let points = points.flat_map(|(class, of)| of.iter().enumerate().map(move |p| point(class, p))).collect();

    // The place of a class is the mean of its good pictures.
    let mean = |of: &[Judged]| {
        let good: Vec<[f32; 2]> = of.iter().filter(|j| j.good).map(at).collect();
        let n = good.len() as f32;
        (n > 0.0).then(|| [0, 1].map(|axis| good.iter().map(|p| p[axis]).sum::<f32>() / n))
    };
    let places: Vec<(&str, [f32; 2])> = dataset
        .classes
        .iter()
        .zip(judged)
        .filter_map(|(name, of)| Some((name.as_str(), mean(of)?)))
        .take(SAMPLED)
        .collect();
    let mut samples = vec![];
    for (i, &(name, place)) in places.iter().enumerate() {
        samples.extend(sample(detector, name.to_owned(), place)?);
        if let Some(&(next, other)) = places.get(i + 1) {
            let between = [0, 1].map(|axis| (place[axis] + other[axis]) / 2.0);
            samples.extend(sample(detector, format!("between {name} and {next}"), between)?);
        }
    }
    Ok(GlobalMap { resolution: detector.head.config().global_resolution, points, samples, lines: vec![] })
}

fn sample(detector: &Detector, label: String, at: [f32; 2]) -> Result<Option<GridSample>> {
    let Some(map) = sample_global(detector, at)? else { return Ok(None) };
    let head = detector.head.config();
    let [height, width, channels] = [head.height, head.width, head.channels];
    let channel = |i: usize| {
        let channel = i * channels / CHANNELS;
        let values = map.iter().skip(channel).step_by(channels).copied().collect();
        ChannelMap { channel, height, width, values }
    };
    Ok(Some(GridSample { at, label, channels: (0..CHANNELS.min(channels)).map(channel).collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_the_extremes_and_apart() {
        let (width, height) = (12, 10);
        let mut map = vec![1.0; width * height];
        (map[5 * width + 5], map[5 * width + 6], map[11]) = (9.0, 8.0, 7.0);
        (map[9 * width], map[9 * width + 1]) = (-3.0, -2.0);
        let chosen = positions(&map, width);
        assert_eq!(chosen.len(), 5);
        assert_eq!(chosen[..3], [5 * width + 5, 11, 9 * width]);
        // A map too small for five has fewer.
        assert_eq!(positions(&[1.0, 2.0, 3.0, 4.0], 2).len(), 1);
    }
}
