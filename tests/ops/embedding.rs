use crate::any::Stored;
use crate::compare::same;
use crate::data::{floats, host, indices, rounded};
use crate::everywhere::{everywhere, gpu, poisoned};
use crate::harness::best;
use prunectl::ops::cases::{ROWS, RowsCase};
use prunectl::ops::{Device, Embedding, EmbeddingArgs};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["embedding"];

#[test]
fn rows_exactly_as_the_file_holds_them() {
    let vocab = 37;
    for &RowsCase { rows, cols } in ROWS {
        let ids = indices(1, rows, vocab);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let table = rounded(&floats(2, vocab * cols), dtype);
            let parts = [
                host("first", &[5, cols], &table[..5 * cols], dtype),
                host("second", &[vocab - 5, cols], &table[5 * cols..], dtype),
            ];
            let what = format!("{rows} x {cols} {dtype}");
            let outcomes = everywhere(&what, rows, cols, |backend, picked| {
                let table = backend.prepare(&parts).unwrap();
                let ids: Vec<u32> = picked.iter().map(|&r| ids[r]).collect();
                let mut y = poisoned(backend, picked.len(), cols);
                backend.embedding(EmbeddingArgs { y: &mut y, table: &table, ids: &ids }).unwrap();
                backend.download(&y).unwrap()
            });
            let expected: Vec<f32> = ids.iter().flat_map(|&id| table[id as usize * cols..][..cols].to_vec()).collect();
            for outcome in outcomes {
                same(&outcome.what, &outcome.y, &expected);
            }
            if dtype != Dtype::Bf16 {
                continue;
            }
            // bf16 weights, into the residual stream and into scratch.
            for stored in [Stored::Plain, Stored::Scratch] {
                let Some(backend) = gpu(Dtype::Bf16, stored) else { continue };
                let table = backend.prepare(&parts).unwrap();
                let mut y = poisoned(&backend, rows, cols);
                backend.embedding(EmbeddingArgs { y: &mut y, table: &table, ids: &ids }).unwrap();
                same(&format!("{what} {stored:?}"), &backend.download(&y).unwrap(), &expected);
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let backend = best(Dtype::F32);
    let table = backend.prepare(&[host("embed_tokens", &[3, 2], &[0.0; 6], Dtype::F32)]).unwrap();
    let mut y = backend.zeros(1, 2).unwrap();
    let error = backend.embedding(EmbeddingArgs { y: &mut y, table: &table, ids: &[3] }).unwrap_err();
    assert_eq!(error.to_string(), "embedding: ids has shape [3], expected [3]");
}
