//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) on the q and k heads of a fused qkv row.

use super::{Device, Shaped, expect, expect_below, expect_len};
use crate::error::{Error, Result};

/// Arguments of [`Rope::rope`].
#[derive(Debug)]
pub struct RopeArgs<'a, T> {
    /// [rows, cols]; the first heads * 2 * half columns are rotated in place (q heads, then k heads), the others (v) untouched.
    pub x: &'a mut T,
    /// Number of heads to rotate: num_attention_heads + num_key_value_heads.
    pub heads: usize,
    /// [max_positions, half] cosines, half = head_dim / 2.
    pub cos: &'a T,
    /// [max_positions, half] sines.
    pub sin: &'a T,
    /// A position a row, each below max_positions.
    pub positions: &'a [u32],
    /// False: element i pairs with i + half (Llama, Qwen2). True: 2i pairs with 2i + 1 (Cohere).
    pub interleaved: bool,
}

impl<T: Shaped> RopeArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        expect("rope", "sin", self.sin, self.cos.rows(), self.cos.cols())?;
        expect_len("rope", "positions", self.positions.len(), self.x.rows())?;
        expect_below("rope", "positions", self.positions, self.cos.rows())?;
        let needed = self.heads * 2 * self.cos.cols();
        if self.x.cols() < needed {
            return Err(Error::shape("rope", "x", &[self.x.rows(), needed], &[self.x.rows(), self.x.cols()]));
        }
        Ok(())
    }
}

/// (a, b) -> (a cos - b sin, b cos + a sin) for each pair of each head. In place, f32.
pub trait Rope: Device {
    /// See the trait.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn rope(&self, args: RopeArgs<'_, Self::Tensor>) -> Result<()>;
}

/// (a, b) -> (a cos + b sin, b cos - a sin): the inverse rotation, which is its transpose. In place, f32.
pub trait RopeBackward: Device {
    /// `x` holds the gradient of the rotated columns and becomes that of the columns before.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn rope_backward(&self, args: RopeArgs<'_, Self::Tensor>) -> Result<()>;
}
