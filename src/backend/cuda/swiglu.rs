//! Launches of kernels/swiglu.cu.

use super::driver::Geometry;
use super::{CudaBackend, Tensor, kernel_for, kernel_of, kernels, size};
use crate::error::Result;
use crate::ops::{LinearSwiglu, Swiglu, SwigluArgs, SwigluBackward, SwigluBackwardArgs};
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

impl SwigluSizes {
    fn new(op: &'static str, rows: usize, intermediate: usize) -> Result<Self> {
        Ok(Self { rows: size(op, "y", rows)?, intermediate: size(op, "y", intermediate)? })
    }

    /// A thread for eight elements, or for one where a row is no multiple of that.
    fn geometry(&self) -> Result<Geometry> {
        let step = if self.intermediate.is_multiple_of(8) { 8 } else { 1 };
        Geometry::over(self.rows as usize * (self.intermediate / step) as usize, BLOCK)
    }
}

impl Swiglu for CudaBackend {
    fn swiglu(&self, args: SwigluArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let SwigluArgs { y, gate_up } = args;
        let kernels = [Some(kernels::SWIGLU_F32), None, None, Some(kernels::SWIGLU_BF16)];
        let kernel = kernel_for("swiglu", y.storage, gate_up.storage, kernels)?;
        let sizes = SwigluSizes::new("swiglu", y.rows, y.cols)?;
        self.gpu.launch(kernel, sizes.geometry()?, &[y.write(), gate_up.read()], sizes)
    }
}

/// Two launches: a block of the product holds columns of gate or of up, not of both.
impl LinearSwiglu for CudaBackend {}

impl SwigluBackward for CudaBackend {
    fn swiglu_backward(&self, args: SwigluBackwardArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let SwigluBackwardArgs { d_gate_up, gate_up, d_y } = args;
        let (f32, bf16) = (Some(kernels::SWIGLU_BACKWARD_F32), Some(kernels::SWIGLU_BACKWARD_BF16));
        let kernel = kernel_of("swiglu_backward", d_gate_up.storage, &[gate_up.storage, d_y.storage], f32, bf16)?;
        let sizes = SwigluSizes::new("swiglu_backward", d_y.rows, d_y.cols)?;
        self.gpu.launch(kernel, sizes.geometry()?, &[d_gate_up.write(), gate_up.read(), d_y.read()], sizes)
    }
}
