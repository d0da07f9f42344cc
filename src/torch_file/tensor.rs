//! A tensor of a PyTorch file: a strided window on a storage. Strides and offset are checked once, when it is made, so
//! that no index can leave the storage; values are read when they are asked for.

use half::{bf16, f16};
use safetensors::Dtype;

use super::objects::Fault;

/// Number of a storage in its file.
pub(super) type StorageId = usize;

/// More axes than any tensor of weights has.
pub(super) const MAX_AXES: usize = 16;

/// Shape, type and place of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TorchTensor {
    pub(super) storage: StorageId,
    /// Type of the values.
    pub dtype: Dtype,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
    numel: usize,
}

impl TorchTensor {
    /// A window on a storage of `available` values.
    pub(super) fn new(
        storage: StorageId,
        dtype: Dtype,
        available: usize,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Self, Fault> {
        if shape.len() != strides.len() || shape.len() > MAX_AXES {
            return Err(format!("a tensor has {} sizes and {} strides", shape.len(), strides.len()));
        }
        let numel = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let last = if shape.contains(&0) {
            Some(0)
        } else {
            let steps = shape.iter().zip(&strides).map(|(&size, &stride)| (size - 1).checked_mul(stride));
            steps.into_iter().try_fold(offset, |at, step| at.checked_add(step?)).and_then(|last| last.checked_add(1))
        };
        match (numel, last) {
            (Some(numel), Some(end)) if end <= available => {
                Ok(TorchTensor { storage, dtype, shape, strides, offset, numel })
            }
            _ => Err(format!("a tensor {shape:?} with strides {strides:?} leaves its storage of {available} values")),
        }
    }

    /// Number of values.
    pub fn numel(&self) -> usize {
        self.numel
    }

    /// All values in row-major order, from the bytes of its storage.
    pub(super) fn values(&self, storage: &[u8], big_endian: bool) -> Result<Vec<f32>, Fault> {
        macro_rules! gather {
            ($n:literal, $from:expr) => {{
                let stored = storage.as_chunks::<$n>().0;
                // Two places of a tensor may be one value, but not so that a small file becomes a large tensor.
                if self.numel > stored.len() {
                    return Err(format!("a tensor {:?} repeats the values of a smaller storage", self.shape));
                }
                let value = |mut bytes: [u8; $n]| {
                    if big_endian {
                        bytes.reverse();
                    }
                    $from(bytes)
                };
                let mut values = Vec::with_capacity(self.numel);
                self.each(|at| values.push(value(stored[at])));
                values
            }};
        }
        Ok(match self.dtype {
            Dtype::F64 => gather!(8, |b| f64::from_le_bytes(b) as f32),
            Dtype::F32 => gather!(4, f32::from_le_bytes),
            Dtype::F16 => gather!(2, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => gather!(2, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::I64 => gather!(8, |b| i64::from_le_bytes(b) as f32),
            Dtype::I32 => gather!(4, |b| i32::from_le_bytes(b) as f32),
            other => return Err(format!("a tensor holds {other:?}, which weights are not made of")),
        })
    }

    /// The places of all values in the storage, in row-major order.
    fn each(&self, mut visit: impl FnMut(usize)) {
        let (mut index, mut at) = (vec![0; self.shape.len()], self.offset);
        for _ in 0..self.numel {
            visit(at);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= index[axis] * self.strides[axis];
                index[axis] = 0;
            }
        }
    }
}

/// Bytes of one value.
pub(super) fn width(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F64 | Dtype::I64 => 8,
        Dtype::F32 | Dtype::I32 => 4,
        Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
        _ => 1,
    }
}
