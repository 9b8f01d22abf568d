//! Greedy generation in one continuous batch, for a model and for any number of variants that skip one more layer.
//!
//! All (prompt, variant) pairs decode together: a step runs layer l on every row but those of the variants that skip it.
//! Prompts are prefilled as the scan's sweep scores texts: below the layer it skips, a variant is the base model, so it
//! shares the base's hidden states and its KV pages; and tokens that all prompts begin with are prefilled once. Every op is
//! batch-invariant, so a sequence gets the tokens it would get alone.

use super::block::{Context, Scratch};
use super::decoder::Decoder;
use super::kv_pages::KvPool;
use super::layer_plan::LayerPlan;
use crate::error::{Error, Result};
use crate::ops::{Backend, GatherRowsArgs, PAGE_TOKENS, PagedRow, ScatterRowsArgs, Shaped};
use crate::progress::Progress;

/// Limits of a generation.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Tokens a sequence may get.
    pub max_new_tokens: usize,
    /// Tokens that end a sequence; they are not part of the result.
    pub eos: Vec<u32>,
    /// Bytes the KV cache may take; at least one prompt with one variant always runs.
    pub kv_budget: u64,
    /// Sequences that decode together, at most.
    pub max_sequences: usize,
}

/// One finished sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Index into the prompts.
    pub prompt: usize,
    /// Index into the variants.
    pub variant: usize,
    /// Tokens generated, without the one that ended it.
    pub tokens: Vec<u32>,
}

/// What to generate.
pub struct GenerateRequest<'a> {
    /// Layers of the base model.
    pub plan: &'a LayerPlan,
    /// The layer each variant skips besides; `None` is the base model itself.
    pub variants: &'a [Option<usize>],
    /// Token ids of each prompt, none empty.
    pub prompts: &'a [&'a [u32]],
    /// Limits.
    pub options: &'a GenerateOptions,
    /// True ends a sequence early: called with the tokens so far.
    pub stop: &'a dyn Fn(&[u32]) -> bool,
    /// What an interruption leaves, in words for the user.
    pub kept: &'a str,
}

/// Pages of one sequence: a table for each layer of the plan.
type Tables = Vec<Vec<u32>>;

struct Sequence {
    prompt: usize,
    variant: usize,
    tables: Tables,
    length: usize,
    tokens: Vec<u32>,
}

/// KV of the tokens that all prompts begin with.
struct Prefix {
    tokens: usize,
    base: Tables,
    variants: Vec<Tables>,
}

/// Generates for every (prompt, variant) pair, handing each to `done` as it ends (in no particular order).
///
/// A device that runs out of memory makes the batch smaller, down to one sequence at a time: what was not finished begins anew,
/// and gets the tokens it would have got.
///
/// # Errors
/// [`Error::Request`] when a prompt and its new tokens exceed the decoder's positions; [`Error::OutOfMemory`] when one sequence
/// is too much; [`Error::Interrupted`]; [`Error::Device`].
pub fn generate<B: Backend>(
    decoder: &Decoder<B>,
    request: &GenerateRequest<'_>,
    progress: &dyn Progress,
    done: &mut dyn FnMut(Generation) -> Result<()>,
) -> Result<()> {
    let longest = request.prompts.iter().map(|p| p.len()).max().unwrap_or(0) + request.options.max_new_tokens;
    if longest > decoder.positions() {
        return Err(Error::request(format!(
            "the longest prompt and its new tokens make {longest} tokens; the limit is {}",
            decoder.positions()
        ))
        .with_help("lower --max-new-tokens, or leave out the longest records"));
    }
    let page_bytes = decoder.backend().kv_page_bytes(decoder.config().heads());
    let sequence_pages = longest.div_ceil(PAGE_TOKENS) * request.plan.kept().len();
    let sequence_bytes = page_bytes * sequence_pages as u64;
    let fit = usize::try_from(request.options.kv_budget / sequence_bytes.max(1)).unwrap_or(usize::MAX);
    // One sequence more a prompt: the base, whose pages the variants share while they are prefilled.
    let mut sequences = fit.saturating_sub(1).clamp(1, request.options.max_sequences.max(1));
    let mut finished = vec![vec![false; request.prompts.len()]; request.variants.len()];
    let mut first_variant = 0;
    while first_variant < request.variants.len() {
        let group = sequences.min(request.variants.len() - first_variant);
        let of_group = first_variant..first_variant + group;
        let missing: Vec<usize> = (0..request.prompts.len()).filter(|&p| of_group.clone().any(|v| !finished[v][p])).collect();
        // Sequences, and beside them, while they are prefilled, the base of each prompt.
        let most = sequences.min(missing.len().saturating_mul(group)) + missing.len().min(sequences);
        let run = Run::new(decoder, request, &request.variants[of_group], first_variant, most.saturating_mul(sequence_pages));
        let outcome = run.and_then(|mut run| {
            run.all(&missing, sequences, progress, &mut |generation| {
                // One that finished before memory ran out comes again if another variant of its prompt did not.
                if std::mem::replace(&mut finished[generation.variant][generation.prompt], true) {
                    return Ok(());
                }
                progress.advance(1);
                done(generation)
            })
        });
        match outcome {
            Ok(()) => first_variant += group,
            Err(Error::OutOfMemory { problem, .. }) => {
                // The sequences that there were, at most.
                let used = sequences.min(group.saturating_mul(missing.len()));
                if used <= 1 {
                    return Err(Error::OutOfMemory {
                        problem,
                        help: Some(format!(
                            "the KV cache of one sequence of {longest} tokens takes {sequence_bytes} bytes beside the weights: \
                             lower --max-new-tokens, or leave out the longest records"
                        )),
                    });
                }
                sequences = used / 2;
                progress.note(&format!("out of memory: at most {sequences} sequences decode together now"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Run<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    request: &'a GenerateRequest<'a>,
    variants: &'a [Option<usize>],
    first_variant: usize,
    pool: KvPool<B>,
    scratch: Scratch<B>,
    active: Vec<Sequence>,
}

impl<'a, B: Backend> Run<'a, B> {
    fn new(
        decoder: &'a Decoder<B>,
        request: &'a GenerateRequest<'a>,
        variants: &'a [Option<usize>],
        first_variant: usize,
        most_pages: usize,
    ) -> Result<Self> {
        let backend = decoder.backend();
        Ok(Self {
            decoder,
            request,
            variants,
            first_variant,
            pool: KvPool::new(backend, decoder.config().heads(), most_pages)?,
            scratch: Scratch::new(backend)?,
            active: Vec::new(),
        })
    }

    /// Runs `prompts`, at most `sequences` sequences at a time.
    fn all(
        &mut self,
        prompts: &[usize],
        sequences: usize,
        progress: &dyn Progress,
        done: &mut dyn FnMut(Generation) -> Result<()>,
    ) -> Result<()> {
        let prefix = self.prefill_common()?;
        let prompts_at_once = (sequences / self.variants.len()).max(1);
        let mut next = 0;
        while next < prompts.len() || !self.active.is_empty() {
            progress.check(self.request.kept)?;
            let room = (sequences.saturating_sub(self.active.len())) / self.variants.len();
            // Admit in batches: prefilling a few prompts at a time would stall the others at every step.
            if next < prompts.len() && (self.active.is_empty() || room >= prompts_at_once.div_ceil(2)) {
                let until = (next + room.max(1)).min(prompts.len());
                let admitted = self.prefill(&prompts[next..until], &prefix)?;
                next = until;
                self.active.extend(admitted);
            } else {
                self.step()?;
            }
            self.retire(done)?;
        }
        self.forget(prefix);
        Ok(())
    }

    /// Tokens all prompts begin with, in whole pages, and not the last token of any prompt.
    fn prefill_common(&mut self) -> Result<Prefix> {
        let prompts = self.request.prompts;
        let mut common = prompts.first().map_or(0, |p| p.len().saturating_sub(1));
        for prompt in prompts {
            let agree = prompt.iter().zip(prompts[0]).take_while(|(a, b)| a == b).count();
            common = common.min(agree).min(prompt.len().saturating_sub(1));
        }
        let tokens = if prompts.len() > 1 { common / PAGE_TOKENS * PAGE_TOKENS } else { 0 };
        let empty = || vec![Vec::new(); self.request.plan.kept().len()];
        let mut prefix = Prefix { tokens: 0, base: empty(), variants: self.variants.iter().map(|_| empty()).collect() };
        if tokens > 0 {
            let sweep = self.sweep(&[&prompts[0][..tokens]], &prefix)?;
            prefix = Prefix {
                tokens,
                base: sweep.base.into_iter().next().unwrap_or_default(),
                variants: sweep.variants.into_iter().map(|v| v.tables.into_iter().next().unwrap_or_default()).collect(),
            };
        }
        Ok(prefix)
    }

    /// Prefills prompts for every variant and chooses the first token of each sequence.
    fn prefill(&mut self, prompts: &[usize], prefix: &Prefix) -> Result<Vec<Sequence>> {
        let rest: Vec<&[u32]> = prompts.iter().map(|&p| &self.request.prompts[p][prefix.tokens..]).collect();
        let last_rows: Vec<u32> = rest
            .iter()
            .scan(0_usize, |row, ids| {
                *row += ids.len();
                Some(u32::try_from(*row - 1).unwrap_or(u32::MAX))
            })
            .collect();
        let sweep = self.sweep(&rest, prefix)?;
        for tables in &sweep.base {
            release(&mut self.pool, tables);
        }
        let mut sequences = Vec::new();
        for (variant, state) in sweep.variants.into_iter().enumerate() {
            let normed = self.decoder.normed_rows(&state.x, &last_rows)?;
            let tokens = self.decoder.next_tokens(&normed)?;
            for ((&prompt, tables), token) in prompts.iter().zip(state.tables).zip(tokens) {
                let length = self.request.prompts[prompt].len();
                sequences.push(Sequence { prompt, variant, tables, length, tokens: vec![token] });
            }
        }
        Ok(sequences)
    }

    /// Runs token sequences that continue `prefix` through all layers, for the base and every variant, forking each variant
    /// at the layer it skips.
    fn sweep(&mut self, sequences: &[&[u32]], prefix: &Prefix) -> Result<Sweep<B>> {
        let backend = self.decoder.backend();
        let ids: Vec<u32> = sequences.concat();
        let positions: Vec<u32> = sequences
            .iter()
            .flat_map(|s| (prefix.tokens..prefix.tokens + s.len()).filter_map(|p| u32::try_from(p).ok()))
            .collect();
        let mut base_x = self.decoder.embed(&ids)?;
        let mut base: Vec<Tables> = Vec::new();
        for _ in sequences {
            share(&mut self.pool, &prefix.base);
            base.push(prefix.base.clone());
        }
        let mut variants: Vec<Option<VariantState<B>>> = self.variants.iter().map(|_| None).collect();
        let lengths: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
        let mut forked = 0;
        for (index, &layer) in self.request.plan.kept().iter().enumerate() {
            let weights = self.decoder.layer(layer)?;
            for (variant, state) in variants.iter_mut().enumerate() {
                if self.variants[variant] == Some(layer) {
                    let mut x = backend.zeros(base_x.rows(), base_x.cols())?;
                    backend.copy(&mut x, &base_x)?;
                    *state = Some(VariantState { x, tables: self.fork(&base, &prefix.variants[variant], index) });
                    forked += 1;
                } else if let Some(state) = state {
                    let mut tables: Vec<&mut Vec<u32>> = state.tables.iter_mut().map(|t| &mut t[index]).collect();
                    let placed = place(backend, &mut self.pool, &mut tables, &lengths, prefix.tokens)?;
                    let context = placed.context(self.pool.pages());
                    self.decoder.run_layer(&weights, &mut state.x, &positions, context, &mut self.scratch)?;
                }
            }
            // Past the last fork nobody needs the base, unless it is itself asked for.
            if forked == self.variants.len() {
                continue;
            }
            let mut tables: Vec<&mut Vec<u32>> = base.iter_mut().map(|t| &mut t[index]).collect();
            let placed = place(backend, &mut self.pool, &mut tables, &lengths, prefix.tokens)?;
            let context = placed.context(self.pool.pages());
            self.decoder.run_layer(&weights, &mut base_x, &positions, context, &mut self.scratch)?;
        }
        let layers = self.request.plan.kept().len();
        let mut states = Vec::new();
        for (variant, state) in variants.into_iter().enumerate() {
            states.push(match state {
                Some(state) => state,
                None => {
                    let mut x = backend.zeros(base_x.rows(), base_x.cols())?;
                    backend.copy(&mut x, &base_x)?;
                    VariantState { x, tables: self.fork(&base, &prefix.variants[variant], layers) }
                }
            });
        }
        Ok(Sweep { base, variants: states })
    }

    /// Tables of a variant that leaves the base before plan layer `index`: the base's below, its own prefix above.
    fn fork(&mut self, base: &[Tables], own_prefix: &Tables, index: usize) -> Vec<Tables> {
        base.iter()
            .map(|tables| {
                let forked: Tables = tables
                    .iter()
                    .enumerate()
                    .map(|(l, pages)| if l < index { pages.clone() } else { own_prefix[l].clone() })
                    .collect();
                share(&mut self.pool, &forked);
                forked
            })
            .collect()
    }

    /// One token more for every active sequence.
    fn step(&mut self) -> Result<()> {
        let decoder = self.decoder;
        let mut normed = None;
        decoder.backend().step(&mut || {
            normed = Some(self.advance()?);
            Ok(())
        })?;
        let tokens = normed.map_or_else(|| Ok(Vec::new()), |normed| decoder.next_tokens(&normed))?;
        for (sequence, token) in self.active.iter_mut().zip(tokens) {
            sequence.length += 1;
            sequence.tokens.push(token);
        }
        Ok(())
    }

    /// Normed hidden states of the active sequences' last tokens, whose keys and values join the cache.
    fn advance(&mut self) -> Result<B::Tensor> {
        let backend = self.decoder.backend();
        let ids: Vec<u32> = self.active.iter().filter_map(|s| s.tokens.last().copied()).collect();
        let mut x = self.decoder.embed(&ids)?;
        for (index, &layer) in self.request.plan.kept().iter().enumerate() {
            let runs: Vec<usize> =
                (0..self.active.len()).filter(|&s| self.variants[self.active[s].variant] != Some(layer)).collect();
            if runs.is_empty() {
                continue;
            }
            let positions: Vec<u32> = runs.iter().filter_map(|&s| u32::try_from(self.active[s].length).ok()).collect();
            let mut slots = Vec::with_capacity(runs.len());
            for &s in &runs {
                let sequence = &mut self.active[s];
                slots.push(self.pool.slot(backend, &mut sequence.tables[index], sequence.length)?);
            }
            let rows: Vec<PagedRow<'_>> = runs
                .iter()
                .zip(&positions)
                .map(|(&s, &p)| PagedRow { pages: &self.active[s].tables[index], len: p + 1 })
                .collect();
            let weights = self.decoder.layer(layer)?;
            let context = Context::Paged { pages: self.pool.pages(), slots: &slots, rows: &rows };
            if runs.len() == self.active.len() {
                self.decoder.run_layer(&weights, &mut x, &positions, context, &mut self.scratch)?;
            } else {
                let picks: Vec<u32> = runs.iter().filter_map(|&s| u32::try_from(s).ok()).collect();
                let mut part = backend.zeros(picks.len(), x.cols())?;
                backend.gather_rows(GatherRowsArgs { y: &mut part, x: &x, rows: &picks })?;
                self.decoder.run_layer(&weights, &mut part, &positions, context, &mut self.scratch)?;
                backend.scatter_rows(ScatterRowsArgs { y: &mut x, x: &part, rows: &picks })?;
            }
        }
        self.decoder.normed(&x)
    }

    /// Hands over the sequences that ended with their last token.
    fn retire(&mut self, done: &mut dyn FnMut(Generation) -> Result<()>) -> Result<()> {
        let mut index = 0;
        while index < self.active.len() {
            let tokens = &self.active[index].tokens;
            let at_eos = tokens.last().is_some_and(|t| self.request.options.eos.contains(t));
            let full = tokens.len() >= self.request.options.max_new_tokens;
            if !(at_eos || full || (self.request.stop)(tokens)) {
                index += 1;
                continue;
            }
            let mut sequence = self.active.swap_remove(index);
            if at_eos {
                sequence.tokens.pop();
            }
            sequence.tokens.truncate(self.request.options.max_new_tokens);
            release(&mut self.pool, &sequence.tables);
            done(Generation {
                prompt: sequence.prompt,
                variant: self.first_variant + sequence.variant,
                tokens: sequence.tokens,
            })?;
        }
        Ok(())
    }

    fn forget(&mut self, prefix: Prefix) {
        release(&mut self.pool, &prefix.base);
        for tables in &prefix.variants {
            release(&mut self.pool, tables);
        }
    }
}

struct VariantState<B: Backend> {
    x: B::Tensor,
    tables: Vec<Tables>,
}

struct Sweep<B: Backend> {
    base: Vec<Tables>,
    variants: Vec<VariantState<B>>,
}

fn share<B: Backend>(pool: &mut KvPool<B>, tables: &Tables) {
    tables.iter().for_each(|pages| pool.share(pages));
}

fn release<B: Backend>(pool: &mut KvPool<B>, tables: &Tables) {
    tables.iter().for_each(|pages| pool.release(pages));
}

/// Slots and views of rows that continue several sequences in one layer.
struct Placed<'a> {
    slots: Vec<u32>,
    rows: Vec<PagedRow<'a>>,
}

impl Placed<'_> {
    fn context<'a, B: Backend>(&'a self, pages: &'a mut B::KvPages) -> Context<'a, B> {
        Context::Paged { pages, slots: &self.slots, rows: &self.rows }
    }
}

/// Gives `lengths[i]` new tokens of each sequence their slots in `tables[i]`, from position `start`.
fn place<'a, B: Backend>(
    backend: &B,
    pool: &mut KvPool<B>,
    tables: &'a mut [&mut Vec<u32>],
    lengths: &[usize],
    start: usize,
) -> Result<Placed<'a>> {
    let mut slots = Vec::new();
    for (table, &length) in tables.iter_mut().zip(lengths) {
        for position in start..start + length {
            slots.push(pool.slot(backend, table, position)?);
        }
    }
    let rows = tables
        .iter()
        .zip(lengths)
        .flat_map(|(table, &length)| {
            let pages: &[u32] = table;
            (start..start + length).map(move |position| PagedRow { pages, len: u32::try_from(position + 1).unwrap_or(u32::MAX) })
        })
        .collect();
    Ok(Placed { slots, rows })
}
