//! Picking rows out of a tensor and putting them back: target positions for the head, rows that run a layer in a batch
//! where others skip it.

use super::{Device, Shaped, expect, expect_below};
use crate::error::Result;

/// Arguments of [`Rows::gather_rows`].
#[derive(Debug)]
pub struct GatherRowsArgs<'a, T> {
    /// [rows.len(), cols], written.
    pub y: &'a mut T,
    /// [any, cols].
    pub x: &'a T,
    /// Row of x for each row of y.
    pub rows: &'a [u32],
}

impl<T: Shaped> GatherRowsArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        expect("gather_rows", "y", self.y, self.rows.len(), self.x.cols())?;
        expect_below("gather_rows", "rows", self.rows, self.x.rows())
    }
}

/// Arguments of [`Rows::scatter_rows`].
#[derive(Debug)]
pub struct ScatterRowsArgs<'a, T> {
    /// [any, cols]; the rows named are written, the others untouched.
    pub y: &'a mut T,
    /// [rows.len(), cols].
    pub x: &'a T,
    /// Row of y for each row of x; all different.
    pub rows: &'a [u32],
}

impl<T: Shaped> ScatterRowsArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    pub fn check(&self) -> Result<()> {
        expect("scatter_rows", "x", self.x, self.rows.len(), self.y.cols())?;
        expect_below("scatter_rows", "rows", self.rows, self.y.rows())
    }
}

/// Exact copies of rows.
pub trait Rows: Device {
    /// y\[i\] = x\[rows\[i\]\].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn gather_rows(&self, args: GatherRowsArgs<'_, Self::Tensor>) -> Result<()>;

    /// y\[rows\[i\]\] = x\[i\].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape).
    fn scatter_rows(&self, args: ScatterRowsArgs<'_, Self::Tensor>) -> Result<()>;
}
