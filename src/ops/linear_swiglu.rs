//! Linear, then SwiGLU: the first half of the MLP as one op, so that a device need not store gate and up, the widest
//! activations there are.

use super::{Linear, LinearArgs, Shaped, Swiglu, SwigluArgs, expect};
use crate::error::Result;

/// Arguments of [`LinearSwiglu::linear_swiglu`].
#[derive(Debug)]
pub struct LinearSwigluArgs<'a, T, M> {
    /// [rows, intermediate_size], written.
    pub y: &'a mut T,
    /// [rows, 2 * intermediate_size]: room for gate and up. The content is unspecified afterwards.
    pub gate_up: &'a mut T,
    /// [rows, in_features].
    pub x: &'a T,
    /// [2 * intermediate_size, in_features]: gate, then up.
    pub weight: &'a M,
    /// [1, 2 * intermediate_size].
    pub bias: Option<&'a T>,
}

impl<T: Shaped, M: Shaped> LinearSwigluArgs<'_, T, M> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        let (rows, outputs) = (self.x.rows(), 2 * self.y.cols());
        expect("linear_swiglu", "x", self.x, rows, self.weight.cols())?;
        expect("linear_swiglu", "y", self.y, rows, self.y.cols())?;
        expect("linear_swiglu", "gate_up", self.gate_up, rows, outputs)?;
        expect("linear_swiglu", "weight", self.weight, outputs, self.weight.cols())?;
        self.bias.map_or(Ok(()), |bias| expect("linear_swiglu", "bias", bias, 1, outputs))
    }
}

/// gate | up = x W^T (+ bias), y = gate / (1 + exp(-gate)) * up, with the bits of [`Linear`] into `gate_up` and [`Swiglu`] from
/// there. 4 rows intermediate_size in_features FLOPs.
pub trait LinearSwiglu: Linear + Swiglu {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn linear_swiglu(&self, args: LinearSwigluArgs<'_, Self::Tensor, Self::Matrix>) -> Result<()> {
        self.linear_then_swiglu(args)
    }

    /// The two ops one after the other.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn linear_then_swiglu(&self, args: LinearSwigluArgs<'_, Self::Tensor, Self::Matrix>) -> Result<()> {
        args.check()?;
        let LinearSwigluArgs { y, gate_up, x, weight, bias } = args;
        self.linear(LinearArgs { y: &mut *gate_up, x, weight, bias, accumulate: false })?;
        self.swiglu(SwigluArgs { y, gate_up })
    }
}
