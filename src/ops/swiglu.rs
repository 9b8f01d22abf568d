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
