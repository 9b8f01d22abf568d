//! Linear. The plain loops stand at the head of [`gemm`](super::gemm); here is who computes which part.
//!
//! Many rows: each task packs a group of rows that fits in L2 and takes all panels past it. Few rows: the rows are packed
//! once and tasks share the panels, since reading the weights is then the work.

use super::gemm::{Form, Scratch, as_tile, group_rows, pack_rows, panel_tile, share};
use super::matrix::{PANEL, Packed};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{Linear, LinearArgs, Shaped};
use std::ops::Range;

/// Multiplications a task should be worth: some 5 microseconds.
const TASK_MULTIPLICATIONS: usize = 1 << 18;

/// A group of rows times a range of panels.
struct Part<'a> {
    isa: Isa,
    form: Form,
    packed: &'a Packed,
    cols: usize,
    /// Packed already, or [rows, cols] row-major.
    x: X<'a>,
    panels: Range<usize>,
    /// For each row, its outputs that belong to the panels.
    y: Vec<&'a mut [f32]>,
    /// [out_features].
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

#[derive(Clone, Copy)]
enum X<'a> {
    Packed(&'a [u32]),
    Rows(&'a [f32]),
}

struct Pack<'a> {
    form: Form,
    x: &'a [f32],
    cols: usize,
    rows: usize,
    out: &'a mut [u32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        pack_rows::<S>(self.form, self.x, self.cols, self.rows, self.out);
    }
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.y.len();
        let words = if let X::Rows(_) = self.x { rows * self.form.words(self.cols) } else { 0 };
        let mut scratch = Scratch::lend(words, 2 * rows);
        let (own, tile) = scratch.parts();
        let x = match self.x {
            X::Packed(x) => x,
            X::Rows(x) => {
                pack_rows::<S>(self.form, x, self.cols, rows, own);
                &*own
            }
        };
        let tile = as_tile(tile);
        for panel in self.panels.clone() {
            panel_tile(self.isa, self.form, x, rows, self.packed.panel(panel, self.cols), tile);
            let at = (panel - self.panels.start) * PANEL;
            let bias = self.bias.map(|bias| &bias[panel * PANEL..]);
            for (y, sums) in self.y.iter_mut().zip(&*tile) {
                let width = (y.len() - at).min(PANEL);
                let y = &mut y[at..at + width];
                for (half, y) in y.chunks_mut(LANES).enumerate() {
                    let bias = bias.map(|bias| &bias[half * LANES..]);
                    finish(s, s.load(&sums[half].0), bias, self.accumulate, y);
                }
            }
        }
    }
}

/// ((sum + bias) + y), or without what is not asked for.
#[inline(always)]
fn finish<S: Simd>(s: S, mut sum: S::V, bias: Option<&[f32]>, accumulate: bool, y: &mut [f32]) {
    if let Some(y) = y.as_mut_array::<LANES>() {
        if let Some(bias) = bias {
            sum = s.add(sum, s.load_part(&bias[..LANES], 0.0));
        }
        if accumulate {
            sum = s.add(sum, s.load(y));
        }
        s.store(sum, y);
    } else {
        if let Some(bias) = bias {
            sum = s.add(sum, s.load_part(&bias[..y.len()], 0.0));
        }
        if accumulate {
            sum = s.add(sum, s.load_part(y, 0.0));
        }
        s.store_part(sum, y);
    }
}

impl Linear for CpuBackend {
    fn linear(&self, args: LinearArgs<'_, Tensor, super::Matrix>) -> Result<()> {
        args.check()?;
        let LinearArgs { y, x, weight, bias, accumulate } = args;
        let (rows, cols, outputs) = (x.rows(), x.cols(), weight.rows());
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        let packed = weight.packed(self)?;
        let form = Form::of(packed, self.compute, self.isa);
        let bias = bias.map(|bias| bias.data.as_slice());
        let threads = self.pool.threads();
        let height = group_rows(rows, form.words(cols), threads);
        let groups = rows.div_ceil(height);
        let isa = self.isa;
        let one_task = Part { isa, form, packed, cols, x: X::Rows(&x.data), panels: 0..0, y: Vec::new(), bias, accumulate };
        if groups >= 2 * threads {
            let parts = (0..groups).zip(group_slices(&mut y.data, rows, outputs, groups)).map(|(group, y)| {
                let rows = share(rows, groups, group);
                Part { x: X::Rows(&x.data[rows.start * cols..rows.end * cols]), panels: 0..weight.panels(), y, ..one_task.like() }
            });
            self.pool.each(parts, |_, part| isa.run(part));
            return Ok(());
        }
        // Few rows: packed once, panels shared.
        let panel_work = rows.div_ceil(groups) * cols * PANEL;
        let ranges = (groups * weight.panels() * panel_work).div_ceil(TASK_MULTIPLICATIONS).div_ceil(groups);
        let ranges = ranges.min((4 * threads).div_ceil(groups)).clamp(1, weight.panels());
        let words = form.words(cols);
        let mut scratch = Scratch::lend(rows * words, 0);
        let shared = scratch.parts().0;
        let mut rest = &mut *shared;
        for group in 0..groups {
            let group = share(rows, groups, group);
            let (out, after) = rest.split_at_mut(group.len() * words);
            rest = after;
            let x = &x.data[group.start * cols..group.end * cols];
            self.isa.run(Pack { form, x, cols, rows: group.len(), out });
        }
        let shared = &*shared;
        let mut parts = Vec::with_capacity(groups * ranges);
        for (group, y) in group_slices(&mut y.data, rows, outputs, groups).into_iter().enumerate() {
            let group = share(rows, groups, group);
            let x = X::Packed(&shared[group.start * words..group.end * words]);
            let mut rest = y;
            for range in 0..ranges {
                let panels = share(weight.panels(), ranges, range);
                let width = (panels.end * PANEL).min(outputs) - panels.start * PANEL;
                let (y, after): (Vec<_>, Vec<_>) = rest.into_iter().map(|y| y.split_at_mut(width)).unzip();
                rest = after;
                parts.push(Part { x, panels, y, ..one_task.like() });
            }
        }
        self.pool.each(parts, |_, part| isa.run(part));
        Ok(())
    }
}

impl<'a> Part<'a> {
    /// The same matrix and options, no rows yet.
    fn like(&self) -> Part<'a> {
        let Self { isa, form, packed, cols, x, bias, accumulate, .. } = *self;
        Part { isa, form, packed, cols, x, panels: 0..0, y: Vec::new(), bias, accumulate }
    }
}

/// The rows of each group of `y` ([rows, cols]).
fn group_slices(y: &mut [f32], rows: usize, cols: usize, groups: usize) -> Vec<Vec<&mut [f32]>> {
    let mut lines = y.chunks_exact_mut(cols);
    (0..groups).map(|group| lines.by_ref().take(share(rows, groups, group).len()).collect()).collect()
}
