//! Dropout by a counter-based generator: the same mask for the same seed, stream and element, on every device and in any order.

use super::{Device, Shaped, expect};
use crate::error::{Error, Result};

/// Which mask: a seed and a stream, both the caller's (a stream for every linear, layer and pass).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutMask {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the mask within the run.
    pub stream: u64,
    /// Probability that an element becomes 0, at least 0 and below 1.
    pub probability: f32,
}

impl DropoutMask {
    /// An element is kept when its 32 random bits are at least this: `probability` of 2^32, rounded down.
    #[must_use]
    pub fn threshold(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded down; below 2^32 as checked")]
        let threshold = (f64::from(self.probability) * 4_294_967_296.0) as u32;
        threshold
    }
}

/// Arguments of [`Dropout::dropout`].
#[derive(Debug)]
pub struct DropoutArgs<'a, T> {
    /// [rows, cols], written.
    pub y: &'a mut T,
    /// [rows, cols].
    pub x: &'a T,
    /// Which mask.
    pub mask: DropoutMask,
}

impl<T: Shaped> DropoutArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`]; [`Error::Request`] for a probability outside of [0, 1).
    pub fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.mask.probability) {
            return Err(Error::request(format!("dropout must be at least 0 and below 1, not {}", self.mask.probability)));
        }
        expect("dropout", "y", self.y, self.x.rows(), self.x.cols())
    }
}

/// y = x / (1 - probability) where the element is kept, else 0.
///
/// Element i = row * cols + column takes word i mod 4 of [`Philox4x32`](crate::random::Philox4x32) block i / 4 of the stream. The
/// gradient is the same op on d_y.
pub trait Dropout: Device {
    /// See the trait.
    ///
    /// # Errors
    /// As [`DropoutArgs::check`].
    fn dropout(&self, args: DropoutArgs<'_, Self::Tensor>) -> Result<()>;
}
