//! The micro-kernels and what feeds them: a block of rows times a panel of 32 outputs.
//!
//! The plain loops, which all forms below compute bit for bit in f32:
//! ```text
//! for r in rows { for n in outputs { sum = 0; for k in 0..K { sum = fma(x[r][k], w[n][k], sum) }; tile[r][n] = sum } }
//! ```
//! Rows of x are packed in blocks of up to MAX_ROWS as [K][rows], so that a micro-kernel walks x and W once from front to
//! back, with all sums in registers. Large K is cut into blocks whose panel part stays in the cache; the sums rest in the
//! tile between them, which changes no bit.

use super::matrix::{Packed, Panel, pairs_of_floats, round_bf16};
use super::simd::{Isa, Kernel, LANES, Line, PairLine, Simd};
use crate::tensor::Dtype;
use bytemuck::cast_slice_mut;
use std::ops::Range;

/// Values of k a panel is read for before the next block of rows: 32 outputs x 1024 x 4 bytes are 128 KiB, an eighth of L2.
const K_BLOCK: usize = 1024;

/// Bytes of packed rows that stay in L2 while panels stream past.
const GROUP_BYTES: usize = 400 * 1024;

/// How rows of x are stored for the micro-kernel that will read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// f32, [K][rows].
    F32,
    /// The same, K made even by a zero: for bf16 panels.
    F32Even,
    /// The same, rounded to bf16.
    RoundedEven,
    /// bf16 pairs, [K / 2][rows].
    Pairs,
}

impl Form {
    /// The form for `packed` weights and `compute` arithmetic on `isa`.
    pub(super) fn of(packed: &Packed, compute: Dtype, isa: Isa) -> Self {
        match (packed, compute) {
            (Packed::F32(_), _) => Self::F32,
            (Packed::Bf16(_), Dtype::F32 | Dtype::F16) => Self::F32Even,
            (Packed::Bf16(_), Dtype::Bf16) if isa.has_dot() => Self::Pairs,
            (Packed::Bf16(_), Dtype::Bf16) => Self::RoundedEven,
        }
    }

    /// 32-bit words a row takes.
    pub(super) fn words(self, k: usize) -> usize {
        match self {
            Self::F32 => k,
            Self::F32Even | Self::RoundedEven => k.next_multiple_of(2),
            Self::Pairs => k.div_ceil(2),
        }
    }
}

/// Part `index` of `parts` parts, as equal as can be, of 0..total.
#[inline(always)]
pub(super) fn share(total: usize, parts: usize, index: usize) -> Range<usize> {
    let (base, more) = (total / parts, total % parts);
    let start = index * base + index.min(more);
    start..start + base + usize::from(index < more)
}

/// Rows that are multiplied with a panel before the next panel: as many as fit in L2 when packed, in equal groups.
pub(super) fn group_rows(rows: usize, words: usize, threads: usize) -> usize {
    let fitting = (GROUP_BYTES / (4 * words.max(1))).clamp(28, 128);
    let groups = rows.div_ceil(fitting);
    // A number of groups that all threads share evenly, unless there are many.
    let groups = if groups >= 8 * threads { groups } else { groups.next_multiple_of(threads) };
    rows.div_ceil(groups.max(1)).max(fitting.min(28))
}

/// Packs `rows` rows of `x` ([rows, k] row-major) into `out` (rows * form.words(k)).
#[inline(always)]
pub(super) fn pack_rows<S: Simd>(form: Form, x: &[f32], k: usize, rows: usize, out: &mut [u32]) {
    let words = form.words(k);
    if words == 0 {
        return;
    }
    let blocks = rows.div_ceil(S::MAX_ROWS);
    for block in 0..blocks {
        let range = share(rows, blocks, block);
        let height = range.len();
        let x = &x[range.start * k..range.end * k];
        let out = &mut out[range.start * words..range.end * words];
        // Few columns at a time, so that the lines of `out` they go to stay in L1 while the rows pass.
        for start in (0..words).step_by(PACK_COLUMNS) {
            let width = (words - start).min(PACK_COLUMNS);
            let out = &mut out[start * height..][..width * height];
            for (r, x) in x.chunks_exact(k).enumerate() {
                let mut column = [0_u32; PACK_COLUMNS];
                match form {
                    Form::F32 | Form::F32Even => {
                        for (c, x) in column.iter_mut().zip(&x[start.min(k)..]) {
                            *c = x.to_bits();
                        }
                    }
                    Form::RoundedEven => {
                        for (c, x) in column.iter_mut().zip(&x[start.min(k)..]) {
                            *c = round_bf16(*x);
                        }
                    }
                    Form::Pairs => pairs_of_floats(&x[2 * start..(2 * (start + width)).min(k)], &mut column[..width]),
                }
                for (c, value) in column[..width].iter().enumerate() {
                    out[c * height + r] = *value;
                }
            }
        }
    }
}

/// Words of a row that are packed before the next row.
const PACK_COLUMNS: usize = 16;

/// tile\[r\]\[n\] = sum over k of x\[r, k\] w\[n, k\] for `rows` packed rows and one panel.
///
/// A call of its own, not inlined into its users: the micro-kernels are most of the backend's code and exist once.
pub(super) fn panel_tile(isa: Isa, form: Form, x: &[u32], rows: usize, panel: Panel<'_>, tile: &mut [[Line; 2]]) {
    match (panel, form) {
        (Panel::F32(w), _) => isa.run(Sweep { x, rows, width: 1, w, tile, step: Multiply }),
        (Panel::Bf16(w), Form::Pairs) => isa.run_dot(Sweep { x, rows, width: 1, w, tile, step: DotPairs }),
        // Few rows: widening in registers costs nothing beside reading the weights.
        (Panel::Bf16(w), Form::F32 | Form::F32Even | Form::RoundedEven) if rows <= FEW_ROWS => {
            isa.run(Sweep { x, rows, width: 2, w, tile, step: MultiplyPairs });
        }
        // Many: it would cost a fifth of the time if done for each block of rows, and 2 % done once for all of them.
        (Panel::Bf16(w), Form::F32 | Form::F32Even | Form::RoundedEven) => {
            let mut scratch = Scratch::lend(0, 4 * w.len());
            let wide = as_tile(scratch.parts().1);
            isa.run(Widen { w, out: wide });
            isa.run(Sweep { x, rows, width: 1, w: &*wide, tile, step: Multiply });
        }
    }
}

/// Up to so many rows a bf16 panel is widened on the way.
const FEW_ROWS: usize = 14;

/// A bf16 panel in f32, exactly.
struct Widen<'a> {
    w: &'a [[PairLine; 2]],
    /// Two for each of `w`.
    out: &'a mut [[Line; 2]],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (w, out) in self.w.iter().zip(self.out.as_chunks_mut::<2>().0) {
            for half in 0..2 {
                s.store(s.first_of_pairs(&w[half].0), &mut out[0][half].0);
                s.store(s.second_of_pairs(&w[half].0), &mut out[1][half].0);
            }
        }
    }
}

/// Packed rows times one panel.
struct Sweep<'a, W, T> {
    x: &'a [u32],
    rows: usize,
    /// Words of x a row that go with one element of `w`.
    width: usize,
    w: &'a [W],
    tile: &'a mut [[Line; 2]],
    step: T,
}

impl<W, T: Step<W>> Kernel for Sweep<'_, W, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        sweep(s, self.x, self.rows, self.width, self.w, self.tile, self.step);
    }
}

/// One step of a micro-kernel over `w`'s elements.
trait Step<W>: Copy {
    /// acc\[r\]\[v\] += for the x of MR rows (one or two per row, as the form has it) and the lines `half..half + NV` of `w`.
    fn step<S: Simd, const MR: usize, const NV: usize>(self, s: S, x: &[u32], w: &W, half: usize, acc: &mut [[S::V; NV]; MR]);
}

#[derive(Clone, Copy)]
struct Multiply;

impl Step<[Line; 2]> for Multiply {
    #[inline(always)]
    fn step<S: Simd, const MR: usize, const NV: usize>(
        self,
        s: S,
        x: &[u32],
        w: &[Line; 2],
        half: usize,
        acc: &mut [[S::V; NV]; MR],
    ) {
        let w: [S::V; NV] = std::array::from_fn(|v| s.load(&w[half + v].0));
        for r in 0..MR {
            let x = s.splat(f32::from_bits(x[r]));
            for v in 0..NV {
                acc[r][v] = s.fma(x, w[v], acc[r][v]);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct MultiplyPairs;

impl Step<[PairLine; 2]> for MultiplyPairs {
    #[inline(always)]
    fn step<S: Simd, const MR: usize, const NV: usize>(
        self,
        s: S,
        x: &[u32],
        w: &[PairLine; 2],
        half: usize,
        acc: &mut [[S::V; NV]; MR],
    ) {
        let first: [S::V; NV] = std::array::from_fn(|v| s.first_of_pairs(&w[half + v].0));
        for r in 0..MR {
            let x = s.splat(f32::from_bits(x[r]));
            for v in 0..NV {
                acc[r][v] = s.fma(x, first[v], acc[r][v]);
            }
        }
        let second: [S::V; NV] = std::array::from_fn(|v| s.second_of_pairs(&w[half + v].0));
        for r in 0..MR {
            let x = s.splat(f32::from_bits(x[MR + r]));
            for v in 0..NV {
                acc[r][v] = s.fma(x, second[v], acc[r][v]);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct DotPairs;

impl Step<[PairLine; 2]> for DotPairs {
    #[inline(always)]
    fn step<S: Simd, const MR: usize, const NV: usize>(
        self,
        s: S,
        x: &[u32],
        w: &[PairLine; 2],
        half: usize,
        acc: &mut [[S::V; NV]; MR],
    ) {
        for r in 0..MR {
            for v in 0..NV {
                acc[r][v] = s.dot_pairs(acc[r][v], x[r], &w[half + v].0);
            }
        }
    }
}

/// All blocks of k and of rows for one panel. `width` words of x a row go with one element of `w`.
#[inline(always)]
fn sweep<S: Simd, W, T: Step<W>>(s: S, x: &[u32], rows: usize, width: usize, w: &[W], tile: &mut [[Line; 2]], step: T) {
    let depth = w.len();
    let blocks = rows.div_ceil(S::MAX_ROWS);
    let mut start = 0;
    loop {
        let end = if depth - start > K_BLOCK + K_BLOCK / 2 { start + K_BLOCK } else { depth };
        let w = &w[start..end];
        for block in 0..blocks {
            let range = share(rows, blocks, block);
            let height = range.len();
            let words = height * width;
            let x = &x[range.start * width * depth..][start * words..end * words];
            let tile = &mut tile[range];
            match height {
                1 => halves::<S, W, T, 1>(s, x, width, w, start > 0, tile, step),
                2 => halves::<S, W, T, 2>(s, x, width, w, start > 0, tile, step),
                3 => halves::<S, W, T, 3>(s, x, width, w, start > 0, tile, step),
                4 => halves::<S, W, T, 4>(s, x, width, w, start > 0, tile, step),
                5 => halves::<S, W, T, 5>(s, x, width, w, start > 0, tile, step),
                6 => halves::<S, W, T, 6>(s, x, width, w, start > 0, tile, step),
                7 => halves::<S, W, T, 7>(s, x, width, w, start > 0, tile, step),
                8 => halves::<S, W, T, 8>(s, x, width, w, start > 0, tile, step),
                9 => halves::<S, W, T, 9>(s, x, width, w, start > 0, tile, step),
                10 => halves::<S, W, T, 10>(s, x, width, w, start > 0, tile, step),
                11 => halves::<S, W, T, 11>(s, x, width, w, start > 0, tile, step),
                12 => halves::<S, W, T, 12>(s, x, width, w, start > 0, tile, step),
                13 => halves::<S, W, T, 13>(s, x, width, w, start > 0, tile, step),
                _ => halves::<S, W, T, 14>(s, x, width, w, start > 0, tile, step),
            }
        }
        if end == depth {
            return;
        }
        start = end;
    }
}

/// Both halves of a panel at once where registers allow, else one after the other.
#[inline(always)]
fn halves<S: Simd, W, T: Step<W>, const MR: usize>(
    s: S,
    x: &[u32],
    width: usize,
    w: &[W],
    more: bool,
    tile: &mut [[Line; 2]],
    step: T,
) {
    if MR > S::MAX_ROWS {
        // Blocks have at most MAX_ROWS rows; saying so keeps the taller kernels out of the program.
    } else if S::VECS == 2 {
        micro::<S, W, T, MR, 2>(s, x, width, w, 0, more, tile, step);
    } else {
        micro::<S, W, T, MR, 1>(s, x, width, w, 0, more, tile, step);
        micro::<S, W, T, MR, 1>(s, x, width, w, 1, more, tile, step);
    }
}

/// The innermost loop: MR x NV sums in registers over all of `w`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the one place where all of them meet")]
fn micro<S: Simd, W, T: Step<W>, const MR: usize, const NV: usize>(
    s: S,
    x: &[u32],
    width: usize,
    w: &[W],
    half: usize,
    more: bool,
    tile: &mut [[Line; 2]],
    step: T,
) {
    let mut acc = [[s.splat(0.0); NV]; MR];
    if more {
        for r in 0..MR {
            for v in 0..NV {
                acc[r][v] = s.load(&tile[r][half + v].0);
            }
        }
    }
    if width == 2 {
        for (x, w) in x.chunks_exact(2 * MR).zip(w) {
            step.step::<S, MR, NV>(s, x, w, half, &mut acc);
        }
    } else {
        for (x, w) in x.chunks_exact(MR).zip(w) {
            step.step::<S, MR, NV>(s, x, w, half, &mut acc);
        }
    }
    for r in 0..MR {
        for v in 0..NV {
            s.store(acc[r][v], &mut tile[r][half + v].0);
        }
    }
}

thread_local! {
    static SCRATCH: std::cell::RefCell<Vec<Vec<Line>>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// This thread's scratch memory on loan, with whatever is in it; loans may nest. A value and not a function that takes a
/// closure: what stands in a closure is not compiled for the instruction set of the kernel around it.
pub(super) struct Scratch {
    memory: Vec<Line>,
    words: usize,
    lines: usize,
}

impl Scratch {
    /// `words` 32-bit words and `lines` lines.
    pub(super) fn lend(words: usize, lines: usize) -> Self {
        let mut memory = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
        let needed = words.div_ceil(LANES) + lines;
        if memory.len() < needed {
            memory.resize(needed, bytemuck::Zeroable::zeroed());
        }
        Self { memory, words, lines }
    }

    /// The words, and the lines.
    #[inline(always)]
    pub(super) fn parts(&mut self) -> (&mut [u32], &mut [Line]) {
        let (front, back) = self.memory.split_at_mut(self.words.div_ceil(LANES));
        (&mut cast_slice_mut(front)[..self.words], &mut back[..self.lines])
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        SCRATCH.with_borrow_mut(|free| free.push(memory));
    }
}

/// Lines seen as the pairs of a tile.
pub(super) fn as_tile(lines: &mut [Line]) -> &mut [[Line; 2]] {
    lines.as_chunks_mut::<2>().0
}
