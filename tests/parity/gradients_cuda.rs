//! Gradients on the GPU (or the emulated one): those of transformers and of the CPU in f32, within 1e-4 of a tensor's largest
//! element (cuda.rs says why ten times what the CPU is held to); in bf16 within twice the error of transformers itself.

use crate::cuda::gpu;
use crate::fixture::{Fixture, NAMES, decoder, decoder_on, folder};
use crate::gradients::{BF16, Packed, assert_close, distance, grads, lora, stir};
use prunectl::backend::cpu::CpuBackend;
use prunectl::backend::cuda::CudaBackend;
use prunectl::model::train::{Differentiable, Objective, Trainable};
use prunectl::model::{Decoder, LayerPlan, ModelFolder, Residency, Scratch};
use prunectl::ops::{Teacher, TrainingBackend};
use prunectl::tensor::Dtype;

type Gradients = Vec<(String, Vec<f32>)>;

fn cuda(dtype: Dtype) -> CudaBackend {
    CudaBackend::new(dtype, 0).unwrap()
}

fn cpu() -> CpuBackend {
    CpuBackend::new(Dtype::F32, Some(2)).unwrap()
}

/// Gradients of one batch. LoRA pairs are moved from where they begin, where half of the gradients are 0.
fn accumulate<B: TrainingBackend>(
    decoder: Decoder<B>,
    plan: &LayerPlan,
    trainable: Trainable,
    packed: &Packed,
    keep: usize,
) -> Gradients {
    let pairs = matches!(trainable, Trainable::Lora(_));
    let mut model = Differentiable::new(decoder, plan.clone(), trainable, 7).unwrap();
    if pairs {
        stir(&mut model);
    }
    model.keep_activations(keep);
    model.accumulate(&packed.batch, packed.targets(), &Objective::CrossEntropy, packed.scale()).unwrap();
    grads(&model)
}

fn compare(what: &str, found: &Gradients, expected: &Gradients) {
    assert_eq!(found.len(), expected.len(), "{what}: number of parameters");
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert_close(&format!("{what} {name}"), found, expected, 1e-4);
    }
}

#[test]
fn gradients_of_every_parameter_equal_transformers_and_the_cpu() {
    if !gpu() {
        return;
    }
    let plan = LayerPlan::full(4);
    for name in NAMES {
        let fixture = Fixture::open(name);
        let packed = Packed::new(&fixture.examples());
        let run = |keep| accumulate(decoder_on(cuda(Dtype::F32), name), &plan, Trainable::Full, &packed, keep);
        let found = run(0);
        assert!(found == run(4), "{name}: kept activations change a bit");
        for (parameter, grad) in &found {
            assert_close(&format!("{name} {parameter}"), grad, &fixture.floats(&format!("grad.{parameter}")).0, 1e-4);
        }
        compare(name, &found, &accumulate(decoder(name, 2), &plan, Trainable::Full, &packed, 0));
    }
}

#[test]
fn gradients_of_lora_pairs_and_of_chosen_layers_equal_the_cpu() {
    if !gpu() {
        return;
    }
    let plan = LayerPlan::without(4, &[1]).unwrap();
    for name in NAMES {
        let packed = Packed::new(&Fixture::open(name).examples());
        for trainable in [lora(0.0), lora(0.25), Trainable::Layers { layers: vec![2, 3], lm_head: true }] {
            let found = accumulate(decoder_on(cuda(Dtype::F32), name), &plan, trainable.clone(), &packed, 1);
            let expected = accumulate(decoder(name, 2), &plan, trainable, &packed, 1);
            compare(name, &found, &expected);
        }
    }
}

#[test]
fn gradients_over_four_bits_equal_the_cpu() {
    if !gpu() {
        return;
    }
    let base = || {
        let mut base = ModelFolder::open(&folder("llama")).unwrap();
        base.quantise_nf4(true).unwrap();
        base
    };
    let packed = Packed::new(&Fixture::open("llama").examples());
    let plan = LayerPlan::full(4);
    let on_gpu = Decoder::new(cuda(Dtype::F32), base(), Residency::Resident, 128).unwrap();
    let on_cpu = Decoder::new(cpu(), base(), Residency::Resident, 128).unwrap();
    let found = accumulate(on_gpu, &plan, lora(0.0), &packed, 0);
    compare("nf4", &found, &accumulate(on_cpu, &plan, lora(0.0), &packed, 0));
}

#[test]
fn bf16_gradients_err_by_no_more_than_twice_what_those_of_transformers_do() {
    if !gpu() {
        return;
    }
    let plan = LayerPlan::full(4);
    for (name, worst) in BF16 {
        let fixture = Fixture::open(name);
        let packed = Packed::new(&fixture.examples());
        for (parameter, grad) in accumulate(decoder_on(cuda(Dtype::Bf16), name), &plan, Trainable::Full, &packed, 0) {
            let error = distance(&grad, &fixture.floats(&format!("grad.{parameter}")).0);
            assert!(error <= 2.0 * worst, "{name} {parameter}: {error}");
        }
        let bf16 = accumulate(decoder_on(cuda(Dtype::Bf16), name), &plan, lora(0.0), &packed, 2);
        let f32 = accumulate(decoder(name, 2), &plan, lora(0.0), &packed, 2);
        for ((parameter, f32), (_, bf16)) in f32.iter().zip(&bf16) {
            let error = distance(bf16, f32);
            assert!(error <= 2.0 * worst, "{name} {parameter}: {error}");
        }
    }
}

/// Gradients of the head, of layer 0 and below, from a teacher's states and from its most likely tokens.
fn distilled<B: TrainingBackend>(student: Decoder<B>, other: &Decoder<B>, packed: &Packed) -> [Gradients; 2] {
    let mut scratch = Scratch::new(other.backend()).unwrap();
    let x = other.forward(&packed.batch, &LayerPlan::full(4), &mut scratch, |_, _| Ok(())).unwrap();
    let x = other.normed_rows(&x, &packed.rows).unwrap();
    let k = 5;
    let ids: Vec<u32> = (0..packed.rows.len() * k).map(|i| u32::try_from((i * 37 + i / k) % 259).unwrap()).collect();
    let log_probs: Vec<f32> = (0..ids.len()).map(|i| -0.3 * (i % k) as f32 - 0.5).collect();
    let trainable = Trainable::Layers { layers: vec![0], lm_head: true };
    let mut model = Differentiable::new(student, LayerPlan::full(4), trainable, 7).unwrap();
    [Teacher::States { x: &x, head: other.head(), logit_scale: 1.5 }, Teacher::TopK { k, ids: &ids, log_probs: &log_probs }].map(
        |teacher| {
            let objective = Objective::Distil { teacher, temperature: 2.0, mix: 0.7 };
            model.zero_grads().unwrap();
            model.accumulate(&packed.batch, packed.targets(), &objective, packed.scale()).unwrap();
            grads(&model)
        },
    )
}

#[test]
fn gradients_of_distillation_equal_the_cpu() {
    if !gpu() {
        return;
    }
    let packed = Packed::new(&Fixture::open("llama").examples());
    let backend = cuda(Dtype::F32);
    // One device for both: a clone shares its memory and its order of work.
    let other = decoder_on(backend.clone(), "llama-tied-llama3rope");
    let found = distilled(decoder_on(backend, "llama"), &other, &packed);
    let expected = distilled(decoder("llama", 2), &decoder("llama-tied-llama3rope", 2), &packed);
    for (found, expected) in found.iter().zip(&expected) {
        compare("distilled", found, expected);
    }
}
