//! The NF4 matrices of a folder: read from a checkpoint, or quantised on loading.

use super::folder::ModelFolder;
use super::linear_name::LinearName;
use super::safetensors::{SafetensorsFile, StoredTensor, shown};
use super::shard_index::WeightFiles;
use super::tensor_set::LAYERS_PREFIX;
use crate::error::{Error, Result};
use crate::quant::Nf4Tensor;
use crate::quant::checkpoint::{self, Stored};
use crate::tensor::HostTensor;
use std::collections::{BTreeMap, BTreeSet};

/// A matrix of a folder.
#[derive(Debug, Clone, Copy)]
pub enum Weight<'a> {
    /// In the file's bytes.
    Dense(&'a HostTensor),
    /// In four bits.
    Nf4(&'a Nf4Tensor),
}

/// The NF4 matrices, and the names of all tensors that they consist of.
pub(super) type Nf4Set = (BTreeMap<String, Nf4Tensor>, BTreeSet<String>);

/// Puts the NF4 matrices of `files` together.
pub(super) fn gather(files: &WeightFiles) -> Result<Nf4Set> {
    let mut by_name: BTreeMap<&str, (&SafetensorsFile, &StoredTensor)> = BTreeMap::new();
    for shard in &files.shards {
        by_name.extend(shard.header.tensors.iter().map(|stored| (stored.name.as_str(), (shard, stored))));
    }
    if let Some((name, (shard, _))) = by_name.iter().find(|(name, _)| checkpoint::is_other_state(name)) {
        return Err(Error::unsupported(&shard.path, format!("tensor {}", shown(name)), "fp4 is not computed; nf4 is"));
    }
    let mut matrices = BTreeMap::new();
    for name in by_name.keys().filter_map(|name| checkpoint::matrix_of_state(name)) {
        let part = |name: &str| {
            let (shard, stored) = by_name.get(name)?;
            let bytes = shard.shared(stored).ok()?;
            Some(Stored { file: &shard.path, dtype: stored.dtype.name(), bytes })
        };
        matrices.insert(name.to_owned(), checkpoint::read(name, part)?);
    }
    let belongs = |name: &str| {
        let matrix = checkpoint::matrix_of_state(name).or_else(|| checkpoint::matrix_of_part(name)).unwrap_or(name);
        matrices.contains_key(matrix)
    };
    let names = by_name.keys().filter(|name| belongs(name)).map(|name| (*name).to_owned()).collect();
    Ok((matrices, names))
}

/// The names of the linears of a layer: those that are quantised.
pub fn linear_names(num_hidden_layers: usize) -> impl Iterator<Item = String> {
    (0..num_hidden_layers).flat_map(|layer| {
        LinearName::ALL.into_iter().map(move |linear| format!("{LAYERS_PREFIX}{layer}.{}.weight", linear.module()))
    })
}

impl ModelFolder {
    /// Quantises the linears of all layers that are not NF4 yet, as `prunectl quantize` would write them: the folder is then
    /// used like one that holds them so. They stay in memory, 0.5625 bytes a weight.
    ///
    /// # Errors
    /// [`Error::Data`] naming a weight that is not finite.
    pub fn quantise_nf4(&mut self, double_quant: bool) -> Result<()> {
        for name in linear_names(self.config.num_hidden_layers) {
            if let Some(dense) = self.tensors.remove(&name) {
                self.nf4.insert(name, Nf4Tensor::quantise(&dense, double_quant)?);
            }
        }
        Ok(())
    }

    /// A matrix by its name, whatever it is stored as.
    ///
    /// # Errors
    /// [`Error::Data`] when there is none of that name.
    pub fn weight(&self, name: &str) -> Result<Weight<'_>> {
        match self.nf4.get(name) {
            Some(nf4) => Ok(Weight::Nf4(nf4)),
            None => self.tensor(name).map(Weight::Dense),
        }
    }

    /// The NF4 matrices, sorted by name.
    pub fn nf4(&self) -> impl ExactSizeIterator<Item = &Nf4Tensor> {
        self.nf4.values()
    }
}
