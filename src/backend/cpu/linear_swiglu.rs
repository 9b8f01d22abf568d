//! Linear and SwiGLU in one loop: a task multiplies with some panels of gate and with the same panels of up, and only what
//! comes out of both is stored. Between two loops gate and up would cross from core to core.

use super::gemm::{Multiply, Scratch, Take, as_tile};
use super::linear::{Product, expect_panel};
use super::matrix::{PANEL, Packed};
use super::simd::{LANES, Line, Simd};
use super::swiglu::gated;
use super::{CpuBackend, Matrix, Tensor};
use crate::error::Result;
use crate::ops::{LinearSwiglu, LinearSwigluArgs, Shaped};
use std::ops::Range;

/// Lines of gates that wait for their ups. With many the next panel in memory, which is on its way, is mostly the next to be
/// multiplied with.
const GATE_LINES: usize = 2048;

/// Panels of gate and of up, and the outputs of both.
pub(super) struct Pairs<'a, 'y> {
    pub(super) multiply: Multiply<'a>,
    pub(super) packed: &'a Packed,
    pub(super) cols: usize,
    pub(super) panels: Range<usize>,
    /// The panel of up that goes with panel 0 of gate.
    pub(super) up: usize,
    /// For each row, its outputs that belong to the panels.
    pub(super) y: &'a mut [&'y mut [f32]],
    /// Of gate, then of up.
    pub(super) bias: Option<&'a [f32]>,
}

impl Pairs<'_, '_> {
    #[inline(always)]
    pub(super) fn multiply<S: Simd>(self, s: S) {
        let Self { multiply, packed, cols, panels, up, y, bias } = self;
        let rows = y.len();
        let at_once = (GATE_LINES / (2 * rows)).max(1).min(panels.len());
        let mut scratch = Scratch::lend(0, 2 * rows * (1 + at_once));
        let (tile, gates) = as_tile(scratch.parts().1).split_at_mut(rows);
        let bias = |panel| bias.map(|bias| &bias[panel * PANEL..]);
        let mut done = 0;
        while done < panels.len() {
            let first = panels.start + done;
            let count = at_once.min(panels.len() - done);
            for index in 0..count {
                let gates = &mut gates[index * rows..][..rows];
                let mut to = Gates { gates, bias: bias(first + index) };
                multiply.panel(s, packed.panel(first + index, cols), tile, &mut to);
            }
            for index in 0..count {
                let panel = up + first + index;
                let gates = &gates[index * rows..][..rows];
                let mut to = Gated { y: &mut *y, at: (done + index) * PANEL, gates, bias: bias(panel) };
                multiply.panel(s, packed.panel(panel, cols), tile, &mut to);
            }
            done += count;
        }
    }
}

/// Keeps gates.
struct Gates<'a> {
    /// One a row.
    gates: &'a mut [[Line; 2]],
    /// From the panel's first output on.
    bias: Option<&'a [f32]>,
}

impl Take for Gates<'_> {
    #[inline(always)]
    fn expect<S: Simd>(&mut self, _s: S, _rows: Range<usize>) {}

    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, first: usize, sums: &[[Line; 2]]) {
        for (gates, sums) in self.gates[first..].iter_mut().zip(sums) {
            for half in 0..2 {
                s.store(biased(s, &sums[half], self.bias, half), &mut gates[half].0);
            }
        }
    }
}

/// Takes ups, and stores what comes of them and their gates.
struct Gated<'a, 'y> {
    y: &'a mut [&'y mut [f32]],
    /// First column.
    at: usize,
    /// One a row.
    gates: &'a [[Line; 2]],
    /// From the panel's first output on.
    bias: Option<&'a [f32]>,
}

impl Take for Gated<'_, '_> {
    #[inline(always)]
    fn expect<S: Simd>(&mut self, s: S, rows: Range<usize>) {
        expect_panel(s, &self.y[rows], self.at);
    }

    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, first: usize, sums: &[[Line; 2]]) {
        for ((y, gates), sums) in self.y[first..].iter_mut().zip(&self.gates[first..]).zip(sums) {
            for (half, y) in y[self.at..][..PANEL].as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                s.store(gated(s, s.load(&gates[half].0), biased(s, &sums[half], self.bias, half)), y);
            }
        }
    }
}

/// sum + bias.
#[inline(always)]
fn biased<S: Simd>(s: S, sum: &Line, bias: Option<&[f32]>, half: usize) -> S::V {
    let sum = s.load(&sum.0);
    bias.map_or(sum, |bias| s.add(sum, s.load_part(&bias[half * LANES..][..LANES], 0.0)))
}

impl LinearSwiglu for CpuBackend {
    fn linear_swiglu(&self, args: LinearSwigluArgs<'_, Tensor, Matrix>) -> Result<()> {
        args.check()?;
        let LinearSwigluArgs { ref y, x, weight, .. } = args;
        let (rows, cols, outputs) = (x.rows(), x.cols(), y.cols());
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        // Up begins in the middle of a panel, or weights are in four bits.
        if !outputs.is_multiple_of(PANEL) || weight.nf4().is_some() {
            return self.linear_then_swiglu(args);
        }
        let LinearSwigluArgs { y, bias, .. } = args;
        let (packed, bias) = (weight.packed(self)?, bias.map(|bias| &*bias.data));
        let product = Product { y: &mut y.data, x: &x.data, rows, packed, outputs, cols, bias, accumulate: false, gated: true };
        self.multiply(product);
        Ok(())
    }
}
