//! Launch of kernels/rms_norm.cu.

use super::driver::Geometry;
use super::{CudaBackend, Tensor, kernel_for, kernels, size};
use crate::error::Result;
use crate::ops::{RmsNorm, RmsNormArgs};
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
