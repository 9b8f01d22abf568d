//! Checkpoints in four bits give the logits of transformers with bitsandbytes.

use crate::fixture::{assert_rows, folder};
use prunectl::backend::cpu::CpuBackend;
use prunectl::model::{Batch, Decoder, LayerPlan, ModelFolder, Residency, Scratch};
use prunectl::tensor::Dtype;
use safetensors::SafeTensors;

fn logits(folder: ModelFolder, ids: &[u32]) -> Vec<Vec<f32>> {
    let backend = CpuBackend::new(Dtype::F32, Some(2)).unwrap();
    let decoder = Decoder::new(backend, folder, Residency::Streamed, 64).unwrap();
    let batch = Batch::pack([ids]);
    let plan = LayerPlan::full(decoder.config().num_hidden_layers);
    let x = decoder.forward(&batch, &plan, &mut Scratch::new(decoder.backend()).unwrap(), |_, _| Ok(())).unwrap();
    let logits = decoder.logits(&decoder.normed(&x).unwrap()).unwrap();
    logits.chunks(decoder.config().vocab_size).map(<[f32]>::to_vec).collect()
}

#[test]
fn logits_of_a_checkpoint_in_four_bits_equal_transformers() {
    for (name, double_quant) in [("single", false), ("double", true)] {
        let path = folder("nf4").join(name);
        let bytes = std::fs::read(path.join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ids = file.tensor("input_ids").unwrap();
        let ids: Vec<u32> =
            ids.data().as_chunks::<8>().0.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap()).collect();
        let expected = file.tensor("logits").unwrap();
        let values: Vec<f32> = expected.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let expected: Vec<Vec<f32>> = values.chunks(expected.shape()[1]).map(<[f32]>::to_vec).collect();

        let found = logits(ModelFolder::open(&path).unwrap(), &ids);
        assert_rows(name, &found, &expected);
        let mut base = ModelFolder::open(&folder("nf4/base")).unwrap();
        base.quantise_nf4(double_quant).unwrap();
        assert_eq!(logits(base, &ids), found, "{name}: quantised on loading");
    }
}
