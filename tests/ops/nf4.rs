use crate::compare::same;
use crate::data::{floats, host, rounded};
use crate::harness::{best, invariant, invariant_bf16, pick};
use prunectl::backend::cpu::CpuBackend;
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

#[test]
fn rows_are_what_the_codec_gives() {
    for &case in NF4 {
        let LinearCase { in_features, out_features, .. } = case;
        let parts = parts(case, false);
        let expected: Vec<f32> = parts.iter().flat_map(Nf4Tensor::to_f32).collect();
        let found = invariant(&format!("{case:?}"), out_features, in_features, |backend, rows| {
            let matrix = backend.prepare_nf4(&parts).unwrap();
            let ids: Vec<u32> = rows.iter().map(|&row| u32::try_from(row).unwrap()).collect();
            let mut y = backend.zeros(rows.len(), in_features).unwrap();
            backend.embedding(EmbeddingArgs { y: &mut y, table: &matrix, ids: &ids }).unwrap();
            backend.download(&y).unwrap()
        });
        same(&format!("{case:?}"), &found, &expected);
    }
}

#[test]
fn linear_has_the_bits_of_the_same_weights_in_f32() {
    for &case in NF4 {
        let LinearCase { rows, in_features, out_features, bias, accumulate } = case;
        let parts = parts(case, rows % 2 == 1);
        let dense = dense(&parts);
        let (x, y, b) = (floats(3, rows * in_features), floats(4, rows * out_features), floats(5, out_features));
        let run = |backend: &CpuBackend, picked: &[usize], nf4: bool| {
            let weight = if nf4 { backend.prepare_nf4(&parts) } else { backend.prepare(&dense) }.unwrap();
            let x = backend.upload(picked.len(), in_features, &pick(&x, in_features, picked)).unwrap();
            let mut y = backend.upload(picked.len(), out_features, &pick(&y, out_features, picked)).unwrap();
            let bias = bias.then(|| backend.upload(1, out_features, &b).unwrap());
            backend.linear(LinearArgs { y: &mut y, x: &x, weight: &weight, bias: bias.as_ref(), accumulate }).unwrap();
            backend.download(&y).unwrap()
        };
        let every: Vec<usize> = (0..rows).collect();
        let found = invariant(&format!("{case:?}"), rows, out_features, |backend, picked| run(backend, picked, true));
        same(&format!("{case:?}"), &found, &run(&best(Dtype::F32), &every, false));
        invariant_bf16(
            &format!("{case:?}"),
            rows,
            out_features,
            |backend, picked| {
                let found = run(backend, picked, true);
                same(&format!("{case:?} in bf16"), &found, &run(backend, picked, false));
                found
            },
            |_, _| (),
        );
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let parts = parts(NF4[3], false);
    let other = Nf4Tensor::quantise(&host("other", &[2, 64], &floats(1, 128), Dtype::F32), false).unwrap();
    assert!(backend.prepare_nf4(&[parts[0].clone(), other]).is_err());
    assert!(backend.prepare_nf4(&[]).is_err());
}
