//! Typed access to the keys of one JSON object, with errors that name file and key, what was found and what is expected.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The keys of config.json, or of an object in it.
pub(super) struct Keys<'a> {
    path: &'a Path,
    /// `rope_scaling.` for the keys of that object; empty at the top.
    prefix: String,
    map: &'a Map<String, Value>,
}

/// A value as a message shows it: its JSON, cut short.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

impl<'a> Keys<'a> {
    pub(super) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, prefix: String::new(), map }
    }

    /// The keys of `map`, which is the value of `key` here.
    pub(super) fn inner(&self, key: &str, map: &'a Map<String, Value>) -> Self {
        Self { path: self.path, prefix: format!("{}{key}.", self.prefix), map }
    }

    /// All keys.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The value of `key` as it stands, null included.
    pub(super) fn raw(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// The value of `key`; null counts as absent, as it does for transformers' optional keys.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn present(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn bad(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::data(self.path, format!("key {}{key}", self.prefix), problem)
    }

    pub(super) fn wrong(&self, key: &str, found: &Value, expected: &str) -> Error {
        self.bad(key, format!("found {}, expected {expected}", shown(found)))
    }

    pub(super) fn unsupported(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::unsupported(self.path, format!("key {}{key}", self.prefix), problem)
    }

    /// A whole number from 1 to `limit`. Must be there.
    pub(super) fn size(&self, key: &str, limit: usize) -> Result<usize> {
        let expected = format!("a whole number from 1 to {limit}");
        let Some(value) = self.raw(key) else { return Err(self.bad(key, format!("missing, expected {expected}"))) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=limit).contains(&n) => Ok(n),
            _ => Err(self.wrong(key, value, &expected)),
        }
    }

    /// A whole number from 0 to `limit`. Must be there.
    pub(super) fn count(&self, key: &str, limit: usize) -> Result<usize> {
        if self.raw(key).and_then(Value::as_u64) == Some(0) { Ok(0) } else { self.size(key, limit) }
    }

    /// A finite number above 0 and at most `limit`; `default` where absent, an error where there is none.
    pub(super) fn factor(&self, key: &str, default: Option<f64>, limit: f64) -> Result<f64> {
        let expected = format!("a number above 0 and at most {limit:e}");
        let Some(value) = self.raw(key) else {
            return default.ok_or_else(|| self.bad(key, format!("missing, expected {expected}")));
        };
        match value.as_f64() {
            Some(x) if x > 0.0 && x <= limit => Ok(x),
            _ => Err(self.wrong(key, value, &expected)),
        }
    }

    /// As [`Keys::factor`], rounded to f32, in which it must not vanish.
    pub(super) fn factor_f32(&self, key: &str, default: f64, limit: f64) -> Result<f32> {
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what transformers' f32 tensors do with it")]
        let rounded = self.factor(key, Some(default), limit)? as f32;
        if rounded > 0.0 { Ok(rounded) } else { Err(self.bad(key, "too small: it is 0 in f32")) }
    }

    /// true or false; `default` where absent or null.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A text; `None` where absent or null.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, other, "a text")),
        }
    }
}
