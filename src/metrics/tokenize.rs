//! sacreBLEU's tokenizers for BLEU. Each turns a line into one in which white space separates tokens.
//!
//! The originals are chains of regular-expression substitutions, each of which replaces matches from left to right
//! without overlap. They are walked by hand here: a pattern of two character classes is [`at_pairs`], one of a single
//! class [`around`].
//!
//! `intl` asks for Unicode's general categories. A character assigned after Unicode 16 counts as unassigned here, while
//! sacreBLEU goes by whatever version of the `regex` package is installed with it.

use super::whitespace::{strip, strip_end};
use std::fmt;
use std::str::FromStr;
use unicode_general_category::{GeneralCategory, get_general_category};

/// How BLEU cuts text into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BleuTokenizer {
    /// mteval-v13a, for languages written with spaces: the default.
    #[default]
    V13a,
    /// Chinese characters apart, the rest as 13a's expressions do.
    Zh,
    /// Every character a token.
    Char,
    /// mteval-v14: punctuation and symbols of all of Unicode.
    Intl,
    /// Already tokenised: split at white space.
    None,
}

impl BleuTokenizer {
    /// All of them, in the order they are offered.
    pub const ALL: [Self; 5] = [Self::V13a, Self::Zh, Self::Char, Self::Intl, Self::None];

    /// The name in sacreBLEU: `13a`, `zh`, `char`, `intl`, `none`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V13a => "13a",
            Self::Zh => "zh",
            Self::Char => "char",
            Self::Intl => "intl",
            Self::None => "none",
        }
    }

    /// `line` with white space between its tokens (and, other than in sacreBLEU, perhaps more than one space). The end
    /// of the line is stripped first.
    #[must_use]
    pub fn tokenize(self, line: &str) -> String {
        let line = strip_end(line);
        match self {
            Self::V13a => v13a(line),
            Self::Zh => zh(line),
            Self::Char => line.chars().flat_map(|c| [c, ' ']).collect(),
            Self::Intl => intl(line),
            Self::None => line.to_owned(),
        }
    }
}

impl fmt::Display for BleuTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BleuTokenizer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|tokenizer| tokenizer.name() == name)
            .ok_or_else(|| format!("unknown tokenizer {name:?}, expected one of 13a, zh, char, intl, none"))
    }
}

/// The one entity table of 13a, in its order: `&amp;quot;` becomes `&quot;`, but `&amp;lt;` becomes `<`.
const ENTITIES: [(&str, &str); 4] = [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")];

fn v13a(line: &str) -> String {
    let mut line = line.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        for (entity, character) in ENTITIES {
            line = line.replace(entity, character);
        }
    }
    western(&format!(" {line} "))
}

/// What 13a and zh share: the "language-dependent part (assuming Western languages)" of mteval-v13a.
fn western(line: &str) -> String {
    let line = around(line, |c| matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/'));
    let point = |c| matches!(c, '.' | ',');
    let digit = |c: char| c.is_ascii_digit();
    let line = at_pairs(&line, |a, b| !digit(a) && point(b), Spaces::AroundSecond);
    let line = at_pairs(&line, |a, b| point(a) && !digit(b), Spaces::AroundFirst);
    at_pairs(&line, |a, b| digit(a) && b == '-', Spaces::AroundSecond)
}

fn zh(line: &str) -> String {
    western(&around(strip(line), is_chinese))
}

/// sacreBLEU's idea of a Chinese character. Two ranges are far from what its table means: `\u20000`-`\u2a6d6` and
/// `\u2f800`-`\u2fa1d` are two-character strings to Python, and comparing one character with them gives U+2001-U+2A6D
/// (dashes, curly quotes, arrows, …) and U+2F81-U+2FA1, while the ideographs beyond U+FFFF are left out.
fn is_chinese(c: char) -> bool {
    matches!(c,
        '\u{2001}'..='\u{2a6d}'
        | '\u{2e80}'..='\u{2fdf}'
        | '\u{2ff0}'..='\u{303f}'
        | '\u{3100}'..='\u{312f}'
        | '\u{31a0}'..='\u{31bf}'
        | '\u{31c0}'..='\u{31ef}'
        | '\u{3200}'..='\u{33ff}'
        | '\u{3400}'..='\u{4db5}'
        | '\u{4e00}'..='\u{9fbb}'
        | '\u{f900}'..='\u{fa2d}'
        | '\u{fa30}'..='\u{fa6a}'
        | '\u{fa70}'..='\u{fad9}'
        | '\u{fe10}'..='\u{fe1f}'
        | '\u{fe30}'..='\u{fe4f}'
        | '\u{ff00}'..='\u{ffef}')
}

fn intl(line: &str) -> String {
    let class = |c: char| Class::of(c);
    let line = at_pairs(line, |a, b| class(a) != Class::Number && class(b) == Class::Punctuation, Spaces::AroundSecond);
    let line = at_pairs(&line, |a, b| class(a) == Class::Punctuation && class(b) != Class::Number, Spaces::AroundFirst);
    around(&line, |c| class(c) == Class::Symbol)
}

/// The major classes of Unicode's general category that `intl` tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Number,
    Punctuation,
    Symbol,
    Other,
}

impl Class {
    fn of(c: char) -> Self {
        use GeneralCategory as G;
        match get_general_category(c) {
            G::DecimalNumber | G::LetterNumber | G::OtherNumber => Self::Number,
            G::ConnectorPunctuation
            | G::DashPunctuation
            | G::OpenPunctuation
            | G::ClosePunctuation
            | G::InitialPunctuation
            | G::FinalPunctuation
            | G::OtherPunctuation => Self::Punctuation,
            G::MathSymbol | G::CurrencySymbol | G::ModifierSymbol | G::OtherSymbol => Self::Symbol,
            _ => Self::Other,
        }
    }
}

/// Replaces each character of a class by itself between spaces.
fn around(line: &str, class: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(line.len() + line.len() / 2);
    for c in line.chars() {
        if class(c) {
            out.extend([' ', c, ' ']);
        } else {
            out.push(c);
        }
    }
    out
}

/// Where [`at_pairs`] puts its two spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spaces {
    /// `ab` becomes `a b `.
    AroundSecond,
    /// `ab` becomes ` a b`.
    AroundFirst,
}

/// Replaces pairs of neighbours from left to right; both characters of a pair are consumed.
fn at_pairs(line: &str, pair: impl Fn(char, char) -> bool, spaces: Spaces) -> String {
    let mut out = String::with_capacity(line.len() + line.len() / 2);
    let mut rest = line.chars();
    while let Some(a) = rest.next() {
        match rest.clone().next() {
            Some(b) if pair(a, b) => {
                rest.next();
                match spaces {
                    Spaces::AroundSecond => out.extend([a, ' ', b, ' ']),
                    Spaces::AroundFirst => out.extend([' ', a, ' ', b]),
                }
            }
            _ => out.push(a),
        }
    }
    out
}
