//! Packed forms that are not made from a file: of tensors (parameters after a step), and of a packed matrix transposed, which
//! is what d_x = d_y W multiplies with.
//!
//! Both are transpositions of blocks of 32 x 32 that are contiguous on one side at least, so they run from cache to cache.

use super::matrix::{PANEL, Packed, map_lines, pairs_of_floats, panels_per_task};
use super::pool::Pool;
use super::simd::{LANES, Line, PairLine};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::tensor::Dtype;
use bytemuck::{cast_slice, cast_slice_mut};

/// The panels of tensors with `cols` columns, stacked.
pub(super) fn pack_tensors(backend: &CpuBackend, parts: &[&Tensor], rows: usize, cols: usize) -> Result<Packed> {
    let lines: Vec<&[f32]> = parts.iter().flat_map(|part| part.data.chunks_exact(cols.max(1))).collect();
    let panels = rows.div_ceil(PANEL);
    match backend.compute {
        Dtype::Bf16 => {
            let pairs = cols.div_ceil(2);
            let mut memory = map_lines(2 * panels * pairs)?;
            let out = cast_slice_mut::<u8, [PairLine; 2]>(&mut memory);
            backend.pool.chunks(out, pairs * panels_per_task(pairs), |first, out| {
                let mut words = [0; LANES];
                for (panel, out) in out.chunks_mut(pairs).enumerate() {
                    let start = (first / pairs + panel) * PANEL;
                    // Sixteen pairs of every row before the next sixteen: what is written stays in L1.
                    for (block, out) in out.chunks_mut(LANES).enumerate() {
                        for (j, row) in lines[start..].iter().take(PANEL).enumerate() {
                            let row = &row[2 * LANES * block..];
                            pairs_of_floats(&row[..row.len().min(2 * LANES)], &mut words);
                            for (out, &word) in out.iter_mut().zip(&words) {
                                out[j / LANES].0[j % LANES] = word;
                            }
                        }
                    }
                }
            });
            Ok(Packed::Bf16(memory))
        }
        Dtype::F32 | Dtype::F16 => {
            let mut memory = map_lines(2 * panels * cols)?;
            let out = cast_slice_mut::<u8, [Line; 2]>(&mut memory);
            backend.pool.chunks(out, cols * panels_per_task(cols), |first, out| {
                for (panel, out) in out.chunks_mut(cols).enumerate() {
                    let start = (first / cols + panel) * PANEL;
                    for (block, out) in out.chunks_mut(LANES).enumerate() {
                        for (j, row) in lines[start..].iter().take(PANEL).enumerate() {
                            for (out, &x) in out.iter_mut().zip(&row[LANES * block..]) {
                                out[j / LANES].0[j % LANES] = x;
                            }
                        }
                    }
                }
            });
            Ok(Packed::F32(memory))
        }
    }
}

/// Row `row` of a packed matrix with `out.len()` columns: exact for f32, rounded as the matrix is for bf16.
pub(super) fn unpack_row(packed: &Packed, row: usize, out: &mut [f32]) {
    let (panel, half, lane) = (row / PANEL, row % PANEL / LANES, row % LANES);
    match packed {
        Packed::F32(lines) => {
            let lines = &cast_slice::<u8, [Line; 2]>(lines)[panel * out.len()..];
            out.iter_mut().zip(lines).for_each(|(out, line)| *out = line[half].0[lane]);
        }
        Packed::Bf16(lines) => {
            let lines = &cast_slice::<u8, [PairLine; 2]>(lines)[panel * out.len().div_ceil(2)..];
            for (out, line) in out.chunks_mut(2).zip(lines) {
                let word = line[half].0[lane];
                for (out, bits) in out.iter_mut().zip([word << 16, word & 0xffff_0000]) {
                    *out = f32::from_bits(bits);
                }
            }
        }
    }
}

/// The panels of the transpose of a packed [rows, cols] matrix: [cols, rows].
pub(super) fn transposed(packed: &Packed, rows: usize, cols: usize, pool: &Pool) -> Result<Packed> {
    let panels = cols.div_ceil(PANEL);
    match packed {
        Packed::F32(lines) => {
            let lines = cast_slice::<u8, [Line; 2]>(lines);
            let mut memory = map_lines(2 * panels * rows)?;
            let out = cast_slice_mut::<u8, [Line; 2]>(&mut memory);
            pool.chunks(out, rows * panels_per_task(rows), |first, out| {
                for (panel, out) in out.chunks_mut(rows).enumerate() {
                    let start = (first / rows + panel) * PANEL;
                    for (block, out) in out.chunks_mut(PANEL).enumerate() {
                        let source = &lines[block * cols + start..][..(cols - start).min(PANEL)];
                        for (j, line) in source.iter().enumerate() {
                            let values = line.iter().flat_map(|half| half.0);
                            for (out, x) in out.iter_mut().zip(values) {
                                out[j / LANES].0[j % LANES] = x;
                            }
                        }
                    }
                }
            });
            Ok(Packed::F32(memory))
        }
        Packed::Bf16(lines) => {
            let lines = cast_slice::<u8, [PairLine; 2]>(lines);
            let (pairs, out_pairs) = (cols.div_ceil(2), rows.div_ceil(2));
            let mut memory = map_lines(2 * panels * out_pairs)?;
            let out = cast_slice_mut::<u8, [PairLine; 2]>(&mut memory);
            pool.chunks(out, out_pairs * panels_per_task(out_pairs), |first, out| {
                for (panel, out) in out.chunks_mut(out_pairs).enumerate() {
                    let start = (first / out_pairs + panel) * PANEL;
                    for (block, out) in out.chunks_mut(LANES).enumerate() {
                        let source = &lines[block * pairs + start / 2..][..(pairs - start / 2).min(LANES)];
                        for (pair, line) in source.iter().enumerate() {
                            // Columns 2 pair and 2 pair + 1 of rows 2 i and 2 i + 1: a transposition of two by two.
                            let (half, lane) = (pair / (LANES / 2), 2 * pair % LANES);
                            for (i, out) in out.iter_mut().enumerate() {
                                let words = &line[i / (LANES / 2)].0;
                                let (a, b) = (words[2 * i % LANES], words[2 * i % LANES + 1]);
                                out[half].0[lane] = (a & 0xffff) | (b << 16);
                                out[half].0[lane + 1] = (a >> 16) | (b & 0xffff_0000);
                            }
                        }
                    }
                }
            });
            Ok(Packed::Bf16(memory))
        }
    }
}
