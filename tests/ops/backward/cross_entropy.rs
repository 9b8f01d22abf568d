//! Losses and their gradients.

use super::{Found, down, everywhere, nan, on_gpu_in_bf16, up};
use crate::any::{Any, Stored};
use crate::compare::{chain, close, same};
use crate::data::{floats, host, indices, rounded, wide};
use crate::everywhere::backends;
use prunectl::ops::cases::{HEAD, HeadCase};
use prunectl::ops::*;
use prunectl::tensor::Dtype;

#[derive(Debug, Clone, Copy)]
enum From {
    Nobody,
    States,
    TopK,
}

/// Tokens that a file of a teacher names.
const K: usize = 2;
const SCALE: f32 = 0.37;
const TEACHER_SCALE: f32 = 0.8;

struct Inputs {
    case: HeadCase,
    from: From,
    temperature: f32,
    mix: f32,
    x: Vec<f32>,
    head: Vec<f32>,
    teacher_x: Vec<f32>,
    teacher_head: Vec<f32>,
    targets: Vec<u32>,
    before: Vec<f32>,
    ids: Vec<u32>,
    log_probs: Vec<f32>,
}

/// What went in, and what should come out: d_x, d_head, nll, kl, each with the magnitudes that went into it.
struct Expected {
    d_x: [Vec<f64>; 2],
    d_head: [Vec<f64>; 2],
    nll: Vec<f64>,
    kl: Vec<f64>,
}

fn softmax(l: &[f64]) -> Vec<f64> {
    let max = l.iter().fold(f64::NEG_INFINITY, |m, l| m.max(*l));
    let total: f64 = l.iter().map(|l| (l - max).exp()).sum();
    l.iter().map(|l| (l - max).exp() / total).collect()
}

impl Inputs {
    fn new(case: HeadCase, from: From, temperature: f32, mix: f32) -> Self {
        let HeadCase { rows, hidden_size, vocab_size, .. } = case;
        let teacher_size = hidden_size + 3;
        Self {
            case,
            from,
            temperature,
            mix,
            x: floats(1, rows * hidden_size),
            head: floats(2, vocab_size * hidden_size),
            teacher_x: floats(3, rows * teacher_size),
            teacher_head: floats(4, vocab_size * teacher_size),
            targets: indices(5, rows, vocab_size),
            before: floats(6, vocab_size * hidden_size),
            ids: (0..rows * K).map(|i| u32::try_from((i * 7 + 1) % vocab_size).unwrap()).collect(),
            log_probs: floats(7, rows * K).iter().map(|x| 2.0 * x - 2.0).collect(),
        }
    }

    fn teacher_size(&self) -> usize {
        self.case.hidden_size + 3
    }

    /// The same with what products round to bf16 rounded.
    fn rounded(mut self) -> Self {
        for values in [&mut self.x, &mut self.head, &mut self.teacher_x, &mut self.teacher_head] {
            *values = rounded(values, Dtype::Bf16);
        }
        self
    }

    fn run(&self, b: &Any, with_head: bool) -> [Vec<f32>; 4] {
        let HeadCase { rows, hidden_size, vocab_size, logit_scale } = self.case;
        let head = b.prepare(&[host("head", &[vocab_size, hidden_size], &self.head, Dtype::F32)]).unwrap();
        let t_head = b.prepare(&[host("t", &[vocab_size, self.teacher_size()], &self.teacher_head, Dtype::F32)]).unwrap();
        let (x, t_x) = (up(b, rows, hidden_size, &self.x), up(b, rows, self.teacher_size(), &self.teacher_x));
        let teacher = match self.from {
            From::Nobody => None,
            From::States => Some(Teacher::States { x: &t_x, head: &t_head, logit_scale: TEACHER_SCALE }),
            From::TopK => Some(Teacher::TopK { k: K, ids: &self.ids, log_probs: &self.log_probs }),
        };
        let (mut d_x, mut d_head) = (nan(b, rows, hidden_size), b.upload_f32(vocab_size, hidden_size, &self.before));
        let (temperature, mix) = (self.temperature, self.mix);
        let losses = b
            .cross_entropy_backward(CrossEntropyBackwardArgs {
                d_x: &mut d_x,
                d_head: with_head.then_some(&mut d_head),
                x: &x,
                head: &head,
                targets: &self.targets,
                logit_scale,
                scale: SCALE,
                distillation: teacher.map(|teacher| Distillation { teacher, temperature, mix }),
            })
            .unwrap();
        [down(b, &d_x), down(b, &d_head), losses.nll, losses.kl]
    }

    fn logits(&self, x: &[f32], head: &[f32], width: usize, factor: f32, row: usize) -> Vec<f64> {
        let x = &x[row * width..][..width];
        let dot = |n: usize| x.iter().zip(&head[n * width..][..width]).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
        (0..self.case.vocab_size).map(|n| f64::from(factor) * dot(n)).collect()
    }

    /// The teacher's probabilities for a row.
    fn teacher(&self, row: usize) -> Option<Vec<f64>> {
        let t = f64::from(self.temperature);
        match self.from {
            From::Nobody => None,
            From::States => {
                let logits = self.logits(&self.teacher_x, &self.teacher_head, self.teacher_size(), TEACHER_SCALE, row);
                Some(softmax(&logits.iter().map(|l| l / t).collect::<Vec<f64>>()))
            }
            From::TopK => {
                let weights: Vec<f64> = (0..K).map(|i| (f64::from(self.log_probs[row * K + i]) / t).exp()).collect();
                let mut p = vec![0.0; self.case.vocab_size];
                for (i, weight) in weights.iter().enumerate() {
                    p[self.ids[row * K + i] as usize] = weight / weights.iter().sum::<f64>();
                }
                Some(p)
            }
        }
    }

    fn expected(&self) -> Expected {
        let HeadCase { rows, hidden_size, vocab_size, logit_scale } = self.case;
        let (t, m) = (f64::from(self.temperature), f64::from(self.mix));
        let mut d_x = [vec![0.0; rows * hidden_size], vec![0.0; rows * hidden_size]];
        let mut d_head = [wide(&self.before), vec![1.0; vocab_size * hidden_size]];
        let (mut nll, mut kl) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let l = self.logits(&self.x, &self.head, hidden_size, logit_scale, row);
            let (own, q) = (softmax(&l), softmax(&l.iter().map(|l| l / t).collect::<Vec<f64>>()));
            let p = self.teacher(row);
            let target = self.targets[row] as usize;
            nll.push(-own[target].ln());
            if let Some(p) = &p {
                kl.push(p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
            }
            for n in 0..vocab_size {
                let hard = own[n] - f64::from(u8::from(n == target));
                let from_teacher = p.as_ref().map_or(0.0, |p| m * t * (q[n] - p[n]));
                let share = if p.is_some() { 1.0 - m } else { 1.0 };
                let d = f64::from(SCALE) * f64::from(logit_scale) * (share * hard + from_teacher);
                for c in 0..hidden_size {
                    let to_x = d * f64::from(self.head[n * hidden_size + c]);
                    let to_head = d * f64::from(self.x[row * hidden_size + c]);
                    d_x[0][row * hidden_size + c] += to_x;
                    d_x[1][row * hidden_size + c] += to_x.abs();
                    d_head[0][n * hidden_size + c] += to_head;
                    d_head[1][n * hidden_size + c] += to_head.abs();
                }
            }
        }
        Expected { d_x, d_head, nll, kl }
    }

    fn check(&self, what: &str, found: &[Vec<f32>; 4], expected: &Expected) {
        let [d_x, d_head, nll, kl] = found;
        let tolerance = chain(self.case.hidden_size);
        let magnitude = f64::from(SCALE * self.case.logit_scale) * f64::from(self.temperature) * 4.0;
        close(&format!("{what} d_x"), d_x, &expected.d_x[0], &vec![magnitude; d_x.len()], tolerance);
        close(&format!("{what} d_head"), d_head, &expected.d_head[0], &vec![1.0 + magnitude; d_head.len()], tolerance);
        self.check_losses(what, nll, kl, expected);
    }

    /// The gradient of each logit was rounded to bf16, by at most 2^-8 of it, before it met x and the head.
    fn check_bf16(&self, what: &str, found: &[Vec<f32>; 4], expected: &Expected) {
        let [d_x, d_head, nll, kl] = found;
        let tolerance = 1.01 / 256.0 + 2.0 * chain(self.case.hidden_size);
        close(&format!("{what} d_x"), d_x, &expected.d_x[0], &expected.d_x[1], tolerance);
        close(&format!("{what} d_head"), d_head, &expected.d_head[0], &expected.d_head[1], tolerance);
        self.check_losses(what, nll, kl, expected);
    }

    fn check_losses(&self, what: &str, nll: &[f32], kl: &[f32], expected: &Expected) {
        let tolerance = chain(self.case.hidden_size);
        close(&format!("{what} nll"), nll, &expected.nll, &vec![8.0; expected.nll.len()], tolerance);
        close(&format!("{what} kl"), kl, &expected.kl, &vec![8.0; expected.kl.len()], tolerance);
    }
}

#[test]
fn cross_entropy() {
    for &case in HEAD {
        for (from, temperature, mix) in [
            (From::Nobody, 1.0, 0.0),
            (From::States, 1.0, 1.0),
            (From::States, 2.5, 0.6),
            (From::TopK, 1.0, 0.3),
            (From::TopK, 3.0, 0.8),
        ] {
            let what = format!("{case:?}, {from:?}, temperature {temperature}, mix {mix}");
            let inputs = Inputs::new(case, from, temperature, mix);
            let expected = inputs.expected();
            for Found { what, values } in everywhere(&what, |b| inputs.run(b, true)) {
                inputs.check(&what, &values, &expected);
            }
            // The head's gradient is one product more, whoever teaches.
            for b in backends(Dtype::F32).iter().filter(|_| matches!(from, From::Nobody)) {
                let [d_x, ..] = inputs.run(b, true);
                let [alone, untouched, ..] = inputs.run(b, false);
                same(&format!("{what} on {}", b.name()), &alone, &d_x);
                same(&format!("{what} on {}", b.name()), &untouched, &inputs.before);
            }
            let inputs = inputs.rounded();
            if let Some(Found { what, values }) = on_gpu_in_bf16(&what, Stored::Plain, |b| inputs.run(b, true)) {
                inputs.check_bf16(&what, &values, &inputs.expected());
            }
        }
    }
}

/// More rows than have their logits at a time.
#[test]
fn groups_of_rows() {
    let case = HeadCase { rows: 2100, hidden_size: 2, vocab_size: 61, logit_scale: 3.0 };
    let inputs = Inputs::new(case, From::TopK, 1.5, 0.5);
    let first = Inputs::new(HeadCase { rows: 1, ..case }, From::TopK, 1.5, 0.5);
    for b in backends(Dtype::F32) {
        let mut last = Inputs::new(HeadCase { rows: 1, ..case }, From::TopK, 1.5, 0.5);
        last.x = inputs.x[2 * 2099..].to_vec();
        last.targets = inputs.targets[2099..].to_vec();
        last.ids = inputs.ids[K * 2099..].to_vec();
        last.log_probs = inputs.log_probs[K * 2099..].to_vec();
        let [d_x, _, nll, kl] = inputs.run(&b, false);
        for (row, alone) in [(0, &first), (2099, &last)] {
            let [own_d_x, _, own_nll, own_kl] = alone.run(&b, false);
            let what = format!("row {row} on {}", b.name());
            same(&what, &d_x[2 * row..2 * row + 2], &own_d_x);
            same(&what, &[nll[row], kl[row]], &[own_nll[0], own_kl[0]]);
        }
    }
}

#[test]
fn options_out_of_range_are_named() {
    for b in backends(Dtype::F32) {
        let head = b.prepare(&[host("head", &[4, 2], &floats(1, 8), Dtype::F32)]).unwrap();
        let x = b.zeros(1, 2).unwrap();
        for (temperature, mix, message) in [
            (0.0, 0.5, "the temperature must be above 0, not 0"),
            (f32::NAN, 0.5, "the temperature must be above 0, not NaN"),
            (1.0, 1.5, "the weight of the teacher must be 0 to 1, not 1.5"),
        ] {
            let teacher = Teacher::TopK { k: 1, ids: &[3], log_probs: &[0.0] };
            let error = b
                .cross_entropy_backward(CrossEntropyBackwardArgs {
                    d_x: &mut b.zeros(1, 2).unwrap(),
                    d_head: None,
                    x: &x,
                    head: &head,
                    targets: &[1],
                    logit_scale: 1.0,
                    scale: 1.0,
                    distillation: Some(Distillation { teacher, temperature, mix }),
                })
                .unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
