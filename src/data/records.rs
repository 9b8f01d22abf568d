//! Reading `.jsonl` and `.txt` into records. Every error names the file and the line, counted from 1.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Label of a position that is not a target, as in transformers.
pub const IGNORED_LABEL: i64 = -100;

/// One record of a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// 1-based line of the file it stands on.
    pub line: usize,
    /// What it holds.
    pub kind: RecordKind,
    /// The record as the file has it; a line of a `.txt` file becomes `{"text": line}`.
    pub object: Map<String, Value>,
}

/// What a record holds, by its fields.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordKind {
    /// `text`: every token is a target.
    Text {
        /// The field.
        text: String,
    },
    /// `source` and `target`: only the target's tokens count.
    Translation {
        /// The field.
        source: String,
        /// The field; generation does without it.
        target: Option<String>,
        /// The field, as the prompt template writes it: `English`.
        source_lang: Option<String>,
        /// The field.
        target_lang: Option<String>,
    },
    /// `prompt` and `completion`: only the completion's tokens count.
    Completion {
        /// The field.
        prompt: String,
        /// The field; generation does without it.
        completion: Option<String>,
    },
    /// `messages`: a chat, whose assistant turns count.
    Messages {
        /// Objects with at least a `role`.
        messages: Vec<Value>,
    },
    /// `input_ids`, with optional `labels` of the same length.
    Tokens {
        /// At least one token.
        input_ids: Vec<u32>,
        /// `labels[t]` is the token expected at position t (predicted from t - 1); `None` where the file has -100.
        labels: Option<Vec<Option<u32>>>,
    },
}

impl Record {
    /// Puts `hypothesis`, which `prunectl translate` wrote beside the record, where the text to be learnt stands: a teacher's
    /// texts are learnt, not the references beside them. A record without one stays as it is.
    ///
    /// # Errors
    /// What is wrong with the field: no string, or beside `input_ids`, which have no text.
    fn learn_hypothesis(&mut self) -> Result<(), Problem> {
        let Some(hypothesis) = optional_string(&self.object, "hypothesis")? else { return Ok(()) };
        match &mut self.kind {
            RecordKind::Text { text } => {
                self.kind = RecordKind::Completion { prompt: std::mem::take(text), completion: Some(hypothesis) };
            }
            RecordKind::Translation { target, .. } => *target = Some(hypothesis),
            RecordKind::Completion { completion, .. } => *completion = Some(hypothesis),
            RecordKind::Messages { messages } => {
                let role = |message: &Value| message.get("role").and_then(Value::as_str) == Some("assistant");
                messages.truncate(messages.iter().rposition(role).unwrap_or(messages.len()));
                messages.push(serde_json::json!({"role": "assistant", "content": hypothesis}));
            }
            RecordKind::Tokens { .. } => {
                return Err(Problem::new("field hypothesis: a text beside input_ids cannot be learnt"));
            }
        }
        Ok(())
    }
}

/// [`Record`]s of a file that `prunectl translate` wrote, with the hypotheses as what is learnt.
///
/// # Errors
/// [`Error::Data`] naming the line.
pub fn learn_hypotheses(path: &Path, records: &mut [Record]) -> Result<()> {
    records.iter_mut().try_for_each(|record| record.learn_hypothesis().map_err(|problem| problem.at(path, record.line)))
}

/// The fields that decide what a record is; exactly one of them must be there.
const LEADING_FIELDS: [&str; 5] = ["text", "source", "prompt", "messages", "input_ids"];
/// Fields that mean nothing without their leading field.
const FOLLOWING_FIELDS: [(&str, &str); 3] = [("target", "source"), ("completion", "prompt"), ("labels", "input_ids")];

/// UTF-8 text of a data file without its byte order mark.
///
/// # Errors
/// [`Error::Data`] naming the line and byte that is not UTF-8.
pub fn decode_utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = valid.iter().filter(|&&b| b == b'\n').count() + 1;
        Error::data(path, format!("line {line}"), format!("not valid UTF-8 (byte {} of the file)", error.valid_up_to()))
            .with_help("convert the file to UTF-8, for example with iconv")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Lines with their 1-based numbers; line ends are LF or CRLF, blank lines are left out.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line)).filter(|(_, line)| !line.trim().is_empty())
}

/// The records of a `.txt` file for generation: one a line.
#[must_use]
pub fn from_text(text: &str) -> Vec<Record> {
    lines(text)
        .map(|(line, content)| {
            let mut object = Map::new();
            object.insert("text".into(), Value::String(content.into()));
            Record { line, kind: RecordKind::Text { text: content.into() }, object }
        })
        .collect()
}

/// The records of a `.jsonl` file, blank lines left out.
///
/// # Errors
/// [`Error::Data`] naming the line: broken JSON, no object, fields that are missing, contradict each other or have the
/// wrong type.
pub fn from_jsonl(path: &Path, text: &str) -> Result<Vec<Record>> {
    lines(text).map(|(line, content)| parse_record(line, content).map_err(|problem| problem.at(path, line))).collect()
}

/// What is wrong with one line, before it is known which.
struct Problem {
    problem: String,
    help: Option<&'static str>,
}

impl Problem {
    fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), help: None }
    }

    fn at(self, path: &Path, line: usize) -> Error {
        let error = Error::data(path, format!("line {line}"), self.problem);
        match self.help {
            Some(help) => error.with_help(help),
            None => error,
        }
    }
}

fn parse_record(line: usize, content: &str) -> Result<Record, Problem> {
    let value: Value = serde_json::from_str(content).map_err(|error| Problem {
        problem: format!("broken JSON: {}", describe_json_error(&error)),
        help: Some("a .jsonl file holds one whole JSON object a line"),
    })?;
    let Value::Object(object) = value else {
        return Err(Problem {
            problem: format!("expected a JSON object, found {}", type_name(&value)),
            help: Some("a .jsonl file holds one whole JSON object a line"),
        });
    };
    let kind = parse_kind(&object)?;
    Ok(Record { line, kind, object })
}

/// serde_json's reason without its `at line 1 column C`: the line is ours to say.
fn describe_json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => format!("{} (column {})", text.get(..end).unwrap_or(&text), error.column()),
        None => text,
    }
}

fn parse_kind(object: &Map<String, Value>) -> Result<RecordKind, Problem> {
    let present = |name: &str| object.get(name).is_some_and(|value| !value.is_null());
    let leading: Vec<&str> = LEADING_FIELDS.into_iter().filter(|name| present(name)).collect();
    if let Some((follower, leader)) =
        FOLLOWING_FIELDS.into_iter().find(|(follower, leader)| present(follower) && !present(leader))
    {
        return Err(Problem::new(format!("field {follower} without field {leader}")));
    }
    match leading.as_slice() {
        [] => Err(Problem {
            problem: format!("has none of the fields {}", LEADING_FIELDS.join(", ")),
            help: Some("a record holds text, source (and target), prompt (and completion), messages, or input_ids (and labels)"),
        }),
        [first, second, ..] => Err(Problem {
            problem: format!("has both {first} and {second}: it is not clear which one counts"),
            help: Some("keep one of them"),
        }),
        ["text"] => Ok(RecordKind::Text { text: string(object, "text")? }),
        ["source"] => Ok(RecordKind::Translation {
            source: string(object, "source")?,
            target: optional_string(object, "target")?,
            source_lang: optional_string(object, "source_lang")?,
            target_lang: optional_string(object, "target_lang")?,
        }),
        ["prompt"] => {
            Ok(RecordKind::Completion { prompt: string(object, "prompt")?, completion: optional_string(object, "completion")? })
        }
        ["messages"] => Ok(RecordKind::Messages { messages: messages(object)? }),
        [_] => tokens(object),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn wrong_type(field: &str, expected: &str, found: &Value) -> Problem {
    Problem::new(format!("field {field}: expected {expected}, found {}", type_name(found)))
}

fn optional_string(object: &Map<String, Value>, field: &str) -> Result<Option<String>, Problem> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(wrong_type(field, "a string", other)),
    }
}

fn string(object: &Map<String, Value>, field: &str) -> Result<String, Problem> {
    optional_string(object, field)?.ok_or_else(|| Problem::new(format!("field {field} is missing")))
}

fn list<'a>(object: &'a Map<String, Value>, field: &str) -> Result<&'a Vec<Value>, Problem> {
    match object.get(field) {
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(wrong_type(field, "a list", other)),
        None => Err(Problem::new(format!("field {field} is missing"))),
    }
}

fn messages(object: &Map<String, Value>) -> Result<Vec<Value>, Problem> {
    let messages = list(object, "messages")?;
    if messages.is_empty() {
        return Err(Problem::new("field messages: is empty"));
    }
    for (index, message) in messages.iter().enumerate() {
        let Value::Object(fields) = message else {
            return Err(wrong_type(&format!("messages[{index}]"), "an object with role and content", message));
        };
        match fields.get("role") {
            Some(Value::String(_)) => {}
            Some(other) => return Err(wrong_type(&format!("messages[{index}].role"), "a string", other)),
            None => return Err(Problem::new(format!("field messages[{index}].role is missing"))),
        }
        match fields.get("content") {
            // Turns that only call tools have no text.
            None | Some(Value::Null | Value::String(_) | Value::Array(_)) => {}
            Some(other) => return Err(wrong_type(&format!("messages[{index}].content"), "a string or a list of parts", other)),
        }
    }
    Ok(messages.clone())
}

fn tokens(object: &Map<String, Value>) -> Result<RecordKind, Problem> {
    let ids = list(object, "input_ids")?;
    if ids.is_empty() {
        return Err(Problem::new("field input_ids: is empty"));
    }
    let input_ids = ids
        .iter()
        .enumerate()
        .map(|(index, value)| token_id(value).ok_or_else(|| wrong_id(&format!("input_ids[{index}]"), "a token id", value)))
        .collect::<Result<Vec<u32>, _>>()?;
    let labels = match object.get("labels") {
        None | Some(Value::Null) => None,
        Some(_) => {
            let labels = list(object, "labels")?;
            if labels.len() != input_ids.len() {
                return Err(Problem::new(format!(
                    "field labels: has {} entries, input_ids has {}",
                    labels.len(),
                    input_ids.len()
                )));
            }
            let parsed = labels.iter().enumerate().map(|(index, value)| match token_id(value) {
                Some(id) => Ok(Some(id)),
                None if value.as_i64() == Some(IGNORED_LABEL) => Ok(None),
                None => Err(wrong_id(&format!("labels[{index}]"), "a token id or -100", value)),
            });
            Some(parsed.collect::<Result<Vec<Option<u32>>, _>>()?)
        }
    };
    Ok(RecordKind::Tokens { input_ids, labels })
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn wrong_id(field: &str, expected: &str, found: &Value) -> Problem {
    match found {
        Value::Number(number) => Problem::new(format!("field {field}: expected {expected}, found {number}")),
        other => wrong_type(field, expected, other),
    }
}
