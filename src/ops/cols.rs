//! Columns of a wider tensor: q, k and v share one product, a LoRA pair belongs to one of them.

use super::{Device, Shaped, expect};
use crate::error::{Error, Result};

/// Arguments of [`Cols::add_cols`].
#[derive(Debug)]
pub struct AddColsArgs<'a, T> {
    /// [rows, any]; the columns `first_col..first_col + x.cols()` are added to, the others untouched.
    pub y: &'a mut T,
    /// [rows, cols].
    pub x: &'a T,
    /// First column of y.
    pub first_col: usize,
    /// Factor on x.
    pub scale: f32,
}

impl<T: Shaped> AddColsArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        expect("add_cols", "x", self.x, self.y.rows(), self.x.cols())?;
        fits("add_cols", self.first_col, self.x.cols(), self.y.cols())
    }
}

/// Arguments of [`Cols::take_cols`].
#[derive(Debug)]
pub struct TakeColsArgs<'a, T> {
    /// [rows, cols], written.
    pub y: &'a mut T,
    /// [rows, any].
    pub x: &'a T,
    /// First column of x.
    pub first_col: usize,
}

impl<T: Shaped> TakeColsArgs<'_, T> {
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self) -> Result<()> {
        expect("take_cols", "y", self.y, self.x.rows(), self.y.cols())?;
        fits("take_cols", self.first_col, self.y.cols(), self.x.cols())
    }
}

/// `Err(Shape)` unless `first..first + cols` lies in `wide` columns; the shape named is [wide], the end stands as found.
fn fits(op: &'static str, first: usize, cols: usize, wide: usize) -> Result<()> {
    let end = first.saturating_add(cols);
    if end <= wide { Ok(()) } else { Err(Error::shape(op, "first_col", &[wide], &[end])) }
}

/// Column ranges of all rows. 12 bytes an element of x for `add_cols` in f32, 8 for `take_cols`.
pub trait Cols: Device {
    /// y\[r, first_col + c\] += scale * x\[r, c\], rounded once (fused multiply-add).
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn add_cols(&self, args: AddColsArgs<'_, Self::Tensor>) -> Result<()>;

    /// y\[r, c\] = x\[r, first_col + c\].
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn take_cols(&self, args: TakeColsArgs<'_, Self::Tensor>) -> Result<()>;
}
