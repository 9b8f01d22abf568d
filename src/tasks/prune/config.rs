//! config.json of a shallower model: the depth, and every list that has one entry a layer.
//!
//! Which lists those are is told by their names. A list of an unknown name that happens to be as long as the model is deep
//! may be one: it is refused, because a config that is wrong in silence is worse than one that is not written.

use crate::error::{Error, Result};
use crate::model::LayerPlan;
use serde_json::{Map, Value};
use std::path::Path;

/// Lists with one entry a layer, in the names of transformers' models.
const PER_LAYER: [&str; 9] = [
    "layer_types",
    "no_rope_layers",
    "mlp_layer_types",
    "layers_block_type",
    "block_types",
    "attention_types",
    "num_key_value_heads_per_layer",
    "num_attention_heads_per_layer",
    "intermediate_sizes",
];

/// Lists of any length that have nothing to do with layers.
const OTHER: [&str; 20] = [
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "stop_token_ids",
    "id2label",
    "label2id",
    "languages",
    "language",
    "license",
    "tags",
    "datasets",
    "dataset",
    "mrope_section",
];

/// Lists whose entries *are* layer numbers, in models that we do not compute; renumbering them is not our guess to make.
const LAYER_NUMBERS: [&str; 3] = ["mlp_only_layers", "cross_attention_layers", "full_attn_idxs"];

/// Names of the depth.
const DEPTH: [&str; 4] = ["num_hidden_layers", "num_layers", "n_layers", "n_layer"];

/// config.json `raw` (at `path`, for messages) for the layers that `plan` keeps.
///
/// # Errors
/// [`Error::Unsupported`] naming a list that may have one entry a layer; [`Error::Data`] for a known one of another length.
pub(in crate::tasks) fn slice(path: &Path, raw: &Map<String, Value>, plan: &LayerPlan) -> Result<Map<String, Value>> {
    let mut config = raw.clone();
    Slicer { path, plan }.object("", &mut config)?;
    Ok(config)
}

struct Slicer<'a> {
    path: &'a Path,
    plan: &'a LayerPlan,
}

impl Slicer<'_> {
    /// `prefix` is `text_config.` inside that object, empty at the top.
    fn object(&self, prefix: &str, object: &mut Map<String, Value>) -> Result<()> {
        let layers = self.plan.num_hidden_layers();
        let kept = self.plan.kept().len();
        for (key, value) in object.iter_mut() {
            let at = || format!("key {prefix}{key}");
            let (name, length) = (key.as_str(), layers as u64);
            if DEPTH.contains(&name) && value.as_u64() == Some(length) {
                *value = Value::from(kept);
                continue;
            }
            if name == "max_window_layers" && value.as_u64().is_some_and(|n| n > kept as u64) {
                *value = Value::from(kept);
                continue;
            }
            if OTHER.contains(&name) {
                continue;
            }
            match value {
                Value::Array(list) if PER_LAYER.contains(&name) => {
                    if list.len() != layers {
                        let problem = format!("found {} entries, expected {layers}, one a layer", list.len());
                        return Err(Error::data(self.path, at(), problem));
                    }
                    let mut layer = 0;
                    list.retain(|_| {
                        layer += 1;
                        self.plan.keeps(layer - 1)
                    });
                }
                Value::Array(list) if LAYER_NUMBERS.contains(&name) && !list.is_empty() => {
                    return Err(Error::unsupported(self.path, at(), "names layers by number; such lists are not renumbered"));
                }
                Value::Array(list) if list.len() == layers => {
                    let problem = format!(
                        "a list of {layers} entries, as many as the model has layers; it is not known whether it has one a layer"
                    );
                    return Err(Error::unsupported(self.path, at(), problem));
                }
                Value::Array(list) => {
                    for item in list {
                        if let Value::Object(inner) = item {
                            self.object(&format!("{prefix}{key}."), inner)?;
                        }
                    }
                }
                Value::Object(inner) if is_keyed_by_layer(inner, layers) => {
                    let problem = format!("an object with the keys 0-{}; it is not known whether they are layers", layers - 1);
                    return Err(Error::unsupported(self.path, at(), problem));
                }
                // A model within the model (a vision tower) of another depth is not ours to change.
                Value::Object(inner) if inner.get(DEPTH[0]).is_some_and(|depth| depth.as_u64() != Some(length)) => {}
                Value::Object(inner) => self.object(&format!("{prefix}{key}."), inner)?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_keyed_by_layer(object: &Map<String, Value>, layers: usize) -> bool {
    object.len() == layers && (0..layers).all(|layer| object.contains_key(&layer.to_string()))
}
