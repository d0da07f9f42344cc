//! A shape and the values that fill it, shared and immutable once made.

use crate::buffer::Buffer;
use crate::device::cuda::{Gpu, Values};
use crate::error::Result;
use crate::shape::Shape;
use crate::storage::{Shared, Storage};
use crate::tape::NodeId;

/// Values of a [`Shape`], contiguous, channels last. Cloning shares the memory.
///
/// The values lie in host memory or on a device; ops on them run where they are.
///
/// A tensor may be a window into a larger buffer: the parameters of a model are windows into one arena.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Shape,
    storage: Shared,
    offset: usize,
    /// Where the tape recorded it; `None` for a constant.
    pub(crate) node: Option<NodeId>,
}

impl Tensor {
    /// A tensor in host memory that owns `buffer`.
    ///
    /// # Panics
    /// If the number of values does not fit the shape.
    pub fn new(shape: impl Into<Shape>, buffer: Buffer) -> Self {
        Self::stored(shape, Storage::Host(buffer))
    }

    /// A tensor that owns `storage`.
    ///
    /// # Panics
    /// If the number of values does not fit the shape.
    pub fn stored(shape: impl Into<Shape>, storage: Storage) -> Self {
        let shape = shape.into();
        assert_eq!(shape.numel(), storage.len(), "a tensor of shape {shape} needs {} values", shape.numel());
        Tensor { shape, storage: Shared::new(storage), offset: 0, node: None }
    }

    /// A tensor with a copy of `values`.
    ///
    /// # Panics
    /// If the number of values does not fit the shape.
    pub fn from_slice(shape: impl Into<Shape>, values: &[f32]) -> Self {
        Self::new(shape, values.into())
    }

    /// A window of `shape` into a shared buffer, from value `offset` on.
    ///
    /// # Panics
    /// If the window reaches past the buffer.
    pub fn window(shape: impl Into<Shape>, storage: Shared, offset: usize) -> Self {
        let shape = shape.into();
        assert!(offset + shape.numel() <= storage.len(), "window {shape} at {offset} reaches past {}", storage.len());
        Tensor { shape, storage, offset, node: None }
    }

    /// The same values under another shape of equal size, as a constant.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn reshaped(&self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.numel(), self.shape.numel(), "{} cannot become {shape}", self.shape);
        Tensor { shape, node: None, ..self.clone() }
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The values in host memory, channels last.
    ///
    /// # Panics
    /// If they lie on a device.
    pub fn data(&self) -> &[f32] {
        &self.storage.host()[self.offset..self.offset + self.shape.numel()]
    }

    /// The device the values lie on; `None` for host memory.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.storage.gpu()
    }

    /// Whether the values are f32 in every precision.
    pub fn is_f32(&self) -> bool {
        self.storage.is_f32()
    }

    /// The values on the device.
    ///
    /// # Panics
    /// If they lie in host memory.
    pub fn values(&self) -> Values<'_> {
        self.storage.values(self.offset, self.shape.numel())
    }

    /// A copy in host memory, as a constant. On a device this waits for everything launched before.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device, or anything launched before, failed.
    pub fn to_host(&self) -> Result<Self> {
        Ok(Tensor::new(self.shape, self.storage.read(self.offset, self.shape.numel())?))
    }

    /// A copy on a device, as a constant: as f32, or as the precision of the run stores activations.
    ///
    /// # Errors
    /// As [`Gpu::scratch`].
    ///
    /// # Panics
    /// If the values lie on a device.
    pub fn to_gpu(&self, gpu: &Gpu, in_f32: bool) -> Result<Self> {
        Ok(Tensor::stored(self.shape, Storage::upload(gpu, in_f32, self.data())?))
    }

    /// As many copies of `value`, stored where and as this tensor is.
    ///
    /// # Errors
    /// As [`Gpu::scratch`].
    pub fn filled(&self, value: f32) -> Result<Storage> {
        self.storage.filled_like(self.shape.numel(), value)
    }
}
