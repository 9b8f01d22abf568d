//! AdamW over all parameters of a model, with the gradient clipped by its global norm.

use super::state::Entry;
use crate::error::Result;
use crate::model::train::Parameter;
use crate::ops::{Adamw, AdamwArgs, AdamwStep, Shaped};
use serde::Serialize;

/// AdamW's constants, and the clipping.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Hyper {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the parameters that have any.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0: no clipping.
    pub clip: f64,
}

/// The moments of every parameter.
pub struct Optimiser<B: Adamw> {
    hyper: Hyper,
    moments: Vec<[B::Tensor; 2]>,
    updates: u64,
}

/// torch adds this to the norm it divides by (`clip_grad_norm_`).
const CLIP_EPS: f64 = 1e-6;

impl<B: Adamw> Optimiser<B> {
    /// Moments of zero for these parameters, in their order.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when memory is short.
    pub fn new(backend: &B, parameters: &[Parameter<B>], hyper: Hyper) -> Result<Self> {
        let zeros = |p: &Parameter<B>| backend.zeros(p.value.rows(), p.value.cols());
        let moments = parameters.iter().map(|p| Ok([zeros(p)?, zeros(p)?])).collect::<Result<_>>()?;
        Ok(Self { hyper, moments, updates: 0 })
    }

    /// Updates done.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Norm of the whole gradient, summed in the order of the parameters.
    ///
    /// # Errors
    /// Those of the op.
    pub fn norm(&self, backend: &B, parameters: &[Parameter<B>]) -> Result<f64> {
        let mut sum = 0.0;
        for parameter in parameters {
            sum += backend.squared_norm(&parameter.grad)?;
        }
        Ok(sum.sqrt())
    }

    /// One update of all parameters by their gradients, whose norm is `norm`.
    ///
    /// # Errors
    /// Those of the op.
    pub fn update(&mut self, backend: &B, parameters: &mut [Parameter<B>], norm: f64, lr: f64) -> Result<()> {
        let hyper = self.hyper;
        self.updates += 1;
        #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
        let grad_scale = if hyper.clip > 0.0 { (hyper.clip / (norm + CLIP_EPS)).min(1.0) as f32 } else { 1.0 };
        for (parameter, [first, second]) in parameters.iter_mut().zip(&mut self.moments) {
            let weight_decay = if parameter.decay { hyper.weight_decay } else { 0.0 };
            let step = AdamwStep {
                step: self.updates,
                lr,
                beta1: hyper.beta1,
                beta2: hyper.beta2,
                eps: hyper.eps,
                weight_decay,
                grad_scale,
            };
            backend.adamw(AdamwArgs { value: &mut parameter.value, grad: &parameter.grad, first, second, step })?;
        }
        Ok(())
    }

    /// What a saved state holds of `parameters`: value, first and second moment of each.
    #[must_use]
    pub fn entries(parameters: &[Parameter<B>]) -> Vec<Entry> {
        let entry = |kind: &str, p: &Parameter<B>| Entry {
            name: format!("{kind}.{}", p.name),
            rows: p.value.rows(),
            cols: p.value.cols(),
        };
        parameters.iter().flat_map(|p| ["value", "first", "second"].map(|kind| entry(kind, p))).collect()
    }

    /// Values of the `index`-th of [`Optimiser::entries`].
    ///
    /// # Errors
    /// Those of the device.
    pub fn values(&self, backend: &B, parameters: &[Parameter<B>], index: usize) -> Result<Vec<f32>> {
        let [first, second] = &self.moments[index / 3];
        backend.download([&parameters[index / 3].value, first, second][index % 3])
    }

    /// Takes back what [`Optimiser::values`] gave after `updates` updates. `load` gives an entry's values.
    ///
    /// # Errors
    /// Those of `load` and the device.
    pub fn restore(
        &mut self,
        backend: &B,
        parameters: &mut [Parameter<B>],
        updates: u64,
        load: impl Fn(&Entry) -> Result<Vec<f32>>,
    ) -> Result<()> {
        for (index, entry) in Self::entries(parameters).iter().enumerate() {
            let [first, second] = &mut self.moments[index / 3];
            let tensor = [&mut parameters[index / 3].value, first, second].into_iter().nth(index % 3);
            if let Some(tensor) = tensor {
                *tensor = backend.upload(entry.rows, entry.cols, &load(entry)?)?;
            }
        }
        self.updates = updates;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::ops::Device;
    use crate::tasks::train::schedule::Schedule;
    use crate::tensor::Dtype;
    use serde_json::Value;

    #[expect(clippy::cast_possible_truncation, reason = "the fixture holds f32")]
    fn floats(value: &Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    }

    /// f32 arithmetic in another order: a few units in the last place of the value an update, and they add up.
    fn close(found: &[f32], expected: &[f32], what: &str) {
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 4e-7 * (1.0 + e.abs()), "{what}: {f} and {e}");
        }
    }

    #[test]
    fn fifty_updates_are_those_of_torch() {
        let recorded: Value = serde_json::from_str(include_str!("../../../tests/fixtures/optimiser.json")).unwrap();
        let backend = CpuBackend::new(Dtype::F32, Some(1)).unwrap();
        let cases = recorded["adamw"].as_array().unwrap();
        assert_eq!(cases.len(), 2);
        for case in cases {
            let number = |name: &str| case[name].as_f64().unwrap();
            let hyper = Hyper {
                beta1: number("beta1"),
                beta2: number("beta2"),
                eps: number("eps"),
                weight_decay: number("weight_decay"),
                clip: number("clip"),
            };
            let start: Vec<Vec<f32>> = case["start"].as_array().unwrap().iter().map(floats).collect();
            let up = |values: &[f32]| backend.upload(1, values.len(), values).unwrap();
            let mut parameters: Vec<Parameter<CpuBackend>> = [true, false]
                .iter()
                .zip(&start)
                .map(|(&decay, v)| Parameter { name: format!("{decay}"), value: up(v), grad: up(v), decay })
                .collect();
            let mut optimiser = Optimiser::new(&backend, &parameters, hyper).unwrap();
            let steps = case["gradients"].as_array().unwrap();
            assert_eq!(steps.len(), 50);
            for (done, gradients) in steps.iter().enumerate() {
                for (parameter, gradient) in parameters.iter_mut().zip(gradients.as_array().unwrap()) {
                    parameter.grad = up(&floats(gradient));
                }
                let norm = optimiser.norm(&backend, &parameters).unwrap();
                let expected = case["norms"][done].as_f64().unwrap();
                assert!((norm - expected).abs() <= 3e-7 * expected, "norm at {done}: {norm} and {expected}");
                let lr = number("lr") * Schedule::Cosine.factor(done as u64, case["warmup"].as_u64().unwrap(), 50);
                optimiser.update(&backend, &mut parameters, norm, lr).unwrap();
                for (parameter, after) in parameters.iter().zip(case["after"][done].as_array().unwrap()) {
                    let what = format!("{} after {done}", parameter.name);
                    close(&backend.download(&parameter.value).unwrap(), &floats(after), &what);
                }
            }
        }
    }

    #[test]
    fn a_restored_optimiser_goes_on_bit_by_bit() {
        let backend = CpuBackend::new(Dtype::F32, Some(1)).unwrap();
        let hyper = Hyper { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, clip: 0.5 };
        let up = |values: &[f32]| backend.upload(2, 2, values).unwrap();
        let fresh = || {
            vec![Parameter { name: "a".into(), value: up(&[1.0, 2.0, 3.0, 4.0]), grad: up(&[0.1, -2.0, 0.3, 0.0]), decay: true }]
        };
        let run = |optimiser: &mut Optimiser<CpuBackend>, parameters: &mut Vec<Parameter<CpuBackend>>, steps: usize| {
            for _ in 0..steps {
                let norm = optimiser.norm(&backend, parameters).unwrap();
                optimiser.update(&backend, parameters, norm, 1e-2).unwrap();
            }
        };
        let mut whole = fresh();
        let mut optimiser = Optimiser::new(&backend, &whole, hyper).unwrap();
        run(&mut optimiser, &mut whole, 3);
        let entries = Optimiser::entries(&whole);
        let saved: Vec<Vec<f32>> = (0..3).map(|i| optimiser.values(&backend, &whole, i).unwrap()).collect();
        run(&mut optimiser, &mut whole, 3);

        let mut again = fresh();
        let mut optimiser = Optimiser::new(&backend, &again, hyper).unwrap();
        let load = |entry: &Entry| Ok(saved[entries.iter().position(|e| e == entry).unwrap()].clone());
        optimiser.restore(&backend, &mut again, 3, load).unwrap();
        run(&mut optimiser, &mut again, 3);
        assert_eq!(backend.download(&again[0].value).unwrap(), backend.download(&whole[0].value).unwrap());
    }
}
