//! One value everywhere: gradients before the first micro-batch of a step.

use super::Device;
use crate::error::Result;

/// y = value, every element.
pub trait Fill: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    fn fill(&self, y: &mut Self::Tensor, value: f32) -> Result<()>;
}
