//! Colours of the labels, and who decides about them. Everything is readable without.

use super::Color;
use anstyle::{AnsiColor, Style};

pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default().bold();
pub(crate) const OK: Style = AnsiColor::Green.on_default().bold();
pub(crate) const HELP: Style = AnsiColor::Cyan.on_default().bold();
pub(crate) const NOTE: Style = AnsiColor::Blue.on_default().bold();
pub(crate) const HEADING: Style = Style::new().bold().underline();

/// `text` in `style`; the stream it is written to removes the style where there is no colour.
pub(crate) fn label(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Decides for every stream of the process. `Auto` asks each stream: a terminal, NO_COLOR, TERM.
pub(crate) fn choose(color: Color) {
    match color {
        Color::Auto => anstream::ColorChoice::Auto,
        Color::Always => anstream::ColorChoice::Always,
        Color::Never => anstream::ColorChoice::Never,
    }
    .write_global();
}
