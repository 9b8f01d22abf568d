//! Columns of activations as the micro-kernels of [`gemm`](super::gemm) read them, with the rows as inner dimension: as panels,
//! which is copying slabs of 32 columns, or as packed rows, which turns squares of 16 x 16 round.

use super::CpuBackend;
use super::gemm::{Form, pack_line};
use super::matrix::{PANEL, Panel};
use super::pool::share;
use super::simd::{Isa, Kernel, LANES, Line, PairLine, Simd};
use crate::tensor::Dtype;
use bytemuck::{Zeroable, cast_slice};
use std::ops::Range;

/// Lines of a panel's 32 values.
pub(super) const PANEL_LINES: usize = PANEL / LANES;

/// How columns are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factors {
    /// f32.
    F32,
    /// f32 rounded to bf16.
    Rounded,
    /// Pairs of bf16.
    Pairs,
}

impl Factors {
    pub(super) fn of(backend: &CpuBackend) -> Self {
        match backend.compute {
            Dtype::F32 | Dtype::F16 => Self::F32,
            Dtype::Bf16 if backend.isa.has_dot() => Self::Pairs,
            Dtype::Bf16 => Self::Rounded,
        }
    }

    #[inline(always)]
    pub(super) fn form(self) -> Form {
        match self {
            Self::F32 | Self::Rounded => Form::F32,
            Self::Pairs => Form::Pairs,
        }
    }

    /// Rows that go into one word.
    #[inline(always)]
    pub(super) fn rows_a_word(self) -> usize {
        match self {
            Self::F32 | Self::Rounded => 1,
            Self::Pairs => 2,
        }
    }

    /// Words that `values` values along the inner dimension take.
    #[inline(always)]
    pub(super) fn words_of(self, values: usize) -> usize {
        values.div_ceil(self.rows_a_word())
    }

    /// Up to form().floats() values that follow each other along the inner dimension, zeros behind them.
    #[inline(always)]
    pub(super) fn line<S: Simd>(self, s: S, x: &[f32]) -> [u32; LANES] {
        match self {
            Self::F32 | Self::Rounded => self.words(s, x, &[]),
            Self::Pairs => {
                let mut words = [0; LANES];
                pack_line(s, Form::Pairs, x, &mut words);
                words
            }
        }
    }

    /// The words of up to sixteen columns, from one row and, for pairs, the next, which may be missing.
    #[inline(always)]
    pub(super) fn words<S: Simd>(self, s: S, first: &[f32], second: &[f32]) -> [u32; LANES] {
        let part = |x: &[f32]| s.load_part(&x[..x.len().min(LANES)], 0.0);
        let mut words = [0.0; LANES];
        match self {
            Self::F32 => s.store(part(first), &mut words),
            Self::Rounded => s.store(s.round_bf16(part(first)), &mut words),
            Self::Pairs => return s.pairs(part(first), part(second)),
        }
        words.map(f32::to_bits)
    }

    /// Word `k` of the panels of `columns`, [panel][words][32], from one row and, for pairs, the next, which may be missing.
    #[inline(always)]
    pub(super) fn slabs<S: Simd>(
        self,
        s: S,
        [first, second]: [&[f32]; 2],
        columns: Range<usize>,
        out: &mut [PairLine],
        words: usize,
        k: usize,
    ) {
        for (panel, start) in columns.clone().step_by(PANEL).enumerate() {
            let out = &mut out[PANEL_LINES * (panel * words + k)..][..PANEL_LINES];
            for (out, start) in out.iter_mut().zip((start..).step_by(LANES)) {
                let part = start.min(columns.end)..(start + LANES).min(columns.end);
                let second = if second.is_empty() { second } else { &second[part.clone()] };
                out.0 = self.words(s, &first[part], second);
            }
        }
    }

    /// Packed columns, [panel][words][32], by panels.
    #[inline(always)]
    pub(super) fn panels(self, packed: &[PairLine], words: usize) -> impl Iterator<Item = Panel<'_>> {
        packed.chunks_exact(PANEL_LINES * words).map(move |panel| self.panel(panel))
    }

    /// One of them, [words][32].
    #[inline(always)]
    pub(super) fn panel(self, panel: &[PairLine]) -> Panel<'_> {
        match self {
            Self::F32 | Self::Rounded => Panel::F32(cast_slice::<PairLine, Line>(panel).as_chunks().0),
            Self::Pairs => Panel::Bf16(panel.as_chunks().0),
        }
    }

    /// Runs `kernel` with the instructions that make pairs, where pairs are made.
    pub(super) fn run<K: Kernel>(self, isa: Isa, kernel: K) -> K::Output {
        if self == Self::Pairs { isa.run_dot(kernel) } else { isa.run(kernel) }
    }
}

/// Panels of columns: slabs of 32.
pub(super) struct PackPanels<'a> {
    pub(super) factors: Factors,
    /// [rows, cols].
    pub(super) x: &'a [f32],
    pub(super) cols: usize,
    pub(super) columns: Range<usize>,
    /// [panel][words][32], zeros behind the last row.
    pub(super) out: &'a mut [PairLine],
    pub(super) words: usize,
}

impl Kernel for PackPanels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { factors, x, cols, columns, out, words } = self;
        for (k, rows) in x.chunks(factors.rows_a_word() * cols).enumerate() {
            factors.slabs(s, rows.split_at(cols).into(), columns.clone(), out, words, k);
        }
        let filled = PANEL_LINES * x.len().div_ceil(cols * factors.rows_a_word());
        for panel in out.chunks_exact_mut(PANEL_LINES * words) {
            panel[filled..].fill(PairLine::zeroed());
        }
    }
}

/// Columns as packed rows: turned round in squares of 16 x 16.
pub(super) struct TurnColumns<'a> {
    pub(super) factors: Factors,
    /// [rows, cols].
    pub(super) x: &'a [f32],
    pub(super) cols: usize,
    pub(super) columns: Range<usize>,
    /// As [`PackRows`](super::gemm::PackRows) leaves them: `lines` for each of the columns.
    pub(super) out: &'a mut [PairLine],
    pub(super) lines: usize,
}

impl Kernel for TurnColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { factors, x, cols, columns, out, lines } = self;
        let blocks = columns.len().div_ceil(factors.form().block_rows::<S>());
        let step = factors.rows_a_word();
        for (line, x) in x.chunks(LANES * step * cols).enumerate() {
            for block in 0..blocks {
                let range = share(columns.len(), blocks, block);
                let mut square = [[0; LANES]; LANES];
                for (words, rows) in square.iter_mut().zip(x.chunks(step * cols)) {
                    let (first, second) = rows.split_at(cols);
                    let second = if second.is_empty() { second } else { &second[columns.start + range.start..] };
                    *words = factors.words(s, &first[columns.start + range.start..], second);
                }
                s.transpose(&mut square);
                let out = &mut out[range.start * lines + line * range.len()..][..range.len()];
                out.iter_mut().zip(square).for_each(|(out, words)| out.0 = words);
            }
        }
    }
}
