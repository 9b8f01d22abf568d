//! Records -> tokens. Prompt and target are tokenised apart and joined, so no token crosses the border between them.

use super::chat_template::ChatTemplate;
use super::dataset::Dataset;
use super::records::{Record, RecordKind};
use super::sequence::{Example, Prompt, Target};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// What [`Dataset::examples`] gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examples {
    /// One a record (one a chunk of a `.txt` file), in their order; each has at least one target.
    pub examples: Vec<Example>,
    /// Records that were longer than `seq_len` and lost their end.
    pub truncated: usize,
    /// Targets of all examples together.
    pub target_tokens: usize,
}

/// What [`Dataset::prompts`] gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// One a record (one a line of a `.txt` file that is not blank), in their order.
    pub prompts: Vec<Prompt>,
    /// Prompts that were longer than `seq_len` and lost their end.
    pub truncated: usize,
}

impl Dataset {
    /// Token sequences with their targets, for likelihoods and block influence.
    ///
    /// # Errors
    /// [`Error::Data`] naming the record's line: no target token, a token outside the vocabulary, a conversation that the
    /// chat template refuses, messages without a chat template; [`Error::Request`] when the tokenizer is missing.
    pub fn examples(&self, tokenizer: Option<&Tokenizer>, vocab_size: usize) -> Result<Examples> {
        let encoder = Encoder::new(self, tokenizer, vocab_size)?;
        let (examples, truncated) = match &self.text {
            Some(text) => (encoder.chunks(text)?, 0),
            None => encoder.record_examples()?,
        };
        let target_tokens = examples.iter().map(|example| example.targets.len()).sum();
        Ok(Examples { examples, truncated, target_tokens })
    }

    /// Prompts with their references, for generation.
    ///
    /// A text (a `text` record or a line of a `.txt` file) is continued as it stands, unless a `--prompt` is given: then it is
    /// that template's `{source}`. Of a chat, the last turn is the reference where it is the assistant's. Of `input_ids` with
    /// `labels`, what stands before the first label is the prompt.
    ///
    /// # Errors
    /// As [`Dataset::examples`]; an empty prompt.
    pub fn prompts(&self, tokenizer: Option<&Tokenizer>, vocab_size: usize) -> Result<Prompts> {
        let encoder = Encoder::new(self, tokenizer, vocab_size)?;
        let seq_len = self.options.seq_len;
        let mut prompts = Vec::with_capacity(self.records.len());
        let mut truncated = 0;
        for (index, record) in self.records.iter().enumerate() {
            let mut prompt = encoder.prompt(index, record)?;
            if prompt.ids.is_empty() {
                return Err(self.error(record.line, "the prompt has no tokens"));
            }
            encoder.check_vocabulary(&prompt.ids, Some(record.line))?;
            if prompt.ids.len() > seq_len {
                prompt.ids.truncate(seq_len);
                truncated += 1;
            }
            prompts.push(prompt);
        }
        Ok(Prompts { prompts, truncated })
    }
}

/// A sequence that grows part by part.
#[derive(Default)]
struct Sequence {
    ids: Vec<u32>,
    /// (position, token expected there); position 0 has no prediction.
    expected: Vec<(usize, u32)>,
}

impl Sequence {
    fn context(&mut self, ids: Vec<u32>) {
        self.ids.extend(ids);
    }

    fn target(&mut self, ids: Vec<u32>) {
        let start = self.ids.len();
        self.expected.extend(ids.iter().enumerate().map(|(offset, &id)| (start + offset, id)));
        self.ids.extend(ids);
    }
}

struct Encoder<'a> {
    data: &'a Dataset,
    tokenizer: Option<&'a Tokenizer>,
    chat: Option<ChatTemplate>,
    vocab_size: usize,
}

impl<'a> Encoder<'a> {
    fn new(data: &'a Dataset, tokenizer: Option<&'a Tokenizer>, vocab_size: usize) -> Result<Self> {
        let may_chat = data.options.chat
            && data.records.iter().any(|record| match record.kind {
                RecordKind::Text { .. } => data.options.prompt.is_some(),
                RecordKind::Tokens { .. } => false,
                RecordKind::Translation { .. } | RecordKind::Completion { .. } | RecordKind::Messages { .. } => true,
            });
        let chat = match tokenizer {
            Some(tokenizer) if may_chat => tokenizer.chat_template(data.options.date)?,
            _ => None,
        };
        Ok(Self { data, tokenizer, chat, vocab_size })
    }

    fn tokenizer(&self) -> Result<&'a Tokenizer> {
        self.tokenizer.ok_or_else(|| {
            Error::request(format!("{} holds text, and there is no tokenizer", self.data.path.display()))
                .with_help("copy the model's tokenizer.json into its folder, or pass data that holds input_ids")
        })
    }

    /// Refuses tokens the model has no embedding for.
    fn check_vocabulary(&self, ids: &[u32], line: Option<usize>) -> Result<()> {
        let Some(&id) = ids.iter().find(|&&id| usize::try_from(id).is_ok_and(|id| id >= self.vocab_size)) else {
            return Ok(());
        };
        let text = self.tokenizer.and_then(|t| t.token_text(id)).map(|text| format!(" ({text})")).unwrap_or_default();
        let problem = format!("token id {id}{text} is not below the model's vocab_size {}", self.vocab_size);
        let at = line.map(|line| format!("line {line}")).unwrap_or_default();
        Err(Error::data(&self.data.path, at, problem).with_help("the tokens, or the tokenizer.json, belong to another model"))
    }

    /// A whole text, tokenised once and cut. A last chunk of one token predicts nothing and is left out.
    fn chunks(&self, text: &str) -> Result<Vec<Example>> {
        let ids = self.tokenizer()?.encode(text)?;
        self.check_vocabulary(&ids, None)?;
        let mut chunks: Vec<&[u32]> = ids.chunks(self.data.options.seq_len).filter(|chunk| chunk.len() > 1).collect();
        if chunks.is_empty() {
            return Err(Error::data(&self.data.path, "", format!("no target token: the text has {} tokens", ids.len())));
        }
        self.data.options.select(&mut chunks);
        chunks
            .into_iter()
            .enumerate()
            .map(|(record, chunk)| {
                let mut sequence = Sequence::default();
                sequence.target(chunk.to_vec());
                Ok(Example { record, targets: self.targets(&sequence, chunk.len())?, ids: sequence.ids })
            })
            .collect()
    }

    fn record_examples(&self) -> Result<(Vec<Example>, usize)> {
        let seq_len = self.data.options.seq_len;
        let mut examples = Vec::with_capacity(self.data.records.len());
        let mut truncated = 0;
        for (index, record) in self.data.records.iter().enumerate() {
            let mut sequence = self.sequence(record)?;
            self.check_vocabulary(&sequence.ids, Some(record.line))?;
            let targets = self.targets(&sequence, sequence.ids.len())?;
            if targets.is_empty() {
                return Err(self.data.error(record.line, "no target token: nothing that the model is to predict"));
            }
            let before = targets.len();
            let mut targets = targets;
            if sequence.ids.len() > seq_len {
                truncated += 1;
                sequence.ids.truncate(seq_len);
                targets = self.targets(&sequence, seq_len)?;
                if targets.is_empty() {
                    let problem = format!("no target token: all {before} lie behind the first {seq_len} tokens");
                    return Err(self.data.error(record.line, problem).with_help("raise --seq-len, or shorten the prompt"));
                }
            }
            examples.push(Example { record: index, ids: sequence.ids, targets });
        }
        Ok((examples, truncated))
    }

    /// Targets at positions 1..length.
    fn targets(&self, sequence: &Sequence, length: usize) -> Result<Vec<Target>> {
        let counted = sequence.expected.iter().filter(|&&(position, _)| position > 0 && position < length);
        counted
            .map(|&(position, token)| {
                let row = u32::try_from(position - 1)
                    .map_err(|_| Error::data(&self.data.path, "", "a sequence of more than 2^32 tokens"))?;
                Ok(Target { row, token })
            })
            .collect()
    }

    fn sequence(&self, record: &Record) -> Result<Sequence> {
        let mut sequence = Sequence::default();
        match &record.kind {
            RecordKind::Text { text } => sequence.target(self.tokenizer()?.encode(text)?),
            RecordKind::Translation { source, target, source_lang, target_lang } => {
                let target = target.as_deref().ok_or_else(|| self.missing(record, "target"))?;
                let prompt = self.format(record, source, source_lang.as_deref(), target_lang.as_deref())?;
                self.pair(record, &prompt, target, &mut sequence)?;
            }
            RecordKind::Completion { prompt, completion } => {
                let completion = completion.as_deref().ok_or_else(|| self.missing(record, "completion"))?;
                self.pair(record, prompt, completion, &mut sequence)?;
            }
            RecordKind::Messages { messages } => self.conversation(record, messages, &mut sequence)?,
            RecordKind::Tokens { input_ids, labels } => match labels {
                None => sequence.target(input_ids.clone()),
                Some(labels) => {
                    sequence.context(input_ids.clone());
                    sequence.expected =
                        labels.iter().enumerate().filter_map(|(position, label)| Some((position, (*label)?))).collect();
                    let expected: Vec<u32> = labels.iter().flatten().copied().collect();
                    self.check_vocabulary(&expected, Some(record.line))?;
                }
            },
        }
        Ok(sequence)
    }

    fn missing(&self, record: &Record, field: &str) -> Error {
        self.data
            .error(record.line, format!("field {field} is missing: there is nothing to measure the model on"))
            .with_help("without a target a record only serves generation")
    }

    /// The prompt of a `source`, by `--prompt` or the default template.
    fn format(&self, record: &Record, source: &str, source_lang: Option<&str>, target_lang: Option<&str>) -> Result<String> {
        self.data.template.render(source, source_lang, target_lang).map_err(|field| {
            self.data
                .error(record.line, format!("field {field} is missing, and --prompt asks for it"))
                .with_help("add the field to the record, or write the language into --prompt")
        })
    }

    /// A prompt and the target that follows it.
    fn pair(&self, record: &Record, prompt: &str, target: &str, sequence: &mut Sequence) -> Result<()> {
        if self.chat.is_some() {
            let messages = [user(prompt), json!({"role": "assistant", "content": target})];
            return self.conversation(record, &messages, sequence);
        }
        let tokenizer = self.tokenizer()?;
        sequence.context(tokenizer.encode_beginning(prompt)?);
        sequence.target(tokenizer.encode_bare(target)?);
        if self.data.options.eos {
            let eos = tokenizer.eos_id().ok_or_else(|| {
                Error::data(&tokenizer.path, "", "no file beside it names an end-of-sequence token to close targets with")
                    .with_help("pass --no-eos, or add eos_token to tokenizer_config.json")
            })?;
            sequence.target(vec![eos]);
        }
        Ok(())
    }

    /// A chat up to its last assistant turn. Each such turn's target is what the template renders beyond the generation
    /// prompt, its end-of-turn marker included.
    fn conversation(&self, record: &Record, messages: &[Value], sequence: &mut Sequence) -> Result<()> {
        let tokenizer = self.tokenizer()?;
        let mut rendered = String::new();
        for (turn, _) in messages.iter().enumerate().filter(|(_, message)| is_assistant(message)) {
            let prompt = self.render(record, messages.get(..turn).unwrap_or_default(), true)?;
            let whole = self.render(record, messages.get(..=turn).unwrap_or_default(), false)?;
            let (Some(context), Some(target)) = (prompt.strip_prefix(rendered.as_str()), whole.strip_prefix(prompt.as_str()))
            else {
                let problem = format!(
                    "the chat template renders message {} otherwise once it is part of the conversation, so its tokens \
                     cannot be told from the prompt's",
                    turn + 1
                );
                return Err(self.data.error(record.line, problem).with_help("pass prompt and completion records with --no-chat"));
            };
            sequence.context(tokenizer.encode_bare(context)?);
            sequence.target(tokenizer.encode_bare(target)?);
            rendered = whole;
        }
        Ok(())
    }

    fn render(&self, record: &Record, messages: &[Value], add_generation_prompt: bool) -> Result<String> {
        let Some(chat) = &self.chat else {
            let (problem, help) = if self.data.options.chat {
                ("messages need a chat template, and the model has none", "add chat_template.jinja to the model's folder")
            } else {
                ("messages need the chat template that --no-chat turns off", "leave --no-chat away")
            };
            return Err(self.data.error(record.line, problem).with_help(help));
        };
        chat.render(messages, add_generation_prompt).map_err(|problem| self.data.error(record.line, problem))
    }

    /// Tokens of a prompt: a user's turn with the generation prompt behind it, or the text itself.
    fn prompt_ids(&self, record: &Record, prompt: &str) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        if self.chat.is_some() {
            tokenizer.encode_bare(&self.render(record, &[user(prompt)], true)?)
        } else {
            tokenizer.encode_beginning(prompt)
        }
    }

    fn prompt(&self, index: usize, record: &Record) -> Result<Prompt> {
        let (ids, reference, source_words) = match &record.kind {
            RecordKind::Text { text } if self.data.options.prompt.is_some() => {
                let prompt = self.format(record, text, None, None)?;
                (self.prompt_ids(record, &prompt)?, None, words(text))
            }
            RecordKind::Text { text } => (self.tokenizer()?.encode_beginning(text)?, None, words(text)),
            RecordKind::Translation { source, target, source_lang, target_lang } => {
                let prompt = self.format(record, source, source_lang.as_deref(), target_lang.as_deref())?;
                (self.prompt_ids(record, &prompt)?, target.clone(), words(source))
            }
            RecordKind::Completion { prompt, completion } => {
                (self.prompt_ids(record, prompt)?, completion.clone(), words(prompt))
            }
            RecordKind::Messages { messages } => {
                let (asked, reference) = match messages.split_last() {
                    Some((last, before)) if is_assistant(last) => (before, Some(content_text(last))),
                    _ => (messages.as_slice(), None),
                };
                let rendered = self.render(record, asked, true)?;
                let question = asked.iter().rev().find(|message| role(message) == Some("user")).map(content_text);
                (self.tokenizer()?.encode_bare(&rendered)?, reference, words(&question.unwrap_or_default()))
            }
            RecordKind::Tokens { input_ids, labels } => self.tokens_prompt(input_ids, labels.as_deref())?,
        };
        Ok(Prompt { record: index, ids, reference, source_words })
    }

    /// What stands before the first label, and the text of the labels where there is a tokenizer to say it.
    fn tokens_prompt(&self, input_ids: &[u32], labels: Option<&[Option<u32>]>) -> Result<(Vec<u32>, Option<String>, usize)> {
        let labels = labels.unwrap_or_default();
        let first = labels.iter().position(Option::is_some).unwrap_or(input_ids.len());
        let prompt = input_ids.get(..first).unwrap_or_default().to_vec();
        let Some(tokenizer) = self.tokenizer else { return Ok((prompt.clone(), None, prompt.len())) };
        let expected: Vec<u32> = labels.iter().flatten().copied().collect();
        let reference = if expected.is_empty() { None } else { Some(tokenizer.decode(&expected)?.trim().to_owned()) };
        let source_words = words(&tokenizer.decode(&prompt)?);
        Ok((prompt, reference, source_words))
    }
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn role(message: &Value) -> Option<&str> {
    message.get("role")?.as_str()
}

fn is_assistant(message: &Value) -> bool {
    role(message) == Some("assistant")
}

/// Text of a message: its content, or that of its text parts.
fn content_text(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().filter_map(|part| part.get("text")?.as_str()).collect(),
        _ => String::new(),
    }
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}
