//! Fixtures: tiny seeded models with what transformers computed for them (logits, hidden states, loss, layer skips).

use prunectl::backend::cpu::CpuBackend;
use prunectl::data::{Example, Target};
use prunectl::model::{Batch, Decoder, LayerPlan, ModelFolder, Residency, Scratch, packed_targets};
use prunectl::ops::Backend;
use prunectl::tensor::Dtype;
use safetensors::SafeTensors;
use std::path::PathBuf;

pub(crate) const NAMES: [&str; 5] = ["llama", "llama-tied-llama3rope", "qwen2", "cohere", "cohere-qknorm"];

pub(crate) struct Fixture {
    pub(crate) name: &'static str,
    bytes: Vec<u8>,
}

/// PRUNECTL_TEST_ROOT where these tests run on another machine than they were built on (scripts/gpu-bundle).
pub(crate) fn folder(name: &str) -> PathBuf {
    let root = std::env::var_os("PRUNECTL_TEST_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(root).join("tests/fixtures").join(name)
}

pub(crate) fn decoder(name: &str, threads: usize) -> Decoder<CpuBackend> {
    decoder_on(CpuBackend::new(Dtype::F32, Some(threads)).unwrap(), name)
}

pub(crate) fn decoder_on<B: Backend>(backend: B, name: &str) -> Decoder<B> {
    Decoder::new(backend, ModelFolder::open(&folder(name)).unwrap(), Residency::Streamed, 128).unwrap()
}

impl Fixture {
    pub(crate) fn open(name: &'static str) -> Self {
        Self { name, bytes: std::fs::read(folder(name).join("expected.safetensors")).unwrap() }
    }

    /// Values and shape of a float tensor.
    pub(crate) fn floats(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        (view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(), view.shape().to_vec())
    }

    /// Names that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        file.names().into_iter().filter(|name| name.starts_with(prefix)).map(String::from).collect()
    }

    fn integers(&self, name: &str) -> Vec<Vec<i64>> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let values: Vec<i64> = view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        values.chunks(view.shape()[1]).map(<[i64]>::to_vec).collect()
    }

    /// The sequences without their padding, labels shifted to the positions that predict them.
    pub(crate) fn examples(&self) -> Vec<Example> {
        let (ids, mask, labels) = (self.integers("input_ids"), self.integers("attention_mask"), self.integers("labels"));
        (0..ids.len())
            .map(|s| {
                let real: Vec<usize> = (0..ids[s].len()).filter(|&t| mask[s][t] == 1).collect();
                let targets = real.iter().enumerate().skip(1).filter(|&(_, &t)| labels[s][t] >= 0);
                Example {
                    record: s,
                    ids: real.iter().map(|&t| u32::try_from(ids[s][t]).unwrap()).collect(),
                    targets: targets
                        .map(|(row, &t)| Target {
                            row: u32::try_from(row - 1).unwrap(),
                            token: u32::try_from(labels[s][t]).unwrap(),
                        })
                        .collect(),
                }
            })
            .collect()
    }

    /// Rows of a [B, T, width] tensor at the real positions, sequence by sequence.
    pub(crate) fn real_rows(&self, name: &str) -> Vec<Vec<f32>> {
        let (values, shape) = self.floats(name);
        let mask = self.integers("attention_mask");
        let rows: Vec<&[f32]> = values.chunks(shape[2]).collect();
        let real = |s: usize, t: usize| (mask[s][t] == 1).then(|| rows[s * shape[1] + t].to_vec());
        (0..shape[0]).flat_map(|s| (0..shape[1]).filter_map(move |t| real(s, t)).collect::<Vec<_>>()).collect()
    }
}

/// Logits at every position and mean loss of the targets.
pub(crate) fn logits_and_loss<B: Backend>(decoder: &Decoder<B>, examples: &[Example], plan: &LayerPlan) -> (Vec<Vec<f32>>, f64) {
    let batch = Batch::pack(examples.iter().map(|e| e.ids.as_slice()));
    let mut scratch = Scratch::new(decoder.backend()).unwrap();
    let x = decoder.forward(&batch, plan, &mut scratch, |_, _| Ok(())).unwrap();
    let logits = decoder.logits(&decoder.normed(&x).unwrap()).unwrap();
    let (rows, tokens) = packed_targets(&batch.starts, examples.iter().map(|e| e.targets.as_slice()));
    let losses = decoder.losses(&decoder.normed_rows(&x, &rows).unwrap(), &tokens, None).unwrap();
    let loss = losses.nll.iter().map(|&v| f64::from(v)).sum::<f64>() / losses.nll.len() as f64;
    (logits.chunks(decoder.config().vocab_size).map(<[f32]>::to_vec).collect(), loss)
}

/// The tolerance policy of whole models: each row may differ by 1e-5 of its largest magnitude (f32 sums in another order).
pub(crate) fn assert_rows(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_rows_within(what, found, expected, 1e-5);
}

/// The same with a tolerance of one's own, relative to the largest magnitude of each row.
pub(crate) fn assert_rows_within(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: number of rows");
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "{what}: width of row {row}");
        let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        for (column, (&f, &e)) in found.iter().zip(expected).enumerate() {
            let error = (f - e).abs();
            assert!(error <= tolerance * largest, "{what}: row {row}, column {column}: {f} instead of {e} (largest {largest})");
        }
    }
}

pub(crate) fn assert_loss(what: &str, found: f64, expected: f32) {
    let expected = f64::from(expected);
    assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{what}: {found} instead of {expected}");
}
