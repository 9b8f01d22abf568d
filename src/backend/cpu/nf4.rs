//! NF4 matrices on the CPU.

use super::{CpuBackend, Matrix};
use crate::error::Result;
use crate::ops::Nf4;
use crate::quant::Nf4Tensor;

impl Nf4 for CpuBackend {
    fn prepare_nf4(&self, parts: &[Nf4Tensor]) -> Result<Matrix> {
        let dense = parts.iter().map(Nf4Tensor::to_dense).collect::<Result<Vec<_>>>()?;
        Matrix::new(&dense)
    }
}
