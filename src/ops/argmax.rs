//! LM head and greedy choice in one: the next token of each row, logits never stored whole.

use super::{Device, Shaped, expect};
use crate::error::Result;

/// Arguments of [`Argmax::argmax`].
#[derive(Debug)]
pub struct ArgmaxArgs<'a, T, M> {
    /// [rows, hidden_size], after the final norm.
    pub x: &'a T,
    /// [vocab_size, hidden_size].
    pub head: &'a M,
    /// Config key `logit_scale`, 1 where there is none.
    pub logit_scale: f32,
}

impl<T: Shaped, M: Shaped> ArgmaxArgs<'_, T, M> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        expect("argmax", "x", self.x, self.x.rows(), self.head.cols())
    }
}

/// The token id with the largest logit_scale * x head^T; the lowest id on an exact tie; NaN never wins (0 if all are NaN).
pub trait Argmax: Device {
    /// One id a row.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn argmax(&self, args: ArgmaxArgs<'_, Self::Tensor, Self::Matrix>) -> Result<Vec<u32>>;
}
