//! A Hugging Face model folder: config.json and mapped safetensors, checked against each other on opening.

use super::config::DecoderConfig;
use super::layer_plan::LayerPlan;
use super::linear_name::LinearName;
use super::nf4_weights::gather;
use super::safetensors::{SafetensorsFile, StoredTensor, shown};
use super::shard_index::WeightFiles;
use super::tensor_set::{is_ignored, layer_of, layer_tensors, outer_tensors};
use crate::error::{Error, Result};
use crate::io;
use crate::quant::Nf4Tensor;
use crate::quant::checkpoint::CONFIG_KEY;
use crate::tensor::{Dtype, HostTensor};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Name of the file that describes a model.
pub const CONFIG: &str = "config.json";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// An opened model folder. Tensors stay mapped as long as any clone of them lives.
#[derive(Debug)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// config.json, checked.
    pub config: DecoderConfig,
    /// config.json as it stands.
    pub raw_config: Map<String, Value>,
    /// The files that hold the tensors.
    pub(super) files: WeightFiles,
    /// Tensors in a dtype that is computed with.
    pub(super) tensors: BTreeMap<String, HostTensor>,
    /// Matrices in four bits.
    pub(super) nf4: BTreeMap<String, Nf4Tensor>,
    /// Tensors that are there but take no part: saved rotary frequencies, a second copy of a tied embedding.
    pub(super) unused: BTreeSet<String>,
}

/// Reads a folder's config.json.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] when it is not a JSON object.
pub fn read_config(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join(CONFIG);
    match serde_json::from_str(&io::read_text(&path)?) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::data(&path, "", "expected a JSON object")),
        Err(e) => Err(Error::data(&path, "", format!("not valid JSON: {e}"))),
    }
}

impl ModelFolder {
    /// Opens and checks a folder: every tensor the config demands is there in its shape, and nothing else, but for
    /// saved rotary frequencies and a head that equals the embedding it is tied to. Reads no tensor (that head apart).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Data`], [`Error::Unsupported`], each naming the file and the key or tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let raw_config = read_config(path)?;
        let config = DecoderConfig::from_json(&path.join(CONFIG), &raw_config)?;
        let files = WeightFiles::open(path)?;
        let (nf4, parts_of_nf4) = gather(&files)?;
        let mut tensors = BTreeMap::new();
        for shard in &files.shards {
            for stored in shard.header.tensors.iter().filter(|stored| !parts_of_nf4.contains(&stored.name)) {
                tensors.insert(stored.name.clone(), host_tensor(shard, stored)?);
            }
        }
        let mut folder = Self { path: path.to_path_buf(), config, raw_config, files, tensors, nf4, unused: BTreeSet::new() };
        folder.check_quantisation()?;
        folder.check_tensors()?;
        Ok(folder)
    }

    /// A tensor by its name in the file.
    ///
    /// # Errors
    /// [`Error::Data`] when there is none of that name.
    pub fn tensor(&self, name: &str) -> Result<&HostTensor> {
        self.tensors.get(name).ok_or_else(|| Error::data(&self.path, format!("tensor {}", shown(name)), "missing"))
    }

    /// All tensors but those in four bits ([`ModelFolder::nf4`]), sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &HostTensor> {
        self.tensors.values()
    }

    /// Those of layer `layer`, sorted by name; none for a layer that does not exist.
    pub fn layer_tensors(&self, layer: usize) -> impl Iterator<Item = &HostTensor> {
        let prefix = format!("{}{layer}.", super::tensor_set::LAYERS_PREFIX);
        self.tensors.range(prefix.clone()..).map(|(_, t)| t).take_while(move |t| t.name.starts_with(&prefix))
    }

    /// True for a tensor that is in the file but takes no part in the model: saved rotary frequencies, a second copy of
    /// a tied embedding.
    #[must_use]
    pub fn is_unused(&self, name: &str) -> bool {
        self.unused.contains(name)
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.stored().map(|t| t.range.len() as u64).sum()
    }

    /// Number of parameters, a tied embedding counted once.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.used().map(|t| t.len() as u64).sum::<u64>() + self.nf4.values().map(|t| t.len() as u64).sum::<u64>()
    }

    /// Parameters of one layer.
    #[must_use]
    pub fn layer_parameters(&self, layer: usize) -> u64 {
        let dense: u64 = self.layer_tensors(layer).filter(|t| !self.is_unused(&t.name)).map(|t| t.len() as u64).sum();
        dense + self.nf4.values().filter(|t| layer_of(&t.name) == Some(layer)).map(|t| t.len() as u64).sum::<u64>()
    }

    /// All tensors of the files, parts of NF4 matrices each by itself.
    pub fn stored(&self) -> impl Iterator<Item = &StoredTensor> {
        self.files.shards.iter().flat_map(|shard| &shard.header.tensors)
    }

    /// Those of layer `layer`.
    pub fn layer_stored(&self, layer: usize) -> impl Iterator<Item = &StoredTensor> {
        self.stored().filter(move |stored| layer_of(&stored.name) == Some(layer))
    }

    /// Parameters and bytes that are left when only the plan's layers are kept.
    #[must_use]
    pub fn size_under(&self, plan: &LayerPlan) -> (u64, u64) {
        let gone = plan.removed();
        let parameters: u64 = gone.iter().map(|&layer| self.layer_parameters(layer)).sum();
        let bytes: u64 = gone.iter().flat_map(|&layer| self.layer_stored(layer)).map(|t| t.range.len() as u64).sum();
        (self.parameters() - parameters, self.bytes() - bytes)
    }

    /// Bytes of all weights in a device's memory when it multiplies in `dtype`; what is in four bits stays so.
    #[must_use]
    pub fn bytes_in(&self, dtype: Dtype) -> u64 {
        let dense: u64 = self.used().map(|t| t.len() as u64).sum();
        let nf4: u64 = self.nf4.values().map(|t| t.codes.as_slice().len() as u64 + 4 * t.absmax.len() as u64).sum();
        dense * dtype.size() as u64 + nf4
    }

    /// The dtypes that occur, each with its number of parameters, in the order f32, f16, bf16; of a matrix in four bits
    /// what it was quantised from.
    #[must_use]
    pub fn dtypes(&self) -> Vec<(Dtype, u64)> {
        [Dtype::F32, Dtype::F16, Dtype::Bf16]
            .into_iter()
            .map(|dtype| {
                let dense: u64 = self.used().filter(|t| t.dtype == dtype).map(|t| t.len() as u64).sum();
                (dtype, dense + self.nf4.values().filter(|t| t.dtype == dtype).map(|t| t.len() as u64).sum::<u64>())
            })
            .filter(|(_, parameters)| *parameters > 0)
            .collect()
    }

    /// The weight files, for those who copy them.
    #[must_use]
    pub fn files(&self) -> &WeightFiles {
        &self.files
    }

    pub(super) fn used(&self) -> impl Iterator<Item = &HostTensor> {
        self.tensors.values().filter(|t| !self.unused.contains(&t.name))
    }

    /// Only linears of layers are in four bits, and config.json says so.
    fn check_quantisation(&self) -> Result<()> {
        let config = self.path.join(CONFIG);
        let said = self.raw_config.get(CONFIG_KEY).is_some_and(|value| !value.is_null());
        match self.nf4.values().next() {
            None if said => Err(Error::data(config, format!("key {CONFIG_KEY}"), "is there, but no tensor is quantised")
                .with_help("remove the key: the weights are whole")),
            Some(tensor) if !said => Err(Error::data(config, format!("key {CONFIG_KEY}"), "missing")
                .with_help(format!("{} is in four bits: transformers would not read it", tensor.name))),
            _ => self.nf4.values().find(|t| !is_linear(&t.name)).map_or(Ok(()), |t| {
                let problem = "is in four bits: only the linears of layers are computed so";
                Err(Error::unsupported(&t.file, format!("tensor {}", shown(&t.name)), problem))
            }),
        }
    }

    /// Names every tensor that is missing, misshaped or not part of the model (the first, and how many more).
    fn check_tensors(&mut self) -> Result<()> {
        let per_layer = layer_tensors(&self.config);
        let outer = outer_tensors(&self.config);
        let mut expected: BTreeMap<String, &[usize]> = BTreeMap::new();
        for (name, shape) in &outer {
            expected.insert((*name).to_owned(), shape);
        }
        // A config that claims thousands of layers for a small file must not cost memory: one that is missing is enough.
        let mut missing = 0;
        let mut first_missing = None;
        'layers: for layer in 0..self.config.num_hidden_layers {
            for (name, shape) in &per_layer {
                let name = format!("{}{layer}.{name}", super::tensor_set::LAYERS_PREFIX);
                if self.tensors.contains_key(&name) || self.nf4.contains_key(&name) {
                    expected.insert(name, shape);
                } else {
                    first_missing.get_or_insert(name);
                    missing += 1;
                    if missing > self.tensors.len() {
                        break 'layers;
                    }
                }
            }
        }
        let absent: Vec<&str> = outer.iter().map(|(name, _)| *name).filter(|name| !self.tensors.contains_key(*name)).collect();
        missing += absent.len();
        if let Some(name) = absent.first().map(|s| (*s).to_owned()).or(first_missing) {
            let more = more(missing);
            return Err(Error::data(&self.path, format!("tensor {name}"), format!("missing{more}"))
                .with_help("config.json and weights do not belong together, or a shard is incomplete"));
        }
        for (name, shape) in &expected {
            let (found, file) = match self.nf4.get(name) {
                Some(nf4) => (&nf4.shape[..], &nf4.file),
                None => self.tensor(name).map(|tensor| (tensor.shape.as_slice(), &tensor.file))?,
            };
            if found != *shape {
                let problem = format!("found shape {found:?}, expected {shape:?} by config.json");
                return Err(Error::data(file, format!("tensor {name}"), problem));
            }
        }
        let tied = self.config.tie_word_embeddings;
        let extra: Vec<&HostTensor> = self
            .tensors
            .values()
            .filter(|t| !(expected.contains_key(&t.name) || is_ignored(&t.name) || tied && t.name == HEAD))
            .collect();
        if let Some(tensor) = extra.first() {
            let layers = self.config.num_hidden_layers;
            let problem = match layer_of(&tensor.name) {
                Some(layer) if layer >= layers => format!("config.json says {layers} layers, so there is no layer {layer}"),
                _ => format!("not part of a {} with this config.json", self.config.architecture),
            };
            let at = format!("tensor {}", shown(&tensor.name));
            return Err(Error::data(&tensor.file, at, format!("{problem}{}", more(extra.len()))));
        }
        self.unused = self.tensors.keys().filter(|name| !expected.contains_key(*name)).cloned().collect();
        if tied && let Some(head) = self.tensors.get(HEAD) {
            let embedding = self.tensor(EMBEDDING)?;
            let equal = head.shape == embedding.shape
                && head.dtype == embedding.dtype
                && head.bytes.as_slice() == embedding.bytes.as_slice();
            if !equal {
                let problem = format!("differs from {EMBEDDING}, but tie_word_embeddings says that they are one");
                return Err(Error::data(&head.file, format!("tensor {HEAD}"), problem)
                    .with_help("set tie_word_embeddings to false in config.json if the head was trained apart"));
            }
        }
        Ok(())
    }
}

/// True for `model.layers.N.MODULE.weight` of a linear.
fn is_linear(name: &str) -> bool {
    layer_of(name).is_some_and(|layer| {
        let rest = &name[super::tensor_set::LAYERS_PREFIX.len() + layer.to_string().len() + 1..];
        LinearName::ALL.iter().any(|linear| rest.strip_suffix(".weight") == Some(linear.module()))
    })
}

fn more(count: usize) -> String {
    if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() }
}

fn host_tensor(shard: &SafetensorsFile, stored: &StoredTensor) -> Result<HostTensor> {
    let Some(dtype) = stored.dtype.supported() else {
        let problem = format!("dtype {} is not computed; F32, F16 and BF16 are", stored.dtype);
        return Err(Error::unsupported(&shard.path, format!("tensor {}", shown(&stored.name)), problem));
    };
    Ok(HostTensor {
        name: stored.name.clone(),
        file: shard.path.clone(),
        dtype,
        shape: stored.shape.clone(),
        bytes: shard.shared(stored)?,
    })
}
