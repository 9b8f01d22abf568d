//! The key-value section of a GGUF file, read by key with the type that is expected.

use super::reader::Gguf;
use crate::error::{Error, Result};
use std::ops::Range;

/// A value. Arrays stay in the file: what is kept is where they lie.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// u8, u16, u32, u64.
    Unsigned(u64),
    /// i8, i16, i32, i64.
    Signed(i64),
    /// f32.
    Float32(f32),
    /// f64.
    Float64(f64),
    /// bool.
    Flag(bool),
    /// string.
    Text(String),
    /// Array of strings, as byte ranges of the file.
    Texts(Vec<Range<usize>>),
    /// Array of scalars.
    Scalars {
        /// Number of the element type in the file.
        kind: u32,
        /// Bytes of the file.
        range: Range<usize>,
    },
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::Float32(_) | Self::Float64(_) => "a float",
            Self::Flag(_) => "a boolean",
            Self::Text(_) => "a string",
            Self::Texts(_) => "an array of strings",
            Self::Scalars { .. } => "an array of numbers",
        }
    }
}

/// Bytes of a scalar of the element type `kind`; `None` for strings, arrays and unknown numbers.
#[must_use]
pub const fn scalar_size(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl Gguf {
    fn mistyped(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.bad_key(key, format!("expected {expected}, found {}", found.kind()))
    }

    /// An [`Error::Data`] about `key`.
    #[must_use]
    pub fn bad_key(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::data(self.path(), format!("key {key}"), problem)
    }

    /// The error for a key that must be there and is not.
    #[must_use]
    pub fn missing(&self, key: &str) -> Error {
        self.bad_key(key, "missing")
    }

    /// A string, if the key is there.
    ///
    /// # Errors
    /// [`Error::Data`] if it is of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.mistyped(key, "a string", other)),
        }
    }

    /// An integer that is not negative, if the key is there. An array of equal integers counts as one: some files give
    /// head counts a layer.
    ///
    /// # Errors
    /// [`Error::Data`] if it is of another type or negative, [`Error::Unsupported`] if the array's entries differ.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let number = match self.value(key) {
            None => return Ok(None),
            Some(Value::Unsigned(n)) => usize::try_from(*n).ok(),
            Some(Value::Signed(n)) => usize::try_from(*n).ok(),
            Some(Value::Scalars { .. }) => {
                let all = self.integers(key)?.unwrap_or_default();
                let first = all.first().copied().ok_or_else(|| self.bad_key(key, "the array is empty"))?;
                if all.iter().any(|n| *n != first) {
                    return Err(Error::unsupported(
                        self.path(),
                        format!("key {key}"),
                        "differs from layer to layer; only one value for all layers is supported",
                    ));
                }
                usize::try_from(first).ok()
            }
            Some(other) => return Err(self.mistyped(key, "an integer", other)),
        };
        number.map(Some).ok_or_else(|| self.bad_key(key, "negative or too large"))
    }

    /// A number as f32, if the key is there.
    ///
    /// # Errors
    /// [`Error::Data`] if it is of another type, not finite, or an f64 that f32 cannot hold.
    pub fn float(&self, key: &str) -> Result<Option<f32>> {
        let number = match self.value(key) {
            None => return Ok(None),
            Some(Value::Float32(x)) => *x,
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounded to f32 on purpose; an overflow becomes infinite, and is refused"
            )]
            Some(Value::Float64(x)) => *x as f32,
            Some(other) => return Err(self.mistyped(key, "a float", other)),
        };
        if number.is_finite() { Ok(Some(number)) } else { Err(self.bad_key(key, format!("{number} is not a finite number"))) }
    }

    /// A boolean, if the key is there.
    ///
    /// # Errors
    /// [`Error::Data`] if it is of another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.mistyped(key, "a boolean", other)),
        }
    }

    /// An array of strings, if the key is there.
    ///
    /// # Errors
    /// [`Error::Data`] if it is of another type or an entry is not UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Texts(ranges)) => ranges
                .iter()
                .enumerate()
                .map(|(i, range)| {
                    std::str::from_utf8(self.bytes(range)).map_err(|_| self.bad_key(key, format!("entry {i} is not valid UTF-8")))
                })
                .collect::<Result<Vec<_>>>()
                .map(Some),
            Some(other) => Err(self.mistyped(key, "an array of strings", other)),
        }
    }

    /// An array of 32-bit integers (signed or not), if the key is there.
    ///
    /// # Errors
    /// [`Error::Data`] if it is of another type.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Scalars { kind: 4, range }) => {
                Ok(Some(self.bytes(range).as_chunks::<4>().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))).collect()))
            }
            Some(Value::Scalars { kind: 5, range }) => {
                Ok(Some(self.bytes(range).as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect()))
            }
            Some(other) => Err(self.mistyped(key, "an array of 32-bit integers", other)),
        }
    }

    /// An array of f32, if the key is there.
    ///
    /// # Errors
    /// [`Error::Data`] if it is of another type.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Scalars { kind: 6, range }) => {
                Ok(Some(self.bytes(range).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
            }
            Some(other) => Err(self.mistyped(key, "an array of f32", other)),
        }
    }
}
