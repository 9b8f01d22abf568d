//! What is minimised.

use crate::ops::{Device, Distillation, Teacher, TokenLosses};

/// Rows of a packed batch and the tokens they must predict, as [`packed_targets`](crate::model::packed_targets) gives them.
#[derive(Debug, Clone, Copy)]
pub struct BatchTargets<'a> {
    /// Rows, all different.
    pub rows: &'a [u32],
    /// A token for each.
    pub tokens: &'a [u32],
}

/// The loss of a target token.
pub enum Objective<'a, B: Device> {
    /// -ln p of the token.
    CrossEntropy,
    /// (1 - mix) cross-entropy + mix temperature^2 KL(teacher ‖ model) at `temperature`.
    Distil {
        /// The teacher's distributions, a row for each target.
        teacher: Teacher<'a, B::Tensor, B::Matrix>,
        /// Both sides' logits are divided by it.
        temperature: f32,
        /// Weight of the divergence, 0 to 1.
        mix: f32,
    },
}

impl<'a, B: Device> Objective<'a, B> {
    /// The same as an argument of the op.
    pub(super) fn distillation(&self) -> Option<Distillation<'a, B::Tensor, B::Matrix>> {
        let Self::Distil { teacher, temperature, mix } = self else { return None };
        let teacher = match *teacher {
            Teacher::States { x, head, logit_scale } => Teacher::States { x, head, logit_scale },
            Teacher::TopK { k, ids, log_probs } => Teacher::TopK { k, ids, log_probs },
        };
        Some(Distillation { teacher, temperature: *temperature, mix: *mix })
    }

    /// Sums over a batch's targets, in f64.
    pub(super) fn sums(&self, tokens: TokenLosses) -> BatchLoss {
        let sum = |losses: &[f32]| losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        let (nll_sum, kl_sum) = (sum(&tokens.nll), sum(&tokens.kl));
        let loss_sum = match *self {
            Self::CrossEntropy => nll_sum,
            Self::Distil { temperature, mix, .. } => {
                let (temperature, mix) = (f64::from(temperature), f64::from(mix));
                (1.0 - mix) * nll_sum + mix * temperature * temperature * kl_sum
            }
        };
        BatchLoss { loss_sum, nll_sum, kl_sum, target_tokens: tokens.nll.len(), tokens }
    }
}

/// What a batch's targets cost before the step, without the factor on the gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchLoss {
    /// Sum of the objective over the targets.
    pub loss_sum: f64,
    /// Its cross-entropy alone, in nats.
    pub nll_sum: f64,
    /// KL(teacher ‖ model) alone, at the objective's temperature; 0 without a teacher.
    pub kl_sum: f64,
    /// Number of targets.
    pub target_tokens: usize,
    /// The same by target.
    pub tokens: TokenLosses,
}
