//! Smoothing and scoring where the raw maps are: `kernels/image_score.cu`.
//!
//! Protocols that enlarge the map once, smooth it by a mean and take the largest mean have kernels; `official` is one. The
//! Gaussian of the others, and their share of the largest values, stay on the host: they are for comparisons of figures,
//! whose pixels go there anyway.

use super::{MapSize, Pool, Protocol, Smooth};
use crate::device::cuda::{DeviceVec, Gpu, Grid, Slice, launch};
use crate::error::Result;

/// Bytes of shared memory that a block may use.
const SHARED: usize = 40 << 10;
/// Most rows of a map that a block has: enough for the rows above and below, which it reads too, not to dominate.
const MOST_ROWS: usize = 16;

/// A protocol that has kernels, for pictures of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceProtocol {
    /// Rows and columns of a smoothed map.
    pub side: usize,
    window: usize,
    pool: usize,
}

/// What the kernels leave on the device.
pub struct DeviceScores {
    /// Smoothed maps `[N, side, side]`.
    pub maps: DeviceVec<f32>,
    /// Score of the picture and largest value of its map, `[N, 2]`.
    pub found: DeviceVec<f32>,
}

impl Protocol {
    /// How maps of pictures prepared at `prepared` x `prepared` are scored on a device; `None` where the host does it.
    pub fn on_device(&self, prepared: usize) -> Option<DeviceProtocol> {
        let (Smooth::Mean(window), Pool::LargestMean(pool)) = (self.smooth, self.pool) else { return None };
        let side = match self.map {
            MapSize::Prepared => prepared,
            MapSize::Enlarged(side) => side,
            MapSize::Resampled(_) => return None,
        };
        let fits = self.check().is_ok() && side > 0 && window < 1 << 10 && row_bytes(side) + 8 * (1 + window) <= SHARED;
        fits.then_some(DeviceProtocol { side, window, pool: pool.min(side) })
    }
}

fn row_bytes(side: usize) -> usize {
    8 * side
}

impl DeviceProtocol {
    /// Scores raw maps `[N, h, w]`. Sums run in f64: a value is the one of [`Protocol::score`] but for two roundings of f32.
    ///
    /// # Errors
    /// What the device refuses.
    ///
    /// # Panics
    /// If the maps are not a multiple of `h * w` values.
    pub fn score(&self, gpu: &Gpu, raw: Slice<f32>, [h, w]: [usize; 2]) -> Result<DeviceScores> {
        assert!(raw.len().is_multiple_of(h * w), "{} values are no maps of {h}x{w}", raw.len());
        let (n, DeviceProtocol { side, window, pool }) = (raw.len() / (h * w), *self);
        let band = ((SHARED - 8 * window) / (row_bytes(side) + 8)).clamp(1, MOST_ROWS);
        let (places, shared) = (side - pool + 1, row_bytes(side) * band);
        let (bands, window_bands) = (side.div_ceil(band), places.div_ceil(band));
        let (mut maps, mut found) = (gpu.scratch(n * side * side)?, gpu.scratch(n * 2)?);
        let (mut peaks, mut largest) = (gpu.scratch(n * bands)?, gpu.scratch(n * window_bands)?);
        let grid = Grid::blocks2(bands, n).shared(shared + 8 * (band + window));
        launch::smooth_maps(gpu, grid, raw, &mut maps.slice_mut(), &mut peaks.slice_mut(), h, w, side, window, band)?;
        let grid = Grid::blocks2(window_bands, n).shared(shared);
        launch::largest_windows(gpu, grid, maps.slice(), &mut largest.slice_mut(), side, pool, band)?;
        launch::image_scores(
            gpu,
            Grid::threads(n),
            largest.slice(),
            peaks.slice(),
            &mut found.slice_mut(),
            n,
            window_bands,
            bands,
            pool,
        )?;
        Ok(DeviceScores { maps, found })
    }
}
