//! Rules that keep bad pairs out of the training data, as in arXiv 2510.22763: pairs of very different lengths, too long, too
//! short, with markup, or copied.

use crate::data::{Record, RecordKind};
use serde::Serialize;

/// Which rules apply. A record is dropped by the first rule it breaks, in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Filters {
    /// Neither side may have more than this times the other's characters.
    pub max_ratio: Option<f64>,
    /// Neither side may have fewer words (separated by white space).
    pub min_words: Option<usize>,
    /// Neither side may have more words.
    pub max_words: Option<usize>,
    /// Neither side may hold tags or entities of HTML or XML.
    pub no_markup: bool,
    /// The sides may not be the same text.
    pub no_copies: bool,
}

/// How many records each rule dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// By [`Filters::max_ratio`].
    pub ratio: usize,
    /// By [`Filters::min_words`].
    pub too_short: usize,
    /// By [`Filters::max_words`].
    pub too_long: usize,
    /// By [`Filters::no_markup`].
    pub markup: usize,
    /// By [`Filters::no_copies`].
    pub copies: usize,
}

impl Dropped {
    /// By all rules together.
    #[must_use]
    pub fn total(&self) -> usize {
        self.ratio + self.too_short + self.too_long + self.markup + self.copies
    }
}

impl Filters {
    /// True if no rule applies.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Removes the records that break a rule, and says how many broke which. A record of one text has one side, for which
    /// ratio and copies mean nothing; conversations and token ids are kept as they are.
    pub fn apply(&self, records: &mut Vec<Record>) -> Dropped {
        let mut dropped = Dropped::default();
        records.retain(|record| {
            let (first, second) = match &record.kind {
                RecordKind::Text { text } => (text.as_str(), None),
                RecordKind::Translation { source, target, .. } => (source.as_str(), target.as_deref()),
                RecordKind::Completion { prompt, completion } => (prompt.as_str(), completion.as_deref()),
                RecordKind::Messages { .. } | RecordKind::Tokens { .. } => return true,
            };
            let rule = self.broken(first, second, &mut dropped);
            rule.map(|count| *count += 1).is_none()
        });
        dropped
    }

    /// The count of the first rule that a record breaks.
    fn broken<'a>(&self, first: &str, second: Option<&str>, dropped: &'a mut Dropped) -> Option<&'a mut usize> {
        let sides = || std::iter::once(first).chain(second);
        let words = |side: &str| side.split_whitespace().count();
        if let (Some(most), Some(second)) = (self.max_ratio, second) {
            #[expect(clippy::cast_precision_loss, reason = "lengths of texts are far below 2^52")]
            let [a, b] = [first, second].map(|side| side.chars().count() as f64);
            if a > b * most || b > a * most {
                return Some(&mut dropped.ratio);
            }
        }
        if self.min_words.is_some_and(|least| sides().any(|side| words(side) < least)) {
            return Some(&mut dropped.too_short);
        }
        if self.max_words.is_some_and(|most| sides().any(|side| words(side) > most)) {
            return Some(&mut dropped.too_long);
        }
        if self.no_markup && sides().any(has_markup) {
            return Some(&mut dropped.markup);
        }
        if self.no_copies && second.is_some_and(|second| first.trim() == second.trim()) {
            return Some(&mut dropped.copies);
        }
        None
    }
}

/// A tag (`<b>`, `</b>`, `<br/>`, `<!--`) or an entity (`&amp;`, `&#39;`).
fn has_markup(text: &str) -> bool {
    let tag = text.split('<').skip(1).any(|after| {
        let opens = after.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '!');
        opens && after.contains('>')
    });
    let entity = text.split('&').skip(1).any(|after| {
        let Some((name, _)) = after.split_once(';') else { return false };
        let name = name.strip_prefix('#').unwrap_or(name);
        (1..=8).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric())
    });
    tag || entity
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn pair(source: &str, target: &str) -> Record {
        let kind =
            RecordKind::Translation { source: source.into(), target: Some(target.into()), source_lang: None, target_lang: None };
        Record { line: 1, kind, object: Map::new() }
    }

    #[test]
    fn each_rule_drops_what_it_is_for_and_counts_it() {
        let filters = Filters { max_ratio: Some(2.0), min_words: Some(2), max_words: Some(4), no_markup: true, no_copies: true };
        let mut records = vec![
            pair("two words", "zwei Wörter"),
            pair("a very long source", "kurz"),
            pair("word", "Wort"),
            pair("one two three four five", "eins zwei drei vier fünf"),
            pair("a <b>tag</b> here", "ein Tag hier dort"),
            pair("salt &amp; pepper", "Salz und Pfeffer"),
            pair("the same", "the same"),
            pair("3 < 4", "R&D 4 >"),
        ];
        let dropped = filters.apply(&mut records);
        assert_eq!(dropped, Dropped { ratio: 1, too_short: 1, too_long: 1, markup: 2, copies: 1 });
        assert_eq!(records.len(), 2);
    }

    #[test]
    fn nothing_is_dropped_without_a_rule() {
        let mut records = vec![pair("", ""), pair("<b>", "<b>")];
        assert_eq!(Filters::default().apply(&mut records), Dropped::default());
        assert_eq!(records.len(), 2);
    }

    #[test]
    fn equal_to_a_limit_is_within_it() {
        let mut records = vec![pair("ab cd", "ab cd efgh"), pair("ab cd", "ab cd efghi")];
        let dropped = Filters { max_ratio: Some(2.0), ..Filters::default() }.apply(&mut records);
        assert_eq!((dropped.ratio, records.len()), (1, 1));
    }
}
