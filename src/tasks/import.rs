//! GGUF to a Hugging Face folder.

use crate::error::{Error, Result};
use crate::gguf::{Gguf, decoder, shards, tokenizer};
use crate::io::NewFolder;
use crate::progress::Progress;
use crate::tensor::Dtype;
use serde::Serialize;
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to import.
#[derive(Debug, Clone)]
pub struct Request {
    /// The GGUF file.
    pub file: PathBuf,
    /// The folder to make.
    pub out: PathBuf,
    /// Replace `out` if it exists.
    pub force: bool,
    /// Element type of what is written.
    pub dtype: Dtype,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The GGUF file.
    pub file: PathBuf,
    /// The new folder.
    pub out: PathBuf,
    /// `LlamaForCausalLM` and so on.
    pub architecture: String,
    /// The model's name, where the file gives one.
    pub name: Option<String>,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Number of tensors written.
    pub tensors: usize,
    /// Number of weights written.
    pub parameters: usize,
    /// Bytes of tensors written.
    pub bytes: usize,
    /// Number of safetensors files.
    pub shards: usize,
    /// Element type written: `bf16`, `f16`, `f32`.
    pub dtype: String,
    /// How the source stored its tensors: type and number of tensors.
    pub source_types: BTreeMap<String, usize>,
    /// Kind of tokenizer: `byte-level BPE (smollm)`.
    pub tokenizer: String,
    /// Tokens.
    pub vocab_size: usize,
    /// Whether the file carries a chat template.
    pub chat_template: bool,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Converts the file. Everything is checked before the first byte is written, and the folder appears only when complete.
///
/// # Errors
/// [`Error::Request`] if the folder exists; [`Error::Data`] or [`Error::Unsupported`] naming the file and the key or tensor;
/// [`Error::Io`]; [`Error::Interrupted`].
pub fn run(request: &Request, progress: &dyn Progress) -> Result<Report> {
    let started = Instant::now();
    let gguf = Gguf::open(&request.file)?;
    let plan = decoder::plan(&gguf)?;
    let tokenizer = tokenizer::convert(&gguf, plan.vocab_size, plan.max_position_embeddings)?;
    let folder = NewFolder::begin(&request.out, request.force)?;

    let mut config = plan.config;
    config.insert("torch_dtype".into(), decoder::torch_dtype(request.dtype).into());
    config.sort_keys();
    write_json(folder.path(), "config.json", &config)?;
    write_json(folder.path(), "generation_config.json", &generation_config(&config, &tokenizer.eos))?;
    write_json(folder.path(), "tokenizer.json", &tokenizer.tokenizer)?;
    write_json(folder.path(), "tokenizer_config.json", &tokenizer.config)?;

    let bytes = plan.tensors.iter().map(|t| t.info.shape.iter().product::<usize>() * request.dtype.size()).sum::<usize>();
    progress.begin("writing weights", u64::try_from(bytes).unwrap_or(0));
    let written = shards::write(&gguf, &plan.tensors, request.dtype, folder.path(), shards::SHARD_BYTES, progress);
    progress.end();
    let written = written?;
    folder.commit()?;

    let mut source_types = BTreeMap::new();
    for tensor in &plan.tensors {
        *source_types.entry(tensor.info.kind.to_string()).or_insert(0) += 1;
    }
    Ok(Report {
        file: request.file.clone(),
        out: request.out.clone(),
        architecture: plan.architecture.to_owned(),
        name: gguf.text("general.name").ok().flatten().map(str::to_owned),
        num_hidden_layers: plan.num_hidden_layers,
        tensors: plan.tensors.len(),
        parameters: written.parameters,
        bytes: written.bytes,
        shards: written.shards,
        dtype: request.dtype.to_string(),
        source_types,
        tokenizer: tokenizer.description,
        vocab_size: plan.vocab_size,
        chat_template: tokenizer.config.contains_key("chat_template"),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Token ids that generation needs; one id or a list, as transformers has it.
fn generation_config(config: &Map<String, Json>, eos: &[usize]) -> Map<String, Json> {
    let eos = match eos {
        [] => Json::Null,
        [id] => Json::from(*id),
        ids => Json::from(ids.to_vec()),
    };
    [
        ("bos_token_id", config.get("bos_token_id").cloned().unwrap_or(Json::Null)),
        ("eos_token_id", eos),
        ("pad_token_id", config.get("pad_token_id").cloned().unwrap_or(Json::Null)),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_null())
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

fn write_json(folder: &Path, name: &str, content: &impl Serialize) -> Result<()> {
    let path = folder.join(name);
    let mut bytes = serde_json::to_vec_pretty(content).map_err(|e| Error::data(&path, "", e.to_string()))?;
    bytes.push(b'\n');
    crate::io::write(&path, &bytes)
}
