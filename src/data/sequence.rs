//! What tasks get from a data set: token sequences with their targets, and prompts with their references.

/// One prediction that counts: the hidden state at `row` must predict `token`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Index into the sequence of the position that predicts (one before the target token itself).
    pub row: u32,
    /// The token to predict.
    pub token: u32,
}

/// A token sequence for nll, kl and bi.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// 0-based index of the record (or chunk of a text file) it comes from.
    pub record: usize,
    /// Token ids, at least one.
    pub ids: Vec<u32>,
    /// What counts, ascending by row; may be empty only for `bi`.
    pub targets: Vec<Target>,
}

/// A prompt for generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// 0-based index of the record it comes from.
    pub record: usize,
    /// Token ids, at least one.
    pub ids: Vec<u32>,
    /// The reference text, where the record has one.
    pub reference: Option<String>,
    /// White-space separated words of the source, for the default of --max-new-tokens.
    pub source_words: usize,
}
