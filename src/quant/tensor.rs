//! An NF4 weight matrix in memory, whether read from a checkpoint or quantised on loading.

use super::double::Nested;
use super::nf4::{BLOCK, dequantise, quantise};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor, SharedBytes};
use std::path::PathBuf;
use std::sync::Arc;

/// A weight matrix as NF4 blocks. Its weights are f32: value of the code times magnitude of the block, rounded once.
#[derive(Debug, Clone)]
pub struct Nf4Tensor {
    /// Name of the matrix, `model.layers.3.mlp.down_proj.weight`.
    pub name: String,
    /// The file it comes from, for messages.
    pub file: PathBuf,
    /// [out_features, in_features].
    pub shape: [usize; 2],
    /// What it was quantised from.
    pub dtype: Dtype,
    /// Two codes a byte, the first in the upper half, row after row without gaps.
    pub codes: SharedBytes,
    /// Magnitudes of the blocks, finite; where they are stored in 8 bits, what these stand for.
    pub absmax: Arc<[f32]>,
}

impl Nf4Tensor {
    /// Quantises a matrix. With `double_quant` the magnitudes become what 8 bits hold of them.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first weight that is not finite; [`Error::Shape`] unless it is a matrix.
    pub fn quantise(tensor: &HostTensor, double_quant: bool) -> Result<Self> {
        let &[rows, cols] = tensor.shape.as_slice() else {
            return Err(Error::shape("nf4", "weight", &[0, 0], &tensor.shape));
        };
        let values = tensor.to_f32();
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let problem = format!("element [{}, {}] is {}", at / cols, at % cols, values[at]);
            return Err(Error::data(&tensor.file, format!("tensor {}", tensor.name), problem));
        }
        let quantised = quantise(&values);
        let absmax = if double_quant { Nested::quantise(&quantised.absmax).dequantise() } else { quantised.absmax };
        let length = quantised.codes.len();
        let codes = SharedBytes::new(Arc::new(quantised.codes), 0..length)
            .ok_or_else(|| Error::shape("nf4", "codes", &[length], &[0]))?;
        Ok(Self {
            name: tensor.name.clone(),
            file: tensor.file.clone(),
            shape: [rows, cols],
            dtype: tensor.dtype,
            codes,
            absmax: absmax.into(),
        })
    }

    /// Number of weights.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// True for a matrix without weights.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if no block straddles two rows.
    #[must_use]
    pub fn rows_are_whole_blocks(&self) -> bool {
        self.shape[1].is_multiple_of(BLOCK)
    }

    /// Weights from row `row`, column 0 on, as many as `out` has room for; they must lie within the matrix.
    pub fn copy_rows(&self, row: usize, out: &mut [f32]) {
        dequantise(self.codes.as_slice(), &self.absmax, row * self.shape[1], out);
    }

    /// All weights as f32, row-major.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.copy_rows(0, &mut out);
        out
    }

    /// The same matrix dense, in f32.
    ///
    /// # Errors
    /// [`Error::Shape`], of a matrix whose parts do not fit together.
    pub fn to_dense(&self) -> Result<HostTensor> {
        let dense = HostTensor::from_f32(self.name.clone(), &self.shape, &self.to_f32());
        let mut dense = dense.ok_or_else(|| Error::shape("nf4", "weight", &self.shape, &[]))?;
        dense.file.clone_from(&self.file);
        Ok(dense)
    }
}
