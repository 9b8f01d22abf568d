//! Records -> tokens, with a tokenizer whose ids can be written down by hand: byte + 3, <s> = 1 before every text, </s> = 2.

use prunectl::data::{DataOptions, Dataset, Example, Examples, Prompt, Prompts, Target, Tokenizer, eos_ids};
use prunectl::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

const BOS: u32 = 1;
const EOS: u32 = 2;
const VOCAB_SIZE: usize = 259;
const CHATML: &str = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// A model folder with the byte tokenizer, and a data file in it.
struct Case {
    folder: TempDir,
    options: DataOptions,
}

impl Case {
    fn new(name: &str, data: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/byte-tokenizer/tokenizer.json");
        std::fs::copy(fixture, folder.path().join("tokenizer.json")).unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, data).unwrap();
        let case = Self { folder, options: DataOptions::new(path, 64) };
        case.file("tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}}"#);
        case
    }

    fn jsonl(record: &str) -> Self {
        Self::new("data.jsonl", record)
    }

    fn file(&self, name: &str, content: &str) {
        std::fs::write(self.folder.path().join(name), content).unwrap();
    }

    fn with_chat(self) -> Self {
        self.file("chat_template.jinja", CHATML);
        self
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::open(self.folder.path()).unwrap()
    }

    fn examples(&self) -> Result<Examples> {
        Dataset::open(&self.options)?.examples(Some(&self.tokenizer()), VOCAB_SIZE)
    }

    fn prompts(&self) -> Result<Prompts> {
        Dataset::open(&self.options)?.prompts(Some(&self.tokenizer()), VOCAB_SIZE)
    }

    fn example(&self) -> Example {
        self.examples().unwrap().examples.remove(0)
    }

    fn prompt(&self) -> Prompt {
        self.prompts().unwrap().prompts.remove(0)
    }

    fn problem(&self) -> String {
        self.examples().expect_err("must be refused").to_string()
    }
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| u32::from(byte) + 3).collect()
}

fn join(parts: &[&[u32]]) -> Vec<u32> {
    parts.concat()
}

/// Targets at `positions` of `ids`.
fn targets(ids: &[u32], positions: impl IntoIterator<Item = usize>) -> Vec<Target> {
    positions.into_iter().map(|p| Target { row: u32::try_from(p - 1).unwrap(), token: ids[p] }).collect()
}

#[test]
fn the_byte_tokenizer_is_what_the_tests_say() {
    let tokenizer = Case::jsonl("{}").tokenizer();
    assert_eq!(tokenizer.encode("aß\n and more than eight").unwrap(), join(&[&[BOS], &bytes("aß\n and more than eight")]));
    assert_eq!(tokenizer.encode_bare("a</s>b").unwrap(), join(&[&bytes("a"), &[EOS], &bytes("b")]));
    assert_eq!(tokenizer.decode(&join(&[&[BOS], &bytes(" Grüße "), &[EOS]])).unwrap(), " Grüße ");
    assert_eq!(
        (tokenizer.vocab_size(), tokenizer.eos_ids(), tokenizer.special_id("bos_token")),
        (VOCAB_SIZE, &[EOS][..], Some(BOS))
    );
}

#[test]
fn every_token_of_a_text_but_the_first_is_a_target() {
    let example = Case::jsonl(r#"{"text": "abc"}"#).example();
    assert_eq!(example.ids, join(&[&[BOS], &bytes("abc")]));
    assert_eq!(example.targets, targets(&example.ids, 1..4));
}

#[test]
fn only_the_target_counts_and_eos_follows_it() {
    let record = r#"{"source": "S", "target": "tT", "source_lang": "English", "target_lang": "German"}"#;
    let mut case = Case::jsonl(record);
    case.options.seq_len = 128;
    let prompt = bytes("Translate the following text from English to German:\nS\n");
    let example = case.example();
    assert_eq!(example.ids, join(&[&[BOS], &prompt, &bytes("tT"), &[EOS]]));
    assert_eq!(example.targets, targets(&example.ids, prompt.len() + 1..prompt.len() + 4));
    case.options.eos = false;
    assert_eq!(case.example().targets.len(), 2);
    let generated = case.prompt();
    assert_eq!(generated.ids, join(&[&[BOS], &prompt]));
    assert_eq!((generated.reference.as_deref(), generated.source_words), (Some("tT"), 1));
}

#[test]
fn prompt_templates_and_the_languages_they_ask_for() {
    let mut case = Case::jsonl(r#"{"source": "a b", "target": "c", "target_lang": "Czech"}"#);
    assert_eq!(case.prompt().ids, join(&[&[BOS], &bytes("Translate the following text to Czech:\na b\n")]));
    case.options.prompt = Some("{target_lang}: {{{source}}}\\n".into());
    assert_eq!(case.prompt().ids, join(&[&[BOS], &bytes("Czech: {a b}\n")]));
    case.options.prompt = Some("{source_lang} {source}".into());
    assert!(case.problem().ends_with("line 1: field source_lang is missing, and --prompt asks for it"));
}

#[test]
fn a_chat_template_makes_turns_of_prompt_and_target() {
    let mut case = Case::jsonl(r#"{"prompt": "hi", "completion": "yo"}"#).with_chat();
    let prompt = bytes("<|user|>hi<|end|>\n<|assistant|>");
    let target = bytes("yo<|end|>\n");
    let example = case.example();
    assert_eq!(example.ids, join(&[&prompt, &target]));
    assert_eq!(example.targets, targets(&example.ids, prompt.len()..prompt.len() + target.len()));
    assert_eq!(case.prompt().ids, prompt);
    case.options.chat = false;
    assert_eq!(case.example().ids, join(&[&[BOS], &bytes("hiyo"), &[EOS]]));
    assert_eq!(case.prompt().ids, join(&[&[BOS], &bytes("hi")]));
}

#[test]
fn every_assistant_turn_of_a_chat_counts() {
    let mut case = Case::jsonl(concat!(
        r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a b c"}, "#,
        r#"{"role": "assistant", "content": "X"}, {"role": "user", "content": "d e"}, {"role": "assistant", "content": "Y"}]}"#
    ))
    .with_chat();
    case.options.seq_len = 256;
    let before = bytes("<|system|>s<|end|>\n<|user|>a b c<|end|>\n<|assistant|>");
    let between = bytes("<|user|>d e<|end|>\n<|assistant|>");
    let (x, y) = (bytes("X<|end|>\n"), bytes("Y<|end|>\n"));
    let example = case.example();
    assert_eq!(example.ids, join(&[&before, &x, &between, &y]));
    let second = before.len() + x.len() + between.len();
    assert_eq!(example.targets, targets(&example.ids, (before.len()..before.len() + x.len()).chain(second..second + y.len())));
    let prompt = case.prompt();
    assert_eq!(prompt.ids, example.ids[..second]);
    assert_eq!((prompt.reference.as_deref(), prompt.source_words), (Some("Y"), 2));
}

#[test]
fn input_ids_need_no_tokenizer() {
    let case = Case::jsonl("{\"input_ids\": [9, 8, 7, 6], \"labels\": [5, -100, 7, 4]}\n{\"input_ids\": [3, 4]}");
    let data = Dataset::open(&case.options).unwrap();
    assert!(!data.needs_tokenizer());
    let examples = data.examples(None, 10).unwrap();
    // labels[t] is predicted from t - 1; that of the first position has no prediction.
    assert_eq!(examples.examples[0].targets, [Target { row: 1, token: 7 }, Target { row: 2, token: 4 }]);
    assert_eq!(examples.examples[1], Example { record: 1, ids: vec![3, 4], targets: vec![Target { row: 0, token: 4 }] });
    assert_eq!(examples.target_tokens, 3);
    std::fs::remove_file(case.folder.path().join("tokenizer.json")).unwrap();
    assert!(Tokenizer::open_for(&data, case.folder.path()).unwrap().is_none());
    assert!(
        data.examples(None, 9).unwrap_err().to_string().ends_with("line 1: token id 9 is not below the model's vocab_size 9")
    );
    let labels = Case::jsonl("{\"input_ids\": [1, 2], \"labels\": [-100, 50]}");
    let error = Dataset::open(&labels.options).unwrap().examples(None, 10).unwrap_err();
    assert!(error.to_string().contains("line 1: token id 50 is not below"), "{error}");
}

#[test]
fn prompts_of_input_ids_end_before_the_first_label() {
    let ids: Vec<String> = bytes("one twoYES").iter().map(u32::to_string).collect();
    let labels: Vec<String> =
        bytes("one twoYES").iter().enumerate().map(|(i, id)| if i < 7 { "-100".into() } else { id.to_string() }).collect();
    let case = Case::jsonl(&format!("{{\"input_ids\": [{}], \"labels\": [{}]}}", ids.join(","), labels.join(",")));
    let prompt = case.prompt();
    assert_eq!((prompt.ids, prompt.reference.as_deref(), prompt.source_words), (bytes("one two"), Some("YES"), 2));
    let bare = Dataset::open(&case.options).unwrap().prompts(None, VOCAB_SIZE).unwrap().prompts.remove(0);
    assert_eq!((bare.ids, bare.reference), (bytes("one two"), None));
}

#[test]
fn a_text_file_is_tokenised_once_and_cut_into_chunks() {
    let mut case = Case::new("data.txt", "abcdefgh\n");
    case.options.seq_len = 3;
    let examples = case.examples().unwrap();
    // <s>ab cde fgh \n: the last chunk of one token predicts nothing.
    let ids: Vec<Vec<u32>> = examples.examples.iter().map(|e| e.ids.clone()).collect();
    assert_eq!(ids, [join(&[&[BOS], &bytes("ab")]), bytes("cde"), bytes("fgh")]);
    assert_eq!(examples.examples[1].targets, targets(&ids[1], 1..3));
    assert_eq!((examples.target_tokens, examples.truncated), (6, 0));
    case.options.limit = Some(2);
    case.options.shuffle = Some(3);
    let chosen = case.examples().unwrap().examples;
    assert_eq!(chosen.len(), 2);
    assert!(chosen.iter().enumerate().all(|(i, e)| e.record == i && ids.contains(&e.ids)));
}

#[test]
fn a_text_is_continued_as_it_stands_unless_a_prompt_is_given() {
    let mut case = Case::new("data.txt", "one two\n\nthree\n").with_chat();
    let prompts = case.prompts().unwrap().prompts;
    assert_eq!(prompts.len(), 2);
    assert_eq!((&prompts[0].ids, prompts[0].source_words), (&join(&[&[BOS], &bytes("one two")]), 2));
    assert_eq!((&prompts[1].ids, prompts[1].record), (&join(&[&[BOS], &bytes("three")]), 1));
    case.options.prompt = Some("Say: {source}".into());
    assert_eq!(case.prompt().ids, bytes("<|user|>Say: one two<|end|>\n<|assistant|>"));
}

#[test]
fn truncation_is_counted_and_never_leaves_a_record_without_targets() {
    let mut case = Case::jsonl("{\"text\": \"abcdef\"}\n{\"text\": \"ab\"}");
    case.options.seq_len = 4;
    let examples = case.examples().unwrap();
    assert_eq!(examples.truncated, 1);
    assert_eq!(examples.examples[0].ids, join(&[&[BOS], &bytes("abc")]));
    assert_eq!(examples.examples[0].targets, targets(&examples.examples[0].ids, 1..4));
    assert_eq!(case.prompts().unwrap().truncated, 1);
    let mut cut = Case::jsonl("{\"text\": \"ab\"}\n{\"prompt\": \"abcdef\", \"completion\": \"g\"}");
    cut.options.seq_len = 7;
    assert!(cut.problem().ends_with("line 2: no target token: all 2 lie behind the first 7 tokens"), "{}", cut.problem());
    cut.options.seq_len = 8;
    assert_eq!(cut.examples().unwrap().target_tokens, 3);
}

#[test]
fn records_without_a_target_are_refused_by_line() {
    for (record, expected) in [
        (r#"{"text": ""}"#, "line 1: no target token: nothing that the model is to predict"),
        (r#"{"source": "a"}"#, "line 1: field target is missing: there is nothing to measure the model on"),
        (r#"{"prompt": "a"}"#, "line 1: field completion is missing: there is nothing to measure the model on"),
        (r#"{"input_ids": [5]}"#, "line 1: no target token: nothing that the model is to predict"),
        (r#"{"input_ids": [5, 6], "labels": [5, -100]}"#, "line 1: no target token: nothing that the model is to predict"),
        (r#"{"messages": [{"role": "user", "content": "a"}]}"#, "line 1: no target token: nothing that the model is to predict"),
    ] {
        let found = Case::jsonl(record).with_chat().problem();
        assert!(found.ends_with(expected), "{record}: {found}");
    }
    let one_token = Case::new("data.txt", " \n").problem();
    assert!(one_token.ends_with("the file holds nothing but blank lines"), "{one_token}");
    // Generation does without: the prompt is all it needs.
    assert!(Case::jsonl(r#"{"source": "a"}"#).prompt().reference.is_none());
}

#[test]
fn chats_that_cannot_be_rendered_are_refused_by_line() {
    let record = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let mut case = Case::jsonl(record);
    assert!(case.problem().ends_with("line 1: messages need a chat template, and the model has none"));
    case.options.chat = false;
    assert!(case.problem().ends_with("line 1: messages need the chat template that --no-chat turns off"));
    case.options.chat = true;
    case.file("chat_template.jinja", "{{ raise_exception('Only pirates') }}");
    assert!(case.problem().ends_with("line 1: the chat template refuses this conversation: Only pirates"), "{}", case.problem());
    case.file("chat_template.jinja", "{% for m in messages %}{{ m.content.nonsense() }}{% endfor %}");
    assert!(case.problem().contains("line 1: the chat template of "), "{}", case.problem());
    case.file("chat_template.jinja", "\n{% for m in messages %}");
    assert!(case.problem().contains("chat_template.jinja: chat template line 2: "), "{}", case.problem());
    case.file("chat_template.jinja", "{% if add_generation_prompt %}think{% endif %}{{ messages[-1].content }}");
    assert!(case.problem().contains("line 1: the chat template renders message 2 otherwise"), "{}", case.problem());
    case.file("chat_template.jinja", "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}");
    assert!(case.problem().contains("fuel"), "{}", case.problem());
}

#[test]
fn tokenizers_that_are_absent_or_broken_are_named() {
    let case = Case::jsonl(r#"{"text": "a"}"#);
    let open = || Tokenizer::open(case.folder.path()).expect_err("must be refused").to_string();
    let whole = std::fs::read_to_string(case.folder.path().join("tokenizer.json")).unwrap();
    for broken in ["", "{}", "[]", "null", whole.get(..whole.len() / 2).unwrap(), "\u{0}"] {
        case.file("tokenizer.json", broken);
        assert!(open().contains("tokenizer.json: not a valid tokenizer: "), "{}", open());
    }
    std::fs::remove_file(case.folder.path().join("tokenizer.json")).unwrap();
    assert!(open().contains("tokenizer.json: there is no such file"), "{}", open());
    case.file("tokenizer.json", &whole);
    for (name, content, expected) in [
        ("tokenizer_config.json", "{", "tokenizer_config.json: broken JSON: "),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: expected a JSON object"),
        ("tokenizer_config.json", r#"{"chat_template": 5}"#, "key chat_template: expected a string or a list"),
        ("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": ""}]}"#, "without one named default"),
        (
            "generation_config.json",
            r#"{"eos_token_id": "</s>"}"#,
            "generation_config.json: key eos_token_id: expected a token id",
        ),
        ("generation_config.json", r#"{"eos_token_id": [1, -1]}"#, "generation_config.json: key eos_token_id: "),
    ] {
        case.file(name, content);
        assert!(open().contains(expected), "{}", open());
        std::fs::remove_file(case.folder.path().join(name)).unwrap();
    }
    let no_eos = Case::jsonl(r#"{"prompt": "a", "completion": "b"}"#);
    std::fs::remove_file(no_eos.folder.path().join("tokenizer_config.json")).unwrap();
    assert!(no_eos.problem().contains("no file beside it names an end-of-sequence token"), "{}", no_eos.problem());
}

#[test]
fn text_without_a_tokenizer_and_ids_of_another_model() {
    let case = Case::jsonl(r#"{"text": "aé"}"#);
    let data = Dataset::open(&case.options).unwrap();
    assert!(matches!(data.examples(None, VOCAB_SIZE), Err(Error::Request { .. })));
    let error = data.examples(Some(&case.tokenizer()), 150).unwrap_err().to_string();
    assert!(error.ends_with("line 1: token id 198 (Ã) is not below the model's vocab_size 150"), "{error}");
}

#[test]
fn eos_ids_come_from_the_first_file_that_names_them() {
    let case = Case::jsonl("{}");
    assert_eq!(case.tokenizer().eos_ids(), [EOS]);
    case.file("config.json", r#"{"eos_token_id": 7}"#);
    assert_eq!(case.tokenizer().eos_ids(), [7]);
    case.file("generation_config.json", r#"{"eos_token_id": [9, 8, 9]}"#);
    assert_eq!(case.tokenizer().eos_ids(), [8, 9]);
    assert_eq!(eos_ids(case.folder.path(), None).unwrap(), [8, 9]);
    // What closes a target is the tokenizer's own token all the same.
    assert_eq!(case.tokenizer().eos_id(), Some(EOS));
    case.file("generation_config.json", r#"{"eos_token_id": null}"#);
    assert_eq!(case.tokenizer().eos_ids(), [7]);
}

#[test]
fn named_templates_take_the_default_one_and_the_file_wins() {
    let case = Case::jsonl(r#"{"prompt": "hi"}"#);
    case.file(
        "tokenizer_config.json",
        r#"{"bos_token": "<s>", "chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "{{ bos_token }}D"}]}"#,
    );
    assert_eq!(case.prompt().ids, join(&[&[BOS], &bytes("D")]));
    case.file("chat_template.jinja", "F");
    assert_eq!(case.prompt().ids, bytes("F"));
}

fn use_or_refuse(case: &Case, tokenizer_json: &[u8]) {
    std::fs::write(case.folder.path().join("tokenizer.json"), tokenizer_json).unwrap();
    match Tokenizer::open(case.folder.path()) {
        Ok(tokenizer) => drop(tokenizer.encode("Some text, 12.").and_then(|ids| tokenizer.decode(&ids))),
        Err(error) => assert!(error.to_string().contains("tokenizer.json"), "{error}"),
    }
}

/// Bytes changed, cut out and put in: the library underneath may panic, we answer with an error that names the file.
#[test]
fn tokenizers_with_mutated_bytes_never_panic() {
    let case = Case::jsonl("{}");
    let whole = std::fs::read(case.folder.path().join("tokenizer.json")).unwrap();
    let mut random = prunectl::random::SplitMix64::new(1);
    let mut draw = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..=draw(3) {
            let at = draw(bytes.len());
            match draw(3) {
                0 => bytes[at] = b"0123456789\"{}[],:ne"[draw(19)],
                1 => drop(bytes.drain(at..(at + draw(40)).min(bytes.len()))),
                _ => bytes.insert(at, b"0123456789\"{}[],:ne"[draw(19)]),
            }
        }
        use_or_refuse(&case, &bytes);
    }
}

/// Valid JSON in which one value, outside the vocabulary, was replaced by another.
#[test]
fn tokenizers_with_mutated_values_never_panic() {
    fn values(value: &Value, pointer: &str, found: &mut Vec<String>) {
        found.push(pointer.to_owned());
        match value {
            Value::Object(fields) => {
                for (name, field) in fields.iter().filter(|(name, _)| *name != "vocab") {
                    values(field, &format!("{pointer}/{name}"), found);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    values(item, &format!("{pointer}/{index}"), found);
                }
            }
            _ => {}
        }
    }
    let case = Case::jsonl("{}");
    let whole: Value = serde_json::from_slice(&std::fs::read(case.folder.path().join("tokenizer.json")).unwrap()).unwrap();
    let mut pointers = Vec::new();
    values(&whole, "", &mut pointers);
    assert!(pointers.len() > 50);
    for pointer in pointers {
        for replacement in [json!(null), json!(-1), json!(4_000_000_000_u32), json!("x"), json!([]), json!({}), json!([[["a"]]])]
        {
            let mut mutated = whole.clone();
            *mutated.pointer_mut(&pointer).unwrap() = replacement;
            use_or_refuse(&case, mutated.to_string().as_bytes());
        }
    }
}
