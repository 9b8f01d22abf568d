//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) in the arithmetic of `torch.optim.AdamW`, and the squared norm that
//! clipping needs.

use super::{Device, Shaped, expect};
use crate::error::Result;

/// What one update takes beside the tensors. Coefficients are made from these in f64, as torch makes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamwStep {
    /// Number of this update, from 1.
    pub step: u64,
    /// Learning rate of this update.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; 0 for parameters that have none.
    pub weight_decay: f64,
    /// Factor on the gradient: the coefficient of clipping, 1 without.
    pub grad_scale: f32,
}

/// The update's factors, rounded to f32 once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coefficients {
    /// 1 - lr * weight_decay.
    pub(crate) keep: f32,
    /// 1 - beta1.
    pub(crate) lerp: f32,
    /// beta2.
    pub(crate) beta2: f32,
    /// 1 - beta2.
    pub(crate) rest2: f32,
    /// sqrt(1 - beta2^step).
    pub(crate) root: f32,
    /// eps.
    pub(crate) eps: f32,
    /// lr / (1 - beta1^step).
    pub(crate) rate: f32,
    /// Factor on the gradient.
    pub(crate) scale: f32,
}

impl AdamwStep {
    #[expect(clippy::cast_possible_truncation, reason = "coefficients are rounded to f32 as torch rounds its scalars")]
    pub(crate) fn coefficients(&self) -> Coefficients {
        let step = i32::try_from(self.step).unwrap_or(i32::MAX);
        Coefficients {
            keep: (1.0 - self.lr * self.weight_decay) as f32,
            lerp: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            rest2: (1.0 - self.beta2) as f32,
            root: (1.0 - self.beta2.powi(step)).sqrt() as f32,
            eps: self.eps as f32,
            rate: (self.lr / (1.0 - self.beta1.powi(step))) as f32,
            scale: self.grad_scale,
        }
    }
}

/// Arguments of [`Adamw::adamw`].
#[derive(Debug)]
pub struct AdamwArgs<'a, T> {
    /// Parameter, [rows, cols], updated.
    pub value: &'a mut T,
    /// Its gradient, [rows, cols].
    pub grad: &'a T,
    /// First moment, [rows, cols], updated.
    pub first: &'a mut T,
    /// Second moment, [rows, cols], updated.
    pub second: &'a mut T,
    /// Rates and constants.
    pub step: AdamwStep,
}

impl<T: Shaped> AdamwArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        let (rows, cols) = (self.value.rows(), self.value.cols());
        expect("adamw", "grad", self.grad, rows, cols)?;
        expect("adamw", "first", self.first, rows, cols)?;
        expect("adamw", "second", self.second, rows, cols)
    }
}

/// What an optimiser asks of a device. All tensors are f32.
pub trait Adamw: Device {
    /// g = grad_scale * grad; value *= 1 - lr * weight_decay; first += (1 - beta1) (g - first);
    /// second = beta2 * second + (1 - beta2) g^2;
    /// value -= lr / (1 - beta1^step) * first / (sqrt(second) / sqrt(1 - beta2^step) + eps). Element by element, in f32.
    /// Traffic: 4 reads and 3 writes of 4 bytes an element.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn adamw(&self, args: AdamwArgs<'_, Self::Tensor>) -> Result<()>;

    /// Sum of the squares of all elements in f64: one order of additions, whatever the threads.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    fn squared_norm(&self, x: &Self::Tensor) -> Result<f64>;
}
