//! Launch of kernels/swiglu.cu.

use super::driver::Geometry;
use super::{CudaBackend, Tensor, kernel_for, kernels, size};
use crate::error::Result;
use crate::ops::{Swiglu, SwigluArgs};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block, THREADS of the kernel.
const BLOCK: u32 = 256;

/// Mirrors SwigluSizes of the kernel.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct SwigluSizes {
    rows: u32,
    intermediate: u32,
}

const _: () =
    assert!(size_of::<SwigluSizes>() == 8 && offset_of!(SwigluSizes, intermediate) == 4, "layout shared with the kernel");

impl Swiglu for CudaBackend {
    fn swiglu(&self, args: SwigluArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let SwigluArgs { y, gate_up } = args;
        let kernels = [Some(kernels::SWIGLU_F32), None, None, Some(kernels::SWIGLU_BF16)];
        let kernel = kernel_for("swiglu", y.storage, gate_up.storage, kernels)?;
        let sizes = SwigluSizes { rows: size("swiglu", "y", y.rows)?, intermediate: size("swiglu", "y", y.cols)? };
        let step = if y.cols.is_multiple_of(8) { 8 } else { 1 };
        let geometry = Geometry::over(y.rows * (y.cols / step), BLOCK)?;
        self.gpu.launch(kernel, geometry, &[y.write(), gate_up.read()], sizes)
    }
}
