//! Weights as files hold them and as the micro-kernels read them.
//!
//! A packed matrix is cut into panels of [`PANEL`] outputs. For each k a panel holds the weights of its 32 outputs side by
//! side: f32 as [K][32], bf16 as [K / 2][32][2] (odd K ends in a zero). Packing happens once, on first use, over all
//! threads, and looks at every weight: one that is not finite is named.

use super::mapped::Mapped;
use super::nf4::Nf4Panels;
use super::simd::{Kernel, LANES, Line, PairLine, Simd};
use super::{CpuBackend, Tensor, transpose};
use crate::error::{Error, Result};
use crate::ops::{Direction, Shaped, expect};
use crate::tensor::{Dtype, HostTensor};
use bytemuck::{cast_slice, cast_slice_mut};
use half::{bf16, f16};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Outputs a panel: two vectors of sixteen lanes.
pub(super) const PANEL: usize = 32;

/// A weight matrix [out_features, in_features]: the file's bytes, and the packed form once it was needed.
#[derive(Debug)]
pub struct Matrix {
    parts: Vec<HostTensor>,
    rows: usize,
    cols: usize,
    packed: OnceLock<Packed>,
    /// The transpose, once a gradient needed it.
    transposed: OnceLock<Packed>,
    /// Instead of parts: weights in four bits.
    nf4: Option<Nf4Panels>,
    packing: Mutex<()>,
}

/// All panels of a matrix, in memory that was mapped for them: large pages spare the processor most look-ups of addresses.
/// Outputs behind the last one are 0.
#[derive(Debug)]
pub(super) enum Packed {
    /// [panel][K][2 lines].
    F32(Mapped),
    /// [panel][ceil(K / 2)][2 lines of pairs].
    Bf16(Mapped),
}

/// A packed form on loan.
#[derive(Debug)]
pub(super) enum Lent<'a> {
    /// The matrix's own.
    Kept(&'a Packed),
    /// Given back afterwards.
    Once(Packed),
}

impl Lent<'_> {
    pub(super) fn packed(&self) -> &Packed {
        match self {
            Self::Kept(packed) => packed,
            Self::Once(packed) => packed,
        }
    }
}

/// One panel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Panel<'a> {
    F32(&'a [[Line; 2]]),
    Bf16(&'a [[PairLine; 2]]),
}

impl Shaped for Matrix {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }
}

impl Packed {
    /// Panel `index` of a matrix with `cols` in_features.
    pub(super) fn panel(&self, index: usize, cols: usize) -> Panel<'_> {
        match self {
            Self::F32(lines) => Panel::F32(&cast_slice(&lines[..])[index * cols..][..cols]),
            Self::Bf16(lines) => {
                let pairs = cols.div_ceil(2);
                Panel::Bf16(&cast_slice(&lines[..])[index * pairs..][..pairs])
            }
        }
    }
}

impl Matrix {
    pub(super) fn new(parts: &[HostTensor]) -> Result<Self> {
        let cols = match parts.first().map(|part| part.shape.as_slice()) {
            Some(&[_, cols]) => cols,
            other => return Err(Error::shape("prepare", "parts", &[0, 0], other.unwrap_or_default())),
        };
        let mut rows = 0;
        for part in parts {
            match *part.shape.as_slice() {
                [n, k] if k == cols && part.bytes.as_slice().len() == n * k * part.dtype.size() => rows += n,
                _ => return Err(Error::shape("prepare", "parts", &[0, cols], &part.shape)),
            }
        }
        Ok(Self { parts: parts.to_vec(), rows, cols, ..Self::empty() })
    }

    fn empty() -> Self {
        let (packed, transposed, packing) = (OnceLock::new(), OnceLock::new(), Mutex::new(()));
        Self { parts: Vec::new(), rows: 0, cols: 0, packed, transposed, nf4: None, packing }
    }

    /// Of weights in four bits.
    pub(super) fn from_nf4(nf4: Nf4Panels, rows: usize, cols: usize) -> Self {
        Self { rows, cols, nf4: Some(nf4), ..Self::empty() }
    }

    /// The weights, where they are in four bits.
    pub(super) fn nf4(&self) -> Option<&Nf4Panels> {
        self.nf4.as_ref()
    }

    /// The packed form for one product: kept, or made of four bits for this time only.
    pub(super) fn packed_once(&self, backend: &CpuBackend) -> Result<Lent<'_>> {
        match &self.nf4 {
            Some(nf4) => nf4.widen(backend).map(Lent::Once),
            None => self.packed(backend).map(Lent::Kept),
        }
    }

    /// The same of the transpose. That of a matrix that is trained is made for the one product, too: it would be used a few times
    /// before it changes, and be in memory all the time.
    pub(super) fn transposed_once(&self, backend: &CpuBackend) -> Result<Lent<'_>> {
        let once = |packed: &Packed| transpose::transposed(packed, self.rows, self.cols, backend).map(Lent::Once);
        match &self.nf4 {
            Some(nf4) => once(&nf4.widen(backend)?),
            None if self.parts.is_empty() && self.transposed.get().is_none() => once(self.packed(backend)?),
            None => self.transposed(backend).map(Lent::Kept),
        }
    }

    /// From tensors with equal columns, stacked: packed at once, since they may change, in the form that `direction` multiplies with.
    pub(super) fn from_tensors(backend: &CpuBackend, parts: &[&Tensor], direction: Direction) -> Result<Self> {
        let cols = parts.first().map_or(0, |part| part.cols);
        let mut rows = 0;
        for part in parts {
            expect("prepare_tensors", "parts", *part, part.rows, cols)?;
            rows += part.rows;
        }
        let all: Vec<&[f32]> = parts.iter().flat_map(|part| part.data.chunks_exact(cols.max(1))).collect();
        let empty = Self { rows, cols, ..Self::empty() };
        Ok(match direction {
            Direction::Forward => Self { packed: transpose::pack_rows(backend, &all, cols)?.into(), ..empty },
            Direction::Backward => Self { transposed: transpose::pack_transposed(backend, &all, cols)?.into(), ..empty },
        })
    }

    /// The packed form of the transpose, made now if this is its first use.
    fn transposed(&self, backend: &CpuBackend) -> Result<&Packed> {
        if let Some(transposed) = self.transposed.get() {
            return Ok(transposed);
        }
        let packed = self.packed(backend)?;
        let _turn = self.packing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(transposed) = self.transposed.get() {
            return Ok(transposed);
        }
        let transposed = transpose::transposed(packed, self.rows, self.cols, backend)?;
        Ok(self.transposed.get_or_init(|| transposed))
    }

    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// The part that holds row `row`, and the row's number in it.
    fn locate(&self, mut row: usize) -> Option<(&HostTensor, usize)> {
        for part in &self.parts {
            let rows = part.shape[0];
            if row < rows {
                return Some((part, row));
            }
            row -= rows;
        }
        None
    }

    fn row_bytes(&self, row: usize) -> Option<(Dtype, &[u8])> {
        let (part, row) = self.locate(row)?;
        let bytes = self.cols * part.dtype.size();
        Some((part.dtype, &part.bytes.as_slice()[row * bytes..][..bytes]))
    }

    /// Row `row` as f32, exactly; `out` has in_features elements.
    pub(super) fn copy_row(&self, row: usize, out: &mut [f32]) {
        if let Some(nf4) = &self.nf4 {
            nf4.copy_row(row, out);
        } else if let Some((dtype, bytes)) = self.row_bytes(row) {
            decode(dtype, bytes, out);
        } else if let (true, Some(packed)) = (self.parts.is_empty(), self.packed.get()) {
            transpose::unpack_row(packed, row, out);
        }
    }

    /// The packed form for `backend`'s arithmetic, made now if this is its first use.
    pub(super) fn packed(&self, backend: &CpuBackend) -> Result<&Packed> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        let _turn = self.packing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        if let Some(nf4) = &self.nf4 {
            let packed = nf4.widen(backend)?;
            return Ok(self.packed.get_or_init(|| packed));
        }
        if let (true, Some(transposed)) = (self.parts.is_empty(), self.transposed.get()) {
            let packed = transpose::transposed(transposed, self.cols, self.rows, backend)?;
            return Ok(self.packed.get_or_init(|| packed));
        }
        // bf16 embeds in f32: weights that the file holds in bf16 stay in two bytes whatever the arithmetic.
        let pairs = backend.compute == Dtype::Bf16 || self.parts.iter().all(|part| part.dtype == Dtype::Bf16);
        let packed = if pairs {
            Packed::Bf16(self.pack(backend, Dtype::Bf16, self.cols.div_ceil(2), pairs_of_row)?)
        } else {
            Packed::F32(self.pack(backend, Dtype::F32, self.cols, floats_of_row)?)
        };
        Ok(self.packed.get_or_init(|| packed))
    }

    /// Panels of `words` words a row, in `dtype`.
    fn pack(&self, backend: &CpuBackend, dtype: Dtype, words: usize, block: BlockOfRow) -> Result<Mapped> {
        let mut memory = backend.spare.lend(2 * self.panels() * words)?;
        let bad_row = AtomicUsize::new(usize::MAX);
        backend.pool.chunks(cast_slice_mut::<u8, [PairLine; 2]>(&mut memory), words * panels_per_task(words), |first, lines| {
            for (index, panel) in lines.chunks_mut(words).enumerate() {
                let outputs = self.outputs(first / words + index);
                let mut rows = [None; PANEL];
                for (row, n) in rows.iter_mut().zip(outputs.clone()) {
                    *row = self.row_bytes(n);
                }
                // Sixteen words of all rows are turned round in L1.
                for (start, lines) in (0..words).step_by(LANES).zip(panel.chunks_mut(LANES)) {
                    let mut square = [[0; LANES]; PANEL];
                    for (n, (square, row)) in outputs.clone().zip(square.iter_mut().zip(rows)) {
                        let Some((dtype, bytes)) = row else { continue };
                        let (words, not_finite) = block(dtype, bytes, start);
                        *square = words;
                        if not_finite {
                            bad_row.fetch_min(n, Ordering::Relaxed);
                        }
                    }
                    backend.isa.run(Turn { rows: &mut square, lines });
                }
            }
        });
        self.check(bad_row.into_inner(), dtype)?;
        // They are in memory twice otherwise.
        self.parts.iter().for_each(|part| part.bytes.release());
        Ok(memory)
    }

    fn outputs(&self, panel: usize) -> Range<usize> {
        panel * PANEL..((panel + 1) * PANEL).min(self.rows)
    }

    /// An error if row `bad_row` is one of ours: names the first weight in it that is not finite in `dtype`.
    fn check(&self, bad_row: usize, dtype: Dtype) -> Result<()> {
        let Some((part, row)) = self.locate(bad_row) else { return Ok(()) };
        let mut values = vec![0.0; self.cols];
        self.copy_row(bad_row, &mut values);
        let col = values.iter().position(|x| match dtype {
            Dtype::F32 | Dtype::F16 => !x.is_finite(),
            Dtype::Bf16 => !bf16::from_f32(*x).is_finite(),
        });
        let col = col.unwrap_or(0);
        let mut problem = format!("element {} (row {row}, column {col}) is {}", row * self.cols + col, values[col]);
        if values[col].is_finite() {
            problem += ", beyond what bf16 holds";
        }
        Err(Error::data(&part.file, format!("tensor {}", part.name), problem))
    }
}

/// Up to sixteen lines of a panel from sixteen words of each of its outputs.
struct Turn<'a> {
    rows: &'a mut [[u32; LANES]; PANEL],
    lines: &'a mut [[PairLine; 2]],
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (half, square) in self.rows.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            s.transpose(square);
            self.lines.iter_mut().zip(square).for_each(|(line, words)| line[half].0 = *words);
        }
    }
}

/// Sixteen words of a row from one on, 0 behind its end, and true if a weight among them is not finite.
type BlockOfRow = fn(Dtype, &[u8], usize) -> ([u32; LANES], bool);

/// The exponent of a value that is not finite is all ones.
const NOT_FINITE: u32 = 0x7f80_0000;

/// f32 elements `start..start + 16` of a row.
fn floats_of_row(dtype: Dtype, row: &[u8], start: usize) -> ([u32; LANES], bool) {
    let mut floats = [0.0; LANES];
    let size = dtype.size();
    let end = (row.len() / size).min(start + LANES);
    decode(dtype, &row[start * size..end * size], &mut floats);
    let words = floats.map(f32::to_bits);
    (words, words.iter().fold(false, |bad, word| bad | (word & NOT_FINITE == NOT_FINITE)))
}

/// Pairs `start..start + 16` of a row, rounded to bf16.
fn pairs_of_row(dtype: Dtype, row: &[u8], start: usize) -> ([u32; LANES], bool) {
    let mut words = [0; LANES];
    let size = dtype.size();
    let bytes = &row[2 * start * size..row.len().min(2 * (start + LANES) * size)];
    match dtype {
        Dtype::Bf16 => pairs_of_bytes(bytes, &mut words),
        Dtype::F32 | Dtype::F16 => {
            let mut wide = [0.0; 2 * LANES];
            decode(dtype, bytes, &mut wide);
            pairs_of_floats(&wide, &mut words);
        }
    }
    let bad = |half: u32| half & NOT_FINITE == NOT_FINITE;
    (words, words.iter().fold(false, |any, pair| any | bad(*pair) | bad(pair << 16)))
}

/// Some 256 KiB of panels.
pub(super) fn panels_per_task(lines: usize) -> usize {
    (2048 / lines.max(1)).max(1)
}

/// Little-endian elements as f32, exactly.
fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().zip(out).for_each(|(b, out)| *out = f32::from_le_bytes(*b)),
        Dtype::F16 => bytes.as_chunks::<2>().0.iter().zip(out).for_each(|(b, out)| *out = f16::from_le_bytes(*b).to_f32()),
        Dtype::Bf16 => {
            let widened = bytes.as_chunks::<2>().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16));
            widened.zip(out).for_each(|(x, out)| *out = x);
        }
    }
}

fn pairs_of_bytes(bytes: &[u8], out: &mut [u32]) {
    let (pairs, rest) = bytes.as_chunks::<4>();
    pairs.iter().zip(out.iter_mut()).for_each(|(b, out)| *out = u32::from_le_bytes(*b));
    if let (&[low, high], Some(last)) = (rest, out.get_mut(pairs.len())) {
        *last = u32::from(u16::from_le_bytes([low, high]));
    }
}

/// Rounded to the nearest bf16, halves to even, the bits in the upper half of the word; NaN stays NaN.
#[inline(always)]
pub(super) fn round_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let nan = bits | 0x0040_0000;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }) & 0xffff_0000
}

/// Pairs of neighbours, rounded to bf16, the first in the lower half; an odd last one is paired with 0.
#[inline(always)]
pub(super) fn pairs_of_floats(x: &[f32], out: &mut [u32]) {
    let (pairs, rest) = x.as_chunks::<2>();
    for (&[a, b], out) in pairs.iter().zip(out.iter_mut()) {
        *out = (round_bf16(a) >> 16) | round_bf16(b);
    }
    if let (&[a], Some(last)) = (rest, out.get_mut(pairs.len())) {
        *last = round_bf16(a) >> 16;
    }
}
