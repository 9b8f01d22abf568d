//! What a training leaves behind: an adapter as PEFT saves it, or a model folder with the trained weights.

use crate::error::{Error, Result};
use crate::io::{self, NewFolder};
use crate::model::ModelFolder;
use crate::model::adapter::{AdapterConfig, Half, PairValues, tensor_name, write};
use crate::model::folder::CONFIG;
use crate::model::train::{Differentiable, LoraSpec};
use crate::ops::TrainingBackend;
use crate::progress::Silent;
use crate::tasks::prune::{PROVENANCE, carry, config, weights, write_json};
use crate::tensor::Dtype;
use half::{bf16, f16};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// An adapter to write.
#[derive(Debug, Clone)]
pub struct AdapterOutput {
    /// Folder it goes to.
    pub out: PathBuf,
    /// What adapter_config.json calls its base.
    pub base: String,
    /// Its options.
    pub spec: LoraSpec,
}

impl AdapterOutput {
    /// Writes the pairs as they are.
    ///
    /// # Errors
    /// [`Error::Io`]; those of the device.
    pub fn write<B: TrainingBackend>(&self, model: &Differentiable<B>) -> Result<()> {
        let backend = model.decoder().backend();
        let mut values: HashMap<&str, Vec<f32>> = HashMap::new();
        for parameter in model.parameters() {
            values.insert(&parameter.name, backend.download(&parameter.value)?);
        }
        let mut pairs = Vec::new();
        for &layer in model.plan().kept() {
            for &linear in &self.spec.targets {
                let half = |half| values.get(tensor_name(layer, linear, half).as_str()).map(Vec::as_slice);
                if let (Some(a), Some(b)) = (half(Half::A), half(Half::B)) {
                    pairs.push(PairValues { layer, linear, a, b });
                }
            }
        }
        let skipped = !model.plan().removed().is_empty();
        let config = AdapterConfig {
            r: self.spec.r,
            alpha: f64::from(self.spec.alpha),
            rslora: self.spec.rslora,
            dropout: f64::from(self.spec.dropout),
            targets: Some(self.spec.targets.clone()),
            layers: skipped.then(|| model.plan().kept().to_vec()),
            base: self.base.clone(),
            ranks: Vec::new(),
            alphas: Vec::new(),
        };
        write(&self.out, &config, &pairs)
    }
}

/// A model folder to write: the original's files, with the trained tensors in their own dtype and without the layers that
/// were skipped.
#[derive(Debug, Clone)]
pub struct ModelOutput {
    /// Folder it goes to.
    pub out: PathBuf,
    /// The original.
    pub model: PathBuf,
}

impl ModelOutput {
    /// Writes all files beside their places, then moves each to its own, config.json last.
    ///
    /// # Errors
    /// [`Error::Io`]; those of `prune` for a config that cannot be made shallower.
    pub fn write<B: TrainingBackend>(&self, trained: &Differentiable<B>) -> Result<()> {
        let (model, plan) = (trained.decoder().folder(), trained.plan());
        let named = |name: &str| self.out.join(name);
        let new_config = config::slice(&self.model.join(CONFIG), &model.raw_config, plan)?;
        let folder = NewFolder::begin(&self.out.join("model"), true)?;
        let layout = weights::layout(model, plan)?;
        weights::write(&layout, folder.path(), &named, &|name| changed(trained, model, name), &Silent)?;
        let own: Vec<String> = model.files().shards.iter().map(|shard| weights::file_name(&shard.path)).collect();
        carry::copy(&self.model, folder.path(), &own, &named)?;
        let provenance = json!({
            "schema": 1,
            "prunectl": env!("CARGO_PKG_VERSION"),
            "command": "train-qlora",
            "source": {"path": self.model, "fingerprint": model.fingerprint(), "num_hidden_layers": plan.num_hidden_layers()},
            "removed": plan.removed(),
            "keep": plan.kept(),
            "trained": trained.parameters().iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
        });
        write_json(&folder.path().join(PROVENANCE), &named(PROVENANCE), &provenance)?;
        write_json(&folder.path().join(CONFIG), &named(CONFIG), &Value::Object(new_config))?;
        ModelFolder::open(folder.path())?;
        move_files(folder.path(), &self.out)
    }
}

/// A tensor's trained bytes, in its own dtype; `None` for one that was not trained. `name` as in the original.
fn changed<B: TrainingBackend>(trained: &Differentiable<B>, model: &ModelFolder, name: &str) -> Result<Option<Vec<u8>>> {
    // A second copy of a tied embedding in the file must stay the same as the first.
    let tied = model.config.tie_word_embeddings && name == "lm_head.weight";
    let wanted = if tied { "model.embed_tokens.weight" } else { name };
    let Some(parameter) = trained.parameters().iter().find(|p| p.name == wanted) else { return Ok(None) };
    let values = trained.decoder().backend().download(&parameter.value)?;
    Ok(Some(match model.tensor(name)?.dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }))
}

/// Moves the files of `from` into `to`, each in one step; config.json comes last: where it is new, all are.
fn move_files(from: &Path, to: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(from).map_err(Error::io("read", from))? {
        names.push(entry.map_err(Error::io("read", from))?.file_name());
    }
    names.sort_by_key(|name| name == CONFIG);
    for name in names {
        let (source, target) = (from.join(&name), to.join(&name));
        std::fs::File::open(&source).and_then(|file| file.sync_all()).map_err(Error::io("sync", &target))?;
        std::fs::rename(&source, &target).map_err(Error::io("rename to", &target))?;
    }
    io::sync_folder(to)
}
