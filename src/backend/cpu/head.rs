//! What argmax and cross-entropy share: rows times the head matrix, chunk by chunk over the vocabulary.
//!
//! A chunk is always the same 256 token ids, whoever computes it: what is kept of a chunk depends on the row and the chunk
//! alone, and a row's chunks are put together in vocabulary order. So neither rows nor threads change a bit.

use super::gemm::{Form, Multiply, PackRows, Scratch, Take, as_tile, group_rows};
use super::matrix::{PANEL, Packed};
use super::pool::share;
use super::simd::{Isa, Kernel, LANES, Line, Simd};
use super::{CpuBackend, Matrix, Tensor, set_len};
use crate::error::Result;
use crate::ops::Shaped;
use std::ops::Range;

/// Panels a chunk.
const CHUNK_PANELS: usize = 8;
/// Token ids a chunk.
pub(super) const CHUNK: usize = CHUNK_PANELS * PANEL;
/// Lines of logits a row and chunk.
const CHUNK_LINES: usize = CHUNK / LANES;

/// The logits of one row and chunk, before logit_scale: lines of sixteen, `valid` of them real.
pub(super) struct Logits<'a> {
    pub(super) lines: &'a [Line],
    /// Row of x.
    pub(super) row: usize,
    /// First token id.
    pub(super) first: usize,
    /// Token ids in the chunk: 256, fewer in the last one. What lies behind in `lines` is 0.
    pub(super) valid: usize,
}

/// What is kept of a chunk.
pub(super) trait Reduce: Sync {
    /// Of one row and chunk.
    type Kept: Copy + Default + Send + Sync;
    /// Looks at the logits of x, and of the reference if there is one.
    fn reduce<S: Simd>(&self, s: S, logits: Logits<'_>, reference: Option<&[Line]>) -> Self::Kept;
}

/// What was kept, by row and chunk.
pub(super) struct KeptChunks<K> {
    kept: Vec<K>,
    rows: usize,
    groups: usize,
    chunks: usize,
}

impl<K: Copy> KeptChunks<K> {
    /// Of one row, in vocabulary order.
    pub(super) fn row(&self, row: usize) -> impl Iterator<Item = K> {
        let group = (0..self.groups).find(|&g| share(self.rows, self.groups, g).contains(&row)).unwrap_or(0);
        let range = share(self.rows, self.groups, group);
        let start = range.start * self.chunks + (row - range.start);
        (0..self.chunks).map(move |chunk| self.kept[start + chunk * range.len()])
    }
}

struct Part<'a, R: Reduce> {
    isa: Isa,
    form: Form,
    packed: &'a Packed,
    vocab: usize,
    cols: usize,
    x: &'a [f32],
    reference: Option<&'a [f32]>,
    first_row: usize,
    rows: usize,
    first_chunk: usize,
    reduce: &'a R,
    /// [chunk][row].
    out: &'a mut [R::Kept],
}

impl<R: Reduce> Kernel for Part<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, form, packed, cols, rows, .. } = self;
        let lines = rows * form.lines(cols);
        let sides = 1 + usize::from(self.reference.is_some());
        let mut scratch = Scratch::lend(sides * lines, sides * rows * CHUNK_LINES + 2 * rows);
        let (packed_x, lines_of_logits) = scratch.parts();
        let (packed_x, packed_reference) = packed_x.split_at_mut(lines);
        let (tile, logits) = lines_of_logits.split_at_mut(2 * rows);
        let (logits, reference_logits) = logits.split_at_mut(rows * CHUNK_LINES);
        PackRows { form, x: self.x, cols, rows, out: &mut *packed_x }.pack(isa);
        if let Some(x) = self.reference {
            PackRows { form, x, cols, rows, out: &mut *packed_reference }.pack(isa);
        }
        let tile = as_tile(tile);
        for (index, out) in self.out.chunks_mut(rows).enumerate() {
            let first = (self.first_chunk + index) * CHUNK;
            let valid = (self.vocab - first).min(CHUNK);
            // Panels behind the vocabulary's end are left out: their logits are stale, and `valid` says so.
            for panel in 0..valid.div_ceil(PANEL) {
                let weights = packed.panel(first / PANEL + panel, cols);
                let multiply = Multiply { isa, form, x: packed_x, rows };
                multiply.panel(s, weights, tile, &mut Columns { logits: &mut *logits, panel });
                if self.reference.is_some() {
                    let multiply = Multiply { x: packed_reference, ..multiply };
                    multiply.panel(s, weights, tile, &mut Columns { logits: &mut *reference_logits, panel });
                }
            }
            for (r, out) in out.iter_mut().enumerate() {
                let at = r * CHUNK_LINES..(r + 1) * CHUNK_LINES;
                let row = Logits { lines: &logits[at.clone()], row: self.first_row + r, first, valid };
                *out = self.reduce.reduce(s, row, self.reference.map(|_| &reference_logits[at]));
            }
        }
    }
}

/// The lines of one panel in a chunk's logits.
struct Columns<'a> {
    logits: &'a mut [Line],
    panel: usize,
}

impl Take for Columns<'_> {
    #[inline(always)]
    fn expect<S: Simd>(&mut self, _s: S, _rows: Range<usize>) {}

    #[inline(always)]
    fn take<S: Simd>(&mut self, _s: S, first: usize, sums: &[[Line; 2]]) {
        for (row, sums) in self.logits[first * CHUNK_LINES..].chunks_exact_mut(CHUNK_LINES).zip(sums) {
            row[2 * self.panel..][..2].copy_from_slice(sums);
        }
    }
}

impl CpuBackend {
    /// Reduces each chunk of each row of x head^T.
    pub(super) fn sweep_head<R: Reduce>(
        &self,
        x: &Tensor,
        reference: Option<&Tensor>,
        head: &Matrix,
        reduce: &R,
    ) -> Result<KeptChunks<R::Kept>> {
        let (rows, cols, vocab) = (x.rows(), x.cols(), head.rows());
        let packed = head.packed(self)?;
        let form = Form::of(packed, self.compute, self.isa);
        let chunks = vocab.div_ceil(CHUNK);
        let threads = self.pool.threads();
        let sides = 1 + usize::from(reference.is_some());
        // Logits of a chunk lie beside the packed rows in L2.
        let height = group_rows(rows, sides * (form.lines(cols) + CHUNK_LINES), threads);
        let groups = rows.div_ceil(height.max(1));
        let ranges = (4 * threads).div_ceil(groups.max(1)).clamp(1, chunks.max(1));
        let ranges = if groups >= 4 * threads { 1 } else { ranges };
        let mut kept = Vec::new();
        set_len(&mut kept, rows * chunks, R::Kept::default())?;
        let mut parts = Vec::with_capacity(groups * ranges);
        let mut rest = kept.as_mut_slice();
        for group in 0..groups {
            let range = share(rows, groups, group);
            for part in 0..ranges {
                let part = share(chunks, ranges, part);
                let (out, after) = rest.split_at_mut(part.len() * range.len());
                rest = after;
                let elements = range.start * cols..range.end * cols;
                parts.push(Part {
                    isa: self.isa,
                    form,
                    packed,
                    vocab,
                    cols,
                    x: &x.data[elements.clone()],
                    reference: reference.map(|reference| &reference.data[elements]),
                    first_row: range.start,
                    rows: range.len(),
                    first_chunk: part.start,
                    reduce,
                    out,
                });
            }
        }
        self.pool.each(parts, |_, part| self.isa.run(part));
        Ok(KeptChunks { kept, rows, groups, chunks })
    }
}
