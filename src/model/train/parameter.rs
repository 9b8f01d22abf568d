//! What is trained: parameters by their names in files, with their gradients.

use crate::error::{Error, Result};
use crate::model::config::{Architecture, DecoderConfig};
use crate::model::folder::ModelFolder;
use crate::model::layer_plan::LayerPlan;
use crate::model::linear_name::LinearName;
use crate::ops::Device;
use crate::random::Philox4x32;
use std::collections::HashMap;

/// A tensor that training changes.
#[derive(Debug)]
pub struct Parameter<B: Device> {
    /// Its name in a file: Hugging Face's, or PEFT's for LoRA.
    pub name: String,
    /// f32 master values: [rows, cols], a vector as [1, n].
    pub value: B::Tensor,
    /// Gradient, of the same shape; passes add to it.
    pub grad: B::Tensor,
    /// Whether weight decay applies: to matrices, not to norms and biases.
    pub decay: bool,
}

/// LoRA's options (PEFT's LoraConfig).
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSpec {
    /// Rank.
    pub r: usize,
    /// `lora_alpha`.
    pub alpha: f32,
    /// Scale by alpha / sqrt(r) instead of alpha / r (arXiv 2312.03732).
    pub rslora: bool,
    /// Probability that an element of a pair's input is dropped, 0 to below 1.
    pub dropout: f32,
    /// The linears that get a pair.
    pub targets: Vec<LinearName>,
}

impl LoraSpec {
    /// Factor on a pair's product.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    pub fn scale(&self) -> f32 {
        if self.rslora { self.alpha / (self.r as f32).sqrt() } else { self.alpha / self.r as f32 }
    }
}

/// Which parameters are trained.
#[derive(Debug, Clone, PartialEq)]
pub enum Trainable {
    /// LoRA pairs on the frozen model.
    Lora(LoraSpec),
    /// Every tensor of the kept layers, the embedding, the final norm and the head.
    Full,
    /// Whole layers (arXiv 2411.15558), by their numbers in the folder.
    Layers {
        /// Layers; each one must be kept.
        layers: Vec<usize>,
        /// The head as well; where it is tied, that is the embedding.
        lm_head: bool,
    },
}

/// Where a parameter acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Embed,
    Head,
    FinalNorm,
    InputNorm(usize),
    PostNorm(usize),
    QNorm(usize),
    KNorm(usize),
    Weight(usize, LinearName),
    Bias(usize, LinearName),
    LoraA(usize, LinearName),
    LoraB(usize, LinearName),
}

/// All parameters, and which is where.
pub(super) struct Parameters<B: Device> {
    pub(super) list: Vec<Parameter<B>>,
    places: HashMap<Place, usize>,
}

impl<B: Device> Parameters<B> {
    /// The parameter at a place.
    pub(super) fn at(&self, place: Place) -> Option<&Parameter<B>> {
        self.places.get(&place).and_then(|&index| self.list.get(index))
    }

    /// Its gradient.
    pub(super) fn grad(&mut self, place: Place) -> Option<&mut B::Tensor> {
        self.places.get(&place).and_then(|&index| self.list.get_mut(index)).map(|parameter| &mut parameter.grad)
    }

    /// Parameters of `trainable`, with the folder's values, in the order of the forward pass.
    pub(super) fn new(backend: &B, folder: &ModelFolder, plan: &LayerPlan, trainable: &Trainable, seed: u64) -> Result<Self> {
        let config = &folder.config;
        let mut all = Builder { backend, folder, found: Self { list: Vec::new(), places: HashMap::new() } };
        match trainable {
            Trainable::Lora(spec) => {
                check_lora(spec)?;
                for &layer in plan.kept() {
                    for name in LinearName::ALL.into_iter().filter(|name| spec.targets.contains(name)) {
                        all.lora(layer, name, spec, config, seed)?;
                    }
                }
            }
            Trainable::Full => {
                all.file(Place::Embed, "model.embed_tokens.weight", true)?;
                for &layer in plan.kept() {
                    all.layer(layer, config)?;
                }
                all.file(Place::FinalNorm, "model.norm.weight", false)?;
                all.head(config)?;
            }
            Trainable::Layers { layers, lm_head } => {
                if let Some(layer) = layers.iter().find(|&&layer| !plan.keeps(layer)) {
                    let help = format!("kept are {:?}", plan.kept());
                    return Err(Error::request(format!("layer {layer} is not there to be trained")).with_help(help));
                }
                if *lm_head && config.tie_word_embeddings {
                    all.file(Place::Embed, "model.embed_tokens.weight", true)?;
                }
                for &layer in plan.kept().iter().filter(|layer| layers.contains(layer)) {
                    all.layer(layer, config)?;
                }
                if *lm_head {
                    all.head(config)?;
                }
            }
        }
        if all.found.list.is_empty() {
            return Err(Error::request("there is nothing to train: no linear, layer or head is named"));
        }
        Ok(all.found)
    }
}

fn check_lora(spec: &LoraSpec) -> Result<()> {
    if spec.r == 0 {
        return Err(Error::request("the rank of a LoRA pair must be at least 1"));
    }
    if !(0.0..1.0).contains(&spec.dropout) {
        return Err(Error::request(format!("dropout must be at least 0 and below 1, not {}", spec.dropout)));
    }
    if !spec.alpha.is_finite() {
        return Err(Error::request(format!("alpha must be a number, not {}", spec.alpha)));
    }
    Ok(())
}

struct Builder<'a, B: Device> {
    backend: &'a B,
    folder: &'a ModelFolder,
    found: Parameters<B>,
}

impl<B: Device> Builder<'_, B> {
    fn add(&mut self, place: Place, name: String, shape: [usize; 2], values: &[f32], decay: bool) -> Result<()> {
        let [rows, cols] = shape;
        let (value, grad) = (self.backend.upload(rows, cols, values)?, self.backend.zeros(rows, cols)?);
        self.found.places.insert(place, self.found.list.len());
        self.found.list.push(Parameter { name, value, grad, decay });
        Ok(())
    }

    /// A tensor of the folder.
    fn file(&mut self, place: Place, name: &str, decay: bool) -> Result<()> {
        let tensor = self.folder.tensor(name)?;
        let shape = match *tensor.shape.as_slice() {
            [rows, cols] => [rows, cols],
            _ => [1, tensor.len()],
        };
        self.add(place, name.to_owned(), shape, &tensor.to_f32(), decay)
    }

    fn layer(&mut self, layer: usize, config: &DecoderConfig) -> Result<()> {
        let prefix = format!("model.layers.{layer}.");
        self.file(Place::InputNorm(layer), &format!("{prefix}input_layernorm.weight"), false)?;
        for name in LinearName::ALL {
            if name == LinearName::Gate && config.architecture != Architecture::Cohere {
                self.file(Place::PostNorm(layer), &format!("{prefix}post_attention_layernorm.weight"), false)?;
            }
            self.file(Place::Weight(layer, name), &format!("{prefix}{}.weight", name.module()), true)?;
            let bias = match name {
                LinearName::Q | LinearName::K | LinearName::V => config.qkv_bias,
                LinearName::O => config.o_bias,
                LinearName::Gate | LinearName::Up | LinearName::Down => config.mlp_bias,
            };
            if bias {
                self.file(Place::Bias(layer, name), &format!("{prefix}{}.bias", name.module()), false)?;
            }
        }
        if config.use_qk_norm {
            self.file(Place::QNorm(layer), &format!("{prefix}self_attn.q_norm.weight"), false)?;
            self.file(Place::KNorm(layer), &format!("{prefix}self_attn.k_norm.weight"), false)?;
        }
        Ok(())
    }

    /// The head: where it is tied, the embedding's parameter under another place.
    fn head(&mut self, config: &DecoderConfig) -> Result<()> {
        if !config.tie_word_embeddings {
            return self.file(Place::Head, "lm_head.weight", true);
        }
        if let Some(&index) = self.found.places.get(&Place::Embed) {
            self.found.places.insert(Place::Head, index);
        }
        Ok(())
    }

    /// A pair: A uniform in ±1 / sqrt(in_features), which is PEFT's kaiming_uniform_(a = sqrt(5)); B zero.
    fn lora(&mut self, layer: usize, name: LinearName, spec: &LoraSpec, config: &DecoderConfig, seed: u64) -> Result<()> {
        let [outputs, inputs] = name.shape(config);
        let prefix = format!("base_model.model.model.layers.{layer}.{}.", name.module());
        #[expect(clippy::cast_precision_loss, reason = "widths are small")]
        let bound = 1.0 / (inputs as f32).sqrt();
        let a = uniform(seed, INITIAL_VALUES + pair_number(layer, name), spec.r * inputs, bound);
        self.add(Place::LoraA(layer, name), format!("{prefix}lora_A.weight"), [spec.r, inputs], &a, true)?;
        let b = vec![0.0; outputs * spec.r];
        self.add(Place::LoraB(layer, name), format!("{prefix}lora_B.weight"), [outputs, spec.r], &b, true)
    }
}

/// Streams of random numbers from here on are initial values; those below are dropout masks.
const INITIAL_VALUES: u64 = 1 << 63;

/// A number for every linear of every layer.
pub(super) fn pair_number(layer: usize, name: LinearName) -> u64 {
    (layer * LinearName::ALL.len() + name as usize) as u64
}

/// Values in -bound .. bound: word i mod 4 of block i / 4 of the stream, its upper 24 bits as a fraction.
fn uniform(seed: u64, stream: u64, len: usize, bound: f32) -> Vec<f32> {
    let random = Philox4x32::new(seed, stream);
    let words = (0..len.div_ceil(4) as u64).flat_map(|block| random.block(block));
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit a float")]
    let fractions = words.map(|word| (word >> 8) as f32 / 16_777_216.0);
    fractions.take(len).map(|fraction| (2.0 * fraction - 1.0) * bound).collect()
}
