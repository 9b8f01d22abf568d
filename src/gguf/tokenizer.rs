//! tokenizer.json and tokenizer_config.json from GGUF's vocabulary, such that text becomes the ids llama.cpp gives it.
//!
//! GGUF names the splitting of text into words (`tokenizer.ggml.pre`) instead of describing it. Each name that is known
//! here stands for what llama.cpp does under it; a name that is not known is refused. llama.cpp normalises nothing, so
//! neither does what is written here (the folders that Qwen2 and Cohere publish apply NFC first).

use super::decoder::token_id;
use super::reader::Gguf;
use super::sentencepiece;
use crate::error::{Error, Result};
use serde_json::{Map, Value as Json, json};
use std::collections::{HashMap, HashSet};

/// What a token is for, as `tokenizer.ggml.token_type` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for text that has no token.
    Unknown,
    /// Markers: matched whole in text, never shown.
    Control,
    /// Matched whole in text, and shown.
    UserDefined,
    /// Fills the table.
    Unused,
    /// One byte, `<0x0A>`.
    Byte,
}

/// The vocabulary of a file, checked: ids are places, no text appears twice.
#[derive(Debug)]
pub struct Vocabulary<'a> {
    /// Token texts by id.
    pub texts: Vec<&'a str>,
    /// Kinds by id.
    pub kinds: Vec<TokenKind>,
    /// Ids by text.
    pub ids: HashMap<&'a str, usize>,
}

/// The tokenizer files, and what the report says of them.
#[derive(Debug)]
pub struct Tokenizer {
    /// tokenizer.json.
    pub tokenizer: Json,
    /// tokenizer_config.json.
    pub config: Map<String, Json>,
    /// `byte-level BPE (smollm)`.
    pub description: String,
    /// Ids that end a generation, the model's eos first.
    pub eos: Vec<usize>,
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";
/// Longest text of a special token, in bytes; real ones have a few dozen.
const LONGEST_MARKER: usize = 512;

/// Reads the vocabulary; `rows` is that of the embedding.
fn vocabulary(gguf: &Gguf, rows: usize) -> Result<Vocabulary<'_>> {
    let texts = gguf.texts(TOKENS)?.ok_or_else(|| gguf.missing(TOKENS))?;
    if texts.len() != rows {
        return Err(gguf.bad_key(TOKENS, format!("{} tokens for an embedding of {rows} rows", texts.len())));
    }
    let mut ids = HashMap::with_capacity(texts.len());
    for (id, text) in texts.iter().enumerate() {
        if let Some(first) = ids.insert(*text, id) {
            return Err(gguf.bad_key(TOKENS, format!("tokens {first} and {id} are the same text {text:?}")));
        }
    }
    let key = "tokenizer.ggml.token_type";
    let kinds = match gguf.integers(key)? {
        None => vec![TokenKind::Normal; texts.len()],
        Some(numbers) if numbers.len() == texts.len() => numbers
            .iter()
            .enumerate()
            .map(|(id, number)| match number {
                1 => Ok(TokenKind::Normal),
                2 => Ok(TokenKind::Unknown),
                3 => Ok(TokenKind::Control),
                4 => Ok(TokenKind::UserDefined),
                5 => Ok(TokenKind::Unused),
                6 => Ok(TokenKind::Byte),
                other => Err(gguf.bad_key(key, format!("token {id} has unknown type {other}"))),
            })
            .collect::<Result<Vec<_>>>()?,
        Some(numbers) => return Err(gguf.bad_key(key, format!("{} entries for {} tokens", numbers.len(), texts.len()))),
    };
    Ok(Vocabulary { texts, kinds, ids })
}

/// Converts the tokenizer. `rows`: of the embedding; `context`: for `model_max_length`.
///
/// # Errors
/// [`Error::Data`] or [`Error::Unsupported`] naming the key.
pub fn convert(gguf: &Gguf, rows: usize, context: usize) -> Result<Tokenizer> {
    let model_key = "tokenizer.ggml.model";
    let model = gguf.text(model_key)?.ok_or_else(|| gguf.missing(model_key))?;
    let vocabulary = vocabulary(gguf, rows)?;
    let (parts, description) = match model {
        "gpt2" => {
            let pre = gguf.text(PRE)?.ok_or_else(|| gguf.missing(PRE))?;
            (byte_level(gguf, &vocabulary, pre)?, format!("byte-level BPE ({pre})"))
        }
        "llama" => (sentencepiece::parts(gguf, &vocabulary)?, "SentencePiece BPE".to_owned()),
        other => {
            return Err(Error::unsupported(
                gguf.path(),
                format!("key {model_key}"),
                format!("{other} is not supported; these are: gpt2 (byte-level BPE), llama (SentencePiece BPE)"),
            ));
        }
    };
    let affixes = Affixes::read(gguf, &vocabulary, parts.adds_bos)?;
    refuse_long_markers(gguf, &vocabulary)?;
    let added: Vec<Json> = vocabulary
        .kinds
        .iter()
        .enumerate()
        .filter(|(id, _)| !vocabulary.texts[*id].is_empty())
        .filter_map(|(id, kind)| match kind {
            TokenKind::Control | TokenKind::Unknown => Some((id, true)),
            TokenKind::UserDefined => Some((id, false)),
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => None,
        })
        .map(|(id, special)| {
            json!({
                "id": id, "content": vocabulary.texts[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            })
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": affixes.post_processor(parts.post_processor),
        "decoder": parts.decoder,
        "model": parts.model,
    });
    check(gguf, &tokenizer)?;
    let eos = end_ids(gguf, rows)?;
    Ok(Tokenizer { tokenizer, config: affixes.config(gguf, &vocabulary, context)?, description, eos })
}

/// Markers go into one automaton, whose size is a large multiple of theirs.
fn refuse_long_markers(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<()> {
    let marker = |kind| matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined);
    match (0..vocabulary.texts.len()).find(|id| marker(vocabulary.kinds[*id]) && vocabulary.texts[*id].len() > LONGEST_MARKER) {
        None => Ok(()),
        Some(id) => Err(gguf.bad_key(TOKENS, format!("marker {id} is longer than {LONGEST_MARKER} bytes"))),
    }
}

/// The sections of tokenizer.json that depend on the kind of tokenizer.
#[derive(Debug)]
pub struct Parts {
    /// `normalizer`.
    pub normalizer: Json,
    /// `pre_tokenizer`.
    pub pre_tokenizer: Json,
    /// `post_processor` where nothing is put around the text.
    pub post_processor: Json,
    /// `decoder`.
    pub decoder: Json,
    /// `model`.
    pub model: Json,
    /// Whether bos goes first when the file does not say.
    pub adds_bos: bool,
}

/// How a named pre-tokenizer splits text.
enum Splitting {
    /// GPT-2's pattern, which is the byte-level pre-tokenizer's own.
    Gpt2,
    /// Every digit apart, then GPT-2's pattern on what lies between.
    DigitsThenGpt2,
    /// A pattern of its own.
    Pattern(&'static str),
}

/// Llama 3: contractions, words with one leading mark, up to three digits, punctuation with line ends, white space.
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2: as Llama 3, but every digit apart.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn byte_level(gguf: &Gguf, vocabulary: &Vocabulary<'_>, pre: &str) -> Result<Parts> {
    // Where words are tokens, Llama 3's tokenizer takes them whole before it looks at merges.
    let (splitting, whole_words) = match pre {
        "gpt-2" => (Splitting::Gpt2, false),
        "smollm" | "command-r" => (Splitting::DigitsThenGpt2, false),
        "llama-bpe" | "llama3" | "llama-v3" => (Splitting::Pattern(LLAMA3), true),
        "qwen2" | "deepseek-r1-qwen" => (Splitting::Pattern(QWEN2), false),
        other => {
            return Err(Error::unsupported(
                gguf.path(),
                format!("key {PRE}"),
                format!("{other} is not supported; these are: gpt-2, smollm, command-r, llama-bpe, qwen2"),
            ));
        }
    };
    let byte_level =
        |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let mut steps = match splitting {
        Splitting::Gpt2 => vec![byte_level(true)],
        Splitting::DigitsThenGpt2 => vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)],
        Splitting::Pattern(pattern) => vec![
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
            byte_level(false),
        ],
    };
    if let Some(pattern) = absent_bytes(vocabulary) {
        steps.push(json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": false}));
    }
    let pre_tokenizer = if steps.len() == 1 { steps.remove(0) } else { json!({"type": "Sequence", "pretokenizers": steps}) };
    let vocab: Map<String, Json> =
        vocabulary.texts.iter().enumerate().map(|(id, text)| ((*text).to_owned(), id.into())).collect();
    Ok(Parts {
        normalizer: Json::Null,
        pre_tokenizer,
        post_processor: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words, "vocab": vocab, "merges": merges(gguf, vocabulary)?,
        }),
        adds_bos: whole_words,
    })
}

/// Merges in order of rank. llama.cpp splits a merge at the first space after its first byte, and keeps the first of
/// two that are equal.
fn merges<'a>(gguf: &'a Gguf, vocabulary: &Vocabulary<'_>) -> Result<Vec<&'a str>> {
    let all = gguf.texts(MERGES)?.ok_or_else(|| gguf.missing(MERGES))?;
    let mut seen = HashSet::with_capacity(all.len());
    let mut merges = Vec::with_capacity(all.len());
    let mut joined = String::new();
    for (rank, merge) in all.into_iter().enumerate() {
        let bad = |problem: String| gguf.bad_key(MERGES, format!("entry {rank}, {merge:?}: {problem}"));
        let (left, right) = merge.split_once(' ').ok_or_else(|| bad("has no space between two tokens".into()))?;
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        if let Some(absent) = [left, right, joined.as_str()].into_iter().find(|text| !vocabulary.ids.contains_key(text)) {
            return Err(bad(format!("{absent:?} is not a token")));
        }
        if seen.insert(merge) {
            merges.push(merge);
        }
    }
    Ok(merges)
}

/// The character that stands for `byte` in byte-level vocabularies: itself if it is visible in Latin-1, else one from
/// U+0100 on, counted over the bytes that are not.
fn byte_character(byte: u8) -> char {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !visible(*b)).count();
    u32::try_from(before).ok().and_then(|n| char::from_u32(0x100 + n)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// A pattern for bytes that no token contains. llama.cpp gives them no token and never merges across one; tokenizers
/// would drop them first and then merge what lies around them.
fn absent_bytes(vocabulary: &Vocabulary<'_>) -> Option<String> {
    let present: HashSet<char> = vocabulary
        .texts
        .iter()
        .zip(&vocabulary.kinds)
        .filter(|(_, kind)| matches!(kind, TokenKind::Normal | TokenKind::Unused))
        .flat_map(|(text, _)| text.chars())
        .collect();
    let absent: String =
        (0..=255).map(byte_character).filter(|c| !present.contains(c)).map(|c| format!(r"\x{{{:04X}}}", u32::from(c))).collect();
    (!absent.is_empty()).then(|| format!("[{absent}]"))
}

/// What goes before and after every text.
struct Affixes {
    bos: Option<(usize, String)>,
    eos: Option<(usize, String)>,
    add_bos: bool,
    add_eos: bool,
}

impl Affixes {
    fn read(gguf: &Gguf, vocabulary: &Vocabulary<'_>, adds_bos: bool) -> Result<Self> {
        let named = |name: &str| -> Result<Option<(usize, String)>> { special(gguf, vocabulary, name) };
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
        let add_eos = gguf.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let affixes = Self { bos: named("bos")?, eos: named("eos")?, add_bos, add_eos };
        for (wanted, there, key) in [
            (add_bos, affixes.bos.is_some(), "tokenizer.ggml.bos_token_id"),
            (add_eos, affixes.eos.is_some(), "tokenizer.ggml.eos_token_id"),
        ] {
            if wanted && !there {
                return Err(gguf.bad_key(key, "missing, while it is to be added to every text"));
            }
        }
        Ok(affixes)
    }

    fn post_processor(&self, plain: Json) -> Json {
        let before = self.bos.as_ref().filter(|_| self.add_bos);
        let after = self.eos.as_ref().filter(|_| self.add_eos);
        if before.is_none() && after.is_none() {
            return plain;
        }
        let around = |sequence: &str, kind: u8| -> Vec<Json> {
            let token = |(_, text): &(usize, String)| json!({"SpecialToken": {"id": text, "type_id": kind}});
            let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
            before.map(token).into_iter().chain([text]).chain(after.map(token)).collect()
        };
        let special_tokens: Map<String, Json> = before
            .into_iter()
            .chain(after)
            .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        let pair: Vec<Json> = around("A", 0).into_iter().chain(around("B", 1)).collect();
        let template =
            json!({"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": special_tokens});
        if plain.is_null() { template } else { json!({"type": "Sequence", "processors": [plain, template]}) }
    }

    fn config(&self, gguf: &Gguf, vocabulary: &Vocabulary<'_>, context: usize) -> Result<Map<String, Json>> {
        let mut config = Map::new();
        config.insert("add_bos_token".into(), self.add_bos.into());
        config.insert("add_eos_token".into(), self.add_eos.into());
        let text = |token: Option<(usize, String)>| token.map_or(Json::Null, |(_, text)| text.into());
        for (name, key) in [("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token"), ("unknown", "unk_token")] {
            config.insert(key.into(), text(special(gguf, vocabulary, name)?));
        }
        if let Some(template) = gguf.text("tokenizer.chat_template")? {
            config.insert("chat_template".into(), template.into());
        }
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("model_max_length".into(), context.into());
        // Reads tokenizer.json as it stands; model-specific classes would rebuild it by their own rules.
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        Ok(config)
    }
}

/// The token that `tokenizer.ggml.NAME_token_id` names.
fn special(gguf: &Gguf, vocabulary: &Vocabulary<'_>, name: &str) -> Result<Option<(usize, String)>> {
    let id = token_id(gguf, name, vocabulary.texts.len())?.as_u64().and_then(|id| usize::try_from(id).ok());
    Ok(id.map(|id| (id, vocabulary.texts[id].to_owned())))
}

/// eos, end of turn and end of message: each ends a generation.
fn end_ids(gguf: &Gguf, rows: usize) -> Result<Vec<usize>> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        if let Some(id) = token_id(gguf, name, rows)?.as_u64().and_then(|id| usize::try_from(id).ok())
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// What is written must be a tokenizer; better to hear of it now than when the folder is used.
fn check(gguf: &Gguf, tokenizer: &Json) -> Result<()> {
    let bytes = serde_json::to_vec(tokenizer).map_err(|e| Error::data(gguf.path(), "", e.to_string()))?;
    tokenizers::Tokenizer::from_bytes(bytes)
        .map(drop)
        .map_err(|e| Error::data(gguf.path(), format!("key {TOKENS}"), format!("no tokenizer can be made of it: {e}")))
}
