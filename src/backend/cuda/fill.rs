//! Launch of kernels/fill.cu.

use super::driver::Geometry;
use super::{CudaBackend, Storage, Tensor, kernels, size};
use crate::error::Result;
use crate::ops::Fill;
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block and elements a thread, THREADS and STEP of the kernels.
const BLOCK: u32 = 256;
const STEP: usize = 8;

/// Mirrors FillSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct FillSizes {
    rows: u32,
    cols: u32,
    value: f32,
}

const _: () = assert!(size_of::<FillSizes>() == 12 && offset_of!(FillSizes, value) == 8, "layout shared with the kernels");

impl Fill for CudaBackend {
    fn fill(&self, y: &mut Tensor, value: f32) -> Result<()> {
        let kernel = match y.storage {
            Storage::F32 => kernels::FILL_F32,
            Storage::Bf16 => kernels::FILL_BF16,
        };
        let sizes = FillSizes { rows: size("fill", "y", y.rows)?, cols: size("fill", "y", y.cols)?, value };
        let geometry = Geometry::over((y.rows * y.cols).div_ceil(STEP), BLOCK)?;
        self.gpu.launch(kernel, geometry, &[y.write()], sizes)
    }
}
