//! Gradients of linear. d_x = d_y W is the forward product with the transposed panels. d_W = d_y^T x has the rows as its inner
//! dimension: the columns of one factor, in slabs of 32, are the panels; those of the other are turned round in squares of 16 x 16.
//! That is d_y, or x where it has few columns; either way a sum goes through the rows in their order.

use super::gemm::{Multiply, Scratch, Take, as_tile, group_rows};
use super::linear::Product;
use super::matrix::PANEL;
use super::pack_columns::{Factors, PANEL_LINES, PackPanels, TurnColumns};
use super::pool::share;
use super::simd::{Isa, Kernel, LANES, Line, PairLine, Simd};
use super::{CpuBackend, Matrix, Tensor};
use crate::error::Result;
use crate::ops::{Direction, LinearBackward, LinearBackwardBiasArgs, LinearBackwardInputArgs, LinearBackwardWeightArgs, Shaped};
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
    panels: &'a [PairLine],
    words: usize,
    scale: f32,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, factors, d_weight, inputs, d_y, d_y_cols, first_col, panels, words, scale } = self;
        let rows = d_weight.len() / inputs;
        let lines = words.div_ceil(LANES);
        let mut scratch = Scratch::lend(rows * lines, PANEL_LINES * rows);
        let (turned, tile) = scratch.parts();
        let columns = first_col..first_col + rows;
        TurnColumns { factors, x: d_y, cols: d_y_cols, columns, out: &mut *turned, lines }.run(s);
        let multiply = Multiply { isa, form: factors.form(), x: turned, rows };
        let tile = as_tile(tile);
        let mut gradient = Gradient { d_weight, inputs, columns: 0..0, scale };
        for (index, panel) in factors.panels(panels, words).enumerate() {
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

/// A range of rows of d_W that has few columns: x is turned round, d_y gives the panels.
struct NarrowPart<'a> {
    isa: Isa,
    factors: Factors,
    /// Rows of d_W.
    d_weight: &'a mut [f32],
    inputs: usize,
    /// Packed x, a row for each input.
    x: &'a [PairLine],
    d_y: &'a [f32],
    d_y_cols: usize,
    /// Of d_y, one for each row of d_W.
    columns: Range<usize>,
    words: usize,
    scale: f32,
}

impl Kernel for NarrowPart<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, factors, d_weight, inputs, x, d_y, d_y_cols, columns, words, scale } = self;
        let panels = columns.len().div_ceil(PANEL);
        let mut scratch = Scratch::lend(PANEL_LINES * words * panels, PANEL_LINES * inputs);
        let (packed, tile) = scratch.parts();
        // All panels at once: a panel's part of a row is two cache lines, and rows lie far apart.
        PackPanels { factors, x: d_y, cols: d_y_cols, columns, out: &mut *packed, words }.run(s);
        let tile = as_tile(tile);
        let multiply = Multiply { isa, form: factors.form(), x, rows: inputs };
        for (d_weight, panel) in d_weight.chunks_mut(PANEL * inputs).zip(factors.panels(packed, words)) {
            multiply.panel(s, panel, tile, &mut StayInTile);
            for (block, sums) in tile.chunks(LANES).enumerate() {
                for (half, d_weight) in d_weight.chunks_mut(LANES * inputs).enumerate() {
                    let mut square = [[0; LANES]; LANES];
                    square.iter_mut().zip(sums).for_each(|(words, sums)| *words = sums[half].0.map(f32::to_bits));
                    s.transpose(&mut square);
                    for (d, sums) in d_weight.chunks_exact_mut(inputs).zip(square) {
                        let d = &mut d[block * LANES..][..sums.len().min(inputs - block * LANES)];
                        let added = s.fma(s.splat(scale), s.load(&sums.map(f32::from_bits)), s.load_part(d, 0.0));
                        s.store_part(added, d);
                    }
                }
            }
        }
    }
}

/// Leaves the sums where they are.
struct StayInTile;

impl Take for StayInTile {
    #[inline(always)]
    fn expect<S: Simd>(&mut self, _s: S, _rows: Range<usize>) {}

    #[inline(always)]
    fn take<S: Simd>(&mut self, _s: S, _first: usize, _sums: &[[Line; 2]]) {}
}

impl CpuBackend {
    /// d_W += scale * d_y^T x.
    pub(super) fn weight_gradient(&self, gradient: WeightGradient<'_>) {
        let WeightGradient { d_weight, outputs, inputs, x, d_y, d_y_cols, first_col, scale } = gradient;
        if outputs == 0 || inputs == 0 || x.is_empty() {
            return;
        }
        for (x, d_y) in x.chunks(ROWS_AT_ONCE * inputs).zip(d_y.chunks(ROWS_AT_ONCE * d_y_cols)) {
            let rows = x.len() / inputs;
            let part = WeightGradient { d_weight: &mut *d_weight, outputs, inputs, x, d_y, d_y_cols, first_col, scale };
            // Turning round what is turned and what is added to: where inputs are few (a LoRA pair's rank), it is worth while.
            if 2 * inputs * (rows + outputs) < rows * outputs {
                self.narrow_weight_gradient(part);
            } else {
                self.wide_weight_gradient(part);
            }
        }
    }

    fn wide_weight_gradient(&self, gradient: WeightGradient<'_>) {
        let WeightGradient { d_weight, outputs, inputs, x, d_y, d_y_cols, first_col, scale } = gradient;
        let (factors, isa) = (Factors::of(self), self.isa);
        let words = (x.len() / inputs).div_ceil(factors.rows_a_word());
        let panels = inputs.div_ceil(PANEL);
        let mut scratch = Scratch::lend(PANEL_LINES * panels * words, 0);
        let packed = scratch.parts().0;
        let per_task = panels.div_ceil(4 * self.pool.threads());
        self.pool.chunks(packed, per_task * PANEL_LINES * words, |first, out| {
            let start = first / (PANEL_LINES * words) * PANEL;
            let columns = start..(start + out.len() / (PANEL_LINES * words) * PANEL).min(inputs);
            factors.run(isa, PackPanels { factors, x, cols: inputs, columns, out, words });
        });
        let packed = &*packed;
        let height = group_rows(outputs, words.div_ceil(LANES), self.pool.threads());
        let groups = outputs.div_ceil(height);
        let mut rest = d_weight;
        let mut parts = Vec::with_capacity(groups);
        for group in 0..groups {
            let range = share(outputs, groups, group);
            let (d_weight, after) = rest.split_at_mut(range.len() * inputs);
            rest = after;
            let first_col = first_col + range.start;
            parts.push(Part { isa, factors, d_weight, inputs, d_y, d_y_cols, first_col, panels: packed, words, scale });
        }
        self.pool.each(parts, |_, part| factors.run(isa, part));
    }

    fn narrow_weight_gradient(&self, gradient: WeightGradient<'_>) {
        let WeightGradient { d_weight, outputs, inputs, x, d_y, d_y_cols, first_col, scale } = gradient;
        let (factors, isa) = (Factors::of(self), self.isa);
        let words = (x.len() / inputs).div_ceil(factors.rows_a_word());
        let lines = words.div_ceil(LANES);
        let mut scratch = Scratch::lend(inputs * lines, 0);
        let turned = scratch.parts().0;
        factors.run(isa, TurnColumns { factors, x, cols: inputs, columns: 0..inputs, out: &mut *turned, lines });
        let x = &*turned;
        let panels = outputs.div_ceil(PANEL).div_ceil(4 * self.pool.threads());
        self.pool.chunks(d_weight, panels * PANEL * inputs, |first, d_weight| {
            let start = first_col + first / inputs;
            let columns = start..start + d_weight.len() / inputs;
            factors.run(isa, NarrowPart { isa, factors, d_weight, inputs, x, d_y, d_y_cols, columns, words, scale });
        });
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
        self.multiply(Product {
            y: &mut d_x.data,
            x: &d_y.data,
            rows,
            packed,
            outputs,
            cols,
            bias: None,
            accumulate,
            gated: false,
        });
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

    fn prepare_tensors(&self, parts: &[&Tensor], direction: Direction) -> Result<Matrix> {
        Matrix::from_tensors(self, parts, direction)
    }
}
