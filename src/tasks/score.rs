//! Scores texts that someone generated against references: no model, no device.

use crate::error::{Error, Result};
use crate::metrics::{Metric, Scorer, Stats, strip};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What to score.
#[derive(Debug, Clone)]
pub struct Request {
    /// Hypotheses: `.jsonl` with the field `hypothesis`, else text with a segment a line.
    pub hypotheses: PathBuf,
    /// References: `.jsonl` with the field `target` or `reference`, else text with a segment a line.
    pub references: PathBuf,
    /// Which scores, in the order of the report.
    pub metrics: Vec<Metric>,
}

/// The scores.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// File of the hypotheses.
    pub hypotheses: PathBuf,
    /// File of the references.
    pub references: PathBuf,
    /// Number of segments.
    pub segments: usize,
    /// Corpus scores by the metrics' names, beside the other fields as in the report of `eval`.
    #[serde(flatten)]
    pub scores: Map<String, Value>,
    /// What sacreBLEU prints for the same computation, by the metrics' names.
    pub signatures: Map<String, Value>,
}

/// Reads both files and scores them.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] with the line for what is not UTF-8, not JSON, or lacks the field, for files of different
/// lengths and for files without a segment.
pub fn run(request: &Request) -> Result<Report> {
    let hypotheses = segments(&request.hypotheses, &["hypothesis"])?;
    let references = segments(&request.references, &["target", "reference"])?;
    if hypotheses.len() != references.len() {
        let (shorter, longer) = if hypotheses.len() < references.len() {
            (&request.hypotheses, &request.references)
        } else {
            (&request.references, &request.hypotheses)
        };
        let (few, many) = (hypotheses.len().min(references.len()), hypotheses.len().max(references.len()));
        return Err(Error::data(
            shorter,
            format!("line {few}"),
            format!("the file ends after {few} segments, {} has {many}", longer.display()),
        )
        .with_help("hypotheses and references are paired line by line"));
    }
    let (mut scores, mut signatures) = (Map::new(), Map::new());
    for &metric in &request.metrics {
        let scorer = Scorer::new(metric);
        // Sums of integers: the same whatever the order.
        let corpus = hypotheses
            .par_iter()
            .zip(&references)
            .map(|(hypothesis, reference)| scorer.segment(strip(hypothesis), reference))
            .reduce(Stats::default, |mut sum, segment| {
                sum += segment;
                sum
            });
        scores.insert(metric.name().to_owned(), scorer.corpus(&corpus).into());
        signatures.insert(metric.name().to_owned(), scorer.signature().into());
    }
    Ok(Report {
        hypotheses: request.hypotheses.clone(),
        references: request.references.clone(),
        segments: hypotheses.len(),
        scores,
        signatures,
    })
}

/// The segments of a file; in JSONL, where blank lines do not count, the first of `fields` that a record has.
fn segments(path: &Path, fields: &[&str]) -> Result<Vec<String>> {
    let bytes = crate::io::read(path)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        Error::data(path, format!("line {line}"), "not valid UTF-8")
    })?;
    if text.is_empty() {
        return Err(Error::data(path, "", "the file is empty"));
    }
    // As in sacreBLEU, a line ends at U+000A and nowhere else.
    let lines = text.strip_suffix('\n').unwrap_or(&text).split('\n');
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl")) {
        let records = lines.enumerate().filter(|(_, line)| !line.trim().is_empty());
        records.map(|(index, line)| field(path, index + 1, line, fields)).collect()
    } else {
        Ok(lines.map(str::to_owned).collect())
    }
}

fn field(path: &Path, line: usize, text: &str, fields: &[&str]) -> Result<String> {
    let at = || format!("line {line}");
    let record: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| Error::data(path, at(), format!("not a JSON object: column {}", e.column())))?;
    let wanted = fields.join("` or `");
    match fields.iter().find_map(|&name| record.get(name)) {
        Some(Value::String(value)) => Ok(value.clone()),
        Some(_) => Err(Error::data(path, at(), format!("`{wanted}` is not a string"))),
        None => Err(Error::data(path, at(), format!("no field `{wanted}`"))),
    }
}
