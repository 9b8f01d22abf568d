//! One sweep scores every candidate: the idea that makes the scan fast.
//!
//! Removing layer i leaves the layers below i untouched. So hidden states of the base model and of every candidate are kept
//! side by side, and the layers are walked once. At layer l: candidate l forks off the base; every candidate forked before
//! runs the layer; the base runs it. That costs (L + 1) / 2 forward passes where the naive loop costs L, and each layer's
//! weights are touched once. When the states of all candidates exceed the memory budget, candidates are walked in groups, each
//! from the base's state where its first candidate forks, so no layer runs twice on the base.
//!
//! Every op is batch-invariant, so the scores have the bits of the naive one-candidate-at-a-time loop.

use crate::data::Example;
use crate::error::{Error, Result};
use crate::model::{Batch, Context, Decoder, LayerPlan, LayerWeights, Scratch, packed_targets};
use crate::ops::{Backend, BlockInfluenceArgs, Shaped};
use crate::progress::Progress;
use std::collections::BTreeMap;
use std::ops::Range;

/// Rows of one sweep, at most: bounds what a crash can lose, costs nothing measurable in speed.
const SWEEP_ROWS: usize = 8192;

/// Examples in pieces whose hidden states, for `models` models, fit `budget`: what one sweep takes.
pub fn pieces<B: Backend>(decoder: &Decoder<B>, examples: &[&Example], models: usize, budget: u64) -> Vec<Range<usize>> {
    let row = state_bytes(decoder, 1) * (models as u64 + 1);
    let rows = usize::try_from(budget / row.max(1)).unwrap_or(usize::MAX).min(SWEEP_ROWS);
    let mut pieces: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (index, example) in examples.iter().enumerate() {
        match pieces.last_mut() {
            Some(piece) if filled + example.ids.len() <= rows => piece.end = index + 1,
            _ => {
                pieces.push(index..index + 1);
                filled = 0;
            }
        }
        filled += example.ids.len();
    }
    pieces
}

/// Which loss of the target tokens is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Negative log-likelihood.
    Nll,
    /// Divergence from the unpruned model.
    Kl,
}

/// What to score.
#[derive(Debug, Clone, Copy)]
pub struct SweepRequest<'a> {
    /// The model the round starts from.
    pub plan: &'a LayerPlan,
    /// Layers to try without, ascending, all in the plan.
    pub candidates: &'a [usize],
    /// The texts.
    pub examples: &'a [&'a Example],
    /// Score the base as well.
    pub base: bool,
    /// Which loss.
    pub loss: Loss,
    /// Bytes the hidden states may take together.
    pub budget: u64,
}

/// Sums over each example's targets, in nats.
#[derive(Debug, Default)]
pub struct SweepLosses {
    /// Of the base, where asked for.
    pub base: Option<Vec<f64>>,
    /// Of each candidate.
    pub candidates: BTreeMap<usize, Vec<f64>>,
}

/// Hidden states of one model: a tensor a micro-batch.
type State<B> = Vec<<B as crate::ops::Device>::Tensor>;

/// Scores the base and every candidate on every example.
///
/// # Errors
/// [`Error::Interrupted`], or those of the ops.
///
/// A device that runs out of memory makes the groups smaller, down to one candidate at a time.
pub fn sweep<B: Backend>(decoder: &Decoder<B>, request: &SweepRequest<'_>, progress: &dyn Progress) -> Result<SweepLosses> {
    let rows: usize = request.examples.iter().map(|e| e.ids.len()).sum();
    let state = state_bytes(decoder, rows).max(1);
    let mut budget = request.budget;
    loop {
        match attempt(decoder, &SweepRequest { budget, ..*request }, progress) {
            Err(Error::OutOfMemory { problem, .. }) => {
                // What the base, its checkpoint and all candidates take is the most that a budget can mean.
                let used = budget.min(state.saturating_mul(request.candidates.len() as u64 + 2));
                if used <= 3 * state {
                    return Err(Error::OutOfMemory {
                        problem,
                        help: Some(format!(
                            "the hidden states of one candidate at a time are {} bytes for {rows} tokens: use fewer (--limit)",
                            3 * state
                        )),
                    });
                }
                budget = used / 2;
                progress.note(&format!("out of memory: candidates are scored in smaller groups, of {budget} bytes"));
            }
            other => return other,
        }
    }
}

fn attempt<B: Backend>(decoder: &Decoder<B>, request: &SweepRequest<'_>, progress: &dyn Progress) -> Result<SweepLosses> {
    let mut walk = Walk::new(decoder, request, progress)?;
    let reference = match request.loss {
        Loss::Nll => None,
        Loss::Kl => Some(walk.reference()?),
    };
    let mut losses = SweepLosses::default();
    let groups = walk.groups();
    let mut base = walk.embed()?;
    let mut from = 0;
    for (index, group) in groups.iter().enumerate() {
        let next_fork = groups.get(index + 1).and_then(|g| g.first()).map(|&layer| walk.plan_index(layer));
        let wants_base = request.base && next_fork.is_none();
        let done = walk.group(base, from, group, next_fork, wants_base)?;
        for (layer, state) in done.candidates {
            losses.candidates.insert(layer, walk.losses(&state, reference.as_ref())?);
        }
        if let Some(state) = done.base {
            losses.base = Some(walk.losses(&state, reference.as_ref())?);
        }
        base = done.checkpoint;
        from = next_fork.unwrap_or(from);
    }
    Ok(losses)
}

/// Block influence: sums over each example's positions of 1 - cosine(hidden before, hidden after), for every layer of the plan.
///
/// # Errors
/// [`Error::Interrupted`], or those of the ops.
pub fn influence<B: Backend>(
    decoder: &Decoder<B>,
    plan: &LayerPlan,
    examples: &[&Example],
    progress: &dyn Progress,
) -> Result<BTreeMap<usize, Vec<f64>>> {
    let request = SweepRequest { plan, candidates: &[], examples, base: false, loss: Loss::Nll, budget: 0 };
    let mut walk = Walk::new(decoder, &request, progress)?;
    let mut state = walk.embed()?;
    let mut sums = BTreeMap::new();
    for &layer in plan.kept() {
        let before = walk.copy(&state)?;
        let weights = decoder.layer(layer)?;
        walk.run(&weights, &mut state)?;
        let mut of_layer = Vec::with_capacity(examples.len());
        for ((before, after), micro) in before.iter().zip(&state).zip(&walk.micro) {
            let cosines = decoder.backend().block_influence(BlockInfluenceArgs { before, after })?;
            of_layer.extend(
                micro.batch.starts.windows(2).map(|w| cosines[w[0] as usize..w[1] as usize].iter().map(|c| 1.0 - c).sum::<f64>()),
            );
        }
        sums.insert(layer, of_layer);
    }
    Ok(sums)
}

/// Bytes of hidden states that one model needs for `rows` tokens.
pub fn state_bytes<B: Backend>(decoder: &Decoder<B>, rows: usize) -> u64 {
    decoder.backend().tensor_bytes(rows, decoder.config().hidden_size)
}

/// Work of a sweep in the units that it reports to progress: rows times layers, the head counted as as many layers as it has
/// weights.
pub fn work_units<B: Backend>(decoder: &Decoder<B>, request: &SweepRequest<'_>) -> u64 {
    let rows: usize = request.examples.iter().map(|e| e.ids.len()).sum();
    let targets: usize = request.examples.iter().map(|e| e.targets.len()).sum();
    let kept = request.plan.kept();
    let index = |layer: &usize| kept.iter().position(|l| l == layer).unwrap_or(0);
    let forked: usize = request.candidates.iter().map(|layer| kept.len() - 1 - index(layer)).sum();
    let base = if request.base { kept.len() } else { request.candidates.iter().map(index).max().unwrap_or(0) };
    let reference = if request.loss == Loss::Kl { request.plan.num_hidden_layers() } else { 0 };
    let heads = request.candidates.len() + usize::from(request.base);
    (rows * (forked + base + reference) + targets * heads * head_layers(decoder)) as u64
}

/// The head's weights as a number of layers, at least 1.
fn head_layers<B: Backend>(decoder: &Decoder<B>) -> usize {
    let config = decoder.config();
    let layer = config.hidden_size * (config.heads().qkv_cols() + config.heads().q_cols() + 3 * config.intermediate_size);
    (config.vocab_size * config.hidden_size / layer.max(1)).max(1)
}

/// Examples that go through a layer together.
struct Micro {
    batch: Batch,
    rows: Vec<u32>,
    tokens: Vec<u32>,
    targets: Vec<usize>,
}

struct Walk<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    request: &'a SweepRequest<'a>,
    progress: &'a dyn Progress,
    micro: Vec<Micro>,
    scratch: Scratch<B>,
}

struct GroupDone<B: Backend> {
    candidates: Vec<(usize, State<B>)>,
    base: Option<State<B>>,
    /// The base's state where the next group's first candidate forks; empty after the last group.
    checkpoint: State<B>,
}

impl<'a, B: Backend> Walk<'a, B> {
    fn new(decoder: &'a Decoder<B>, request: &'a SweepRequest<'a>, progress: &'a dyn Progress) -> Result<Self> {
        let batch_rows = decoder.backend().batch_rows();
        let mut micro = Vec::new();
        let mut first = 0;
        while first < request.examples.len() {
            let mut rows = 0;
            let taken = request.examples[first..]
                .iter()
                .take_while(|e| {
                    rows += e.ids.len();
                    rows <= batch_rows
                })
                .count()
                .max(1);
            let part = &request.examples[first..first + taken];
            let batch = Batch::pack(part.iter().map(|e| e.ids.as_slice()));
            let (rows, tokens) = packed_targets(&batch.starts, part.iter().map(|e| e.targets.as_slice()));
            micro.push(Micro { batch, rows, tokens, targets: part.iter().map(|e| e.targets.len()).collect() });
            first += taken;
        }
        Ok(Self { decoder, request, progress, micro, scratch: Scratch::new(decoder.backend())? })
    }

    fn plan_index(&self, layer: usize) -> usize {
        self.request.plan.kept().binary_search(&layer).unwrap_or(0)
    }

    /// Candidates that are walked together: all, or as many as the budget holds beside the base and its checkpoint.
    fn groups(&self) -> Vec<&'a [usize]> {
        let rows: usize = self.micro.iter().map(|m| m.batch.rows()).sum();
        let fit = usize::try_from(self.request.budget / state_bytes(self.decoder, rows).max(1)).unwrap_or(usize::MAX);
        let candidates = self.request.candidates;
        if candidates.is_empty() {
            return vec![candidates];
        }
        let size = if candidates.len() < fit { candidates.len() } else { fit.saturating_sub(2).max(1) };
        candidates.chunks(size).collect()
    }

    fn embed(&self) -> Result<State<B>> {
        self.micro.iter().map(|m| self.decoder.embed(&m.batch.ids)).collect()
    }

    fn copy(&self, state: &State<B>) -> Result<State<B>> {
        let backend = self.decoder.backend();
        let mut copies = Vec::with_capacity(state.len());
        for x in state {
            let mut copy = backend.zeros(x.rows(), x.cols())?;
            backend.copy(&mut copy, x)?;
            copies.push(copy);
        }
        Ok(copies)
    }

    fn run(&mut self, weights: &LayerWeights<B>, state: &mut State<B>) -> Result<()> {
        for (x, micro) in state.iter_mut().zip(&self.micro) {
            self.progress.check("what was scored is in the journal; --resume goes on from there")?;
            let context = Context::Packed { starts: &micro.batch.starts };
            self.decoder.run_layer(weights, x, &micro.batch.positions, context, &mut self.scratch)?;
            self.progress.advance(micro.batch.rows() as u64);
        }
        Ok(())
    }

    /// Walks the plan from index `from` with the base at `base`.
    fn group(
        &mut self,
        base: State<B>,
        from: usize,
        group: &[usize],
        next_fork: Option<usize>,
        wants_base: bool,
    ) -> Result<GroupDone<B>> {
        let kept = self.request.plan.kept();
        // The base is needed up to the last fork, up to the next group's first one, or to the end.
        let base_until = match (next_fork, wants_base) {
            (_, true) => kept.len(),
            (Some(index), false) => index,
            (None, false) => group.last().map_or(0, |&layer| self.plan_index(layer)),
        };
        let mut base = Some(base);
        let mut checkpoint = Vec::new();
        let mut candidates: Vec<(usize, State<B>)> = Vec::new();
        for (index, &layer) in kept.iter().enumerate().skip(from) {
            let weights = self.decoder.layer(layer)?;
            for (_, state) in &mut candidates {
                self.run(&weights, state)?;
            }
            if group.contains(&layer) {
                let last = index >= base_until;
                let fork = match base.take() {
                    Some(state) if last => state,
                    Some(state) => {
                        let copy = self.copy(&state)?;
                        base = Some(state);
                        copy
                    }
                    None => continue,
                };
                candidates.push((layer, fork));
            }
            if next_fork == Some(index) {
                checkpoint = base.take().unwrap_or_default();
            }
            if let Some(state) = base.as_mut().filter(|_| index < base_until) {
                self.run(&weights, state)?;
            }
        }
        Ok(GroupDone { candidates, base: base.filter(|_| wants_base), checkpoint })
    }

    /// Final hidden states of the unpruned model at the targets, normed.
    fn reference(&mut self) -> Result<State<B>> {
        let full = LayerPlan::full(self.request.plan.num_hidden_layers());
        let mut state = self.embed()?;
        for &layer in full.kept() {
            let weights = self.decoder.layer(layer)?;
            self.run(&weights, &mut state)?;
        }
        state.iter().zip(&self.micro).map(|(x, micro)| self.decoder.normed_rows(x, &micro.rows)).collect()
    }

    /// Sums of the losses of each example.
    fn losses(&self, state: &State<B>, reference: Option<&State<B>>) -> Result<Vec<f64>> {
        let mut sums = Vec::with_capacity(self.request.examples.len());
        for (index, (x, micro)) in state.iter().zip(&self.micro).enumerate() {
            self.progress.check("what was scored is in the journal; --resume goes on from there")?;
            let normed = self.decoder.normed_rows(x, &micro.rows)?;
            let losses = self.decoder.losses(&normed, &micro.tokens, reference.map(|r| &r[index]))?;
            let values = match self.request.loss {
                Loss::Nll => &losses.nll,
                Loss::Kl => &losses.kl,
            };
            let mut rest = values.as_slice();
            for &targets in &micro.targets {
                let (own, others) = rest.split_at(targets);
                sums.push(own.iter().map(|&v| f64::from(v)).sum());
                rest = others;
            }
            self.progress.advance((micro.rows.len() * head_layers(self.decoder)) as u64);
        }
        Ok(sums)
    }
}
