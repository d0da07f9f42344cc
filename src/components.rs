//! Connected components of an image: two pixels belong together if they touch by a side or a corner (8-connected, as the
//! published evaluation of MVTec AD labels them).
//!
//! Runs of pixels, row by row; a run joins those of the row above that it touches (union-find over runs).

use std::ops::Range;

/// A run of pixels within one row that belong to a component.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    /// Its pixels: indices into the image.
    pub pixels: Range<usize>,
    /// The component, numbered by their first pixels in reading order.
    pub component: usize,
}

/// The runs of the pixels of an image `[rows, width]` that are `inside`, in ascending order, and how many components they
/// make.
pub(crate) fn components<T>(image: &[T], width: usize, inside: impl Fn(&T) -> bool) -> (Vec<Run>, usize) {
    let mut runs: Vec<Run> = Vec::new();
    let mut parent: Vec<u32> = Vec::new();
    let (mut above, mut row_start) = (0..0, 0);
    for row in image.chunks(width.max(1)) {
        let first = runs.len();
        let mut from = 0;
        // Of the row above, the first run that may still touch.
        let mut candidate = above.start;
        while let Some(start) = row[from..].iter().position(&inside).map(|skipped| from + skipped) {
            let end = row[start..].iter().position(|pixel| !inside(pixel)).map_or(row.len(), |length| start + length);
            let this = runs.len();
            parent.push(this as u32);
            runs.push(Run { pixels: row_start + start..row_start + end, component: 0 });
            // Columns start-1 ..= end of the row above touch it.
            let touched = |run: &Run| (run.pixels.start + width, run.pixels.end + width);
            while candidate < above.end {
                let (a, b) = touched(&runs[candidate]);
                if b < row_start + start {
                    candidate += 1;
                    continue;
                }
                if a > row_start + end {
                    break;
                }
                join(&mut parent, candidate, this);
                if b > row_start + end {
                    break; // it may touch the next run too
                }
                candidate += 1;
            }
            from = end;
        }
        above = first..runs.len();
        row_start += row.len();
    }
    // The root of a component is its first run, so it is numbered before the others ask for its number.
    let mut count = 0;
    for run in 0..runs.len() {
        let root = find(&mut parent, run);
        runs[run].component = if root == run { count } else { runs[root].component };
        count += usize::from(root == run);
    }
    (runs, count)
}

/// The representative of a run, the smallest of its region; paths are halved on the way.
fn find(parent: &mut [u32], mut run: usize) -> usize {
    while parent[run] as usize != run {
        parent[run] = parent[parent[run] as usize];
        run = parent[run] as usize;
    }
    run
}

fn join(parent: &mut [u32], a: usize, b: usize) {
    let (a, b) = (find(parent, a), find(parent, b));
    parent[a.max(b)] = a.min(b) as u32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Area of the component of every pixel, 0 outside.
    fn areas(mask: &[u8], width: usize) -> (Vec<u32>, usize) {
        let (runs, count) = components(mask, width, |&pixel| pixel != 0);
        let mut sizes = vec![0; count];
        runs.iter().for_each(|run| sizes[run.component] += run.pixels.len() as u32);
        let mut areas = vec![0; mask.len()];
        runs.iter().for_each(|run| areas[run.pixels.clone()].fill(sizes[run.component]));
        (areas, count)
    }

    /// The same by flooding from every pixel.
    fn flooded(mask: &[u8], width: usize) -> (Vec<u32>, usize) {
        let (mut areas, mut count) = (vec![0; mask.len()], 0);
        for seed in 0..mask.len() {
            if mask[seed] == 0 || areas[seed] != 0 {
                continue;
            }
            let mut component = vec![seed];
            let mut at = 0;
            while let Some(&pixel) = component.get(at) {
                let (y, x) = (pixel / width, pixel % width);
                for (ny, nx) in
                    (y.saturating_sub(1)..=y + 1).flat_map(|y| (x.saturating_sub(1)..=x + 1).map(move |x| (y, x)))
                {
                    let next = ny * width + nx;
                    if nx < width && next < mask.len() && mask[next] != 0 && !component.contains(&next) {
                        component.push(next);
                    }
                }
                at += 1;
            }
            component.iter().for_each(|&pixel| areas[pixel] = component.len() as u32);
            count += 1;
        }
        (areas, count)
    }

    #[test]
    fn corners_touch_and_edges_do_not_wrap() {
        #[rustfmt::skip]
        let mask = [
            1, 0, 0, 1,
            0, 1, 0, 0,
            0, 0, 0, 9,
            1, 0, 1, 0,
        ];
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 1,
            0, 2, 0, 0,
            0, 0, 0, 2,
            1, 0, 2, 0,
        ];
        assert_eq!(areas(&mask, 4), (expected.to_vec(), 4));
        assert_eq!(areas(&[1; 12], 4), (vec![12; 12], 1));
        assert_eq!(areas(&[0; 12], 4), (vec![0; 12], 0));
        assert_eq!(areas(&[], 4), (vec![], 0));
        assert_eq!(areas(&[1, 1, 0, 1], 4).1, 2);
    }

    #[test]
    fn components_are_numbered_by_their_first_pixel() {
        #[rustfmt::skip]
        let mask = [
            0, 1, 0, 1,
            1, 0, 0, 1,
            0, 0, 1, 0,
            1, 0, 0, 0,
        ];
        let (runs, count) = components(&mask, 4, |&pixel| pixel != 0);
        assert_eq!(count, 3);
        assert_eq!(runs.iter().map(|run| run.component).collect::<Vec<_>>(), [0, 1, 0, 1, 1, 2]);
    }

    /// Comb teeth that meet only in the last row: many unions.
    #[test]
    fn late_unions_reach_every_run() {
        let width = 15;
        let mut mask: Vec<u8> = (0..8 * width).map(|i| u8::from(i % width % 2 == 0)).collect();
        assert_eq!(areas(&mask, width).1, 8);
        mask.extend([1; 15]);
        let (areas, count) = areas(&mask, width);
        assert_eq!((count, areas[0], areas[14]), (1, 8 * 8 + 15, 8 * 8 + 15));
    }

    proptest! {
        #[test]
        fn equals_flooding(width in 1_usize..12, density in 1_u8..9, noise in proptest::collection::vec(0_u8..10, 0..100)) {
            let rows = noise.len() / width;
            let mask: Vec<u8> = noise[..rows * width].iter().map(|&n| u8::from(n < density)).collect();
            prop_assert_eq!(areas(&mask, width), flooded(&mask, width));
        }
    }
}
