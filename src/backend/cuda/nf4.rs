//! NF4 matrices on a GPU: restored on the way there, so that they take the room of the arithmetic's dtype.

use super::{CudaBackend, Matrix};
use crate::error::Result;
use crate::ops::{Device, Nf4};
use crate::quant::Nf4Tensor;

impl Nf4 for CudaBackend {
    fn prepare_nf4(&self, parts: &[Nf4Tensor]) -> Result<Matrix> {
        self.prepare(&parts.iter().map(Nf4Tensor::to_dense).collect::<Result<Vec<_>>>()?)
    }
}
