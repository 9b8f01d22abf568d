//! Launches of kernels/rope.cu.

use super::driver::Geometry;
use super::kernels::Kernel;
use super::{CudaBackend, Storage, Tensor, kernels, size};
use crate::error::Result;
use crate::ops::{Rope, RopeArgs, RopeBackward};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block, THREADS of the kernel.
const BLOCK: u32 = 256;

/// Mirrors RopeSizes of the kernel.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct RopeSizes {
    rows: u32,
    cols: u32,
    heads: u32,
    half: u32,
}

const _: () = assert!(size_of::<RopeSizes>() == 16 && offset_of!(RopeSizes, half) == 12, "layout shared with the kernel");

/// Pairs a thread rotates; the kernels choose alike.
pub(super) const fn rope_step(half: usize, cols: usize) -> usize {
    if half.is_multiple_of(8) && cols.is_multiple_of(8) { 8 } else { 1 }
}

/// Kernels by pairing, in f32 and in bf16.
struct Kernels {
    half: [Kernel; 2],
    interleaved: [Kernel; 2],
}

const FORWARD: Kernels = Kernels {
    half: [kernels::ROPE_HALF_F32, kernels::ROPE_HALF_BF16],
    interleaved: [kernels::ROPE_INTERLEAVED_F32, kernels::ROPE_INTERLEAVED_BF16],
};

const BACKWARD: Kernels = Kernels {
    half: [kernels::ROPE_BACKWARD_HALF_F32, kernels::ROPE_BACKWARD_HALF_BF16],
    interleaved: [kernels::ROPE_BACKWARD_INTERLEAVED_F32, kernels::ROPE_BACKWARD_INTERLEAVED_BF16],
};

impl CudaBackend {
    fn rotate(&self, args: RopeArgs<'_, Tensor>, kernels: Kernels) -> Result<()> {
        args.check()?;
        let RopeArgs { x, heads, cos, sin, positions, interleaved } = args;
        let [f32, bf16] = if interleaved { kernels.interleaved } else { kernels.half };
        let kernel = match x.storage {
            Storage::F32 => f32,
            Storage::Bf16 => bf16,
        };
        let sizes = RopeSizes {
            rows: size("rope", "x", x.rows)?,
            cols: size("rope", "x", x.cols)?,
            heads: size("rope", "heads", heads)?,
            half: size("rope", "cos", cos.cols)?,
        };
        let geometry = Geometry::over(x.rows * heads * (cos.cols / rope_step(cos.cols, x.cols)), BLOCK)?;
        let positions = self.indices.get(&self.gpu, positions)?;
        self.with_f32(cos, |cos| {
            self.with_f32(sin, |sin| {
                self.gpu.launch(kernel, geometry, &[x.write(), cos.read(), sin.read(), positions.read()], sizes)
            })
        })
    }
}

impl Rope for CudaBackend {
    fn rope(&self, args: RopeArgs<'_, Tensor>) -> Result<()> {
        self.rotate(args, FORWARD)
    }
}

impl RopeBackward for CudaBackend {
    fn rope_backward(&self, args: RopeArgs<'_, Tensor>) -> Result<()> {
        self.rotate(args, BACKWARD)
    }
}
