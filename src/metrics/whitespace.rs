//! White space as Python's `str` methods see it: Rust's `char::is_whitespace` and the four separators U+001C to U+001F,
//! which Python counts (bidirectional class B or S) and Unicode's White_Space property does not.

/// Python's `str.isspace` of one character.
#[must_use]
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.split()`: the words between runs of white space.
pub fn split_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Python's `str.strip()`. What commands do to a hypothesis before it is scored or written.
#[must_use]
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `str.rstrip()`.
pub(super) fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list is what CPython 3.11 prints for `[c for c in range(0x110000) if chr(c).isspace()]`.
    #[test]
    fn space_is_what_python_calls_space() {
        let python = [
            0x9, 0xa, 0xb, 0xc, 0xd, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x85, 0xa0, 0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004,
            0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200a, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000,
        ];
        let ours: Vec<u32> = ('\0'..=char::MAX).filter(|&c| is_space(c)).map(u32::from).collect();
        assert_eq!(ours, python);
    }

    #[test]
    fn words_and_ends() {
        assert_eq!(split_words(" a\u{1c}b\u{3000}\u{85}c ").collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(split_words("\u{1f}").count(), 0);
        assert_eq!(strip("\u{1e} a b\u{a0}"), "a b");
        assert_eq!(strip_end("\u{1e} a\u{2029}"), "\u{1e} a");
    }
}
