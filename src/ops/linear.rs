//! Linear: y = x W^T (+ bias) (+ y), the matrix product that is nearly all the work.

use super::{Device, Shaped, expect};
use crate::error::{Error, Result};

/// Arguments of [`Linear::linear`].
#[derive(Debug)]
pub struct LinearArgs<'a, T, M> {
    /// [rows, out_features]; written, or added to when `accumulate`.
    pub y: &'a mut T,
    /// [rows, in_features].
    pub x: &'a T,
    /// [out_features, in_features], as Hugging Face stores it.
    pub weight: &'a M,
    /// [1, out_features].
    pub bias: Option<&'a T>,
    /// y += instead of y =: the residual stream.
    pub accumulate: bool,
}

impl<T: Shaped, M: Shaped> LinearArgs<'_, T, M> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        expect("linear", "x", self.x, self.x.rows(), self.weight.cols())?;
        expect("linear", "y", self.y, self.x.rows(), self.weight.rows())?;
        self.bias.map_or(Ok(()), |bias| expect("linear", "bias", bias, 1, self.weight.rows()))
    }
}

/// y\[r, n\] = (((sum over k of x\[r, k\] W\[n, k\]) + bias\[n\]) + y\[r, n\]).
///
/// The sum is one f32 chain over k = 0, 1, …, so the bits of an output depend on nothing but its row of x and its row of W.
/// bf16 arithmetic: x and W are rounded to bf16 (nearest even) first; products are exact, the chain takes k in pairs.
/// 2 rows out_features in_features FLOPs.
pub trait Linear: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn linear(&self, args: LinearArgs<'_, Self::Tensor, Self::Matrix>) -> Result<()>;
}

/// Arguments of [`LinearBackward::linear_backward_input`].
#[derive(Debug)]
pub struct LinearBackwardInputArgs<'a, T, M> {
    /// [rows, in_features]; written, or added to when `accumulate`.
    pub d_x: &'a mut T,
    /// [rows, out_features].
    pub d_y: &'a T,
    /// [out_features, in_features], the matrix of the forward pass.
    pub weight: &'a M,
    /// d_x += instead of d_x =.
    pub accumulate: bool,
}

impl<T: Shaped, M: Shaped> LinearBackwardInputArgs<'_, T, M> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let rows = self.d_y.rows();
        expect("linear_backward_input", "d_y", self.d_y, rows, self.weight.rows())?;
        expect("linear_backward_input", "d_x", self.d_x, rows, self.weight.cols())
    }
}

/// Arguments of [`LinearBackward::linear_backward_weight`].
#[derive(Debug)]
pub struct LinearBackwardWeightArgs<'a, T> {
    /// [out_features, in_features] f32, added to.
    pub d_weight: &'a mut T,
    /// [rows, in_features], what the forward pass was given.
    pub x: &'a T,
    /// [rows, any]; columns first_col .. first_col + out_features are this matrix's.
    pub d_y: &'a T,
    /// First column of d_y.
    pub first_col: usize,
    /// Factor on the product.
    pub scale: f32,
}

impl<T: Shaped> LinearBackwardWeightArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let (outputs, inputs) = (self.d_weight.rows(), self.d_weight.cols());
        expect("linear_backward_weight", "x", self.x, self.d_y.rows(), inputs)?;
        let needed = self.first_col.saturating_add(outputs);
        if self.d_y.cols() < needed {
            let found = [self.d_y.rows(), self.d_y.cols()];
            return Err(Error::shape("linear_backward_weight", "d_y", &[self.d_y.rows(), needed], &found));
        }
        Ok(())
    }
}

/// Arguments of [`LinearBackward::linear_backward_bias`].
#[derive(Debug)]
pub struct LinearBackwardBiasArgs<'a, T> {
    /// [1, out_features] f32, added to.
    pub d_bias: &'a mut T,
    /// [rows, any]; columns first_col .. first_col + out_features are this bias's.
    pub d_y: &'a T,
    /// First column of d_y.
    pub first_col: usize,
}

impl<T: Shaped> LinearBackwardBiasArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        let outputs = self.d_bias.cols();
        expect("linear_backward_bias", "d_bias", self.d_bias, 1, outputs)?;
        let needed = self.first_col.saturating_add(outputs);
        if self.d_y.cols() < needed {
            let found = [self.d_y.rows(), self.d_y.cols()];
            return Err(Error::shape("linear_backward_bias", "d_y", &[self.d_y.rows(), needed], &found));
        }
        Ok(())
    }
}

/// Which product a matrix of tensors is made for; a device may hold one form for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// y = x W^T, and all else that takes a matrix.
    Forward,
    /// d_x = d_y W, of layers that are made anew for each pass. [`Embedding`](super::Embedding) does not take such a matrix.
    Backward,
}

/// Gradients of y = x W^T + bias, and matrices whose values change. Sums are f32 chains in a fixed order: over out_features for
/// d_x, over rows for d_weight and d_bias. bf16 arithmetic rounds both factors of a product to bf16, as the forward pass does.
pub trait LinearBackward: Device {
    /// d_x = d_y W (+ d_x). 2 rows out_features in_features FLOPs.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Device`] when memory is short.
    fn linear_backward_input(&self, args: LinearBackwardInputArgs<'_, Self::Tensor, Self::Matrix>) -> Result<()>;

    /// d_weight += scale * d_y^T x. 2 rows out_features in_features FLOPs.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Device`] when memory is short.
    fn linear_backward_weight(&self, args: LinearBackwardWeightArgs<'_, Self::Tensor>) -> Result<()>;

    /// d_bias += sum over rows of d_y.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn linear_backward_bias(&self, args: LinearBackwardBiasArgs<'_, Self::Tensor>) -> Result<()>;

    /// A matrix from tensors with equal columns, stacked along out_features: parameters after a step of the optimiser. Unlike
    /// [`Device::prepare`] it copies now and does not look for values that are not finite: a loss shows them.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Device`] when memory is short.
    fn prepare_tensors(&self, parts: &[&Self::Tensor], direction: Direction) -> Result<Self::Matrix>;
}
