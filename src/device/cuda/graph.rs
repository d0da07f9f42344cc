//! Work that is recorded once and done again as a whole: a CUDA graph.
//!
//! ```text
//! Gpu::capture(work)   launches, copies and zeroings of `work` -> Vec<Command> -> Driver::build_graph -> Graph
//! Graph::replay()      all of them again, in order, with the arguments and addresses they were recorded with
//! ```
//! The list is made on the host, and nothing runs while it is. The hardware makes one CUDA graph of it, so that the host
//! pays for one launch; the emulated device keeps the list and does it again with all its checks.
//!
//! Memory: what `work` allocates comes from a pool of the graph's own. What it drops can be handed out again within the
//! recording and nowhere else, so the recorded addresses stay valid until the graph is gone, and so is everything that
//! was handed out of it. Arrays from outside that `work` uses must live as long as the graph is replayed; those that it
//! drops stay with the graph.
//!
//! Whatever differs from replay to replay must lie in device memory. A value that goes to the host or comes from there
//! would be the same in every replay, or none at all, so such a transfer is refused.

use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use super::driver::Command;
use super::memory::Pool;
use super::{Gpu, lock};
use crate::error::{Error, Result};

/// What is recorded at present, and by whom: work of other threads is done at once, as ever.
pub(super) struct Recording {
    thread: ThreadId,
    commands: Vec<Command>,
    memory: Arc<GraphMemory>,
}

impl Recording {
    /// The last kernel that was recorded, for messages.
    fn after(&self) -> String {
        let last = self.commands.iter().rev().find_map(|command| match command {
            Command::Launch { kernel, .. } => Some(kernel.name),
            _ => None,
        });
        last.map_or("before any kernel".into(), |name| format!("after the kernel {name}"))
    }
}

/// The memory that a graph works in.
#[derive(Debug)]
pub(super) struct GraphMemory {
    gpu: Gpu,
    pool: Mutex<Pool>,
    /// Address and bytes of all that goes back to the device with the graph.
    owned: Mutex<Vec<(u64, usize)>>,
    /// Memory of other graphs that this one reads.
    others: Mutex<Vec<Arc<GraphMemory>>>,
}

impl GraphMemory {
    fn new(gpu: &Gpu) -> Self {
        GraphMemory { gpu: gpu.clone(), pool: Mutex::default(), owned: Mutex::default(), others: Mutex::default() }
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        if let Some(address) = lock(&self.pool).take(bytes) {
            return Ok(address);
        }
        let address = self.gpu.allocate_shared(bytes)?;
        lock(&self.owned).push((address, bytes));
        Ok(address)
    }

    fn put(&self, address: u64, bytes: usize) {
        // The emulated device tells arrays apart: each keeps a place of its own.
        if self.gpu.0.driver.recycles() {
            lock(&self.pool).put(address, bytes);
        }
    }
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        for (address, bytes) in lock(&self.owned).drain(..) {
            self.gpu.release_shared(address, bytes);
        }
    }
}

/// Work that was recorded, ready to be done again. Made by [`Gpu::capture`].
pub struct Graph {
    gpu: Gpu,
    handle: u64,
    launches: usize,
    transfers: usize,
    /// Outlives the driver's graph.
    memory: Arc<GraphMemory>,
}

impl Graph {
    /// Does the recorded work, in order after everything launched before; does not wait for it.
    ///
    /// # Errors
    /// [`Error::Device`] when the device, or anything launched before, failed, and where a graph is recorded.
    pub fn replay(&self) -> Result<()> {
        self.gpu.outside("a replay of another graph")?;
        self.gpu.checked(|d| d.replay(self.handle))
    }

    /// Kernels that a replay launches.
    pub fn launches(&self) -> usize {
        self.launches
    }

    /// Copies and zeroings of a replay.
    pub fn transfers(&self) -> usize {
        self.transfers
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.gpu.0.driver.drop_graph(self.handle);
    }
}

/// Ends a recording, whatever becomes of it.
struct Recorder<'a>(&'a Gpu);

impl Recorder<'_> {
    fn take(&self) -> Option<Recording> {
        lock(&self.0.0.recording).take()
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        self.take();
    }
}

impl Gpu {
    /// Records what `work` launches, copies and zeroes on this thread, without doing it. Returns what `work` returned
    /// beside the graph: arrays made in it can be read after a replay.
    ///
    /// # Errors
    /// What `work` meets; [`Error::Device`] when it reads, writes or waits, when a graph is being recorded already, or when
    /// the device fails.
    pub fn capture<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
        self.record(Arc::new(GraphMemory::new(self)), work)
    }

    /// [`Self::capture`], with what another graph dropped as memory: both need no more than the larger. A replay of one
    /// spoils what the other leaves, except for the arrays that were handed out of it.
    ///
    /// # Errors
    /// As [`Self::capture`].
    pub fn capture_beside<R>(&self, other: &Graph, work: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
        self.record(other.memory.clone(), work)
    }

    fn record<R>(&self, memory: Arc<GraphMemory>, work: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
        {
            let mut recording = lock(&self.0.recording);
            if let Some(other) = &*recording {
                return Err(refusal(&format!("another recording, {}", other.after())));
            }
            let (thread, memory) = (thread::current().id(), memory.clone());
            *recording = Some(Recording { thread, commands: vec![], memory });
        }
        let recorder = Recorder(self);
        let done = work();
        let commands = recorder.take().map_or(vec![], |recording| recording.commands);
        let done = done?;
        let launches = commands.iter().filter(|c| matches!(c, Command::Launch { .. })).count();
        let transfers = commands.iter().filter(|c| matches!(c, Command::Copy { .. } | Command::Zero { .. })).count();
        let handle = self.checked(|d| d.build_graph(commands))?;
        Ok((Graph { gpu: self.clone(), handle, launches, transfers, memory }, done))
    }

    /// Does a piece of work, or records it.
    pub(super) fn submit(&self, command: Command) -> Result<()> {
        match self.recorded(|recording| recording.commands.push(command.clone())) {
            Some(()) => Ok(()),
            None => self.checked(|d| command.issue(d)),
        }
    }

    /// Refuses what a graph cannot hold while this thread records one.
    pub(super) fn outside(&self, what: &str) -> Result<()> {
        self.recorded(|recording| format!("{what}, {}", recording.after())).map_or(Ok(()), |what| Err(refusal(&what)))
    }

    /// Does `f` if this thread records a graph.
    fn recorded<R>(&self, f: impl FnOnce(&mut Recording) -> R) -> Option<R> {
        let mut recording = lock(&self.0.recording);
        recording.as_mut().filter(|r| r.thread == thread::current().id()).map(f)
    }

    /// Memory of at least `bytes` bytes, and the graph it belongs to where one is recorded.
    pub(super) fn allocate(&self, bytes: usize) -> Result<(u64, Option<Arc<GraphMemory>>)> {
        let Some(memory) = self.recorded(|recording| recording.memory.clone()) else {
            return Ok((self.allocate_shared(bytes)?, None));
        };
        let address = memory.allocate(bytes)?;
        self.recorded(|recording| recording.commands.push(Command::Fresh { at: address, bytes }));
        Ok((address, Some(memory)))
    }

    /// Takes memory back.
    pub(super) fn release(&self, address: u64, bytes: usize, memory: Option<Arc<GraphMemory>>) {
        let kept = self.recorded(|recording| recording.memory.clone());
        match (memory, kept) {
            (Some(memory), Some(kept)) if !Arc::ptr_eq(&memory, &kept) => lock(&kept.others).push(memory),
            (Some(memory), _) => memory.put(address, bytes),
            // What was recorded before may use it.
            (None, Some(kept)) => lock(&kept.owned).push((address, bytes)),
            (None, None) => self.release_shared(address, bytes),
        }
    }
}

/// A bug of the caller: the work cannot be recorded.
fn refusal(what: &str) -> Error {
    Error::Device {
        what: format!("a graph of the device cannot hold {what}"),
        help: "this is a fault of the program: please report it".into(),
    }
}
