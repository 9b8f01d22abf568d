use crate::any::{Any, Matrix, Stored};
use crate::compare::same;
use crate::data::{floats, host, rounded};
use crate::everywhere::{everywhere, everywhere_bf16, gpu, poisoned};
use crate::harness::{best, pick};
use prunectl::ops::cases::{LINEAR_SWIGLU, LinearCase};
use prunectl::ops::{Device, Linear, LinearArgs, LinearSwiglu, LinearSwigluArgs, Nf4, Swiglu, SwigluArgs};
use prunectl::quant::Nf4Tensor;
use prunectl::tensor::{Dtype, HostTensor};

pub(crate) const OPS: &[&str] = &["linear_swiglu"];

struct Inputs {
    case: LinearCase,
    x: Vec<f32>,
    parts: [HostTensor; 2],
    bias: Vec<f32>,
}

impl Inputs {
    fn new(case: LinearCase) -> Self {
        let LinearCase { rows, in_features, out_features, .. } = case;
        let part = |name, seed| {
            let values = rounded(&floats(seed, out_features * in_features), Dtype::Bf16);
            host(name, &[out_features, in_features], &values, Dtype::Bf16)
        };
        let parts = [part("gate", 2), part("up", 3)];
        Self { case, x: floats(1, rows * in_features), parts, bias: floats(4, 2 * out_features) }
    }

    fn dense(&self, backend: &Any) -> Matrix {
        backend.prepare(&self.parts).unwrap()
    }

    /// y by the one op, and by the two that it stands for, which have tests of their own against f64.
    fn both(&self, backend: &Any, weight: &Matrix, rows: &[usize]) -> [Vec<f32>; 2] {
        let LinearCase { in_features, out_features, bias, .. } = self.case;
        let x = backend.upload(rows.len(), in_features, &pick(&self.x, in_features, rows)).unwrap();
        let bias = bias.then(|| backend.upload(1, 2 * out_features, &self.bias).unwrap());
        let bias = bias.as_ref();
        let mut gate_up = poisoned(backend, rows.len(), 2 * out_features);
        let mut y = poisoned(backend, rows.len(), out_features);
        let args = LinearSwigluArgs { y: &mut y, gate_up: &mut gate_up, x: &x, weight, bias };
        backend.linear_swiglu(args).unwrap();
        let one = backend.download(&y).unwrap();
        backend.linear(LinearArgs { y: &mut gate_up, x: &x, weight, bias, accumulate: false }).unwrap();
        backend.swiglu(SwigluArgs { y: &mut y, gate_up: &gate_up }).unwrap();
        [one, backend.download(&y).unwrap()]
    }

    fn check(&self, backend: &Any, weight: &Matrix, rows: &[usize]) -> Vec<f32> {
        let [one, two] = self.both(backend, weight, rows);
        same(&format!("{:?} on {}, rows {rows:?}", self.case, backend.name()), &one, &two);
        one
    }
}

#[test]
fn has_the_bits_of_linear_and_swiglu() {
    for &case in LINEAR_SWIGLU {
        let LinearCase { rows, out_features, .. } = case;
        let inputs = Inputs::new(case);
        let op = |backend: &Any, rows: &[usize]| inputs.check(backend, &inputs.dense(backend), rows);
        everywhere(&format!("{case:?}"), rows, out_features, op);
        everywhere_bf16(&format!("{case:?}"), rows, out_features, op, |_, _| {});
        if let Some(stored) = gpu(Dtype::Bf16, Stored::Scratch) {
            op(&stored, &(0..rows).collect::<Vec<_>>());
        }
    }
}

/// Few rows and many are multiplied with four bits in two ways.
#[test]
fn with_weights_in_four_bits() {
    for rows in [1, 7, 70] {
        let inputs = Inputs::new(LinearCase { rows, in_features: 128, out_features: 96, bias: true, accumulate: false });
        let parts = inputs.parts.iter().map(|part| Nf4Tensor::quantise(part, true).unwrap()).collect::<Vec<_>>();
        let op = |backend: &Any, rows: &[usize]| inputs.check(backend, &backend.prepare_nf4(&parts).unwrap(), rows);
        everywhere(&format!("{rows} rows, four bits"), rows, 96, op);
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let weight = backend.prepare(&Inputs::new(LINEAR_SWIGLU[1]).parts).unwrap();
    let (mut y, mut gate_up, x) = (backend.zeros(2, 32).unwrap(), backend.zeros(2, 63).unwrap(), backend.zeros(2, 17).unwrap());
    let args = LinearSwigluArgs { y: &mut y, gate_up: &mut gate_up, x: &x, weight: &weight, bias: None };
    let error = backend.linear_swiglu(args).unwrap_err();
    assert_eq!(error.to_string(), "linear_swiglu: gate_up has shape [2, 63], expected [2, 64]");
    let mut y = backend.zeros(2, 31).unwrap();
    let mut gate_up = backend.zeros(2, 62).unwrap();
    let args = LinearSwigluArgs { y: &mut y, gate_up: &mut gate_up, x: &x, weight: &weight, bias: None };
    let error = backend.linear_swiglu(args).unwrap_err();
    assert_eq!(error.to_string(), "linear_swiglu: weight has shape [64, 17], expected [62, 17]");
}
