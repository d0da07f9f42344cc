//! Recycled, 64-byte aligned memory for f32 values.
//!
//! A training step asks for the same sizes again and again. Fresh pages from the operating system cost a fault each,
//! which on a memory-bound step is a third of the time, so freed buffers are kept by size and handed out again.
//! [`trim`] gives what is idle back.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Mutex;

/// A cache line, and the widest vector register.
const ALIGN: usize = 64;

/// Idle memory by length in values. Sizes are rounded up, so near-equal requests share.
static IDLE: Mutex<Option<HashMap<usize, Vec<Block>>>> = Mutex::new(None);

/// An owned allocation of `capacity` values.
struct Block {
    start: NonNull<f32>,
    capacity: usize,
}

// SAFETY: a block is a uniquely owned allocation; the pointer is not shared with anything tied to a thread.
unsafe impl Send for Block {}

impl Block {
    fn layout(capacity: usize) -> Layout {
        Layout::array::<f32>(capacity)
            .and_then(|l| l.align_to(ALIGN))
            .expect("a buffer is smaller than the address space")
    }

    fn allocate(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: `capacity` is at least 1, so the layout is not empty.
        let start = unsafe { alloc(layout) }.cast::<f32>();
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        // SAFETY: the allocation holds `capacity` values; every bit pattern is a valid f32, and writing them once
        // makes them initialised for as long as the block lives.
        unsafe { start.write_bytes(0, capacity) };
        Block { start, capacity }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocate` with this layout and owned by this block alone.
        unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.capacity)) }
    }
}

/// A fixed number of f32 values, returned to the pool when dropped.
pub struct Buffer {
    block: Option<Block>,
    len: usize,
}

// SAFETY: shared access hands out `&[f32]` only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` values of unspecified content: whoever asks must write every one before reading it.
    pub fn scratch(len: usize) -> Self {
        // Rounding by an eighth of the size wastes little and lets the ragged last batch reuse the blocks of a full one.
        let step = (len.max(1).next_power_of_two() / 8).max(16);
        let capacity = len.max(1).next_multiple_of(step);
        let idle = IDLE
            .lock()
            .expect("no panic while the lock is held")
            .get_or_insert_default()
            .get_mut(&capacity)
            .and_then(Vec::pop);
        Buffer { block: Some(idle.unwrap_or_else(|| Block::allocate(capacity))), len }
    }

    /// `len` copies of `value`.
    pub fn filled(len: usize, value: f32) -> Self {
        let mut b = Self::scratch(len);
        b.fill(value);
        b
    }

    fn start(&self) -> NonNull<f32> {
        self.block.as_ref().expect("present until drop").start
    }
}

impl From<&[f32]> for Buffer {
    fn from(values: &[f32]) -> Self {
        let mut b = Self::scratch(values.len());
        b.copy_from_slice(values);
        b
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: the block holds at least `len` initialised values and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.len) }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        (**self).into()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Buffer({} values)", self.len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (Some(block), Ok(mut idle)) = (self.block.take(), IDLE.lock()) {
            idle.get_or_insert_default().entry(block.capacity).or_default().push(block);
        }
    }
}

/// A fixed number of f64 values in memory of the same pool: sums that f32 would not hold.
#[derive(Debug)]
pub struct Doubles(Buffer);

impl Doubles {
    /// `len` values of unspecified content, as [`Buffer::scratch`].
    pub fn scratch(len: usize) -> Self {
        Doubles(Buffer::scratch(2 * len))
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Doubles(Buffer::filled(2 * len, 0.0))
    }
}

impl Deref for Doubles {
    type Target = [f64];
    fn deref(&self) -> &[f64] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Doubles {
    fn deref_mut(&mut self) -> &mut [f64] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// A fixed number of indices in memory of the same pool.
#[derive(Debug)]
pub(crate) struct Indices(Buffer);

impl Indices {
    /// `len` indices of unspecified value, as [`Buffer::scratch`].
    pub fn scratch(len: usize) -> Self {
        Indices(Buffer::scratch(len))
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Indices(Buffer::filled(len, 0.0))
    }
}

impl Deref for Indices {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Indices {
    fn deref_mut(&mut self) -> &mut [u32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Gives all idle memory back to the operating system.
pub fn trim() {
    if let Ok(mut idle) = IDLE.lock() {
        *idle = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_keeps_its_values_and_is_handed_out_again() {
        for len in [0, 1, 7, 64, 1000, 12_345] {
            let mut b = Buffer::filled(len, 3.5);
            assert_eq!(b.len(), len);
            assert_eq!(b.as_ptr() as usize % ALIGN, 0);
            b.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
            assert!(b.clone().iter().enumerate().all(|(i, v)| *v == i as f32));
        }
        // A length no other test uses, so that only this test's block can come back.
        let first = Buffer::scratch(777_777);
        let address = first.as_ptr() as usize;
        drop(first);
        assert_eq!(Buffer::scratch(777_777).as_ptr() as usize, address);
    }
}
