//! The elements of a tensor, from a cache line's beginning on: vectors that straddle two lines are read and written more slowly,
//! and most widths of models are whole lines.

use super::set_len;
use super::simd::{LANES, Line};
use crate::error::Result;
use bytemuck::{Zeroable, cast_slice, cast_slice_mut};
use std::ops::{Deref, DerefMut};

/// Some f32.
#[derive(Debug, Clone, Default)]
pub(super) struct Values {
    lines: Vec<Line>,
    len: usize,
}

impl Values {
    /// Grows or shrinks, keeping the memory where it is enough. Elements that are new are 0 or what was there once.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when memory is short.
    pub(super) fn set_len(&mut self, len: usize) -> Result<()> {
        set_len(&mut self.lines, len.div_ceil(LANES), Line::zeroed())?;
        self.len = len;
        Ok(())
    }
}

impl Deref for Values {
    type Target = [f32];

    #[inline]
    fn deref(&self) -> &[f32] {
        &cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Values {
    #[inline]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut cast_slice_mut(&mut self.lines)[..self.len]
    }
}
