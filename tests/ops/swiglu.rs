use crate::compare::{chain, close};
use crate::data::floats;
use crate::everywhere::{everywhere, poisoned, stored_as_bf16};
use crate::harness::{best, pick};
use prunectl::ops::cases::{ROWS, RowsCase};
use prunectl::ops::{Device, Swiglu, SwigluArgs};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["swiglu"];

#[test]
fn against_f64() {
    for &case in ROWS {
        let RowsCase { rows, cols } = case;
        // Gates up to +-100: e^-gate overflows on one side and vanishes on the other.
        let gate_up: Vec<f32> = floats(1, rows * 2 * cols).iter().map(|x| x * x * x * 100.0).collect();
        let outcomes = everywhere(&format!("{case:?}"), rows, cols, |backend, picked| {
            let gate_up = backend.upload(picked.len(), 2 * cols, &pick(&gate_up, 2 * cols, picked)).unwrap();
            let mut y = poisoned(backend, picked.len(), cols);
            backend.swiglu(SwigluArgs { y: &mut y, gate_up: &gate_up }).unwrap();
            backend.download(&y).unwrap()
        });
        let mut expected = Vec::new();
        for row in gate_up.chunks(2 * cols) {
            let (gate, up) = row.split_at(cols);
            expected.extend(gate.iter().zip(up).map(|(&gate, &up)| {
                let gate = f64::from(gate);
                gate / (1.0 + (-gate).exp()) * f64::from(up)
            }));
        }
        // e^89 is infinite in f32: for a gate below -88.7 the result is 0 where f64 still has 1e-34.
        let magnitudes: Vec<f64> = expected.iter().map(|y: &f64| y.abs().max(1e-27)).collect();
        for outcome in outcomes {
            close(&outcome.what, &outcome.y, &expected, &magnitudes, chain(8));
        }
    }
}

#[test]
fn stored_in_bf16() {
    for &RowsCase { rows, cols } in ROWS {
        let gate_up = floats(3, rows * 2 * cols);
        stored_as_bf16(&format!("{rows} x {cols}"), rows, cols, 0.0, |backend, round, picked| {
            let gate_up = backend.upload(picked.len(), 2 * cols, &round(&pick(&gate_up, 2 * cols, picked))).unwrap();
            let mut y = poisoned(backend, picked.len(), cols);
            backend.swiglu(SwigluArgs { y: &mut y, gate_up: &gate_up }).unwrap();
            backend.download(&y).unwrap()
        });
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let (gate_up, mut y) = (backend.zeros(2, 5).unwrap(), backend.zeros(2, 3).unwrap());
    let error = backend.swiglu(SwigluArgs { y: &mut y, gate_up: &gate_up }).unwrap_err();
    assert_eq!(error.to_string(), "swiglu: gate_up has shape [2, 5], expected [2, 6]");
}
