//! Linear. The plain loops stand at the head of [`gemm`](super::gemm); here is who computes which part.
//!
//! Many rows: each task packs a group of rows that fits in L2 and takes all panels past it. Few rows: the rows are packed
//! once and tasks share the panels, since reading the weights is then the work.

use super::gemm::{Form, Multiply, PackRows, Scratch, Take, as_tile, group_rows, share};
use super::matrix::{PANEL, Packed};
use super::nf4::FEW_ROWS;
use super::simd::{Isa, Kernel, LANES, Line, PairLine, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{Linear, LinearArgs, Shaped};
use std::ops::Range;

/// Multiplications a task should be worth: some microseconds.
const TASK_MULTIPLICATIONS: usize = 1 << 17;

/// Elements of x that one thread packs sooner than it would wake another.
const PACK_ALONE: usize = 20_000;

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
    Packed(&'a [PairLine]),
    Rows(&'a [f32]),
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, form, packed, cols, x, panels, y, bias, accumulate } = self;
        let rows = y.len();
        let lines = if let X::Rows(_) = x { rows * form.lines(cols) } else { 0 };
        let mut scratch = Scratch::lend(lines, 2 * rows);
        let (own, tile) = scratch.parts();
        let x = match x {
            X::Packed(x) => x,
            X::Rows(x) => {
                PackRows { form, x, cols, rows, out: &mut *own }.run(s);
                &*own
            }
        };
        let tile = as_tile(tile);
        let multiply = Multiply { isa, form, x, rows };
        let mut outputs = Outputs { y, at: 0, bias: None, accumulate };
        for panel in panels {
            outputs.bias = bias.map(|bias| &bias[panel * PANEL..]);
            multiply.panel(s, packed.panel(panel, cols), tile, &mut outputs);
            outputs.at += PANEL;
        }
    }
}

/// Where the sums of one panel go.
struct Outputs<'a> {
    y: Vec<&'a mut [f32]>,
    /// First column.
    at: usize,
    /// From that column on.
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

impl Take for Outputs<'_> {
    #[inline(always)]
    fn expect<S: Simd>(&mut self, s: S, rows: Range<usize>) {
        for y in &self.y[rows] {
            let y = &y[self.at..];
            s.prefetch(y, 0);
            s.prefetch(y, size_of::<Line>());
        }
    }

    #[inline(always)]
    fn take<S: Simd>(&mut self, s: S, first: usize, sums: &[[Line; 2]]) {
        for (y, sums) in self.y[first..].iter_mut().zip(sums) {
            let y = &mut y[self.at..];
            let width = y.len().min(PANEL);
            for (half, y) in y[..width].chunks_mut(LANES).enumerate() {
                let bias = self.bias.map(|bias| &bias[half * LANES..]);
                finish(s, s.load(&sums[half].0), bias, self.accumulate, y);
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

/// One product: y\[r, n\] = sum over k of x\[r, k\] w\[n, k\] (+ bias\[n\]) (+ y\[r, n\]).
pub(super) struct Product<'a> {
    /// [rows, outputs].
    pub(super) y: &'a mut [f32],
    /// [rows, cols].
    pub(super) x: &'a [f32],
    pub(super) rows: usize,
    /// [outputs, cols].
    pub(super) packed: &'a Packed,
    pub(super) outputs: usize,
    pub(super) cols: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) accumulate: bool,
}

impl Linear for CpuBackend {
    fn linear(&self, args: LinearArgs<'_, Tensor, super::Matrix>) -> Result<()> {
        args.check()?;
        let LinearArgs { y, x, weight, bias, accumulate } = args;
        let (rows, cols, outputs) = (x.rows(), x.cols(), weight.rows());
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        if let Some(nf4) = weight.nf4().filter(|_| rows <= FEW_ROWS) {
            nf4.few_rows(self, LinearArgs { y, x, weight, bias, accumulate });
            return Ok(());
        }
        let lent = weight.packed_once(self)?;
        let (packed, bias) = (lent.packed(), bias.map(|bias| bias.data.as_slice()));
        self.multiply(Product { y: &mut y.data, x: &x.data, rows, packed, outputs, cols, bias, accumulate });
        Ok(())
    }
}

impl CpuBackend {
    /// The product; rows and outputs are not 0.
    pub(super) fn multiply(&self, product: Product<'_>) {
        let Product { y, x, rows, packed, outputs, cols, bias, accumulate } = product;
        let all_panels = outputs.div_ceil(PANEL);
        let form = Form::of(packed, self.compute, self.isa);
        let threads = self.pool.threads();
        let lines = form.lines(cols);
        let height = group_rows(rows, lines, threads);
        let groups = rows.div_ceil(height);
        let isa = self.isa;
        let one_task = Part { isa, form, packed, cols, x: X::Rows(x), panels: 0..0, y: Vec::new(), bias, accumulate };
        if groups >= 2 * threads {
            let parts = (0..groups).zip(group_slices(y, rows, outputs, groups)).map(|(group, y)| {
                let rows = share(rows, groups, group);
                Part { x: X::Rows(&x[rows.start * cols..rows.end * cols]), panels: 0..all_panels, y, ..one_task.like() }
            });
            self.pool.each(parts, |_, part| isa.run(part));
            return;
        }
        // Few rows: packed once, panels shared.
        let panel_work = rows.div_ceil(groups) * cols * PANEL;
        let ranges = (groups * all_panels * panel_work).div_ceil(TASK_MULTIPLICATIONS).div_ceil(groups);
        let ranges = ranges.next_multiple_of(threads).min((4 * threads).div_ceil(groups)).clamp(1, all_panels);
        let mut scratch = Scratch::lend(rows * lines, 0);
        let shared = scratch.parts().0;
        let mut rest = &mut *shared;
        let packing = (0..groups).map(|group| {
            let group = share(rows, groups, group);
            let (out, after) = std::mem::take(&mut rest).split_at_mut(group.len() * lines);
            rest = after;
            let x = &x[group.start * cols..group.end * cols];
            PackRows { form, x, cols, rows: group.len(), out }
        });
        if rows * cols < PACK_ALONE {
            packing.for_each(|pack| isa.run(pack));
        } else {
            self.pool.each(packing, |_, pack| isa.run(pack));
        }
        let shared = &*shared;
        let mut parts = Vec::with_capacity(groups * ranges);
        let mut y = y.chunks_exact_mut(outputs);
        for group in 0..groups {
            let rows = share(rows, groups, group);
            let x = X::Packed(&shared[rows.start * lines..rows.end * lines]);
            let first = parts.len();
            parts.extend((0..ranges).map(|range| Part {
                x,
                panels: share(all_panels, ranges, range),
                y: Vec::with_capacity(rows.len()),
                ..one_task.like()
            }));
            for mut y in y.by_ref().take(rows.len()) {
                for part in &mut parts[first..] {
                    let width = y.len().min(part.panels.len() * PANEL);
                    let (own, rest) = y.split_at_mut(width);
                    part.y.push(own);
                    y = rest;
                }
            }
        }
        self.pool.each(parts, |_, part| isa.run(part));
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
