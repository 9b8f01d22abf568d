//! Packed forms that are not made from a file: of tensors (parameters that are trained), and transposes, which are what d_x = d_y W
//! multiplies with: of tensors by copying slabs of 32 columns, of a packed matrix, like the form of tensors that is not transposed,
//! square by square of 16 x 16 words, from cache to cache.

use super::CpuBackend;
use super::gemm::{Form, pack_line};
use super::matrix::{PANEL, Packed, panels_per_task};
use super::pack_columns::{Factors, PANEL_LINES};
use super::simd::{Kernel, LANES, Line, PairLine, Simd};
use crate::error::Result;
use crate::tensor::Dtype;
use bytemuck::{cast_slice, cast_slice_mut};
use std::ops::Range;

/// The panels of `rows` of `cols` values.
pub(super) fn pack_rows(backend: &CpuBackend, rows: &[&[f32]], cols: usize) -> Result<Packed> {
    let pairs = backend.compute == Dtype::Bf16;
    let words = if pairs { cols.div_ceil(2) } else { cols };
    let mut memory = backend.spare.lend(2 * rows.len().div_ceil(PANEL) * words)?;
    let out = cast_slice_mut::<u8, [PairLine; 2]>(&mut memory);
    backend.pool.chunks(out, words.max(1) * panels_per_task(words), |first, out| {
        let form = if pairs { Form::Pairs } else { Form::F32 };
        let kernel = PackRows { rows: &rows[first / words * PANEL..], form, out, words };
        if pairs { backend.isa.run_dot(kernel) } else { backend.isa.run(kernel) }
    });
    Ok(if pairs { Packed::Bf16(memory) } else { Packed::F32(memory) })
}

/// The panels of the transpose of `rows` of `cols` values.
pub(super) fn pack_transposed(backend: &CpuBackend, rows: &[&[f32]], cols: usize) -> Result<Packed> {
    let pairs = backend.compute == Dtype::Bf16;
    let factors = if pairs { Factors::Pairs } else { Factors::F32 };
    let words = rows.len().div_ceil(factors.rows_a_word());
    let mut memory = backend.spare.lend(PANEL_LINES * cols.div_ceil(PANEL) * words)?;
    let panel = PANEL_LINES * words.max(1);
    backend.pool.chunks(cast_slice_mut(&mut memory), panel * panels_per_task(words), |first, out: &mut [PairLine]| {
        let start = first / panel * PANEL;
        let columns = start..(start + out.len() / panel * PANEL).min(cols);
        factors.run(backend.isa, PackTransposed { factors, rows, cols, columns, out, words });
    });
    Ok(if pairs { Packed::Bf16(memory) } else { Packed::F32(memory) })
}

/// How many rows ahead are asked for.
const ROWS_AHEAD: usize = 8;

/// Some columns of rows as panels.
struct PackTransposed<'a> {
    factors: Factors,
    rows: &'a [&'a [f32]],
    cols: usize,
    columns: Range<usize>,
    /// [panel][words][32].
    out: &'a mut [PairLine],
    words: usize,
}

impl Kernel for PackTransposed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { factors, rows, cols, columns, out, words } = self;
        for (k, rows) in rows.chunks(factors.rows_a_word()).enumerate() {
            let pair = [rows[0], rows.get(1).copied().unwrap_or_default()];
            // Only a stretch of each row is read: nothing in the machine guesses where the next one is.
            for line in columns.clone().step_by(LANES) {
                pair.iter().for_each(|row| s.prefetch(*row, (ROWS_AHEAD * cols + line) * size_of::<f32>()));
            }
            factors.slabs(s, pair, columns.clone(), out, words, k);
        }
    }
}

/// Rows as panels of f32 or of bf16 pairs.
struct PackRows<'a> {
    /// From the first panel on.
    rows: &'a [&'a [f32]],
    form: Form,
    /// [panel][words].
    out: &'a mut [[PairLine; 2]],
    words: usize,
}

impl Kernel for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { rows, form, out, words } = self;
        for (panel, out) in out.chunks_mut(words).enumerate() {
            for (block, out) in out.chunks_mut(LANES).enumerate() {
                for half in 0..PANEL / LANES {
                    let mut square = [[0; LANES]; LANES];
                    for (words, row) in square.iter_mut().zip(rows.iter().skip(panel * PANEL + half * LANES)) {
                        let row = &row[block * form.floats()..];
                        // Thirty-two rows go by at once, more than the machine follows by itself.
                        for line in 0..form.floats() / LANES {
                            s.prefetch(row, 2 * form.floats() * size_of::<f32>() + line * size_of::<Line>());
                        }
                        pack_line(s, form, &row[..row.len().min(form.floats())], words);
                    }
                    s.transpose(&mut square);
                    out.iter_mut().zip(square).for_each(|(out, words)| out[half].0 = words);
                }
            }
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
pub(super) fn transposed(packed: &Packed, rows: usize, cols: usize, backend: &CpuBackend) -> Result<Packed> {
    let (lines, pairs) = match packed {
        Packed::F32(lines) => (lines, false),
        Packed::Bf16(lines) => (lines, true),
    };
    let lines = cast_slice::<u8, [PairLine; 2]>(lines);
    let words = |k: usize| if pairs { k.div_ceil(2) } else { k };
    let (from, to) = (words(cols), words(rows));
    let mut memory = backend.spare.lend(2 * cols.div_ceil(PANEL) * to)?;
    let out = cast_slice_mut::<u8, [PairLine; 2]>(&mut memory);
    backend.pool.chunks(out, to.max(1) * panels_per_task(to), |first, out| {
        backend.isa.run(Transpose { lines, from, pairs, first_panel: first / to, out, to });
    });
    Ok(if pairs { Packed::Bf16(memory) } else { Packed::F32(memory) })
}

/// Panels of the transpose.
struct Transpose<'a> {
    /// [panel][from].
    lines: &'a [[PairLine; 2]],
    from: usize,
    pairs: bool,
    first_panel: usize,
    /// [panel][to].
    out: &'a mut [[PairLine; 2]],
    to: usize,
}

impl Kernel for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { lines, from, pairs, first_panel, out, to } = self;
        // Sixteen outputs are so many words of k, and sixteen words of k so many outputs.
        let [words_of_half, halves_a_block] = if pairs { [LANES / 2, 2] } else { [LANES, 1] };
        for (panel, out) in out.chunks_mut(to).enumerate() {
            for (half, start) in ((first_panel + panel) * PANEL..).step_by(LANES).enumerate().take(PANEL / LANES) {
                let start = start / LANES * words_of_half;
                for (block, out) in out.chunks_mut(LANES).enumerate() {
                    let mut square = [[0; LANES]; LANES];
                    for side in 0..halves_a_block {
                        let source = block * halves_a_block + side;
                        let source_panel = lines.get(source / 2 * from..).unwrap_or_default();
                        let source_lines = source_panel.iter().take(from).skip(start).take(words_of_half);
                        for (i, line) in source_lines.enumerate() {
                            let words = &line[source % 2].0;
                            if pairs {
                                let (even, odd) = turn_pairs(words);
                                square[2 * i][side * LANES / 2..][..LANES / 2].copy_from_slice(&even);
                                square[2 * i + 1][side * LANES / 2..][..LANES / 2].copy_from_slice(&odd);
                            } else {
                                square[i] = *words;
                            }
                        }
                    }
                    s.transpose(&mut square);
                    out.iter_mut().zip(square).for_each(|(out, words)| out[half].0 = words);
                }
            }
        }
    }
}

/// Pairs (along k) of sixteen outputs as pairs of outputs: of the first k, and of the second.
#[inline(always)]
fn turn_pairs(words: &[u32; LANES]) -> ([u32; LANES / 2], [u32; LANES / 2]) {
    let (mut even, mut odd) = ([0; LANES / 2], [0; LANES / 2]);
    for ((even, odd), [a, b]) in even.iter_mut().zip(&mut odd).zip(words.as_chunks::<2>().0) {
        *even = (a & 0xffff) | (b << 16);
        *odd = (a >> 16) | (b & 0xffff_0000);
    }
    (even, odd)
}
