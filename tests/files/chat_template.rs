//! Chat templates against what Jinja2 renders with the settings of transformers (`scripts/make-template-fixtures`).

use prunectl::data::ChatTemplate;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat-templates")
}

struct Fixtures {
    document: Value,
    special_tokens: BTreeMap<String, String>,
    date: jiff::civil::Date,
}

fn fixtures() -> Fixtures {
    let text = std::fs::read_to_string(folder().join("expected.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let special_tokens = document["special_tokens"].as_object().unwrap();
    Fixtures {
        special_tokens: special_tokens.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect(),
        date: document["date"].as_str().unwrap().parse().unwrap(),
        document,
    }
}

fn compile(source: &str) -> ChatTemplate {
    let Fixtures { special_tokens, date, .. } = fixtures();
    ChatTemplate::new(Path::new("test.jinja"), source, special_tokens, Some(date)).unwrap()
}

/// `{ x }` of a conversation with one user's turn.
fn render(source: &str) -> Result<String, String> {
    compile(source).render(&[serde_json::json!({"role": "user", "content": "hi"})], true)
}

fn check(name: &str) {
    let fixtures = fixtures();
    let source = std::fs::read_to_string(folder().join(name)).unwrap();
    let template = compile(&source);
    let cases: Vec<&Value> = fixtures.document["cases"].as_array().unwrap().iter().filter(|c| c["template"] == name).collect();
    assert!(cases.len() >= 4, "{name} has {} cases", cases.len());
    for case in cases {
        let conversation = case["conversation"].as_str().unwrap();
        let messages = fixtures.document["conversations"][conversation].as_array().unwrap();
        let rendered = template.render(messages, case["add_generation_prompt"].as_bool().unwrap());
        let place = format!("{name}, {conversation}, generation prompt {}", case["add_generation_prompt"]);
        match (&case["text"], &case["refused"]) {
            (Value::String(text), _) => match rendered {
                Ok(rendered) => {
                    for (line, (found, expected)) in rendered.lines().zip(text.lines()).enumerate() {
                        assert_eq!(found, expected, "{place}, line {} of the output", line + 1);
                    }
                    assert_eq!(&rendered, text, "{place}");
                }
                Err(problem) => panic!("{place}: {problem}"),
            },
            (_, Value::String(message)) => {
                assert_eq!(rendered.unwrap_err(), format!("the chat template refuses this conversation: {message}"), "{place}");
            }
            _ => panic!("{place}: neither text nor refusal"),
        }
    }
}

#[test]
fn chatml() {
    check("chatml.jinja");
}

#[test]
fn header_blocks() {
    check("header-blocks.jinja");
}

#[test]
fn thinking() {
    check("thinking.jinja");
}

#[test]
fn alternating() {
    check("alternating.jinja");
}

#[test]
fn instruction() {
    check("instruction.jinja");
}

#[test]
fn language() {
    check("language.jinja");
}

#[test]
fn json() {
    check("json.jinja");
}

#[test]
fn every_template_of_the_folder_has_a_test() {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|e| e == "jinja"))
        .collect();
    names.sort();
    let tested = [
        "alternating.jinja",
        "chatml.jinja",
        "header-blocks.jinja",
        "instruction.jinja",
        "json.jinja",
        "language.jinja",
        "thinking.jinja",
    ];
    assert_eq!(names, tested);
}

#[test]
fn line_ends_of_a_template_become_lf() {
    assert_eq!(render("{% if true %}\r\na\r\n{% endif %}\r\nb\rc\r\n").unwrap(), "a\nb\nc");
}

#[test]
fn without_a_date_the_template_sees_today() {
    let template = ChatTemplate::new(Path::new("t"), "{{ strftime_now('%Y-%m-%d') }}", BTreeMap::new(), None).unwrap();
    assert!(template.uses_date());
    // Midnight may pass between the two readings.
    let before = jiff::ZonedDateTime::now().date().to_string();
    let rendered = template.render(&[], false).unwrap();
    assert!([before, jiff::ZonedDateTime::now().date().to_string()].contains(&rendered), "{rendered}");
    assert!(!compile("plain").uses_date());
}

#[test]
fn failures_say_where() {
    let error = ChatTemplate::new(Path::new("some.jinja"), "a\n{% if %}", BTreeMap::new(), None).unwrap_err();
    assert!(error.to_string().starts_with("some.jinja: chat template line 2: syntax error"), "{error}");
    assert_eq!(error.exit_code(), 1);
    for (source, expected) in [
        ("\n{{ messages[0].content.nonsense() }}", "the chat template of test.jinja line 2 fails: unknown method"),
        ("{{ nothing.at.all }}", "the chat template of test.jinja line 1 fails: undefined value"),
        ("{% include 'other' %}", "the chat template of test.jinja line 1 fails: template not found"),
        (
            "{{ 1 | tojson(indent=1000) }}",
            "the chat template of test.jinja line 1 fails: invalid operation: tojson: indent must be",
        ),
        ("{{ strftime_now('%!') }}", "the chat template of test.jinja line 1 fails: invalid operation: strftime_now: "),
        ("{{ raise_exception }}{{ raise_exception('no') }}", "the chat template refuses this conversation: no"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template of test.jinja line 1 fails: "),
    ] {
        let found = render(source).unwrap_err();
        assert!(found.starts_with(expected), "{source}: {found}");
    }
}
