//! Blocks that a device trains in one op, at sizes that fill its larger tiles: against the chain of single ops on the same
//! device, see `common/blocks.rs`.
//!
//! The judges of the ops see the tilings that suit their small cases.

#[path = "common/blocks.rs"]
mod blocks;
#[path = "common/device.rs"]
mod device;

use blocks::{EPS, GROUPS, batch_norm, bottleneck, in_one, judge};
use grad::device::cuda::{Gpu, Precision};
use grad::ops::{BasicBlock, Conv2d, Kind};
use grad::tape::Tape;
use grad::tensor::Tensor;

/// Images, height, width, channels, and channels in between: for tiles of 128 x 112, of 96 x 144 and of 64 x 144 on the emulated
/// device, as `src/device/cuda/tiling.rs` asserts. Tiles end within images.
const SIZES: [[usize; 5]; 3] = [[4, 5, 25, 112, 104], [3, 10, 12, 144, 136], [3, 8, 10, 144, 136]];

/// The chain that `basic_block` is.
fn basic_block_by_links(tape: &Tape, x: &[Tensor]) -> Tensor {
    let conv = Conv2d { stride: 1, pad: [1; 4], act: Kind::Identity };
    let t = tape.apply(conv.clone(), &[&x[0], &x[1]]).unwrap();
    let t = tape.apply(batch_norm(Kind::Relu, false), &[&t, &x[2], &x[3]]).unwrap();
    let t = tape.apply(conv, &[&t, &x[4]]).unwrap();
    tape.apply(batch_norm(Kind::Relu, true), &[&t, &x[5], &x[6], &x[0]]).unwrap()
}

fn basic_block(open: impl Fn(Precision) -> Option<Gpu>) {
    for [n, h, w, c, _] in SIZES {
        let shapes: [&[usize]; 7] = [&[n, h, w, c], &[3, 3, c, c], &[c], &[c], &[3, 3, c, c], &[c], &[c]];
        judge(&shapes, basic_block_by_links, in_one(BasicBlock { eps: EPS, groups: GROUPS }), &open);
    }
}

/// The same tests on one kind of device.
macro_rules! on {
    ($kind:ident) => {
        mod $kind {
            use super::*;

            #[test]
            fn a_bottleneck_in_one_op_is_its_links() {
                bottleneck(&SIZES, device::$kind);
            }

            #[test]
            fn a_basic_block_in_one_op_is_its_links() {
                basic_block(device::$kind);
            }
        }
    };
}
on!(emulated);
on!(hardware);
