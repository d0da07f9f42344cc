//! Where a map is high: its connected regions, each with box, area, peak and outline, in pixels of the picture.
//!
//! A region is a set of map values at or above a level that touch, diagonally too (8-connected, as AUPRO counts them).
//! Its outline runs along the borders between values, so it encloses exactly what is at or above the level: from the
//! upper left corner of the topmost, leftmost value, clockwise, one point per turn. Holes are not outlined.

use std::ops::Range;

use serde::Serialize;

use crate::components::components;

/// One region, in pixels of the picture that the map belongs to; x to the right, y down, from the upper left corner.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Region {
    /// `[x, y, width, height]` of the smallest rectangle that holds it.
    #[serde(rename = "box")]
    pub bounds: [f32; 4],
    /// Pixels it covers.
    pub area: f32,
    /// Its largest map value.
    pub peak: f32,
    /// Its outline, a closed polygon; the first point is not repeated.
    pub contour: Vec<[f32; 2]>,
}

/// The regions of the map `[h, w]` at or above `level`, the highest peak first, scaled to a picture of `width` x `height`.
pub fn regions(map: &[f32], h: usize, w: usize, level: f32, [width, height]: [usize; 2]) -> Vec<Region> {
    // A NaN is in no region.
    let (runs, count) = components(map, w, |&value| value >= level);
    let mut found = vec![Extent::default(); count];
    let mut labels = vec![0_u32; map.len()];
    for run in &runs {
        found[run.component].add(run.pixels.clone(), &map[run.pixels.clone()], w);
        labels[run.pixels.clone()].fill(run.component as u32 + 1);
    }
    let scale = [width as f32 / w as f32, height as f32 / h as f32];
    let at = |x: usize, y: usize| [x as f32 * scale[0], y as f32 * scale[1]];
    let region = |e: Extent| {
        let ([x, y], [x1, y1]) = (at(e.columns.start, e.start / w), at(e.columns.end, e.bottom + 1));
        let contour = outline(&labels, h, w, e.start).into_iter().map(|[x, y]| at(x, y)).collect();
        let area = e.area as f32 * scale[0] * scale[1];
        Region { bounds: [x, y, x1 - x, y1 - y], area, peak: e.peak, contour }
    };
    let mut found: Vec<Region> = found.into_iter().map(region).collect();
    found.sort_by(|a, b| b.peak.total_cmp(&a.peak));
    found
}

/// What the runs of a region add up to, in values of the map.
#[derive(Clone, Default)]
struct Extent {
    /// Its first value in reading order.
    start: usize,
    columns: Range<usize>,
    /// Its last row.
    bottom: usize,
    area: usize,
    peak: f32,
}

impl Extent {
    /// Runs come in reading order.
    fn add(&mut self, pixels: Range<usize>, values: &[f32], w: usize) {
        let (left, right) = (pixels.start % w, pixels.start % w + pixels.len());
        let peak = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if self.area == 0 {
            (self.start, self.columns, self.peak) = (pixels.start, left..right, peak);
        }
        self.columns = self.columns.start.min(left)..self.columns.end.max(right);
        (self.bottom, self.area, self.peak) = (pixels.start / w, self.area + pixels.len(), self.peak.max(peak));
    }
}

/// Corners of the outer border of the region that holds `start`, its first value in reading order.
fn outline(labels: &[u32], h: usize, w: usize, start: usize) -> Vec<[usize; 2]> {
    let label = labels[start];
    let inside = |x: isize, y: isize| {
        (0..w as isize).contains(&x) && (0..h as isize).contains(&y) && labels[y as usize * w + x as usize] == label
    };
    // Directions east, south, west, north as (dx, dy); the region lies on the right hand.
    const STEPS: [[isize; 2]; 4] = [[1, 0], [0, 1], [-1, 0], [0, -1]];
    // Of the four values around a corner, the one ahead on the left and the one ahead on the right, by direction.
    const AHEAD: [[[isize; 2]; 2]; 4] =
        [[[0, -1], [0, 0]], [[0, 0], [-1, 0]], [[-1, 0], [-1, -1]], [[-1, -1], [0, -1]]];
    let first = [(start % w) as isize, (start / w) as isize];
    let (mut at, mut heading) = (first, 0);
    let mut corners = vec![];
    loop {
        let [left, right] = AHEAD[heading].map(|[dx, dy]| inside(at[0] + dx, at[1] + dy));
        // Left first: values that touch in a corner are one region.
        let next = match (left, right) {
            (true, _) => (heading + 3) % 4,
            (false, true) => heading,
            (false, false) => (heading + 1) % 4,
        };
        if next != heading || corners.is_empty() {
            if corners.len() > 1 && (at, next) == (first, 0) {
                return corners;
            }
            corners.push([at[0] as usize, at[1] as usize]);
        }
        heading = next;
        at = [at[0] + STEPS[heading][0], at[1] + STEPS[heading][1]];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(rows: &[&str]) -> (Vec<f32>, usize, usize) {
        let values = rows.iter().flat_map(|row| row.bytes()).map(|b| f32::from(b - b'0')).collect();
        (values, rows.len(), rows[0].len())
    }

    fn found(rows: &[&str]) -> Vec<Region> {
        let (values, h, w) = map(rows);
        regions(&values, h, w, 5.0, [w, h])
    }

    #[test]
    fn a_rectangle() {
        let all = found(&["0000", "0560", "0570", "0000"]);
        assert_eq!(all.len(), 1);
        let Region { bounds, area, peak, contour } = &all[0];
        assert_eq!((bounds, area, peak), (&[1.0, 1.0, 2.0, 2.0], &4.0, &7.0));
        assert_eq!(contour[..], [[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0]]);
    }

    #[test]
    fn corners_join_and_the_highest_is_first() {
        let all = found(&["50008", "05000", "00006"]);
        assert_eq!(all.iter().map(|r| (r.peak, r.area)).collect::<Vec<_>>(), [(8.0, 1.0), (6.0, 1.0), (5.0, 2.0)]);
        let diagonal = [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [1, 2], [1, 1], [0, 1]];
        assert_eq!(all[2].contour, diagonal.map(|[x, y]| [x as f32, y as f32]));
    }

    #[test]
    fn pixels_are_those_of_the_picture() {
        let (values, h, w) = map(&["00", "05"]);
        let all = regions(&values, h, w, 5.0, [20, 6]);
        assert_eq!((all[0].bounds, all[0].area), ([10.0, 3.0, 10.0, 3.0], 30.0));
        assert!(regions(&[f32::NAN; 4], 2, 2, 0.0, [2, 2]).is_empty());
    }

    proptest! {
        /// The shoelace formula: the outline's area is that of the region with its holes filled.
        #[test]
        fn an_outline_encloses_its_region(values in proptest::collection::vec(0u8..10, 42)) {
            let (h, w) = (6, 7);
            let map: Vec<f32> = values.iter().map(|v| f32::from(*v)).collect();
            let all = regions(&map, h, w, 5.0, [w, h]);
            prop_assert_eq!(all.iter().map(|r| r.area).sum::<f32>(), map.iter().filter(|v| **v >= 5.0).count() as f32);
            for region in all {
                let c = &region.contour;
                let twice: f32 = (0..c.len())
                    .map(|i| (c[i], c[(i + 1) % c.len()]))
                    .map(|([x0, y0], [x1, y1])| x0 * y1 - x1 * y0)
                    .sum();
                let [x, y, width, height] = region.bounds;
                prop_assert!(twice / 2.0 >= region.area && twice / 2.0 <= width * height);
                for [px, py] in c {
                    prop_assert!((x..=x + width).contains(px) && (y..=y + height).contains(py));
                }
                // Every edge is along an axis, and no corner is straight.
                for i in 0..c.len() {
                    let (a, b, d) = (c[i], c[(i + 1) % c.len()], c[(i + 2) % c.len()]);
                    prop_assert!((a[0] == b[0]) != (a[1] == b[1]));
                    prop_assert!((a[0] == b[0]) != (b[0] == d[0]));
                }
            }
        }
    }
}
