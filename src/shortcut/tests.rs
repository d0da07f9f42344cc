//! Heads of known survival: made-up features, and the demo set with the defect-free twin of every defective picture.

use super::*;
use crate::backbone::Backbone;
use crate::data::demo::{DemoCounts, twins};
use crate::data::{Mask, MaskRule, decode_bytes, preprocess};
use crate::rng::Rng;

const C: usize = 6;
const P: usize = 16;

/// Features that vary strongly along one direction and weakly along all; a defect is a step in the others.
fn normal_picture(seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 7);
    let mut x = vec![0.0; P * C];
    rng.fill_normal(&mut x, 0.3);
    for (p, row) in x.chunks_exact_mut(C).enumerate() {
        let along = 5.0 * rng.normal();
        row.iter_mut().enumerate().for_each(|(c, v)| *v += (p + c) as f32 + if c < 2 { along } else { 0.0 });
    }
    x
}

/// The measure of a head `rebuild(clean, seen)` on pictures whose defects are known.
fn survival_of(rebuild: impl Fn(&[f32], &[f32]) -> Vec<f32>) -> (Survival, Normal) {
    let train: Vec<Vec<f32>> = (0..40).map(normal_picture).collect();
    let normal = Normal::of(&train.iter().map(|x| &x[..]).collect::<Vec<_>>(), C).unwrap();
    let weights: Vec<f64> = (0..P).map(|p| [0.0, 1.0, 0.5, 0.0][p % 4]).collect();
    let (pictures, mut sums, mut good) = (50, [0.0; 2], [0.0; 2]);
    for i in 0..pictures {
        let clean = normal_picture(1000 + i);
        let mut seen = clean.clone();
        for (p, row) in seen.chunks_exact_mut(C).enumerate() {
            let step = if weights[p] > 0.0 { 4.0 } else { 0.0 };
            row[2..].iter_mut().for_each(|v| *v += step);
        }
        let [a, e] = normal.products(&seen, &rebuild(&clean, &seen), &weights);
        (sums[0], sums[1]) = (sums[0] + a, sums[1] + e);
        let other = normal_picture(2000 + i);
        let [a, e] = normal.products(&other, &rebuild(&other, &other), &weights);
        (good[0], good[1]) = (good[0] + a, good[1] + e);
    }
    (Survival::new(sums, Some(good), pictures as usize, 0.0), normal)
}

#[test]
fn a_copy_gives_one_and_the_normal_mean_none() {
    let (copy, normal) = survival_of(|_, seen| seen.to_vec());
    assert_eq!((copy.survival, copy.control), (Some(1.0), Some(1.0)));
    let mean: Vec<f32> = normal.mean.iter().map(|&m| m as f32).collect();
    let (constant, _) = survival_of(|_, _| mean.clone());
    // Off by the rounding of the mean to f32 alone, which the metric and the steps of 4 magnify less than a thousandfold.
    assert!(constant.survival.unwrap().abs() <= 1e3 * f64::from(f32::EPSILON), "{constant:?}");
    assert!(constant.control.unwrap().abs() <= 1e3 * f64::from(f32::EPSILON), "{constant:?}");
}

/// Whatever a head does with normal variation is no survival.
#[test]
fn the_part_of_a_defect_that_is_kept_is_found() {
    for kept in [0.0, 0.25, 0.5, 1.0_f32] {
        let part = |clean: &[f32], seen: &[f32]| -> Vec<f32> {
            clean.iter().zip(seen).map(|(c, s)| c + kept * (s - c)).collect()
        };
        let (found, _) = survival_of(part);
        // 50 pictures of 8 masked positions: the standard error of a mean square of normal variation in 6 directions is
        // sqrt(2 · 6 / 400) for the defect's and for the good pictures', against an excess above 50.
        let off = (found.survival.unwrap() - f64::from(kept)).abs();
        assert!(off <= 5.0 * 2.0 * (12.0_f64 / 400.0).sqrt() / 50.0, "{kept}: {found:?}");
        assert_eq!(found.control, Some(1.0));
        assert!(found.contrast.unwrap() > 5.0, "{found:?}");
    }
}

#[test]
fn without_anything_to_compare_there_is_no_figure() {
    let x = normal_picture(1);
    assert!(Normal::of(&[], C).is_none());
    assert!(Normal::of(&[&x], C).is_none(), "one picture says nothing of variation");
    assert!(Normal::of(&[&x, &x], C).is_none(), "nor do two that are the same");
    assert_eq!(Survival::new([1.0, 2.0], None, 3, 1.0).survival, None);
    // Masked positions that do not stand out; a head that is not a number.
    assert_eq!(Survival::new([1.0, 2.0], Some([1.0, 2.5]), 3, 1.0).survival, None);
    assert_eq!(Survival::new([f64::NAN, 3.0], Some([1.0, 2.5]), 3, 1.0).survival, None);
    assert_eq!(Survival::new([0.0, 0.0], Some([0.0, 0.0]), 0, 0.0).contrast, None);
}

#[test]
fn cells_are_marked_by_their_share() {
    let mut mask = vec![0; 8 * 8];
    // A quarter of the first cell of 4 x 4 pixels, one pixel of the last.
    [0, 1, 8, 9, 63].into_iter().for_each(|i| mask[i] = 1);
    assert_eq!(cells(&mask, 8, [2, 2]), [0.25, 0.0, 0.0, 1.0 / 16.0]);
}

/// The metric is the inverse covariance: `L Lᵀ` gives the matrix back.
#[test]
fn the_factor_is_that_of_the_matrix() {
    let (n, mut rng) = (5, Rng::new(3, 0));
    let b: Vec<f64> = (0..n * n).map(|_| f64::from(rng.normal())).collect();
    let product = |a: &[f64], i: usize, j: usize| dot_rows(a, i, j, n);
    let a: Vec<f64> = (0..n * n).map(|k| product(&b, k / n, k % n) + f64::from(u8::from(k / n == k % n))).collect();
    let mut factor = a.clone();
    normal::cholesky(&mut factor, n);
    (0..n * n).filter(|k| k % n > k / n).for_each(|k| factor[k] = 0.0);
    for k in 0..n * n {
        let back = product(&factor, k / n, k % n);
        // n products of entries no larger than the largest of the diagonal.
        assert!((back - a[k]).abs() <= 1e-13 * a[k / n * (n + 1)].max(a[k % n * (n + 1)]), "{k}: {back} {}", a[k]);
    }
}

fn dot_rows(a: &[f64], i: usize, j: usize, n: usize) -> f64 {
    (0..n).map(|k| a[i * n + k] * a[j * n + k]).sum()
}

/// Photographs with damage and without: whoever hands back the undamaged features plus a share of the difference must be
/// found to let that share survive. What a defect covers is missing from the picture, so the figure is a little low, by
/// no more than `control / (contrast − 1)` (`docs/shortcut.md`).
#[test]
fn defects_of_photographs_survive_as_far_as_they_are_let() {
    const SIZE: usize = 224;
    let (class, counts) = (3, DemoCounts { train_good: 1, test_good: 1, per_kind: 1 });
    let backbone = Backbone::lite0().unwrap();
    let (side, channels) = (backbone.feature_size(SIZE), backbone.channels());
    let features = |png: &[u8]| {
        let picture = decode_bytes(std::path::Path::new("a.png"), png).unwrap();
        let prepared = preprocess(&picture, SIZE, backbone.mean(), backbone.std());
        backbone.forward(&backbone.input(SIZE, &[&prepared]).unwrap()).unwrap().data().to_vec()
    };
    // Good pictures of other seeds: half of them are normal, half the control.
    let good: Vec<Vec<f32>> =
        (1..3).flat_map(|seed| twins(seed, class, counts).unwrap()).map(|[_, good, _]| features(&good)).collect();
    let normal = Normal::of(&good.iter().step_by(2).map(|x| &x[..]).collect::<Vec<_>>(), channels).unwrap();
    let control: Vec<&Vec<f32>> = good.iter().skip(1).step_by(2).collect();
    let damaged: Vec<[Vec<f32>; 2]> =
        twins(0, class, counts).unwrap().iter().map(|[bad, good, _]| [features(bad), features(good)]).collect();
    let weights: Vec<Vec<f64>> = twins(0, class, counts)
        .unwrap()
        .iter()
        .map(|[_, _, mask]| {
            let grey = image::load_from_memory(mask).unwrap().to_luma8();
            let mask = Mask { width: 256, height: 256, grey: grey.into_raw() };
            cells(&MaskRule::Nearest.apply(&mask, SIZE), SIZE, [side, side])
        })
        .collect();
    let mut all = vec![0.0; side * side];
    weights.iter().for_each(|w| all.iter_mut().zip(w).for_each(|(sum, w)| *sum += w));
    for kept in [0.0, 0.3, 1.0_f32] {
        let add = |total: [f64; 2], [a, e]: [f64; 2]| [total[0] + a, total[1] + e];
        let sums = damaged.iter().zip(&weights).map(|([seen, clean], weights)| {
            let rebuilt: Vec<f32> = seen.iter().zip(clean).map(|(s, c)| c + kept * (s - c)).collect();
            normal.products(seen, &rebuilt, weights)
        });
        let of_good = control.iter().map(|x| normal.products(x, x, &all)).fold([0.0; 2], add);
        let of_good = of_good.map(|sum| sum / control.len() as f64);
        let found = Survival::new(sums.fold([0.0; 2], add), Some(of_good), damaged.len(), all.iter().sum());
        let (survival, bias) = (found.survival.unwrap(), 1.0 / (found.contrast.unwrap() - 1.0));
        let low = f64::from(kept) - bias * (1.0 - f64::from(kept));
        println!("kept {kept}: {found:?}");
        assert!(low - 1e-6 <= survival && survival <= f64::from(kept) + 0.05, "{kept}: {found:?}");
    }
}
