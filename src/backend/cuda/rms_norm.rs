//! Launch of kernels/rms_norm.cu.

use super::driver::{Argument, Buffer, Geometry, Gpu};
use super::kernels;
use crate::error::{Error, Result};
use bytemuck::NoUninit;
use half::bf16;
use std::mem::offset_of;

/// Threads a block; THREADS of the kernel.
const BLOCK: u32 = 256;

/// Mirrors RmsNormSizes of the kernel.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct RmsNormSizes {
    hidden: u32,
    eps: f32,
}

const _: () = assert!(size_of::<RmsNormSizes>() == 8 && offset_of!(RmsNormSizes, eps) == 4, "layout shared with the kernel");

/// y = x / sqrt(mean(x^2) + eps) * weight per row; `x` and `y` are `[rows, hidden]`, `weight` is `[hidden]`, and the length of
/// `weight` says what hidden is. Sums in f32; y is rounded once.
///
/// # Errors
/// [`Error::Shape`]; [`Error::Device`].
pub fn rms_norm(gpu: &Gpu, y: &mut Buffer<bf16>, x: &Buffer<bf16>, weight: &Buffer<bf16>, eps: f32) -> Result<()> {
    let hidden = weight.len();
    let rows = x.len().checked_div(hidden).unwrap_or(0);
    if rows * hidden != x.len() || hidden == 0 {
        return Err(Error::shape("rms_norm", "x", &[rows, hidden], &[x.len()]));
    }
    if y.len() != x.len() {
        return Err(Error::shape("rms_norm", "y", &[x.len()], &[y.len()]));
    }
    // The grid's limit, which the memory of no GPU reaches.
    let grid = u32::try_from(rows).map_err(|_| Error::shape("rms_norm", "x", &[u32::MAX as usize], &[rows]))?;
    let hidden = u32::try_from(hidden).map_err(|_| Error::shape("rms_norm", "weight", &[u32::MAX as usize], &[hidden]))?;
    let geometry = Geometry { grid, block: BLOCK, shared: 0 };
    let arguments = &mut [Argument::write(y), Argument::read(x), Argument::read(weight)];
    gpu.launch(kernels::RMS_NORM_BF16, geometry, arguments, RmsNormSizes { hidden, eps })
}
