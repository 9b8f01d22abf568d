//! Adapters saved by PEFT give PEFT's logits; what we write reads back as it was.

use crate::fixture::{assert_rows, folder};
use prunectl::backend::cpu::CpuBackend;
use prunectl::model::adapter::{self, PairValues, WEIGHTS};
use prunectl::model::{Adapter, Batch, Decoder, LayerPlan, LinearName, Lora, LoraPair, ModelFolder, Residency, Scratch};
use prunectl::tensor::Dtype;
use safetensors::SafeTensors;

const NAMES: [&str; 3] = ["llama", "qwen2", "cohere"];

fn decoder(name: &str) -> Decoder<CpuBackend> {
    let backend = CpuBackend::new(Dtype::F32, Some(2)).unwrap();
    Decoder::new(backend, ModelFolder::open(&folder(name)).unwrap(), Residency::Streamed, 64).unwrap()
}

fn logits(decoder: &Decoder<CpuBackend>, ids: &[u32], plan: &LayerPlan) -> Vec<Vec<f32>> {
    let batch = Batch::pack([ids]);
    let x = decoder.forward(&batch, plan, &mut Scratch::new(decoder.backend()).unwrap(), |_, _| Ok(())).unwrap();
    let logits = decoder.logits(&decoder.normed(&x).unwrap()).unwrap();
    logits.chunks(decoder.config().vocab_size).map(<[f32]>::to_vec).collect()
}

/// Ids, and logits of PEFT.
fn expected(name: &str) -> (Vec<u32>, Vec<Vec<f32>>) {
    let bytes = std::fs::read(folder("adapters").join(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap();
    let ids = ids.data().as_chunks::<8>().0.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap()).collect();
    let logits = file.tensor("logits").unwrap();
    let values: Vec<f32> = logits.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    (ids, values.chunks(logits.shape()[1]).map(<[f32]>::to_vec).collect())
}

#[test]
fn logits_with_an_adapter_equal_peft() {
    for name in NAMES {
        let (ids, expected) = expected(name);
        let mut decoder = decoder(name);
        let plan = LayerPlan::full(4);
        let without = logits(&decoder, &ids, &plan);
        let adapter = Adapter::open(&folder("adapters").join(name), decoder.folder()).unwrap();
        let lora = adapter.prepare(decoder.backend()).unwrap();
        decoder.set_lora(Some(lora)).unwrap();
        assert_rows(name, &logits(&decoder, &ids, &plan), &expected);
        decoder.set_lora(None).unwrap();
        assert_eq!(logits(&decoder, &ids, &plan), without, "{name}: taken away again");
        assert!(without[22].iter().zip(&expected[22]).any(|(a, b)| (a - b).abs() > 0.01), "{name}: the adapter does nothing");
    }
}

#[test]
fn a_written_adapter_reads_back_as_it_was() {
    for name in ["qwen2", "cohere"] {
        let base = ModelFolder::open(&folder(name)).unwrap();
        let original = folder("adapters").join(name);
        let adapter = Adapter::open(&original, &base).unwrap();
        let out = tempfile::tempdir().unwrap();
        let values: Vec<_> =
            adapter.pairs().map(|(layer, linear, pair)| (layer, linear, pair.a.to_f32(), pair.b.to_f32())).collect();
        let pairs: Vec<PairValues<'_>> =
            values.iter().map(|(layer, linear, a, b)| PairValues { layer: *layer, linear: *linear, a, b }).collect();
        adapter::write(out.path(), &adapter.config, &pairs).unwrap();
        let again = Adapter::open(out.path(), &base).unwrap();
        assert_eq!((&again.config, again.digest()), (&adapter.config, adapter.digest()));
        // The same tensors under the same names as PEFT wrote.
        let [ours, theirs] = [out.path(), &original].map(|folder| std::fs::read(folder.join(WEIGHTS)).unwrap());
        let [ours, theirs] = [&ours, &theirs].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
        assert_eq!(ours.len(), theirs.len());
        for (name, tensor) in theirs.iter() {
            assert_eq!(ours.tensor(name).unwrap(), tensor, "{name}");
        }
    }
}

#[test]
fn an_adapter_of_other_sizes_is_refused_by_the_decoder() {
    let mut decoder = decoder("llama");
    assert!(decoder.set_lora(Some(Lora::empty(3))).is_err());
    let mut lora = Lora::empty(4);
    let pair = LoraPair::from_f32(decoder.backend(), &[0.0; 2 * 64], &[0.0; 2 * 63], 2, 1.0).unwrap();
    lora.layers[1].set(LinearName::Q, pair);
    let error = decoder.set_lora(Some(lora)).unwrap_err();
    assert_eq!(error.to_string(), "lora: q_proj has shape [63, 64], expected [64, 64]");
    assert!(LoraPair::from_f32(decoder.backend(), &[0.0; 7], &[0.0; 4], 2, 1.0).is_err());
}
