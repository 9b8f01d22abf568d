//! Block influence (ShortGPT, arXiv 2403.03853): how far a layer turns its input.

use super::{Device, Shaped, expect};
use crate::error::Result;

/// Arguments of [`BlockInfluence::block_influence`].
#[derive(Debug)]
pub struct BlockInfluenceArgs<'a, T> {
    /// [rows, hidden_size]: hidden states before the layer.
    pub before: &'a T,
    /// [rows, hidden_size]: and after it.
    pub after: &'a T,
}

impl<T: Shaped> BlockInfluenceArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        expect("block_influence", "after", self.after, self.before.rows(), self.before.cols())
    }
}

/// cosine(before\[r\], after\[r\]) a row, sums in f64; 0 where either is the zero vector.
pub trait BlockInfluence: Device {
    /// One cosine a row.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn block_influence(&self, args: BlockInfluenceArgs<'_, Self::Tensor>) -> Result<Vec<f64>>;
}
