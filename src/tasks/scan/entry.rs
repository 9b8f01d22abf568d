//! What a scan writes into its journal.ndjson, one entry a line.

use serde::{Deserialize, Serialize};

/// What one record adds to a model's score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Share {
    /// Sum over the record's counted positions (nll, kl, bi), in f64.
    Sum(f64),
    /// Sufficient statistics of a generation metric.
    Counts(Vec<u64>),
}

/// One line after the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// Shares of some records in a round's scores.
    Shares {
        /// 1-based.
        round: usize,
        /// Removed layer of the candidate; absent for the model the round starts from.
        layer: Option<usize>,
        /// Records, by index.
        records: Vec<usize>,
        /// One a record.
        shares: Vec<Share>,
    },
    /// A text of the unpruned model, for `--references self`.
    Reference {
        /// Record, by index.
        record: usize,
        /// What it generated.
        text: String,
    },
    /// Timings of a finished round.
    Round {
        /// 1-based.
        round: usize,
        /// The layer it removed.
        removed: usize,
        /// Wall time, all runs added up.
        seconds: f64,
        /// Speed of the model the round ends with, in scored tokens a second.
        tokens_per_second: f64,
        /// Energy that the device drew in the time of `seconds`, where it tells.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        energy_joules: Option<f64>,
    },
}
