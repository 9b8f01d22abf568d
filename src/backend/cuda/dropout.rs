//! Launch of kernels/dropout.cu.

use super::driver::Geometry;
use super::{CudaBackend, Tensor, kernel_of, kernels, size};
use crate::error::Result;
use crate::ops::{Dropout, DropoutArgs};
use crate::random::words;
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block and elements a thread, THREADS and STEP of the kernels.
const BLOCK: u32 = 256;
const STEP: usize = 4;

/// Mirrors DropoutSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct DropoutSizes {
    rows: u32,
    cols: u32,
    seed: [u32; 2],
    stream: [u32; 2],
    threshold: u32,
    factor: f32,
}

const _: () =
    assert!(size_of::<DropoutSizes>() == 32 && offset_of!(DropoutSizes, factor) == 28, "layout shared with the kernels");

impl Dropout for CudaBackend {
    fn dropout(&self, args: DropoutArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let DropoutArgs { y, x, mask } = args;
        let (f32, bf16) = (Some(kernels::DROPOUT_F32), Some(kernels::DROPOUT_BF16));
        let kernel = kernel_of("dropout", y.storage, &[x.storage], f32, bf16)?;
        let sizes = DropoutSizes {
            rows: size("dropout", "x", x.rows)?,
            cols: size("dropout", "x", x.cols)?,
            seed: words(mask.seed),
            stream: words(mask.stream),
            threshold: mask.threshold(),
            factor: 1.0 / (1.0 - mask.probability),
        };
        let geometry = Geometry::over((x.rows * x.cols).div_ceil(STEP), BLOCK)?;
        self.gpu.launch(kernel, geometry, &[y.write(), x.read()], sizes)
    }
}
