//! Text for HTML and SVG: escaping, numbers, quantities.

use super::scan_json::{Better, ScanJson};

/// `text` as character data or attribute value of HTML and XML. Control characters that XML forbids become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(c),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// Decimals that a metric is worth: losses differ in the fourth, percentages in the second.
fn decimals(scan: &ScanJson) -> usize {
    match scan.better {
        Better::Lower => 4,
        Better::Higher => 2,
    }
}

/// A score.
pub(super) fn score(scan: &ScanJson, value: f64) -> String {
    if value.is_finite() { format!("{value:.*}", decimals(scan)).replace('-', "−") } else { "not a number".into() }
}

/// A difference, with its sign.
pub(super) fn difference(scan: &ScanJson, value: f64) -> String {
    if value.is_finite() { format!("{value:+.*}", decimals(scan)).replace('-', "−") } else { "not a number".into() }
}

/// What `value` is worse than the baseline of its round; the value itself where there is no baseline (block influence).
pub(super) fn cost(scan: &ScanJson, baseline: Option<f64>, value: f64) -> f64 {
    match (baseline, scan.better) {
        (None, _) => value,
        (Some(baseline), Better::Lower) => value - baseline,
        (Some(baseline), Better::Higher) => baseline - value,
    }
}

/// Bytes in decimal units.
pub(super) fn bytes(count: u64) -> String {
    scaled(count, &[(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")]).unwrap_or_else(|| format!("{count} B"))
}

/// A number of parameters.
pub(super) fn parameters(count: u64) -> String {
    scaled(count, &[(1_000_000_000, "billion"), (1_000_000, "million")]).unwrap_or_else(|| grouped(count))
}

/// Three significant digits in the largest of `units` that fits.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn scaled(count: u64, units: &[(u64, &str)]) -> Option<String> {
    let &(unit, name) = units.iter().find(|(unit, _)| count >= *unit)?;
    let value = count as f64 / unit as f64;
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    Some(format!("{value:.decimals$} {name}"))
}

/// A whole number with a narrow space before every three digits.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A duration.
pub(super) fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else if seconds < 3600.0 {
        format!("{:.0} min {:.0} s", (seconds / 60.0).floor(), (seconds % 60.0).floor())
    } else {
        format!("{:.0} h {:.0} min", (seconds / 3600.0).floor(), (seconds % 3600.0 / 60.0).floor())
    }
}

/// Numbers between commas.
pub(super) fn list(numbers: &[usize], separator: &str) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(separator)
}

/// `word` as one argument of a POSIX shell.
pub(super) fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_and_controls_are_escaped() {
        assert_eq!(escape("<a href=\"x\">'&\0\u{1b}é"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;\u{fffd}\u{fffd}é");
    }

    #[test]
    fn quantities() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(269_060_552), "269 MB");
        assert_eq!(bytes(1_234_000_000), "1.23 GB");
        assert_eq!(parameters(134_515_008), "135 million");
        assert_eq!(parameters(49_152), "49\u{202f}152");
        assert_eq!(seconds(59.94), "59.9 s");
        assert_eq!(seconds(125.9), "2 min 5 s");
        assert_eq!(seconds(7_260.0), "2 h 1 min");
        assert_eq!(shell("models/smollm2"), "models/smollm2");
        assert_eq!(shell("my model's"), r"'my model'\''s'");
    }
}
