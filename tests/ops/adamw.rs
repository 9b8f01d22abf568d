use crate::compare::{chain, close, same};
use crate::data::floats;
use crate::everywhere::{backends, everywhere};
use prunectl::backend::cpu::CpuBackend;
use prunectl::ops::cases::{ROWS, RowsCase};
use prunectl::ops::{Adamw, AdamwArgs, AdamwStep, Device};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["adamw", "squared_norm"];

const STEP: AdamwStep = AdamwStep { step: 3, lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1, grad_scale: 0.75 };

#[test]
fn against_f64() {
    for &case in ROWS {
        let RowsCase { rows, cols } = case;
        let n = rows * cols;
        let (value, grad, first) = (floats(1, n), floats(2, n), floats(3, n));
        let second: Vec<f32> = floats(4, n).iter().map(|x| x * x).collect();
        // A row here is one element: nothing depends on its neighbours.
        let pick = |all: &[f32], picked: &[usize]| picked.iter().map(|&i| all[i]).collect::<Vec<_>>();
        let outcomes = everywhere(&format!("{case:?}"), n, 3, |backend, picked| {
            let up = |all: &[f32]| backend.upload(picked.len(), 1, &pick(all, picked)).unwrap();
            let (mut value, grad, mut first, mut second) = (up(&value), up(&grad), up(&first), up(&second));
            let args = AdamwArgs { value: &mut value, grad: &grad, first: &mut first, second: &mut second, step: STEP };
            backend.adamw(args).unwrap();
            let all = [&value, &first, &second].map(|t| backend.download(t).unwrap());
            (0..picked.len()).flat_map(|i| all.iter().map(|t| t[i]).collect::<Vec<_>>()).collect()
        });
        let (mut expected, mut magnitudes) = (Vec::new(), Vec::new());
        for i in 0..n {
            let [value, grad, first, second] = [value[i], grad[i], first[i], second[i]].map(f64::from);
            let grad = grad * f64::from(STEP.grad_scale);
            let m = STEP.beta1 * first + (1.0 - STEP.beta1) * grad;
            let v = STEP.beta2 * second + (1.0 - STEP.beta2) * grad * grad;
            let (m_hat, v_hat) = (m / (1.0 - STEP.beta1.powi(3)), v / (1.0 - STEP.beta2.powi(3)));
            let update = STEP.lr * m_hat / (v_hat.sqrt() + STEP.eps);
            expected.extend([value * (1.0 - STEP.lr * STEP.weight_decay) - update, m, v]);
            magnitudes.extend([value.abs() + 2.0 * update.abs() + STEP.lr, first.abs() + grad.abs(), v]);
        }
        for outcome in &outcomes {
            close(&outcome.what, &outcome.y, &expected, &magnitudes, chain(8));
            // Every operation is rounded by itself, on either: equal bits.
            same(&outcome.what, &outcome.y, &outcomes[0].y);
        }
    }
}

#[test]
fn squared_norm_against_f64_with_any_number_of_threads() {
    let gpu = || backends(Dtype::F32).split_off(1);
    for n in [0, 1, 7, 9, 65_535, 65_536, 65_537, 300_001] {
        let x: Vec<f32> = floats(5, n).iter().map(|x| x * 1e19).collect();
        let expected: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let found: Vec<f64> = [1, 2, 3]
            .map(|threads| {
                let backend = CpuBackend::new(Dtype::F32, Some(threads)).unwrap();
                backend.squared_norm(&backend.upload(1, n, &x).unwrap()).unwrap()
            })
            .to_vec();
        assert!((found[0] - expected).abs() <= 1e-12 * expected, "{n}: {} and {expected}", found[0]);
        assert!(found.iter().all(|f| f.to_bits() == found[0].to_bits()), "{n}: {found:?}");
        for backend in gpu() {
            let found = backend.squared_norm(&backend.upload(1, n, &x).unwrap()).unwrap();
            assert!((found - expected).abs() <= 1e-12 * expected, "{n} on {}: {found} and {expected}", backend.name());
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    for backend in backends(Dtype::F32) {
        let zeros = |cols| backend.zeros(2, cols).unwrap();
        let (mut value, grad, mut first, mut second) = (zeros(3), zeros(3), zeros(3), zeros(4));
        let args = AdamwArgs { value: &mut value, grad: &grad, first: &mut first, second: &mut second, step: STEP };
        assert_eq!(backend.adamw(args).unwrap_err().to_string(), "adamw: second has shape [2, 4], expected [2, 3]");
    }
}
