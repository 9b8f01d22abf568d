//! Launches of kernels/linear.cu and kernels/linear_wgmma.cu.

use super::driver::{Argument, Buffer, Geometry, TensorMap};
use super::kernels::Kernel;
use super::matrix::stride;
use super::{CudaBackend, Matrix, Storage, Tensor, kernels, size};
use crate::error::{Error, Result};
use crate::ops::{Linear, LinearArgs, Shaped};
use bytemuck::NoUninit;
use std::mem::offset_of;
use std::ops::Range;

/// Mirrors LinearSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct LinearSizes {
    rows: u32,
    out_features: u32,
    in_features: u32,
    first_out: u32,
    has_bias: u32,
    accumulate: u32,
}

const _: () =
    assert!(size_of::<LinearSizes>() == 24 && offset_of!(LinearSizes, accumulate) == 20, "layout shared with the kernels");

/// What a block computes: rows and columns of y, its threads and its dynamic shared memory. Mirrors MmaTiles, WgmmaTiles and
/// FmaTiles of the kernels.
#[derive(Debug, Clone, Copy)]
struct Tiles {
    rows: u32,
    cols: u32,
    block: u32,
    shared: u32,
}

const MANY_ROWS: Tiles = Tiles { rows: 128, cols: 128, block: 256, shared: 3 * (128 + 128) * 64 * 2 };
const SOME_ROWS: Tiles = Tiles { rows: 64, cols: 64, block: 128, shared: 4 * (64 + 64) * 64 * 2 };
const FEW_ROWS: Tiles = Tiles { rows: 16, cols: 32, block: 128, shared: 6 * (16 + 32) * 128 * 2 };
const WGMMA_MANY_ROWS: Tiles = Tiles { rows: 128, cols: 256, block: 288, shared: 4 * ((128 + 256) * 64 * 2 + 16) };
const WGMMA_SOME_ROWS: Tiles = Tiles { rows: 128, cols: 64, block: 288, shared: 4 * ((128 + 64) * 64 * 2 + 16) };
const WGMMA_FEW_ROWS: Tiles = Tiles { rows: 64, cols: 32, block: 160, shared: 8 * ((64 + 32) * 64 * 2 + 16) };
const MANY_ROWS_F32: Tiles = Tiles { rows: 64, cols: 64, block: 256, shared: 0 };
const FEW_ROWS_F32: Tiles = Tiles { rows: 8, cols: 128, block: 256, shared: 0 };

impl Tiles {
    fn count(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(self.rows as usize) * cols.div_ceil(self.cols as usize)
    }
}

/// How a product is added up. Within a family a row has the same bits whatever the tiles; between families it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// One fused multiply-add a product.
    Fma,
    /// Tensor cores by mma.sync.
    Mma,
    /// Tensor cores by wgmma, with tiles that TMA copies.
    Wgmma,
}

/// A kernel for results in f32 and one for bf16, and what their blocks compute.
struct Variant {
    family: Family,
    tiles: Tiles,
    kernels: [Kernel; 2],
}

/// Rows of activations as the matrix product reads them: of its storage type, and padded as the weights are.
pub(super) enum Operand<'a> {
    /// As they are.
    Tensor(&'a Tensor),
    /// Copied.
    Padded(Buffer, Storage),
}

impl Operand<'_> {
    fn read(&self) -> Argument<'_> {
        match self {
            Self::Tensor(x) => x.read(),
            Self::Padded(buffer, storage) => Argument::read(buffer, storage.element()),
        }
    }

    fn data(&self) -> &Buffer {
        match self {
            Self::Tensor(x) => &x.data,
            Self::Padded(buffer, _) => buffer,
        }
    }
}

/// A product with some rows of a weight matrix.
pub(super) struct Product<'a> {
    pub(super) y: Argument<'a>,
    pub(super) y_storage: Storage,
    pub(super) x: &'a Operand<'a>,
    pub(super) rows: usize,
    pub(super) weight: &'a Matrix,
    /// Rows of the weight: columns of y.
    pub(super) outputs: Range<usize>,
    pub(super) bias: Option<&'a Tensor>,
    pub(super) accumulate: bool,
}

impl CudaBackend {
    /// `x` as products with `weight` read it.
    pub(super) fn operand<'a>(&self, x: &'a Tensor, weight: &Matrix) -> Result<Operand<'a>> {
        let stride = stride(weight.storage, x.cols);
        if x.storage == weight.storage && stride == x.cols {
            return Ok(Operand::Tensor(x));
        }
        let mut buffer = self.gpu.allocate(x.rows * stride * weight.storage.size())?;
        self.convert_rows(Argument::write(&mut buffer, weight.storage.element()), weight.storage, stride, x)?;
        Ok(Operand::Padded(buffer, weight.storage))
    }

    /// The family of all products with this weight. It must not depend on the number of rows.
    fn family(&self, weight: &Matrix) -> Family {
        match weight.storage {
            Storage::F32 => Family::Fma,
            // Machine code with wgmma runs on exactly this compute capability. Nothing to add up: no tensor to map.
            Storage::Bf16 if self.gpu.facts().compute_capability == (9, 0) && weight.stride > 0 => Family::Wgmma,
            Storage::Bf16 => Family::Mma,
        }
    }

    /// The largest tiles of which there is one for every multiprocessor; the narrowest for decoding.
    fn variant(&self, family: Family, rows: usize, cols: usize) -> Variant {
        let multiprocessors = self.gpu.facts().multiprocessors as usize;
        let fill = |tiles: Tiles| tiles.count(rows, cols) >= multiprocessors;
        let (tiles, kernels) = match family {
            Family::Fma if rows <= 32 => (FEW_ROWS_F32, [kernels::LINEAR_FEW_F32_F32; 2]),
            Family::Fma => (MANY_ROWS_F32, [kernels::LINEAR_MANY_F32_F32; 2]),
            Family::Mma if rows <= 16 => (FEW_ROWS, [kernels::LINEAR_FEW_F32_BF16, kernels::LINEAR_FEW_BF16_BF16]),
            Family::Mma if rows > 64 && fill(MANY_ROWS) => {
                (MANY_ROWS, [kernels::LINEAR_MANY_F32_BF16, kernels::LINEAR_MANY_BF16_BF16])
            }
            Family::Mma => (SOME_ROWS, [kernels::LINEAR_SOME_F32_BF16, kernels::LINEAR_SOME_BF16_BF16]),
            Family::Wgmma if rows > 64 && fill(WGMMA_MANY_ROWS) => {
                (WGMMA_MANY_ROWS, [kernels::LINEAR_WGMMA_MANY_F32_BF16, kernels::LINEAR_WGMMA_MANY_BF16_BF16])
            }
            Family::Wgmma if rows > 64 && fill(WGMMA_SOME_ROWS) => {
                (WGMMA_SOME_ROWS, [kernels::LINEAR_WGMMA_SOME_F32_BF16, kernels::LINEAR_WGMMA_SOME_BF16_BF16])
            }
            Family::Wgmma => (WGMMA_FEW_ROWS, [kernels::LINEAR_WGMMA_FEW_F32_BF16, kernels::LINEAR_WGMMA_FEW_BF16_BF16]),
        };
        Variant { family, tiles, kernels }
    }

    pub(super) fn product(&self, product: Product<'_>) -> Result<()> {
        let Product { y, y_storage, x, rows, weight, outputs, bias, accumulate } = product;
        if rows == 0 || outputs.is_empty() {
            return Ok(());
        }
        let Variant { family, tiles, kernels: [to_f32, to_bf16] } = self.variant(self.family(weight), rows, outputs.len());
        let kernel = match y_storage {
            Storage::F32 => to_f32,
            Storage::Bf16 => to_bf16,
        };
        let sizes = LinearSizes {
            rows: size("linear", "x", rows)?,
            out_features: size("linear", "y", outputs.len())?,
            in_features: size("linear", "weight", weight.stride)?,
            first_out: size("linear", "weight", outputs.start)?,
            has_bias: u32::from(bias.is_some()),
            accumulate: u32::from(accumulate),
        };
        let count = tiles.count(rows, outputs.len());
        let blocks = match family {
            Family::Fma | Family::Mma => count,
            // Blocks that walk tiles: as many as run at the same time, one where its sums take most of the registers, else two.
            Family::Wgmma => count.min(self.gpu.facts().multiprocessors as usize * if tiles.cols > 64 { 1 } else { 2 }),
        };
        let geometry = Geometry { shared: tiles.shared, ..Geometry::row(size("linear", "y", blocks)?, tiles.block) };
        // Without a bias the kernel reads none, but the parameter has to be some address.
        let none;
        let bias = match bias {
            Some(bias) => bias,
            None => {
                none = self.tensor(0, 0, Storage::F32)?;
                &none
            }
        };
        self.with_f32(bias, |bias| match family {
            Family::Fma | Family::Mma => self.gpu.launch(kernel, geometry, &[y, x.read(), weight.read(), bias.read()], sizes),
            Family::Wgmma => {
                let x = TensorMap::bf16(x.data(), rows, weight.stride, tiles.rows)?;
                let weight = TensorMap::bf16(weight.data(), outputs.end, weight.stride, tiles.cols)?;
                self.gpu.launch(kernel, geometry, &[y, Argument::boxes(&x), Argument::boxes(&weight), bias.read()], sizes)
            }
        })
    }
}

impl Linear for CudaBackend {
    fn linear(&self, args: LinearArgs<'_, Tensor, Matrix>) -> Result<()> {
        args.check()?;
        let LinearArgs { y, x, weight, bias, accumulate } = args;
        if weight.storage == Storage::F32 && y.storage == Storage::Bf16 {
            return Err(Error::Device { problem: "linear: a bf16 result of f32 weights".into(), help: None });
        }
        let (rows, y_storage) = (y.rows, y.storage);
        let x = self.operand(x, weight)?;
        let outputs = 0..weight.rows();
        self.product(Product { y: y.write(), y_storage, x: &x, rows, weight, outputs, bias, accumulate })
    }
}
