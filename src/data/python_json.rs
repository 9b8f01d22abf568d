//! `tojson` of chat templates: what Python's `json.dumps` writes, byte for byte. The filter that ships with the template
//! engine escapes HTML and spaces differently, which would give a model other tokens than it was trained on.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write as _;

/// Keyword arguments of `json.dumps` that templates use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Style {
    /// One level of indentation; `None` writes everything on one line.
    pub indent: Option<String>,
    /// Between the items of a list or object.
    pub item_separator: String,
    /// Between key and value.
    pub key_separator: String,
    /// Write everything above ASCII as `\uXXXX`.
    pub ensure_ascii: bool,
    /// Keys in the order of their code points.
    pub sort_keys: bool,
}

impl Style {
    /// What Python takes when only `indent` is given: no space before a line break.
    #[must_use]
    pub fn with_indent(indent: Option<String>) -> Self {
        let item_separator = if indent.is_some() { "," } else { ", " }.to_owned();
        Self { indent, item_separator, key_separator: ": ".to_owned(), ensure_ascii: false, sort_keys: false }
    }
}

/// Writes `value` as `json.dumps` does.
///
/// # Errors
/// A value that JSON has no form for, as a function or an undefined variable.
pub fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut out = String::new();
    write_value(&mut out, value, style, 0)?;
    Ok(out)
}

/// Values nest no deeper than the conversation they come from, which `serde_json` limits to 128; templates can build more.
const MAX_DEPTH: usize = 256;

fn write_value(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style.ensure_ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_items(out, style, depth, ('[', ']'), &items, |out, item| write_value(out, item, style, depth + 1))?;
        }
        ValueKind::Map => {
            let mut keys: Vec<(String, Value)> = value.try_iter()?.map(|key| (key_text(&key), key)).collect();
            if style.sort_keys {
                keys.sort_by(|a, b| a.0.cmp(&b.0));
            }
            write_items(out, style, depth, ('{', '}'), &keys, |out, (text, key)| {
                write_string(out, text, style.ensure_ascii);
                out.push_str(&style.key_separator);
                write_value(out, &value.get_item(key)?, style, depth + 1)
            })?;
        }
        other => return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {other} has no JSON form"))),
    }
    Ok(())
}

fn write_items<T>(
    out: &mut String,
    style: &Style,
    depth: usize,
    (open, close): (char, char),
    items: &[T],
    mut write: impl FnMut(&mut String, &T) -> Result<(), Error>,
) -> Result<(), Error> {
    let break_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(&style.item_separator);
        }
        break_line(out, depth + 1);
        write(out, item)?;
    }
    if !items.is_empty() {
        break_line(out, depth);
    }
    out.push(close);
    Ok(())
}

/// Keys that are no strings become what their value would be: `1`, `true`, `null`.
fn key_text(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number => number(key),
        _ => key.to_string(),
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}

/// Python's `repr` of a float: the shortest digits that give the same number, with an exponent outside 1e-4 <= |x| < 1e16.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let magnitude = x.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        // Rust writes 1.5e-7 and 1e16, Python 1.5e-07 and 1e+16.
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{x:?}")
}

fn write_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || (ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
