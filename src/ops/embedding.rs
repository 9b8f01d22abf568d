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
