//! Products with weights in four bits: few rows against what reading 0.5625 bytes a weight takes, many against the arithmetic.

use super::cases::{HIDDEN, Make, tensor, values};
use super::{Case, Limit};
use crate::backend::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::ops::{Device, Linear, LinearArgs, Nf4};
use crate::quant::Nf4Tensor;
use crate::tensor::{Dtype, HostTensor};

/// Weights of a decoding case together: more than caches hold.
const ROTATED_WEIGHTS: usize = 192 << 20;

pub(super) fn all() -> Vec<Make> {
    let mut cases: Vec<Make> = Vec::new();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for rows in [1, 4, 16, 128, 4096] {
            for (inputs, outputs) in [(HIDDEN, 3072), (1536, HIDDEN)] {
                cases.push(Box::new(move |threads| linear(threads, dtype, rows, inputs, outputs)));
            }
        }
    }
    cases
}

fn linear(threads: Option<usize>, dtype: Dtype, rows: usize, inputs: usize, outputs: usize) -> Result<Case> {
    let backend = CpuBackend::new(dtype, threads)?;
    let dense = HostTensor::from_f32("bench", &[outputs, inputs], &values(inputs * outputs))
        .ok_or_else(|| Error::shape("bench", "weight", &[outputs, inputs], &[]))?;
    let nf4 = Nf4Tensor::quantise(&dense, false)?;
    let weights = inputs * outputs;
    let copies = if rows <= 16 { (ROTATED_WEIGHTS / weights).max(1) } else { 1 };
    let matrices = (0..copies).map(|_| backend.prepare_nf4(std::slice::from_ref(&nf4))).collect::<Result<Vec<_>>>()?;
    let (x, mut y) = (tensor(&backend, rows, inputs)?, backend.zeros(rows, outputs)?);
    #[expect(clippy::cast_precision_loss, reason = "sizes of a benchmark")]
    let (bytes, flops) = (0.5625 * weights as f64, 2.0 * (rows * weights) as f64);
    let (limit, work) = match (rows, dtype) {
        (0..=16, _) => (Limit::ReadBytes, bytes),
        (_, Dtype::Bf16) => (Limit::Bf16Flops, flops),
        (_, Dtype::F32 | Dtype::F16) => (Limit::F32Flops, flops),
    };
    let call = Box::new(move || {
        for weight in &matrices {
            backend.linear(LinearArgs { y: &mut y, x: &x, weight, bias: None, accumulate: false })?;
        }
        Ok(())
    });
    let case = format!("nf4, {rows} rows, {inputs} -> {outputs}, {copies} in turn");
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let work = work * copies as f64;
    Ok(Case { op: "linear", case, dtype, limit, work, call })
}
