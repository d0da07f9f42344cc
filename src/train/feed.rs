//! Features on their way to a device, a lot at a time, beside what the device does.
//!
//! ```text
//! host      fill n+1 .............          fill n+2
//! copies               send n+1 ......                  send n+2
//! work      step n .................. take n+1: step n+1 ........
//! ```
//! Threads turn the features of a lot into what the device stores, in host memory that it reads by itself; two [`Upload`]s
//! in turn keep host, bus and device busy at once. What was fed is taken in the same order, by a copy on the device into
//! the place where it is wanted, which is the same for every lot: so a step on it can be a graph. Of 16 pictures of
//! 28 x 28 x 216 features in bf16 the copy reads and writes 5.4 MB each.

use rayon::prelude::*;

use super::FeatureSource;
use crate::device::cuda::{Gpu, Real, SliceMut, Upload};
use crate::error::Result;

/// A way for lots of pictures to a device.
pub(super) struct Feed {
    gpu: Gpu,
    ways: [Upload<Real>; 2],
    pictures: usize,
    /// Values of a picture.
    values: usize,
    /// Lots, counted from the start.
    fed: usize,
    taken: usize,
}

impl Feed {
    /// For lots of at most so many pictures of so many values.
    pub fn new(gpu: &Gpu, pictures: usize, values: usize) -> Result<Self> {
        let way = || Upload::new(gpu, pictures * values);
        Ok(Feed { gpu: gpu.clone(), ways: [way()?, way()?], pictures, values, fed: 0, taken: 0 })
    }

    /// Whether it is for such lots.
    pub fn is_for(&self, pictures: usize, values: usize) -> bool {
        (self.pictures, self.values) == (pictures, values)
    }

    /// Forgets what was fed and not taken.
    pub fn begin(&mut self) {
        self.taken = self.fed;
    }

    /// Whether there is nothing to be taken.
    pub fn is_empty(&self) -> bool {
        self.taken == self.fed
    }

    /// Starts the copy of these pictures; at most two lots wait to be taken.
    pub fn feed(&mut self, features: &dyn FeatureSource, pictures: &[usize]) -> Result<()> {
        let (precision, way) = (self.gpu.precision(), &mut self.ways[self.fed % 2]);
        let bytes = way.fill()?;
        let picture = bytes.len() / self.pictures;
        let to = bytes.par_chunks_exact_mut(picture).zip(pictures);
        to.for_each(|(to, &i)| Real::pack_into(features.get(i), precision, to));
        way.send()?;
        self.fed += 1;
        Ok(())
    }

    /// Copies the lot that was fed first to where it is wanted, when it is there.
    pub fn take(&mut self, to: &mut SliceMut<Real>) -> Result<()> {
        let Feed { gpu, ways, taken, .. } = self;
        ways[*taken % 2].used(|lot| gpu.copy(lot.range(0..to.len()), to))?;
        *taken += 1;
        Ok(())
    }
}
