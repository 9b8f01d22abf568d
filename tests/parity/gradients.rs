//! Gradients of every parameter equal those of transformers; under a plan, those of finite differences.

use crate::fixture::{Fixture, NAMES, decoder, decoder_on};
use prunectl::backend::cpu::CpuBackend;
use prunectl::data::Example;
use prunectl::model::train::{BatchTargets, Differentiable, LoraSpec, Objective, Trainable};
use prunectl::model::{Batch, LayerPlan, LinearName, packed_targets};
use prunectl::ops::{Device, Teacher, TrainingBackend};
use prunectl::tensor::Dtype;

type Model = Differentiable<CpuBackend>;

fn model(name: &str, plan: LayerPlan, trainable: Trainable) -> Model {
    Differentiable::new(decoder(name, 2), plan, trainable, 7).unwrap()
}

pub(crate) fn lora(dropout: f32) -> Trainable {
    Trainable::Lora(LoraSpec { r: 5, alpha: 8.0, rslora: true, dropout, targets: LinearName::ALL.to_vec() })
}

pub(crate) struct Packed {
    pub(crate) batch: Batch,
    pub(crate) rows: Vec<u32>,
    tokens: Vec<u32>,
}

impl Packed {
    pub(crate) fn new(examples: &[Example]) -> Self {
        let batch = Batch::pack(examples.iter().map(|e| e.ids.as_slice()));
        let (rows, tokens) = packed_targets(&batch.starts, examples.iter().map(|e| e.targets.as_slice()));
        Self { batch, rows, tokens }
    }

    pub(crate) fn targets(&self) -> BatchTargets<'_> {
        BatchTargets { rows: &self.rows, tokens: &self.tokens }
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / self.rows.len() as f32
    }
}

pub(crate) fn grads<B: TrainingBackend>(model: &Differentiable<B>) -> Vec<(String, Vec<f32>)> {
    let backend = model.decoder().backend();
    model.parameters().iter().map(|p| (p.name.clone(), backend.download(&p.grad).unwrap())).collect()
}

/// The policy of whole models: an element may err by some part (1e-5 on the CPU) of its tensor's largest.
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: number of elements");
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * largest, "{what}: element {i}: {f} instead of {e} (largest {largest})");
    }
}

#[test]
fn gradients_of_every_parameter_equal_transformers() {
    for name in NAMES {
        let fixture = Fixture::open(name);
        let packed = Packed::new(&fixture.examples());
        let mut model = model(name, LayerPlan::full(4), Trainable::Full);
        let loss = model.accumulate(&packed.batch, packed.targets(), &Objective::CrossEntropy, packed.scale()).unwrap();
        let expected = f64::from(fixture.floats("loss").0[0]);
        assert_eq!(loss.target_tokens, packed.rows.len());
        assert!((loss.loss_sum / loss.target_tokens as f64 - expected).abs() <= 1e-5 * expected, "{name}: {loss:?}");
        let expected = fixture.names("grad.");
        let found = grads(&model);
        assert_eq!(found.len(), expected.len(), "{name}: number of parameters");
        for (parameter, grad) in found {
            assert_close(&format!("{name} {parameter}"), &grad, &fixture.floats(&format!("grad.{parameter}")).0, 1e-5);
        }
    }
}

/// Error of a whole gradient, relative to its length.
pub(crate) fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = length(&mut found.iter().zip(expected).map(|(&f, &e)| f64::from(f) - f64::from(e)));
    error / length(&mut expected.iter().map(|&e| f64::from(e)))
}

/// The worst such error of transformers itself in bf16, over all parameters (scripts/measure-bf16-fixtures).
pub(crate) const BF16: [(&str, f64); 5] =
    [("llama", 0.0330), ("llama-tied-llama3rope", 0.0388), ("qwen2", 0.0886), ("cohere", 0.0247), ("cohere-qknorm", 0.0259)];

#[test]
fn bf16_gradients_err_by_no_more_than_twice_what_those_of_transformers_do() {
    for (name, worst) in BF16 {
        let fixture = Fixture::open(name);
        let packed = Packed::new(&fixture.examples());
        let in_dtype = |dtype, trainable| {
            let lora = matches!(trainable, Trainable::Lora(_));
            let backend = CpuBackend::new(dtype, Some(2)).unwrap();
            let mut model = Differentiable::new(decoder_on(backend, name), LayerPlan::full(4), trainable, 7).unwrap();
            if lora {
                stir(&mut model);
            }
            model.accumulate(&packed.batch, packed.targets(), &Objective::CrossEntropy, packed.scale()).unwrap();
            grads(&model)
        };
        for (parameter, grad) in in_dtype(Dtype::Bf16, Trainable::Full) {
            let error = distance(&grad, &fixture.floats(&format!("grad.{parameter}")).0);
            assert!(error <= 2.0 * worst, "{name} {parameter}: {error}");
        }
        for ((parameter, f32), (_, bf16)) in in_dtype(Dtype::F32, lora(0.0)).iter().zip(in_dtype(Dtype::Bf16, lora(0.0))) {
            let error = distance(&bf16, f32);
            assert!(error <= 2.0 * worst, "{name} {parameter}: {error}");
        }
    }
}

#[test]
fn micro_batches_add_up_and_zero_grads_begins_anew() {
    let examples = Fixture::open("qwen2").examples();
    let whole = Packed::new(&examples);
    let mut model = model("qwen2", LayerPlan::full(4), Trainable::Full);
    for example in &examples {
        let part = Packed::new(std::slice::from_ref(example));
        model.accumulate(&part.batch, part.targets(), &Objective::CrossEntropy, whole.scale()).unwrap();
    }
    let parts = grads(&model);
    model.zero_grads().unwrap();
    model.accumulate(&whole.batch, whole.targets(), &Objective::CrossEntropy, whole.scale()).unwrap();
    for ((name, parts), (_, whole)) in parts.iter().zip(grads(&model)) {
        assert_close(name, parts, &whole, 1e-5);
    }
}

#[test]
fn threads_change_no_bit() {
    let packed = Packed::new(&Fixture::open("cohere-qknorm").examples());
    let mut all = Vec::new();
    for threads in [1, 2, 3] {
        for trainable in [Trainable::Full, lora(0.1)] {
            let decoder = decoder("cohere-qknorm", threads);
            let mut model = Differentiable::new(decoder, LayerPlan::full(4), trainable, 7).unwrap();
            model.accumulate(&packed.batch, packed.targets(), &Objective::CrossEntropy, packed.scale()).unwrap();
            all.push(grads(&model));
        }
    }
    assert!(all[0] == all[2] && all[0] == all[4], "full");
    assert!(all[1] == all[3] && all[1] == all[5], "LoRA");
}

#[test]
fn kept_activations_change_no_bit() {
    for name in NAMES {
        let packed = Packed::new(&Fixture::open(name).examples());
        for trainable in [Trainable::Full, lora(0.25), Trainable::Layers { layers: vec![2, 3], lm_head: false }] {
            let found = [0, 1, 3, 9].map(|kept| {
                let mut model = model(name, LayerPlan::without(4, &[1]).unwrap(), trainable.clone());
                stir(&mut model);
                model.keep_activations(kept);
                // Twice: what the first batch leaves behind must not reach the second.
                for _ in 0..2 {
                    model.zero_grads().unwrap();
                    model.set_passes(0);
                    model.accumulate(&packed.batch, packed.targets(), &Objective::CrossEntropy, packed.scale()).unwrap();
                }
                grads(&model)
            });
            assert!(found.iter().all(|grads| *grads == found[0]), "{name}, {trainable:?}");
        }
    }
}

/// Moves every parameter a little, so that LoRA's B is not zero and gradients of A do not vanish.
pub(crate) fn stir<B: TrainingBackend>(model: &mut Differentiable<B>) {
    let (backend, parameters) = model.backend_and_parameters();
    for (seed, parameter) in parameters.iter_mut().enumerate() {
        let mut values = backend.download(&parameter.value).unwrap();
        for (i, value) in values.iter_mut().enumerate() {
            let noise = ((i * 7919 + seed * 104_729) % 2003) as f32 / 2003.0 - 0.5;
            *value += 0.02 * noise;
        }
        let (rows, cols) = (prunectl::ops::Shaped::rows(&parameter.value), prunectl::ops::Shaped::cols(&parameter.value));
        parameter.value = backend.upload(rows, cols, &values).unwrap();
    }
    model.refresh().unwrap();
}

/// Directional derivative by central differences, over all elements of one parameter in the direction of its gradient:
/// equals the gradient's length, and the loss is summed in f64.
fn check_by_differences(what: &str, model: &mut Model, objective: &Objective<'_, CpuBackend>, packed: &Packed) {
    model.zero_grads().unwrap();
    let passes = model.passes();
    let loss = |model: &mut Model| {
        model.set_passes(passes);
        let loss = model.accumulate(&packed.batch, packed.targets(), objective, packed.scale()).unwrap();
        loss.loss_sum / loss.target_tokens as f64
    };
    loss(model);
    let all = grads(model);
    for (index, (name, grad)) in all.iter().enumerate() {
        let length = grad.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!(length > 0.0, "{what} {name}: no gradient");
        let shape = {
            let value = &model.parameters()[index].value;
            [prunectl::ops::Shaped::rows(value), prunectl::ops::Shaped::cols(value)]
        };
        let original = model.decoder().backend().download(&model.parameters()[index].value).unwrap();
        let size = original.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let step = 2e-3 * size.max(0.1);
        let at = |model: &mut Model, distance: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
            let moved: Vec<f32> = original
                .iter()
                .zip(grad)
                .map(|(&value, &g)| (f64::from(value) + distance * f64::from(g) / length) as f32)
                .collect();
            let (backend, parameters) = model.backend_and_parameters();
            parameters[index].value = backend.upload(shape[0], shape[1], &moved).unwrap();
            model.refresh().unwrap();
        };
        // Fourth order, so that the step can be large beside f32's rounding.
        let mut values = [0.0; 4];
        for (value, factor) in values.iter_mut().zip([-2.0, -1.0, 1.0, 2.0]) {
            at(model, factor * step);
            *value = loss(model);
        }
        at(model, 0.0);
        let slope = (values[0] - 8.0 * values[1] + 8.0 * values[2] - values[3]) / (12.0 * step);
        // A loss near 5 carries some 5e-7 of rounding.
        let tolerance = 2e-3 * length + 2e-6 / step;
        assert!((slope - length).abs() <= tolerance, "{what} {name}: slope {slope}, gradient {length}, step {step}");
    }
}

#[test]
fn gradients_under_a_plan_are_slopes_of_the_loss() {
    for name in NAMES {
        let packed = Packed::new(&Fixture::open(name).examples());
        let plan = LayerPlan::without(4, &[1]).unwrap();
        let mut model = model(name, plan.clone(), Trainable::Full);
        assert!(model.parameters().iter().all(|p| !p.name.contains("layers.1.")));
        check_by_differences(name, &mut model, &Objective::CrossEntropy, &packed);
        let some = Trainable::Layers { layers: vec![2, 3], lm_head: true };
        check_by_differences(name, &mut self::model(name, plan, some), &Objective::CrossEntropy, &packed);
    }
}

#[test]
fn gradients_of_lora_pairs_are_slopes_of_the_loss() {
    for name in NAMES {
        let packed = Packed::new(&Fixture::open(name).examples());
        for dropout in [0.0, 0.25] {
            let mut model = model(name, LayerPlan::without(4, &[0]).unwrap(), lora(dropout));
            stir(&mut model);
            check_by_differences(&format!("{name}, dropout {dropout}"), &mut model, &Objective::CrossEntropy, &packed);
        }
    }
}

#[test]
fn gradients_of_distillation_are_slopes_of_the_loss() {
    let packed = Packed::new(&Fixture::open("llama").examples());
    let other = decoder("llama-tied-llama3rope", 2);
    let mut scratch = prunectl::model::Scratch::new(other.backend()).unwrap();
    let x = other.forward(&packed.batch, &LayerPlan::full(4), &mut scratch, |_, _| Ok(())).unwrap();
    let x = other.normed_rows(&x, &packed.rows).unwrap();
    let k = 5;
    let ids: Vec<u32> = (0..packed.rows.len() * k).map(|i| u32::try_from((i * 37 + i / k) % 259).unwrap()).collect();
    let log_probs: Vec<f32> = (0..ids.len()).map(|i| -0.3 * (i % k) as f32 - 0.5).collect();
    let plan = || LayerPlan::without(4, &[2]).unwrap();
    let mut model = model("llama", plan(), Trainable::Layers { layers: vec![0], lm_head: true });
    for (temperature, mix) in [(1.0, 1.0), (2.0, 0.7)] {
        let teacher = Teacher::States { x: &x, head: other.head(), logit_scale: 1.5 };
        check_by_differences("states", &mut model, &Objective::Distil { teacher, temperature, mix }, &packed);
        let teacher = Teacher::TopK { k, ids: &ids, log_probs: &log_probs };
        check_by_differences("top k", &mut model, &Objective::Distil { teacher, temperature, mix }, &packed);
    }
}
