use crate::compare::{chain, close};
use crate::data::floats;
use crate::everywhere::{everywhere, poisoned, stored_as_bf16};
use crate::harness::{best, pick};
use prunectl::ops::cases::{ROWS, RowsCase};
use prunectl::ops::{Device, LayerNorm, LayerNormArgs};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["layer_norm"];

const EPS: f32 = 1e-5;

/// y and the magnitudes that its rounding errors scale with.
pub(crate) fn reference(x: &[f32], weight: &[f32], eps: f32) -> (Vec<f64>, Vec<f64>) {
    let n = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let inv_std = 1.0 / (variance + f64::from(eps)).sqrt();
    let largest = x.iter().fold(0.0, |m: f64, &x| m.max(f64::from(x).abs()));
    let y = x.iter().zip(weight).map(|(&x, &w)| (f64::from(x) - mean) * inv_std * f64::from(w)).collect();
    // The mean is as exact as the largest element allows.
    let magnitudes = weight.iter().map(|&w| f64::from(w).abs() * largest.mul_add(inv_std, 1.0)).collect();
    (y, magnitudes)
}

#[test]
fn against_f64() {
    for &case in ROWS {
        let RowsCase { rows, cols } = case;
        // One row of zeros, one far from zero: variance as E[x^2] - E[x]^2 would lose it.
        let mut x = floats(1, rows * cols);
        x.chunks_mut(cols).take(1).flatten().for_each(|x| *x = 0.0);
        x.chunks_mut(cols).skip(1).take(1).flatten().for_each(|x| *x += 1000.0);
        let weight = floats(2, cols);
        let outcomes = everywhere(&format!("{case:?}"), rows, cols, |backend, picked| {
            let x = backend.upload(picked.len(), cols, &pick(&x, cols, picked)).unwrap();
            let weight = backend.upload(1, cols, &weight).unwrap();
            let mut y = poisoned(backend, picked.len(), cols);
            backend.layer_norm(LayerNormArgs { y: &mut y, x: &x, weight: &weight, eps: EPS }).unwrap();
            backend.download(&y).unwrap()
        });
        let (mut expected, mut magnitudes) = (Vec::new(), Vec::new());
        for row in x.chunks(cols) {
            let (y, m) = reference(row, &weight, EPS);
            expected.extend(y);
            magnitudes.extend(m);
        }
        for outcome in outcomes {
            close(&outcome.what, &outcome.y, &expected, &magnitudes, chain(cols));
        }
    }
}

#[test]
fn stored_in_bf16() {
    for &RowsCase { rows, cols } in ROWS {
        let (x, weight) = (floats(3, rows * cols), floats(4, cols));
        stored_as_bf16(&format!("{rows} x {cols}"), rows, cols, 0.0, |backend, round, picked| {
            let x = backend.upload(picked.len(), cols, &round(&pick(&x, cols, picked))).unwrap();
            let weight = backend.upload(1, cols, &round(&weight)).unwrap();
            let mut y = poisoned(backend, picked.len(), cols);
            backend.layer_norm(LayerNormArgs { y: &mut y, x: &x, weight: &weight, eps: EPS }).unwrap();
            backend.download(&y).unwrap()
        });
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let (x, weight, mut y) = (backend.zeros(2, 3).unwrap(), backend.zeros(1, 3).unwrap(), backend.zeros(3, 2).unwrap());
    let error = backend.layer_norm(LayerNormArgs { y: &mut y, x: &x, weight: &weight, eps: EPS }).unwrap_err();
    assert_eq!(error.to_string(), "layer_norm: y has shape [3, 2], expected [2, 3]");
}
