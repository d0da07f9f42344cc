//! Who reads which cell of a table: the way back of `grid_sample` and `entry_read`. Their gradients are gathered cell by cell
//! and not scattered reader by reader, so that the order of the sums does not depend on the number of threads.

use crate::buffer::Indices;

/// The readings of each cell, in their order: sorted by counting.
pub(super) struct Readers {
    /// Where the readings of each cell end, and those of the next begin.
    ends: Indices,
    readings: Indices,
}

impl Readers {
    /// From the cell of each of at most `most` readings, or `None` for a reading outside the table.
    pub fn new(cells: usize, most: usize, read: impl Iterator<Item = Option<usize>> + Clone) -> Self {
        let (mut ends, mut readings) = (Indices::zeros(cells), Indices::scratch(most));
        for cell in read.clone().flatten() {
            ends[cell] += 1;
        }
        // From the number of readings to where they begin; filling moves this to where they end.
        let mut begin = 0;
        for end in ends.iter_mut() {
            (*end, begin) = (begin, begin + *end);
        }
        for (i, cell) in read.enumerate().filter_map(|(i, cell)| Some((i, cell?))) {
            readings[ends[cell] as usize] = i as u32;
            ends[cell] += 1;
        }
        Readers { ends, readings }
    }

    /// The readings of a cell.
    pub fn of(&self, cell: usize) -> impl Iterator<Item = usize> {
        let begin = if cell == 0 { 0 } else { self.ends[cell - 1] };
        self.readings[begin as usize..self.ends[cell] as usize].iter().map(|&i| i as usize)
    }
}
