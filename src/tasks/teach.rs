//! Teach: a teacher's most likely tokens for every target of a data set, written once for many students.

use super::train::order::micro_batches;
use super::train::top_k::{About, TopK, pick, write};
use crate::data::Example;
use crate::error::{Error, Result};
use crate::model::{Batch, Decoder, LayerPlan, Scratch, packed_targets};
use crate::ops::Backend;
use crate::progress::Progress;
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Rows of a forward pass, at most.
const ROWS: usize = 2048;
/// Rows whose logits are there at once.
const LOGIT_ROWS: usize = 64;

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The file.
    pub out: PathBuf,
    /// Examples.
    pub examples: usize,
    /// Their targets.
    pub target_tokens: usize,
    /// Tokens kept a target.
    pub top_k: usize,
    /// Share of the teacher's probability that the kept tokens have, mean over the targets.
    pub kept_probability: f64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Writes the file at `out`.
///
/// # Errors
/// [`Error::Request`] for `top_k` of 0 or above the vocabulary, or an `out` that exists without `force`; [`Error::Io`];
/// [`Error::Interrupted`], with nothing written; those of the ops.
pub fn teach<B: Backend>(
    decoder: &Decoder<B>,
    plan: &LayerPlan,
    examples: &[Example],
    about: &About,
    out: &Path,
    force: bool,
    progress: &dyn Progress,
) -> Result<Report> {
    let vocab_size = decoder.config().vocab_size;
    if about.k == 0 || about.k > vocab_size {
        return Err(Error::request(format!("--top-k {}: the vocabulary has {vocab_size} tokens", about.k)));
    }
    if out.exists() && !force {
        return Err(
            Error::request(format!("{} exists", out.display())).with_help("choose another --out, or pass --force to replace it")
        );
    }
    let start = Instant::now();
    let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
    let all: Vec<usize> = (0..examples.len()).collect();
    let mut batches = micro_batches(&all, &lengths, ROWS).into_iter();
    let mut scratch = Scratch::new(decoder.backend())?;
    let mut kept = 0.0;
    progress.begin("asking the teacher", lengths.iter().sum::<usize>() as u64);
    write(out, about, examples, || {
        progress.check("nothing was written")?;
        let Some(part) = batches.next() else { return Ok(TopK::default()) };
        let top = top_k(decoder, plan, part.iter().map(|&i| &examples[i]), about.k, &mut scratch)?;
        kept += top.log_probs.iter().map(|&p| f64::from(p).exp()).sum::<f64>();
        progress.advance(part.iter().map(|&i| lengths[i] as u64).sum());
        Ok(top)
    })?;
    progress.end();
    let target_tokens: usize = examples.iter().map(|e| e.targets.len()).sum();
    #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
    let kept_probability = kept / target_tokens.max(1) as f64;
    Ok(Report {
        out: out.to_path_buf(),
        examples: examples.len(),
        target_tokens,
        top_k: about.k,
        kept_probability,
        bytes: std::fs::metadata(out).map_err(Error::io("read", out))?.len(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The most likely tokens at the targets of some examples.
fn top_k<'a, B: Backend>(
    decoder: &Decoder<B>,
    plan: &LayerPlan,
    examples: impl Iterator<Item = &'a Example> + Clone,
    k: usize,
    scratch: &mut Scratch<B>,
) -> Result<TopK> {
    let batch = Batch::pack(examples.clone().map(|e| e.ids.as_slice()));
    let (rows, _) = packed_targets(&batch.starts, examples.map(|e| e.targets.as_slice()));
    let hidden = decoder.forward(&batch, plan, scratch, |_, _| Ok(()))?;
    let mut top = TopK::default();
    for rows in rows.chunks(LOGIT_ROWS) {
        let logits = decoder.logits(&decoder.normed_rows(&hidden, rows)?)?;
        if let Some(bad) = logits.iter().find(|x| !x.is_finite()) {
            decoder.folder().check_finite()?;
            return Err(Error::Device {
                problem: format!("a logit of the teacher is {bad}"),
                help: Some("the activations overflow: try --dtype f32".into()),
            });
        }
        let parts: Vec<TopK> = logits
            .par_chunks(decoder.config().vocab_size)
            .map(|row| {
                let mut part = TopK::default();
                pick(row, k, &mut part);
                part
            })
            .collect();
        for part in parts {
            top.ids.extend(part.ids);
            top.log_probs.extend(part.log_probs);
        }
    }
    Ok(top)
}
