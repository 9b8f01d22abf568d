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
