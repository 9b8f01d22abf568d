//! Launches of kernels/linear_backward.cu.

use super::driver::{Argument, Element, Geometry};
use super::matrix::stride;
use super::{CudaBackend, Dense, Matrix, Storage, Tensor, kernel_for, kernels, size};
use crate::error::Result;
use crate::ops::{
    Cols, Direction, LinearBackward, LinearBackwardBiasArgs, LinearBackwardInputArgs, LinearBackwardWeightArgs, Shaped,
    TakeColsArgs,
};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads of a block and columns it sums: COLUMN_THREADS and WARP of reduce.cuh.
pub(super) const COLUMN_BLOCK: u32 = 512;
pub(super) const COLUMNS: usize = 32;

/// Rows whose products are one chain, CHAIN_ROWS of the kernels.
const CHAIN_ROWS: usize = 2048;

/// Threads of a block that adds chains up, CHAIN_THREADS of the kernels.
const CHAIN_BLOCK: u32 = 256;

/// Mirrors LinearBackwardInputSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct LinearBackwardInputSizes {
    rows: u32,
    in_features: u32,
    out_features: u32,
    d_y_stride: u32,
    weight_stride: u32,
    accumulate: u32,
}

/// Mirrors LinearBackwardWeightSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct LinearBackwardWeightSizes {
    rows: u32,
    out_features: u32,
    in_features: u32,
    d_y_stride: u32,
    x_stride: u32,
    scale: f32,
}

/// Mirrors LinearBackwardBiasSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct LinearBackwardBiasSizes {
    rows: u32,
    out_features: u32,
    d_y_stride: u32,
}

const _: () = assert!(
    size_of::<LinearBackwardInputSizes>() == 24
        && offset_of!(LinearBackwardInputSizes, accumulate) == 20
        && size_of::<LinearBackwardWeightSizes>() == 24
        && offset_of!(LinearBackwardWeightSizes, scale) == 20
        && size_of::<LinearBackwardBiasSizes>() == 12
        && offset_of!(LinearBackwardBiasSizes, d_y_stride) == 8,
    "layout shared with the kernels"
);

/// Rows, which are also the columns, of the result that a block computes; its threads and its dynamic shared memory.
#[derive(Debug, Clone, Copy)]
struct Tiles {
    side: usize,
    block: u32,
    shared: u32,
}

/// LargeTiles, SmallTiles and TilesF32 of the kernels.
const LARGE: Tiles = Tiles { side: 128, block: 256, shared: 3 * (128 + 128) * 64 * 2 };
const SMALL: Tiles = Tiles { side: 64, block: 128, shared: 4 * (64 + 64) * 64 * 2 };
const F32: Tiles = Tiles { side: 64, block: 256, shared: 0 };

impl Tiles {
    fn count(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(self.side) * cols.div_ceil(self.side)
    }
}

/// A factor of a product: rows of memory `stride` elements apart.
pub(super) struct Factor<'a> {
    pub(super) data: Argument<'a>,
    pub(super) stride: usize,
}

/// d_x = d_y W, or d_x += d_y W.
pub(super) struct InputGradient<'a> {
    pub(super) d_x: Argument<'a>,
    pub(super) d_x_storage: Storage,
    /// [rows, out_features], stored as the weight is.
    pub(super) d_y: Factor<'a>,
    pub(super) rows: usize,
    pub(super) weight: &'a Dense,
    pub(super) accumulate: bool,
}

/// d_weight += scale * d_y^T x.
pub(super) struct WeightGradient<'a> {
    pub(super) d_weight: &'a mut Tensor,
    /// [rows, out_features] and [rows, in_features], in the dtype matrices are multiplied in.
    pub(super) d_y: Factor<'a>,
    pub(super) x: Factor<'a>,
    pub(super) rows: usize,
    pub(super) scale: f32,
}

impl CudaBackend {
    /// Large tiles where there is one for every multiprocessor.
    fn gradient_tiles(&self, storage: Storage, rows: usize, cols: usize) -> Tiles {
        let multiprocessors = self.gpu.facts().multiprocessors as usize;
        match storage {
            Storage::F32 => F32,
            Storage::Bf16 if LARGE.count(rows, cols) >= multiprocessors => LARGE,
            Storage::Bf16 => SMALL,
        }
    }

    pub(super) fn input_gradient(&self, gradient: InputGradient<'_>) -> Result<()> {
        const OP: &str = "linear_backward_input";
        let InputGradient { d_x, d_x_storage, d_y, rows, weight, accumulate } = gradient;
        let (out_features, in_features) = (weight.rows(), weight.cols());
        let tiles = self.gradient_tiles(weight.storage, rows, in_features);
        let [to_f32, to_bf16] = if tiles.side == LARGE.side {
            [kernels::LINEAR_BACKWARD_INPUT_LARGE_F32_BF16, kernels::LINEAR_BACKWARD_INPUT_LARGE_BF16_BF16]
        } else {
            [kernels::LINEAR_BACKWARD_INPUT_SMALL_F32_BF16, kernels::LINEAR_BACKWARD_INPUT_SMALL_BF16_BF16]
        };
        let kernels = [Some(kernels::LINEAR_BACKWARD_INPUT_F32_F32), Some(to_f32), None, Some(to_bf16)];
        let kernel = kernel_for(OP, d_x_storage, weight.storage, kernels)?;
        let sizes = LinearBackwardInputSizes {
            rows: size(OP, "d_y", rows)?,
            in_features: size(OP, "weight", in_features)?,
            out_features: size(OP, "weight", out_features)?,
            d_y_stride: size(OP, "d_y", d_y.stride)?,
            weight_stride: size(OP, "weight", weight.stride)?,
            accumulate: u32::from(accumulate),
        };
        let grid = size(OP, "d_x", tiles.count(rows, in_features))?;
        let geometry = Geometry { shared: tiles.shared, ..Geometry::row(grid, tiles.block) };
        self.gpu.launch(kernel, geometry, &[d_x, d_y.data, weight.read()], sizes)
    }

    pub(super) fn weight_gradient(&self, gradient: WeightGradient<'_>) -> Result<()> {
        const OP: &str = "linear_backward_weight";
        let WeightGradient { d_weight, d_y, x, rows, scale } = gradient;
        if rows == 0 {
            return Ok(());
        }
        let tiles = self.gradient_tiles(self.compute, d_weight.rows, d_weight.cols);
        let count = tiles.count(d_weight.rows, d_weight.cols);
        let mma = if tiles.side == LARGE.side {
            kernels::LINEAR_BACKWARD_WEIGHT_LARGE_BF16
        } else {
            kernels::LINEAR_BACKWARD_WEIGHT_SMALL_BF16
        };
        let kernels = [Some(kernels::LINEAR_BACKWARD_WEIGHT_F32), Some(mma), None, None];
        let kernel = kernel_for(OP, d_weight.storage, self.compute, kernels)?;
        let sizes = LinearBackwardWeightSizes {
            rows: size(OP, "d_y", rows)?,
            out_features: size(OP, "d_weight", d_weight.rows)?,
            in_features: size(OP, "d_weight", d_weight.cols)?,
            d_y_stride: size(OP, "d_y", d_y.stride)?,
            x_stride: size(OP, "x", x.stride)?,
            scale,
        };
        let grid = size(OP, "d_weight", count)?;
        let geometry = Geometry { shared: tiles.shared, ..Geometry::row(grid, tiles.block) };
        if self.compute == Storage::F32 {
            return self.gpu.launch(kernel, geometry, &[d_weight.write(), x.data, d_y.data], sizes);
        }
        let few = count < self.gpu.facts().multiprocessors as usize;
        let chains = if few { rows.div_ceil(CHAIN_ROWS) } else { 1 };
        let elements = d_weight.rows * d_weight.cols;
        let mut kept = self.gpu.allocate(if chains > 1 { chains * elements * size_of::<f32>() } else { 0 })?;
        let geometry = Geometry { grid: [grid, size(OP, "d_y", chains)?, 1], ..geometry };
        let arguments = [d_weight.write(), Argument::write(&mut kept, Element::F32), x.data, d_y.data];
        self.gpu.launch(kernel, geometry, &arguments, sizes)?;
        if chains > 1 {
            let arguments = [d_weight.write(), Argument::read(&kept, Element::F32)];
            self.gpu.launch(kernels::LINEAR_BACKWARD_WEIGHT_CHAINS, Geometry::over(elements, CHAIN_BLOCK)?, &arguments, sizes)?;
        }
        Ok(())
    }
}

impl LinearBackward for CudaBackend {
    fn linear_backward_input(&self, args: LinearBackwardInputArgs<'_, Tensor, Matrix>) -> Result<()> {
        args.check()?;
        let LinearBackwardInputArgs { d_x, d_y, weight, accumulate } = args;
        let weight = &*weight.dense(self)?;
        let (rows, d_x_storage) = (d_y.rows, d_x.storage);
        let operand = self.operand(d_y, weight)?;
        let d_y = Factor { data: operand.read(), stride: stride(weight.storage, d_y.cols) };
        self.input_gradient(InputGradient { d_x: d_x.write(), d_x_storage, d_y, rows, weight, accumulate })
    }

    fn linear_backward_weight(&self, args: LinearBackwardWeightArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let LinearBackwardWeightArgs { d_weight, x, d_y, first_col, scale } = args;
        let rows = d_y.rows;
        // Kernels read bf16 eight at a time: columns that begin elsewhere are copied out.
        let own;
        let (d_y, first_col) = if self.compute == Storage::Bf16 && !first_col.is_multiple_of(8) {
            let mut taken = self.tensor(rows, d_weight.rows, d_y.storage)?;
            self.take_cols(TakeColsArgs { y: &mut taken, x: d_y, first_col })?;
            own = taken;
            (&own, 0)
        } else {
            (d_y, first_col)
        };
        let (left, right) = (self.operand_as(d_y, self.compute)?, self.operand_as(x, self.compute)?);
        let d_y = Factor { data: left.read().from_element(first_col), stride: stride(self.compute, d_y.cols) };
        let x = Factor { data: right.read(), stride: stride(self.compute, x.cols) };
        self.weight_gradient(WeightGradient { d_weight, d_y, x, rows, scale })
    }

    fn linear_backward_bias(&self, args: LinearBackwardBiasArgs<'_, Tensor>) -> Result<()> {
        const OP: &str = "linear_backward_bias";
        args.check()?;
        let LinearBackwardBiasArgs { d_bias, d_y, first_col } = args;
        if d_y.rows == 0 {
            return Ok(());
        }
        let kernels = [Some(kernels::LINEAR_BACKWARD_BIAS_F32), Some(kernels::LINEAR_BACKWARD_BIAS_BF16), None, None];
        let kernel = kernel_for(OP, d_bias.storage, d_y.storage, kernels)?;
        let sizes = LinearBackwardBiasSizes {
            rows: size(OP, "d_y", d_y.rows)?,
            out_features: size(OP, "d_bias", d_bias.cols)?,
            d_y_stride: size(OP, "d_y", d_y.cols)?,
        };
        let geometry = Geometry::row(size(OP, "d_bias", d_bias.cols.div_ceil(COLUMNS))?, COLUMN_BLOCK);
        self.gpu.launch(kernel, geometry, &[d_bias.write(), d_y.read().from_element(first_col)], sizes)
    }

    fn prepare_tensors(&self, parts: &[&Tensor], _direction: Direction) -> Result<Matrix> {
        Dense::from_tensors(self, parts).map(Matrix::Dense)
    }
}
