//! Graphs of a device: what is recorded once and done again gives the bits of doing it anew.

#[path = "common/device.rs"]
mod device;

use grad::device::cuda::{Gpu, Grid, Precision, launch};
use grad::error::{Error, Result};
use grad::ops::{Kind, MseLoss, PointwiseConv, UpsampleBilinear};
use grad::rng::Rng;
use grad::shape::Shape;
use grad::storage::Storage;
use grad::tape::Tape;
use grad::tensor::Tensor;

fn drawn(seed: u64, n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Rng::new(seed, 0).fill_normal(&mut values, 1.0);
    values
}

#[track_caller]
fn refused<R>(done: Result<R>, said: &str) {
    match done {
        Err(Error::Device { what, .. }) => assert!(what.contains(said), "no {said:?} in {what}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{said:?} was to be refused"),
    }
}

/// Sums in a chain, with temporaries that come and go: `y += 2 x + x`, and `z = 0`.
fn chain(gpu: &Gpu, x: &Storage, y: &mut Storage, z: &mut Storage) -> Result<()> {
    let mut twice = Storage::scratch(gpu, true, x.len())?;
    twice.write(0, x)?;
    twice.add_assign(x)?;
    let mut thrice = Storage::scratch(gpu, true, x.len())?;
    thrice.write(0, &twice)?;
    drop(twice);
    let mut again = Storage::scratch(gpu, true, x.len())?;
    again.write(0, x)?;
    thrice.add_assign(&again)?;
    y.add_assign(&thrice)?;
    *z = z.filled_like(x.len(), 0.0)?;
    Ok(())
}

fn host(s: &Storage) -> Vec<f32> {
    s.read(0, s.len()).unwrap().to_vec()
}

fn replays_give_the_bits_of_doing_it_again(gpu: Gpu) {
    let n = 1003;
    let floats = |values: &[f32]| Storage::upload(&gpu, true, values).unwrap();
    let zeros = vec![0.0; n];
    let (mut x, mut y, mut z) = (floats(&zeros), floats(&zeros), floats(&drawn(9, n)));
    let (mut y2, mut z2) = (floats(&zeros), floats(&zeros));
    let (graph, ()) = gpu.capture(|| chain(&gpu, &x, &mut y, &mut z)).unwrap();
    // Nothing ran, and the array that the work replaced waits for its first replay.
    assert_eq!(host(&y), zeros);
    assert_eq!((graph.launches(), graph.transfers()), (3, 4));
    for seed in 0..3 {
        x.write(0, &floats(&drawn(seed, n))).unwrap();
        graph.replay().unwrap();
        chain(&gpu, &x, &mut y2, &mut z2).unwrap();
        assert_eq!(host(&y), host(&y2), "replay {seed}");
        assert_eq!(host(&z), zeros);
    }
    // What was handed out of a graph outlives it.
    drop(graph);
    assert_eq!(host(&z), zeros);
}

fn the_host_stays_out(gpu: Gpu) {
    let x = Storage::upload(&gpu, true, &[1.0; 8]).unwrap();
    let mut y = Storage::upload(&gpu, true, &[0.0; 8]).unwrap();
    refused(gpu.capture(|| x.read(0, 8)), "a read of 8 values by the host, before any kernel");
    refused(
        gpu.capture(|| {
            y.add_assign(&x)?;
            x.read(0, 8)
        }),
        "a read of 8 values by the host, after the kernel add_assign_floats",
    );
    refused(gpu.capture(|| gpu.upload::<f32>(&[1.0; 3])), "a copy of 3 values from the host");
    refused(gpu.capture(|| gpu.synchronize()), "a wait of the host");
    refused(gpu.capture(|| gpu.time(|| Ok(()))), "a measurement of time");
    refused(gpu.capture(|| gpu.capture(|| Ok(()))), "another recording");
    let (graph, ()) = gpu.capture(|| y.add_assign(&x)).unwrap();
    refused(gpu.capture(|| graph.replay()), "a replay of another graph");
    // Work of other threads is none of the recording's.
    gpu.capture(|| std::thread::scope(|s| s.spawn(|| x.read(0, 8)).join().unwrap())).unwrap();
    assert_eq!(host(&y), [0.0; 8], "a recording that failed has done nothing");
    graph.replay().unwrap();
    assert_eq!(host(&y), [1.0; 8]);
}

/// A forward and a backward pass, whose results are arrays of the graph.
fn a_tape_is_recorded_with_its_gradients(gpu: Gpu) {
    let target = Tensor::from_slice([1, 6, 6, 3], &drawn(5, 108)).to_gpu(&gpu, false).unwrap();
    let pass = |x: &Tensor| -> Result<(Tensor, Tensor)> {
        let tape = Tape::recording();
        let x = tape.leaf(x);
        let y = tape.apply(UpsampleBilinear { height: 6, width: 6 }, &[&x])?;
        let loss = tape.apply(MseLoss {}, &[&y, &target])?;
        let found = tape.backward(&loss)?;
        let mut dx = Storage::scratch(&gpu, false, x.shape().numel())?;
        let (Storage::Reals(to), Some(Storage::Reals(from))) = (&mut dx, found.of(&x)) else { unreachable!() };
        gpu.copy(from.slice(), &mut to.slice_mut())?;
        Ok((loss, Tensor::stored(x.shape(), dx)))
    };
    let shape = Shape::from([1, 3, 3, 3]);
    let x = Tensor::from_slice(shape, &drawn(0, 27)).to_gpu(&gpu, false).unwrap();
    let (graph, (loss, dx)) = gpu.capture(|| pass(&x)).unwrap();
    let (anew, dx_anew) = pass(&x).unwrap();
    for _ in 0..2 {
        graph.replay().unwrap();
        assert_eq!(loss.to_host().unwrap().data(), anew.to_host().unwrap().data());
        assert_eq!(dx.to_host().unwrap().data(), dx_anew.to_host().unwrap().data());
    }
}

/// Gradients written into an arena: of a leaf that is used twice, and of one that is not used.
fn gradients_find_their_places(gpu: Gpu) {
    let on_gpu = |shape: Shape, seed: u64, in_f32: bool| {
        Tensor::from_slice(shape, &drawn(seed, shape.numel())).to_gpu(&gpu, in_f32).unwrap()
    };
    let (x, target) = (on_gpu([1, 2, 3, 4].into(), 1, false), on_gpu([1, 2, 3, 4].into(), 2, false));
    let (w, unused) = (on_gpu([4, 4].into(), 3, true), on_gpu([3].into(), 4, true));
    let pass = |tape: &Tape| {
        let (w, unused) = (tape.leaf(&w), tape.leaf(&unused));
        let conv = |x: &Tensor| tape.apply(PointwiseConv { act: Kind::Identity }, &[x, &w]).unwrap();
        let loss = tape.apply(MseLoss {}, &[&conv(&conv(&x)), &target]).unwrap();
        (w, unused, loss)
    };
    let tape = Tape::recording();
    let (leaf, _, loss) = pass(&tape);
    let alone = host(tape.backward(&loss).unwrap().of(&leaf).unwrap());
    let tape = Tape::recording();
    let (leaf, unused, loss) = pass(&tape);
    let mut arena = Storage::upload(&gpu, true, &[7.0; 48]).unwrap();
    tape.backward_into(&loss, [(&leaf, 16..32), (&unused, 32..35)], &mut arena).unwrap();
    let arena = host(&arena);
    assert_eq!(arena[16..32], alone);
    assert_eq!((&arena[..16], &arena[32..35], &arena[35..]), (&[7.0; 16][..], &[0.0; 3][..], &[7.0; 13][..]));
}

fn each(open: impl Fn(Precision) -> Option<Gpu>, test: impl Fn(Gpu)) {
    Precision::ALL.into_iter().filter_map(open).for_each(test);
}

/// The same tests on one kind of device.
macro_rules! on {
    ($kind:ident) => {
        mod $kind {
            use super::*;

            #[test]
            fn replays_give_the_bits_of_doing_it_again() {
                each(device::$kind, super::replays_give_the_bits_of_doing_it_again);
            }

            #[test]
            fn the_host_stays_out() {
                each(device::$kind, super::the_host_stays_out);
            }

            #[test]
            fn gradients_find_their_places() {
                each(device::$kind, super::gradients_find_their_places);
            }

            #[test]
            fn a_tape_is_recorded_with_its_gradients() {
                each(device::$kind, super::a_tape_is_recorded_with_its_gradients);
            }
        }
    };
}
on!(emulated);
on!(hardware);

/// A replay that uses memory from outside which is gone is a fault like any other.
#[test]
fn a_replay_on_freed_memory_is_found_on_the_emulated_device() {
    let gpu = Gpu::emulated(Precision::F32).unwrap();
    let (x, mut y) = (gpu.upload::<f32>(&[1.0; 8]).unwrap(), gpu.upload::<f32>(&[0.0; 8]).unwrap());
    let add = || launch::add_assign_floats(&gpu, Grid::threads(1), x.slice(), &mut y.slice_mut(), 8);
    let (graph, ()) = gpu.capture(add).unwrap();
    graph.replay().unwrap();
    drop(x);
    refused(graph.replay(), "that was freed");
}
