//! Linear: y = x W^T (+ bias) (+ y), the matrix product that is nearly all the work.

use super::{Device, Shaped, expect};
use crate::error::Result;

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
    /// [`Error::Shape`](crate::Error::Shape).
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
    /// [`Error::Shape`](crate::Error::Shape).
    fn linear(&self, args: LinearArgs<'_, Self::Tensor, Self::Matrix>) -> Result<()>;
}
