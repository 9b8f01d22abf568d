//! Tensor maps: how TMA, Hopper's copy engine, finds the tiles of a matrix.

use super::failed;
use super::pool::Buffer;
use super::tape::Parameter;
use crate::error::{Error, Result};
use cudarc::driver::sys;
use std::marker::PhantomData;

/// Elements of bf16 in a row of a box: the 128 bytes that the widest swizzle permutes within.
const BOX_COLS: u32 = 64;

/// A row-major bf16 matrix, from which kernels load boxes of some rows and 64 columns into shared memory with the 128-byte
/// swizzle. What of a box lies outside of the matrix is zero.
#[derive(Debug)]
pub struct TensorMap<'a> {
    /// What a kernel takes by value.
    pub(super) parameter: Parameter,
    buffer: PhantomData<&'a Buffer>,
}

impl<'a> TensorMap<'a> {
    /// The matrix [rows, cols] at the beginning of `buffer`, in boxes of `box_rows` rows. `cols` is a multiple of 8, neither
    /// size is 0, and a box has at most 256 rows.
    ///
    /// # Errors
    /// [`Error::Shape`] where the buffer is shorter; [`Error::Device`] for sizes that the driver refuses.
    pub fn bf16(buffer: &'a Buffer, rows: usize, cols: usize, box_rows: u32) -> Result<Self> {
        let row_bytes = cols * size_of::<half::bf16>();
        if rows.checked_mul(row_bytes).is_none_or(|bytes| bytes > buffer.len()) {
            return Err(Error::shape("tensor map", "buffer", &[rows, row_bytes], &[buffer.len()]));
        }
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let (extent, strides) = ([cols as u64, rows as u64], [row_bytes as u64]);
        let (boxes, steps) = ([BOX_COLS, box_rows], [1, 1]);
        #[expect(unsafe_code, reason = "the driver seam")]
        // SAFETY: the driver is loaded, since there is a buffer. The arrays hold the two extents, one stride, two box sides and
        // two steps that a tensor of rank 2 has, `map` has the size and alignment of a CUtensorMap, and the function reads and
        // writes nothing else; it does not touch the buffer.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                buffer.block.address as *mut _,
                extent.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        status.result().map_err(|e| failed(&format!("cuTensorMapEncodeTiled for [{rows}, {cols}]"), e))?;
        Ok(Self { parameter: Parameter(map.opaque), buffer: PhantomData })
    }
}
