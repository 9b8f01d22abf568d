//! `scan.json`: the result of a scan, in the order in which its fields are written. `prune --scan` reads it, the report is
//! drawn from it. Layers are numbered as in the model's folder and keep these numbers whatever has been removed.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The version of the format that this program writes and reads.
pub const SCHEMA: u32 = 1;

/// A whole scan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanJson {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of the program that wrote it.
    pub prunectl: String,
    /// The model that was scanned.
    pub model: Model,
    /// The data it was scored on.
    pub data: Data,
    /// `nll`, `kl`, `bi`, `tail`, `chrf`, `chrf++` or `bleu`.
    pub metric: String,
    /// Which scores are good.
    pub better: Better,
    /// Layers that were no candidates because they were protected, ascending.
    pub protected: Vec<usize>,
    /// Layers left out before the first round (`--already-removed`), in the order given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub already_removed: Vec<usize>,
    /// `cpu`, or the name of the GPU.
    pub device: String,
    /// Type of the arithmetic: `f32`, `bf16`.
    pub dtype: String,
    /// Whose matrix products, where they are not our own: scores then depend on the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gemm: Option<String>,
    /// Score of the model the first round starts from; none for `bi` and `tail`, which score layers and not models.
    pub baseline: Option<f64>,
    /// The rounds, in their order; one layer is removed in each.
    pub rounds: Vec<Round>,
    /// The removed layers, in the order of the rounds.
    pub order: Vec<usize>,
    /// The layers left after the last round, ascending.
    pub keep: Vec<usize>,
    /// Quality against depth, from the deepest model to the shallowest, where it was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depth: Vec<Depth>,
    /// Wall-clock time of the whole scan.
    pub seconds: f64,
    /// Energy that the device drew in this time, in joules, whoever used it; absent where it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
    /// Highest resident memory of the process.
    pub peak_memory_bytes: u64,
}

/// The model that was scanned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// As given on the command line.
    pub path: String,
    /// `architectures[0]` of config.json.
    pub architecture: String,
    /// Layers of the folder, before anything was removed.
    pub num_hidden_layers: usize,
    /// Identifies the weights.
    pub fingerprint: String,
}

/// The data a scan was scored on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// As given on the command line.
    pub path: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Records or chunks that were used.
    pub segments: u64,
    /// Tokens that count; none where texts are generated.
    pub target_tokens: Option<u64>,
    /// Records cut to the longest sequence.
    pub truncated: u64,
}

/// Which scores are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// A loss or distance.
    Lower,
    /// A quality.
    Higher,
}

/// One greedy round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// From 1.
    pub round: usize,
    /// Score of the model the round starts from.
    pub baseline: Option<f64>,
    /// Score of the model without each candidate layer, over all the data.
    pub scores: BTreeMap<usize, f64>,
    /// Candidates that a race dropped because they could not win, with what was known of them then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partial: BTreeMap<usize, Partial>,
    /// The layer this round removes.
    pub removed: usize,
    /// Its score.
    pub score: f64,
    /// How far it is ahead of the next best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<Margin>,
    /// Wall-clock time of the round.
    pub seconds: f64,
}

/// Score of a candidate over part of the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Partial {
    /// Score over the records seen.
    pub score: f64,
    /// How many were seen.
    pub records: u64,
    /// Standard error of the score.
    pub stderr: f64,
}

/// Lead of a round's winner over the next best candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Margin {
    /// The next best layer.
    pub runner_up: usize,
    /// By how much the winner is better, in the metric's own units: positive is better, for every metric.
    pub difference: f64,
    /// 95 % interval of `difference` from a paired bootstrap over records. A near-tie where it holds 0.
    pub interval: [f64; 2],
}

impl Margin {
    /// True where the data cannot tell the winner from the runner-up: the interval reaches 0.
    #[must_use]
    pub fn is_near_tie(&self) -> bool {
        self.interval[0].is_nan() || self.interval[0] <= 0.0
    }
}

/// A model of the curve of quality against depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Depth {
    /// Layers it has.
    pub layers: usize,
    /// Layers it lacks, in the order they were removed.
    pub removed: Vec<usize>,
    /// Its score.
    pub score: f64,
    /// Size of its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Number of its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// Measured speed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
}

impl ScanJson {
    /// Reads `scan.json` at `path`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] with line and column where it is not what this format says;
    /// [`Error::Unsupported`] for another schema.
    pub fn read(path: &Path) -> Result<Self> {
        let text = crate::io::read_text(path)?;
        // The message ends in line and column.
        let scan: Self = serde_json::from_str(&text).map_err(|e| Error::data(path, "", e.to_string()))?;
        if scan.schema != SCHEMA {
            return Err(Error::unsupported(path, "key schema", format!("schema {} (this build reads {SCHEMA})", scan.schema)));
        }
        Ok(scan)
    }

    /// The text of the file: indented, with a final newline.
    ///
    /// # Errors
    /// [`Error::Request`] if a value cannot be written as JSON, which only a bug could cause.
    pub fn to_text(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::request(format!("cannot write scan.json: {e}")))?;
        text.push('\n');
        Ok(text)
    }
}
