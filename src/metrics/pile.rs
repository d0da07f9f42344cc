//! A list to be sorted that may be larger than memory.
//!
//! Up to a budget it is a vector. Beyond it, sorted runs are appended to an unlinked temporary file, which no crash can
//! leave behind; at the end they are merged into a second one, which is mapped. Sorted is sorted: both ways give the same
//! list to the bit.

use super::radix::{self, Digits};
use crate::error::{Error, Result};
use memmap2::Mmap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Deref;

/// Bytes a list may hold in memory. 64 million scores: every class of the public sets stays below it, and sorting, which
/// takes as much again, still fits a small machine.
pub(super) const BUDGET: usize = 256 << 20;

/// Values collected in any order.
#[derive(Debug)]
pub(super) struct Pile<T> {
    held: Vec<T>,
    budget: usize,
    spilled: Option<Runs>,
}

/// Sorted runs, one after the other.
#[derive(Debug)]
struct Runs {
    file: File,
    lengths: Vec<usize>,
}

/// The values of a pile in ascending order.
#[derive(Debug)]
pub(super) enum Sorted<T> {
    /// In memory.
    Held(Vec<T>),
    /// In an unlinked file.
    Mapped(Mmap),
}

impl<T: Digits> Pile<T> {
    /// An empty pile that holds at most about `budget` bytes in memory.
    pub(super) fn new(budget: usize) -> Self {
        Pile { held: Vec::new(), budget, spilled: None }
    }

    /// Makes sure that what is added next stays within the budget, or that the pile is empty.
    ///
    /// # Errors
    /// [`Error::Io`] when the temporary file cannot be written.
    pub(super) fn make_room(&mut self, more: usize) -> Result<()> {
        if self.held.is_empty() || (self.held.len() + more) * size_of::<T>() <= self.budget {
            return Ok(());
        }
        self.spill()
    }

    /// Where to add values, after [`Self::make_room`].
    pub(super) fn held(&mut self) -> &mut Vec<T> {
        &mut self.held
    }

    fn spill(&mut self) -> Result<()> {
        if self.spilled.is_none() {
            self.spilled =
                Some(Runs { file: tempfile::tempfile().map_err(|e| refused("create", &e))?, lengths: vec![] });
        }
        let sorted = radix::sort(std::mem::take(&mut self.held));
        if let Some(runs) = &mut self.spilled {
            write(&runs.file, |out| out.write_all(bytemuck::cast_slice(&sorted)))?;
            runs.lengths.push(sorted.len());
        }
        self.held = sorted;
        self.held.clear();
        Ok(())
    }

    /// Sorts.
    ///
    /// # Errors
    /// [`Error::Io`] when a temporary file cannot be written or mapped.
    pub(super) fn sort(mut self) -> Result<Sorted<T>> {
        if self.spilled.is_none() {
            return Ok(Sorted::Held(radix::sort(self.held)));
        }
        self.spill()?;
        let Pile { spilled, held, .. } = self;
        drop(held);
        let Some(runs) = spilled else { return Ok(Sorted::Held(vec![])) };
        let all = map(&runs.file)?;
        let mut rest: &[T] = bytemuck::cast_slice(&all);
        let mut slices = Vec::with_capacity(runs.lengths.len());
        for length in runs.lengths {
            let (run, others) = rest.split_at(length);
            slices.push(run);
            rest = others;
        }
        let file = tempfile::tempfile().map_err(|e| refused("create", &e))?;
        write(&file, |out| merge(slices, |part| out.write_all(bytemuck::cast_slice(part))))?;
        Ok(Sorted::Mapped(map(&file)?))
    }
}

impl<T: Digits> Deref for Sorted<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Sorted::Held(values) => values,
            Sorted::Mapped(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}

/// Hands over the values of sorted `runs` in ascending order, in pieces as long as one run stays the smallest.
fn merge<T: Ord + Copy>(mut runs: Vec<&[T]>, mut put: impl FnMut(&[T]) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut heads: BinaryHeap<_> =
        runs.iter().enumerate().filter_map(|(run, values)| Some(Reverse((*values.first()?, run)))).collect();
    while let Some(Reverse((_, run))) = heads.pop() {
        let values = runs[run];
        let end = match heads.peek() {
            Some(&Reverse((next, _))) => values.partition_point(|&value| value <= next),
            None => values.len(),
        };
        put(&values[..end])?;
        runs[run] = &values[end..];
        heads.extend(runs[run].first().map(|&head| Reverse((head, run))));
    }
    Ok(())
}

fn write(file: &File, put: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    put(&mut out).and_then(|()| out.flush()).map_err(|e| refused("write", &e))
}

fn map(file: &File) -> Result<Mmap> {
    // SAFETY: the file has no name, so nobody else can open and shorten it, and it is not written any more.
    unsafe { Mmap::map(file) }.map_err(|e| refused("map", &e))
}

/// The operating system's refusal of a temporary file, whose folder the user can choose.
fn refused(action: &'static str, source: &std::io::Error) -> Error {
    let help = "scores that do not fit in memory go to a temporary file: make room there, or name a folder on a larger \
                disk by TMPDIR";
    let path = std::env::temp_dir();
    Error::Io { action, path, cause: source.to_string(), help: help.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn filled(values: &[u64], budget: usize) -> Sorted<u64> {
        let mut pile = Pile::new(budget);
        for part in values.chunks(700) {
            pile.make_room(part.len()).unwrap();
            pile.held().extend_from_slice(part);
        }
        pile.sort().unwrap()
    }

    #[test]
    fn spilled_and_held_are_the_same_list() {
        let mut rng = Rng::new(5, 0);
        for levels in [3, 1000, 1 << 30] {
            let values: Vec<u64> = (0..20_000).map(|_| (rng.below(levels) as u64) << 32 | 7).collect();
            let held = filled(&values, usize::MAX);
            assert!(matches!(held, Sorted::Held(_)) && held.is_sorted());
            for budget in [1, 6_000, 100_000] {
                let mapped = filled(&values, budget);
                assert!(matches!(mapped, Sorted::Mapped(_)) && *mapped == *held, "{levels} levels, {budget} bytes");
            }
        }
        assert!(filled(&[], 0).is_empty());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_says_what_to_do() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut pile: Pile<u32> = Pile::new(16);
        pile.held().extend([3, 1, 2]);
        pile.spilled = Some(Runs { file: full, lengths: vec![] });
        let error = pile.make_room(2).unwrap_err();
        assert!(matches!(error, Error::Io { action: "write", .. }));
        assert!(error.to_string().contains("TMPDIR"), "{error}");
    }
}
