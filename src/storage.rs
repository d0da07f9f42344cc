//! Where the values of a tensor lie: in host memory or on a device.

use std::borrow::Cow;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex};

use crate::buffer::Buffer;
use crate::device::cpu;
use crate::device::cuda::{DeviceVec, ElementKind, Gpu, Grid, Real, Values, ValuesMut, launch};
use crate::error::{Error, Result};
use crate::op::List;

/// An owned array of values.
#[derive(Debug)]
pub enum Storage {
    /// In host memory, f32.
    Host(Buffer),
    /// On a device, activations or their gradients: stored as the precision of the run has it.
    Reals(DeviceVec<Real>),
    /// On a device, parameters, their gradients, statistics or a loss: f32 in every precision.
    Floats(DeviceVec<f32>),
}

impl Storage {
    /// Memory of unspecified content on a device.
    ///
    /// # Errors
    /// As [`Gpu::scratch`].
    pub fn scratch(gpu: &Gpu, in_f32: bool, len: usize) -> Result<Self> {
        Ok(if in_f32 { Storage::Floats(gpu.scratch(len)?) } else { Storage::Reals(gpu.scratch(len)?) })
    }

    /// A copy of host values on a device.
    ///
    /// # Errors
    /// As [`Gpu::scratch`].
    pub fn upload(gpu: &Gpu, in_f32: bool, values: &[f32]) -> Result<Self> {
        Ok(if in_f32 { Storage::Floats(gpu.upload(values)?) } else { Storage::Reals(gpu.upload(values)?) })
    }

    /// `len` copies of `value`, where and as `self` is stored.
    ///
    /// # Errors
    /// As [`Gpu::scratch`].
    pub fn filled_like(&self, len: usize, value: f32) -> Result<Self> {
        match self.gpu() {
            None => Ok(Storage::Host(Buffer::filled(len, value))),
            Some(gpu) => {
                let mut new = Storage::scratch(gpu, self.is_f32(), len)?;
                match &mut new {
                    Storage::Floats(v) if value == 0.0 => gpu.zero(&mut v.slice_mut())?,
                    Storage::Reals(v) if value == 0.0 => gpu.zero(&mut v.slice_mut())?,
                    Storage::Floats(v) => launch::fill_floats(gpu, Grid::threads(len), &mut v.slice_mut(), value, len)?,
                    Storage::Reals(v) => launch::fill_reals(gpu, Grid::threads(len), &mut v.slice_mut(), value, len)?,
                    Storage::Host(_) => {}
                }
                Ok(new)
            }
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Storage::Host(b) => b.len(),
            Storage::Reals(v) => v.len(),
            Storage::Floats(v) => v.len(),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device it lies on; `None` for host memory.
    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Storage::Host(_) => None,
            Storage::Reals(v) => Some(v.gpu()),
            Storage::Floats(v) => Some(v.gpu()),
        }
    }

    /// Whether its values are f32 in every precision.
    pub fn is_f32(&self) -> bool {
        !matches!(self, Storage::Reals(_))
    }

    /// The values in host memory.
    ///
    /// # Panics
    /// If they lie on a device.
    pub fn host(&self) -> &[f32] {
        match self {
            Storage::Host(b) => b,
            _ => panic!("the values lie on a device: read them with to_host"),
        }
    }

    /// The values in host memory, to be changed.
    ///
    /// # Panics
    /// If they lie on a device.
    pub fn host_mut(&mut self) -> &mut [f32] {
        match self {
            Storage::Host(b) => b,
            _ => panic!("the values lie on a device: change them there"),
        }
    }

    /// A window of `len` values from value `offset` on, on the device.
    ///
    /// # Panics
    /// If the values lie in host memory, or the window reaches past the end.
    pub fn values(&self, offset: usize, len: usize) -> Values<'_> {
        match self {
            Storage::Reals(v) => v.slice().range(offset..offset + len).into(),
            Storage::Floats(v) => v.slice().range(offset..offset + len).into(),
            Storage::Host(_) => panic!("the values lie in host memory"),
        }
    }

    /// All values, to be written on the device.
    ///
    /// # Panics
    /// If the values lie in host memory.
    pub fn values_mut(&mut self) -> ValuesMut<'_> {
        match self {
            Storage::Reals(v) => v.slice_mut().into(),
            Storage::Floats(v) => v.slice_mut().into(),
            Storage::Host(_) => panic!("the values lie in host memory"),
        }
    }

    /// A copy of a window in host memory. On a device this waits for everything launched before.
    ///
    /// # Errors
    /// [`Error::Device`] when the device, or anything launched before, failed.
    pub fn read(&self, offset: usize, len: usize) -> Result<Buffer> {
        let gpu = match self {
            Storage::Host(b) => return Ok(b[offset..offset + len].into()),
            Storage::Reals(v) => v.gpu(),
            Storage::Floats(v) => v.gpu(),
        };
        let values = self.values(offset, len);
        let host = match values.kind() {
            ElementKind::Real => gpu.read(values.reals())?,
            _ => gpu.read(values.floats())?,
        };
        Ok(host[..].into())
    }

    /// Writes `from` over the values from `offset` on.
    ///
    /// # Errors
    /// [`Error::Shape`] when the two are stored differently, [`Error::Device`] when the device fails.
    pub fn write(&mut self, offset: usize, from: &Storage) -> Result<()> {
        match (self, from) {
            (Storage::Host(to), Storage::Host(from)) => {
                to[offset..offset + from.len()].copy_from_slice(from);
                Ok(())
            }
            (Storage::Floats(to), Storage::Floats(from)) => {
                let part = offset..offset + from.len();
                from.gpu().copy(from.slice(), &mut to.slice_mut().range_mut(part))
            }
            _ => Err(mismatch()),
        }
    }

    /// Windows of an array of f32 on a device, to be written.
    ///
    /// # Panics
    /// If the values are something else, a window reaches past the end, or two overlap.
    pub fn windows_mut(&mut self, windows: &[Option<Range<usize>>]) -> List<Option<ValuesMut<'_>>> {
        let Storage::Floats(all) = self else { panic!("the values are not f32 on a device") };
        all.parts_mut(windows).into_iter().map(|w| w.map(Into::into)).collect()
    }

    /// `self += other`.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn add_assign(&mut self, other: &Storage) -> Result<()> {
        self.add_at(0, other)
    }

    /// Adds `other` to the values from `offset` on.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn add_at(&mut self, offset: usize, other: &Storage) -> Result<()> {
        let (n, part) = (other.len(), offset..offset + other.len());
        // A thread of the kernels adds eight values.
        let grid = Grid::threads(n.div_ceil(8));
        match (self, other) {
            (Storage::Host(sum), Storage::Host(x)) => {
                cpu::add_assign(&mut sum[part], x);
                Ok(())
            }
            (Storage::Reals(sum), Storage::Reals(x)) => {
                launch::add_assign_reals(x.gpu(), grid, x.slice(), &mut sum.slice_mut().range_mut(part), n)
            }
            (Storage::Floats(sum), Storage::Floats(x)) => {
                launch::add_assign_floats(x.gpu(), grid, x.slice(), &mut sum.slice_mut().range_mut(part), n)
            }
            _ => Err(mismatch()),
        }
    }

    /// All values in host memory: borrowed where they are there, read where they lie on a device.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn on_host(&self) -> Result<Cow<'_, [f32]>> {
        match self {
            Storage::Host(b) => Ok(Cow::Borrowed(b)),
            _ => Ok(Cow::Owned(self.read(0, self.len())?.to_vec())),
        }
    }
}

/// Storage with several owners, which counts them in memory that is recycled as the values are: a training step makes hundreds.
#[derive(Clone, Debug)]
pub struct Shared(Option<Arc<Option<Storage>>>);

/// Counts without a storage, each with one owner.
static IDLE: Mutex<Vec<Arc<Option<Storage>>>> = Mutex::new(Vec::new());

impl Shared {
    /// Shares `storage`, with nobody yet.
    pub fn new(storage: Storage) -> Self {
        let idle = IDLE.lock().expect("no panic while the lock is held").pop();
        let mut shared = Shared(Some(idle.unwrap_or_default()));
        *shared.0.as_mut().and_then(Arc::get_mut).expect("an idle count has one owner") = Some(storage);
        shared
    }

    /// The storage, to be changed; `None` while it has other owners.
    pub fn get_mut(&mut self) -> Option<&mut Storage> {
        Arc::get_mut(self.0.as_mut()?)?.as_mut()
    }
}

impl Deref for Shared {
    type Target = Storage;
    fn deref(&self) -> &Storage {
        self.0.as_deref().and_then(Option::as_ref).expect("present until the last owner drops it")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(mut count) = self.0.take() else { return };
        // Of two owners that drop it at once neither may find itself the last: then the count is freed, not kept.
        if let Some(storage) = Arc::get_mut(&mut count) {
            drop(storage.take());
            if let Ok(mut idle) = IDLE.lock() {
                idle.push(count);
            }
        }
    }
}

/// Two arrays that should be stored alike are not: a bug of the caller.
fn mismatch() -> Error {
    Error::Shape { op: "storage", what: "both must lie on one device, stored alike".into() }
}
