//! Linear. The plain loops stand at the head of [`gemm`](super::gemm); here is who computes which part.
//!
//! Rows are cut into groups that fit in L2, panels into ranges; a task is a group times a range. A thread packs the rows of
//! a group for itself when it comes to its first task of it: what another core packed would have to come from that core's
//! cache, and a pass of packing ahead would be a loop more to start and wait for.

use super::gemm::{Form, Multiply, PackRows, Scratch, Take, as_tile, group_rows};
use super::linear_swiglu::Pairs;
use super::matrix::{PANEL, Packed};
use super::nf4::FEW_ROWS;
use super::pool::share;
use super::simd::{Isa, Kernel, LANES, Line, PairLine, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{Linear, LinearArgs, Shaped};
use std::ops::Range;

/// Multiplications a task should be worth: some microseconds.
const TASK_MULTIPLICATIONS: usize = 1 << 17;

/// What a thread holds while it works on a product: the rows of one group, packed.
struct Held<'a> {
    group: Option<usize>,
    lines: &'a mut [PairLine],
}

/// A group of rows times a range of panels.
struct Task<'a, 'y> {
    group: usize,
    panels: Range<usize>,
    /// For each row, its outputs that belong to the panels.
    y: &'a mut [&'y mut [f32]],
}

/// A task at work.
struct Part<'a, 'y, 'h> {
    isa: Isa,
    form: Form,
    packed: &'a Packed,
    cols: usize,
    /// [rows of the group, cols].
    x: &'a [f32],
    task: Task<'a, 'y>,
    held: &'a mut Held<'h>,
    /// [out_features].
    bias: Option<&'a [f32]>,
    accumulate: bool,
    /// The panel of up that goes with panel 0, where SwiGLU follows.
    up: Option<usize>,
}

impl Kernel for Part<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { isa, form, packed, cols, x, task: Task { group, panels, y }, held, bias, accumulate, up } = self;
        let rows = y.len();
        let lines = &mut held.lines[..rows * form.lines(cols)];
        if held.group != Some(group) {
            PackRows { form, x, cols, rows, out: &mut *lines }.pack(isa);
            held.group = Some(group);
        }
        let multiply = Multiply { isa, form, x: lines, rows };
        if let Some(up) = up {
            return Pairs { multiply, packed, cols, panels, up, y, bias }.multiply(s);
        }
        let mut scratch = Scratch::lend(0, 2 * rows);
        let tile = as_tile(scratch.parts().1);
        let mut outputs = Outputs { y: &mut *y, at: 0, bias: None, accumulate };
        for panel in panels {
            outputs.bias = bias.map(|bias| &bias[panel * PANEL..]);
            multiply.panel(s, packed.panel(panel, cols), tile, &mut outputs);
            outputs.at += PANEL;
        }
    }
}

/// Where the sums of one panel go.
struct Outputs<'a, 'y> {
    y: &'a mut [&'y mut [f32]],
    /// First column.
    at: usize,
    /// From that column on.
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

impl Take for Outputs<'_, '_> {
    #[inline(always)]
    fn expect<S: Simd>(&mut self, s: S, rows: Range<usize>) {
        expect_panel(s, &self.y[rows], self.at);
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

/// Has the lines of a panel's outputs fetched, which begin at column `at` of each row.
#[inline(always)]
pub(super) fn expect_panel<S: Simd>(s: S, y: &[&mut [f32]], at: usize) {
    for y in y {
        // Rows begin anywhere in a cache line where their length is no multiple of one: a panel's part may touch three.
        let y = &y[at..];
        for byte in [0, size_of::<Line>(), 2 * size_of::<Line>() - 1] {
            s.prefetch_to_write(y, byte);
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
    /// [outputs, cols]; of twice as many outputs where these are `gated`.
    pub(super) packed: &'a Packed,
    pub(super) outputs: usize,
    pub(super) cols: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) accumulate: bool,
    /// y is SwiGLU of the product's first half and its second; not to be accumulated then.
    pub(super) gated: bool,
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
        let (packed, bias) = (lent.packed(), bias.map(|bias| &*bias.data));
        self.multiply(Product { y: &mut y.data, x: &x.data, rows, packed, outputs, cols, bias, accumulate, gated: false });
        Ok(())
    }
}

impl CpuBackend {
    /// The product; rows and outputs are not 0.
    pub(super) fn multiply(&self, product: Product<'_>) {
        let Product { y, x, rows, packed, outputs, cols, bias, accumulate, gated } = product;
        let up = gated.then(|| outputs.div_ceil(PANEL));
        let all_panels = outputs.div_ceil(PANEL);
        let form = Form::of(packed, self.compute, self.isa);
        let threads = self.pool.threads();
        let lines = form.lines(cols);
        let height = group_rows(rows, lines, threads);
        let groups = rows.div_ceil(height);
        // Four tasks a thread, but none too small.
        let worthwhile = (rows.div_ceil(groups) * cols * outputs).div_ceil(TASK_MULTIPLICATIONS);
        let ranges = worthwhile.next_multiple_of(threads).min((4 * threads).div_ceil(groups)).clamp(1, all_panels);
        let panels: Vec<Range<usize>> = (0..ranges).map(|range| panel_range(all_panels, threads, ranges, range)).collect();
        // One piece of memory for all tasks: what a worker gets from the caller is slow to read, and slower to free.
        let mut slices: Vec<&mut [f32]> = Vec::new();
        slices.resize_with(rows * ranges, Default::default);
        let mut tasks = Vec::with_capacity(groups * ranges);
        let mut y = y.chunks_exact_mut(outputs);
        let mut rest = slices.as_mut_slice();
        for group in 0..groups {
            let rows = share(rows, groups, group).len();
            let own;
            (own, rest) = rest.split_at_mut(rows * ranges);
            for (row, mut y) in y.by_ref().take(rows).enumerate() {
                for (range, panels) in panels.iter().enumerate() {
                    (own[range * rows + row], y) = y.split_at_mut(y.len().min(panels.len() * PANEL));
                }
            }
            let parts = own.chunks_exact_mut(rows).zip(&panels);
            tasks.extend(parts.map(|(y, panels)| Task { group, panels: panels.clone(), y }));
        }
        let size = (rows.div_ceil(groups) * lines).max(1);
        let mut scratch = Scratch::lend(threads * size, 0);
        let held = scratch.parts().0.chunks_exact_mut(size).map(|lines| Held { group: None, lines });
        let isa = self.isa;
        self.pool.each_with(held, tasks, |held, task| {
            let group = share(rows, groups, task.group);
            let x = &x[group.start * cols..group.end * cols];
            isa.run(Part { isa, form, packed, cols, x, task, held, bias, accumulate, up });
        });
    }
}

/// Range `index` of `ranges` ranges of panels. Each thread begins with one stretch of them, the next panel of which is on
/// its way from memory.
fn panel_range(panels: usize, threads: usize, ranges: usize, index: usize) -> Range<usize> {
    if !ranges.is_multiple_of(threads) {
        return share(panels, ranges, index);
    }
    let each = ranges / threads;
    let stretch = share(panels, threads, index / each);
    let part = share(stretch.len(), each, index % each);
    stretch.start + part.start..stretch.start + part.end
}
