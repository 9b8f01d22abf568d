//! SentencePiece BPE (`tokenizer.ggml.model` = llama): merges, back from the scores that GGUF keeps of them.
//!
//! SentencePiece joins the two neighbours whose union has the best score; tokenizer.json wants an ordered list of pairs.
//! Every way to cut a token into two tokens is such a pair, and the token's score its place in the list.

use super::reader::Gguf;
use super::tokenizer::{Parts, TokenKind, Vocabulary};
use crate::error::{Error, Result};
use serde_json::{Map, Value as Json, json};
use std::cmp::Reverse;

/// Longest token that is cut, in bytes: the work grows with the square.
const LONGEST: usize = 512;

/// The sections of tokenizer.json.
pub(super) fn parts(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Parts> {
    let key = "tokenizer.ggml.tokens";
    for byte in 0..=255_u8 {
        let text = format!("<0x{byte:02X}>");
        if vocabulary.ids.get(text.as_str()).is_none_or(|id| vocabulary.kinds[*id] != TokenKind::Byte) {
            return Err(Error::unsupported(
                gguf.path(),
                format!("key {key}"),
                format!("a vocabulary without the byte token {text}"),
            ));
        }
    }
    let unknown = vocabulary.kinds.iter().position(|kind| *kind == TokenKind::Unknown).map(|id| vocabulary.texts[id]);
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = if prefix {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
    } else {
        replace
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let vocab: Map<String, Json> =
        vocabulary.texts.iter().enumerate().map(|(id, text)| ((*text).to_owned(), id.into())).collect();
    Ok(Parts {
        normalizer,
        pre_tokenizer: Json::Null,
        post_processor: Json::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": merges(gguf, vocabulary)?,
        }),
        adds_bos: true,
    })
}

/// Pairs by falling score of their union; among equals the longer left part first, then the longer right one.
fn merges(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Vec<String>> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf.floats(key)?.ok_or_else(|| gguf.missing(key))?;
    if scores.len() != vocabulary.texts.len() {
        return Err(gguf.bad_key(key, format!("{} entries for {} tokens", scores.len(), vocabulary.texts.len())));
    }
    if let Some(id) = scores.iter().position(|score| !score.is_finite()) {
        return Err(gguf.bad_key(key, format!("token {id} has score {}", scores[id])));
    }
    let part = |text: &str| {
        vocabulary.ids.get(text).is_some_and(|id| matches!(vocabulary.kinds[*id], TokenKind::Normal | TokenKind::UserDefined))
    };
    let mut pairs = Vec::new();
    for (id, text) in vocabulary.texts.iter().enumerate() {
        // A space never reaches the merges: the normalizer has replaced it.
        let merged = matches!(vocabulary.kinds[id], TokenKind::Normal | TokenKind::UserDefined) && !text.contains(' ');
        if !merged {
            continue;
        }
        if text.len() > LONGEST {
            return Err(gguf.bad_key(
                "tokenizer.ggml.tokens",
                format!("token {id} has {} bytes, at most {LONGEST} are possible", text.len()),
            ));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if part(left) && part(right) {
                pairs.push((scores[id], left, right, id));
            }
        }
    }
    pairs.sort_by(|a, b| {
        let tie = |pair: &(f32, &str, &str, usize)| (Reverse(pair.1.chars().count()), Reverse(pair.2.chars().count()), pair.3);
        b.0.total_cmp(&a.0).then_with(|| tie(a).cmp(&tie(b)))
    });
    Ok(pairs.into_iter().map(|(_, left, right, _)| format!("{left} {right}")).collect())
}
