//! Products with weights in four bits: few rows against what reading 0.5625 bytes a weight takes, many against the arithmetic.

use super::cases::{Make, Product, linears, values};
use super::sizes::Sizes;
use super::{Backends, Case};
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::quant::Nf4Tensor;
use crate::tensor::{Dtype, HostTensor};

pub(super) fn all<B: Backend + 'static>(sizes: Sizes) -> Vec<Make<B>> {
    let mut cases: Vec<Make<B>> = Vec::new();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for &rows in sizes.rows {
            for (inputs, outputs) in [linears(sizes)[1], linears(sizes)[2]] {
                cases.push(Box::new(move |on| linear(on, sizes, dtype, rows, inputs, outputs)));
            }
        }
    }
    cases
}

fn linear<B: Backend + 'static>(
    on: &Backends<B>,
    sizes: Sizes,
    dtype: Dtype,
    rows: usize,
    inputs: usize,
    outputs: usize,
) -> Result<Case> {
    let dense = HostTensor::from_f32("bench", &[outputs, inputs], &values(inputs * outputs))
        .ok_or_else(|| Error::shape("bench", "weight", &[outputs, inputs], &[]))?;
    let nf4 = Nf4Tensor::quantise(&dense, false)?;
    // Three times the weights in turn: their bytes are a quarter.
    let rotated_bytes = 3 * sizes.rotated_bytes;
    Product { what: "nf4, ", dtype, rows, inputs, outputs, bytes_each: 0.5625, rotated_bytes }
        .case(on.of(dtype), |backend| backend.prepare_nf4(std::slice::from_ref(&nf4)))
}
