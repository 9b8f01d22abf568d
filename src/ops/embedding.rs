//! Embedding: rows of a table by token id.

use super::{Device, Shaped, expect, expect_below};
use crate::error::Result;

/// Arguments of [`Embedding::embedding`].
#[derive(Debug)]
pub struct EmbeddingArgs<'a, T, M> {
    /// [ids.len(), hidden_size], written.
    pub y: &'a mut T,
    /// [vocab_size, hidden_size].
    pub table: &'a M,
    /// Token ids, each below vocab_size.
    pub ids: &'a [u32],
}

impl<T: Shaped, M: Shaped> EmbeddingArgs<'_, T, M> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        expect("embedding", "y", self.y, self.ids.len(), self.table.cols())?;
        expect_below("embedding", "ids", self.ids, self.table.rows())
    }
}

/// y\[r\] = table\[ids\[r\]\], exactly. Traffic: one row read and one written a token.
pub trait Embedding: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn embedding(&self, args: EmbeddingArgs<'_, Self::Tensor, Self::Matrix>) -> Result<()>;
}

/// Arguments of [`EmbeddingBackward::embedding_backward`].
#[derive(Debug)]
pub struct EmbeddingBackwardArgs<'a, T> {
    /// [vocab_size, hidden_size], added to.
    pub d_table: &'a mut T,
    /// [ids.len(), hidden_size].
    pub d_y: &'a T,
    /// Token ids, each below vocab_size.
    pub ids: &'a [u32],
}

impl<T: Shaped> EmbeddingBackwardArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        expect("embedding_backward", "d_y", self.d_y, self.ids.len(), self.d_table.cols())?;
        expect_below("embedding_backward", "ids", self.ids, self.d_table.rows())
    }
}

/// d_table\[ids\[r\]\] += d_y\[r\], the rows of one id in their order.
pub trait EmbeddingBackward: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn embedding_backward(&self, args: EmbeddingBackwardArgs<'_, Self::Tensor>) -> Result<()>;
}
