//! Tensor maps: how the copy engine of a Hopper GPU walks an array, as `kernels/hopper/` takes it.
//!
//! Values are bf16, a row of a box is 64 of them (128 bytes) and lies swizzled in shared memory; what is outside the
//! array arrives as zeros. Source: CUDA driver API, `cuTensorMapEncodeTiled` and `cuTensorMapEncodeIm2col`, whose limits
//! [`Walk::fault`] checks.

use std::marker::PhantomData;

use super::{Gpu, Real, Slice};
use crate::error::{Error, Result};

/// Values of a row of a box: as many as the swizzle allows.
pub(super) const ROW: usize = 64;

/// Bytes of a value.
const SIZE: usize = 2;

/// An array of up to four dimensions, the innermost first, and what is copied of it at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    /// Number of values, lines, ..
    pub sizes: Vec<usize>,
    /// Values from line to line, and so on, of all dimensions but the innermost.
    pub strides: Vec<usize>,
    pub pattern: Pattern,
}

/// What is copied at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// A box of [`ROW`] values by so many lines, of one matrix.
    Boxes { lines: usize },
    /// [`ROW`] channels of so many pixels of `[C, W, H, N]`. Base pixels lie between the corners, which are counted from the
    /// first and from the last pixel, `[x, y]`.
    Patches { lower: [i32; 2], upper: [i32; 2], pixels: usize },
}

impl Walk {
    /// What of it the driver would refuse, for an array that begins at `address`.
    pub fn fault(&self, address: u64) -> Option<&'static str> {
        let corner = |c: &[i32; 2]| c.iter().all(|c| (-128..128).contains(c));
        let (lines, most) = match self.pattern {
            Pattern::Boxes { lines } => (lines, 256),
            Pattern::Patches { pixels, .. } => (pixels, 1024),
        };
        let bytes = self.strides.iter().map(|s| s * SIZE);
        let faults = [
            (!address.is_multiple_of(16), "an array that does not begin at a multiple of 16 bytes"),
            (self.sizes.len() != self.strides.len() + 1 || !(2..=4).contains(&self.sizes.len()), "its dimensions"),
            (self.sizes.iter().any(|&s| s == 0 || s > 1 << 31), "an empty or immense dimension"),
            (bytes.clone().any(|b| b % 16 != 0), "lines that do not begin at multiples of 16 bytes"),
            (bytes.clone().any(|b| b >= 1 << 40), "lines that are too far apart"),
            (lines == 0 || lines > most, "the number of lines of a box"),
            (
                matches!(&self.pattern, Pattern::Patches { lower, upper, .. }
                    if self.sizes.len() != 4 || !corner(lower) || !corner(upper)),
                "corners beyond a byte",
            ),
        ];
        faults.into_iter().find(|(wrong, _)| *wrong).map(|(_, what)| what)
    }

    /// Values from the first to the last.
    fn reach(&self) -> usize {
        self.sizes[0]
            + self.sizes[1..].iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>()
    }
}

/// A map, as the driver made it. Aligned as strictly as any version of the driver's header asks.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug)]
pub(super) struct MapWords(pub [u64; 16]);

/// The map of an array that lives at least as long.
#[derive(Clone, Copy, Debug)]
pub struct TensorMap<'a> {
    pub(super) words: MapWords,
    owner: PhantomData<&'a u8>,
}

impl Gpu {
    /// The map of an array.
    ///
    /// # Errors
    /// [`Error::Device`] when the device has no copy engine, or the array does not suit it.
    ///
    /// # Panics
    /// If the walk leaves the array.
    pub(super) fn tensor_map<'a>(&self, of: Slice<'a, Real>, walk: &Walk) -> Result<TensorMap<'a>> {
        if let Some(fault) = walk.fault(of.address()) {
            return Err(Error::Device {
                what: format!("no tensor map can be made of {walk:?}: {fault}"),
                help: "this is a fault of the program: please report it; GRAD_HOPPER=off goes round it".into(),
            });
        }
        assert!(walk.reach() <= of.len(), "{walk:?} of {} values", of.len());
        Ok(TensorMap { words: self.checked(|d| d.tensor_map(of.address(), walk))?, owner: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixels() -> Walk {
        let pattern = Pattern::Patches { lower: [-1, -1], upper: [-1, -1], pixels: 192 };
        Walk { sizes: vec![432, 28, 28, 16], strides: vec![432, 28 * 432, 784 * 432], pattern }
    }

    #[test]
    fn limits_of_the_driver_are_known_before_it_is_asked() {
        let good = pixels();
        assert_eq!(good.fault(256), None);
        assert_eq!(good.reach(), 16 * 784 * 432);
        let bent = |f: fn(&mut Walk)| {
            let mut walk = pixels();
            f(&mut walk);
            walk.fault(256).unwrap_or("nothing")
        };
        assert!(good.fault(8).unwrap().contains("begin"));
        assert!(bent(|w| w.strides[0] = 433).contains("lines that do not"));
        assert!(bent(|w| w.sizes[3] = 0).contains("empty"));
        assert!(bent(|w| w.sizes.push(1)).contains("dimensions"));
        assert!(bent(|w| w.pattern = Pattern::Boxes { lines: 257 }).contains("number of lines"));
        let far = |w: &mut Walk| w.pattern = Pattern::Patches { lower: [-129, 0], upper: [0, 0], pixels: 64 };
        assert!(bent(far).contains("corners"));
    }

    /// The driver wants maps at multiples of 64 bytes, some versions of 128, and takes 128 bytes of them.
    #[test]
    fn a_map_is_what_the_driver_takes() {
        assert_eq!((align_of::<TensorMap>(), size_of::<TensorMap>()), (128, 128));
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn the_emulated_device_has_no_copy_engine() {
        let gpu = Gpu::emulated(super::super::Precision::Bf16).unwrap();
        let array = gpu.scratch::<Real>(64 * 8).unwrap();
        let walk = Walk { sizes: vec![64, 8], strides: vec![64], pattern: Pattern::Boxes { lines: 8 } };
        let refused = gpu.tensor_map(array.slice(), &walk).unwrap_err().to_string();
        assert!(refused.contains("the emulated device has no copy engine"), "{refused}");
    }
}
