//! A model folder's tokenizer: tokenizer.json through the `tokenizers` library, with the special tokens, chat template and
//! end-of-sequence ids that stand in the files beside it.

use super::chat_template::ChatTemplate;
use super::dataset::Dataset;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// An opened tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    /// Its tokenizer.json.
    pub path: PathBuf,
    inner: tokenizers::Tokenizer,
    special_tokens: BTreeMap<String, String>,
    chat_template: Option<(PathBuf, String)>,
    eos_ids: Vec<u32>,
}

impl Tokenizer {
    /// Opens `folder/tokenizer.json` and the files beside it: tokenizer_config.json, special_tokens_map.json,
    /// chat_template.jinja, generation_config.json and config.json, each of which may be absent.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] naming the file that is absent or broken.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::data(&path, "", "there is no such file, and this data needs a tokenizer")
                .with_help("copy the model's tokenizer files into its folder, or pass data that holds input_ids"));
        }
        let bytes = crate::io::read(&path)?;
        let broken = |problem: String| {
            Error::data(&path, "", format!("not a valid tokenizer: {problem}"))
                .with_help("fetch the file again from where the model came from")
        };
        // The library panics on some files that are no JSON at all; and this way the error says where.
        serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).map_err(|error| broken(format!("broken JSON: {error}")))?;
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(broken)?;
        // Files often carry the truncation and padding of their training; transformers resets both before each use.
        inner.with_truncation(None).map_err(|error| broken(error.to_string()))?.with_padding(None);
        let config = read_object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let mut special_tokens = token_texts(&read_object(&folder.join("special_tokens_map.json"))?.unwrap_or_default());
        special_tokens.extend(token_texts(&config));
        let chat_template = find_chat_template(folder, &config)?;
        let mut tokenizer = Self { path, inner, special_tokens, chat_template, eos_ids: Vec::new() };
        tokenizer.eos_ids = eos_ids(folder, Some(&tokenizer))?;
        Ok(tokenizer)
    }

    /// The tokenizer that `data` needs: `None` only where the folder has none and every record is tokenised already.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn open_for(data: &Dataset, folder: &Path) -> Result<Option<Self>> {
        if !data.needs_tokenizer() && !folder.join("tokenizer.json").exists() { Ok(None) } else { Self::open(folder).map(Some) }
    }

    /// Tokens of a whole text as the tokenizer's post-processor gives them, with BOS where it adds one.
    ///
    /// # Errors
    /// [`Error::Data`] with the library's reason.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text, true)?.get_ids().to_vec())
    }

    /// Tokens of a text that more will follow: what the post-processor puts before it, but not what it puts behind.
    ///
    /// # Errors
    /// [`Error::Data`] with the library's reason.
    pub fn encode_beginning(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.encoding(text, true)?;
        let mask = encoding.get_special_tokens_mask();
        let added_behind = mask.iter().rev().take_while(|&&added| added == 1).count();
        // With no text at all every token is an added one; those of a prefix stay.
        let keep = if added_behind == mask.len() { mask.len() } else { mask.len() - added_behind };
        Ok(encoding.get_ids().iter().take(keep).copied().collect())
    }

    /// Tokens of a text alone, nothing added. Special tokens that are written out in it are still recognised.
    ///
    /// # Errors
    /// [`Error::Data`] with the library's reason.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text, false)?.get_ids().to_vec())
    }

    fn encoding(&self, text: &str, add_special_tokens: bool) -> Result<tokenizers::Encoding> {
        guarded(|| self.inner.encode_fast(text, add_special_tokens))
            .map_err(|problem| Error::data(&self.path, "", format!("cannot tokenise a text: {problem}")))
    }

    /// Text of tokens, special ones left out, white space as the tokenizer's decoder leaves it.
    ///
    /// # Errors
    /// [`Error::Data`] with the library's reason.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true))
            .map_err(|problem| Error::data(&self.path, "", format!("cannot decode tokens: {problem}")))
    }

    /// Ids that end a generation, ascending; see [`eos_ids`].
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The token that closes a target: `eos_token` of tokenizer_config.json, else the first of [`Tokenizer::eos_ids`].
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.special_id("eos_token").or_else(|| self.eos_ids.first().copied())
    }

    /// Id of a named special token, as `bos_token`, where there is one.
    #[must_use]
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.special_tokens.get(name).and_then(|token| self.inner.token_to_id(token))
    }

    /// The token's text in the vocabulary (`Ġthe`, `<|im_end|>`), for messages.
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Entries of the vocabulary, added tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// True when the folder has a chat template.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    /// Compiles the chat template, where there is one; `date` as in [`ChatTemplate::new`].
    ///
    /// # Errors
    /// [`Error::Data`] when it is no valid template.
    pub fn chat_template(&self, date: Option<jiff::civil::Date>) -> Result<Option<ChatTemplate>> {
        self.chat_template
            .as_ref()
            .map(|(path, source)| ChatTemplate::new(path, source, self.special_tokens.clone(), date))
            .transpose()
    }
}

/// Ids that end a generation, ascending: `eos_token_id` of generation_config.json, else of config.json, else the
/// tokenizer's `eos_token`. Empty where none of them says.
///
/// # Errors
/// [`Error::Data`] naming the file and key that is not a token id or a list of them.
pub fn eos_ids(folder: &Path, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let path = folder.join(name);
        let Some(object) = read_object(&path)? else { continue };
        let given = match object.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(items)) => items.clone(),
            Some(single) => vec![single.clone()],
        };
        let mut ids = given
            .iter()
            .map(|value| {
                value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                    Error::data(&path, "key eos_token_id", format!("expected a token id or a list of them, found {value}"))
                })
            })
            .collect::<Result<Vec<u32>>>()?;
        ids.sort_unstable();
        ids.dedup();
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Ok(tokenizer.and_then(|t| t.special_id("eos_token")).into_iter().collect())
}

thread_local! {
    /// True while this thread is inside a call whose panic becomes an error.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a call of the `tokenizers` library, which panics on some files and texts that it does not expect. Nothing of such a
/// panic reaches standard error; those of other threads and other code do, as before.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    static QUIET_HOOK: Once = Once::new();
    QUIET_HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                previous(info);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    match outcome {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers library failed on it".into()),
    }
}

/// A JSON object, `None` where there is no such file.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    match serde_json::from_str(&crate::io::read_text(path)?) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(Error::data(path, "", "expected a JSON object")),
        Err(error) => Err(Error::data(path, "", format!("broken JSON: {error}"))),
    }
}

/// The `…_token` entries: strings, or objects with the string under `content`.
fn token_texts(object: &Map<String, Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    object
        .iter()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
        .collect()
}

/// chat_template.jinja, else `chat_template` of tokenizer_config.json: a string, or a list of named ones with a `default`.
fn find_chat_template(folder: &Path, config: &Map<String, Value>) -> Result<Option<(PathBuf, String)>> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        return Ok(Some((path.clone(), crate::io::read_text(&path)?)));
    }
    let path = folder.join("tokenizer_config.json");
    let wrong = |problem: &str| Error::data(&path, "key chat_template", problem);
    let source = match config.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => source,
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .ok_or_else(|| wrong("a list of templates without one named default"))?,
        Some(_) => return Err(wrong("expected a string or a list of named templates")),
    };
    Ok(Some((path, source.to_owned())))
}
