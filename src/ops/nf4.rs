//! Weights that stay in four bits on the device: [`Linear`](super::Linear) takes such a matrix like any other, and
//! [`Embedding`](super::Embedding) gives its rows as numbers.

use super::Device;
use crate::error::Result;
use crate::quant::Nf4Tensor;

/// Matrices of NF4 blocks. A weight is W\[n, k\] = CODEBOOK\[code\] * magnitude of its block, rounded once to f32; what an op makes
/// of such a matrix has the bits of what it makes of these weights stored in f32 (in bf16 arithmetic both are rounded to
/// bf16). 0.5625 bytes a weight.
pub trait Nf4: Device {
    /// A matrix from parts with equal in_features, stacked along out_features, as [`Device::prepare`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape); [`Error::Device`](crate::Error::Device) when memory is short.
    fn prepare_nf4(&self, parts: &[Nf4Tensor]) -> Result<Self::Matrix>;
}
