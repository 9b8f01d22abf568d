//! LoRA (arXiv 2106.09685) on a device: what is added to the layers' linears, y += scale * (x A^T) B^T.
//!
//! The pairs stay on the device whatever becomes of the layers' own weights: they are small, and training changes them
//! each step.

use super::config::DecoderConfig;
use super::linear_name::LinearName;
use crate::error::{Error, Result};
use crate::ops::{Backend, Shaped};
use crate::tensor::HostTensor;

/// One linear's pair.
pub struct LoraPair<B: Backend> {
    /// `lora_A`: [r, in_features].
    pub a: B::Matrix,
    /// `lora_B`: [out_features, r].
    pub b: B::Matrix,
    /// alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732).
    pub scale: f32,
}

impl<B: Backend> LoraPair<B> {
    /// From `lora_A` [r, in_features] and `lora_B` [out_features, r].
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Device`] when memory is short.
    pub fn new(backend: &B, a: HostTensor, b: HostTensor, scale: f32) -> Result<Self> {
        let (a, b) = (backend.prepare(&[a])?, backend.prepare(&[b])?);
        if a.rows() != b.cols() {
            return Err(Error::shape("lora", "b", &[b.rows(), a.rows()], &[b.rows(), b.cols()]));
        }
        Ok(Self { a, b, scale })
    }

    /// The pair for values that are in no file: `a` [r, in_features], `b` [out_features, r], row-major.
    ///
    /// # Errors
    /// As [`LoraPair::new`].
    pub fn from_f32(backend: &B, a: &[f32], b: &[f32], r: usize, scale: f32) -> Result<Self> {
        let tensor = |name: &'static str, values: &[f32], rows: usize, cols: usize| {
            let shape = || Error::shape("lora", name, &[rows, cols], &[values.len()]);
            HostTensor::from_f32(name, &[rows, cols], values).ok_or_else(shape)
        };
        let [cols, rows] = [a, b].map(|values| values.len() / r.max(1));
        Self::new(backend, tensor("lora_A", a, r, cols)?, tensor("lora_B", b, rows, r)?, scale)
    }
}

/// The pairs of one layer.
pub struct LayerLora<B: Backend> {
    /// In the order of [`LinearName::ALL`].
    pairs: [Option<LoraPair<B>>; LinearName::ALL.len()],
}

impl<B: Backend> Default for LayerLora<B> {
    fn default() -> Self {
        Self { pairs: std::array::from_fn(|_| None) }
    }
}

impl<B: Backend> LayerLora<B> {
    /// The pair of a linear.
    pub fn pair(&self, name: LinearName) -> Option<&LoraPair<B>> {
        self.pairs[name as usize].as_ref()
    }

    /// Sets or replaces the pair of a linear.
    pub fn set(&mut self, name: LinearName, pair: LoraPair<B>) {
        self.pairs[name as usize] = Some(pair);
    }
}

/// An adapter: the pairs of every layer of the folder, none for a layer it does not change.
pub struct Lora<B: Backend> {
    /// By the layer's number in the folder.
    pub layers: Vec<LayerLora<B>>,
}

impl<B: Backend> Lora<B> {
    /// Without any pair.
    #[must_use]
    pub fn empty(num_hidden_layers: usize) -> Self {
        Self { layers: (0..num_hidden_layers).map(|_| LayerLora::default()).collect() }
    }

    /// # Errors
    /// [`Error::Shape`] unless it has a layer for each of the model's and every pair fits its linear.
    pub fn check(&self, config: &DecoderConfig) -> Result<()> {
        if self.layers.len() != config.num_hidden_layers {
            return Err(Error::shape("lora", "layers", &[config.num_hidden_layers], &[self.layers.len()]));
        }
        for layer in &self.layers {
            for name in LinearName::ALL {
                let Some(pair) = layer.pair(name) else { continue };
                let (expected, found) = (name.shape(config), [pair.b.rows(), pair.a.cols()]);
                if found != expected {
                    return Err(Error::shape("lora", name.name(), &expected, &found));
                }
            }
        }
        Ok(())
    }
}
