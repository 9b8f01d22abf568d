use crate::any::Any;
use crate::data::{floats, host, rounded, wide};
use crate::everywhere::{backends, everywhere, everywhere_bf16};
use crate::harness::{best, pick};
use prunectl::ops::cases::{HEAD, HeadCase};
use prunectl::ops::{Argmax, ArgmaxArgs, Device};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["argmax"];

fn run(backend: &Any, case: HeadCase, x: &[f32], head: &[f32], rows: &[usize]) -> Vec<f32> {
    let HeadCase { hidden_size, vocab_size, logit_scale, .. } = case;
    let head = backend.prepare(&[host("lm_head", &[vocab_size, hidden_size], head, Dtype::Bf16)]).unwrap();
    let x = backend.upload(rows.len(), hidden_size, &pick(x, hidden_size, rows)).unwrap();
    let ids = backend.argmax(ArgmaxArgs { x: &x, head: &head, logit_scale }).unwrap();
    ids.into_iter().map(|id| id as f32).collect()
}

/// The winner in f64 must lose to nobody by more than rounding.
fn check(what: &str, case: HeadCase, found: &[f32], x: &[f32], head: &[f32]) {
    let k = case.hidden_size;
    let (x, head) = (wide(x), wide(head));
    for (row, &id) in found.iter().enumerate() {
        let logit = |n: usize| -> f64 { (0..k).map(|i| x[row * k + i] * head[n * k + i]).sum() };
        let best = (0..case.vocab_size).map(logit).fold(f64::NEG_INFINITY, f64::max);
        let found = (0..case.vocab_size).find(|&n| n as f32 == id).unwrap();
        assert!(best - logit(found) <= 1e-5, "{what}: row {row} chose {id}");
    }
}

#[test]
fn against_f64() {
    for &case in HEAD {
        let x = floats(1, case.rows * case.hidden_size);
        let head = rounded(&floats(2, case.vocab_size * case.hidden_size), Dtype::Bf16);
        for outcome in everywhere(&format!("{case:?}"), case.rows, 1, |backend, rows| run(backend, case, &x, &head, rows)) {
            check(&outcome.what, case, &outcome.y, &x, &head);
        }
        let rounded_x = rounded(&x, Dtype::Bf16);
        let op = |backend: &Any, rows: &[usize]| run(backend, case, &x, &head, rows);
        everywhere_bf16(&format!("{case:?}"), case.rows, 1, op, |what, ids| check(what, case, ids, &rounded_x, &head));
    }
}

#[test]
fn ties_go_to_the_lowest_id_and_nan_never_wins() {
    for backend in backends(Dtype::F32) {
        ties(&backend);
    }
}

fn ties(backend: &Any) {
    let mut values = vec![-1.0; 700];
    (values[300], values[17], values[699]) = (2.0, 2.0, 2.0);
    let head = backend.prepare(&[host("lm_head", &[700, 1], &values, Dtype::F32)]).unwrap();
    let x = backend.upload(4, 1, &[1.0, 0.0, f32::NAN, -1.0]).unwrap();
    assert_eq!(backend.argmax(ArgmaxArgs { x: &x, head: &head, logit_scale: 0.5 }).unwrap(), [17, 0, 0, 0]);
    // 0 * inf is NaN where the weight is 0, inf elsewhere.
    let head = backend.prepare(&[host("lm_head", &[4, 1], &[0.0, 0.0, -1.0, 1.0], Dtype::F32)]).unwrap();
    let x = backend.upload(1, 1, &[f32::INFINITY]).unwrap();
    assert_eq!(backend.argmax(ArgmaxArgs { x: &x, head: &head, logit_scale: 1.0 }).unwrap(), [3]);
    // All logits negative, in a vocabulary that does not fill its last vector.
    let head = backend.prepare(&[host("lm_head", &[3, 1], &[-3.0, -1.0, -2.0], Dtype::F32)]).unwrap();
    let x = backend.upload(1, 1, &[1.0]).unwrap();
    assert_eq!(backend.argmax(ArgmaxArgs { x: &x, head: &head, logit_scale: 1.0 }).unwrap(), [1]);
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let head = backend.prepare(&[host("lm_head", &[3, 4], &[0.0; 12], Dtype::F32)]).unwrap();
    let x = backend.zeros(1, 5).unwrap();
    let error = backend.argmax(ArgmaxArgs { x: &x, head: &head, logit_scale: 1.0 }).unwrap_err();
    assert_eq!(error.to_string(), "argmax: x has shape [1, 5], expected [1, 4]");
}
