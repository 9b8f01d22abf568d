use crate::any::{Any, Stored};
use crate::compare::{chain, close, same};
use crate::data::{floats, host, rounded, wide};
use crate::everywhere::{backends, everywhere, everywhere_bf16, gpu, stored_as_bf16};
use crate::harness::{best, pick};
use prunectl::backend::cuda::CudaBackend;
use prunectl::backend::cuda::driver::cublaslt_present;
use prunectl::ops::cases::{LINEAR, LinearCase};
use prunectl::ops::{Device, Embedding, EmbeddingArgs, Linear, LinearArgs};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["linear"];

struct Inputs {
    case: LinearCase,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    y: Vec<f32>,
    dtype: Dtype,
}

impl Inputs {
    fn new(case: LinearCase, dtype: Dtype) -> Self {
        let LinearCase { rows, in_features, out_features, .. } = case;
        Self {
            case,
            x: floats(1, rows * in_features),
            weight: rounded(&floats(2, out_features * in_features), dtype),
            bias: floats(3, out_features),
            y: floats(4, rows * out_features),
            dtype,
        }
    }

    fn run(&self, backend: &Any, rows: &[usize]) -> Vec<f32> {
        let LinearCase { in_features, out_features, bias, accumulate, .. } = self.case;
        // Two stacked parts, cut where no panel ends.
        let cut = out_features / 3;
        let parts = [0..cut, cut..out_features].map(|r| {
            let values = &self.weight[r.start * in_features..r.end * in_features];
            host("part", &[r.len(), in_features], values, self.dtype)
        });
        let weight = backend.prepare(&parts).unwrap();
        let x = backend.upload(rows.len(), in_features, &pick(&self.x, in_features, rows)).unwrap();
        let mut y = backend.upload(rows.len(), out_features, &pick(&self.y, out_features, rows)).unwrap();
        let bias = bias.then(|| backend.upload(1, out_features, &self.bias).unwrap());
        backend.linear(LinearArgs { y: &mut y, x: &x, weight: &weight, bias: bias.as_ref(), accumulate }).unwrap();
        backend.download(&y).unwrap()
    }

    fn check(&self, what: &str, found: &[f32], x: &[f32], weight: &[f32]) {
        let LinearCase { rows, in_features, out_features, bias, accumulate } = self.case;
        let (mut expected, mut magnitudes) = (Vec::new(), Vec::new());
        let (x, weight) = (wide(x), wide(weight));
        for r in 0..rows {
            for n in 0..out_features {
                let mut terms: Vec<f64> =
                    (0..in_features).map(|k| x[r * in_features + k] * weight[n * in_features + k]).collect();
                if bias {
                    terms.push(f64::from(self.bias[n]));
                }
                if accumulate {
                    terms.push(f64::from(self.y[r * out_features + n]));
                }
                expected.push(terms.iter().sum());
                magnitudes.push(terms.iter().map(|t| t.abs()).sum());
            }
        }
        close(what, found, &expected, &magnitudes, chain(in_features));
    }
}

#[test]
fn f32_arithmetic() {
    for &case in LINEAR {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let inputs = Inputs::new(case, dtype);
            let what = format!("{case:?}, weights {dtype}");
            let outcomes = everywhere(&what, case.rows, case.out_features, |backend, rows| inputs.run(backend, rows));
            for outcome in &outcomes {
                inputs.check(&outcome.what, &outcome.y, &inputs.x, &inputs.weight);
            }
            // One fused multiply-add a product, in one order, on either: equal bits.
            for outcome in &outcomes[1..] {
                same(&outcome.what, &outcome.y, &outcomes[0].y);
            }
        }
    }
}

#[test]
fn bf16_arithmetic() {
    for &case in LINEAR {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let inputs = Inputs::new(case, dtype);
            let (x, weight) = (rounded(&inputs.x, Dtype::Bf16), rounded(&inputs.weight, Dtype::Bf16));
            let what = format!("{case:?}, weights {dtype}");
            let op = |backend: &Any, rows: &[usize]| inputs.run(backend, rows);
            everywhere_bf16(&what, case.rows, case.out_features, op, |what, y| inputs.check(what, y, &x, &weight));
        }
    }
}

/// Rows enough for every way of sharing the work, against single rows.
#[test]
fn many_rows_have_the_bits_of_one() {
    let mut inputs =
        Inputs::new(LinearCase { rows: 1100, in_features: 67, out_features: 130, bias: true, accumulate: true }, Dtype::Bf16);
    for values in [&mut inputs.x, &mut inputs.bias, &mut inputs.y] {
        *values = rounded(values, Dtype::Bf16);
    }
    let every: Vec<usize> = (0..1100).collect();
    let stored = gpu(Dtype::Bf16, Stored::Scratch);
    // Stored as within a layer: the same sums, rounded once.
    if let Some(stored) = &stored {
        let wide = inputs.run(&gpu(Dtype::Bf16, Stored::Plain).unwrap(), &every);
        same("stored as bf16", &inputs.run(stored, &every), &rounded(&wide, Dtype::Bf16));
    }
    for backend in [Dtype::F32, Dtype::Bf16].into_iter().flat_map(backends).chain(stored) {
        let dtype = format!("{} on {}", backend.compute_dtype(), backend.name());
        let all = inputs.run(&backend, &every);
        for rows in [0..1, 5..40, 300..420, 0..70, 0..300, 0..700, 1099..1100] {
            let found = inputs.run(&backend, &rows.clone().collect::<Vec<_>>());
            same(&format!("{dtype} rows {rows:?}"), &found, &all[rows.start * 130..rows.end * 130]);
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    for backend in backends(Dtype::F32) {
        let weight = backend.prepare(&[host("w", &[3, 4], &[0.0; 12], Dtype::F32)]).unwrap();
        let x = backend.zeros(2, 5).unwrap();
        let mut y = backend.zeros(2, 3).unwrap();
        let error = backend.linear(LinearArgs { y: &mut y, x: &x, weight: &weight, bias: None, accumulate: false }).unwrap_err();
        assert_eq!(error.to_string(), "linear: x has shape [2, 5], expected [2, 4]");
        let parts = [host("a", &[3, 4], &[0.0; 12], Dtype::F32), host("b", &[3, 5], &[0.0; 15], Dtype::F32)];
        assert!(backend.prepare(&parts).unwrap_err().to_string().starts_with("prepare: parts has shape [3, 5]"));
        assert!(backend.prepare(&[]).is_err());
    }
}

/// x and y as they are within a layer.
#[test]
fn stored_in_bf16() {
    for &case in LINEAR {
        let mut inputs = Inputs::new(case, Dtype::Bf16);
        for values in [&mut inputs.x, &mut inputs.bias, &mut inputs.y] {
            *values = rounded(values, Dtype::Bf16);
        }
        stored_as_bf16(&format!("{case:?}"), case.rows, case.out_features, 0.0, |backend, _, rows| inputs.run(backend, rows));
    }
}

/// By NVIDIA's library, to which the rows beside a row may matter: held to the formula only.
#[test]
fn by_cublaslt() {
    if gpu(Dtype::Bf16, Stored::Plain).is_none() {
        return;
    }
    if !cublaslt_present() {
        assert!(std::env::var_os("PRUNECTL_TEST_DEVICE").is_none(), "PRUNECTL_TEST_DEVICE is set, and there is no cuBLASLt");
        eprintln!("skipped: there is no cuBLASLt");
        return;
    }
    let open = |stored| Any::Cuda(Box::new(CudaBackend::new(Dtype::Bf16, 0).unwrap().with_cublaslt().unwrap()), stored);
    for &case in LINEAR {
        let mut inputs = Inputs::new(case, Dtype::Bf16);
        let every: Vec<usize> = (0..case.rows).collect();
        let x = rounded(&inputs.x, Dtype::Bf16);
        let y = inputs.run(&open(Stored::Plain), &every);
        inputs.check(&format!("{case:?} by cuBLASLt"), &y, &x, &inputs.weight);
        // Stored as within a layer: the same sums, rounded once.
        for values in [&mut inputs.x, &mut inputs.bias, &mut inputs.y] {
            *values = rounded(values, Dtype::Bf16);
        }
        let wide = inputs.run(&open(Stored::Plain), &every);
        let narrow = inputs.run(&open(Stored::Scratch), &every);
        same(&format!("{case:?} by cuBLASLt, stored as bf16"), &narrow, &rounded(&wide, Dtype::Bf16));
    }
}

/// Weights of several pieces of page-locked memory.
#[test]
fn large_weights_arrive_whole() {
    let Some(backend) = gpu(Dtype::Bf16, Stored::Plain) else { return };
    let (rows, cols) = (2100, 4100);
    let values = rounded(&floats(11, rows * cols), Dtype::Bf16);
    let table = backend.prepare(&[host("w", &[rows, cols], &values, Dtype::Bf16)]).unwrap();
    let picked = [0_u32, 1, 1023, 1024, 2047, 2099];
    let mut y = backend.zeros(picked.len(), cols).unwrap();
    backend.embedding(EmbeddingArgs { y: &mut y, table: &table, ids: &picked }).unwrap();
    same("rows", &backend.download(&y).unwrap(), &pick(&values, cols, &picked.map(|r| r as usize)));
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for (dtype, value, text) in
        [(Dtype::F32, f32::NAN, "NaN"), (Dtype::F16, f32::INFINITY, "inf"), (Dtype::Bf16, f32::NEG_INFINITY, "-inf")]
    {
        for compute in [Dtype::F32, Dtype::Bf16] {
            let backend = best(compute);
            let mut values = vec![1.0; 40 * 7];
            values[39 * 7 + 6] = value;
            let parts = [host("q_proj", &[2, 7], &[1.0; 14], dtype), host("k_proj", &[40, 7], &values, dtype)];
            let weight = backend.prepare(&parts).unwrap();
            let x = backend.zeros(1, 7).unwrap();
            let mut y = backend.zeros(1, 42).unwrap();
            let error = backend.linear(LinearArgs { y: &mut y, x: &x, weight: &weight, bias: None, accumulate: false });
            let expected = format!("weights.safetensors: tensor k_proj: element 279 (row 39, column 6) is {text}");
            assert_eq!(error.unwrap_err().to_string(), expected);
            if let Some(backend) = gpu(compute, Stored::Plain) {
                // Prepared at once, so found at once.
                assert_eq!(backend.prepare(&parts).err().unwrap().to_string(), expected);
            }
        }
    }
}
