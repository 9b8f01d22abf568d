//! LM head, softmax, cross-entropy and Kullback-Leibler divergence in one, chunk by chunk over the vocabulary: the logits
//! ([rows, vocab_size], a quarter of a million columns in Cohere's models) are never stored whole.

use super::{Device, Shaped, expect, expect_below, expect_len};
use crate::error::Result;

/// Arguments of [`CrossEntropy::cross_entropy`].
#[derive(Debug)]
pub struct CrossEntropyArgs<'a, T, M> {
    /// [rows, hidden_size], after the final norm; one row a target token.
    pub x: &'a T,
    /// [vocab_size, hidden_size].
    pub head: &'a M,
    /// The token each row must predict, below vocab_size.
    pub targets: &'a [u32],
    /// Config key `logit_scale`, 1 where there is none.
    pub logit_scale: f32,
    /// The unpruned model's x for the same rows; asks for `kl`.
    pub reference: Option<&'a T>,
}

impl<T: Shaped, M: Shaped> CrossEntropyArgs<'_, T, M> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        expect("cross_entropy", "x", self.x, self.x.rows(), self.head.cols())?;
        expect_len("cross_entropy", "targets", self.targets.len(), self.x.rows())?;
        expect_below("cross_entropy", "targets", self.targets, self.head.rows())?;
        self.reference.map_or(Ok(()), |r| expect("cross_entropy", "reference", r, self.x.rows(), self.x.cols()))
    }
}

/// Losses a row, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLosses {
    /// -ln softmax(logits)\[target\].
    pub nll: Vec<f32>,
    /// KL(reference ‖ x) over the full vocabulary; empty without a reference.
    pub kl: Vec<f32>,
}

/// logits = logit_scale * x head^T; nll = logsumexp(logits) - logits\[target\]; kl = sum of p (ln p - ln q), p from `reference`.
/// Logits as [`Linear`](super::Linear) gives them; softmax statistics by running maximum in vocabulary order, f32 or wider.
pub trait CrossEntropy: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn cross_entropy(&self, args: CrossEntropyArgs<'_, Self::Tensor, Self::Matrix>) -> Result<TokenLosses>;
}
