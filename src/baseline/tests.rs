//! Tests of the baselines: against the files of `fixtures/`, against plain loops, and for what must hold of any features.

use std::cell::Cell;

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::coreset::{greedy, squared_distance};
use super::nearest::Bank;
use super::padim::{Padim, PadimOptions};
use super::patchcore::{PatchCore, PatchCoreOptions};
use super::*;
use crate::device::cpu::simd;
use crate::rng::Rng;

/// Half of the distance from 1 to the next float.
const U: f64 = f32::EPSILON as f64 / 2.0;

pub(super) struct Pictures(pub Vec<Vec<f32>>);

impl FeatureSource for Pictures {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn get(&self, i: usize) -> &[f32] {
        &self.0[i]
    }
}

pub(super) fn unwatched(_: Progress) -> Result<()> {
    Ok(())
}

/// Pictures of one kind: a base, and noise of their own.
fn pictures(count: usize, [h, w, c]: [usize; 3]) -> Pictures {
    let draw = |stream, std| {
        let mut values = vec![0.0; h * w * c];
        Rng::new(5, stream).fill_normal(&mut values, std);
        values
    };
    let base = draw(0, 1.0);
    let one = |i| draw(i, 0.3).iter().zip(&base).map(|(noise, base)| base + noise).collect();
    Pictures((1..=count as u64).map(one).collect())
}

/// Result of `f`, after asserting that 1, 2 and 3 threads give the same one.
fn on_any_threads<T: PartialEq + std::fmt::Debug + Send>(f: impl Fn() -> T + Sync) -> T {
    let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&f);
    let one = on(1);
    assert!(one == on(2) && one == on(3), "the result depends on the number of threads");
    one
}

pub(super) struct Fixture(SafeTensors<'static>);

impl Fixture {
    /// Height, width and channels of its features.
    pub const SHAPE: [usize; 3] = [5, 6, 12];

    pub fn open() -> Self {
        Fixture(SafeTensors::deserialize(include_bytes!("../../fixtures/baselines.safetensors")).unwrap())
    }

    pub fn read(&self, name: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(self.0.tensor(name).unwrap().data())
    }

    pub fn pictures(&self, name: &str) -> Pictures {
        let size = Self::SHAPE.iter().product();
        Pictures(self.read(name).chunks_exact(size).map(<[f32]>::to_vec).collect())
    }

    pub fn indices(&self) -> Vec<usize> {
        self.read("patchcore.indices").iter().map(|&i| i as usize).collect()
    }
}

/// The algorithm of the head comment, without anything passed over.
fn plain_greedy(points: &[f32], dim: usize, start: usize, count: usize) -> (Vec<usize>, Vec<f32>) {
    let points: Vec<&[f32]> = points.chunks_exact(dim).collect();
    let (mut indices, mut radii, mut nearest) = (vec![], vec![], vec![f32::INFINITY; points.len()]);
    let mut next = start;
    while indices.len() < count.min(points.len()) && (indices.is_empty() || radii.last() != Some(&0.0)) {
        indices.push(next);
        for (nearest, point) in nearest.iter_mut().zip(&points) {
            *nearest = nearest.min(squared_distance(simd(), point, points[next]));
        }
        next = (0..points.len()).reduce(|best, i| if nearest[i] > nearest[best] { i } else { best }).unwrap();
        radii.push(nearest[next].sqrt());
    }
    (indices, radii)
}

/// Points in a few clusters, rounded to steps, so that some of them are the same.
fn points() -> impl Strategy<Value = (usize, Vec<f32>, usize, usize)> {
    let sizes = (1..40usize, 1..300usize, 0..3u32, any::<u64>(), 1..80usize);
    sizes.prop_map(|(dim, n, step, seed, count)| {
        let (mut rng, step) = (Rng::new(seed, 0), [0.0, 0.5, 2.0][step as usize]);
        let centres: Vec<f32> = (0..5 * dim).map(|_| 4.0 * rng.normal()).collect();
        let value = |i: usize, rng: &mut Rng| {
            let v = centres[i / dim % 5 * dim + i % dim] + 0.3 * rng.normal();
            if step > 0.0 { (v / step).round() * step } else { v }
        };
        let points: Vec<f32> = (0..n * dim).map(|i| value(i, &mut rng)).collect();
        (dim, points, rng.below(n), count)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_coreset_is_what_the_plain_algorithm_chooses((dim, points, start, count) in points()) {
        let coreset = on_any_threads(|| greedy(&points, dim, start, count, &unwatched).unwrap());
        let n = points.len() / dim;
        prop_assert_eq!((&coreset.indices, &coreset.radii), {
            let (indices, radii) = plain_greedy(&points, dim, start, count);
            (&indices.clone(), &radii.clone())
        });
        prop_assert!(coreset.radii.windows(2).all(|r| r[1] <= r[0]));
        prop_assert!(coreset.computed <= (n * coreset.indices.len()) as u64);
        let mut chosen: Vec<Vec<u32>> =
            coreset.indices.iter().map(|i| points[i * dim..][..dim].iter().map(|v| v.to_bits()).collect()).collect();
        chosen.sort();
        chosen.dedup();
        prop_assert_eq!(chosen.len(), coreset.indices.len(), "points are chosen twice");
        let all = greedy(&points, dim, start, n, &unwatched).unwrap();
        prop_assert_eq!(all.radii.last(), Some(&0.0));
        prop_assert_eq!(&all.indices[..coreset.indices.len()], &coreset.indices[..]);
    }

    /// An offset of a thousand leaves the product three digits of the distances.
    #[test]
    fn the_nearest_is_exact((dim, points, _, count) in points(), offset in prop::sample::select(vec![0.0f32, 1e3])) {
        let x: Vec<f32> = points.iter().take(count * dim).map(|v| 0.8 * v + 0.1 + offset).collect();
        let points: Vec<f32> = points.iter().map(|v| v + offset).collect();
        let bank = Bank::new(points, dim);
        let x = bank.moved(x);
        let found = on_any_threads(|| bank.nearest(&x));
        prop_assert_eq!(found.len(), x.len() / dim);
        for (x, found) in x.chunks_exact(dim).zip(found) {
            // Squares decide: two of them may have the same root.
            let squared = |i: usize| squared_distance(simd(), x, bank.point(i));
            let best = (0..bank.len()).reduce(|best, i| if squared(i) < squared(best) { i } else { best }).unwrap();
            prop_assert_eq!((found.index, found.distance), (best, bank.distance(x, best)));
        }
    }
}

#[test]
fn clustered_points_are_mostly_passed_over() {
    let (dim, n, mut rng) = (16, 3000, Rng::new(3, 0));
    let centres: Vec<f32> = (0..30 * dim).map(|_| 10.0 * rng.normal()).collect();
    let points: Vec<f32> = (0..n * dim).map(|i| centres[i / dim % 30 * dim + i % dim] + 0.1 * rng.normal()).collect();
    let coreset = greedy(&points, dim, 0, 100, &unwatched).unwrap();
    assert!(coreset.computed < 100 * n as u64 / 2, "{} distances", coreset.computed);
}

#[test]
fn the_coreset_is_that_of_the_fixture() {
    let fixture = Fixture::open();
    let projection = fixture.read("patchcore.projection");
    let c = Fixture::SHAPE[2];
    let all: Vec<usize> = (0..16 * 30).collect();
    let train = fixture.pictures("train");
    let points = super::patchcore::gather(&train, Fixture::SHAPE, &all, Some(&projection), &unwatched).unwrap();
    let (want, radii) = (fixture.indices(), fixture.read("patchcore.radii"));
    let coreset = greedy(&points, projection.len() / c, want[0], want.len(), &unwatched).unwrap();
    // Indices are stored where no two points are as far to within 1e-4, which is far more than f32 is off by.
    assert_eq!(coreset.indices, want);
    for (ours, want) in coreset.radii.iter().zip(radii) {
        assert!((ours - want).abs() <= 1e-5 * want, "{ours} for {want}");
    }
}

#[test]
fn padim_is_that_of_the_fixture() {
    let fixture = Fixture::open();
    let channels = vec![0, 2, 3, 5, 8, 9, 11];
    let train = fixture.pictures("train");
    let padim = Padim::fit_channels(&train, Fixture::SHAPE, channels, 0.01, &unwatched).unwrap();
    let maps: Vec<f32> = fixture.pictures("test").0.iter().flat_map(|x| padim.score(x).unwrap().map).collect();
    let want = fixture.read("padim.map");
    assert_eq!(maps.len(), want.len());
    // Both are double, rounded once.
    for (ours, want) in maps.iter().zip(want) {
        assert!((ours - want).abs() <= f32::EPSILON * want, "{ours} for {want}");
    }
}

#[test]
fn patchcore_is_that_of_the_fixture() {
    let fixture = Fixture::open();
    let (shape, train, test) = (Fixture::SHAPE, fixture.pictures("train"), fixture.pictures("test"));
    let model = PatchCore::with_bank(&train, shape, &fixture.indices(), 9).unwrap();
    let (maps, images) = (fixture.read("patchcore.map"), fixture.read("patchcore.image"));
    let largest = train.0.iter().chain(&test.0).flatten().fold(0.0, |m: f64, &v| m.max(f64::from(v).abs()));
    let c = shape[2] as f64;
    for ((x, maps), image) in test.0.iter().zip(maps.chunks_exact(30)).zip(images) {
        let scored = model.score(x).unwrap();
        assert_eq!(scored.map.len(), maps.len());
        // A mean of nine is off by 9 u of the largest value, moving it by 2 u more, and that of two points; then (C + 4) u
        // of the distance itself.
        let allowed = |d: f64| 2.0 * 12.0 * U * largest * c.sqrt() + (c + 4.0) * U * d;
        for (&ours, &want) in scored.map.iter().zip(maps) {
            assert!((f64::from(ours) - f64::from(want)).abs() <= allowed(want.into()), "{ours} for {want}");
        }
        // The weight changes by at most twice what the distances do.
        let farthest = maps.iter().fold(0.0, |m: f64, &v| m.max(v.into()));
        let (ours, allowed) = (scored.image.unwrap(), allowed(farthest) * (1.0 + 2.0 * farthest) + 2.0 * U * farthest);
        assert!(f64::from(ours - image).abs() <= allowed, "{ours} for {image}");
    }
}

#[test]
fn fits_and_scores_are_the_same_on_any_threads() {
    let shape = [4, 5, 9];
    let (train, test) = (pictures(12, shape), pictures(14, shape));
    let patchcore = Method::PatchCore(PatchCoreOptions { ratio: 0.2, projection: 4, candidates: 100, neighbours: 5 });
    let padim = Method::Padim(PadimOptions { channels: 6, ..PadimOptions::default() });
    for method in [padim, patchcore] {
        let score = |seed| {
            let fitted = method.fit(&train, shape, seed, &unwatched).unwrap();
            let scored: Vec<RawScored> = test.0.iter().map(|x| fitted.baseline.score(x).unwrap()).collect();
            assert!(scored.iter().all(|s| s.map.iter().all(|v| v.is_finite() && *v >= 0.0)));
            (fitted.baseline.describe(), fitted.baseline.bytes(), scored)
        };
        assert_ne!(on_any_threads(|| score(1)).2, score(2).2, "{}: the seed changes nothing", method.name());
        assert_eq!(Method::named(method.name()).unwrap().name(), method.name());
    }
    assert_eq!(Method::named("spade"), None);
}

#[test]
fn a_defect_stands_out() {
    let shape = [6, 6, 8];
    let train = pictures(40, shape);
    let mut defective = pictures(41, shape).0.pop().unwrap();
    let good = defective.clone();
    defective[(3 * 6 + 2) * 8..][..8].iter_mut().for_each(|v| *v += 3.0);
    for name in Method::NAMES {
        let fitted = Method::named(name).unwrap().fit(&train, shape, 0, &unwatched).unwrap();
        let [good, bad] = [&good, &defective].map(|x| fitted.baseline.score(x).unwrap());
        let largest = (0..36).max_by(|&a, &b| bad.map[a].total_cmp(&bad.map[b])).unwrap();
        // The mean of 3x3 positions spreads what PatchCore sees.
        let off = (largest / 6).abs_diff(3).max((largest % 6).abs_diff(2));
        assert!(off <= usize::from(name == "patchcore"), "{name}: {largest}");
        assert!(bad.map[largest] > 1.5 * good.map[largest], "{name}");
        assert!(bad.image >= good.image);
    }
}

#[test]
fn what_is_in_the_bank_is_at_no_distance() {
    let shape = [3, 4, 5];
    let mut train = pictures(4, shape);
    train.0.push(train.0[1].clone());
    let options = PatchCoreOptions { ratio: 1.0, projection: 0, ..PatchCoreOptions::default() };
    let model = PatchCore::fit(&train, shape, &options, 3, &unwatched).unwrap();
    // What coincides is kept once.
    assert_eq!(model.bank_len(), 4 * 12);
    for x in &train.0 {
        let scored = model.score(x).unwrap();
        assert_eq!((scored.map, scored.image), (vec![0.0; 12], Some(0.0)));
    }
}

#[test]
fn protocols_make_scores_of_maps() {
    let shape = [4, 4, 6];
    let (train, protocol) = (pictures(9, shape), Protocol::ader());
    let inputs: Vec<&[f32]> = train.0.iter().map(|x| &x[..]).collect();
    for name in Method::NAMES {
        let fitted = Method::named(name).unwrap().fit(&train, shape, 0, &unwatched).unwrap();
        let scores = |image| {
            let baseline = &*fitted.baseline;
            Scoring { baseline, size: [4, 4], protocol: &protocol, image_size: 32, image }
                .score_features(&inputs)
                .unwrap()
        };
        let (shared, own) = (scores(ImageScore::Protocol), scores(ImageScore::Own));
        for ((shared, own), x) in shared.iter().zip(&own).zip(&inputs) {
            let raw = fitted.baseline.score(x).unwrap();
            assert_eq!(*shared, protocol.score(&raw.map, 4, 4, 32, 32).unwrap());
            assert_eq!(own.map, shared.map);
            assert_eq!(own.image_score, raw.image.unwrap_or(shared.image_score));
        }
    }
}

#[test]
fn a_watch_ends_a_fit_between_blocks() {
    let shape = [3, 3, 4];
    let train = pictures(6, shape);
    for (name, stages) in [("padim", &["gaussians"][..]), ("patchcore", &["patches", "coreset"][..])] {
        let (method, seen) = (Method::named(name).unwrap(), Cell::new(0));
        let mut finished = vec![];
        let fitted = method.fit(&train, shape, 0, &|p| {
            assert!(stages.contains(&p.stage) && p.done <= p.total, "{p:?}");
            seen.set(seen.get() + 1);
            Ok(())
        });
        finished.push(fitted.is_ok());
        for stop in 0..seen.get() {
            let calls = Cell::new(0);
            let watch = |_| {
                calls.set(calls.get() + 1);
                if calls.get() > stop { Err(Error::Interrupted("enough".into())) } else { Ok(()) }
            };
            finished.push(matches!(method.fit(&train, shape, 0, &watch), Err(Error::Interrupted(_))));
        }
        assert!(finished.len() > stages.len() && finished.iter().all(|f| *f), "{name}: {finished:?}");
    }
}

#[test]
fn what_cannot_be_fitted_is_refused_with_advice() {
    let shape = [2, 3, 4];
    let fit = |method: Method, pictures: &Pictures| method.fit(pictures, shape, 0, &unwatched).map(|_| ()).unwrap_err();
    let padim = |options| Method::Padim(options);
    let [few, none] = [1, 0].map(|n| pictures(n, shape));
    for (error, part) in [
        (fit(padim(PadimOptions::default()), &few), "at least 2"),
        (fit(padim(PadimOptions { channels: 0, ..Default::default() }), &pictures(3, shape)), "at least one channel"),
        (fit(padim(PadimOptions { epsilon: 0.0, ..Default::default() }), &pictures(3, shape)), "above 0"),
        // Two pictures vary in one direction only, beside which epsilon is nothing.
        (fit(padim(PadimOptions::default()), &Pictures(vec![vec![1e15; 24], vec![3e15; 24]])), "raise epsilon"),
        (fit(Method::named("patchcore").unwrap(), &none), "at least one good picture"),
    ] {
        assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(part), "{error}");
    }
    let options = PatchCoreOptions { ratio: 0.5, candidates: 30, ..Default::default() };
    let error = fit(Method::PatchCore(options), &pictures(20, shape)).to_string();
    assert!(error.contains("keep 60 of 120") && error.contains("0.250"), "{error}");
    let mut broken = pictures(3, shape);
    broken.0[2][5] = f32::NAN;
    for name in Method::NAMES {
        let method = Method::named(name).unwrap();
        assert!(matches!(fit(method, &broken), Error::Shape { .. }), "{name}");
        assert!(matches!(fit(method, &pictures(3, [2, 3, 5])), Error::Shape { .. }), "{name}");
        let fitted = method.fit(&pictures(3, shape), shape, 0, &unwatched).unwrap();
        assert!(matches!(fitted.baseline.score(&[0.5; 23]), Err(Error::Shape { .. })), "{name}");
        assert!(matches!(fitted.baseline.score(&[f32::INFINITY; 24]), Err(Error::Shape { .. })), "{name}");
        // The largest floats are scored, whatever comes out.
        assert_eq!(fitted.baseline.score(&[f32::MAX; 24]).unwrap().map.len(), 6);
    }
}
