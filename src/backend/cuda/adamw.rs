//! Launches of kernels/adamw.cu.

use super::driver::{Argument, Element, Geometry};
use super::{CudaBackend, Tensor, kernel_of, kernels, size};
use crate::error::Result;
use crate::ops::adamw::Coefficients;
use crate::ops::{Adamw, AdamwArgs};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block and elements a thread, THREADS and STEP of the kernels.
const BLOCK: u32 = 256;
const STEP: usize = 4;

/// Elements whose squares a block adds up, NORM_CHUNK of the kernels.
const NORM_CHUNK: usize = 1 << 16;

/// Mirrors AdamwSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct AdamwSizes {
    rows: u32,
    cols: u32,
    keep: f32,
    lerp: f32,
    beta2: f32,
    rest2: f32,
    root: f32,
    eps: f32,
    rate: f32,
    scale: f32,
}

/// Mirrors SquaredNormSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct SquaredNormSizes {
    rows: u32,
    cols: u32,
}

const _: () = assert!(size_of::<AdamwSizes>() == 40 && offset_of!(AdamwSizes, scale) == 36, "layout shared with the kernels");

impl Adamw for CudaBackend {
    fn adamw(&self, args: AdamwArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let AdamwArgs { value, grad, first, second, step } = args;
        let state = [grad.storage, first.storage, second.storage];
        let kernel = kernel_of("adamw", value.storage, &state, Some(kernels::ADAMW), None)?;
        let (rows, cols) = (size("adamw", "value", value.rows)?, size("adamw", "value", value.cols)?);
        let Coefficients { keep, lerp, beta2, rest2, root, eps, rate, scale } = step.coefficients();
        let sizes = AdamwSizes { rows, cols, keep, lerp, beta2, rest2, root, eps, rate, scale };
        let geometry = Geometry::over((value.rows * value.cols).div_ceil(STEP), BLOCK)?;
        let arguments = [value.write(), first.write(), second.write(), grad.read()];
        self.gpu.launch(kernel, geometry, &arguments, sizes)
    }

    fn squared_norm(&self, x: &Tensor) -> Result<f64> {
        let kernel = kernel_of("squared_norm", x.storage, &[], Some(kernels::SQUARED_NORM), None)?;
        let chunks = (x.rows * x.cols).div_ceil(NORM_CHUNK);
        let sizes = SquaredNormSizes { rows: size("squared_norm", "x", x.rows)?, cols: size("squared_norm", "x", x.cols)? };
        let mut sums = self.gpu.allocate(chunks * size_of::<f64>())?;
        let geometry = Geometry::row(size("squared_norm", "x", chunks)?, BLOCK);
        self.gpu.launch(kernel, geometry, &[Argument::write(&mut sums, Element::F64), x.read()], sizes)?;
        Ok(self.gpu.download::<f64>(&sums)?.iter().sum())
    }
}
