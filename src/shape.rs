//! Sizes of a tensor, outermost first. Channels are always last and memory is always contiguous, so a shape is all
//! there is to know about a layout.

use std::fmt;
use std::ops::Deref;

/// The global grid, `[R, R, H, W, C]`, is the largest rank in use.
pub const MAX_RANK: usize = 5;

/// Up to [`MAX_RANK`] sizes, copied by value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    sizes: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// A shape of the given sizes.
    ///
    /// # Panics
    /// If there are more than [`MAX_RANK`] sizes: shapes come from code, not from files.
    pub fn new(sizes: &[usize]) -> Self {
        assert!(sizes.len() <= MAX_RANK, "a shape has at most {MAX_RANK} sizes, got {sizes:?}");
        let mut s = Shape { sizes: [1; MAX_RANK], rank: sizes.len() };
        s.sizes[..sizes.len()].copy_from_slice(sizes);
        s
    }

    /// The sizes of both, one after the other; `None` when they are more than [`MAX_RANK`].
    pub fn joined(outer: &[usize], inner: &[usize]) -> Option<Self> {
        let mut s = Shape { sizes: [1; MAX_RANK], rank: outer.len() + inner.len() };
        let sizes = s.sizes.get_mut(..s.rank)?;
        sizes[..outer.len()].copy_from_slice(outer);
        sizes[outer.len()..].copy_from_slice(inner);
        Some(s)
    }

    /// Number of values.
    pub fn numel(&self) -> usize {
        self.iter().product()
    }

    /// Size of the last dimension, `1` for a scalar.
    pub fn channels(&self) -> usize {
        self.last().copied().unwrap_or(1)
    }

    /// Number of contiguous rows of [`Self::channels`] values: the product of all sizes but the last.
    pub fn rows(&self) -> usize {
        self[..self.rank.saturating_sub(1)].iter().product()
    }

    /// `(n, h, w, c)` of an activation, or `None` when the rank is not four.
    pub fn nhwc(&self) -> Option<(usize, usize, usize, usize)> {
        (self.rank == 4).then(|| (self.sizes[0], self.sizes[1], self.sizes[2], self.sizes[3]))
    }

    /// This shape with another last size.
    pub fn with_channels(&self, channels: usize) -> Self {
        let mut s = *self;
        s.sizes[s.rank - 1] = channels;
        s
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(sizes: [usize; N]) -> Self {
        Shape::new(&sizes)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_channels_cover_every_value() {
        for s in [Shape::from([]), [7].into(), [2, 3].into(), [2, 3, 4, 5].into(), [4, 4, 3, 2, 6].into()] {
            assert_eq!(s.rows() * s.channels(), s.numel(), "{s}");
        }
        assert_eq!(Shape::from([2, 3, 4, 5]).nhwc(), Some((2, 3, 4, 5)));
        assert_eq!(Shape::from([2, 3]).nhwc(), None);
        assert_eq!(Shape::from([2, 3, 4]).with_channels(9), [2, 3, 9].into());
        assert_ne!(Shape::from([2]), Shape::from([2, 1]));
    }
}
