//! Chat templates, rendered as transformers renders them: Jinja with `trim_blocks`, `lstrip_blocks`, loop controls,
//! Python's string methods, `tojson` as `json.dumps`, `raise_exception`, `strftime_now`, and `{% generation %}` without
//! effect on the text.

use super::python_json::{self, Style};
use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use regex::Regex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Steps a template may take for one conversation. Real ones take some hundred a message; nested loops over ranges would
/// otherwise run for ever.
const FUEL: u64 = 50_000_000;
const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    uses_date: bool,
}

/// What a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Compiles `source`, which came from `path`. `special_tokens` become variables (`bos_token`, `eos_token`, …);
    /// `date` fixes what `strftime_now` sees to midnight of that day, `None` lets it see local time.
    ///
    /// # Errors
    /// [`Error::Data`] with the template's line when it is no valid template.
    pub fn new(
        path: &Path,
        source: &str,
        special_tokens: BTreeMap<String, String>,
        date: Option<jiff::civil::Date>,
    ) -> Result<Self> {
        let mut environment = Environment::new();
        let invalid = |error: &minijinja::Error| Error::data(path, "", reason(error));
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(|error| invalid(&error))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
        });
        environment.add_function("strftime_now", move |format: String| strftime_now(&format, date));
        let source = prepare(source);
        let uses_date = source.contains("strftime_now");
        environment.add_template_owned(NAME, source).map_err(|error| {
            let at = error.line().map(|line| format!("chat template line {line}")).unwrap_or_default();
            Error::data(path, at, reason(&error)).with_help("pass --no-chat to go without the chat template")
        })?;
        Ok(Self { path: path.to_path_buf(), environment, special_tokens, uses_date })
    }

    /// True when the rendered text depends on the day: `--date` makes it repeatable.
    #[must_use]
    pub fn uses_date(&self) -> bool {
        self.uses_date
    }

    /// The conversation as text. `messages` are objects with `role` and `content`.
    ///
    /// # Errors
    /// Why the template would not render it, in words that follow the place of the record.
    pub fn render(&self, messages: &[serde_json::Value], add_generation_prompt: bool) -> Result<String, String> {
        let template = self.environment.get_template(NAME).map_err(|error| reason(&error))?;
        let mut context: Vec<(String, Value)> =
            self.special_tokens.iter().map(|(name, token)| (name.clone(), Value::from(token.as_str()))).collect();
        context.push(("messages".into(), messages.iter().map(from_json).collect::<Vec<_>>().into()));
        context.push(("add_generation_prompt".into(), add_generation_prompt.into()));
        // Present and None, as transformers passes them.
        context.push(("tools".into(), Value::from(())));
        context.push(("documents".into(), Value::from(())));
        template.render(Value::from_pairs(context)).map_err(|error| match raised(&error) {
            Some(message) => format!("the chat template refuses this conversation: {message}"),
            None => {
                let line = error.line().map(|line| format!(" line {line}")).unwrap_or_default();
                format!("the chat template of {}{line} fails: {}", self.path.display(), reason(&error))
            }
        })
    }
}

/// Kind and detail of an engine's error, without its own idea of file and line.
fn reason(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

fn raised(error: &minijinja::Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return Some(message.clone());
        }
        cause = current.source();
    }
    None
}

/// What Jinja's own lexer and transformers' extension do to a template before it is compiled: line ends become LF, and
/// `{% generation %}` (which only marks the assistant's tokens) becomes a block with a scope of its own and no effect.
fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    match Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") {
        Ok(tag) => tag
            .replace_all(&source, |found: &regex::Captures<'_>| {
                let part = |index| found.get(index).map_or("", |m: regex::Match<'_>| m.as_str());
                format!("{{%{} {}with {}%}}", part(1), part(2), part(3))
            })
            .into_owned(),
        Err(_) => source,
    }
}

fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect::<Vec<_>>().into(),
        serde_json::Value::Object(fields) => Value::from_pairs(fields.iter().map(|(k, v)| (k.as_str(), from_json(v)))),
    }
}

/// `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, minijinja::Error> {
    let invalid = |what: &str| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
    let argument = |index: usize, name: &str| -> Result<Option<Value>, minijinja::Error> {
        let given = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let indent = match argument(1, "indent")? {
        None => None,
        Some(text) if text.kind() == ValueKind::String => Some(text.to_string()),
        Some(width) => {
            let width = width.as_usize().filter(|&w| w <= 64).ok_or_else(|| invalid("indent must be 0 to 64"))?;
            Some(" ".repeat(width))
        }
    };
    let mut style = Style::with_indent(indent);
    style.ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|flag| flag.is_true());
    style.sort_keys = argument(3, "sort_keys")?.is_some_and(|flag| flag.is_true());
    if let Some(separators) = argument(2, "separators")? {
        let pair: Vec<Value> = separators.try_iter()?.collect();
        let [item, key] = pair.as_slice() else { return Err(invalid("separators must be two strings")) };
        (style.item_separator, style.key_separator) = (item.to_string(), key.to_string());
    }
    named.assert_all_used()?;
    python_json::dumps(value, &style).map(Value::from)
}

fn strftime_now(format: &str, date: Option<jiff::civil::Date>) -> Result<String, minijinja::Error> {
    let invalid = |error: jiff::Error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}"));
    let now = match date {
        Some(date) => date.to_zoned_datetime(jiff::tz::TimeZone::UTC).map_err(invalid)?,
        None => jiff::ZonedDateTime::now(),
    };
    jiff::fmt::strtime::format(format, &now).map_err(invalid)
}
