use crate::any::Any;
use crate::compare::{chain, close};
use crate::data::{floats, host, indices, rounded, wide};
use crate::everywhere::{backends, everywhere, everywhere_bf16};
use crate::harness::{best, pick};
use prunectl::ops::cases::{HEAD, HeadCase};
use prunectl::ops::{CrossEntropy, CrossEntropyArgs, Device};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["cross_entropy"];

struct Inputs {
    case: HeadCase,
    x: Vec<f32>,
    reference: Vec<f32>,
    head: Vec<f32>,
    targets: Vec<u32>,
}

impl Inputs {
    fn new(case: HeadCase) -> Self {
        let HeadCase { rows, hidden_size, vocab_size, .. } = case;
        let mut targets = indices(4, rows, vocab_size);
        if let Some(last) = targets.last_mut() {
            *last = u32::try_from(vocab_size - 1).unwrap();
        }
        Self {
            case,
            x: floats(1, rows * hidden_size),
            reference: floats(2, rows * hidden_size),
            head: rounded(&floats(3, vocab_size * hidden_size), Dtype::Bf16),
            targets,
        }
    }

    /// nll and kl of each row.
    fn run(&self, backend: &Any, rows: &[usize]) -> Vec<f32> {
        let HeadCase { hidden_size, vocab_size, logit_scale, .. } = self.case;
        let head = backend.prepare(&[host("lm_head", &[vocab_size, hidden_size], &self.head, Dtype::Bf16)]).unwrap();
        let x = backend.upload(rows.len(), hidden_size, &pick(&self.x, hidden_size, rows)).unwrap();
        let reference = backend.upload(rows.len(), hidden_size, &pick(&self.reference, hidden_size, rows)).unwrap();
        let targets: Vec<u32> = rows.iter().map(|&r| self.targets[r]).collect();
        let args = CrossEntropyArgs { x: &x, head: &head, targets: &targets, logit_scale, reference: Some(&reference) };
        let both = backend.cross_entropy(args).unwrap();
        let args = CrossEntropyArgs { x: &x, head: &head, targets: &targets, logit_scale, reference: None };
        let alone = backend.cross_entropy(args).unwrap();
        crate::compare::same("nll without a reference", &alone.nll, &both.nll);
        assert!(alone.kl.is_empty());
        both.nll.into_iter().zip(both.kl).flat_map(|(nll, kl)| [nll, kl]).collect()
    }

    fn check(&self, what: &str, found: &[f32], x: &[f32], reference: &[f32]) {
        let HeadCase { rows, hidden_size, vocab_size, logit_scale } = self.case;
        let (x, reference, head) = (wide(x), wide(reference), wide(&self.head));
        let logits = |x: &[f64], row: usize| -> Vec<f64> {
            (0..vocab_size)
                .map(|n| {
                    let dot: f64 = (0..hidden_size).map(|k| x[row * hidden_size + k] * head[n * hidden_size + k]).sum();
                    dot * f64::from(logit_scale)
                })
                .collect()
        };
        let log_softmax = |l: &[f64]| -> Vec<f64> {
            let max = l.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = max + l.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
            l.iter().map(|l| l - log_sum).collect()
        };
        let mut expected = Vec::new();
        for row in 0..rows {
            let q = log_softmax(&logits(&x, row));
            let p = log_softmax(&logits(&reference, row));
            expected.push(-q[self.targets[row] as usize]);
            expected.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum());
        }
        // Logits of magnitude up to hidden_size * scale carry their rounding errors into the difference.
        let magnitude = 1.0 + f64::from(logit_scale) * (hidden_size as f64).sqrt() * 2.0;
        close(what, found, &expected, &vec![magnitude; expected.len()], chain(hidden_size));
    }
}

#[test]
fn f32_arithmetic() {
    for &case in HEAD {
        let inputs = Inputs::new(case);
        for outcome in everywhere(&format!("{case:?}"), case.rows, 2, |backend, rows| inputs.run(backend, rows)) {
            inputs.check(&outcome.what, &outcome.y, &inputs.x, &inputs.reference);
        }
    }
}

#[test]
fn bf16_arithmetic() {
    for &case in HEAD {
        let inputs = Inputs::new(case);
        let (x, reference) = (rounded(&inputs.x, Dtype::Bf16), rounded(&inputs.reference, Dtype::Bf16));
        let op = |backend: &Any, rows: &[usize]| inputs.run(backend, rows);
        everywhere_bf16(&format!("{case:?}"), case.rows, 2, op, |what, y| inputs.check(what, y, &x, &reference));
    }
}

/// Logits in the thousands: the maximum must come off before anything is exponentiated.
#[test]
fn huge_logits() {
    for backend in backends(Dtype::F32) {
        let mut head = vec![0.0; 300];
        (head[7], head[280]) = (3000.0, 2999.0);
        let head = backend.prepare(&[host("lm_head", &[300, 1], &head, Dtype::F32)]).unwrap();
        let x = backend.upload(1, 1, &[1.0]).unwrap();
        let args = CrossEntropyArgs { x: &x, head: &head, targets: &[280], logit_scale: 1.0, reference: None };
        let nll = backend.cross_entropy(args).unwrap().nll[0];
        assert!((f64::from(nll) - (1.0 + (-1.0_f64).exp().ln_1p())).abs() < 1e-6, "{nll}");
    }
}

/// More rows than go at a time (2048 on a GPU), over two chunks of the vocabulary (4096), and few rows over three: the maximum rises
/// and falls from chunk to chunk.
#[test]
fn many_rows_and_large_vocabularies() {
    for (rows, vocab_size) in [(2053, 4300), (31, 9001)] {
        let case = HeadCase { rows, hidden_size: 2, vocab_size, logit_scale: 3.0 };
        let inputs = Inputs::new(case);
        // The last two among them: they go in a batch of their own.
        let some: Vec<usize> = (0..rows).rev().step_by(rows / 30).chain([rows - 2]).collect();
        let part = Inputs {
            case: HeadCase { rows: some.len(), ..case },
            x: pick(&inputs.x, 2, &some),
            reference: pick(&inputs.reference, 2, &some),
            head: inputs.head.clone(),
            targets: some.iter().map(|&r| inputs.targets[r]).collect(),
        };
        for backend in backends(Dtype::F32) {
            let losses = inputs.run(&backend, &(0..rows).collect::<Vec<_>>());
            part.check(&format!("some of {rows} rows"), &pick(&losses, 2, &some), &part.x, &part.reference);
        }
    }
}

/// The same on tensor cores: products with rows of the head that do not begin at the first, in large tiles and, for one row, in
/// small ones.
#[test]
fn a_large_vocabulary_in_bf16() {
    let inputs = Inputs::new(HeadCase { rows: 130, hidden_size: 24, vocab_size: 9001, logit_scale: 0.5 });
    let (x, reference) = (rounded(&inputs.x, Dtype::Bf16), rounded(&inputs.reference, Dtype::Bf16));
    let op = |backend: &Any, rows: &[usize]| inputs.run(backend, rows);
    everywhere_bf16("large vocabulary", 130, 2, op, |what, y| inputs.check(what, y, &x, &reference));
}

#[test]
fn no_divergence_from_oneself() {
    let inputs = Inputs::new(HEAD[2]);
    let backend = best(Dtype::F32);
    let HeadCase { rows, hidden_size, vocab_size, .. } = inputs.case;
    let head = backend.prepare(&[host("lm_head", &[vocab_size, hidden_size], &inputs.head, Dtype::Bf16)]).unwrap();
    let x = backend.upload(rows, hidden_size, &inputs.x).unwrap();
    let args = CrossEntropyArgs { x: &x, head: &head, targets: &inputs.targets, logit_scale: 1.0, reference: Some(&x) };
    assert_eq!(backend.cross_entropy(args).unwrap().kl, vec![0.0; rows]);
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let head = backend.prepare(&[host("lm_head", &[3, 4], &[0.0; 12], Dtype::F32)]).unwrap();
    let x = backend.zeros(1, 4).unwrap();
    let args = CrossEntropyArgs { x: &x, head: &head, targets: &[3], logit_scale: 1.0, reference: None };
    assert_eq!(backend.cross_entropy(args).unwrap_err().to_string(), "cross_entropy: targets has shape [3], expected [3]");
}
