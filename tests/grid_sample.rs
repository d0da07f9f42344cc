//! Property tests of the bilinear read: values and both gradients, for shapes and coordinates nobody chose.
//!
//! The judge is written differently from the op on purpose: the value is a double sum of hat functions over *all*
//! cells, `Σ max(0, 1 − |i_y − y|) · max(0, 1 − |i_x − x|) · grid[y, x]`, its gradients are finite differences and a
//! linearity argument.

use std::ops::Range;

use grad::op::{Arg, Op};
use grad::ops::GridSample;
use grad::shape::Shape;
use proptest::prelude::*;

/// A grid, its coordinates and an upstream gradient.
#[derive(Debug, Clone)]
struct Read {
    rows: usize,
    cols: usize,
    values: usize,
    grid: Vec<f64>,
    coord: Vec<f64>,
    dy: Vec<f64>,
}

impl Read {
    fn shapes(&self) -> [Shape; 2] {
        [[self.rows, self.cols, self.values].into(), [self.coord.len() / 2, 2].into()]
    }

    fn forward(&self) -> Vec<f64> {
        let [grid, coord] = self.shapes();
        let mut y = vec![f64::NAN; self.dy.len()];
        let x = [Arg { shape: grid, data: &self.grid[..] }, Arg { shape: coord, data: &self.coord[..] }];
        GridSample {}.reference_forward(&x, &mut [&mut y]);
        y
    }

    fn backward(&self) -> [Vec<f64>; 2] {
        let [grid, coord] = self.shapes();
        let (mut dgrid, mut dcoord) = (vec![f64::NAN; self.grid.len()], vec![f64::NAN; self.coord.len()]);
        let x = [Arg { shape: grid, data: &self.grid[..] }, Arg { shape: coord, data: &self.coord[..] }];
        GridSample {}.reference_backward(&x, &[], &self.dy, &mut [Some(&mut dgrid), Some(&mut dcoord)]);
        [dgrid, dcoord]
    }

    fn loss(&self) -> f64 {
        self.forward().iter().zip(&self.dy).map(|(y, d)| y * d).sum()
    }

    /// The fast path in f32, whose bits are the same on 1 and 2 threads: y, dgrid, dcoord.
    fn fast(&self) -> [Vec<f32>; 3] {
        let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let ([grid, coord], g, c) = (self.shapes(), narrow(&self.grid), narrow(&self.coord));
        let x = [Arg { shape: grid, data: &g[..] }, Arg { shape: coord, data: &c[..] }];
        let [one, two] = [1, 2].map(|threads| {
            let mut out = [vec![f32::NAN; self.dy.len()], vec![f32::NAN; g.len()], vec![f32::NAN; c.len()]];
            let [y, dgrid, dcoord] = &mut out;
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                GridSample {}.cpu_forward(&x, &mut [y]);
                GridSample {}.cpu_backward(&x, &[], &narrow(&self.dy), &mut [Some(dgrid), Some(dcoord)]);
            });
            out
        });
        assert!(one == two, "the result depends on the number of threads");
        one
    }

    /// Position of a coordinate in units of cells.
    fn position(&self, m: usize, axis: usize) -> f64 {
        let side = [self.cols, self.rows][axis] as f64;
        ((self.coord[2 * m + axis] + 1.0) * side - 1.0) / 2.0
    }

    /// Value `k` of point `m`, as a sum of hat functions.
    fn hats(&self, m: usize, k: usize) -> f64 {
        let hat = |p: f64, i: usize| (1.0 - (p - i as f64).abs()).max(0.0);
        let cells = (0..self.rows).flat_map(|y| (0..self.cols).map(move |x| (y, x)));
        let weight = |y, x| hat(self.position(m, 1), y) * hat(self.position(m, 0), x);
        cells.map(|(y, x)| weight(y, x) * self.grid[(y * self.cols + x) * self.values + k]).sum()
    }
}

/// Exactly representable in f32, so that the fast path sees the same inputs.
fn number() -> impl Strategy<Value = f64> {
    (-1.0f32..1.0).prop_map(f64::from)
}

/// Coordinates inside, beyond the edge, far away, and exactly on the borders between cells and on nodes.
fn coordinate(side: usize) -> impl Strategy<Value = f64> {
    let on_lattice = (0..=4 * side).prop_map(move |i| f64::from((i as f64 / side as f64 / 2.0 - 1.0) as f32));
    prop_oneof![
        4 => number(),
        2 => (-2.5f32..2.5).prop_map(f64::from),
        2 => on_lattice,
        1 => prop_oneof![Just(1.0), Just(-1.0), Just(0.0), Just(1e30), Just(-1e30)],
    ]
}

fn read() -> impl Strategy<Value = Read> {
    read_of(1..6, 1..20_usize)
}

/// Few cells with as many values as vectors hold and one more or less, or as a global grid's, which are read by parts.
fn long_cells() -> impl Strategy<Value = Read> {
    read_of(1..3, prop::sample::select(vec![31_usize, 33, 48, 49, 432, 433, 4097, 8193]))
}

fn read_of(side: Range<usize>, values: impl Strategy<Value = usize>) -> impl Strategy<Value = Read> {
    (side.clone(), side, values, 1usize..9).prop_flat_map(|(rows, cols, values, points)| {
        let grid = prop::collection::vec(number(), rows * cols * values);
        let coord = prop::collection::vec((coordinate(cols), coordinate(rows)), points);
        let dy = prop::collection::vec(number(), points * values);
        (grid, coord, dy).prop_map(move |(grid, coord, dy)| {
            let coord = coord.into_iter().flat_map(|(x, y)| [x, y]).collect();
            Read { rows, cols, values, grid, coord, dy }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_are_sums_of_hat_functions(r in read()) {
        for (i, y) in r.forward().iter().enumerate() {
            let expected = r.hats(i / r.values, i % r.values);
            prop_assert!((y - expected).abs() <= 1e-12, "{y} {expected}");
        }
    }

    #[test]
    fn the_gradient_of_the_grid_is_exact(r in read()) {
        // The read is linear in the grid: moving one value by one moves the loss by its gradient.
        let ([dgrid, _], before) = (r.backward(), r.loss());
        for i in (0..r.grid.len()).step_by(r.grid.len().div_ceil(16)) {
            let mut moved = r.clone();
            moved.grid[i] += 1.0;
            let slope = moved.loss() - before;
            prop_assert!((slope - dgrid[i]).abs() <= 1e-11, "{slope} {}", dgrid[i]);
        }
    }

    #[test]
    fn the_gradient_of_the_coordinates_agrees_with_differences(r in read()) {
        let [_, dcoord] = r.backward();
        for (i, &d) in dcoord.iter().enumerate() {
            let p = r.position(i / 2, i % 2);
            let to_node = p - p.floor();
            const STEP: f64 = 1e-6;
            let reach = STEP * r.rows.max(r.cols) as f64;
            if p.abs() > 1e6 {
                prop_assert_eq!(d, 0.0);
                continue;
            }
            // On a node the floor is held fixed, so the slope is the one to the right; elsewhere both sides agree.
            let on_node = to_node <= 2.0 * reach || to_node >= 1.0 - 2.0 * reach;
            if on_node && to_node != 0.0 {
                continue;
            }
            let at = |step: f64| {
                let mut moved = r.clone();
                moved.coord[i] += step;
                moved.loss()
            };
            let slope = if on_node { (at(STEP) - at(0.0)) / STEP } else { (at(STEP) - at(-STEP)) / (2.0 * STEP) };
            let tolerance = 1e-6 * (1.0 + r.values as f64);
            prop_assert!((slope - d).abs() <= tolerance, "coordinate {i}: {d}, differences say {slope}");
        }
    }

    #[test]
    fn the_fast_path_agrees(r in prop_oneof![9 => read(), 1 => long_cells()]) {
        let ([dgrid, dcoord], y, fast) = (r.backward(), r.forward(), r.fast());
        for (name, fast, truth) in [("y", &fast[0], &y), ("dgrid", &fast[1], &dgrid), ("dcoord", &fast[2], &dcoord)] {
            for (i, (f, t)) in fast.iter().zip(truth).enumerate() {
                // A position carries a few roundings of its size; a weight at a border may move by as much.
                let position = if name == "dcoord" { r.position(i / 2, i % 2) } else { 0.0 };
                let on_node = name == "dcoord" && (position - position.round()).abs() <= 1e-5;
                if on_node {
                    continue;
                }
                // Four cells make a value, all values of a cell a coordinate's gradient.
                let terms = if name == "dcoord" { r.values } else { 4 };
                let scale = 4.0 * 5.0 * (1.0 + terms as f64 * 5.0);
                let allowed = f64::from(f32::EPSILON) * scale;
                prop_assert!((f64::from(*f) - t).abs() <= allowed, "{name}[{i}]: {f} {t}");
            }
        }
    }
}

/// A 4 x 4 grid with value `4 row + column`, worked by hand: coordinates, value, gradient of the coordinates.
#[test]
fn worked_examples() {
    let examples: [([f64; 2], f64, Option<[f64; 2]>); 8] = [
        ([0.0, 0.0], 7.5, Some([2.0, 8.0])),
        ([-1.0, -1.0], 0.0, None),
        ([1.0, 1.0], 3.75, Some([-15.0, -15.0])),
        ([0.75, 0.75], 15.0, None),
        ([0.9, -0.2], 5.18, Some([-14.8, 5.6])),
        ([-0.3, 0.6], 11.7, Some([2.0, 8.0])),
        ([-1.3, 0.1], 0.0, None),
        ([1.25, 0.0], 0.0, None),
    ];
    for (coord, value, gradient) in examples {
        let grid = (0..16).map(f64::from).collect();
        let r = Read { rows: 4, cols: 4, values: 1, grid, coord: coord.to_vec(), dy: vec![1.0] };
        assert!((r.forward()[0] - value).abs() <= 1e-12, "{coord:?}: {:?}", r.forward());
        if let Some(gradient) = gradient {
            let [_, found] = r.backward();
            assert!((0..2).all(|i| (found[i] - gradient[i]).abs() <= 1e-12), "{coord:?}: {found:?}");
        }
    }
}
