//! LayerNorm without bias, as Cohere uses it: over whole rows, and over each head of q and k (`use_qk_norm`).

use super::{Device, Shaped, expect};
use crate::error::{Error, Result};

/// Arguments of [`LayerNorm::layer_norm`].
#[derive(Debug)]
pub struct LayerNormArgs<'a, T> {
    /// [rows, hidden], written.
    pub y: &'a mut T,
    /// [rows, hidden].
    pub x: &'a T,
    /// [1, hidden].
    pub weight: &'a T,
    /// Config key `layer_norm_eps`.
    pub eps: f32,
}

impl<T: Shaped> LayerNormArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        expect("layer_norm", "y", self.y, self.x.rows(), self.x.cols())?;
        expect("layer_norm", "weight", self.weight, 1, self.x.cols())
    }
}

/// Arguments of [`LayerNorm::head_norm`].
#[derive(Debug)]
pub struct HeadNormArgs<'a, T> {
    /// [rows, cols]; columns first_col .. first_col + heads * head_dim are normalised in place, the others untouched.
    pub x: &'a mut T,
    /// [heads, head_dim].
    pub weight: &'a T,
    /// Where the first head begins.
    pub first_col: usize,
    /// Config key `layer_norm_eps`.
    pub eps: f32,
}

impl<T: Shaped> HeadNormArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let needed = self.first_col + self.weight.rows() * self.weight.cols();
        if self.x.cols() < needed {
            return Err(Error::shape("head_norm", "x", &[self.x.rows(), needed], &[self.x.rows(), self.x.cols()]));
        }
        Ok(())
    }
}

/// y = (x - mean) / sqrt(variance + eps) * weight; mean and (biased) variance in f32, variance in a second pass.
pub trait LayerNorm: Device {
    /// Over each row. Traffic: x read, y written.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn layer_norm(&self, args: LayerNormArgs<'_, Self::Tensor>) -> Result<()>;

    /// Over each head of each row, in place.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn head_norm(&self, args: HeadNormArgs<'_, Self::Tensor>) -> Result<()>;
}
