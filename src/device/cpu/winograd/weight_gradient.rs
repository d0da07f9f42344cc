//! The gradient of the weights: for each of the 36 places `[ci, co]`, summed over the tiles of one stretch after the other.

use rayon::prelude::*;

use super::super::conv::ConvGeometry;
use super::super::fetch::prefetch;
use super::super::microkernel::Tile;
use super::super::rows::{first_chunks, par_parts, with_scratch};
use super::super::simd::Simd;
use super::transform::{LANES, PRODUCTS, data_tiles, gradient_tiles, weight_sums};
use super::{Cut, Places};

/// Rows of `ci` of one task of the last transform.
const ROWS: usize = 8;

/// [`conv2d_backward_weight`](super::super::conv2d_backward_weight).
pub fn backward_weight_at(level: Simd, g: &ConvGeometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (tile, size) = (Tile::of(level.into()), [g.out_h(), g.out_w()]);
    let cut = Cut::new(g.n, size);
    let input = cut.side(x, [g.h, g.w], g.ci, [0, 2].map(|i| -(g.pad[i] as isize)));
    let output = cut.side(dy, size, g.co, [0, 0]);
    let pitch = g.co.next_multiple_of(LANES);
    let place = g.ci.next_multiple_of(tile.mr) * pitch;
    let most = cut.stretches().map(|rows| rows.len()).max().unwrap_or(0);
    let room = [g.ci, g.co].map(|channels| PRODUCTS * Places::new(&cut, most, channels).stride());
    with_scratch(PRODUCTS * place, |sums| {
        with_scratch(room[0], |x_scratch| {
            with_scratch(room[1], |dy_scratch| {
                for rows in cut.stretches() {
                    let [of_x, of_dy] = [g.ci, g.co].map(|channels| Places::new(&cut, rows.len(), channels));
                    let x = &mut x_scratch[..PRODUCTS * of_x.stride()];
                    let dy = &mut dy_scratch[..PRODUCTS * of_dy.stride()];
                    of_x.fill(rows.clone(), x, |row, out| data_tiles(level, &input, row, of_x.pitch, out));
                    of_dy.fill(rows.clone(), dy, |row, out| gradient_tiles(level, &output, row, of_dy.pitch, out));
                    let operands = x.par_chunks_exact(of_x.stride()).zip(dy.par_chunks_exact(of_dy.stride()));
                    sums.par_chunks_exact_mut(place).zip(operands).for_each(|(sums, (x, dy))| {
                        let (pitches, channels) = ([of_x.pitch, pitch], [g.ci, g.co]);
                        add_product(tile, of_x.tiles(), [x, dy], pitches, channels, sums, rows.start > 0);
                    });
                }
            });
        });
        let sums = &*sums;
        let taps: [_; 9] = first_chunks(dw, g.ci * g.co);
        par_parts(0..g.ci.div_ceil(ROWS), taps, &|i| i * ROWS * g.co, &|i, mut taps| {
            for row in 0..taps[0].len() / g.co {
                let at = (i * ROWS + row) * pitch;
                let products: [_; PRODUCTS] = std::array::from_fn(|p| &sums[p * place + at..][..pitch]);
                let mut dw = taps.each_mut().map(|tap| &mut tap[row * g.co..(row + 1) * g.co]);
                weight_sums(level, &products, &mut dw);
            }
        });
    });
}

/// `sums: [ci, pitch] (+)= xᵗ · dy` with `x: [tiles, ci]` and `dy: [tiles, co]`, rows `pitches` apart.
fn add_product(
    tile: Tile,
    tiles: usize,
    [x, dy]: [&[f32]; 2],
    [x_pitch, pitch]: [usize; 2],
    [ci, co]: [usize; 2],
    sums: &mut [f32],
    accumulate: bool,
) {
    let Tile { mr, nr, lanes, .. } = tile;
    let (height, width) = (ci.next_multiple_of(mr), co.next_multiple_of(lanes));
    with_scratch(tiles * (height + width), |packed| {
        let (a, b) = packed.split_at_mut(tiles * height);
        pack(tiles, x, x_pitch, height, mr, a);
        pack(tiles, dy, pitch, width, nr, b);
        for (a, sums) in a.chunks_exact(tiles * mr).zip(sums.chunks_exact_mut(mr * pitch)) {
            for (j, panel) in b.chunks(tiles * nr).enumerate() {
                for sums in sums.chunks_exact(pitch) {
                    prefetch(&sums[j * nr..width.min((j + 1) * nr)]);
                }
                // SAFETY: products of f32 need no registers made ready.
                unsafe { tile.run(panel.len() / tiles, a, panel, &mut sums[j * nr..], pitch, accumulate) };
            }
        }
    });
}

/// The first `width` columns of `from: [tiles, pitch]` as panels of `columns`, read in the order of memory.
fn pack(tiles: usize, from: &[f32], pitch: usize, width: usize, columns: usize, panels: &mut [f32]) {
    for (t, row) in from.chunks_exact(pitch).take(tiles).enumerate() {
        for (j, part) in row[..width].chunks(columns).enumerate() {
            let to = &mut panels[j * tiles * columns + t * part.len()..][..part.len()];
            // One move instead of a call for the usual widths.
            if let (Some(to), Some(part)) = (to.first_chunk_mut::<8>(), part.first_chunk::<8>())
                && columns == 8
            {
                *to = *part;
            } else {
                to.copy_from_slice(part);
            }
        }
    }
}
