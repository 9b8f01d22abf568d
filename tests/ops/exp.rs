//! e^x of softmax and SiLU against f64, over the whole range.

use crate::harness::{best, levels};
use prunectl::backend::cpu::{CpuBackend, exp};
use prunectl::tensor::Dtype;

/// Error in units of the last place of the f32 nearest to `expected`.
fn ulps(found: f32, expected: f64) -> f64 {
    let exponent = expected.abs().log2().floor().max(-126.0);
    (f64::from(found) - expected).abs() / (exponent - 23.0).exp2()
}

#[test]
fn two_ulp_everywhere() {
    let backend = best(Dtype::F32);
    let mut worst = (0.0, 0.0);
    // Every 1021st float of either sign up to 2^7.
    for sign in [0_u32, 0x8000_0000] {
        let inputs: Vec<f32> = (0..0x4300_0000_u32).step_by(1021).map(|b| f32::from_bits(b | sign)).collect();
        let mut outputs = inputs.clone();
        exp(&backend, &mut outputs);
        for (x, y) in inputs.into_iter().zip(outputs) {
            let expected = f64::from(x).exp();
            if expected > f64::from(f32::MAX) {
                assert!(y == f32::INFINITY || ulps(y, expected) <= 2.0, "exp({x}) = {y}");
            } else if ulps(y, expected) > worst.0 {
                worst = (ulps(y, expected), x);
            }
        }
    }
    assert!(worst.0 <= 2.0, "exp({}) is off by {} ulp", worst.1, worst.0);
}

#[test]
fn edges() {
    let mut x = [0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, -104.0, -1e30, 1e30, 88.72, 88.73, f32::from_bits(1)];
    exp(&best(Dtype::F32), &mut x);
    assert_eq!(x[..7], [1.0, 1.0, 0.0, f32::INFINITY, 0.0, 0.0, f32::INFINITY]);
    assert!(x[7].is_finite() && x[8] == f32::INFINITY && x[9] == 1.0, "{x:?}");
    let mut nan = [f32::NAN];
    exp(&best(Dtype::F32), &mut nan);
    assert!(nan[0].is_nan());
}

#[test]
fn the_same_bits_at_every_level() {
    let inputs: Vec<f32> = (0..20_000_i16).map(|i| f32::from(i) * 0.0103 - 104.0).collect();
    let mut expected = inputs.clone();
    exp(&best(Dtype::F32), &mut expected);
    for isa in levels() {
        let mut found = inputs.clone();
        exp(&CpuBackend::with_isa(Dtype::F32, Some(1), isa).unwrap(), &mut found);
        crate::compare::same(isa.name(), &found, &expected);
    }
}
