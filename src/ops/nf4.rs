//! Weights that stay in four bits on the device: [`Linear`](super::Linear) takes such a matrix like any other.

use super::{Device, Shaped, expect};
use crate::error::{Error, Result};
use crate::quant::Nf4Tensor;

/// Arguments of [`Nf4::nf4_dequantise`].
#[derive(Debug)]
pub struct Nf4DequantiseArgs<'a, T, M> {
    /// [rows, in_features], written.
    pub y: &'a mut T,
    /// [out_features, in_features].
    pub weight: &'a M,
    /// The matrix's row that becomes the first of y.
    pub first_row: usize,
}

impl<T: Shaped, M: Shaped> Nf4DequantiseArgs<'_, T, M> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        expect("nf4_dequantise", "y", self.y, self.y.rows(), self.weight.cols())?;
        let end = self.first_row.saturating_add(self.y.rows());
        if end <= self.weight.rows() {
            Ok(())
        } else {
            Err(Error::shape("nf4_dequantise", "first_row", &[self.weight.rows()], &[end]))
        }
    }
}

/// Matrices of NF4 blocks. A weight is W\[n, k\] = CODEBOOK\[code\] * magnitude of its block, rounded once to f32; `linear` with
/// such a matrix has the bits of `linear` with these weights stored in f32 (in bf16 arithmetic both round them to bf16).
/// 0.5625 bytes a weight.
pub trait Nf4: Device {
    /// A matrix from parts with equal in_features, stacked along out_features, as [`Device::prepare`].
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Device`] when memory is short.
    fn prepare_nf4(&self, parts: &[Nf4Tensor]) -> Result<Self::Matrix>;

    /// y\[r\] = W\[first_row + r\], of a matrix of either kind: for those who need weights as numbers.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn nf4_dequantise(&self, args: Nf4DequantiseArgs<'_, Self::Tensor, Self::Matrix>) -> Result<()>;
}
