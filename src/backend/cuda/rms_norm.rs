//! Launches of kernels/rms_norm.cu.

use super::driver::{Argument, Element, Geometry};
use super::linear_backward::{COLUMN_BLOCK, COLUMNS};
use super::{CudaBackend, Tensor, kernel_for, kernel_of, kernels, size};
use crate::error::Result;
use crate::ops::{RmsNorm, RmsNormArgs, RmsNormBackward, RmsNormBackwardArgs};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block, THREADS of the kernel; a warp a row.
const BLOCK: u32 = 128;
const ROWS_A_BLOCK: usize = 4;

/// Mirrors RmsNormSizes of the kernel.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct RmsNormSizes {
    rows: u32,
    hidden: u32,
    eps: f32,
}

const _: () = assert!(size_of::<RmsNormSizes>() == 12 && offset_of!(RmsNormSizes, eps) == 8, "layout shared with the kernel");

impl RmsNorm for CudaBackend {
    fn rms_norm(&self, args: RmsNormArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let RmsNormArgs { y, x, weight, eps } = args;
        let kernel = kernel_for(
            "rms_norm",
            y.storage,
            x.storage,
            [Some(kernels::RMS_NORM_F32_F32), None, Some(kernels::RMS_NORM_BF16_F32), Some(kernels::RMS_NORM_BF16_BF16)],
        )?;
        let sizes = RmsNormSizes { rows: size("rms_norm", "x", x.rows)?, hidden: size("rms_norm", "weight", x.cols)?, eps };
        let geometry = Geometry::row(size("rms_norm", "x", x.rows.div_ceil(ROWS_A_BLOCK))?, BLOCK);
        self.with_f32(weight, |weight| self.gpu.launch(kernel, geometry, &[y.write(), x.read(), weight.read()], sizes))
    }
}

impl RmsNormBackward for CudaBackend {
    fn rms_norm_backward(&self, args: RmsNormBackwardArgs<'_, Tensor>) -> Result<()> {
        const OP: &str = "rms_norm_backward";
        args.check()?;
        let RmsNormBackwardArgs { d_x, d_weight, x, weight, d_y, eps } = args;
        let kernel = kernel_of(OP, d_x.storage, &[x.storage, d_y.storage], Some(kernels::RMS_NORM_BACKWARD), None)?;
        let sizes = RmsNormSizes { rows: size(OP, "x", x.rows)?, hidden: size(OP, "weight", x.cols)?, eps };
        let geometry = Geometry::row(size(OP, "x", x.rows.div_ceil(ROWS_A_BLOCK))?, BLOCK);
        let mut inv_rms = self.gpu.allocate(x.rows * size_of::<f32>())?;
        self.with_f32(weight, |weight| {
            let kept = Argument::write(&mut inv_rms, Element::F32);
            self.gpu.launch(kernel, geometry, &[d_x.write(), kept, x.read(), weight.read(), d_y.read()], sizes)
        })?;
        let Some(d_weight) = d_weight else { return Ok(()) };
        let kernel = kernel_of(OP, d_weight.storage, &[], Some(kernels::RMS_NORM_BACKWARD_WEIGHT), None)?;
        let geometry = Geometry::row(size(OP, "x", x.cols.div_ceil(COLUMNS))?, COLUMN_BLOCK);
        let kept = Argument::read(&inv_rms, Element::F32);
        self.gpu.launch(kernel, geometry, &[d_weight.write(), x.read(), d_y.read(), kept], sizes)
    }
}
