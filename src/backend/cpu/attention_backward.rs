//! Gradient of attention, a task for every sequence and kv head; everything is products of small blocks by the micro-kernels
//! of [`gemm`](super::gemm), in f32.
//!
//! The plain loops for a query row i of one query head, which sees keys 0..=i of its sequence:
//! ```text
//! s[t] = scale q[i]·k[t];  p = softmax(s);  D = d_y[i]·y[i];  ds[t] = p[t] (d_y[i]·v[t] - D) scale
//! d_q[i] = sum over t of ds[t] k[t];  d_k[t] += ds[t] q[i];  d_v[t] += p[t] d_y[i]
//! ```
//! Queries go by in blocks, for which the scores of all their keys lie in scratch: no second pass for the softmax. d_k and
//! d_v take the blocks in the order of the rows, head after head within a block.

use super::exp;
use super::gemm::{Form, Multiply, PackRows, Scratch, Take, as_tile};
use super::matrix::{PANEL, Panel};
use super::pack_columns::{Factors, PANEL_LINES, PackPanels, TurnColumns};
use super::pool::share;
use super::simd::{Isa, Kernel, LANES, Line, PairLine, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{AttentionBackward, AttentionBackwardArgs, Heads, Shaped};
use bytemuck::{cast_slice, cast_slice_mut};
use std::ops::Range;

/// Query rows of a block.
const BLOCK: usize = 56;

/// One kv head of one sequence.
struct Part<'a> {
    isa: Isa,
    heads: Heads,
    kv_head: usize,
    scale: f32,
    qkv: &'a Tensor,
    y: &'a Tensor,
    d_y: &'a Tensor,
    first_row: usize,
    /// For each row, the gradients of this kv head's queries, of its key and of its value.
    d: Vec<[&'a mut [f32]; 3]>,
}

/// A head's columns of some rows.
#[derive(Clone, Copy)]
struct Head<'a> {
    x: &'a Tensor,
    first_row: usize,
    rows: usize,
    column: usize,
    head_dim: usize,
}

impl<'a> Head<'a> {
    #[inline(always)]
    fn row(self, row: usize) -> &'a [f32] {
        &self.x.row(self.first_row + row)[self.column..][..self.head_dim]
    }

    /// As the panels of the transpose: [ceil(rows / 32)][head_dim][32].
    #[inline(always)]
    fn transposed_panels<S: Simd>(self, s: S, out: &mut [Line]) {
        for (panel, out) in out.chunks_exact_mut(self.head_dim * PANEL_LINES).enumerate() {
            for (block, out) in out.chunks_mut(LANES * PANEL_LINES).enumerate() {
                let columns = block * LANES..((block + 1) * LANES).min(self.head_dim);
                for half in 0..PANEL_LINES {
                    let mut square = [[0; LANES]; LANES];
                    for (words, row) in square.iter_mut().zip(panel * PANEL + half * LANES..self.rows) {
                        *words = Factors::F32.words(s, &self.row(row)[columns.clone()], &[]);
                    }
                    s.transpose(&mut square);
                    for (line, words) in out[half..].iter_mut().step_by(PANEL_LINES).zip(square) {
                        line.0 = words.map(f32::from_bits);
                    }
                }
            }
        }
    }

    /// As panels: [ceil(head_dim / 32)][depth][32], zeros behind the last row.
    #[inline(always)]
    fn panels<S: Simd>(self, s: S, depth: usize, out: &mut [Line]) {
        let cols = self.x.cols;
        let x = &self.x.data[self.first_row * cols..][..self.rows * cols];
        let columns = self.column..self.column + self.head_dim;
        PackPanels { factors: Factors::F32, x, cols, columns, out: cast_slice_mut(out), words: depth }.run(s);
    }

    /// Packed for the micro-kernels.
    #[inline(always)]
    fn pack<S: Simd>(self, s: S, out: &mut [PairLine]) {
        let lines = Form::F32.lines(self.head_dim);
        let blocks = self.rows.div_ceil(Form::F32.block_rows::<S>());
        for block in 0..blocks {
            let range = share(self.rows, blocks, block);
            let height = range.len();
            let out = &mut out[range.start * lines..range.end * lines];
            for (r, row) in range.enumerate() {
                for (out, x) in out[r..].iter_mut().step_by(height).zip(self.row(row).chunks(LANES)) {
                    out.0 = Factors::F32.words(s, x, &[]);
                }
            }
        }
    }
}

/// Panels of [stored][32], of which the first `depth` entries are multiplied with.
#[derive(Clone, Copy)]
struct Panels<'a> {
    lines: &'a [Line],
    stored: usize,
    depth: usize,
}

/// sums\[row\]\[panel\] = or += x (packed rows) times each panel.
#[inline(always)]
fn product<S: Simd>(
    s: S,
    isa: Isa,
    x: &[PairLine],
    rows: usize,
    panels: Panels<'_>,
    accumulate: bool,
    (tile, sums): (&mut [Line], &mut [Line]),
) {
    let Panels { lines, stored, depth } = panels;
    let stride = lines.len() / stored;
    let x = &x[..rows * Form::F32.lines(depth)];
    let multiply = Multiply { isa, form: Form::F32, x, rows };
    for (index, panel) in lines.chunks_exact(stored * PANEL_LINES).enumerate() {
        let panel = Panel::F32(panel[..depth * PANEL_LINES].as_chunks::<PANEL_LINES>().0);
        let tile = as_tile(&mut tile[..rows * PANEL_LINES]);
        let mut sums = Sums { lines: sums, stride, at: index * PANEL_LINES, accumulate };
        multiply.panel(s, panel, tile, &mut sums);
    }
}

/// Where a panel's sums go.
struct Sums<'a> {
    lines: &'a mut [Line],
    /// Lines a row.
    stride: usize,
    at: usize,
    accumulate: bool,
}

impl Take for Sums<'_> {
    #[inline(always)]
    fn expect<S: Simd>(&mut self, _s: S, _rows: Range<usize>) {}

    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, first: usize, sums: &[[Line; 2]]) {
        for (lines, sums) in self.lines.chunks_exact_mut(self.stride).skip(first).zip(sums) {
            for (line, sum) in lines[self.at..].iter_mut().zip(sums) {
                if self.accumulate {
                    s.store(s.add(s.load(&line.0), s.load(&sum.0)), &mut line.0);
                } else {
                    *line = *sum;
                }
            }
        }
    }
}

/// One query row: scores become probabilities, d_y·v becomes the gradient of the scores; both 0 behind the last key.
#[inline(always)]
fn softmax_gradient<S: Simd>(s: S, scores: &mut [Line], products: &mut [Line], keys: usize, scale: f32, d_y_y: f32) {
    let lines = keys.div_ceil(LANES);
    let mut max = s.splat(f32::NEG_INFINITY);
    for (index, line) in scores[..lines].iter_mut().enumerate() {
        s.store(s.mul(s.load(&line.0), s.splat(scale)), &mut line.0);
        if (index + 1) * LANES > keys {
            line.0[keys - index * LANES..].fill(f32::NEG_INFINITY);
            products[index].0[keys - index * LANES..].fill(0.0);
        }
        max = s.max(s.load(&line.0), max);
    }
    let max = s.splat(s.max_lane(max));
    let mut total = s.splat(0.0);
    for line in &mut scores[..lines] {
        let p = exp::lanes(s, s.sub(s.load(&line.0), max));
        s.store(p, &mut line.0);
        total = s.add(total, p);
    }
    let inverse = s.splat(1.0 / s.sum(total));
    let (d_y_y, scale) = (s.splat(d_y_y), s.splat(scale));
    for (line, product) in scores[..lines].iter_mut().zip(&mut *products) {
        let p = s.mul(s.load(&line.0), inverse);
        s.store(p, &mut line.0);
        s.store(s.mul(s.mul(p, s.sub(s.load(&product.0), d_y_y)), scale), &mut product.0);
    }
    for line in scores[lines..].iter_mut().chain(&mut products[lines..]) {
        line.0 = [0.0; LANES];
    }
}

/// a·b.
#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        sum = s.fma(s.load_part(a, 0.0), s.load_part(b, 0.0), sum);
    }
    s.sum(sum)
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Self { isa, heads, kv_head, scale, qkv, y, d_y, first_row, .. } = self;
        let Heads { head_dim, .. } = heads;
        let rows = self.d.len();
        let group = heads.heads / heads.kv_heads;
        let (key_column, value_column) =
            (heads.q_cols() + kv_head * head_dim, heads.q_cols() + heads.kv_cols() + kv_head * head_dim);
        // Panels of keys, and of the columns of a head.
        let (key_count, col_count) = (rows.div_ceil(PANEL), head_dim.div_ceil(PANEL));
        let transposed = key_count * head_dim * PANEL_LINES;
        let stored = key_count * PANEL;
        let straight = col_count * stored * PANEL_LINES;
        let gradient = rows * col_count * PANEL_LINES;
        let block_panels = col_count * BLOCK * PANEL_LINES;
        let block_scores = BLOCK * key_count * PANEL_LINES;
        let tile_lines = stored.max(BLOCK) * PANEL_LINES;
        let lines = 2 * transposed + straight + 2 * gradient + 2 * block_panels + 2 * block_scores + tile_lines;
        let lines = lines + BLOCK * col_count * PANEL_LINES;
        let head_lines = Form::F32.lines(head_dim);
        let block_lines = Form::F32.lines(BLOCK);
        let packed_scores = (BLOCK * key_count * PANEL_LINES).max(stored * block_lines);
        let mut scratch = Scratch::lend(2 * BLOCK * head_lines + packed_scores, lines);
        let (packed, lines) = scratch.parts();
        let (packed_q, packed) = packed.split_at_mut(BLOCK * head_lines);
        let (packed_d_y, packed) = packed.split_at_mut(BLOCK * head_lines);
        let (k_transposed, lines) = lines.split_at_mut(transposed);
        let (v_transposed, lines) = lines.split_at_mut(transposed);
        let (k_rows, lines) = lines.split_at_mut(straight);
        let (d_k, lines) = lines.split_at_mut(gradient);
        let (d_v, lines) = lines.split_at_mut(gradient);
        let (q_rows, lines) = lines.split_at_mut(block_panels);
        let (d_y_rows, lines) = lines.split_at_mut(block_panels);
        let (scores, lines) = lines.split_at_mut(block_scores);
        let (products, lines) = lines.split_at_mut(block_scores);
        let (tile, d_q) = lines.split_at_mut(tile_lines);
        let keys = Head { x: qkv, first_row, rows, column: key_column, head_dim };
        keys.transposed_panels(s, k_transposed);
        keys.panels(s, stored, k_rows);
        Head { column: value_column, ..keys }.transposed_panels(s, v_transposed);
        d_k.fill(Line([0.0; LANES]));
        d_v.fill(Line([0.0; LANES]));
        let mut values = [0.0; BLOCK];
        for first in (0..rows).step_by(BLOCK) {
            let count = (rows - first).min(BLOCK);
            let seen = first + count;
            let panels = seen.div_ceil(PANEL);
            let (scores, products) = (&mut scores[..count * panels * PANEL_LINES], &mut products[..count * panels * PANEL_LINES]);
            for head in 0..group {
                let column = (kv_head * group + head) * head_dim;
                let row = first_row + first;
                let query = Head { x: qkv, first_row: row, rows: count, column, head_dim };
                let gradient = Head { x: d_y, ..query };
                query.pack(s, packed_q);
                gradient.pack(s, packed_d_y);
                query.panels(s, count, &mut q_rows[..col_count * count * PANEL_LINES]);
                gradient.panels(s, count, &mut d_y_rows[..col_count * count * PANEL_LINES]);
                let output = Head { x: y, ..query };
                for (i, value) in values[..count].iter_mut().enumerate() {
                    *value = dot(s, output.row(i), gradient.row(i));
                }
                let depth = head_dim * PANEL_LINES;
                let keys = Panels { lines: &k_transposed[..panels * depth], stored: head_dim, depth: head_dim };
                product(s, isa, packed_q, count, keys, false, (&mut *tile, &mut *scores));
                let values_transposed = Panels { lines: &v_transposed[..panels * depth], ..keys };
                product(s, isa, packed_d_y, count, values_transposed, false, (&mut *tile, &mut *products));
                let stride = panels * PANEL_LINES;
                let lines = scores.chunks_exact_mut(stride).zip(products.chunks_exact_mut(stride));
                for (i, (scores, products)) in lines.enumerate() {
                    softmax_gradient(s, scores, products, first + i + 1, scale, values[i]);
                }
                // Keys behind the block's last row are 0 in dS.
                let out = &mut packed[..count * stride];
                let x: &[f32] = cast_slice(products);
                PackRows { form: Form::F32, x, cols: stride * LANES, rows: count, out: &mut *out }.run(s);
                let d_q = &mut d_q[..count * col_count * PANEL_LINES];
                let all_keys = Panels { lines: k_rows, stored, depth: stride * LANES };
                product(s, isa, out, count, all_keys, false, (&mut *tile, &mut *d_q));
                for (d_q, d) in d_q.chunks_exact(col_count * PANEL_LINES).zip(&mut self.d[first..]) {
                    copy_lines(s, d_q, &mut d[0][head * head_dim..][..head_dim]);
                }
                let gradient = seen * col_count * PANEL_LINES;
                let queries = Panels { lines: &q_rows[..col_count * count * PANEL_LINES], stored: count, depth: count };
                let d_y_panels = Panels { lines: &d_y_rows[..col_count * count * PANEL_LINES], ..queries };
                let (factors, cols, columns, lines) = (Factors::F32, stride * LANES, 0..seen, Form::F32.lines(count));
                let x = cast_slice(&*products);
                TurnColumns { factors, x, cols, columns: columns.clone(), out: &mut *packed, lines }.run(s);
                product(s, isa, packed, seen, queries, true, (&mut *tile, &mut d_k[..gradient]));
                TurnColumns { factors, x: cast_slice(&*scores), cols, columns, out: &mut *packed, lines }.run(s);
                product(s, isa, packed, seen, d_y_panels, true, (&mut *tile, &mut d_v[..gradient]));
            }
        }
        let width = col_count * PANEL_LINES;
        for ((d, d_k), d_v) in self.d.iter_mut().zip(d_k.chunks_exact(width)).zip(d_v.chunks_exact(width)) {
            copy_lines(s, d_k, d[1]);
            copy_lines(s, d_v, d[2]);
        }
    }
}

/// The lines' values, as many as there is room for.
#[inline(always)]
fn copy_lines<S: Simd>(s: S, lines: &[Line], out: &mut [f32]) {
    for (out, line) in out.chunks_mut(LANES).zip(lines) {
        s.store_part(s.load(&line.0), out);
    }
}

impl AttentionBackward for CpuBackend {
    fn attention_backward(&self, args: AttentionBackwardArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let AttentionBackwardArgs { d_qkv, qkv, y, d_y, heads, starts, scale } = args;
        let head_dim = heads.head_dim;
        if qkv.rows() == 0 || heads.q_cols() == 0 || head_dim == 0 {
            return Ok(());
        }
        let queries = heads.q_cols() / heads.kv_heads;
        let mut lines = d_qkv.data.chunks_exact_mut(heads.qkv_cols());
        let mut parts = Vec::new();
        for range in starts.windows(2) {
            let (first_row, rows) = (range[0] as usize, (range[1] - range[0]) as usize);
            if rows == 0 {
                continue;
            }
            let base = parts.len();
            parts.extend((0..heads.kv_heads).map(|kv_head| {
                let d = Vec::with_capacity(rows);
                Part { isa: self.isa, heads, kv_head, scale, qkv, y, d_y, first_row, d }
            }));
            for line in lines.by_ref().take(rows) {
                let (d_q, rest) = line.split_at_mut(heads.q_cols());
                let (d_k, d_v) = rest.split_at_mut(heads.kv_cols());
                let of_heads = d_q.chunks_mut(queries).zip(d_k.chunks_mut(head_dim)).zip(d_v.chunks_mut(head_dim));
                for (part, ((d_q, d_k), d_v)) in parts[base..].iter_mut().zip(of_heads) {
                    part.d.push([d_q, d_k, d_v]);
                }
            }
        }
        // The longest first, so that no thread ends with a long one alone.
        parts.sort_by_key(|part| std::cmp::Reverse(part.d.len()));
        self.pool.each(parts, |_, part| self.isa.run(part));
        Ok(())
    }
}
