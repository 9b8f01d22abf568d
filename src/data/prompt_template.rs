//! `--prompt TEMPLATE`: how a `source` record becomes a prompt.

use crate::error::{Error, Result};

/// A template with `{source}`, `{source_lang}` and `{target_lang}`; `{{` and `}}` are literal braces, `\n` and `\t` (which
/// a shell passes on as two characters) a line break and a tab, `\\` a backslash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTemplate {
    /// `None`: the default one, which leaves out languages that a record does not name.
    parts: Option<Vec<Part>>,
}

/// What is written in a template, and what it means.
const ESCAPES: [(&str, char); 5] = [("{{", '{'), ("}}", '}'), ("\\n", '\n'), ("\\t", '\t'), ("\\\\", '\\')];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Source,
    SourceLang,
    TargetLang,
}

impl PromptTemplate {
    /// The template of a `--prompt`, or the default
    /// `Translate the following text from {source_lang} to {target_lang}:\n{source}\n`.
    ///
    /// # Errors
    /// [`Error::Request`]: an unknown placeholder, a single brace, or no `{source}` at all.
    pub fn new(template: Option<&str>) -> Result<Self> {
        let Some(template) = template else { return Ok(Self { parts: None }) };
        let refuse = |problem: String| {
            Error::request(format!("--prompt: {problem}"))
                .with_help("placeholders are {source}, {source_lang} and {target_lang}; write {{ and }} for literal braces")
        };
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = template;
        while let Some(first) = rest.chars().next() {
            let escape = ESCAPES.into_iter().find(|(text, _)| rest.starts_with(text));
            if let Some((text, meant)) = escape {
                literal.push(meant);
                rest = rest.get(text.len()..).unwrap_or_default();
            } else if first == '{' {
                let Some((name, after)) = rest.get(1..).and_then(|r| r.split_once('}')) else {
                    return Err(refuse("an opening brace is never closed".into()));
                };
                let part = match name {
                    "source" => Part::Source,
                    "source_lang" => Part::SourceLang,
                    "target_lang" => Part::TargetLang,
                    _ => return Err(refuse(format!("unknown placeholder {{{name}}}"))),
                };
                parts.push(Part::Literal(std::mem::take(&mut literal)));
                parts.push(part);
                rest = after;
            } else if first == '}' {
                return Err(refuse("a closing brace without an opening one".into()));
            } else {
                literal.push(first);
                rest = rest.get(first.len_utf8()..).unwrap_or_default();
            }
        }
        parts.push(Part::Literal(literal));
        if !parts.contains(&Part::Source) {
            return Err(refuse("{source} is missing, so every record would get the same prompt".into()));
        }
        Ok(Self { parts: Some(parts) })
    }

    /// The prompt of one record.
    ///
    /// # Errors
    /// The name of the field that the template asks for and the record does not have.
    pub fn render(&self, source: &str, source_lang: Option<&str>, target_lang: Option<&str>) -> Result<String, &'static str> {
        let Some(parts) = &self.parts else {
            let from = source_lang.map(|lang| format!(" from {lang}")).unwrap_or_default();
            let to = target_lang.map(|lang| format!(" to {lang}")).unwrap_or_default();
            return Ok(format!("Translate the following text{from}{to}:\n{source}\n"));
        };
        let mut prompt = String::new();
        for part in parts {
            prompt.push_str(match part {
                Part::Literal(text) => text,
                Part::Source => source,
                Part::SourceLang => source_lang.ok_or("source_lang")?,
                Part::TargetLang => target_lang.ok_or("target_lang")?,
            });
        }
        Ok(prompt)
    }
}
