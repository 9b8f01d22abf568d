//! Products with weights in four bits: few rows against what reading 0.5625 bytes a weight takes, many against the arithmetic.

use super::cases::{Make, Product, values};
use super::{Backends, Case, Shape};
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::cases::LinearCase;
use crate::quant::Nf4Tensor;
use crate::tensor::{Dtype, HostTensor};

pub(super) fn all<B: Backend + 'static>(shape: Shape) -> Vec<Make<B>> {
    let sizes = shape.sizes();
    let mut cases: Vec<Make<B>> = Vec::new();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for &rows in sizes.rows {
            let [_, gate_up, down] = sizes.linears(rows);
            for case in [gate_up, down] {
                cases.push(Box::new(move |on| linear(on, case, dtype, shape.rotated_bytes())));
            }
        }
    }
    cases
}

fn linear<B: Backend + 'static>(on: &Backends<B>, case: LinearCase, dtype: Dtype, rotated_bytes: usize) -> Result<Case> {
    let (inputs, outputs) = (case.in_features, case.out_features);
    let dense = HostTensor::from_f32("bench", &[outputs, inputs], &values(inputs * outputs))
        .ok_or_else(|| Error::shape("bench", "weight", &[outputs, inputs], &[]))?;
    let nf4 = Nf4Tensor::quantise(&dense, false)?;
    // Three times the weights in turn: their bytes are a quarter.
    Product { what: "nf4, ", dtype, case, bytes_each: 0.5625, rotated_bytes: 3 * rotated_bytes }
        .case(on.of(dtype), |backend| backend.prepare_nf4(std::slice::from_ref(&nf4)))
}
