//! The kernels of `kernels/hopper/` before the judges of those whose place they take. The emulated device does not have
//! them, so all of this runs on a real one of compute capability 9.0, and says so where there is none.
//!
//! That they are taken nowhere else, and what can be known of them without a device: `src/device/cuda/chosen.rs`, `wgmma/`.

use grad::check::Entry;
use grad::device::cuda::{ElementKind, Gpu, GpuArg, GpuOut, Hopper, Precision, Values};
use grad::op::Op;
use grad::ops::{Conv2d, Kind, PointwiseConv, REGISTRY};
use grad::rng::Rng;
use grad::shape::Shape;
use grad::storage::Storage;

/// The first CUDA device with both ways open: never these kernels, and always. None, and it is said, where it is no such
/// device; with `GRAD_REQUIRE_CUDA=1` there must be one, but it may be of another kind.
fn both_ways() -> Option<[Gpu; 2]> {
    let open = |hopper| Gpu::open_with(0, Precision::Bf16, hopper);
    match (open(Hopper::Off), open(Hopper::Force)) {
        (Ok(off), Ok(force)) if force.has_warpgroup_products() => Some([off, force]),
        (Ok(gpu), Ok(_)) => {
            println!("skipped: {} is no device for these kernels, or this build holds none", gpu.facts().name);
            None
        }
        (Err(e), _) | (_, Err(e)) => {
            assert!(std::env::var_os("GRAD_REQUIRE_CUDA").is_none(), "a CUDA device is required: {e}");
            println!("skipped: no CUDA device: {e}");
            None
        }
    }
}

/// Multiples of 1/64 below 1: bf16 stores them exactly, and f32 adds their products exactly, in whatever order.
fn draw(rng: &mut Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| (rng.uniform_in(-1.0, 1.0) * 64.0).round() / 64.0).collect()
}

/// y, dx and dw of an op without activation, from values that every path must sum up to the same bits.
fn exact<O: Op>(gpu: &Gpu, op: &O, shapes: [&[usize]; 2]) -> [Vec<f32>; 3] {
    let (rng, shapes) = (&mut Rng::new(5, 0), shapes.map(Shape::new));
    let y_shape = op.infer(&shapes).unwrap()[0];
    let upload = |in_f32, values: &[f32]| Storage::upload(gpu, in_f32, values).unwrap();
    let poisoned = |in_f32, s: &Shape| upload(in_f32, &vec![f32::NAN; s.numel()]);
    let [x, w, dy] = [shapes[0], shapes[1], y_shape].map(|s| draw(rng, s.numel()));
    let (x, w, dy) = (upload(false, &x), upload(true, &w), upload(false, &dy));
    let (mut y, mut dx, mut dw) = (poisoned(false, &y_shape), poisoned(false, &shapes[0]), poisoned(true, &shapes[1]));
    let all = |s: &'static str, v: &Storage| -> Vec<f32> {
        let read = v.read(0, v.len()).unwrap().to_vec();
        assert!(read.iter().all(|v| v.is_finite()), "{s} holds what nobody wrote");
        read
    };
    let args = [(0, &x), (1, &w)].map(|(i, s)| GpuArg { shape: shapes[i], data: s.values(0, s.len()) });
    op.cuda_forward(gpu, &args, &mut [GpuOut::from(y.values_mut())]).unwrap();
    let none = [Values::none(ElementKind::F32)];
    let mut gradients = [Some(dx.values_mut()), Some(dw.values_mut())];
    op.cuda_backward(gpu, &args, &none, dy.values(0, dy.len()), &mut gradients).unwrap();
    [all("y", &y), all("dx", &dx), all("dw", &dw)]
}

/// Both ways lead to the same values, the second through so many launches of these kernels: y, dx and dw.
fn agree<O: Op>([off, force]: &[Gpu; 2], op: &O, shapes: [&[usize]; 2], launches: usize) {
    let before = force.mapped_launches();
    let (plain, fast) = (exact(off, op, shapes), exact(force, op, shapes));
    assert_eq!(force.mapped_launches() - before, launches, "{op:?} {shapes:?}");
    assert_eq!(off.mapped_launches(), 0);
    for (name, plain, fast) in [("y", &plain[0], &fast[0]), ("dx", &plain[1], &fast[1]), ("dw", &plain[2], &fast[2])] {
        // Zeros may differ in their sign.
        if let Some(i) = plain.iter().zip(fast).position(|(a, b)| a != b) {
            panic!("{op:?} {shapes:?}: {name}[{i}] is {}, and {} by warpgroups", plain[i], fast[i]);
        }
    }
}

fn conv(pad: [usize; 4], stride: usize) -> Conv2d {
    Conv2d { stride, pad, act: Kind::Identity }
}

fn judged(judge: impl Fn(&Entry, &Gpu) -> String) {
    let Some([_, force]) = both_ways() else { return };
    for entry in REGISTRY.iter().filter(|e| ["conv2d", "pointwise_conv"].contains(&e.name)) {
        let before = force.mapped_launches();
        println!("bf16  {:26} {} by warpgroups", entry.name, judge(entry, &force));
        assert!(force.mapped_launches() > before, "{}: no case came to these kernels", entry.name);
    }
}

mod hardware {
    use super::*;

    #[test]
    fn warpgroups_agree_with_the_definition() {
        judged(|entry, gpu| format!("{:.0} % of what is allowed", 100.0 * (entry.device_truth)(gpu)));
    }

    #[test]
    fn warpgroups_give_the_same_bits_again() {
        judged(|entry, gpu| {
            (entry.device_repeat)(gpu);
            "ok".into()
        });
    }

    /// Ends of tiles, of slots, of pictures; clusters of one and of two; kernels and paddings of all kinds.
    #[test]
    fn warpgroups_sum_every_product() {
        let Some(gpus) = both_ways() else { return };
        for (pad, x, w) in [
            ([1; 4], [2, 10, 11, 72], [3, 3, 72, 224]),
            ([1; 4], [1, 14, 15, 16], [3, 3, 16, 432]),
            ([0; 4], [3, 9, 8, 432], [3, 3, 432, 16]),
            ([2, 1, 0, 2], [1, 12, 6, 8], [5, 3, 8, 64]),
            ([0, 1, 3, 1], [2, 5, 5, 24], [2, 4, 24, 8]),
            ([1; 4], [1, 1, 1, 8], [3, 3, 8, 8]),
        ] {
            agree(&gpus, &conv(pad, 1), [&x, &w], 3);
        }
        let pointwise = PointwiseConv { act: Kind::Identity };
        for ([m, a, b], launches) in [([200, 72, 432], 3), ([65, 136, 224], 3), ([577, 432, 16], 3)] {
            agree(&gpus, &pointwise, [&[1, m, a], &[a, b]], launches);
        }
    }

    #[test]
    fn warpgroups_sum_the_products_of_the_networks() {
        let Some(gpus) = both_ways() else { return };
        agree(&gpus, &conv([1; 4], 1), [&[16, 28, 28, 432], &[3, 3, 432, 432]], 3);
        for (a, b) in [(432, 864), (864, 432), (432, 216)] {
            agree(&gpus, &PointwiseConv { act: Kind::Identity }, [&[16, 28, 28, a], &[a, b]], 3);
        }
    }

    #[test]
    fn warpgroups_leave_to_others_what_they_cannot_do() {
        let Some(gpus) = both_ways() else { return };
        agree(&gpus, &conv([0, 1, 0, 1], 2), [&[1, 6, 6, 8], &[3, 3, 8, 8]], 0);
        agree(&gpus, &conv([1; 4], 1), [&[1, 6, 6, 12], &[3, 3, 12, 8]], 0);
        agree(&gpus, &PointwiseConv { act: Kind::Identity }, [&[1, 70, 16], &[16, 57]], 0);
    }
}
