//! Gradients of linear. d_x = d_y W is the forward product with the transposed panels. d_W = d_y^T x has the rows as its inner
//! dimension. Packing x is copying slabs of 32 columns for the panels; d_y is turned round in squares of 16 x 16.

use super::gemm::{Form, Multiply, Scratch, Take, as_tile, group_rows};
use super::linear::Product;
use super::matrix::{PANEL, Panel, round_bf16};
use super::pool::share;
use super::simd::{Isa, Kernel, LANES, Line, PairLine, Simd};
use super::{CpuBackend, Matrix, Tensor};
use crate::error::Result;
use crate::ops::{LinearBackward, LinearBackwardBiasArgs, LinearBackwardInputArgs, LinearBackwardWeightArgs, Shaped};
use crate::tensor::Dtype;
use bytemuck::{cast_slice, cast_slice_mut};
use std::ops::Range;

/// Rows whose products are summed before they are added to d_W: what is packed of them stays near.
const ROWS_AT_ONCE: usize = 2048;

/// Columns of d_bias a task takes.
const BIAS_COLUMNS: usize = 64;

/// d_W += scale * d_y^T x over some rows.
pub(super) struct WeightGradient<'a> {
    /// [outputs, inputs].
    pub(super) d_weight: &'a mut [f32],
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// [rows, inputs].
    pub(super) x: &'a [f32],
    /// [rows, d_y_cols], of which columns first_col .. first_col + outputs count.
    pub(super) d_y: &'a [f32],
    pub(super) d_y_cols: usize,
    pub(super) first_col: usize,
    pub(super) scale: f32,
}

/// How both factors are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Factors {
    F32,
    /// f32 rounded to bf16.
    Rounded,
    /// Pairs of bf16.
    Pairs,
}

impl Factors {
    fn of(backend: &CpuBackend) -> Self {
        match backend.compute {
            Dtype::F32 | Dtype::F16 => Self::F32,
            Dtype::Bf16 if backend.isa.has_dot() => Self::Pairs,
            Dtype::Bf16 => Self::Rounded,
        }
    }

    fn form(self) -> Form {
        match self {
            Self::F32 | Self::Rounded => Form::F32,
            Self::Pairs => Form::Pairs,
        }
    }

    /// Rows that go into one word.
    fn rows_a_word(self) -> usize {
        match self {
            Self::F32 | Self::Rounded => 1,
            Self::Pairs => 2,
        }
    }

    /// out\[i\] = the word of first\[i\] and, for pairs, second\[i\] of the next row, which may be missing.
    #[inline(always)]
    fn pack(self, first: &[f32], second: &[f32], out: &mut [u32]) {
        match self {
            Self::F32 => out.iter_mut().zip(first).for_each(|(out, a)| *out = a.to_bits()),
            Self::Rounded => out.iter_mut().zip(first).for_each(|(out, a)| *out = round_bf16(*a)),
            Self::Pairs if second.is_empty() => out.iter_mut().zip(first).for_each(|(out, a)| *out = round_bf16(*a) >> 16),
            Self::Pairs => {
                let both = first.iter().zip(second);
                out.iter_mut().zip(both).for_each(|(out, (a, b))| *out = (round_bf16(*a) >> 16) | round_bf16(*b));
            }
        }
    }
}

/// Panels of x: slabs of 32 columns.
struct PackPanels<'a> {
    factors: Factors,
    /// [rows, cols].
    x: &'a [f32],
    cols: usize,
    first_panel: usize,
    /// [panel][words][32].
    out: &'a mut [u32],
    words: usize,
}

impl Kernel for PackPanels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let step = self.factors.rows_a_word();
        let panels = self.out.len() / (PANEL * self.words);
        for (k, rows) in self.x.chunks(step * self.cols).enumerate() {
            let (first, second) = rows.split_at(self.cols);
            for panel in 0..panels {
                let columns = (self.first_panel + panel) * PANEL..((self.first_panel + panel + 1) * PANEL).min(self.cols);
                let out = &mut self.out[(panel * self.words + k) * PANEL..][..PANEL];
                let second = if second.is_empty() { second } else { &second[columns.clone()] };
                self.factors.pack(&first[columns.clone()], second, out);
                out[columns.len()..].fill(0);
            }
        }
    }
}

/// A group of rows of d_W.
struct Part<'a> {
    isa: Isa,
    factors: Factors,
    /// Rows of d_W.
    d_weight: &'a mut [f32],
    inputs: usize,
    d_y: &'a [f32],
    d_y_cols: usize,
    first_col: usize,
    /// Packed x.
    panels: &'a [u32],
    words: usize,
    scale: f32,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, factors, d_weight, inputs, d_y, d_y_cols, first_col, panels, words, scale } = self;
        let form = factors.form();
        let rows = d_weight.len() / inputs;
        let lines = words.div_ceil(LANES);
        let mut scratch = Scratch::lend(rows * lines, 2 * rows);
        let (x, tile) = scratch.parts();
        let blocks = rows.div_ceil(form.block_rows::<S>());
        let step = factors.rows_a_word();
        for (line, d_y) in d_y.chunks(LANES * step * d_y_cols).enumerate() {
            for block in 0..blocks {
                let range = share(rows, blocks, block);
                let columns = first_col + range.start..first_col + range.end;
                let mut square = [[0; LANES]; LANES];
                for (words, d_y) in square.iter_mut().zip(d_y.chunks(step * d_y_cols)) {
                    let (first, second) = d_y.split_at(d_y_cols);
                    let second = if second.is_empty() { second } else { &second[columns.clone()] };
                    factors.pack(&first[columns.clone()], second, words);
                }
                let out = &mut x[range.start * lines + line * range.len()..][..range.len()];
                for (r, out) in out.iter_mut().enumerate() {
                    for (out, words) in out.0.iter_mut().zip(&square) {
                        *out = words[r];
                    }
                }
            }
        }
        let multiply = Multiply { isa, form, x, rows };
        let tile = as_tile(tile);
        let mut gradient = Gradient { d_weight, inputs, columns: 0..0, scale };
        for (index, panel) in panels.chunks_exact(PANEL * words).enumerate() {
            let panel = match factors {
                Factors::F32 | Factors::Rounded => Panel::F32(cast_slice::<u32, Line>(panel).as_chunks::<2>().0),
                Factors::Pairs => Panel::Bf16(cast_slice::<u32, PairLine>(panel).as_chunks::<2>().0),
            };
            gradient.columns = index * PANEL..((index + 1) * PANEL).min(inputs);
            multiply.panel(s, panel, tile, &mut gradient);
        }
    }
}

/// Where the sums of one panel are added.
struct Gradient<'a> {
    d_weight: &'a mut [f32],
    inputs: usize,
    columns: Range<usize>,
    scale: f32,
}

impl Take for Gradient<'_> {
    #[inline(always)]
    fn expect<S: Simd>(&mut self, s: S, rows: Range<usize>) {
        for d in self.d_weight.chunks_exact(self.inputs).skip(rows.start).take(rows.len()) {
            let d = &d[self.columns.start..];
            s.prefetch(d, 0);
            s.prefetch(d, size_of::<Line>());
        }
    }

    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, first: usize, sums: &[[Line; 2]]) {
        let scale = s.splat(self.scale);
        for (d, sums) in self.d_weight.chunks_exact_mut(self.inputs).skip(first).zip(sums) {
            for (d, sum) in d[self.columns.clone()].chunks_mut(LANES).zip(sums) {
                let added = s.fma(scale, s.load(&sum.0), s.load_part(d, 0.0));
                s.store_part(added, d);
            }
        }
    }
}

impl CpuBackend {
    /// d_W += scale * d_y^T x.
    pub(super) fn weight_gradient(&self, gradient: WeightGradient<'_>) {
        let WeightGradient { d_weight, outputs, inputs, x, d_y, d_y_cols, first_col, scale } = gradient;
        if outputs == 0 || inputs == 0 || x.is_empty() {
            return;
        }
        let (factors, isa) = (Factors::of(self), self.isa);
        let step = factors.rows_a_word();
        let panels = inputs.div_ceil(PANEL);
        for (x, d_y) in x.chunks(ROWS_AT_ONCE * inputs).zip(d_y.chunks(ROWS_AT_ONCE * d_y_cols)) {
            let words = (x.len() / inputs).div_ceil(step);
            // Lines, so that a panel begins on a cache line.
            let mut scratch = Scratch::lend(0, panels * words * PANEL / LANES);
            let packed: &mut [u32] = cast_slice_mut(scratch.parts().1);
            let per_task = panels.div_ceil(4 * self.pool.threads());
            self.pool.chunks(packed, per_task * words * PANEL, |first, out| {
                let first_panel = first / (words * PANEL);
                isa.run(PackPanels { factors, x, cols: inputs, first_panel, out, words });
            });
            let packed = &*packed;
            let height = group_rows(outputs, words.div_ceil(LANES), self.pool.threads());
            let groups = outputs.div_ceil(height);
            let mut rest = &mut *d_weight;
            let mut parts = Vec::with_capacity(groups);
            for group in 0..groups {
                let range = share(outputs, groups, group);
                let (d_weight, after) = rest.split_at_mut(range.len() * inputs);
                rest = after;
                let first_col = first_col + range.start;
                parts.push(Part { isa, factors, d_weight, inputs, d_y, d_y_cols, first_col, panels: packed, words, scale });
            }
            self.pool.each(parts, |_, part| isa.run(part));
        }
    }
}

struct BiasColumns<'a> {
    d_bias: &'a mut [f32],
    d_y: &'a [f32],
    cols: usize,
    first: usize,
}

impl Kernel for BiasColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let mut sums = [0.0_f32; BIAS_COLUMNS];
        for d_y in self.d_y.chunks_exact(self.cols) {
            sums.iter_mut().zip(&d_y[self.first..][..self.d_bias.len()]).for_each(|(sum, d)| *sum += d);
        }
        self.d_bias.iter_mut().zip(sums).for_each(|(d, sum)| *d += sum);
    }
}

impl LinearBackward for CpuBackend {
    fn linear_backward_input(&self, args: LinearBackwardInputArgs<'_, Tensor, Matrix>) -> Result<()> {
        args.check()?;
        let LinearBackwardInputArgs { d_x, d_y, weight, accumulate } = args;
        let (rows, cols, outputs) = (d_y.rows(), weight.rows(), weight.cols());
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        let lent = weight.transposed_once(self)?;
        let packed = lent.packed();
        self.multiply(Product { y: &mut d_x.data, x: &d_y.data, rows, packed, outputs, cols, bias: None, accumulate });
        Ok(())
    }

    fn linear_backward_weight(&self, args: LinearBackwardWeightArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let LinearBackwardWeightArgs { d_weight, x, d_y, first_col, scale } = args;
        self.weight_gradient(WeightGradient {
            outputs: d_weight.rows(),
            inputs: d_weight.cols(),
            d_weight: &mut d_weight.data,
            x: &x.data,
            d_y: &d_y.data,
            d_y_cols: d_y.cols(),
            first_col,
            scale,
        });
        Ok(())
    }

    fn linear_backward_bias(&self, args: LinearBackwardBiasArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let LinearBackwardBiasArgs { d_bias, d_y, first_col } = args;
        if d_y.rows() == 0 {
            return Ok(());
        }
        self.pool.each(d_bias.data.chunks_mut(BIAS_COLUMNS), |index, d_bias| {
            let first = first_col + index * BIAS_COLUMNS;
            self.isa.run(BiasColumns { d_bias, d_y: &d_y.data, cols: d_y.cols(), first });
        });
        Ok(())
    }

    fn prepare_tensors(&self, parts: &[&Tensor]) -> Result<Matrix> {
        Matrix::from_tensors(self, parts)
    }
}
