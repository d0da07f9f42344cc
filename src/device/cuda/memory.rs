//! Device memory: owned arrays, windows into them, and the pool they come from.
//!
//! Everything runs on one stream, so memory that is given back may be handed out at once: what still reads it was
//! launched before what will write it.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::graph::GraphMemory;
use super::{Gpu, Precision, Real};
use crate::error::Result;
use crate::op::List;

/// Element types of device arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are what they are called
pub enum ElementKind {
    Real,
    F32,
    F64,
    U32,
}

impl ElementKind {
    /// Bytes of a value.
    pub fn size(self, precision: Precision) -> usize {
        match (self, precision) {
            (ElementKind::Real, Precision::Bf16) => 2,
            (ElementKind::F64, _) => 8,
            _ => 4,
        }
    }
}

/// A type that device arrays can hold.
pub trait Element: Copy {
    /// The same, as a value.
    const KIND: ElementKind;
    /// What it is on the host.
    type Host: Copy;
    /// Host values as the device stores them.
    fn pack(values: &[Self::Host], precision: Precision) -> Vec<u8>;
    /// The reverse of `pack`.
    fn unpack(bytes: &[u8], precision: Precision) -> Vec<Self::Host>;
}

impl Element for Real {
    const KIND: ElementKind = ElementKind::Real;
    type Host = f32;

    fn pack(values: &[f32], precision: Precision) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * Self::KIND.size(precision)];
        Self::pack_into(values, precision, &mut bytes);
        bytes
    }

    fn unpack(bytes: &[u8], precision: Precision) -> Vec<f32> {
        match precision {
            Precision::Bf16 => bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            _ => f32::unpack(bytes, precision),
        }
    }
}

impl Real {
    /// Host values as the device stores them.
    ///
    /// # Panics
    /// If `to` has room for more or fewer.
    pub fn pack_into(values: &[f32], precision: Precision, to: &mut [u8]) {
        assert_eq!(to.len(), values.len() * ElementKind::Real.size(precision), "a copy between lengths");
        match precision {
            Precision::Bf16 => {
                let (to, _) = to.as_chunks_mut::<2>();
                to.iter_mut().zip(values).for_each(|(to, &v)| *to = bf16::from_f32(v).to_le_bytes());
            }
            _ => to.copy_from_slice(bytemuck::cast_slice(values)),
        }
    }
}

/// Types that are stored as they are.
macro_rules! plain_element {
    ($($type:ty => $kind:ident),*) => {$(
        impl Element for $type {
            const KIND: ElementKind = ElementKind::$kind;
            type Host = $type;

            fn pack(values: &[$type], _: Precision) -> Vec<u8> {
                bytemuck::cast_slice(values).to_vec()
            }

            fn unpack(bytes: &[u8], _: Precision) -> Vec<$type> {
                bytemuck::pod_collect_to_vec(bytes)
            }
        }
    )*};
}
plain_element!(f32 => F32, f64 => F64, u32 => U32);

/// An array on a device, given back to its pool when dropped.
#[derive(Debug)]
pub struct DeviceVec<T: Element> {
    gpu: Gpu,
    address: u64,
    len: usize,
    /// The graph it belongs to, if it was made for one.
    graph: Option<Arc<GraphMemory>>,
    element: PhantomData<T>,
}

impl<T: Element> DeviceVec<T> {
    pub(super) fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        let (address, graph) = gpu.allocate(Self::bytes(len, gpu.precision()))?;
        Ok(DeviceVec { gpu: gpu.clone(), address, len, graph, element: PhantomData })
    }

    /// At least one value, so that every array has an address of its own.
    fn bytes(len: usize, precision: Precision) -> usize {
        len.max(1) * T::KIND.size(precision)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device it lies on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// All of it, to be read.
    pub fn slice(&self) -> Slice<'_, T> {
        Slice { address: self.address, len: self.len, size: T::KIND.size(self.gpu.precision()), owner: PhantomData }
    }

    /// All of it, to be written.
    pub fn slice_mut(&mut self) -> SliceMut<'_, T> {
        SliceMut(Slice { owner: PhantomData, ..self.slice() })
    }

    /// Some parts of it at once, to be written.
    ///
    /// # Panics
    /// If a part reaches past the end, or two have a value in common.
    pub fn parts_mut(&mut self, parts: &[Option<Range<usize>>]) -> List<Option<SliceMut<'_, T>>> {
        let named: List<&Range<usize>> = parts.iter().flatten().collect();
        for (i, a) in named.iter().enumerate() {
            let apart = |b: &&Range<usize>| a.end <= b.start || b.end <= a.start;
            assert!(named[..i].iter().all(apart), "part {a:?} overlaps another of {named:?}");
        }
        parts.iter().map(|part| part.clone().map(|part| SliceMut(self.slice().range(part)))).collect()
    }
}

impl<T: Element> Drop for DeviceVec<T> {
    fn drop(&mut self) {
        self.gpu.release(self.address, Self::bytes(self.len, self.gpu.precision()), self.graph.take());
    }
}

/// A window into a device array, to be read.
#[derive(Debug)]
pub struct Slice<'a, T: Element> {
    address: u64,
    len: usize,
    /// Bytes of a value.
    size: usize,
    owner: PhantomData<&'a T>,
}

impl<T: Element> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Element> Copy for Slice<'_, T> {}

impl<T: Element> Slice<'_, T> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it.
    ///
    /// # Panics
    /// If the part reaches past the end.
    pub fn range(self, part: Range<usize>) -> Self {
        assert!(part.start <= part.end && part.end <= self.len, "part {part:?} of {} values", self.len);
        Slice { address: self.address + (part.start * self.size) as u64, len: part.len(), ..self }
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

/// A window into a device array, to be written.
#[derive(Debug)]
pub struct SliceMut<'a, T: Element>(Slice<'a, T>);

impl<T: Element> SliceMut<'_, T> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// A part of it.
    ///
    /// # Panics
    /// If the part reaches past the end.
    pub fn range_mut(&mut self, part: Range<usize>) -> SliceMut<'_, T> {
        SliceMut(self.0.range(part))
    }

    /// The same window, to be read.
    pub fn as_slice(&self) -> Slice<'_, T> {
        self.0
    }

    pub(super) fn address(&self) -> u64 {
        self.0.address
    }
}

/// A window whose element type is known at run time only: activations are stored as the run's precision has it, parameters
/// as f32.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    address: u64,
    len: usize,
    size: usize,
    kind: ElementKind,
    owner: PhantomData<&'a u8>,
}

impl<'a> Values<'a> {
    /// Where the first of them lies; to tell places apart.
    pub(crate) fn place(&self) -> u64 {
        self.address
    }

    /// No values: what an op gets that said it would not read them.
    pub fn none(kind: ElementKind) -> Self {
        Values { address: 0, len: 0, size: 1, kind, owner: PhantomData }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element type.
    pub fn kind(&self) -> ElementKind {
        self.kind
    }

    /// As activations.
    ///
    /// # Panics
    /// If they are something else.
    pub fn reals(self) -> Slice<'a, Real> {
        self.typed()
    }

    /// As f32.
    ///
    /// # Panics
    /// If they are something else.
    pub fn floats(self) -> Slice<'a, f32> {
        self.typed()
    }

    fn typed<T: Element>(self) -> Slice<'a, T> {
        assert!(self.kind == T::KIND || self.is_empty(), "{:?} values read as {:?}", self.kind, T::KIND);
        Slice { address: self.address, len: self.len, size: self.size, owner: PhantomData }
    }
}

impl<'a, T: Element> From<Slice<'a, T>> for Values<'a> {
    fn from(s: Slice<'a, T>) -> Self {
        Values { address: s.address, len: s.len, size: s.size, kind: T::KIND, owner: PhantomData }
    }
}

/// [`Values`] to be written.
#[derive(Debug)]
pub struct ValuesMut<'a>(Values<'a>);

impl ValuesMut<'_> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// As activations.
    ///
    /// # Panics
    /// If they are something else.
    pub fn reals(&mut self) -> SliceMut<'_, Real> {
        SliceMut(self.0.typed())
    }

    /// As f32.
    ///
    /// # Panics
    /// If they are something else.
    pub fn floats(&mut self) -> SliceMut<'_, f32> {
        SliceMut(self.0.typed())
    }

    /// The same window, to be read.
    pub fn as_values(&self) -> Values<'_> {
        self.0
    }
}

impl<'a, T: Element> From<SliceMut<'a, T>> for ValuesMut<'a> {
    fn from(s: SliceMut<'a, T>) -> Self {
        ValuesMut(s.0.into())
    }
}

/// Idle memory by size. Sizes are rounded up, so near-equal requests share.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: HashMap<usize, Vec<u64>>,
}

impl Pool {
    /// The size that a request is rounded to: by at most an eighth.
    pub fn rounded(bytes: usize) -> usize {
        let step = (bytes.max(1).next_power_of_two() / 8).max(256);
        bytes.max(1).next_multiple_of(step)
    }

    pub fn take(&mut self, bytes: usize) -> Option<u64> {
        self.idle.get_mut(&Self::rounded(bytes))?.pop()
    }

    pub fn put(&mut self, address: u64, bytes: usize) {
        self.idle.entry(Self::rounded(bytes)).or_default().push(address);
    }

    pub fn drain(&mut self) -> Vec<u64> {
        self.idle.drain().flat_map(|(_, addresses)| addresses).collect()
    }

    pub fn idle_bytes(&self) -> usize {
        self.idle.iter().map(|(size, addresses)| size * addresses.len()).sum()
    }
}
