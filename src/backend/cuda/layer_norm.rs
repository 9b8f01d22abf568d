//! Launch of kernels/layer_norm.cu.

use super::driver::Geometry;
use super::{CudaBackend, Storage, Tensor, kernel_for, kernels, size};
use crate::error::Result;
use crate::ops::{HeadNormArgs, LayerNorm, LayerNormArgs};
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
        let sizes = HeadNormSizes {
            rows: size("head_norm", "x", x.rows)?,
            cols: size("head_norm", "x", x.cols)?,
            heads: size("head_norm", "weight", weight.rows)?,
            head_dim: size("head_norm", "weight", weight.cols)?,
            first_col: size("head_norm", "first_col", first_col)?,
            eps,
        };
        let geometry = Geometry::row(size("head_norm", "x", (x.rows * weight.rows).div_ceil(VECTORS_A_BLOCK))?, BLOCK);
        self.with_f32(weight, |weight| self.gpu.launch(kernel, geometry, &[x.write(), weight.read()], sizes))
    }
}
