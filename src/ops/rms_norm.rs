//! RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), as Llama and Qwen2 use it.

use super::{Device, Shaped, expect};
use crate::error::Result;

/// Arguments of [`RmsNorm::rms_norm`].
#[derive(Debug)]
pub struct RmsNormArgs<'a, T> {
    /// [rows, hidden], written.
    pub y: &'a mut T,
    /// [rows, hidden].
    pub x: &'a T,
    /// [1, hidden].
    pub weight: &'a T,
    /// Config key `rms_norm_eps`.
    pub eps: f32,
}

impl<T: Shaped> RmsNormArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        expect("rms_norm", "y", self.y, self.x.rows(), self.x.cols())?;
        expect("rms_norm", "weight", self.weight, 1, self.x.cols())
    }
}

/// y = x * inv_rms * weight with inv_rms = 1 / sqrt(mean(x^2) + eps) per row. Sums in f32.
/// Traffic: x read, y written.
pub trait RmsNorm: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn rms_norm(&self, args: RmsNormArgs<'_, Self::Tensor>) -> Result<()>;
}

/// Arguments of [`RmsNormBackward::rms_norm_backward`].
#[derive(Debug)]
pub struct RmsNormBackwardArgs<'a, T> {
    /// [rows, hidden], added to.
    pub d_x: &'a mut T,
    /// [1, hidden], added to.
    pub d_weight: Option<&'a mut T>,
    /// [rows, hidden], what the forward pass was given.
    pub x: &'a T,
    /// [1, hidden].
    pub weight: &'a T,
    /// [rows, hidden].
    pub d_y: &'a T,
    /// Config key `rms_norm_eps`.
    pub eps: f32,
}

impl<T: Shaped> RmsNormBackwardArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        let (rows, cols) = (self.x.rows(), self.x.cols());
        expect("rms_norm_backward", "d_x", self.d_x, rows, cols)?;
        expect("rms_norm_backward", "d_y", self.d_y, rows, cols)?;
        expect("rms_norm_backward", "weight", self.weight, 1, cols)?;
        self.d_weight.as_deref().map_or(Ok(()), |d| expect("rms_norm_backward", "d_weight", d, 1, cols))
    }
}

/// d_x += inv_rms * (w d_y - x inv_rms^2 mean(w d_y x)); d_weight += sum over rows of d_y x inv_rms, in the order of the rows.
/// inv_rms is computed again. Traffic: x, d_y and d_x read, d_x written; x and d_y once more for d_weight.
pub trait RmsNormBackward: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn rms_norm_backward(&self, args: RmsNormBackwardArgs<'_, Self::Tensor>) -> Result<()>;
}
