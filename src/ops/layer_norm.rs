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

/// Arguments of [`LayerNormBackward::layer_norm_backward`].
#[derive(Debug)]
pub struct LayerNormBackwardArgs<'a, T> {
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
    /// Config key `layer_norm_eps`.
    pub eps: f32,
}

impl<T: Shaped> LayerNormBackwardArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let (rows, cols) = (self.x.rows(), self.x.cols());
        expect("layer_norm_backward", "d_x", self.d_x, rows, cols)?;
        expect("layer_norm_backward", "d_y", self.d_y, rows, cols)?;
        expect("layer_norm_backward", "weight", self.weight, 1, cols)?;
        self.d_weight.as_deref().map_or(Ok(()), |d| expect("layer_norm_backward", "d_weight", d, 1, cols))
    }
}

/// Arguments of [`LayerNormBackward::head_norm_backward`].
#[derive(Debug)]
pub struct HeadNormBackwardArgs<'a, T> {
    /// [rows, cols]; columns first_col .. first_col + heads * head_dim hold d_y and become d_x, the others are untouched.
    pub d: &'a mut T,
    /// [heads, head_dim], added to.
    pub d_weight: Option<&'a mut T>,
    /// [rows, cols], what the forward pass was given (it works in place, so this is a copy from before).
    pub x: &'a T,
    /// [heads, head_dim].
    pub weight: &'a T,
    /// Where the first head begins.
    pub first_col: usize,
    /// Config key `layer_norm_eps`.
    pub eps: f32,
}

impl<T: Shaped> HeadNormBackwardArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let (rows, cols) = (self.d.rows(), self.d.cols());
        expect("head_norm_backward", "x", self.x, rows, cols)?;
        let needed = self.first_col + self.weight.rows() * self.weight.cols();
        if cols < needed {
            return Err(Error::shape("head_norm_backward", "d", &[rows, needed], &[rows, cols]));
        }
        let (heads, head_dim) = (self.weight.rows(), self.weight.cols());
        self.d_weight.as_deref().map_or(Ok(()), |d| expect("head_norm_backward", "d_weight", d, heads, head_dim))
    }
}

/// With n = (x - mean) inv_std and g = w d_y: d_x = inv_std (g - mean(g) - n mean(g n)), d_weight += sum over rows of d_y n, in
/// the order of the rows. Mean and inv_std are computed again.
pub trait LayerNormBackward: Device {
    /// Over each row; d_x is added to.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn layer_norm_backward(&self, args: LayerNormBackwardArgs<'_, Self::Tensor>) -> Result<()>;

    /// Over each head of each row, in place.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn head_norm_backward(&self, args: HeadNormBackwardArgs<'_, Self::Tensor>) -> Result<()>;
}
