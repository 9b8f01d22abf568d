//! Gradient of attention, a task for every sequence and kv head; everything is products of small blocks by the micro-kernels
//! of [`gemm`](super::gemm), whose factors bf16 arithmetic rounds to bf16. Softmax and D are f32.
//!
//! The plain loops for a query row i of one query head, which sees keys 0..=i of its sequence:
//! ```text
//! s[t] = scale q[i]·k[t];  p = softmax(s);  D = d_y[i]·y[i];  ds[t] = p[t] (d_y[i]·v[t] - D) scale
//! d_q[i] = sum over t of ds[t] k[t];  d_k[t] += ds[t] q[i];  d_v[t] += p[t] d_y[i]
//! ```
//! Queries go by in blocks, for which the scores of all their keys lie in scratch: no second pass for the softmax. d_k and
//! d_v take the blocks in the order of the rows, head after head within a block.

use super::exp;
use super::gemm::{Multiply, Scratch, Take, as_tile};
use super::matrix::PANEL;
use super::pack_columns::{Factors, PANEL_LINES, PackPanels, TurnColumns};
use super::pool::share;
use super::simd::{Isa, Kernel, LANES, Line, PairLine, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{AttentionBackward, AttentionBackwardArgs, Heads, Shaped};
use bytemuck::cast_slice;
use std::ops::Range;

/// Query rows of a block.
const BLOCK: usize = 56;

/// One kv head of one sequence.
struct Part<'a> {
    isa: Isa,
    factors: Factors,
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

/// Some columns of some rows: a head's, or a block's scores.
#[derive(Clone, Copy)]
struct Slab<'a> {
    factors: Factors,
    /// The rows, whole.
    x: &'a [f32],
    /// Columns a row has.
    cols: usize,
    column: usize,
    width: usize,
}

impl<'a> Slab<'a> {
    #[inline(always)]
    fn of(factors: Factors, x: &'a Tensor, rows: Range<usize>, column: usize, width: usize) -> Self {
        Self { factors, x: &x.data[rows.start * x.cols..rows.end * x.cols], cols: x.cols, column, width }
    }

    #[inline(always)]
    fn rows(self) -> usize {
        self.x.len() / self.cols
    }

    #[inline(always)]
    fn row(self, row: usize) -> &'a [f32] {
        &self.x[row * self.cols + self.column..][..self.width]
    }

    /// As the panels of the transpose: [ceil(rows / 32)][words of a row][32].
    #[inline(always)]
    fn transposed_panels<S: Simd>(self, s: S, out: &mut [PairLine]) {
        let floats = self.factors.form().floats();
        for (panel, out) in out.chunks_exact_mut(self.factors.words_of(self.width) * PANEL_LINES).enumerate() {
            for (block, out) in out.chunks_mut(LANES * PANEL_LINES).enumerate() {
                let columns = block * floats..((block + 1) * floats).min(self.width);
                for half in 0..PANEL_LINES {
                    let mut square = [[0; LANES]; LANES];
                    for (words, row) in square.iter_mut().zip(panel * PANEL + half * LANES..self.rows()) {
                        *words = self.factors.line(s, &self.row(row)[columns.clone()]);
                    }
                    s.transpose(&mut square);
                    for (line, words) in out[half..].iter_mut().step_by(PANEL_LINES).zip(square) {
                        line.0 = words;
                    }
                }
            }
        }
    }

    /// As panels: [ceil(width / 32)][words][32], zeros behind the last row.
    #[inline(always)]
    fn panels<S: Simd>(self, s: S, words: usize, out: &mut [PairLine]) {
        let Self { factors, x, cols, column, width } = self;
        PackPanels { factors, x, cols, columns: column..column + width, out, words }.run(s);
    }

    /// Rows packed for the micro-kernels.
    #[inline(always)]
    fn pack<S: Simd>(self, s: S, out: &mut [PairLine]) {
        let form = self.factors.form();
        let lines = form.lines(self.width);
        let blocks = self.rows().div_ceil(form.block_rows::<S>());
        for block in 0..blocks {
            let range = share(self.rows(), blocks, block);
            let height = range.len();
            let out = &mut out[range.start * lines..range.end * lines];
            for (r, row) in range.enumerate() {
                for (out, x) in out[r..].iter_mut().step_by(height).zip(self.row(row).chunks(form.floats())) {
                    out.0 = self.factors.line(s, x);
                }
            }
        }
    }

    /// The first `columns` columns as packed rows.
    #[inline(always)]
    fn pack_columns<S: Simd>(self, s: S, columns: usize, out: &mut [PairLine]) {
        let lines = self.factors.form().lines(self.rows());
        let Self { factors, x, cols, column, .. } = self;
        TurnColumns { factors, x, cols, columns: column..column + columns, out, lines }.run(s);
    }
}

/// Panels of [stored][32] words, of which the first `depth` are multiplied with.
#[derive(Clone, Copy)]
struct Panels<'a> {
    lines: &'a [PairLine],
    stored: usize,
    depth: usize,
}

/// How a block's products are made.
#[derive(Clone, Copy)]
struct Products {
    isa: Isa,
    factors: Factors,
}

impl Products {
    /// sums\[row\]\[panel\] = or += x (packed rows) times each panel.
    #[inline(always)]
    fn product<S: Simd>(
        self,
        s: S,
        x: &[PairLine],
        rows: usize,
        panels: Panels<'_>,
        accumulate: bool,
        (tile, sums): (&mut [Line], &mut [Line]),
    ) {
        let Panels { lines, stored, depth } = panels;
        let stride = lines.len() / stored;
        let x = &x[..rows * depth.div_ceil(LANES)];
        let multiply = Multiply { isa: self.isa, form: self.factors.form(), x, rows };
        for (index, panel) in lines.chunks_exact(stored * PANEL_LINES).enumerate() {
            let panel = self.factors.panel(&panel[..depth * PANEL_LINES]);
            let tile = as_tile(&mut tile[..rows * PANEL_LINES]);
            let mut sums = Sums { lines: sums, stride, at: index * PANEL_LINES, accumulate };
            multiply.panel(s, panel, tile, &mut sums);
        }
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
        let Self { isa, factors, heads, kv_head, scale, qkv, y, d_y, first_row, .. } = self;
        let Heads { head_dim, .. } = heads;
        let rows = self.d.len();
        let group = heads.heads / heads.kv_heads;
        let (key_column, value_column) =
            (heads.q_cols() + kv_head * head_dim, heads.q_cols() + heads.kv_cols() + kv_head * head_dim);
        // Panels of keys, and of the columns of a head.
        let (key_count, col_count) = (rows.div_ceil(PANEL), head_dim.div_ceil(PANEL));
        let (stored, depth) = (factors.words_of(key_count * PANEL), factors.words_of(head_dim));
        let transposed = key_count * depth * PANEL_LINES;
        let straight = col_count * stored * PANEL_LINES;
        let gradient = rows * col_count * PANEL_LINES;
        let block_panels = col_count * factors.words_of(BLOCK) * PANEL_LINES;
        let block_scores = BLOCK * key_count * PANEL_LINES;
        let form = factors.form();
        let packed_head = BLOCK * form.lines(head_dim);
        let packed_scores = (BLOCK * form.lines(key_count * PANEL)).max(key_count * PANEL * form.lines(BLOCK));
        let tile_lines = (key_count * PANEL).max(BLOCK) * PANEL_LINES;
        let lines = 2 * gradient + 2 * block_scores + tile_lines + BLOCK * col_count * PANEL_LINES;
        let words = 2 * packed_head + packed_scores + 2 * transposed + straight + 2 * block_panels;
        let mut scratch = Scratch::lend(words, lines);
        let (packed, lines) = scratch.parts();
        let (packed_q, packed) = packed.split_at_mut(packed_head);
        let (packed_d_y, packed) = packed.split_at_mut(packed_head);
        let (k_transposed, packed) = packed.split_at_mut(transposed);
        let (v_transposed, packed) = packed.split_at_mut(transposed);
        let (k_rows, packed) = packed.split_at_mut(straight);
        let (q_rows, packed) = packed.split_at_mut(block_panels);
        let (d_y_rows, packed) = packed.split_at_mut(block_panels);
        let (d_k, lines) = lines.split_at_mut(gradient);
        let (d_v, lines) = lines.split_at_mut(gradient);
        let (scores, lines) = lines.split_at_mut(block_scores);
        let (products, lines) = lines.split_at_mut(block_scores);
        let (tile, d_q) = lines.split_at_mut(tile_lines);
        let multiply = Products { isa, factors };
        let keys = Slab::of(factors, qkv, first_row..first_row + rows, key_column, head_dim);
        keys.transposed_panels(s, k_transposed);
        keys.panels(s, stored, k_rows);
        Slab { column: value_column, ..keys }.transposed_panels(s, v_transposed);
        d_k.fill(Line([0.0; LANES]));
        d_v.fill(Line([0.0; LANES]));
        let mut values = [0.0; BLOCK];
        for first in (0..rows).step_by(BLOCK) {
            let count = (rows - first).min(BLOCK);
            let seen = first + count;
            let panels = seen.div_ceil(PANEL);
            let stride = panels * PANEL_LINES;
            let (scores, products) = (&mut scores[..count * stride], &mut products[..count * stride]);
            let block = first_row + first..first_row + seen;
            let queries_depth = factors.words_of(count);
            let block_panels = col_count * queries_depth * PANEL_LINES;
            for head in 0..group {
                let column = (kv_head * group + head) * head_dim;
                let query = Slab::of(factors, qkv, block.clone(), column, head_dim);
                let gradient = Slab::of(factors, d_y, block.clone(), column, head_dim);
                query.pack(s, packed_q);
                gradient.pack(s, packed_d_y);
                query.panels(s, queries_depth, &mut q_rows[..block_panels]);
                gradient.panels(s, queries_depth, &mut d_y_rows[..block_panels]);
                let output = Slab::of(factors, y, block.clone(), column, head_dim);
                for (i, value) in values[..count].iter_mut().enumerate() {
                    *value = dot(s, output.row(i), gradient.row(i));
                }
                let keys = Panels { lines: &k_transposed[..panels * depth * PANEL_LINES], stored: depth, depth };
                multiply.product(s, packed_q, count, keys, false, (&mut *tile, &mut *scores));
                let values_transposed = Panels { lines: &v_transposed[..panels * depth * PANEL_LINES], ..keys };
                multiply.product(s, packed_d_y, count, values_transposed, false, (&mut *tile, &mut *products));
                let lines = scores.chunks_exact_mut(stride).zip(products.chunks_exact_mut(stride));
                for (i, (scores, products)) in lines.enumerate() {
                    softmax_gradient(s, scores, products, first + i + 1, scale, values[i]);
                }
                // Keys behind the block's last row are 0 in dS.
                let cols = stride * LANES;
                let d_scores = Slab { factors, x: cast_slice(products), cols, column: 0, width: cols };
                d_scores.pack(s, packed);
                let d_q = &mut d_q[..count * col_count * PANEL_LINES];
                let all_keys = Panels { lines: k_rows, stored, depth: factors.words_of(cols) };
                multiply.product(s, packed, count, all_keys, false, (&mut *tile, &mut *d_q));
                for (d_q, d) in d_q.chunks_exact(col_count * PANEL_LINES).zip(&mut self.d[first..]) {
                    copy_lines(s, d_q, &mut d[0][head * head_dim..][..head_dim]);
                }
                let gradient = seen * col_count * PANEL_LINES;
                let queries = Panels { lines: &q_rows[..block_panels], stored: queries_depth, depth: queries_depth };
                let d_y_panels = Panels { lines: &d_y_rows[..block_panels], ..queries };
                d_scores.pack_columns(s, seen, packed);
                multiply.product(s, packed, seen, queries, true, (&mut *tile, &mut d_k[..gradient]));
                Slab { x: cast_slice(&*scores), ..d_scores }.pack_columns(s, seen, packed);
                multiply.product(s, packed, seen, d_y_panels, true, (&mut *tile, &mut d_v[..gradient]));
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
                Part { isa: self.isa, factors: Factors::of(self), heads, kv_head, scale, qkv, y, d_y, first_row, d }
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
        self.pool.each(parts, |_, part| part.factors.run(self.isa, part));
        Ok(())
    }
}
