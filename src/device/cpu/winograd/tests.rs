//! The three convolutions against their definition in f64, at every vector level, and their bits on one thread and two.

use proptest::prelude::*;

use super::super::testing::{channels, random, same_bits_for_1_and_2_threads, shapes};
use super::*;

/// Calls `f(x index, w index, y index)` for every product of the definition.
fn each_product(g: &ConvGeometry, mut f: impl FnMut(usize, usize, usize)) {
    let (oh, ow) = (g.out_h(), g.out_w());
    for (image, oy, ox) in (0..g.n * oh * ow).map(|p| (p / (oh * ow), p / ow % oh, p % ow)) {
        for (i, j) in (0..9).map(|t| (t / 3, t % 3)) {
            let (y, x) = ((oy + i).wrapping_sub(g.pad[0]), (ox + j).wrapping_sub(g.pad[2]));
            if y >= g.h || x >= g.w {
                continue;
            }
            let (from, to) = ((image * g.h + y) * g.w + x, (image * oh + oy) * ow + ox);
            for (ci, co) in (0..g.ci).flat_map(|ci| (0..g.co).map(move |co| (ci, co))) {
                f(from * g.ci + ci, ((i * 3 + j) * g.ci + ci) * g.co + co, to * g.co + co);
            }
        }
    }
}

fn geometry([n, h, w, ci, co]: [usize; 5], pad: [usize; 4]) -> ConvGeometry {
    ConvGeometry { n, h, w, ci, co, kh: 3, kw: 3, stride: 1, pad }
}

/// The three passes with random operands, at a level: names, operands, which of the indices of a product is which, results.
struct Trial {
    g: ConvGeometry,
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
}

impl Trial {
    fn new(g: ConvGeometry) -> Self {
        let y = g.out_rows() * g.co;
        Trial { g, x: random(g.n * g.h * g.w * g.ci, 1), w: random(9 * g.ci * g.co, 2), dy: random(y, 3) }
    }

    fn run(&self, level: Simd) -> [Vec<f32>; 3] {
        let Trial { g, x, w, dy } = self;
        let [mut y, mut dx, mut dw] = [dy.len(), x.len(), w.len()].map(|len| vec![f32::NAN; len]);
        forward_at(level, g, x, w, &mut y, no_epilogue);
        backward_input_at(level, g, dy, w, &mut dx);
        backward_weight_at(level, g, x, dy, &mut dw);
        [y, dx, dw]
    }

    /// Results by definition in f64, errors of the same loops in f32, and the largest sum of absolute products.
    fn define(&self) -> [(Vec<f64>, f64, f64); 3] {
        [0, 1, 2].map(|pass| {
            let Trial { g, x, w, dy } = self;
            let len = [dy.len(), x.len(), w.len()][pass];
            let (mut low, mut high, mut scale) = (vec![0.0f32; len], vec![0.0f64; len], vec![0.0f64; len]);
            each_product(g, |of_x, of_w, of_y| {
                let (a, b, to) = match pass {
                    0 => (x[of_x], w[of_w], of_y),
                    1 => (dy[of_y], w[of_w], of_x),
                    _ => (x[of_x], dy[of_y], of_w),
                };
                let product = f64::from(a) * f64::from(b);
                low[to] += a * b;
                high[to] += product;
                scale[to] += product.abs();
            });
            let error = low.iter().zip(&high).map(|(&l, h)| (f64::from(l) - h).abs()).fold(0.0, f64::max);
            (high, error, scale.into_iter().fold(0.0, f64::max))
        })
    }

    /// At most [`growth`] times as far from the truth as a direct path may be. A tile's roundings are shared by its pixels,
    /// so what is allowed is that of the largest sum, not of each.
    fn judge(&self) {
        let truth = self.define();
        for level in Simd::available() {
            let found = same_bits_for_1_and_2_threads(|| self.run(level));
            for ((name, found), (truth, plain, scale)) in ["y", "dx", "dw"].into_iter().zip(&found).zip(&truth) {
                let allowed = 4.0 * growth() * (plain + f64::from(f32::EPSILON) * scale);
                for (i, (&f, t)) in found.iter().zip(truth).enumerate() {
                    let error = (f64::from(f) - t).abs();
                    assert!(error <= allowed, "{name}[{i}] of {:?}, {level:?}: {f}, not {t} ({allowed:e})", self.g);
                }
            }
        }
    }
}

#[test]
fn all_passes_match_plain_loops_at_every_level() {
    let table = [
        // Odd widths, a map of one pixel, many channels, few.
        geometry([2, 5, 7, 7, 9], [1; 4]),
        geometry([1, 1, 1, 33, 49], [1; 4]),
        geometry([1, 9, 6, 433, 7], [1; 4]),
        geometry([1, 6, 9, 7, 433], [1; 4]),
        // Padding that differs, and more than the kernel reaches.
        geometry([2, 3, 8, 4, 3], [0, 2, 3, 0]),
        geometry([1, 7, 3, 5, 4], [4, 1, 0, 5]),
        // More rows of tiles than one stretch holds, and a picture that is cut between two.
        geometry([5, 30, 29, 3, 5], [1; 4]),
    ];
    for g in table {
        assert!(fits(&g));
        Trial::new(g).judge();
    }
}

proptest! {
    #![proptest_config(shapes(24))]
    #[test]
    fn any_shape_matches_plain_loops(
        (n, h, w) in (1..4_usize, 1..14_usize, 1..14_usize),
        (ci, co) in (channels(), channels()),
        pad in [0..4_usize, 0..4_usize, 0..4_usize, 0..4_usize],
    ) {
        let g = geometry([n, h, w, ci, co], pad);
        prop_assume!(fits(&g) && 9 * g.out_rows() * ci * co <= 1_000_000);
        Trial::new(g).judge();
    }
}

#[test]
fn what_is_not_a_3x3_kernel_at_a_stride_of_1_is_left_to_the_direct_path() {
    let g = geometry([1, 8, 8, 4, 4], [1; 4]);
    let others = [
        ConvGeometry { stride: 2, ..g },
        ConvGeometry { kh: 1, ..g },
        ConvGeometry { kw: 5, ..g },
        ConvGeometry { h: 0, ..g },
        ConvGeometry { ci: 0, ..g },
        ConvGeometry { h: 2, pad: [0; 4], ..g },
        ConvGeometry { w: 4 * STRETCH + 1, ..g },
    ];
    assert!(fits(&g) && !others.iter().any(fits));
}

/// In one dimension and double precision's stead: few enough roundings to count.
#[test]
fn the_transforms_are_short_convolutions() {
    let (d, g) = (random(6, 5), random(4, 6));
    let d: [f32; 6] = d.try_into().unwrap();
    let products = |taps: [f32; 6]| std::array::from_fn(|p| taps[p] * data::<false>(d)[p]);
    let close = |found: &[f32], taps: &[f32]| {
        for (j, &found) in found.iter().enumerate() {
            let want: f64 = taps.iter().zip(&d[j..]).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
            assert!((f64::from(found) - want).abs() <= 4.0 * growth() * f64::from(f32::EPSILON), "{j}: {found} {want}");
        }
    };
    let three: [f32; 3] = *g.first_chunk().unwrap();
    close(&sums::<false, 4>(products(taps::<false, 3>(three))), &three);
    let four: [f32; 4] = *g.first_chunk().unwrap();
    close(&sums::<false, 3>(products(taps::<false, 4>(four))), &four);
}

#[test]
fn roundings_grow_as_the_documentation_says() {
    assert!((growth() - 7.2).abs() <= 0.05, "{}", growth());
    // Relative L2 of values as in a network, beside the bound of what counts as f32: 1e-5.
    let trial = Trial::new(geometry([1, 12, 12, 96, 96], [1; 4]));
    let found = trial.run(super::super::simd());
    for ((name, found), (truth, ..)) in ["y", "dx", "dw"].into_iter().zip(&found).zip(&trial.define()) {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let error = norm(&mut found.iter().zip(truth).map(|(&f, t)| f64::from(f) - t));
        let relative = error / norm(&mut truth.iter().copied());
        println!("{name}: relative L2 {relative:.1e}");
        assert!(relative <= 1e-5, "{name}: {relative:e}");
    }
}

#[test]
fn the_epilogue_sees_each_pixel_once_and_finished() {
    let trial = Trial::new(geometry([3, 6, 7, 5, 6], [1; 4]));
    let (level, co) = (super::super::simd(), trial.g.co);
    let want = &trial.run(level)[0];
    let mut y = vec![f32::NAN; want.len()];
    forward_at(level, &trial.g, &trial.x, &trial.w, &mut y, |first, rows| {
        assert_eq!(rows, &want[first * co..first * co + rows.len()]);
        rows.iter_mut().for_each(|v| *v += 1.0);
    });
    assert!(y.iter().zip(want).all(|(&y, &w)| y == w + 1.0));
}

#[test]
fn a_nan_stays_in_its_picture_and_in_no_buffer() {
    let clean = Trial::new(geometry([2, 6, 5, 7, 9], [1; 4]));
    let mut spoilt = Trial::new(clean.g);
    spoilt.x[0] = f32::NAN;
    for level in Simd::available() {
        let want = clean.run(level);
        let [y, ..] = spoilt.run(level);
        let half = y.len() / 2;
        assert!(y[0].is_nan() && y[half..] == want[0][half..]);
        assert_eq!(clean.run(level), want, "{level:?}: what was left in a buffer was read");
    }
}
