//! Launches of kernels/linear.cu.

use super::driver::{Argument, Buffer, Geometry};
use super::kernels::Kernel;
use super::matrix::stride;
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

/// What a block computes: rows and columns of y, its threads and its dynamic shared memory. Mirrors MmaTiles and FmaTiles of
/// the kernels, whose sums do not depend on the choice.
#[derive(Debug, Clone, Copy)]
struct Tiles {
    rows: usize,
    cols: usize,
    block: u32,
    shared: u32,
}

const MANY_ROWS: Tiles = Tiles { rows: 128, cols: 128, block: 256, shared: 3 * (128 + 128) * 64 * 2 };
const SOME_ROWS: Tiles = Tiles { rows: 64, cols: 64, block: 128, shared: 4 * (64 + 64) * 64 * 2 };
const FEW_ROWS: Tiles = Tiles { rows: 16, cols: 32, block: 128, shared: 6 * (16 + 32) * 128 * 2 };
const MANY_ROWS_F32: Tiles = Tiles { rows: 64, cols: 64, block: 256, shared: 0 };
const FEW_ROWS_F32: Tiles = Tiles { rows: 8, cols: 128, block: 256, shared: 0 };

impl Tiles {
    fn count(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(self.rows) * cols.div_ceil(self.cols)
    }
}

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

    /// Tiles small enough that there is one for every multiprocessor, and no smaller.
    fn tiles(&self, storage: Storage, rows: usize, cols: usize) -> (Tiles, [Kernel; 2]) {
        let few = [kernels::LINEAR_FEW_F32_BF16, kernels::LINEAR_FEW_BF16_BF16];
        let some = [kernels::LINEAR_SOME_F32_BF16, kernels::LINEAR_SOME_BF16_BF16];
        let many = [kernels::LINEAR_MANY_F32_BF16, kernels::LINEAR_MANY_BF16_BF16];
        let multiprocessors = self.gpu.facts().multiprocessors as usize;
        match storage {
            Storage::F32 if rows <= 32 => (FEW_ROWS_F32, [kernels::LINEAR_FEW_F32_F32; 2]),
            Storage::F32 => (MANY_ROWS_F32, [kernels::LINEAR_MANY_F32_F32; 2]),
            Storage::Bf16 if rows <= FEW_ROWS.rows => (FEW_ROWS, few),
            Storage::Bf16 if rows > SOME_ROWS.rows && MANY_ROWS.count(rows, cols) >= multiprocessors => (MANY_ROWS, many),
            Storage::Bf16 => (SOME_ROWS, some),
        }
    }

    pub(super) fn product(&self, product: Product<'_>) -> Result<()> {
        let Product { y, y_storage, x, rows, weight, outputs, bias, accumulate } = product;
        let (tiles, [to_f32, to_bf16]) = self.tiles(weight.storage, rows, outputs.len());
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
        let grid = size("linear", "y", tiles.count(rows, outputs.len()))?;
        let geometry = Geometry { shared: tiles.shared, ..Geometry::row(grid, tiles.block) };
        self.with_bias(bias, |bias| self.gpu.launch(kernel, geometry, &[y, x.read(), weight.read(), bias.read()], sizes))
    }

    /// The bias in f32. Without one the kernels read none, but the parameter has to be some address.
    pub(super) fn with_bias<T>(&self, bias: Option<&Tensor>, run: impl FnOnce(&Tensor) -> Result<T>) -> Result<T> {
        match bias {
            Some(bias) => self.with_f32(bias, run),
            None => run(&self.tensor(0, 0, Storage::F32)?),
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
