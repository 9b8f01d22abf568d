//! The last look at a pruned model: on a few tokens its logits must have the bits of the original with the layers skipped.

use crate::error::{Error, Result};
use crate::model::{Batch, Decoder, LayerPlan, Scratch};
use crate::ops::Backend;

/// Tokens of the probe, spread over the vocabulary; the decoders must run sequences of this length, or of one token.
pub const PROBE_TOKENS: usize = 8;

/// Compares logits of `pruned` with those of `original` under `plan`, bit for bit.
///
/// # Errors
/// [`Error::Data`] naming the first logit that differs; those of the ops.
pub fn same_logits<B: Backend>(original: &Decoder<B>, plan: &LayerPlan, pruned: &Decoder<B>) -> Result<()> {
    let expected = logits(original, plan)?;
    let found = logits(pruned, &LayerPlan::full(pruned.config().num_hidden_layers))?;
    match expected.iter().zip(&found).position(|(e, f)| e.to_bits() != f.to_bits()) {
        None if expected.len() == found.len() => Ok(()),
        at => Err(Error::data(
            &pruned.folder().path,
            at.map_or(String::new(), |i| format!("logit {i} of a probe")),
            "the pruned model computes something else than the original without these layers",
        )
        .with_help("this is a bug in prunectl; please report it")),
    }
}

fn logits<B: Backend>(decoder: &Decoder<B>, plan: &LayerPlan) -> Result<Vec<f32>> {
    let vocabulary = decoder.config().vocab_size;
    let tokens = PROBE_TOKENS.min(decoder.positions());
    let ids: Vec<u32> = (0..tokens).filter_map(|i| u32::try_from(i * vocabulary / PROBE_TOKENS).ok()).collect();
    let batch = Batch::pack([ids.as_slice()]);
    let x = decoder.forward(&batch, plan, &mut Scratch::new(decoder.backend())?, |_, _| Ok(()))?;
    decoder.logits(&decoder.normed(&x)?)
}
