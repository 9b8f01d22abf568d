//! What a model folder holds and what can be done with it. A model that is not computed is still shown as far as its
//! files can be read, with the reason by name.

use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::folder::{CONFIG, read_config};
use crate::model::shard_index::WeightFiles;
use crate::model::{DecoderConfig, ModelFolder, RopeScaling};
use crate::tasks::prune::PROVENANCE;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is known of a folder. Fields that its files do not tell are `None` or empty.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The folder.
    pub path: PathBuf,
    /// True if this program computes the model.
    pub supported: bool,
    /// Why not, and whatever else is wrong.
    pub problems: Vec<Problem>,
    /// `architectures[0]` of config.json.
    pub architecture: Option<String>,
    /// `model_type` of config.json.
    pub model_type: Option<String>,
    /// Depth.
    pub num_hidden_layers: Option<u64>,
    /// The rest of config.json that matters, for a model that is computed.
    pub shape: Option<Shape>,
    /// Parameters in all, a tied embedding counted once.
    pub parameters: Option<u64>,
    /// Parameters of each layer.
    pub parameters_per_layer: Vec<u64>,
    /// Parameters outside the layers: embedding, final norm, head.
    pub parameters_outside_layers: Option<u64>,
    /// Bytes of all tensors.
    pub bytes: Option<u64>,
    /// The dtypes that occur, most bytes first.
    pub dtypes: Vec<DtypeShare>,
    /// The weight files.
    pub weight_files: Vec<WeightFile>,
    /// The tokenizer.
    pub tokenizer: TokenizerState,
    /// What each command makes of it.
    pub commands: Vec<Ability>,
    /// Identity of the weights ([`ModelFolder::fingerprint`]).
    pub fingerprint: Option<String>,
    /// Content of prunectl.json, where prunectl made the folder.
    pub prunectl: Option<Value>,
    /// True if every weight was read and is finite; `None` if that was not asked for or could not be done.
    pub finite: Option<bool>,
}

/// Something that is wrong with a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// True for a valid option that this program does not compute, false for damage.
    pub unsupported: bool,
    /// The message of the error, which names file and key.
    pub message: String,
    /// Remedy, if there is one.
    pub help: Option<String>,
}

impl Problem {
    fn of(error: &Error) -> Self {
        let unsupported = matches!(error, Error::Unsupported { .. });
        Self { unsupported, message: error.to_string(), help: if unsupported { None } else { error.help() } }
    }
}

/// config.json, in its own names.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are config.json's own, explained at DecoderConfig")]
pub struct Shape {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rope_theta: f64,
    pub rope_type: &'static str,
    pub tie_word_embeddings: bool,
}

impl Shape {
    fn of(c: &DecoderConfig) -> Self {
        Self {
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_attention_heads: c.num_attention_heads,
            num_key_value_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            vocab_size: c.vocab_size,
            max_position_embeddings: c.max_position_embeddings,
            rope_theta: c.rope_theta,
            rope_type: match c.rope_scaling {
                RopeScaling::Default => "default",
                RopeScaling::Linear { .. } => "linear",
                RopeScaling::Llama3 { .. } => "llama3",
            },
            tie_word_embeddings: c.tie_word_embeddings,
        }
    }
}

/// What is stored in one dtype.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DtypeShare {
    /// As safetensors spells it: `BF16`.
    pub dtype: &'static str,
    /// Number of tensors.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One weight file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WeightFile {
    /// Its name.
    pub name: String,
    /// Tensors in it.
    pub tensors: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What is known of the tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenizerState {
    /// True if there is a tokenizer.json.
    pub present: bool,
    /// Entries of its vocabulary.
    pub vocab_size: Option<usize>,
    /// True if the folder has a chat template.
    pub chat_template: bool,
    /// Ids that end a generation.
    pub eos_ids: Vec<u32>,
}

/// What one command makes of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ability {
    /// Name of the command.
    pub command: &'static str,
    /// Whether it works.
    pub possible: bool,
    /// What it needs, or why not.
    pub note: Option<String>,
}

/// Looks at a folder. With `check_finite` every weight is read.
///
/// # Errors
/// [`Error::Io`] or [`Error::Data`] when config.json cannot be read at all. All else that is wrong stands in
/// [`Report::problems`].
pub fn inspect(path: &Path, check_finite: bool) -> Result<Report> {
    let raw = read_config(path)?;
    let mut problems = Vec::new();
    let mut problem = |error: &Error| {
        let problem = Problem::of(error);
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    };
    let model = ModelFolder::open(path).inspect_err(&mut problem).ok();
    // Where config and weights are both at fault, both are told.
    let config = DecoderConfig::from_json(&path.join(CONFIG), &raw).inspect_err(&mut problem).ok();
    let files = match &model {
        Some(model) => Some(model.files().clone()),
        None => WeightFiles::open(path).inspect_err(&mut problem).ok(),
    };
    let mut finite = None;
    if let (true, Some(model)) = (check_finite, &model) {
        finite = Some(model.check_finite().inspect_err(&mut problem).is_ok());
    }
    let tokenizer = tokenizer(path, config.as_ref(), &mut problem);
    let prunectl = read_provenance(path);
    let supported = model.is_some() && finite != Some(false);
    let mut report = Report {
        path: path.to_path_buf(),
        supported,
        problems,
        architecture: first_text(&raw, "architectures"),
        model_type: raw.get("model_type").and_then(Value::as_str).map(str::to_owned),
        num_hidden_layers: raw.get("num_hidden_layers").and_then(Value::as_u64),
        shape: config.as_ref().map(Shape::of),
        parameters: None,
        parameters_per_layer: Vec::new(),
        parameters_outside_layers: None,
        bytes: None,
        dtypes: Vec::new(),
        weight_files: Vec::new(),
        commands: abilities(supported, &tokenizer),
        tokenizer,
        fingerprint: model.as_ref().map(ModelFolder::fingerprint),
        prunectl,
        finite,
    };
    if let Some(files) = files {
        count(&files, model.as_ref(), &mut report);
    }
    Ok(report)
}

/// Fills in what the headers of the weight files tell.
fn count(files: &WeightFiles, model: Option<&ModelFolder>, report: &mut Report) {
    let mut by_dtype: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    let mut by_layer: BTreeMap<usize, u64> = BTreeMap::new();
    let (mut parameters, mut bytes) = (0_u64, 0_u64);
    for shard in &files.shards {
        for tensor in &shard.header.tensors {
            let (elements, size) = (tensor.len() as u64, tensor.range.len() as u64);
            let share = by_dtype.entry(tensor.dtype).or_default();
            *share = (share.0 + 1, share.1.saturating_add(size));
            bytes = bytes.saturating_add(size);
            if model.is_some_and(|m| m.is_unused(&tensor.name)) {
                continue;
            }
            parameters = parameters.saturating_add(elements);
            if let Some(layer) = any_layer(&tensor.name) {
                let sum = by_layer.entry(layer).or_default();
                *sum = sum.saturating_add(elements);
            }
        }
        report.weight_files.push(WeightFile {
            name: shard.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
            tensors: shard.header.tensors.len(),
            bytes: shard.bytes().len() as u64,
        });
    }
    report.dtypes =
        by_dtype.into_iter().map(|(dtype, (tensors, bytes))| DtypeShare { dtype: dtype.name(), tensors, bytes }).collect();
    report.dtypes.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    report.parameters_outside_layers = Some(parameters.saturating_sub(by_layer.values().sum()));
    // Layers with numbers in between missing have no list: it would give the wrong ones to the rest.
    if by_layer.keys().copied().eq(0..by_layer.len()) {
        report.parameters_per_layer = by_layer.into_values().collect();
    }
    report.parameters = Some(parameters);
    if let Some(model) = model.filter(|model| model.nf4().len() > 0) {
        // Bytes of codes are not parameters.
        let layers: Vec<u64> = (0..model.config.num_hidden_layers).map(|layer| model.layer_parameters(layer)).collect();
        report.parameters = Some(model.parameters());
        report.parameters_outside_layers = Some(model.parameters().saturating_sub(layers.iter().sum()));
        report.parameters_per_layer = layers;
    }
    report.bytes = Some(bytes);
}

/// The layer in a tensor's name, in the spellings of many models: `model.layers.3.…`, `transformer.h.3.…`.
fn any_layer(name: &str) -> Option<usize> {
    let parts: Vec<&str> = name.split('.').collect();
    parts.windows(2).find(|pair| matches!(pair[0], "layers" | "h" | "blocks" | "block")).and_then(|pair| pair[1].parse().ok())
}

fn first_text(raw: &Map<String, Value>, key: &str) -> Option<String> {
    raw.get(key)?.as_array()?.first()?.as_str().map(str::to_owned)
}

fn tokenizer(path: &Path, config: Option<&DecoderConfig>, problem: &mut impl FnMut(&Error)) -> TokenizerState {
    let mut state = TokenizerState { present: false, vocab_size: None, chat_template: false, eos_ids: Vec::new() };
    let file = path.join("tokenizer.json");
    if !file.exists() {
        return state;
    }
    state.present = true;
    match Tokenizer::open(path) {
        Err(error) => problem(&error),
        Ok(tokenizer) => {
            state.vocab_size = Some(tokenizer.vocab_size());
            state.chat_template = tokenizer.has_chat_template();
            state.eos_ids = tokenizer.eos_ids().to_vec();
            if let Some(config) = config
                && tokenizer.vocab_size() > config.vocab_size
            {
                let (has, rows) = (tokenizer.vocab_size(), config.vocab_size);
                problem(&Error::data(&file, "", format!("has {has} tokens, but the model's vocab_size is {rows}")));
            }
        }
    }
    state
}

/// prunectl.json, if it is there and is JSON. It takes no part in any computation, so damage to it is no problem.
fn read_provenance(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path.join(PROVENANCE)).ok()?).ok()
}

fn abilities(supported: bool, tokenizer: &TokenizerState) -> Vec<Ability> {
    let readable = tokenizer.vocab_size.is_some();
    ["scan", "prune", "eval", "translate"]
        .into_iter()
        .map(|command| {
            let needs_text = command != "prune";
            let (possible, note) = match (supported, readable || !needs_text) {
                (false, _) => (false, Some("see problems".to_owned())),
                (true, true) => (true, None),
                (true, false) if command == "translate" => (false, Some("needs a tokenizer.json".to_owned())),
                (true, false) => {
                    (true, Some("with tokenised data only (input_ids): there is no usable tokenizer.json".to_owned()))
                }
            };
            Ability { command, possible, note }
        })
        .collect()
}
