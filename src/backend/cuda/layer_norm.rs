//! Launches of kernels/layer_norm.cu.

use super::driver::{Argument, Element, Geometry};
use super::linear_backward::{COLUMN_BLOCK, COLUMNS};
use super::{CudaBackend, Storage, Tensor, kernel_for, kernel_of, kernels, size};
use crate::error::Result;
use crate::ops::{HeadNormArgs, HeadNormBackwardArgs, LayerNorm, LayerNormArgs, LayerNormBackward, LayerNormBackwardArgs};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block, THREADS of the kernels; a warp a row, or a head.
const BLOCK: u32 = 128;
const VECTORS_A_BLOCK: usize = 4;

/// Mirrors LayerNormSizes of the kernel.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct LayerNormSizes {
    rows: u32,
    hidden: u32,
    eps: f32,
}

/// Mirrors HeadNormSizes of the kernel.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct HeadNormSizes {
    rows: u32,
    cols: u32,
    heads: u32,
    head_dim: u32,
    first_col: u32,
    eps: f32,
}

const _: () = assert!(
    size_of::<LayerNormSizes>() == 12
        && offset_of!(LayerNormSizes, eps) == 8
        && size_of::<HeadNormSizes>() == 24
        && offset_of!(HeadNormSizes, eps) == 20,
    "layout shared with the kernels"
);

impl HeadNormSizes {
    fn new(op: &'static str, x: &Tensor, weight: &Tensor, first_col: usize, eps: f32) -> Result<Self> {
        Ok(Self {
            rows: size(op, "x", x.rows)?,
            cols: size(op, "x", x.cols)?,
            heads: size(op, "weight", weight.rows)?,
            head_dim: size(op, "weight", weight.cols)?,
            first_col: size(op, "first_col", first_col)?,
            eps,
        })
    }
}

/// f32s kept of each row or head for d_weight: mean and inverse of the standard deviation.
const KEPT: usize = 2;

impl LayerNorm for CudaBackend {
    fn layer_norm(&self, args: LayerNormArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let LayerNormArgs { y, x, weight, eps } = args;
        let kernel = kernel_for(
            "layer_norm",
            y.storage,
            x.storage,
            [Some(kernels::LAYER_NORM_F32_F32), None, Some(kernels::LAYER_NORM_BF16_F32), Some(kernels::LAYER_NORM_BF16_BF16)],
        )?;
        let sizes = LayerNormSizes { rows: size("layer_norm", "x", x.rows)?, hidden: size("layer_norm", "weight", x.cols)?, eps };
        let geometry = Geometry::row(size("layer_norm", "x", x.rows.div_ceil(VECTORS_A_BLOCK))?, BLOCK);
        self.with_f32(weight, |weight| self.gpu.launch(kernel, geometry, &[y.write(), x.read(), weight.read()], sizes))
    }

    fn head_norm(&self, args: HeadNormArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let HeadNormArgs { x, weight, first_col, eps } = args;
        let kernel = match x.storage {
            Storage::F32 => kernels::HEAD_NORM_F32,
            Storage::Bf16 => kernels::HEAD_NORM_BF16,
        };
        let sizes = HeadNormSizes::new("head_norm", x, weight, first_col, eps)?;
        let geometry = Geometry::row(size("head_norm", "x", (x.rows * weight.rows).div_ceil(VECTORS_A_BLOCK))?, BLOCK);
        self.with_f32(weight, |weight| self.gpu.launch(kernel, geometry, &[x.write(), weight.read()], sizes))
    }
}

impl LayerNormBackward for CudaBackend {
    fn layer_norm_backward(&self, args: LayerNormBackwardArgs<'_, Tensor>) -> Result<()> {
        const OP: &str = "layer_norm_backward";
        args.check()?;
        let LayerNormBackwardArgs { d_x, d_weight, x, weight, d_y, eps } = args;
        let kernel = kernel_of(OP, d_x.storage, &[x.storage, d_y.storage], Some(kernels::LAYER_NORM_BACKWARD), None)?;
        let sizes = LayerNormSizes { rows: size(OP, "x", x.rows)?, hidden: size(OP, "weight", x.cols)?, eps };
        let geometry = Geometry::row(size(OP, "x", x.rows.div_ceil(VECTORS_A_BLOCK))?, BLOCK);
        let mut kept = self.gpu.allocate(x.rows * KEPT * size_of::<f32>())?;
        self.with_f32(weight, |weight| {
            let kept = Argument::write(&mut kept, Element::F32);
            self.gpu.launch(kernel, geometry, &[d_x.write(), kept, x.read(), weight.read(), d_y.read()], sizes)
        })?;
        let Some(d_weight) = d_weight else { return Ok(()) };
        let kernel = kernel_of(OP, d_weight.storage, &[], Some(kernels::LAYER_NORM_BACKWARD_WEIGHT), None)?;
        let geometry = Geometry::row(size(OP, "x", x.cols.div_ceil(COLUMNS))?, COLUMN_BLOCK);
        let kept = Argument::read(&kept, Element::F32);
        self.gpu.launch(kernel, geometry, &[d_weight.write(), x.read(), d_y.read(), kept], sizes)
    }

    fn head_norm_backward(&self, args: HeadNormBackwardArgs<'_, Tensor>) -> Result<()> {
        const OP: &str = "head_norm_backward";
        args.check()?;
        let HeadNormBackwardArgs { d, d_weight, x, weight, first_col, eps } = args;
        let both = |f32, bf16| kernel_of(OP, d.storage, &[x.storage], Some(f32), Some(bf16));
        let kernel = both(kernels::HEAD_NORM_BACKWARD_F32, kernels::HEAD_NORM_BACKWARD_BF16)?;
        let sizes = HeadNormSizes::new(OP, x, weight, first_col, eps)?;
        let vectors = x.rows * weight.rows;
        let geometry = Geometry::row(size(OP, "x", vectors.div_ceil(VECTORS_A_BLOCK))?, BLOCK);
        // Before d is overwritten.
        if let Some(d_weight) = d_weight {
            kernel_of(OP, d_weight.storage, &[], Some(kernel), None)?;
            let statistics = both(kernels::HEAD_NORM_STATISTICS_F32, kernels::HEAD_NORM_STATISTICS_BF16)?;
            let mut kept = self.gpu.allocate(vectors * KEPT * size_of::<f32>())?;
            self.gpu.launch(statistics, geometry, &[Argument::write(&mut kept, Element::F32), x.read()], sizes)?;
            let sums = both(kernels::HEAD_NORM_BACKWARD_WEIGHT_F32, kernels::HEAD_NORM_BACKWARD_WEIGHT_BF16)?;
            let columns = Geometry::row(size(OP, "weight", (weight.rows * weight.cols).div_ceil(COLUMNS))?, COLUMN_BLOCK);
            let kept = Argument::read(&kept, Element::F32);
            self.gpu.launch(sums, columns, &[d_weight.write(), x.read(), d.read(), kept], sizes)?;
        }
        self.with_f32(weight, |weight| self.gpu.launch(kernel, geometry, &[d.write(), x.read(), weight.read()], sizes))
    }
}
