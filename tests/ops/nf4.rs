use crate::any::{Any, Stored};
use crate::compare::same;
use crate::data::{floats, host, rounded};
use crate::everywhere::{backends, everywhere, everywhere_bf16, gpu, stored_as_bf16};
use crate::harness::pick;
use prunectl::ops::cases::{LinearCase, NF4};
use prunectl::ops::{Device, Embedding, EmbeddingArgs, Linear, LinearArgs, Nf4};
use prunectl::quant::Nf4Tensor;
use prunectl::tensor::{Dtype, HostTensor};

/// A matrix in two stacked parts, cut where no panel ends; the codec itself is held by `tests/files/nf4.rs`.
fn parts(case: LinearCase, double_quant: bool) -> Vec<Nf4Tensor> {
    let LinearCase { in_features, out_features, .. } = case;
    let cut = out_features / 3;
    [(1, cut), (2, out_features - cut)]
        .map(|(seed, rows)| {
            let values = rounded(&floats(seed, rows * in_features), Dtype::Bf16);
            Nf4Tensor::quantise(&host("part", &[rows, in_features], &values, Dtype::Bf16), double_quant).unwrap()
        })
        .to_vec()
}

/// The same matrix in f32.
fn dense(parts: &[Nf4Tensor]) -> Vec<HostTensor> {
    parts.iter().map(|part| HostTensor::from_f32("dense", &part.shape, &part.to_f32()).unwrap()).collect()
}

/// Rows of the matrix as numbers.
fn rows_of(backend: &Any, parts: &[Nf4Tensor], rows: &[usize]) -> Vec<f32> {
    let matrix = backend.prepare_nf4(parts).unwrap();
    let in_features = parts[0].shape[1];
    let ids: Vec<u32> = rows.iter().map(|&row| u32::try_from(row).unwrap()).collect();
    let mut y = backend.zeros(rows.len(), in_features).unwrap();
    backend.embedding(EmbeddingArgs { y: &mut y, table: &matrix, ids: &ids }).unwrap();
    backend.download(&y).unwrap()
}

#[test]
fn rows_are_what_the_codec_gives() {
    for &case in NF4 {
        let LinearCase { in_features, out_features, .. } = case;
        for double_quant in [false, true] {
            let parts = parts(case, double_quant);
            let expected: Vec<f32> = parts.iter().flat_map(Nf4Tensor::to_f32).collect();
            let what = format!("{case:?}");
            for outcome in everywhere(&what, out_features, in_features, |backend, rows| rows_of(backend, &parts, rows)) {
                same(&outcome.what, &outcome.y, &expected);
            }
            if let Some(gpu) = gpu(Dtype::Bf16, Stored::Plain) {
                let found = rows_of(&gpu, &parts, &(0..out_features).collect::<Vec<_>>());
                same(&format!("{what} in bf16 on the GPU"), &found, &rounded(&expected, Dtype::Bf16));
            }
        }
    }
}

struct Inputs {
    case: LinearCase,
    parts: Vec<Nf4Tensor>,
    dense: Vec<HostTensor>,
    x: Vec<f32>,
    y: Vec<f32>,
    bias: Vec<f32>,
}

impl Inputs {
    fn new(case: LinearCase) -> Self {
        let LinearCase { rows, in_features, out_features, .. } = case;
        let parts = parts(case, rows % 2 == 1);
        Self {
            case,
            dense: dense(&parts),
            parts,
            x: floats(3, rows * in_features),
            y: floats(4, rows * out_features),
            bias: floats(5, out_features),
        }
    }

    /// The product with the matrix in four bits, which has the bits of the product with its numbers.
    fn run(&self, backend: &Any, rows: &[usize]) -> Vec<f32> {
        let found = self.product(backend, rows, true);
        let what = format!("{:?} in {} on {}", self.case, backend.compute_dtype(), backend.name());
        same(&what, &found, &self.product(backend, rows, false));
        found
    }

    fn product(&self, backend: &Any, rows: &[usize], nf4: bool) -> Vec<f32> {
        let LinearCase { in_features, out_features, bias, accumulate, .. } = self.case;
        let weight = if nf4 { backend.prepare_nf4(&self.parts) } else { backend.prepare(&self.dense) }.unwrap();
        let x = backend.upload(rows.len(), in_features, &pick(&self.x, in_features, rows)).unwrap();
        let mut y = backend.upload(rows.len(), out_features, &pick(&self.y, out_features, rows)).unwrap();
        let bias = bias.then(|| backend.upload(1, out_features, &self.bias).unwrap());
        backend.linear(LinearArgs { y: &mut y, x: &x, weight: &weight, bias: bias.as_ref(), accumulate }).unwrap();
        backend.download(&y).unwrap()
    }
}

#[test]
fn linear_has_the_bits_of_the_same_weights_in_f32() {
    for &case in NF4 {
        let inputs = Inputs::new(case);
        let op = |backend: &Any, rows: &[usize]| inputs.run(backend, rows);
        let outcomes = everywhere(&format!("{case:?}"), case.rows, case.out_features, op);
        for outcome in &outcomes[1..] {
            same(&outcome.what, &outcome.y, &outcomes[0].y);
        }
        everywhere_bf16(&format!("{case:?}"), case.rows, case.out_features, op, |_, _| ());
    }
}

/// x and y as they are within a layer.
#[test]
fn stored_in_bf16() {
    for &case in NF4 {
        let mut inputs = Inputs::new(case);
        for values in [&mut inputs.x, &mut inputs.bias, &mut inputs.y] {
            *values = rounded(values, Dtype::Bf16);
        }
        // The CPU in f32 is given the weights as bf16 arithmetic rounds them.
        let weights: Vec<f32> = inputs.parts.iter().flat_map(Nf4Tensor::to_f32).collect();
        let shape = [case.out_features, case.in_features];
        inputs.dense = vec![host("weights", &shape, &rounded(&weights, Dtype::Bf16), Dtype::F32)];
        stored_as_bf16(&format!("{case:?}"), case.rows, case.out_features, 0.0, |backend, _, rows| match backend {
            Any::Cpu(_) => inputs.product(backend, rows, false),
            Any::Cuda(..) => inputs.run(backend, rows),
        });
    }
}

/// Rows enough for every way of computing, against single rows.
#[test]
fn many_rows_have_the_bits_of_one() {
    let case = LinearCase { rows: 300, in_features: 320, out_features: 130, bias: true, accumulate: true };
    let inputs = Inputs::new(case);
    for backend in [Dtype::F32, Dtype::Bf16].into_iter().flat_map(backends) {
        let dtype = format!("{} on {}", backend.compute_dtype(), backend.name());
        let all = inputs.run(&backend, &(0..300).collect::<Vec<_>>());
        for rows in [0..1, 5..21, 9..40, 100..164, 30..95, 0..129, 299..300] {
            let found = inputs.run(&backend, &rows.clone().collect::<Vec<_>>());
            same(&format!("{dtype} rows {rows:?}"), &found, &all[rows.start * 130..rows.end * 130]);
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    for backend in backends(Dtype::F32) {
        let parts = parts(NF4[3], false);
        let other = Nf4Tensor::quantise(&host("other", &[2, 64], &floats(1, 128), Dtype::F32), false).unwrap();
        assert!(backend.prepare_nf4(&[parts[0].clone(), other]).is_err());
        assert!(backend.prepare_nf4(&[]).is_err());
    }
}
