//! Launches of kernels/nf4.cu and kernels/nf4_wgmma.cu: matrices that stay in four bits on the GPU. Up to [`FEW_ROWS`] rows
//! they are widened on their way into the product; for more, and for every other op, the one matrix is restored into memory
//! from the driver's pool, used, and given back.

use super::driver::{Argument, Buffer, Element, Geometry, Gpu};
use super::linear::{LinearSizes, Tiles};
use super::{CudaBackend, Dense, Matrix, Storage, Tensor, kernels, size};
use crate::error::{Error, Result};
use crate::ops::{Device, LinearArgs, Nf4};
use crate::quant::{BLOCK, CODEBOOK, Nf4Tensor};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Rows up to which products read the codes. A tile (16 or 64 rows) looks every weight up once, which takes about as long as
/// reading its code from memory; restoring it takes eight times the bytes of its code (0.56 read, 2 written, 2 read again).
const FEW_ROWS: usize = 64;

/// Nf4Tiles and Nf4WgmmaTiles of the kernels.
const MMA: Tiles = Tiles { rows: 16, cols: 32, block: 128, shared: 6 * (16 * 256 * 2 + 32 * (256 / 2 + 16)) };
const WGMMA: Tiles = Tiles { rows: 64, cols: 32, block: 128, shared: 4 * (64 * 128 * 2 + 32 * (128 / 2 + 16)) + 32 * 128 * 2 };

/// Threads a block that restores weights, and how many weights each of them takes.
const RESTORE_BLOCK: u32 = 256;
const RESTORE_WEIGHTS: usize = 8;

/// Mirrors Nf4Sizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct Nf4Sizes {
    linear: LinearSizes,
    codebook: [f32; 16],
}

const _: () = assert!(size_of::<Nf4Sizes>() == 88 && offset_of!(Nf4Sizes, codebook) == 24, "layout shared with the kernels");

/// Weights in four bits, [rows, cols]. A row is its codes, two a byte, the first in the upper half, then a magnitude (f32) for
/// each 64 of them, filled up with zeros to a multiple of four magnitudes: every row begins at a multiple of 16 bytes.
#[derive(Debug)]
pub struct Nf4Matrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    data: Buffer,
}

/// Bytes of a row's codes, and of the whole row.
const fn row_bytes(cols: usize) -> (usize, usize) {
    let codes = cols / 2;
    (codes, codes + (cols / BLOCK).next_multiple_of(4) * size_of::<f32>())
}

/// True where a product of `rows` rows reads the codes themselves.
pub(super) fn few_rows(compute: Storage, rows: usize) -> bool {
    compute == Storage::Bf16 && rows <= FEW_ROWS
}

impl Nf4Matrix {
    /// Stacks `parts`, whose rows are whole blocks.
    fn upload(gpu: &Gpu, parts: &[Nf4Tensor], cols: usize) -> Result<Self> {
        for part in parts {
            let (codes, absmax) = (part.len() / 2, part.len() / BLOCK);
            if part.codes.as_slice().len() != codes || part.absmax.len() != absmax {
                let found = [part.codes.as_slice().len(), part.absmax.len()];
                return Err(Error::shape("prepare_nf4", "parts", &[codes, absmax], &found));
            }
        }
        let rows = parts.iter().map(|part| part.shape[0]).sum::<usize>();
        let (codes, unit) = row_bytes(cols);
        let source = || {
            parts.iter().flat_map(|part| part.codes.as_slice().chunks_exact(codes).zip(part.absmax.chunks_exact(cols / BLOCK)))
        };
        let mut from = source();
        let data = gpu.upload_weights(rows * unit, unit, |_, bytes| {
            for (row, (row_codes, absmax)) in bytes.chunks_exact_mut(unit).zip(&mut from) {
                let (to_codes, to_absmax) = row.split_at_mut(codes);
                to_codes.copy_from_slice(row_codes);
                to_absmax.fill(0);
                for (to, value) in to_absmax.as_chunks_mut::<4>().0.iter_mut().zip(absmax) {
                    *to = value.to_ne_bytes();
                }
            }
            Ok(())
        })?;
        Ok(Self { rows, cols, data })
    }

    fn read(&self) -> Argument<'_> {
        Argument::read(&self.data, Element::U8)
    }

    fn sizes(&self, rows: usize, has_bias: bool, accumulate: bool) -> Result<Nf4Sizes> {
        let linear = LinearSizes {
            rows: size("nf4", "x", rows)?,
            out_features: size("nf4", "weight", self.rows)?,
            in_features: size("nf4", "weight", self.cols)?,
            first_out: 0,
            has_bias: u32::from(has_bias),
            accumulate: u32::from(accumulate),
        };
        Ok(Nf4Sizes { linear, codebook: CODEBOOK })
    }
}

impl CudaBackend {
    /// The matrix in the dtype matrices are multiplied in.
    pub(super) fn dequantise(&self, nf4: &Nf4Matrix) -> Result<Dense> {
        let mut dense = Dense::new(&self.gpu, self.compute, nf4.rows, nf4.cols)?;
        let kernel = match self.compute {
            Storage::F32 => kernels::NF4_DEQUANTISE_F32,
            Storage::Bf16 => kernels::NF4_DEQUANTISE_BF16,
        };
        let geometry = Geometry::over(nf4.rows * (nf4.cols / RESTORE_WEIGHTS), RESTORE_BLOCK)?;
        self.gpu.launch(kernel, geometry, &[dense.write(), nf4.read()], nf4.sizes(0, false, false)?)?;
        Ok(dense)
    }

    /// Linear of [`few_rows`], in bf16 arithmetic.
    pub(super) fn nf4_few_rows(&self, nf4: &Nf4Matrix, args: LinearArgs<'_, Tensor, Matrix>) -> Result<()> {
        let LinearArgs { y, x, bias, accumulate, .. } = args;
        let (tiles, [to_f32, to_bf16]) = if self.has_wgmma() {
            (WGMMA, [kernels::NF4_LINEAR_WGMMA_F32, kernels::NF4_LINEAR_WGMMA_BF16])
        } else {
            (MMA, [kernels::NF4_LINEAR_FEW_F32, kernels::NF4_LINEAR_FEW_BF16])
        };
        let kernel = if y.storage == Storage::F32 { to_f32 } else { to_bf16 };
        let sizes = nf4.sizes(y.rows, bias.is_some(), accumulate)?;
        let grid = size("nf4", "y", tiles.count(y.rows, nf4.rows))?;
        let geometry = Geometry { shared: tiles.shared, ..Geometry::row(grid, tiles.block) };
        let x = self.operand_as(x, Storage::Bf16)?;
        let y = y.write();
        self.with_bias(bias, |bias| self.gpu.launch(kernel, geometry, &[y, x.read(), nf4.read(), bias.read()], sizes))
    }
}

impl Nf4 for CudaBackend {
    /// Matrices whose rows are not whole blocks (no published model has such) are kept dense, in the arithmetic's dtype.
    fn prepare_nf4(&self, parts: &[Nf4Tensor]) -> Result<Matrix> {
        let cols = parts.first().map_or(0, |part| part.shape[1]);
        let whole = cols > 0 && parts.iter().all(|part| part.shape[1] == cols && part.rows_are_whole_blocks());
        if !whole {
            return self.prepare(&parts.iter().map(Nf4Tensor::to_dense).collect::<Result<Vec<_>>>()?);
        }
        Nf4Matrix::upload(&self.gpu, parts, cols).map(Matrix::Nf4)
    }
}
