use crate::compare::{chain, close, same};
use crate::data::floats;
use crate::everywhere::{everywhere, stored_as_bf16};
use crate::harness::{best, pick};
use crate::layer_norm::reference;
use prunectl::ops::cases::HEADS;
use prunectl::ops::{Device, HeadNormArgs, LayerNorm};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["head_norm"];

const EPS: f32 = 1e-6;

#[test]
fn against_f64_with_the_rest_untouched() {
    for case in HEADS {
        let first_col = case.behind / 2;
        let heads = case.heads * case.head_dim;
        let cols = heads + case.behind;
        let x = floats(1, case.rows * cols);
        let weight = floats(2, heads);
        let outcomes = everywhere(&format!("{case:?}"), case.rows, cols, |backend, picked| {
            let mut x = backend.upload(picked.len(), cols, &pick(&x, cols, picked)).unwrap();
            let weight = backend.upload(case.heads, case.head_dim, &weight).unwrap();
            backend.head_norm(HeadNormArgs { x: &mut x, weight: &weight, first_col, eps: EPS }).unwrap();
            backend.download(&x).unwrap()
        });
        for (outcome, (y, x)) in outcomes.iter().flat_map(|o| o.y.chunks(cols).zip(x.chunks(cols)).map(move |pair| (o, pair))) {
            same("before the heads", &y[..first_col], &x[..first_col]);
            same("behind the heads", &y[first_col + heads..], &x[first_col + heads..]);
            for head in 0..case.heads {
                let at = first_col + head * case.head_dim;
                let weight = &weight[head * case.head_dim..][..case.head_dim];
                let (expected, magnitudes) = reference(&x[at..at + case.head_dim], weight, EPS);
                close(
                    &format!("{} head {head}", outcome.what),
                    &y[at..at + case.head_dim],
                    &expected,
                    &magnitudes,
                    chain(case.head_dim),
                );
            }
        }
    }
}

#[test]
fn stored_in_bf16() {
    for case in HEADS {
        let cols = case.heads * case.head_dim + case.behind;
        let (x, weight) = (floats(3, case.rows * cols), floats(4, case.heads * case.head_dim));
        stored_as_bf16(&format!("{case:?}"), case.rows, cols, 0.0, |backend, round, picked| {
            let mut x = backend.upload(picked.len(), cols, &round(&pick(&x, cols, picked))).unwrap();
            let weight = backend.upload(case.heads, case.head_dim, &round(&weight)).unwrap();
            backend.head_norm(HeadNormArgs { x: &mut x, weight: &weight, first_col: 0, eps: EPS }).unwrap();
            backend.download(&x).unwrap()
        });
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let (mut x, weight) = (backend.zeros(2, 9).unwrap(), backend.zeros(2, 4).unwrap());
    let error = backend.head_norm(HeadNormArgs { x: &mut x, weight: &weight, first_col: 2, eps: EPS }).unwrap_err();
    assert_eq!(error.to_string(), "head_norm: x has shape [2, 9], expected [2, 10]");
}
