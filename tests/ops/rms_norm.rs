use crate::compare::{chain, close};
use crate::data::floats;
use crate::everywhere::{backends, everywhere, poisoned, stored_as_bf16};
use crate::harness::pick;
use prunectl::ops::cases::{ROWS, RowsCase};
use prunectl::ops::{Device, RmsNorm, RmsNormArgs};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["rms_norm"];

const EPS: f32 = 1e-5;

#[test]
fn against_f64() {
    for &case in ROWS {
        let RowsCase { rows, cols } = case;
        // One row of zeros, one huge, one tiny.
        let mut x = floats(1, rows * cols);
        for (row, factor) in [(0, 0.0), (1, 1e15), (2, 1e-20)] {
            x.chunks_mut(cols).skip(row).take(1).flatten().for_each(|x| *x *= factor);
        }
        let weight = floats(2, cols);
        let outcomes = everywhere(&format!("{case:?}"), rows, cols, |backend, picked| {
            let x = backend.upload(picked.len(), cols, &pick(&x, cols, picked)).unwrap();
            let weight = backend.upload(1, cols, &weight).unwrap();
            let mut y = poisoned(backend, picked.len(), cols);
            backend.rms_norm(RmsNormArgs { y: &mut y, x: &x, weight: &weight, eps: EPS }).unwrap();
            backend.download(&y).unwrap()
        });
        let mut expected = Vec::new();
        for row in x.chunks(cols) {
            let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / cols as f64;
            let inv_rms = 1.0 / (mean + f64::from(EPS)).sqrt();
            expected.extend(row.iter().zip(&weight).map(|(&x, &w)| f64::from(x) * inv_rms * f64::from(w)));
        }
        let magnitudes: Vec<f64> = expected.iter().map(|y: &f64| y.abs()).collect();
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
            backend.rms_norm(RmsNormArgs { y: &mut y, x: &x, weight: &weight, eps: EPS }).unwrap();
            backend.download(&y).unwrap()
        });
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    for backend in backends(Dtype::F32) {
        let (x, weight, mut y) = (backend.zeros(2, 3).unwrap(), backend.zeros(1, 4).unwrap(), backend.zeros(2, 3).unwrap());
        let error = backend.rms_norm(RmsNormArgs { y: &mut y, x: &x, weight: &weight, eps: EPS }).unwrap_err();
        assert_eq!(error.to_string(), "rms_norm: weight has shape [1, 4], expected [1, 3]");
    }
}
