//! NF4 matrices on the CPU: panels of 32 outputs like all weights, but a block of 64 k holds 4-bit codes and 32 magnitudes.
//!
//! Few rows: codes become weights in registers on their way into the sums; memory gives 0.5625 bytes a weight. Many rows: the
//! matrix is widened into panels of f32 or bf16 for this one product, which costs a few hundredths of it. Both compute
//! weight = CODEBOOK\[code\] * magnitude, rounded once, and then what the dense product computes: the same bits.

use super::mapped::map_lines;
use super::matrix::{Matrix, PANEL, Packed, pairs_of_floats, round_bf16};
use super::pool::Pool;
use super::pool::share;
use super::simd::{Kernel, LANES, Line, PairLine, Simd};
use super::{CpuBackend, Tensor};
use crate::error::Result;
use crate::ops::{LinearArgs, Nf4};
use crate::quant::{BLOCK, CODEBOOK, Nf4Tensor};
use crate::tensor::Dtype;
use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};
use memmap2::MmapMut;

/// Up to so many rows weights are made in registers, for each eight rows anew.
pub(super) const FEW_ROWS: usize = 32;
/// Rows whose sums are held in registers.
const MOST_ROWS: usize = 8;
/// Codes a word.
const NIBBLES: usize = 8;

/// 64 weights of 32 outputs.
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Block {
    /// A lane for each output.
    absmax: [Line; 2],
    /// \[eight k\]\[outputs\]: the first k in the lowest bits.
    words: [[PairLine; 2]; BLOCK / NIBBLES],
}

/// A matrix of whole blocks: [panel][in_features / 64].
#[derive(Debug)]
pub(super) struct Nf4Panels {
    memory: MmapMut,
    cols: usize,
    panels: usize,
}

impl Nf4Panels {
    /// Parts stacked; their in_features are equal and a multiple of 64.
    fn new(pool: &Pool, parts: &[Nf4Tensor], rows: usize, cols: usize) -> Result<Self> {
        let (panels, per_panel) = (rows.div_ceil(PANEL), cols / BLOCK);
        let mut memory = map_lines(panels * per_panel * (size_of::<Block>() / size_of::<Line>()))?;
        let blocks = cast_slice_mut::<u8, Block>(&mut memory);
        pool.chunks(blocks, per_panel * panels.div_ceil(8 * pool.threads()).max(1), |first, blocks| {
            for (index, block) in blocks.iter_mut().enumerate() {
                let (panel, b) = ((first + index) / per_panel, (first + index) % per_panel);
                for output in 0..PANEL.min(rows - panel * PANEL) {
                    let Some((part, row)) = locate(parts, panel * PANEL + output) else { continue };
                    let at = row * per_panel + b;
                    let (half, lane) = (output / LANES, output % LANES);
                    block.absmax[half].0[lane] = part.absmax[at];
                    let codes = &part.codes.as_slice()[at * (BLOCK / 2)..][..BLOCK / 2];
                    for (words, codes) in block.words.iter_mut().zip(codes.as_chunks::<4>().0) {
                        // In the file the first of a byte's two codes is the upper one.
                        let word = u32::from_le_bytes(*codes);
                        words[half].0[lane] = (word & 0x0f0f_0f0f) << 4 | (word >> 4 & 0x0f0f_0f0f);
                    }
                }
            }
        });
        Ok(Self { memory, cols, panels })
    }

    fn blocks(&self) -> &[Block] {
        &cast_slice(&self.memory[..])[..self.panels * self.per_panel()]
    }

    fn per_panel(&self) -> usize {
        self.cols / BLOCK
    }

    /// Row `row` as f32.
    pub(super) fn copy_row(&self, row: usize, out: &mut [f32]) {
        let (half, lane) = (row % PANEL / LANES, row % LANES);
        let blocks = &self.blocks()[row / PANEL * self.per_panel()..][..self.per_panel()];
        for (block, out) in blocks.iter().zip(out.chunks_mut(BLOCK)) {
            let scale = block.absmax[half].0[lane];
            for (k, out) in out.iter_mut().enumerate() {
                let word = block.words[k / NIBBLES][half].0[lane];
                *out = CODEBOOK[(word >> (4 * (k % NIBBLES)) & 15) as usize] * scale;
            }
        }
    }

    /// All weights, as the many-row product for `backend`'s arithmetic takes them.
    pub(super) fn widen(&self, backend: &CpuBackend) -> Result<Packed> {
        let blocks = self.blocks();
        let per_task = self.per_panel() * self.panels.div_ceil(8 * backend.pool.threads()).max(1);
        if backend.compute == Dtype::Bf16 {
            let mut memory = backend.spare.lend(blocks.len() * BLOCK)?;
            let out = cast_slice_mut::<u8, [PairLine; 2]>(&mut memory);
            let isa = backend.isa;
            backend.pool.chunks(&mut out[..blocks.len() * (BLOCK / 2)], per_task * (BLOCK / 2), |first, out| {
                let kernel = WidenPairs { blocks: &blocks[first / (BLOCK / 2)..], out };
                if isa.has_dot() { isa.run_dot(kernel) } else { isa.run(kernel) }
            });
            return Ok(Packed::Bf16(memory));
        }
        let mut memory = backend.spare.lend(2 * blocks.len() * BLOCK)?;
        let out = cast_slice_mut::<u8, [Line; 2]>(&mut memory);
        backend.pool.chunks(&mut out[..blocks.len() * BLOCK], per_task * BLOCK, |first, out| {
            backend.isa.run(WidenFloats { blocks: &blocks[first / BLOCK..], out });
        });
        Ok(Packed::F32(memory))
    }

    /// Linear of at most [`FEW_ROWS`] rows.
    pub(super) fn few_rows(&self, backend: &CpuBackend, args: LinearArgs<'_, Tensor, Matrix>) {
        let LinearArgs { y, x, bias, accumulate, .. } = args;
        let (rows, outputs) = (x.rows, y.cols);
        let words = self.cols / 2;
        let (isa, blocks, per_panel) = (backend.isa, self.blocks(), self.per_panel());
        let rounded: Vec<f32>;
        let mut pairs: Vec<u32> = Vec::new();
        let given = match backend.compute {
            Dtype::F32 | Dtype::F16 => X::Floats { x: &x.data, rounded: false },
            Dtype::Bf16 if isa.has_dot() => {
                pairs.resize(rows * words, 0);
                pairs.chunks_exact_mut(words).zip(x.data.chunks_exact(self.cols)).for_each(|(p, x)| pairs_of_floats(x, p));
                X::Pairs(&pairs)
            }
            Dtype::Bf16 => {
                rounded = x.data.iter().map(|&x| f32::from_bits(round_bf16(x))).collect();
                X::Floats { x: &rounded, rounded: true }
            }
        };
        let mut sums = vec![[Line::zeroed(); 2]; self.panels * rows];
        let panels_per_task = self.panels.div_ceil(4 * backend.pool.threads()).max(1);
        backend.pool.chunks(&mut sums, rows * panels_per_task, |first, sums| {
            let blocks = &blocks[first / rows * per_panel..];
            let few = Few { blocks, per_panel, x: given, rows, cols: self.cols, sums };
            match given {
                X::Floats { .. } => isa.run(few),
                X::Pairs(_) => isa.run_dot(few),
            }
        });
        let bias = bias.map(|bias| &*bias.data);
        for (r, y) in y.data.chunks_exact_mut(outputs).enumerate() {
            for (panel, y) in y.chunks_mut(PANEL).enumerate() {
                let sums: &[f32] = cast_slice(&sums[panel * rows + r]);
                for (n, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
                    let sum = bias.map_or(*sum, |bias| sum + bias[panel * PANEL + n]);
                    *y = if accumulate { sum + *y } else { sum };
                }
            }
        }
    }
}

fn locate(parts: &[Nf4Tensor], mut row: usize) -> Option<(&Nf4Tensor, usize)> {
    for part in parts {
        if row < part.shape[0] {
            return Some((part, row));
        }
        row -= part.shape[0];
    }
    None
}

#[derive(Clone, Copy)]
enum X<'a> {
    /// [rows, cols]; `rounded`: these are bf16, and weights are rounded too.
    Floats { x: &'a [f32], rounded: bool },
    /// [rows, cols / 2].
    Pairs(&'a [u32]),
}

/// Rows times panels.
struct Few<'a> {
    /// From the first panel on.
    blocks: &'a [Block],
    per_panel: usize,
    x: X<'a>,
    rows: usize,
    cols: usize,
    /// \[panel\]\[row\].
    sums: &'a mut [[Line; 2]],
}

impl Kernel for Few<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { blocks, per_panel, x, rows, cols, sums } = self;
        let groups = rows.div_ceil(MOST_ROWS);
        for (blocks, sums) in blocks.chunks_exact(per_panel).zip(sums.chunks_exact_mut(rows)) {
            for group in 0..groups {
                let range = share(rows, groups, group);
                let first = range.start;
                let sums = &mut sums[range];
                match x {
                    X::Floats { x, rounded: false } => floats::<S, false>(s, blocks, &x[first * cols..], cols, sums),
                    X::Floats { x, rounded: true } => floats::<S, true>(s, blocks, &x[first * cols..], cols, sums),
                    X::Pairs(x) => pairs(s, blocks, &x[first * (cols / 2)..], cols / 2, sums),
                }
            }
        }
    }
}

#[inline(always)]
fn floats<S: Simd, const ROUNDED: bool>(s: S, blocks: &[Block], x: &[f32], cols: usize, sums: &mut [[Line; 2]]) {
    match sums.len() {
        1 => float_halves::<S, ROUNDED, 1>(s, blocks, x, cols, sums),
        2 => float_halves::<S, ROUNDED, 2>(s, blocks, x, cols, sums),
        3 => float_halves::<S, ROUNDED, 3>(s, blocks, x, cols, sums),
        4 => float_halves::<S, ROUNDED, 4>(s, blocks, x, cols, sums),
        5 => float_halves::<S, ROUNDED, 5>(s, blocks, x, cols, sums),
        6 => float_halves::<S, ROUNDED, 6>(s, blocks, x, cols, sums),
        7 => float_halves::<S, ROUNDED, 7>(s, blocks, x, cols, sums),
        _ => float_halves::<S, ROUNDED, 8>(s, blocks, x, cols, sums),
    }
}

#[inline(always)]
fn float_halves<S: Simd, const ROUNDED: bool, const MR: usize>(
    s: S,
    blocks: &[Block],
    x: &[f32],
    cols: usize,
    sums: &mut [[Line; 2]],
) {
    if S::VECS == 2 {
        float_sums::<S, ROUNDED, MR, 2>(s, blocks, x, cols, 0, sums);
    } else {
        float_sums::<S, ROUNDED, MR, 1>(s, blocks, x, cols, 0, sums);
        float_sums::<S, ROUNDED, MR, 1>(s, blocks, x, cols, 1, sums);
    }
}

/// The innermost loop: sums of MR rows and NV vectors of outputs in registers.
#[inline(always)]
fn float_sums<S: Simd, const ROUNDED: bool, const MR: usize, const NV: usize>(
    s: S,
    blocks: &[Block],
    x: &[f32],
    cols: usize,
    half: usize,
    sums: &mut [[Line; 2]],
) {
    let mut acc = [[s.splat(0.0); NV]; MR];
    for (b, block) in blocks.iter().enumerate() {
        let mut scale = [s.splat(0.0); NV];
        for (scale, line) in scale.iter_mut().zip(&block.absmax[half..]) {
            *scale = s.load(&line.0);
        }
        for (g, words) in block.words.iter().enumerate() {
            s.prefetch(words, AHEAD);
            let first = b * BLOCK + g * NIBBLES;
            let mut xs = [[0.0; NIBBLES]; MR];
            for r in 0..MR {
                if let Some(x) = x[r * cols + first..].first_chunk::<NIBBLES>() {
                    xs[r] = *x;
                }
            }
            for k in 0..NIBBLES {
                let mut w = [s.splat(0.0); NV];
                for v in 0..NV {
                    let values = s.lookup(&CODEBOOK, &words[half + v].0, SHIFTS[k]);
                    w[v] = s.mul(values, scale[v]);
                    if ROUNDED {
                        w[v] = s.round_bf16(w[v]);
                    }
                }
                for r in 0..MR {
                    let x = s.splat(xs[r][k]);
                    for v in 0..NV {
                        acc[r][v] = s.fma(x, w[v], acc[r][v]);
                    }
                }
            }
        }
    }
    for r in 0..MR {
        for v in 0..NV {
            s.store(acc[r][v], &mut sums[r][half + v].0);
        }
    }
}

/// Where the codes of a word begin.
const SHIFTS: [u32; NIBBLES] = [0, 4, 8, 12, 16, 20, 24, 28];
/// Bytes ahead of which codes are fetched.
const AHEAD: usize = 2048;

#[inline(always)]
fn pairs<S: Simd>(s: S, blocks: &[Block], x: &[u32], words: usize, sums: &mut [[Line; 2]]) {
    match sums.len() {
        1 => pair_halves::<S, 1>(s, blocks, x, words, sums),
        2 => pair_halves::<S, 2>(s, blocks, x, words, sums),
        3 => pair_halves::<S, 3>(s, blocks, x, words, sums),
        4 => pair_halves::<S, 4>(s, blocks, x, words, sums),
        5 => pair_halves::<S, 5>(s, blocks, x, words, sums),
        6 => pair_halves::<S, 6>(s, blocks, x, words, sums),
        7 => pair_halves::<S, 7>(s, blocks, x, words, sums),
        _ => pair_halves::<S, 8>(s, blocks, x, words, sums),
    }
}

#[inline(always)]
fn pair_halves<S: Simd, const MR: usize>(s: S, blocks: &[Block], x: &[u32], words: usize, sums: &mut [[Line; 2]]) {
    if S::VECS == 2 {
        pair_sums::<S, MR, 2>(s, blocks, x, words, 0, sums);
    } else {
        pair_sums::<S, MR, 1>(s, blocks, x, words, 0, sums);
        pair_sums::<S, MR, 1>(s, blocks, x, words, 1, sums);
    }
}

#[inline(always)]
fn pair_sums<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    blocks: &[Block],
    x: &[u32],
    row_words: usize,
    half: usize,
    sums: &mut [[Line; 2]],
) {
    let mut acc = [[s.splat(0.0); NV]; MR];
    for (b, block) in blocks.iter().enumerate() {
        let mut scale = [s.splat(0.0); NV];
        for (scale, line) in scale.iter_mut().zip(&block.absmax[half..]) {
            *scale = s.load(&line.0);
        }
        for (g, words) in block.words.iter().enumerate() {
            s.prefetch(words, AHEAD);
            let first = (b * BLOCK + g * NIBBLES) / 2;
            let mut xs = [[0; NIBBLES / 2]; MR];
            for r in 0..MR {
                if let Some(x) = x[r * row_words + first..].first_chunk::<{ NIBBLES / 2 }>() {
                    xs[r] = *x;
                }
            }
            for k in 0..NIBBLES / 2 {
                for v in 0..NV {
                    let codes = &words[half + v].0;
                    let even = s.mul(s.lookup(&CODEBOOK, codes, SHIFTS[2 * k]), scale[v]);
                    let odd = s.mul(s.lookup(&CODEBOOK, codes, SHIFTS[2 * k + 1]), scale[v]);
                    let w = s.pairs(even, odd);
                    for r in 0..MR {
                        acc[r][v] = s.dot_pairs(acc[r][v], xs[r][k], &w);
                    }
                }
            }
        }
    }
    for r in 0..MR {
        for v in 0..NV {
            s.store(acc[r][v], &mut sums[r][half + v].0);
        }
    }
}

/// Blocks as panels of f32.
struct WidenFloats<'a> {
    blocks: &'a [Block],
    /// 64 for each block.
    out: &'a mut [[Line; 2]],
}

impl Kernel for WidenFloats<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, out) in self.blocks.iter().zip(self.out.as_chunks_mut::<BLOCK>().0) {
            for half in 0..2 {
                let scale = s.load(&block.absmax[half].0);
                for (words, out) in block.words.iter().zip(out.as_chunks_mut::<NIBBLES>().0) {
                    for k in 0..NIBBLES {
                        let values = s.lookup(&CODEBOOK, &words[half].0, SHIFTS[k]);
                        s.store(s.mul(values, scale), &mut out[k][half].0);
                    }
                }
            }
        }
    }
}

/// Blocks as panels of bf16 pairs.
struct WidenPairs<'a> {
    blocks: &'a [Block],
    /// 32 for each block.
    out: &'a mut [[PairLine; 2]],
}

impl Kernel for WidenPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, out) in self.blocks.iter().zip(self.out.as_chunks_mut::<{ BLOCK / 2 }>().0) {
            for half in 0..2 {
                let scale = s.load(&block.absmax[half].0);
                for (words, out) in block.words.iter().zip(out.as_chunks_mut::<{ NIBBLES / 2 }>().0) {
                    for k in 0..NIBBLES / 2 {
                        let even = s.mul(s.lookup(&CODEBOOK, &words[half].0, SHIFTS[2 * k]), scale);
                        let odd = s.mul(s.lookup(&CODEBOOK, &words[half].0, SHIFTS[2 * k + 1]), scale);
                        out[k][half].0 = s.pairs(even, odd);
                    }
                }
            }
        }
    }
}

impl Nf4 for CpuBackend {
    /// Matrices whose rows are not whole blocks (no published model has such) are kept dense, in the arithmetic's dtype.
    fn prepare_nf4(&self, parts: &[Nf4Tensor]) -> Result<Matrix> {
        let cols = parts.first().map_or(0, |part| part.shape[1]);
        let whole = cols > 0 && parts.iter().all(|part| part.shape[1] == cols && part.rows_are_whole_blocks());
        if !whole {
            let dense = parts.iter().map(Nf4Tensor::to_dense).collect::<Result<Vec<_>>>()?;
            return Matrix::new(&dense);
        }
        let rows = parts.iter().map(|part| part.shape[0]).sum();
        Ok(Matrix::from_nf4(Nf4Panels::new(&self.pool, parts, rows, cols)?, rows, cols))
    }
}
