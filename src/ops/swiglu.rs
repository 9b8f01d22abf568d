//! SwiGLU (Shazeer 2020, arXiv 2002.05202): the gated activation between the two halves of the MLP.

use super::{Device, Shaped, expect};
use crate::error::Result;

/// Arguments of [`Swiglu::swiglu`].
#[derive(Debug)]
pub struct SwigluArgs<'a, T> {
    /// [rows, intermediate_size], written.
    pub y: &'a mut T,
    /// [rows, 2 * intermediate_size]: gate, then up.
    pub gate_up: &'a T,
}

impl<T: Shaped> SwigluArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        expect("swiglu", "gate_up", self.gate_up, self.y.rows(), 2 * self.y.cols())
    }
}

/// y = gate / (1 + exp(-gate)) * up, f32. exp is accurate to 2 ulp.
pub trait Swiglu: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn swiglu(&self, args: SwigluArgs<'_, Self::Tensor>) -> Result<()>;
}

/// Arguments of [`SwigluBackward::swiglu_backward`].
#[derive(Debug)]
pub struct SwigluBackwardArgs<'a, T> {
    /// [rows, 2 * intermediate_size], written: the gradient of gate, then of up.
    pub d_gate_up: &'a mut T,
    /// [rows, 2 * intermediate_size], what the forward pass was given.
    pub gate_up: &'a T,
    /// [rows, intermediate_size].
    pub d_y: &'a T,
}

impl<T: Shaped> SwigluBackwardArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        let (rows, cols) = (self.d_y.rows(), self.d_y.cols());
        expect("swiglu_backward", "d_gate_up", self.d_gate_up, rows, 2 * cols)?;
        expect("swiglu_backward", "gate_up", self.gate_up, rows, 2 * cols)
    }
}

/// With s = 1 / (1 + exp(-gate)): d_up = d_y gate s, d_gate = d_y up s (1 + gate (1 - s)).
pub trait SwigluBackward: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn swiglu_backward(&self, args: SwigluBackwardArgs<'_, Self::Tensor>) -> Result<()>;
}
