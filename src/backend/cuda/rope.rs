//! Launch of kernels/rope.cu.

use super::driver::Geometry;
use super::{CudaBackend, Storage, Tensor, kernels, size};
use crate::error::Result;
use crate::ops::{Rope, RopeArgs};
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

/// Pairs a thread rotates; the kernel chooses alike.
const fn rope_step(half: usize, cols: usize) -> usize {
    if half.is_multiple_of(8) && cols.is_multiple_of(8) { 8 } else { 1 }
}

impl Rope for CudaBackend {
    fn rope(&self, args: RopeArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let RopeArgs { x, heads, cos, sin, positions, interleaved } = args;
        let kernel = match (interleaved, x.storage) {
            (false, Storage::F32) => kernels::ROPE_HALF_F32,
            (false, Storage::Bf16) => kernels::ROPE_HALF_BF16,
            (true, Storage::F32) => kernels::ROPE_INTERLEAVED_F32,
            (true, Storage::Bf16) => kernels::ROPE_INTERLEAVED_BF16,
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
