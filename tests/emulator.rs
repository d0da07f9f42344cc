//! Does the emulated device find the bugs that it is there to find, and nothing else?
//!
//! * `kernels/emulator/planted.cu`: kernels with one bug each. The comment above a kernel quotes what the report must say;
//!   the table here says how it is launched.
//! * `kernels/emulator/sound.cu`: kernels without a bug. They must run under every seed, with the same bits, and give
//!   what their comments say.
//!
//! A kernel in either file that is in neither table fails the test. Faults that no window of device memory can express
//! (host addresses, memory freed twice) are the unit tests of `src/device/cuda/emulated.rs`.

use std::ops::Deref;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use grad::device::cuda::{DeviceVec, Element, ElementKind, Gpu, Grid, Precision, Slice, Values, launch};
use grad::error::{Error, Result};
use grad::rng::Rng;
use half::bf16;

/// Launches of every kernel, each with a seed of its own.
const SEEDS: usize = 8;

// ---- The device --------------------------------------------------------------------------------------------------

/// An emulated device that nobody else uses at the time: its memory is one for the whole process, and its limit too.
struct Device {
    gpu: Gpu,
    _alone: MutexGuard<'static, ()>,
}

fn device() -> Device {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Device { gpu: Gpu::emulated(Precision::F32).unwrap(), _alone: alone }
}

impl Deref for Device {
    type Target = Gpu;

    fn deref(&self) -> &Gpu {
        &self.gpu
    }
}

fn upload<T: Element>(gpu: &Gpu, values: &[T::Host]) -> DeviceVec<T> {
    gpu.upload(values).unwrap()
}

/// `n` values that f32 cannot add without rounding.
fn normal(stream: u64, n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Rng::new(11, stream).fill_normal(&mut values, 1.0);
    values
}

/// Some input of `n` values.
fn x(gpu: &Gpu, n: usize) -> DeviceVec<f32> {
    upload(gpu, &normal(0, n))
}

/// An output, or a counter at zero, of `n` values.
fn y<T: Element>(gpu: &Gpu, n: usize) -> DeviceVec<T> {
    let mut y = gpu.scratch(n).unwrap();
    gpu.zero(&mut y.slice_mut()).unwrap();
    y
}

/// What the device has to say about a launch that fails.
fn report(launched: Result<()>) -> String {
    match launched {
        Err(Error::Device { what, .. }) => what,
        other => panic!("a report was expected, not {other:?}"),
    }
}

// ---- The kernel files ----------------------------------------------------------------------------------------------

/// A kernel of a `.cu` file, and the comment before it.
struct Described {
    name: String,
    comment: String,
}

impl Described {
    /// What its report must say, all of it; empty when there is nothing to report.
    fn quotes(&self) -> Vec<&str> {
        let (_, quoted) = self.comment.split_once("Report:").unwrap_or_default();
        quoted.split('"').skip(1).step_by(2).collect()
    }
}

fn kernels_of(file: &str) -> Vec<Described> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emulator").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (mut found, mut comment, mut goes_on) = (vec![], String::new(), false);
    for line in text.lines() {
        if let Some(more) = line.strip_prefix("//") {
            comment = if goes_on { comment + more } else { more.into() };
        } else if line.starts_with("extern \"C\" __global__") {
            let (signature, _) = line.split_once(" void ").unwrap().1.split_once('(').unwrap();
            found.push(Described { name: signature.into(), comment: std::mem::take(&mut comment) });
        }
        goes_on = line.starts_with("//");
    }
    assert!(!found.is_empty(), "{} holds no kernel", path.display());
    found
}

/// The kernels of a file are those of a table, no more and no fewer.
fn assert_all_are_launched<'a>(kernels: &[Described], launched: impl Iterator<Item = &'a str>) {
    let mut described: Vec<&str> = kernels.iter().map(|k| k.name.as_str()).collect();
    let mut launched: Vec<&str> = launched.collect();
    described.sort_unstable();
    launched.sort_unstable();
    assert_eq!(described, launched, "left: kernels of the file, right: kernels launched");
}

// ---- Kernels with a bug --------------------------------------------------------------------------------------------

type Launch = fn(&Gpu) -> Result<()>;

macro_rules! planted {
    ($gpu:ident: $($kernel:ident($($argument:expr),*) over $grid:expr;)*) => {
        const PLANTED: &[(&str, Launch)] =
            &[$((stringify!($kernel), |$gpu| launch::$kernel($gpu, $grid, $($argument),*))),*];
    };
}

planted! { g:
    planted_read_past_end(x(g, 100).slice(), &mut y(g, 100).slice_mut(), 100) over Grid::threads(100);
    planted_write_past_end(&mut y(g, 100).slice_mut(), 100) over Grid::threads(100);
    planted_use_after_free(freed(g, 16), &mut y(g, 1).slice_mut()) over Grid::blocks(1);
    planted_null_pointer(Values::none(ElementKind::F32).floats(), &mut y(g, 1).slice_mut()) over Grid::blocks(1);
    planted_misaligned_load4(x(g, 8).slice(), &mut y(g, 4).slice_mut()) over Grid::blocks(1);
    planted_shared_past_end(&mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_dynamic_past_end(&mut y(g, 33).slice_mut()) over Grid::blocks(1).shared(128);
    planted_local_of_another(&mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_row_past_end(&mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_local_past_end(x(g, 6).slice(), &mut y(g, 1).slice_mut(), 6) over Grid::blocks(1);
    planted_deep_recursion(x(g, 16).slice(), &mut y(g, 1).slice_mut(), 100_000) over Grid::blocks(1);
    planted_endless_loop(x(g, 4).slice(), &mut y(g, 1).slice_mut(), 0) over Grid::blocks(1);

    planted_shared_race(x(g, 64).slice(), &mut y(g, 64).slice_mut()) over Grid::blocks(1);
    planted_missing_syncwarp(x(g, 32).slice(), &mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_shuffle_is_no_barrier(x(g, 32).slice(), &mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_half_syncwarp(x(g, 32).slice(), &mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_missing_second_barrier(x(g, 256).slice(), &mut y(g, 64).slice_mut()) over Grid::blocks(1);
    planted_blocks_write_one_word(&mut y(g, 1).slice_mut()) over Grid::blocks(4);
    planted_blocks_read_each_other(&mut y(g, 4).slice_mut(), 4) over Grid::blocks(4);
    planted_device_race(x(g, 64).slice(), &mut y(g, 64).slice_mut()) over Grid::blocks(1);
    planted_atomic_and_plain(&mut y(g, 1).slice_mut()) over Grid::blocks(1);

    planted_early_return(x(g, 64).slice(), &mut y(g, 64).slice_mut(), 50) over Grid::blocks(1);
    planted_two_barriers(&mut y(g, 64).slice_mut()) over Grid::blocks(1);
    planted_lane_missing(x(g, 32).slice(), &mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_partial_warp(x(g, 48).slice(), &mut y(g, 48).slice_mut()) over Grid::blocks(1);
    planted_mask_lacks_caller(x(g, 32).slice(), &mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_endless_wait(&mut y(g, 1).slice_mut()) over Grid::blocks(1);

    planted_read_before_wait(x(g, 32).slice(), &mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_wait_too_short(x(g, 64).slice(), &mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_wait_is_no_barrier(x(g, 64).slice(), &mut y(g, 64).slice_mut()) over Grid::blocks(1);
    planted_no_wait(x(g, 32).slice(), &mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_misaligned_copy(x(g, 8).slice(), &mut y(g, 1).slice_mut()) over Grid::blocks(1);
    planted_misaligned_ldmatrix(&mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_ldmatrix_race(&mut y(g, 32).slice_mut()) over Grid::blocks(1);
    planted_half_mma(&mut y(g, 32).slice_mut()) over Grid::blocks(1);
}

/// Planted kernels that the table cannot launch, and where they are tested instead.
const TESTED_ELSEWHERE: [(&str, &str); 2] = [
    ("planted_uninitialised_shared", include_str!("emulator.rs")),
    ("planted_host_pointer", include_str!("../src/device/cuda/emulated.rs")),
];

/// A window into memory that has been given back.
fn freed(gpu: &Gpu, n: usize) -> Slice<'static, f32> {
    let memory = x(gpu, n);
    // SAFETY: nothing on the host follows the address; that the device notices is what is tested.
    unsafe { std::mem::transmute::<Slice<'_, f32>, Slice<'static, f32>>(memory.slice()) }
}

#[test]
fn every_planted_bug_is_reported() {
    let (gpu, kernels) = (device(), kernels_of("planted.cu"));
    let elsewhere = TESTED_ELSEWHERE.iter().map(|(name, file)| {
        assert!(file.contains(&format!("{name}(")), "{name} is tested nowhere");
        *name
    });
    assert_all_are_launched(&kernels, PLANTED.iter().map(|(name, _)| *name).chain(elsewhere));
    let mut failed = vec![];
    for (name, launch) in PLANTED {
        let kernel = kernels.iter().find(|k| k.name == *name).unwrap();
        let mut wanted = kernel.quotes();
        assert!(!wanted.is_empty(), "{name}: its comment quotes no report");
        // The endless ones take seconds.
        let seeds = if wanted[0].contains("endless") { 1 } else { SEEDS };
        let this = format!("of kernel {name},");
        wanted.extend([this.as_str(), "seed "]);
        for _ in 0..seeds {
            let said = match launch(&gpu) {
                Err(Error::Device { what, .. }) => what,
                other => format!("{other:?}"),
            };
            failed.extend(wanted.iter().filter(|w| !said.contains(**w)).map(|w| format!("{name}: no {w:?} in {said}")));
            // What was left lying about must not harm the next launch.
            sound_reduction(&gpu);
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn shared_memory_starts_as_nan() {
    let gpu = device();
    let mut out = y::<f32>(&gpu, 32);
    launch::planted_uninitialised_shared(&gpu, Grid::blocks(1), &mut out.slice_mut()).unwrap();
    for (i, v) in gpu.read(out.slice()).unwrap().into_iter().enumerate() {
        assert!(if i == 7 { v.is_nan() } else { v == 1.0 }, "value {i} is {v}");
    }
}

#[test]
fn a_report_says_who_and_where() {
    let gpu = device();
    let (x, mut y) = (x(&gpu, 100), y(&gpu, 100));
    // Elements 100 to 103 are read by threads 32 to 35 of the second block.
    let said = report(launch::planted_read_past_end(&gpu, Grid::threads(100), x.slice(), &mut y.slice_mut(), 100));
    for part in ["past the end of an allocation of 400 bytes", "block (1,0,0) thread (3"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let said = report(launch::planted_early_return(&gpu, Grid::blocks(1), x.slice(), &mut y.slice_mut(), 50));
    for part in ["50 threads (first: (0,0,0)) wait in __syncthreads", "14 threads (first: (50,0,0)) left the kernel"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

// ---- Kernels without a bug -----------------------------------------------------------------------------------------

macro_rules! sound {
    ($($kernel:ident)*) => {
        /// Each launches the kernel of its name, checks what came of it, and returns its bits.
        const SOUND: &[(&str, fn(&Gpu) -> Vec<u32>)] = &[$((stringify!($kernel), $kernel)),*];
    };
}

sound! {
    sound_reduction sound_last_block sound_syncwarp sound_votes sound_histogram sound_indices
    sound_shared sound_pipeline
    sound_mma_tf32 sound_mma_bf16 sound_ldmatrix
    sound_numbers
}

#[test]
fn sound_kernels_give_the_same_under_every_seed() {
    let (gpu, kernels) = (device(), kernels_of("sound.cu"));
    assert_all_are_launched(&kernels, SOUND.iter().map(|(name, _)| *name));
    for (name, run) in SOUND {
        let first = run(&gpu);
        for _ in 1..SEEDS {
            assert!(run(&gpu) == first, "{name}: the bits depend on the order of threads");
        }
    }
}

/// Bits of an output.
fn read_bits(gpu: &Gpu, y: &DeviceVec<f32>) -> Vec<u32> {
    gpu.read(y.slice()).unwrap().into_iter().map(f32::to_bits).collect()
}

/// Checks `values` against `wanted`, a sum and the magnitude of its terms, where a term is rounded `depth` times on its
/// way into the sum: off by at most (1 + 2⁻²⁴)^depth - 1 of that magnitude.
fn assert_sums(values: &[u32], wanted: &[(f64, f64)], depth: i32) {
    assert_eq!(values.len(), wanted.len());
    let allowed = (1.0 + 2f64.powi(-24)).powi(depth) - 1.0;
    for (i, (&v, (sum, magnitude))) in values.iter().zip(wanted).enumerate() {
        let err = (f64::from(f32::from_bits(v)) - sum).abs();
        assert!(err <= allowed * magnitude, "value {i}: {} instead of {sum}", f32::from_bits(v));
    }
}

/// A sum in f64, and the magnitude of its terms.
fn wide_sum(terms: impl Iterator<Item = f64>) -> (f64, f64) {
    terms.fold((0.0, 0.0), |(sum, magnitude), t| (sum + t, magnitude + t.abs()))
}

fn sound_reduction(gpu: &Gpu) -> Vec<u32> {
    let n = 1000;
    let values = normal(1, n);
    let mut y = y(gpu, n.div_ceil(256));
    launch::sound_reduction(gpu, Grid::threads(n), upload(gpu, &values).slice(), &mut y.slice_mut(), n).unwrap();
    let bits = read_bits(gpu, &y);
    let wanted: Vec<_> = values.chunks(256).map(|c| wide_sum(c.iter().map(|&v| v.into()))).collect();
    assert_sums(&bits, &wanted, 8); // a tree over 256
    bits
}

fn sound_last_block(gpu: &Gpu) -> Vec<u32> {
    let blocks = 7;
    let values = normal(2, blocks * 32);
    let (mut sums, mut count) = (y(gpu, 1 + blocks), y(gpu, 1));
    let (x, grid) = (upload(gpu, &values), Grid::blocks(blocks));
    launch::sound_last_block(gpu, grid, x.slice(), &mut sums.slice_mut(), &mut count.slice_mut()).unwrap();
    let bits = read_bits(gpu, &sums);
    let mut wanted = vec![wide_sum(values.iter().map(|&v| v.into()))];
    wanted.extend(values.chunks(32).map(|c| wide_sum(c.iter().map(|&v| v.into()))));
    assert_sums(&bits, &wanted, 5 + 7); // a tree over 32, then one block's sum after the other
    assert_eq!(gpu.read(count.slice()).unwrap(), [blocks as u32]);
    bits
}

fn sound_syncwarp(gpu: &Gpu) -> Vec<u32> {
    let values = normal(3, 128);
    let mut y = y(gpu, 128);
    launch::sound_syncwarp(gpu, Grid::blocks(1), upload(gpu, &values).slice(), &mut y.slice_mut()).unwrap();
    let bits = read_bits(gpu, &y);
    let wanted: Vec<u32> = values.chunks(32).flat_map(|warp| warp.iter().rev().map(|v| v.to_bits())).collect();
    assert_eq!(bits, wanted);
    bits
}

fn sound_votes(gpu: &Gpu) -> Vec<u32> {
    let mut y = y(gpu, 10);
    launch::sound_votes(gpu, Grid::blocks(1), &mut y.slice_mut()).unwrap();
    let votes = gpu.read(y.slice()).unwrap();
    // Thread 33 is lane 1: nothing is two lanes up, so it keeps its own number; lane 3 is two lanes down.
    let (multiples_of_3, odd_lanes, up, down) = (22, 0xAAAA_AAAA, 1, 3);
    assert_eq!(votes, [1, 0, multiples_of_3, odd_lanes, 1, 1, 1, 1, up, down]);
    votes
}

fn sound_histogram(gpu: &Gpu) -> Vec<u32> {
    let n = 1000;
    let mut rng = Rng::new(11, 4);
    let values: Vec<u32> = (0..n).map(|_| rng.next_u32()).collect();
    let mut y = y(gpu, 16);
    launch::sound_histogram(gpu, Grid::blocks(3), upload(gpu, &values).slice(), &mut y.slice_mut(), n).unwrap();
    let counts = gpu.read(y.slice()).unwrap();
    let wanted: Vec<u32> = (0..16).map(|bin| values.iter().filter(|&v| v % 16 == bin).count() as u32).collect();
    assert_eq!(counts, wanted);
    counts
}

fn sound_indices(gpu: &Gpu) -> Vec<u32> {
    let n = 3 * 4 * 5 * 64;
    let mut y = y(gpu, n);
    launch::sound_indices(gpu, Grid::blocks3(3, 4, 5), &mut y.slice_mut()).unwrap();
    let indices = gpu.read(y.slice()).unwrap();
    assert!(indices.iter().copied().eq(0..n as u32), "{indices:?}");
    indices
}

fn sound_shared(gpu: &Gpu) -> Vec<u32> {
    let values = normal(5, 64);
    let mut y = y(gpu, 192);
    let grid = Grid::blocks(1).shared(256);
    launch::sound_shared(gpu, grid, upload(gpu, &values).slice(), &mut y.slice_mut()).unwrap();
    let bits = read_bits(gpu, &y);
    let rounded = |v: &f32| bf16::from_f32(*v).to_f32();
    let first = values.iter().rev().map(|v| rounded(v) + 1.0);
    let second = values.iter().map(|v| rounded(v) + 2.0);
    let wanted: Vec<u32> = first.chain(second).chain(values.iter().rev().copied()).map(f32::to_bits).collect();
    assert_eq!(bits, wanted);
    bits
}

fn sound_pipeline(gpu: &Gpu) -> Vec<u32> {
    let n = 5 * 128 + 12;
    let values = normal(6, n);
    let mut y = y(gpu, 128);
    launch::sound_pipeline(gpu, Grid::blocks(1), upload(gpu, &values).slice(), &mut y.slice_mut(), n).unwrap();
    let bits = read_bits(gpu, &y);
    let of_tile = |tile: &[f32], i: usize| tile.get(127 - i).copied().unwrap_or(0.0);
    let sum = |i: usize| values.chunks(128).fold(0.0, |sum, tile| sum + of_tile(tile, i));
    let wanted: Vec<u32> = (0..128).map(|i| sum(i).to_bits()).collect();
    assert_eq!(bits, wanted);
    bits
}

/// y[16, 8] = x[16, k] w[k, 8], the factors rounded first.
fn product(x: &[f32], w: &[f32], k: usize, rounded: fn(f32) -> f32) -> Vec<(f64, f64)> {
    let at = |m: &[f32], i: usize| f64::from(rounded(m[i]));
    let sum = |i: usize, j: usize| wide_sum((0..k).map(|l| at(x, i * k + l) * at(w, l * 8 + j)));
    (0..16 * 8).map(|e| sum(e / 8, e % 8)).collect()
}

/// To the nearest with 10 bits of fraction, ties away from zero: `cvt.rna.tf32.f32`.
fn tf32(v: f32) -> f32 {
    f32::from_bits((v.to_bits() + 0x1000) & !0x1FFF)
}

fn sound_mma_tf32(gpu: &Gpu) -> Vec<u32> {
    let k = 24;
    let (x, w, mut y) = (normal(7, 16 * k), normal(8, k * 8), y(gpu, 16 * 8));
    let (on_x, on_w) = (upload(gpu, &x), upload(gpu, &w));
    launch::sound_mma_tf32(gpu, Grid::blocks(1), on_x.slice(), on_w.slice(), &mut y.slice_mut(), k).unwrap();
    let bits = read_bits(gpu, &y);
    assert_sums(&bits, &product(&x, &w, k, tf32), k as i32);
    bits
}

fn sound_mma_bf16(gpu: &Gpu) -> Vec<u32> {
    let k = 48;
    let (x, w, mut y) = (normal(9, 16 * k), normal(10, k * 8), y(gpu, 16 * 8));
    let (on_x, on_w) = (upload(gpu, &x), upload(gpu, &w));
    launch::sound_mma_bf16(gpu, Grid::blocks(1), on_x.slice(), on_w.slice(), &mut y.slice_mut(), k).unwrap();
    let bits = read_bits(gpu, &y);
    assert_sums(&bits, &product(&x, &w, k, |v| bf16::from_f32(v).to_f32()), k as i32);
    bits
}

fn sound_ldmatrix(gpu: &Gpu) -> Vec<u32> {
    let element = |i: u32| 40_000 + 3 * i; // of 16 bits, all different
    let word = |low: u32, high: u32| element(low) | element(high) << 16;
    let values: Vec<u32> = (0..128).map(|i| word(2 * i, 2 * i + 1)).collect();
    let mut y = y(gpu, 12 * 32);
    launch::sound_ldmatrix(gpu, Grid::blocks(1), upload(gpu, &values).slice(), &mut y.slice_mut()).unwrap();
    let registers = gpu.read(y.slice()).unwrap();
    // Of matrix m: elements (g, 2t) and (g, 2t + 1); of its transpose, (2t, g) and (2t + 1, g).
    let plain = |m: u32, g: u32, t: u32| word((8 * m + g) * 8 + 2 * t, (8 * m + g) * 8 + 2 * t + 1);
    let transposed = |m: u32, g: u32, t: u32| word((8 * m + 2 * t) * 8 + g, (8 * m + 2 * t + 1) * 8 + g);
    let of_lanes = |m: u32, f: &dyn Fn(u32, u32, u32) -> u32| (0..32).map(|l| f(m, l / 4, l % 4)).collect::<Vec<_>>();
    let wanted = [
        (0..4).flat_map(|m| of_lanes(m, &plain)).collect::<Vec<_>>(),
        (0..4).flat_map(|m| of_lanes(m, &transposed)).collect(),
        (0..2).flat_map(|m| of_lanes(m, &plain)).collect(),
        (0..2).flat_map(|m| of_lanes(m, &transposed)).collect(),
    ];
    assert_eq!(registers, wanted.concat());
    registers
}

/// The language's functions, in the order of the kernel.
fn sound_numbers(gpu: &Gpu) -> Vec<u32> {
    let step = |n: i32| 2f32.powi(n);
    let x = [1.0 + step(-8), 1.0 + 3.0 * step(-8), 1.0 + step(-11), 1.0 + step(-11) - step(-20)];
    let values = [&x[..], &[f32::NAN, f32::INFINITY, 16.0]].concat();
    let mut y = y(gpu, 61);
    launch::sound_numbers(gpu, Grid::blocks(1), upload(gpu, &values).slice(), &mut y.slice_mut()).unwrap();
    let found = gpu.read(y.slice()).unwrap();
    let float = f32::to_bits;
    let (nearest, away) = (float(1.0), float(1.0 + step(-10)));
    let mut wanted = vec![nearest, float(1.0 + step(-6))]; // bf16: ties to even
    wanted.extend([away, away | 1 << 31, nearest, 1, 1, float(f32::INFINITY), float(f32::NEG_INFINITY)]);
    wanted.extend([0.25, 255.0, 4.0, 0.0625].map(float));
    wanted.extend([0, float(2.0), float(1.0), float(6.0), 1, float(16.5)]); // a number before NaN, in min and max
    wanted.extend([1, 8 + 100 * 5 + 10_000 * 31, 32, 3, 6, 4, 77]);
    wanted.extend([6, 17, 1, 2, 3, float(x[3])]);
    wanted.extend([5, 9, 9, 4, 6, 2, 42]);
    wanted.resize(60, 0);
    wanted.push(42);
    for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        assert!(found == wanted, "word {i}: {found:#x} instead of {wanted:#x}");
    }
    assert_eq!(found.len(), wanted.len());
    found
}

// ---- Seeds -----------------------------------------------------------------------------------------------------------

/// Reports of a race, whose finder depends on the order of the threads.
fn race_reports(gpu: &Gpu, n: usize) -> Vec<String> {
    let (x, mut y) = (x(gpu, 64), y(gpu, 64));
    let mut run = || report(launch::planted_shared_race(gpu, Grid::blocks(1), x.slice(), &mut y.slice_mut()));
    (0..n).map(|_| run()).collect()
}

/// Launches count up from `GRAD_EMULATOR_SEED`, or from 1, and every report ends with its seed.
#[test]
fn seeds_count_up() {
    let first: u64 = std::env::var("GRAD_EMULATOR_SEED").map_or(1, |s| s.parse().unwrap());
    for (i, said) in race_reports(&device(), SEEDS).iter().enumerate() {
        println!("{said}");
        let seed = format!(", seed {}", first + i as u64);
        assert!(said.ends_with(&seed), "no {seed:?} at the end of {said}");
    }
}

#[test]
fn a_seed_repeats_a_fault() {
    let first = race_reports(&device(), SEEDS);
    assert_eq!(first, race_reports(&device(), SEEDS), "a device opened again starts with the same seed");
    let without_seed = |said: &String| said.rsplit_once(", seed").unwrap().0.to_string();
    let mut different: Vec<String> = first.iter().map(without_seed).collect();
    different.sort();
    different.dedup();
    assert!(different.len() > SEEDS / 2, "seeds hardly change the order of threads: {different:?}");
}

/// The seed of a report, given to another process, gives the report.
#[test]
fn a_seed_can_be_given() {
    let said = race_reports(&device(), 3).pop().unwrap();
    let (_, seed) = said.rsplit_once("seed ").unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "seeds_count_up", "--nocapture"]).env("GRAD_EMULATOR_SEED", seed);
    let done = again.output().unwrap();
    let printed = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{printed}");
    assert!(printed.lines().any(|line| line.ends_with(&said)), "no {said} in\n{printed}");
}

// ---- Limits ------------------------------------------------------------------------------------------------------------

unsafe extern "C" {
    fn grad_emulator_limit(bytes: usize);
}

/// Memory of the device, for as long as this lives.
struct Limit;

impl Limit {
    const USUAL: usize = 8 << 30;

    fn to(bytes: usize) -> Self {
        // SAFETY: takes a plain number.
        unsafe { grad_emulator_limit(bytes) };
        Limit
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // SAFETY: takes a plain number.
        unsafe { grad_emulator_limit(Self::USUAL) };
    }
}

fn assert_no_room(asked: Result<DeviceVec<f32>>) {
    match asked {
        Err(Error::DeviceMemory { what, help }) => {
            assert!(what.contains("emulated device has no room"), "{what}");
            assert!(help.contains("--device cpu"), "{help}");
        }
        other => panic!("there is no room, and yet: {other:?}"),
    }
}

#[test]
fn more_memory_than_there_is_is_refused() {
    let gpu = device();
    let free = gpu.free_memory().unwrap();
    assert_eq!(free, Limit::USUAL, "nobody has any");
    assert_no_room(gpu.scratch(free / 4 + 1));

    let _limit = Limit::to(4096);
    let half = gpu.scratch::<f32>(512).unwrap();
    assert_eq!(gpu.free_memory().unwrap(), free - 2048);
    assert_no_room(gpu.scratch(513));
    let other_half = gpu.scratch::<f32>(512).unwrap();
    assert_no_room(gpu.scratch(1));
    drop((half, other_half));
    // A refusal costs nothing, and the device goes on.
    let mut all = gpu.scratch(1024).unwrap();
    launch::sound_indices(&gpu, Grid::blocks(16), &mut all.slice_mut()).unwrap();
    assert!(gpu.read(all.slice()).unwrap().into_iter().eq(0..1024));
}

#[test]
fn new_memory_is_nan() {
    let gpu = device();
    let fresh = gpu.scratch::<f32>(1000).unwrap();
    assert!(gpu.read(fresh.slice()).unwrap().iter().all(|v| v.is_nan()));
}

#[test]
fn a_launch_that_no_device_takes_is_refused() {
    let gpu = device();
    let mut indices = y(&gpu, 64);
    let mut refused = |grid| report(launch::sound_indices(&gpu, grid, &mut indices.slice_mut()));
    for (grid, why) in [
        (Grid::blocks2(1, 65_536), "a grid above"),
        (Grid::blocks3(1, 1, 65_536), "a grid above"),
        (Grid::blocks(1).shared(227 * 1024 + 1), "more than 227 KiB of shared memory"),
    ] {
        let said = refused(grid);
        assert!(said.contains("sound_indices refused") && said.contains(why), "no {why:?} in {said}");
    }
    // Dynamic and static together.
    let (x, mut y) = (x(&gpu, 64), y(&gpu, 192));
    let grid = Grid::blocks(1).shared(227 * 1024 - 128);
    let said = report(launch::sound_shared(&gpu, grid, x.slice(), &mut y.slice_mut()));
    assert!(said.contains("bytes of shared memory, of which a block has 232448"), "{said}");
    let size = usize::try_from(u64::from(u32::MAX) + 1).unwrap();
    let said = report(launch::sound_reduction(&gpu, Grid::blocks(1), x.slice(), &mut y.slice_mut(), size));
    assert!(said.contains("n = 4294967296 is more than the kernel sound_reduction can count"), "{said}");
}

#[test]
fn an_empty_grid_launches_nothing() {
    let gpu = device();
    let mut y = upload::<u32>(&gpu, &[7; 64]);
    for grid in [Grid::threads(0), Grid::blocks2(3, 0)] {
        launch::sound_indices(&gpu, grid, &mut y.slice_mut()).unwrap();
    }
    assert_eq!(gpu.read(y.slice()).unwrap(), [7; 64]);
}
