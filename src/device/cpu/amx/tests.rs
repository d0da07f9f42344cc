//! The kernels above the tiles, by the model everywhere and by the hardware where there is one: whole products, self-check, and the
//! machine code itself, trapped.

use super::super::testing::random;
use super::*;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod trapped;

/// A word of two bf16 whose upper halves these are.
fn word(even: f32, odd: f32) -> f32 {
    f32::from_bits(even.to_bits() >> 16 | odd.to_bits() & 0xffff_0000)
}

/// `c + a · b` on one tile by the model, where each operand is made by a function of row and word.
fn dot(
    a: impl Fn(usize, usize) -> [f32; 2],
    b: impl Fn(usize, usize) -> [f32; 2],
    c: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let tile = |f: &dyn Fn(usize, usize) -> f32| (0..SIDE * SIDE).map(|i| f(i / SIDE, i % SIDE)).collect::<Vec<f32>>();
    let pair = |[even, odd]: [f32; 2]| word(even, odd);
    let mut tiles = Model::new();
    tiles.load::<0>(&tile(&c), SIDE);
    tiles.load::<4>(&tile(&|i, j| pair(a(i, j))), SIDE);
    tiles.load::<6>(&tile(&|i, j| pair(b(i, j))), SIDE);
    tiles.dot::<0, 4, 6>();
    let mut out = vec![f32::NAN; SIDE * SIDE];
    tiles.store::<0>(&mut out, SIDE);
    out
}

#[test]
fn the_model_adds_each_pair_where_the_manual_says() {
    // One word of A and one of B: row 3 of C gets their products in column 7.
    for (k, at) in [(0, 0), (9, 1), (15, 0)] {
        let one = |hit: bool, v: f32| if hit { [[v, 0.0], [0.0, v]][at] } else { [0.0; 2] };
        let found =
            dot(|m, w| one((m, w) == (3, k), 2.0), |w, n| one((w, n) == (k, 7), 5.0), |m, n| (m * 16 + n) as f32);
        for (i, v) in found.into_iter().enumerate() {
            assert_eq!(v, i as f32 + if i == 3 * 16 + 7 { 10.0 } else { 0.0 });
        }
    }
}

#[test]
fn the_model_rounds_in_the_order_of_the_manual() {
    let big = f32::from_bits(0x4b80_0000); // 2^24: adding 1 to it changes nothing
    // Even and odd k are summed apart: 2^24 of even k does not swallow the ones of odd k.
    let found = dot(|_, w| [if w == 0 { big } else { 0.0 }, 1.0], |_, _| [1.0, 1.0], |_, _| 0.0);
    assert!(found.iter().all(|&v| v == big + 16.0));
    // They are added to C last: there the same ones are swallowed one row at a time, but not together.
    let found = dot(|_, _| [0.0, 1.0], |_, _| [1.0, 1.0], |_, _| big);
    assert!(found.iter().all(|&v| v == big + 16.0));
    // Within the even ones, from the first k on.
    let found = dot(|_, w| [if w == 0 { big } else { 1.0 }, 0.0], |_, _| [1.0, 1.0], |_, _| 0.0);
    assert!(found.iter().all(|&v| v == big));
    let found = dot(|_, w| [if w == 15 { big } else { 1.0 }, 0.0], |_, _| [1.0, 1.0], |_, _| 0.0);
    assert!(found.iter().all(|&v| v == big + 16.0), "15 and a tie to even");
}

#[test]
fn the_model_takes_what_is_subnormal_for_zero() {
    let tiny = f32::from_bits(0x0001_0000);
    let one_pair = |v: f32| move |_: usize, w: usize| if w == 0 { [v, 0.0] } else { [0.0; 2] };
    let found = dot(one_pair(tiny), |_, _| [f32::from_bits(0x7f00_0000), 0.0], |_, _| 0.0);
    assert!(found.iter().all(|&v| v == 0.0), "a factor");
    let small = f32::MIN_POSITIVE;
    assert!(dot(one_pair(small), |_, _| [0.5, 0.0], |_, _| 0.0).iter().all(|&v| v == 0.0), "a sum");
    assert!(dot(|_, _| [0.0; 2], |_, _| [0.0; 2], |_, _| tiny).iter().all(|&v| v == 0.0), "C");
    assert!(dot(one_pair(f32::NAN), |_, _| [0.0; 2], |_, _| 0.0).iter().all(|v| v.is_nan()));
}

#[test]
fn rows_are_columns_of_words() {
    let (words, stride) = (32, 40);
    let block = random(8 * words, 1);
    let mut rows = vec![f32::NAN; 8 * stride];
    into_rows(&block, &mut rows, stride);
    for (i, k) in (0..8).flat_map(|i| (0..stride).map(move |k| (i, k))) {
        let found = rows[i * stride + k];
        assert!(if k < words { found == block[8 * k + i] } else { found.is_nan() }, "{i} {k}");
    }
}

#[test]
fn a_product_that_differs_is_noticed() {
    assert!(agrees_with_model(|a, b, c, ldc| model::<2, 2>(a, b, c, ldc, true)));
    assert!(!agrees_with_model(|a, b, c, ldc| model::<1, 2>(a, &b[..b.len() / 2], c, ldc, true)), "half of it");
    assert!(!agrees_with_model(|a, b, c, ldc| model::<2, 2>(a, b, c, ldc, false)), "C overwritten");
    assert!(!agrees_with_model(|_, _, _, _| ()), "nothing done");
    assert!(!agrees_with_model(|a, b, c, ldc| {
        model::<2, 2>(a, b, c, ldc, true);
        c[ldc + 20] += 1.0;
    }));
}
