//! A shape and the values that fill it, shared and immutable once made.

use std::sync::Arc;

use crate::buffer::Buffer;
use crate::shape::Shape;
use crate::tape::NodeId;

/// Values of a [`Shape`], contiguous, channels last. Cloning shares the memory.
///
/// A tensor may be a window into a larger buffer: the parameters of a model are windows into one arena.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Shape,
    buffer: Arc<Buffer>,
    offset: usize,
    /// Where the tape recorded it; `None` for a constant.
    pub(crate) node: Option<NodeId>,
}

impl Tensor {
    /// A tensor that owns `buffer`.
    ///
    /// # Panics
    /// If the number of values does not fit the shape.
    pub fn new(shape: impl Into<Shape>, buffer: Buffer) -> Self {
        let shape = shape.into();
        assert_eq!(shape.numel(), buffer.len(), "a tensor of shape {shape} needs {} values", shape.numel());
        Tensor { shape, buffer: Arc::new(buffer), offset: 0, node: None }
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
    pub fn window(shape: impl Into<Shape>, buffer: Arc<Buffer>, offset: usize) -> Self {
        let shape = shape.into();
        assert!(offset + shape.numel() <= buffer.len(), "window {shape} at {offset} reaches past {}", buffer.len());
        Tensor { shape, buffer, offset, node: None }
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

    /// The values, channels last.
    pub fn data(&self) -> &[f32] {
        &self.buffer[self.offset..self.offset + self.shape.numel()]
    }
}
