//! The micro-kernels and what feeds them: a block of rows times a panel of 32 outputs.
//!
//! The plain loops, which all forms below compute bit for bit in f32:
//! ```text
//! for r in rows { for n in outputs { sum = 0; for k in 0..K { sum = fma(x[r][k], w[n][k], sum) }; tile[r][n] = sum } }
//! ```
//! Rows of x are packed block by block as [K / 16][rows of the block][16 words]: a micro-kernel walks x and W once from
//! front to back, and packing moves whole lines. All sums of a block are in registers. Large K is cut into parts whose share
//! of a panel stays in L2; between them the sums rest in the tile, which changes no bit.
//!
//! Panels come from memory. While a block is computed, its micro-kernel asks for its share of the panel part that follows;
//! when there is only one block, for what it will itself read a few steps later.

use super::matrix::{Packed, Panel, pairs_of_floats, round_bf16};
use super::pool::share;
use super::simd::{Isa, Kernel, LANES, Line, PairLine, Simd};
use crate::tensor::Dtype;
use bytemuck::{Zeroable, cast_slice_mut};
use std::ops::Range;

/// Words of k in a part, and half of it more in a last one: at most 192 KiB of a panel.
const PART_WORDS: usize = 1024;

/// Bytes of packed rows that stay in L2 while panels stream past.
const GROUP_BYTES: usize = 400 * 1024;

/// How far a lone block asks ahead, in bytes: what two cores read in the time of one access to memory.
const AHEAD_BYTES: usize = 96 * 64;

/// How rows of x are stored for the micro-kernel that will read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// f32.
    F32,
    /// f32, for bf16 panels: K is made even by a zero.
    F32Even,
    /// The same, rounded to bf16.
    RoundedEven,
    /// bf16 pairs.
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

    /// Floats in a packed line.
    pub(super) const fn floats(self) -> usize {
        match self {
            Self::F32 | Self::F32Even | Self::RoundedEven => LANES,
            Self::Pairs => 2 * LANES,
        }
    }

    /// Lines a packed row of `k` elements takes.
    pub(super) const fn lines(self, k: usize) -> usize {
        k.div_ceil(self.floats())
    }

    /// Rows a block has at most: as many sums as registers hold beside what the micro-kernel of this form needs.
    #[inline(always)]
    pub(super) const fn block_rows<S: Simd>(self) -> usize {
        match self {
            Self::F32 | Self::Pairs => S::MAX_ROWS,
            Self::F32Even | Self::RoundedEven => S::MAX_ROWS_OF_PAIRS,
        }
    }
}

/// Rows that are multiplied with a panel before the next panel: as many as fit in L2 with `lines` lines each, in equal
/// groups.
pub(super) fn group_rows(rows: usize, lines: usize, threads: usize) -> usize {
    let fitting = (GROUP_BYTES / (64 * lines.max(1))).clamp(28, 128);
    let groups = rows.div_ceil(fitting);
    // A number of groups that all threads share evenly, unless there are many.
    let groups = if groups >= 8 * threads { groups } else { groups.next_multiple_of(threads) };
    rows.div_ceil(groups.max(1)).max(fitting.min(28))
}

/// Rows of x to be packed.
pub(super) struct PackRows<'a> {
    pub(super) form: Form,
    /// [rows, cols].
    pub(super) x: &'a [f32],
    pub(super) cols: usize,
    pub(super) rows: usize,
    /// rows x form.lines(cols).
    pub(super) out: &'a mut [PairLine],
}

impl PackRows<'_> {
    /// Packs; pairs with the instructions that will multiply them.
    pub(super) fn pack(self, isa: Isa) {
        if self.form == Form::Pairs { isa.run_dot(self) } else { isa.run(self) }
    }
}

impl Kernel for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { form, x, cols, rows, out } = self;
        if cols == 0 || rows == 0 {
            return;
        }
        let lines = form.lines(cols);
        let blocks = rows.div_ceil(form.block_rows::<S>());
        for block in 0..blocks {
            let range = share(rows, blocks, block);
            let height = range.len();
            let out = &mut out[range.start * lines..range.end * lines];
            for (r, x) in x[range.start * cols..range.end * cols].chunks_exact(cols).enumerate() {
                let out = out[r..].iter_mut().step_by(height);
                for (x, out) in x.chunks(form.floats()).zip(out) {
                    pack_line(s, form, x, &mut out.0);
                }
            }
        }
    }
}

/// Up to form.floats() elements, with zeros behind them.
#[inline(always)]
pub(super) fn pack_line<S: Simd>(s: S, form: Form, x: &[f32], out: &mut [u32; LANES]) {
    if let (Form::Pairs, Some(x)) = (form, x.as_array()) {
        *out = s.neighbours(x);
        return;
    }
    if x.len() < form.floats() {
        *out = Zeroable::zeroed();
    }
    match form {
        Form::F32 | Form::F32Even => x.iter().zip(out).for_each(|(x, out)| *out = x.to_bits()),
        Form::RoundedEven => x.iter().zip(out).for_each(|(x, out)| *out = round_bf16(*x)),
        Form::Pairs => pairs_of_floats(x, out),
    }
}

/// Who takes the sums of a block of rows when they are complete.
pub(super) trait Take {
    /// Called before the last part of the sums of `rows` is computed: to have memory fetched.
    fn expect<S: Simd>(&mut self, s: S, rows: Range<usize>);
    /// The sums of rows `first..` and a panel, a tile row each.
    fn take<S: Simd>(&mut self, s: S, first: usize, sums: &[[Line; 2]]);
}

/// Packed rows times panels.
#[derive(Clone, Copy)]
pub(super) struct Multiply<'a> {
    pub(super) isa: Isa,
    pub(super) form: Form,
    /// As [`PackRows`] packs.
    pub(super) x: &'a [PairLine],
    pub(super) rows: usize,
}

impl Multiply<'_> {
    /// All rows times one panel, of which `tile` (a row each) holds the sums while they grow.
    #[inline(always)]
    pub(super) fn panel<S: Simd>(self, s: S, panel: Panel<'_>, tile: &mut [[Line; 2]], to: &mut impl Take) {
        let Self { isa, form, x, rows } = self;
        let blocks = rows.div_ceil(form.block_rows::<S>());
        let lines = x.len() / rows.max(1);
        let words = lines * LANES;
        let mut start = 0;
        loop {
            let end = if words - start > PART_WORDS + PART_WORDS / 2 { start + PART_WORDS } else { words };
            let part = panel.part(form, start..end);
            for block in 0..blocks {
                let range = share(rows, blocks, block);
                let x = &x[range.start * lines..range.end * lines][start / LANES * range.len()..];
                let tile = &mut tile[range.clone()];
                if end == words {
                    to.expect(s, range.clone());
                }
                multiply_block(isa, form, x, part, start > 0, Ahead::of(part, blocks, block), tile);
                if end == words {
                    to.take(s, range.start, tile);
                }
            }
            if end == words {
                return;
            }
            start = end;
        }
    }
}

impl<'a> Panel<'a> {
    /// What goes with words `words` of packed rows.
    fn part(self, form: Form, words: Range<usize>) -> Self {
        match (self, form) {
            (Self::F32(w), _) => Self::F32(&w[words.start..words.end.min(w.len())]),
            (Self::Bf16(w), Form::Pairs) => Self::Bf16(&w[words.start..words.end.min(w.len())]),
            (Self::Bf16(w), _) => Self::Bf16(&w[words.start / 2..(words.end / 2).min(w.len())]),
        }
    }

    fn len(self) -> usize {
        match self {
            Self::F32(w) => w.len(),
            Self::Bf16(w) => w.len(),
        }
    }
}

/// What a block's micro-kernel has fetched meanwhile: from `start` bytes after its panel part on, `step` bytes more at each
/// element.
#[derive(Clone, Copy)]
struct Ahead {
    start: usize,
    step: usize,
}

impl Ahead {
    /// Block `block` of `blocks` fetches its share of as many bytes as `part` has, right behind it.
    fn of(part: Panel<'_>, blocks: usize, block: usize) -> Self {
        const ELEMENT: usize = size_of::<[Line; 2]>();
        if blocks == 1 {
            return Self { start: AHEAD_BYTES, step: ELEMENT };
        }
        let step = ELEMENT.div_ceil(blocks);
        Self { start: part.len() * (ELEMENT + block * step), step }
    }
}

/// tile = or += rows times panel part, tile.len() rows.
///
/// A call of its own, not inlined into its users: the micro-kernels are most of the backend's code and exist once.
fn multiply_block(isa: Isa, form: Form, x: &[PairLine], w: Panel<'_>, more: bool, ahead: Ahead, tile: &mut [[Line; 2]]) {
    match (w, form) {
        (Panel::F32(w), _) => isa.run(Block { x, w, more, ahead, tile, step: FloatStep }),
        (Panel::Bf16(w), Form::Pairs) => isa.run_dot(Block { x, w, more, ahead, tile, step: DotStep }),
        (Panel::Bf16(w), Form::F32 | Form::F32Even | Form::RoundedEven) => {
            isa.run(Block { x, w, more, ahead, tile, step: PairStep });
        }
    }
}

/// A block of rows times a panel part.
struct Block<'a, W, T> {
    x: &'a [PairLine],
    w: &'a [W],
    more: bool,
    ahead: Ahead,
    tile: &'a mut [[Line; 2]],
    step: T,
}

impl<W, T: Step<W>> Kernel for Block<'_, W, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.tile.len() {
            1 => self.halves::<S, 1>(s),
            2 => self.halves::<S, 2>(s),
            3 => self.halves::<S, 3>(s),
            4 => self.halves::<S, 4>(s),
            5 => self.halves::<S, 5>(s),
            6 => self.halves::<S, 6>(s),
            7 => self.halves::<S, 7>(s),
            8 => self.halves::<S, 8>(s),
            9 => self.halves::<S, 9>(s),
            10 => self.halves::<S, 10>(s),
            11 => self.halves::<S, 11>(s),
            12 => self.halves::<S, 12>(s),
            13 => self.halves::<S, 13>(s),
            _ => self.halves::<S, 14>(s),
        }
    }
}

impl<W, T: Step<W>> Block<'_, W, T> {
    /// Both halves of a panel at once where registers allow, else one after the other.
    #[inline(always)]
    fn halves<S: Simd, const MR: usize>(mut self, s: S) {
        if MR > T::most_rows::<S>() {
            // Blocks have no more rows; saying so keeps the taller kernels out of the program.
        } else if S::VECS == 2 {
            self.micro::<S, MR, 2>(s, 0);
        } else {
            self.micro::<S, MR, 1>(s, 0);
            self.micro::<S, MR, 1>(s, 1);
        }
    }

    /// The innermost loop: MR x NV sums in registers over all of `w`.
    #[inline(always)]
    fn micro<S: Simd, const MR: usize, const NV: usize>(&mut self, s: S, half: usize) {
        let Some(tile) = self.tile.first_chunk_mut::<MR>() else { return };
        let mut acc = [[s.splat(0.0); NV]; MR];
        if self.more {
            for r in 0..MR {
                for v in 0..NV {
                    acc[r][v] = s.load(&tile[r][half + v].0);
                }
            }
        }
        let mut ahead = self.ahead.start + half * size_of::<Line>();
        for (x, w) in self.x.as_chunks::<MR>().0.iter().zip(self.w.chunks(LANES / T::WORDS)) {
            for (k, w) in (0..LANES / T::WORDS).zip(w) {
                for v in 0..NV {
                    s.prefetch(self.w, ahead + v * size_of::<Line>());
                }
                ahead += self.ahead.step;
                self.step.step::<S, MR, NV>(s, x, k * T::WORDS, w, half, &mut acc);
            }
        }
        for r in 0..MR {
            for v in 0..NV {
                s.store(acc[r][v], &mut tile[r][half + v].0);
            }
        }
    }
}

/// One step of a micro-kernel over `w`'s elements.
trait Step<W>: Copy {
    /// Words of a packed row that go with one element of `w`.
    const WORDS: usize;

    /// Rows a block has at most.
    #[inline(always)]
    fn most_rows<S: Simd>() -> usize {
        S::MAX_ROWS
    }

    /// acc\[r\]\[v\] += for words `k..` of a line of each of MR rows and the lines `half..half + NV` of `w`.
    fn step<S: Simd, const MR: usize, const NV: usize>(
        self,
        s: S,
        x: &[PairLine; MR],
        k: usize,
        w: &W,
        half: usize,
        acc: &mut [[S::V; NV]; MR],
    );
}

/// f32 times f32.
#[derive(Clone, Copy)]
struct FloatStep;

impl Step<[Line; 2]> for FloatStep {
    const WORDS: usize = 1;

    #[inline(always)]
    fn step<S: Simd, const MR: usize, const NV: usize>(
        self,
        s: S,
        x: &[PairLine; MR],
        k: usize,
        w: &[Line; 2],
        half: usize,
        acc: &mut [[S::V; NV]; MR],
    ) {
        let w: [S::V; NV] = std::array::from_fn(|v| s.load(&w[half + v].0));
        for r in 0..MR {
            let x = s.splat(f32::from_bits(x[r].0[k]));
            for v in 0..NV {
                acc[r][v] = s.fma(x, w[v], acc[r][v]);
            }
        }
    }
}

/// f32 times bf16, widened in registers.
#[derive(Clone, Copy)]
struct PairStep;

impl Step<[PairLine; 2]> for PairStep {
    const WORDS: usize = 2;

    #[inline(always)]
    fn most_rows<S: Simd>() -> usize {
        S::MAX_ROWS_OF_PAIRS
    }

    #[inline(always)]
    fn step<S: Simd, const MR: usize, const NV: usize>(
        self,
        s: S,
        x: &[PairLine; MR],
        k: usize,
        w: &[PairLine; 2],
        half: usize,
        acc: &mut [[S::V; NV]; MR],
    ) {
        let first: [S::V; NV] = std::array::from_fn(|v| s.first_of_pairs(&w[half + v].0));
        for r in 0..MR {
            let x = s.splat(f32::from_bits(x[r].0[k]));
            for v in 0..NV {
                acc[r][v] = s.fma(x, first[v], acc[r][v]);
            }
        }
        let second: [S::V; NV] = std::array::from_fn(|v| s.second_of_pairs(&w[half + v].0));
        for r in 0..MR {
            let x = s.splat(f32::from_bits(x[r].0[k + 1]));
            for v in 0..NV {
                acc[r][v] = s.fma(x, second[v], acc[r][v]);
            }
        }
    }
}

/// bf16 times bf16 in pairs.
#[derive(Clone, Copy)]
struct DotStep;

impl Step<[PairLine; 2]> for DotStep {
    const WORDS: usize = 1;

    #[inline(always)]
    fn step<S: Simd, const MR: usize, const NV: usize>(
        self,
        s: S,
        x: &[PairLine; MR],
        k: usize,
        w: &[PairLine; 2],
        half: usize,
        acc: &mut [[S::V; NV]; MR],
    ) {
        for r in 0..MR {
            for v in 0..NV {
                acc[r][v] = s.dot_pairs(acc[r][v], x[r].0[k], &w[half + v].0);
            }
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
    packed: usize,
    lines: usize,
}

impl Scratch {
    /// `packed` lines of words and `lines` lines of floats.
    pub(super) fn lend(packed: usize, lines: usize) -> Self {
        let mut memory = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
        if memory.len() < packed + lines {
            memory.resize(packed + lines, Zeroable::zeroed());
        }
        Self { memory, packed, lines }
    }

    /// The words, and the floats.
    #[inline(always)]
    pub(super) fn parts(&mut self) -> (&mut [PairLine], &mut [Line]) {
        let (front, back) = self.memory.split_at_mut(self.packed);
        (cast_slice_mut(front), &mut back[..self.lines])
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
