//! Checkpoints in four bits give the logits of transformers with bitsandbytes.

use crate::fixture::{assert_rows, folder};
use prunectl::backend::cpu::CpuBackend;
use prunectl::model::{Batch, Decoder, LayerPlan, ModelFolder, Residency, Scratch};
use prunectl::ops::Backend;
use prunectl::tensor::Dtype;
use safetensors::SafeTensors;

/// Logits at every position of one sequence.
pub(crate) fn logits<B: Backend>(backend: B, folder: ModelFolder, ids: &[u32]) -> Vec<Vec<f32>> {
    let decoder = Decoder::new(backend, folder, Residency::Streamed, 64).unwrap();
    let batch = Batch::pack([ids]);
    let plan = LayerPlan::full(decoder.config().num_hidden_layers);
    let x = decoder.forward(&batch, &plan, &mut Scratch::new(decoder.backend()).unwrap(), |_, _| Ok(())).unwrap();
    let logits = decoder.logits(&decoder.normed(&x).unwrap()).unwrap();
    logits.chunks(decoder.config().vocab_size).map(<[f32]>::to_vec).collect()
}

/// Token ids and transformers' logits of a checkpoint.
pub(crate) fn expected(name: &str) -> (Vec<u32>, Vec<Vec<f32>>) {
    let bytes = std::fs::read(folder("nf4").join(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap();
    let ids = ids.data().as_chunks::<8>().0.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap()).collect();
    let logits = file.tensor("logits").unwrap();
    let values: Vec<f32> = logits.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    (ids, values.chunks(logits.shape()[1]).map(<[f32]>::to_vec).collect())
}

/// Name, and whether the magnitudes are quantised too.
pub(crate) const CHECKPOINTS: [(&str, bool); 2] = [("single", false), ("double", true)];

pub(crate) fn checkpoint(name: &str) -> ModelFolder {
    ModelFolder::open(&folder("nf4").join(name)).unwrap()
}

pub(crate) fn quantised_on_loading(double_quant: bool) -> ModelFolder {
    let mut base = ModelFolder::open(&folder("nf4/base")).unwrap();
    base.quantise_nf4(double_quant).unwrap();
    base
}

#[test]
fn logits_of_a_checkpoint_in_four_bits_equal_transformers() {
    let backend = || CpuBackend::new(Dtype::F32, Some(2)).unwrap();
    for (name, double_quant) in CHECKPOINTS {
        let (ids, expected) = expected(name);
        let found = logits(backend(), checkpoint(name), &ids);
        assert_rows(name, &found, &expected);
        assert_eq!(logits(backend(), quantised_on_loading(double_quant), &ids), found, "{name}: quantised on loading");
    }
}
