//! Models of random weights, for measuring speed without files.

use super::config::DecoderConfig;
use super::folder::ModelFolder;
use super::shard_index::WeightFiles;
use super::tensor_set::{LAYERS_PREFIX, layer_tensors, outer_tensors};
use crate::error::{Error, Result};
use crate::random::SplitMix64;
use crate::tensor::{Dtype, HostTensor, SharedBytes};
use half::bf16;
use rayon::prelude::*;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Weights lie between this and its negative.
const LARGEST: f32 = 0.04;
/// Elements beyond the largest tensor's, so that its like differ.
const SPARE: usize = 1 << 16;
/// Elements that one task makes.
const CHUNK: usize = 1 << 16;

impl ModelFolder {
    /// A model with this config.json and random bf16 weights; norms are 1. Tensors are windows of one run of random numbers:
    /// together they take no more memory than the largest of them. `name` stands for the folder, which does not exist.
    ///
    /// # Errors
    /// [`Error::Data`] and [`Error::Unsupported`] for the config.
    pub fn random(name: &str, raw_config: Map<String, Value>, seed: u64) -> Result<Self> {
        let path = PathBuf::from(name);
        let config = DecoderConfig::from_json(&path, &raw_config)?;
        let layers = (0..config.num_hidden_layers).flat_map(|layer| {
            let of_layer = layer_tensors(&config).into_iter();
            of_layer.map(move |(name, shape)| (format!("{LAYERS_PREFIX}{layer}.{name}"), shape))
        });
        let outer = outer_tensors(&config).into_iter().map(|(name, shape)| (name.to_owned(), shape));
        let set: Vec<(String, Vec<usize>)> = outer.chain(layers).collect();
        let most = set.iter().map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap_or(0);
        let numbers = Run::random(most + SPARE, seed);
        let ones = Run(Arc::new(bf16::ONE.to_le_bytes().repeat(config.hidden_size.max(config.heads().q_cols()))));
        let mut place = SplitMix64::new(seed);
        let mut tensors = BTreeMap::new();
        for (name, shape) in set {
            let from = if name.ends_with("norm.weight") { &ones } else { &numbers };
            let tensor = from.window(&path, &name, shape, &mut place)?;
            tensors.insert(name, tensor);
        }
        let files = WeightFiles { index: None, shards: Vec::new() };
        Ok(Self { path, config, raw_config, files, tensors, nf4: BTreeMap::new(), unused: BTreeSet::new() })
    }
}

/// bf16 numbers that tensors are cut from.
struct Run(Arc<Vec<u8>>);

impl Run {
    fn random(len: usize, seed: u64) -> Self {
        let mut bytes = vec![0; 2 * len];
        bytes.par_chunks_mut(2 * CHUNK).enumerate().for_each(|(chunk, bytes)| {
            let mut random = SplitMix64::new(seed ^ (chunk as u64) << 32);
            for four in bytes.chunks_mut(8) {
                let drawn = random.next_u64().to_le_bytes();
                for (to, from) in four.as_chunks_mut::<2>().0.iter_mut().zip(drawn.as_chunks::<2>().0) {
                    let number = f32::from(i16::from_le_bytes(*from)) / 32768.0 * LARGEST;
                    *to = bf16::from_f32(number).to_le_bytes();
                }
            }
        });
        Self(Arc::new(bytes))
    }

    /// A tensor that begins at a random element.
    fn window(&self, file: &Path, name: &str, shape: Vec<usize>, place: &mut SplitMix64) -> Result<HostTensor> {
        let (len, all) = (2 * shape.iter().product::<usize>(), self.0.len());
        let spare = all.saturating_sub(len) as u64 / 2;
        let start = usize::try_from(place.below(spare + 1)).unwrap_or(0) * 2;
        let bytes = SharedBytes::new(self.0.clone(), start..start + len)
            .ok_or_else(|| Error::shape("random", "weights", &[len], &[all]))?;
        Ok(HostTensor { name: name.to_owned(), file: file.to_path_buf(), dtype: Dtype::Bf16, shape, bytes })
    }
}
