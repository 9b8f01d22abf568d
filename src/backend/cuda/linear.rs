//! Matrix products: launches of kernels/linear.cu and kernels/linear_wgmma.cu, and calls of cuBLASLt.

use super::driver::{Argument, Buffer, Geometry, Matmul, TensorMap};
use super::kernels::Kernel;
use super::matrix::stride;
use super::rows::Convert;
use super::{CudaBackend, Dense, Matrix, Storage, Tensor, kernels, nf4, size};
use crate::error::{Error, Result};
use crate::ops::{Linear, LinearArgs, Shaped};
use bytemuck::NoUninit;
use std::mem::offset_of;
use std::ops::Range;

/// Mirrors LinearSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
pub(super) struct LinearSizes {
    pub(super) rows: u32,
    pub(super) out_features: u32,
    pub(super) in_features: u32,
    pub(super) first_out: u32,
    pub(super) has_bias: u32,
    pub(super) accumulate: u32,
}

const _: () =
    assert!(size_of::<LinearSizes>() == 24 && offset_of!(LinearSizes, accumulate) == 20, "layout shared with the kernels");

/// What a block computes: rows and columns of y, its threads and its dynamic shared memory. Mirrors MmaTiles, WgmmaTiles and
/// FmaTiles of the kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    pub(super) rows: u32,
    pub(super) cols: u32,
    pub(super) block: u32,
    pub(super) shared: u32,
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
    pub(super) fn count(self, rows: usize, cols: usize) -> usize {
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
    /// However cuBLASLt likes: here rows of one matrix may differ from their bits in another.
    CublasLt,
}

/// What blocks compute, by a kernel for results in f32 and one for bf16.
type Variant = (Tiles, [Kernel; 2]);

/// Rows of activations as the matrix product reads them: of its storage type, and padded as the weights are.
pub(super) enum Operand<'a> {
    /// As they are.
    Tensor(&'a Tensor),
    /// Copied.
    Padded(Buffer, Storage),
}

impl Operand<'_> {
    pub(super) fn read(&self) -> Argument<'_> {
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
    pub(super) weight: &'a Dense,
    /// Rows of the weight: columns of y.
    pub(super) outputs: Range<usize>,
    pub(super) bias: Option<&'a Tensor>,
    pub(super) accumulate: bool,
}

impl CudaBackend {
    /// `x` as products with `weight` read it.
    pub(super) fn operand<'a>(&self, x: &'a Tensor, weight: &Dense) -> Result<Operand<'a>> {
        self.operand_as(x, weight.storage)
    }

    /// `x` as products in `storage` read it.
    pub(super) fn operand_as<'a>(&self, x: &'a Tensor, storage: Storage) -> Result<Operand<'a>> {
        let stride = stride(storage, x.cols);
        if x.storage == storage && stride == x.cols {
            return Ok(Operand::Tensor(x));
        }
        let mut buffer = self.gpu.allocate(x.rows * stride * storage.size())?;
        self.convert_rows(Argument::write(&mut buffer, storage.element()), storage, stride, x)?;
        Ok(Operand::Padded(buffer, storage))
    }

    /// The family of all products with this weight. It must not depend on the number of rows.
    fn family(&self, weight: &Dense) -> Family {
        match weight.storage {
            Storage::F32 => Family::Fma,
            // Nothing to add up: TMA and cuBLASLt know no matrix without elements.
            Storage::Bf16 if weight.stride == 0 => Family::Mma,
            Storage::Bf16 if self.cublaslt.is_some() => Family::CublasLt,
            Storage::Bf16 if self.has_wgmma() => Family::Wgmma,
            Storage::Bf16 => Family::Mma,
        }
    }

    /// Machine code with wgmma runs on exactly this compute capability.
    pub(super) fn has_wgmma(&self) -> bool {
        self.gpu.facts().compute_capability == (9, 0)
    }

    /// True where at least one tile for each multiprocessor covers y.
    fn fills(&self, tiles: Tiles, rows: usize, cols: usize) -> bool {
        tiles.count(rows, cols) >= self.gpu.facts().multiprocessors as usize
    }

    /// Narrow tiles for decoding; else large ones where they are enough.
    fn mma_variant(&self, rows: usize, cols: usize) -> Variant {
        if rows <= 16 {
            (FEW_ROWS, [kernels::LINEAR_FEW_F32_BF16, kernels::LINEAR_FEW_BF16_BF16])
        } else if rows > 64 && self.fills(MANY_ROWS, rows, cols) {
            (MANY_ROWS, [kernels::LINEAR_MANY_F32_BF16, kernels::LINEAR_MANY_BF16_BF16])
        } else {
            (SOME_ROWS, [kernels::LINEAR_SOME_F32_BF16, kernels::LINEAR_SOME_BF16_BF16])
        }
    }

    /// The same: the largest tiles that are enough, the narrowest otherwise.
    fn wgmma_variant(&self, rows: usize, cols: usize) -> Variant {
        if rows > 64 && self.fills(WGMMA_MANY_ROWS, rows, cols) {
            (WGMMA_MANY_ROWS, [kernels::LINEAR_WGMMA_MANY_F32_BF16, kernels::LINEAR_WGMMA_MANY_BF16_BF16])
        } else if rows > 64 && self.fills(WGMMA_SOME_ROWS, rows, cols) {
            (WGMMA_SOME_ROWS, [kernels::LINEAR_WGMMA_SOME_F32_BF16, kernels::LINEAR_WGMMA_SOME_BF16_BF16])
        } else {
            (WGMMA_FEW_ROWS, [kernels::LINEAR_WGMMA_FEW_F32_BF16, kernels::LINEAR_WGMMA_FEW_BF16_BF16])
        }
    }

    pub(super) fn product(&self, product: Product<'_>) -> Result<()> {
        let (rows, cols) = (product.rows, product.outputs.len());
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        match self.family(product.weight) {
            Family::Fma if rows <= 32 => self.tiled(product, (FEW_ROWS_F32, [kernels::LINEAR_FEW_F32_F32; 2])),
            Family::Fma => self.tiled(product, (MANY_ROWS_F32, [kernels::LINEAR_MANY_F32_F32; 2])),
            Family::Mma => self.tiled(product, self.mma_variant(rows, cols)),
            Family::Wgmma => self.boxed(product, self.wgmma_variant(rows, cols)),
            Family::CublasLt => self.by_cublaslt(product),
        }
    }

    /// A block for each tile of y.
    fn tiled(&self, product: Product<'_>, (tiles, kernels): Variant) -> Result<()> {
        let sizes = product.sizes()?;
        let grid = size("linear", "y", tiles.count(product.rows, product.outputs.len()))?;
        let geometry = Geometry { shared: tiles.shared, ..Geometry::row(grid, tiles.block) };
        let kernel = product.kernel(kernels);
        let Product { y, x, weight, bias, .. } = product;
        self.with_bias(bias, |bias| self.gpu.launch(kernel, geometry, &[y, x.read(), weight.read(), bias.read()], sizes))
    }

    /// Blocks that walk the tiles of y and load their operands by tensor maps.
    fn boxed(&self, product: Product<'_>, (tiles, kernels): Variant) -> Result<()> {
        let sizes = product.sizes()?;
        // As many as run at the same time: one where its sums take most of the registers, else two.
        let at_once = self.gpu.facts().multiprocessors as usize * if tiles.cols > 64 { 1 } else { 2 };
        let grid = size("linear", "y", tiles.count(product.rows, product.outputs.len()).min(at_once))?;
        let geometry = Geometry { shared: tiles.shared, ..Geometry::row(grid, tiles.block) };
        let kernel = product.kernel(kernels);
        let Product { y, x, rows, weight, outputs, bias, .. } = product;
        let x = TensorMap::bf16(x.data(), rows, weight.stride, tiles.rows)?;
        let weight = TensorMap::bf16(weight.data(), outputs.end, weight.stride, tiles.cols)?;
        let (x, weight) = (Argument::boxes(&x), Argument::boxes(&weight));
        self.with_bias(bias, |bias| self.gpu.launch(kernel, geometry, &[y, x, weight, bias.read()], sizes))
    }

    /// By cuBLASLt, which takes a bias of y's type only: where y is bf16, so is the bias.
    fn by_cublaslt(&self, product: Product<'_>) -> Result<()> {
        let Product { y, y_storage, x, rows, weight, outputs, bias, accumulate } = product;
        let Some(library) = &self.cublaslt else {
            return Err(Error::Device { problem: "cuBLASLt was not opened".into(), help: None });
        };
        let converted = match bias {
            Some(bias) if bias.storage != y_storage => {
                let mut converted = self.tensor(bias.rows, bias.cols, y_storage)?;
                self.convert(Convert { y: &mut converted, x: bias })?;
                Some(converted)
            }
            _ => None,
        };
        let matmul = Matmul {
            y,
            x: x.data(),
            weight: weight.data(),
            first_out: outputs.start,
            bias: converted.as_ref().or(bias).map(|bias| &bias.data),
            rows,
            out_features: outputs.len(),
            in_features: weight.stride,
            accumulate,
        };
        self.gpu.matmul(library, &matmul)
    }

    /// The bias in f32. Without one the kernels read none, but the parameter has to be some address.
    pub(super) fn with_bias<T>(&self, bias: Option<&Tensor>, run: impl FnOnce(&Tensor) -> Result<T>) -> Result<T> {
        match bias {
            Some(bias) => self.with_f32(bias, run),
            None => run(&self.tensor(0, 0, Storage::F32)?),
        }
    }
}

impl Product<'_> {
    fn sizes(&self) -> Result<LinearSizes> {
        Ok(LinearSizes {
            rows: size("linear", "x", self.rows)?,
            out_features: size("linear", "y", self.outputs.len())?,
            in_features: size("linear", "weight", self.weight.stride)?,
            first_out: size("linear", "weight", self.outputs.start)?,
            has_bias: u32::from(self.bias.is_some()),
            accumulate: u32::from(self.accumulate),
        })
    }

    /// The kernel for y's type.
    const fn kernel(&self, [to_f32, to_bf16]: [Kernel; 2]) -> Kernel {
        match self.y_storage {
            Storage::F32 => to_f32,
            Storage::Bf16 => to_bf16,
        }
    }
}

impl Linear for CudaBackend {
    fn linear(&self, args: LinearArgs<'_, Tensor, Matrix>) -> Result<()> {
        args.check()?;
        let LinearArgs { y, x, weight, bias, accumulate } = args;
        let (rows, y_storage) = (y.rows, y.storage);
        if self.compute == Storage::F32 && y_storage == Storage::Bf16 {
            return Err(Error::Device { problem: "linear: a bf16 result of f32 weights".into(), help: None });
        }
        if let Matrix::Nf4(nf4) = weight
            && nf4::few_rows(self.compute, rows)
        {
            return self.nf4_few_rows(nf4, LinearArgs { y, x, weight, bias, accumulate });
        }
        let weight = weight.dense(self)?;
        let x = self.operand(x, &weight)?;
        let outputs = 0..weight.rows();
        self.product(Product { y: y.write(), y_storage, x: &x, rows, weight: &weight, outputs, bias, accumulate })
    }
}
