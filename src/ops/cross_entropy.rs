//! LM head, softmax, cross-entropy and Kullback-Leibler divergence in one, chunk by chunk over the vocabulary: the logits
//! ([rows, vocab_size], a quarter of a million columns in Cohere's models) are never stored whole.

use super::{Device, Shaped, expect, expect_below, expect_len};
use crate::error::{Error, Result};

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
    /// [`Error::Shape`].
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
    /// [`Error::Shape`].
    fn cross_entropy(&self, args: CrossEntropyArgs<'_, Self::Tensor, Self::Matrix>) -> Result<TokenLosses>;
}

/// The distribution a student learns from.
#[derive(Debug)]
pub enum Teacher<'a, T, M> {
    /// The teacher's normed hidden states and head: the whole distribution.
    States {
        /// [rows, the teacher's hidden_size], after its final norm.
        x: &'a T,
        /// [vocab_size, the teacher's hidden_size].
        head: &'a M,
        /// The teacher's `logit_scale`.
        logit_scale: f32,
    },
    /// Its most likely tokens; their probabilities are scaled to add up to 1.
    TopK {
        /// Tokens a row.
        k: usize,
        /// [rows, k], those of a row all different, each below vocab_size.
        ids: &'a [u32],
        /// [rows, k]: ln p, up to a constant a row.
        log_probs: &'a [f32],
    },
}

/// What distillation adds to cross-entropy (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).
#[derive(Debug)]
pub struct Distillation<'a, T, M> {
    /// Where the distribution comes from.
    pub teacher: Teacher<'a, T, M>,
    /// Both sides' logits are divided by it; above 0.
    pub temperature: f32,
    /// Weight of the divergence, 0 to 1; cross-entropy has the rest.
    pub mix: f32,
}

/// Arguments of [`CrossEntropyBackward::cross_entropy_backward`].
#[derive(Debug)]
pub struct CrossEntropyBackwardArgs<'a, T, M> {
    /// [rows, hidden_size], written.
    pub d_x: &'a mut T,
    /// [vocab_size, hidden_size], added to.
    pub d_head: Option<&'a mut T>,
    /// [rows, hidden_size], after the final norm; one row a target token.
    pub x: &'a T,
    /// [vocab_size, hidden_size].
    pub head: &'a M,
    /// The token each row must predict, below vocab_size.
    pub targets: &'a [u32],
    /// Config key `logit_scale`, 1 where there is none.
    pub logit_scale: f32,
    /// Factor on the sum of all rows' losses.
    pub scale: f32,
    /// A teacher, if there is one.
    pub distillation: Option<Distillation<'a, T, M>>,
}

impl<T: Shaped, M: Shaped> CrossEntropyBackwardArgs<'_, T, M> {
    /// # Errors
    /// [`Error::Shape`]; [`Error::Request`] for a temperature or mix out of range.
    pub fn check(&self) -> Result<()> {
        const OP: &str = "cross_entropy_backward";
        let (rows, cols, vocab) = (self.x.rows(), self.head.cols(), self.head.rows());
        expect(OP, "x", self.x, rows, cols)?;
        expect(OP, "d_x", self.d_x, rows, cols)?;
        expect_len(OP, "targets", self.targets.len(), rows)?;
        expect_below(OP, "targets", self.targets, vocab)?;
        if let Some(d_head) = self.d_head.as_deref() {
            expect(OP, "d_head", d_head, vocab, cols)?;
        }
        let Some(Distillation { teacher, temperature, mix }) = &self.distillation else { return Ok(()) };
        if !(*temperature > 0.0 && temperature.is_finite()) {
            return Err(Error::request(format!("the temperature must be above 0, not {temperature}")));
        }
        if !(0.0..=1.0).contains(mix) {
            return Err(Error::request(format!("the weight of the teacher must be 0 to 1, not {mix}")));
        }
        match teacher {
            Teacher::States { x, head, .. } => {
                expect(OP, "teacher.head", *head, vocab, x.cols())?;
                expect(OP, "teacher.x", *x, rows, head.cols())
            }
            Teacher::TopK { k, ids, log_probs } => {
                expect_len(OP, "teacher.ids", ids.len(), rows * k)?;
                expect_len(OP, "teacher.log_probs", log_probs.len(), rows * k)?;
                expect_below(OP, "teacher.ids", ids, vocab)
            }
        }
    }
}

/// Losses and their gradient in one: the logits, and their gradient, are there only for a group of rows at a time.
///
/// loss = (1 - mix) nll + mix temperature^2 KL(teacher ‖ student), softmaxes of the second term at logits / temperature; the
/// gradient is that of scale * (sum over rows of loss). Returned are nll (at temperature 1) and KL (at `temperature`; empty
/// without a teacher), without scale. 4 rows vocab hidden FLOPs, 6 with d_head, 2 more for a teacher's states.
pub trait CrossEntropyBackward: Device {
    /// See the trait.
    ///
    /// # Errors
    /// As [`CrossEntropyBackwardArgs::check`]; [`Error::Device`] when memory is short.
    fn cross_entropy_backward(&self, args: CrossEntropyBackwardArgs<'_, Self::Tensor, Self::Matrix>) -> Result<TokenLosses>;
}
