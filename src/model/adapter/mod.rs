//! LoRA adapters as files: PEFT's folders, read and written. Layers are numbered as in the folder of the base.

mod config;

use super::config::DecoderConfig;
use super::folder::ModelFolder;
use super::linear_name::LinearName;
use super::lora::{Lora, LoraPair};
use super::safetensors::{SafetensorsFile, StoredTensor, shown};
use super::tensor_set::{LAYERS_PREFIX, layer_of};
use crate::error::{Error, Result};
use crate::io;
use crate::ops::Backend;
use crate::tensor::HostTensor;
use safetensors::tensor::{Dtype as StoredDtype, TensorView};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};

pub use config::{AdapterConfig, Pattern};

/// Name of the file that describes an adapter.
pub const CONFIG: &str = "adapter_config.json";
/// Name of the file with its weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the base's own names.
const PREFIX: &str = "base_model.model.";

/// Which half of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// `lora_A`: [r, in_features].
    A,
    /// `lora_B`: [out_features, r].
    B,
}

/// The name of a pair's tensor in [`WEIGHTS`]: `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight`.
#[must_use]
pub fn tensor_name(layer: usize, linear: LinearName, half: Half) -> String {
    let half = match half {
        Half::A => "lora_A",
        Half::B => "lora_B",
    };
    format!("{PREFIX}{LAYERS_PREFIX}{layer}.{}.{half}.weight", linear.module())
}

/// The module's name within the base: `model.layers.3.self_attn.q_proj`.
fn module_name(layer: usize, linear: LinearName) -> String {
    format!("{LAYERS_PREFIX}{layer}.{}", linear.module())
}

/// One linear's pair, in the file's bytes.
#[derive(Debug, Clone)]
pub struct AdapterPair {
    /// [r, in_features].
    pub a: HostTensor,
    /// [out_features, r].
    pub b: HostTensor,
    /// Factor on the product.
    pub scale: f32,
}

/// An opened adapter, checked against its base.
#[derive(Debug)]
pub struct Adapter {
    /// The folder.
    pub path: PathBuf,
    /// adapter_config.json.
    pub config: AdapterConfig,
    pairs: BTreeMap<(usize, LinearName), AdapterPair>,
    layers: usize,
}

impl Adapter {
    /// Opens an adapter for `base`: every pair is whole, of the rank that the config says, and fits its linear.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Data`], [`Error::Unsupported`], each naming the file and the key or tensor.
    pub fn open(path: &Path, base: &ModelFolder) -> Result<Self> {
        let config = AdapterConfig::read(path)?;
        let weights = path.join(WEIGHTS);
        if !weights.exists() {
            return Err(Error::data(path, "", format!("{WEIGHTS} is missing"))
                .with_help("prunectl reads adapters as safetensors; save the adapter again with a current PEFT"));
        }
        let file = SafetensorsFile::open(&weights)?;
        let reader = Reader { file: &file, config: &config, model: &base.config };
        let pairs = reader.pairs()?;
        Ok(Self { path: path.to_path_buf(), config, pairs, layers: base.config.num_hidden_layers })
    }

    /// The pairs by layer and linear.
    pub fn pairs(&self) -> impl ExactSizeIterator<Item = (usize, LinearName, &AdapterPair)> {
        self.pairs.iter().map(|(&(layer, linear), pair)| (layer, linear, pair))
    }

    /// The pair of one linear.
    #[must_use]
    pub fn pair(&self, layer: usize, linear: LinearName) -> Option<&AdapterPair> {
        self.pairs.get(&(layer, linear))
    }

    /// Number of parameters.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.pairs.values().map(|pair| (pair.a.len() + pair.b.len()) as u64).sum()
    }

    /// The adapter on a device.
    ///
    /// # Errors
    /// [`Error::Device`] when memory is short.
    pub fn prepare<B: Backend>(&self, backend: &B) -> Result<Lora<B>> {
        let mut lora = Lora::empty(self.layers);
        for (layer, linear, pair) in self.pairs() {
            lora.layers[layer].set(linear, LoraPair::new(backend, pair.a.clone(), pair.b.clone(), pair.scale)?);
        }
        Ok(lora)
    }

    /// SHA-256 over the config's values and all weights, in hexadecimal: what a resumed run compares.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.config.to_json().to_string().as_bytes());
        for ((layer, linear), pair) in &self.pairs {
            hash.update(format!("{layer}.{linear} {} {:?} {:?}", pair.scale, pair.a.dtype, pair.a.shape).as_bytes());
            hash.update(pair.a.bytes.as_slice());
            hash.update(pair.b.bytes.as_slice());
        }
        hash.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// A pair to write: `a` [r, in_features], `b` [out_features, r], row-major.
#[derive(Debug, Clone, Copy)]
pub struct PairValues<'a> {
    /// Layer, as numbered in the base.
    pub layer: usize,
    /// Linear.
    pub linear: LinearName,
    /// `lora_A`.
    pub a: &'a [f32],
    /// `lora_B`.
    pub b: &'a [f32],
}

/// Writes (or replaces) the two files of an adapter, all pairs of rank `config.r`, in f32, into an existing folder.
///
/// # Errors
/// [`Error::Shape`] for a pair that is not of that rank; [`Error::Io`].
pub fn write(folder: &Path, config: &AdapterConfig, pairs: &[PairValues<'_>]) -> Result<()> {
    let mut tensors: Vec<(String, [usize; 2], Vec<u8>)> = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        for (half, values) in [(Half::A, pair.a), (Half::B, pair.b)] {
            if values.len() % config.r != 0 {
                return Err(Error::shape("adapter", pair.linear.name(), &[config.r], &[values.len()]));
            }
            let other = values.len() / config.r;
            let shape = match half {
                Half::A => [config.r, other],
                Half::B => [other, config.r],
            };
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push((tensor_name(pair.layer, pair.linear, half), shape, bytes));
        }
    }
    let path = folder.join(WEIGHTS);
    let failed = |e: safetensors::SafeTensorError| Error::data(&path, "", format!("cannot be written: {e}"));
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(StoredDtype::F32, shape.to_vec(), bytes).map_err(failed)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    io::write(&path, &safetensors::serialize(views, Some(metadata)).map_err(failed)?)?;
    let path = folder.join(CONFIG);
    let mut text =
        serde_json::to_string_pretty(&config.to_json()).map_err(|e| Error::data(&path, "", format!("cannot be written: {e}")))?;
    text.push('\n');
    io::write(&path, text.as_bytes())
}

struct Reader<'a> {
    file: &'a SafetensorsFile,
    config: &'a AdapterConfig,
    model: &'a DecoderConfig,
}

impl Reader<'_> {
    fn pairs(&self) -> Result<BTreeMap<(usize, LinearName), AdapterPair>> {
        let mut halves: BTreeMap<(usize, LinearName), [Option<HostTensor>; 2]> = BTreeMap::new();
        for stored in &self.file.header.tensors {
            let (layer, linear, half) = self.place(stored)?;
            halves.entry((layer, linear)).or_default()[half as usize] = Some(self.host(stored)?);
        }
        if halves.is_empty() {
            return Err(Error::data(&self.file.path, "", "holds no LoRA pairs"));
        }
        let pairs = halves
            .into_iter()
            .map(|((layer, linear), halves)| match halves {
                [Some(a), Some(b)] => Ok(((layer, linear), self.pair(layer, linear, a, b)?)),
                [None, _] => Err(self.missing(&tensor_name(layer, linear, Half::A))),
                [_, None] => Err(self.missing(&tensor_name(layer, linear, Half::B))),
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        self.check_targets(&pairs)?;
        Ok(pairs)
    }

    fn missing(&self, name: &str) -> Error {
        Error::data(&self.file.path, format!("tensor {name}"), "missing").with_help("the adapter is incomplete")
    }

    /// An error that says where the tensor and the base part.
    fn misfit(&self, tensor: &str, problem: String) -> Error {
        let base = if self.config.base.is_empty() { "another model" } else { &self.config.base };
        Error::data(&self.file.path, format!("tensor {}", shown(tensor)), problem)
            .with_help(format!("the adapter was made for {}", shown(base)))
    }

    /// Which pair, and which half of it, a tensor is.
    fn place(&self, stored: &StoredTensor) -> Result<(usize, LinearName, Half)> {
        let unknown = || {
            let all = LinearName::ALL.map(LinearName::name).join(", ");
            let at = format!("tensor {}", shown(&stored.name));
            Error::unsupported(&self.file.path, at, format!("is not part of a LoRA pair of a layer's linear ({all})"))
        };
        let name = stored.name.strip_prefix(PREFIX).ok_or_else(unknown)?;
        let layer = layer_of(name).ok_or_else(unknown)?;
        let rest = &name[LAYERS_PREFIX.len() + layer.to_string().len() + 1..];
        let (module, half) = if let Some(module) = rest.strip_suffix(".lora_A.weight") {
            (module, Half::A)
        } else if let Some(module) = rest.strip_suffix(".lora_B.weight") {
            (module, Half::B)
        } else {
            return Err(unknown());
        };
        let linear = LinearName::ALL.into_iter().find(|linear| linear.module() == module).ok_or_else(unknown)?;
        let layers = self.model.num_hidden_layers;
        if layer >= layers {
            return Err(self.misfit(&stored.name, format!("the base has {layers} layers, so there is no layer {layer}")));
        }
        Ok((layer, linear, half))
    }

    fn host(&self, stored: &StoredTensor) -> Result<HostTensor> {
        let Some(dtype) = stored.dtype.supported() else {
            let problem = format!("dtype {} is not computed; F32, F16 and BF16 are", stored.dtype);
            return Err(Error::unsupported(&self.file.path, format!("tensor {}", shown(&stored.name)), problem));
        };
        Ok(HostTensor {
            name: stored.name.clone(),
            file: self.file.path.clone(),
            dtype,
            shape: stored.shape.clone(),
            bytes: self.file.shared(stored)?,
        })
    }

    fn pair(&self, layer: usize, linear: LinearName, a: HostTensor, b: HostTensor) -> Result<AdapterPair> {
        let [outputs, inputs] = linear.shape(self.model);
        let r = a.shape.first().copied().unwrap_or(0);
        let module = module_name(layer, linear);
        #[expect(clippy::cast_precision_loss, reason = "a rank is small")]
        let as_configured = r as f64 == self.config.rank(&module) && r > 0;
        if !as_configured {
            let problem = format!("found shape {:?}, but {CONFIG} gives it the rank {}", a.shape, self.config.rank(&module));
            return Err(Error::data(&self.file.path, format!("tensor {}", a.name), problem));
        }
        for (tensor, expected) in [(&a, [r, inputs]), (&b, [outputs, r])] {
            if tensor.shape != expected {
                let problem = format!("found shape {:?}, expected {expected:?} for this base", tensor.shape);
                return Err(self.misfit(&tensor.name, problem));
            }
        }
        let scale = self.config.scale(&module, r);
        if !scale.is_finite() {
            return Err(Error::data(&self.file.path, format!("tensor {}", a.name), format!("its scale is {scale}")));
        }
        Ok(AdapterPair { a, b, scale })
    }

    /// Where the config lists linears and layers, exactly their pairs are there.
    fn check_targets(&self, pairs: &BTreeMap<(usize, LinearName), AdapterPair>) -> Result<()> {
        let Some(targets) = &self.config.targets else { return Ok(()) };
        let count = self.model.num_hidden_layers;
        let has_layer = |layer: usize| self.config.layers.as_ref().is_none_or(|layers| layers.contains(&layer));
        if let Some(layer) = self.config.layers.iter().flatten().find(|&&layer| layer >= count) {
            let problem = format!("the base has {count} layers, so there is no layer {layer}");
            return Err(Error::data(self.file.path.with_file_name(CONFIG), "key layers_to_transform", problem));
        }
        for &(layer, linear) in pairs.keys() {
            if !targets.contains(&linear) || !has_layer(layer) {
                let at = format!("tensor {}", tensor_name(layer, linear, Half::A));
                return Err(Error::data(&self.file.path, at, format!("{CONFIG} has no such pair: PEFT would leave it out")));
            }
        }
        for layer in (0..count).filter(|&layer| has_layer(layer)) {
            if let Some(&linear) = targets.iter().find(|&&linear| !pairs.contains_key(&(layer, linear))) {
                return Err(self.missing(&tensor_name(layer, linear, Half::A)));
            }
        }
        Ok(())
    }
}
