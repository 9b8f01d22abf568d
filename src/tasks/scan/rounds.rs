//! The rounds of a scan: fill a round's score sheet (from the journal first), then choose.

use super::entry::{Entry, Share};
use super::sheet::{Rule, Sheet};
use super::sweep::{self, Loss, SweepRequest, sweep};
use super::{Material, Metric, Request, race};
use crate::data::Example;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::metrics::{Scorer, strip};
use crate::model::{Batch, Decoder, GenerateOptions, GenerateRequest, LayerPlan, Scratch, generate, packed_targets};
use crate::ops::Backend;
use crate::progress::Progress;
use crate::report::scan_json::{Margin, Partial, Round};
use std::collections::BTreeMap;
use std::time::Instant;

/// Rows of the speed measurement that ends a round.
const SPEED_ROWS: usize = 1024;
/// Seed of the order in which races walk the records.
const RACE_SEED: u64 = 0;

/// A finished round, and the speed of the models before and after it in tokens a second.
pub(super) struct Outcome {
    pub(super) round: Round,
    pub(super) base_speed: Option<f64>,
    pub(super) speed: f64,
    pub(super) energy_joules: Option<f64>,
}

/// What a round took: wall time, energy where the device tells; and the speed of the model it ends with.
struct Cost {
    seconds: f64,
    speed: f64,
    energy_joules: Option<f64>,
}

/// That of a round which the journal has as finished.
fn recorded_cost(entries: &[Entry], number: usize) -> Option<Cost> {
    entries.iter().find_map(|entry| match entry {
        Entry::Round { round, seconds, tokens_per_second, energy_joules, .. } if *round == number => {
            Some(Cost { seconds: *seconds, speed: *tokens_per_second, energy_joules: *energy_joules })
        }
        _ => None,
    })
}

/// Everything the rounds share.
pub(super) struct Rounds<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    request: &'a Request,
    material: &'a Material<'a>,
    journal: Journal,
    progress: &'a dyn Progress,
    rule: Rule,
    references: Vec<String>,
}

impl<'a, B: Backend> Rounds<'a, B> {
    pub(super) fn new(
        decoder: &'a Decoder<B>,
        request: &'a Request,
        material: &'a Material<'a>,
        journal: Journal,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let rule = match (request.metric, material) {
            (Metric::Text(metric), _) => Rule::Corpus(Scorer::new(metric)),
            (Metric::Bi | Metric::Tail, Material::Texts(examples)) => {
                Rule::Mean(examples.iter().map(|e| e.ids.len() as u64).collect())
            }
            (_, Material::Texts(examples)) => {
                if let Some(empty) = examples.iter().find(|e| e.targets.is_empty()) {
                    return Err(Error::request(format!("record {} has no target token", empty.record + 1)));
                }
                Rule::Mean(examples.iter().map(|e| e.targets.len() as u64).collect())
            }
            (_, Material::Prompts { .. }) => return Err(Error::request("prompts go with the generation metrics only")),
        };
        Ok(Self { decoder, request, material, journal, progress, rule, references: Vec::new() })
    }

    /// Reference texts: the data's, or the unpruned model's own.
    pub(super) fn references(&mut self, entries: &[Entry]) -> Result<()> {
        let Material::Prompts { prompts, .. } = self.material else { return Ok(()) };
        if !self.request.self_references {
            self.references = prompts.iter().map(|p| p.reference.clone().unwrap_or_default()).collect();
            return Ok(());
        }
        let mut texts: Vec<Option<String>> = vec![None; prompts.len()];
        for entry in entries {
            if let Entry::Reference { record, text } = entry
                && let Some(slot) = texts.get_mut(*record)
            {
                *slot = Some(text.clone());
            }
        }
        let missing: Vec<usize> = (0..prompts.len()).filter(|&r| texts[r].is_none()).collect();
        let full = LayerPlan::full(self.decoder.config().num_hidden_layers);
        self.progress.begin("texts of the unpruned model", missing.len() as u64);
        self.generate(&full, &[None], &missing, &mut |journal, record, _, text| {
            texts[record] = Some(text.clone());
            journal.append_soon(&[Entry::Reference { record, text }])
        })?;
        self.progress.end();
        self.references = texts.into_iter().map(Option::unwrap_or_default).collect();
        Ok(())
    }

    /// One round from `plan`. `before` is the score of that model, known from the round before.
    pub(super) fn round(&mut self, number: usize, plan: &LayerPlan, before: Option<f64>, entries: &[Entry]) -> Result<Outcome> {
        let start = Instant::now();
        let energy = self.decoder.backend().energy_joules();
        let candidates: Vec<usize> = plan.kept().iter().copied().filter(|l| !self.request.protect.contains(l)).collect();
        let mut sheet = Sheet::new(self.records());
        for entry in entries {
            if let Entry::Shares { round, layer, records, shares } = entry
                && *round == number
            {
                records.iter().zip(shares).for_each(|(&record, share)| sheet.enter(*layer, record, share.clone()));
            }
        }
        let base = before.is_none();
        let mut partial = BTreeMap::new();
        let what = format!("round {number} of {}", self.request.remove);
        match self.request.metric {
            Metric::Nll | Metric::Kl => match self.request.race {
                Some(delta) => partial = self.run_race(number, plan, &candidates, base, delta, &what, &mut sheet)?,
                None => {
                    let all: Vec<usize> = (0..self.records()).collect();
                    self.score_losses(number, plan, &candidates, base, &all, Some(&what), &mut sheet)?;
                }
            },
            Metric::Bi => self.score_influence(number, plan, &what, &mut sheet)?,
            Metric::Tail => {}
            Metric::Text(_) => self.score_texts(number, plan, &candidates, base, &what, &mut sheet)?,
        }
        let mut scores = BTreeMap::new();
        for &layer in candidates.iter().filter(|l| !partial.contains_key(l)) {
            let score = match self.request.metric {
                #[expect(clippy::cast_precision_loss, reason = "layers are few")]
                Metric::Tail => Some((self.decoder.config().num_hidden_layers - 1 - layer) as f64),
                _ => sheet.score(&self.rule, Some(layer)),
            };
            scores.insert(layer, score.ok_or_else(|| Error::request(format!("layer {layer} has no score")))?);
        }
        let (removed, score) = self.best(&scores)?;
        let margin = self.margin(&sheet, &scores, &partial, removed);
        let base_speed = if base { Some(self.speed(plan)?) } else { None };
        let after = LayerPlan::without(plan.num_hidden_layers(), &[plan.removed(), vec![removed]].concat())?;
        let Cost { seconds, speed, energy_joules } = match recorded_cost(entries, number) {
            Some(recorded) => recorded,
            None => {
                let speed = self.speed(&after)?;
                let seconds = start.elapsed().as_secs_f64();
                let energy_joules = energy.zip(self.decoder.backend().energy_joules()).map(|(before, after)| after - before);
                let entry = Entry::Round { round: number, removed, seconds, tokens_per_second: speed, energy_joules };
                self.journal.append(&[entry])?;
                Cost { seconds, speed, energy_joules }
            }
        };
        let baseline = before.or_else(|| sheet.score(&self.rule, None));
        self.progress.note(&match baseline {
            Some(baseline) => {
                format!("{what}: layer {removed} removed, {} {baseline:.4} -> {score:.4}", self.request.metric.name())
            }
            None => format!("{what}: layer {removed} removed, {} {score:.4}", self.request.metric.name()),
        });
        Ok(Outcome {
            round: Round { round: number, baseline, scores, partial, removed, score, margin, seconds },
            base_speed,
            speed,
            energy_joules,
        })
    }

    fn records(&self) -> usize {
        match self.material {
            Material::Texts(examples) => examples.len(),
            Material::Prompts { prompts, .. } => prompts.len(),
        }
    }

    /// The best score; the lowest layer on a tie.
    fn best(&self, scores: &BTreeMap<usize, f64>) -> Result<(usize, f64)> {
        let mut best: Option<(usize, f64)> = None;
        for (&layer, &score) in scores {
            if !score.is_finite() {
                return Err(self.not_finite(Some(layer), score));
            }
            if best.is_none_or(|(_, leader)| self.rule.beats(score, leader)) {
                best = Some((layer, score));
            }
        }
        best.ok_or_else(|| Error::request("no candidate layer is left"))
    }

    /// Lead over the best of the others, with its interval. Raced-out candidates count by their partial scores.
    fn margin(
        &self,
        sheet: &Sheet,
        scores: &BTreeMap<usize, f64>,
        partial: &BTreeMap<usize, Partial>,
        winner: usize,
    ) -> Option<Margin> {
        let others = scores.iter().map(|(&l, &s)| (l, s)).filter(|&(l, _)| l != winner);
        let mut others: Vec<(usize, f64)> = others.collect();
        if others.is_empty() {
            others = partial.iter().map(|(&l, p)| (l, p.score)).collect();
        }
        let (runner_up, _) =
            others.into_iter().reduce(|best, other| if self.rule.beats(other.1, best.1) { other } else { best })?;
        let (difference, interval) = sheet.margin(&self.rule, winner, runner_up)?;
        Some(Margin { runner_up, difference, interval })
    }

    fn examples(&self, records: &[usize]) -> Vec<&'a Example> {
        match self.material {
            Material::Texts(examples) => records.iter().map(|&r| &examples[r]).collect(),
            Material::Prompts { .. } => Vec::new(),
        }
    }

    fn sweep_request<'r>(
        &self,
        plan: &'r LayerPlan,
        candidates: &'r [usize],
        examples: &'r [&'r Example],
        base: bool,
    ) -> SweepRequest<'r> {
        let loss = if self.request.metric == Metric::Kl { Loss::Kl } else { Loss::Nll };
        SweepRequest { plan, candidates, examples, base, loss, budget: self.request.mem_budget }
    }

    /// Losses of every candidate on every record named, those the sheet lacks, a memory budget's worth of records at a time.
    #[expect(clippy::too_many_arguments, reason = "a round's own state, passed once")]
    fn score_losses(
        &mut self,
        number: usize,
        plan: &LayerPlan,
        candidates: &[usize],
        base: bool,
        records: &[usize],
        announce: Option<&str>,
        sheet: &mut Sheet,
    ) -> Result<()> {
        let chunks = self.chunks(records, candidates.len() + 1 + usize::from(base));
        if let Some(what) = announce {
            let units = chunks.iter().map(|records| {
                let missing = missing(sheet, candidates, records);
                let base = base && records.iter().any(|&r| !sheet.has(None, r));
                if missing.is_empty() && !base { 0 } else { self.units(plan, &missing, base, records) }
            });
            self.progress.begin(what, units.sum());
        }
        for records in &chunks {
            let missing = missing(sheet, candidates, records);
            let base = base && records.iter().any(|&r| !sheet.has(None, r));
            if missing.is_empty() && !base {
                continue;
            }
            let examples = self.examples(records);
            let losses = sweep(self.decoder, &self.sweep_request(plan, &missing, &examples, base), self.progress)?;
            let rows = losses
                .base
                .into_iter()
                .map(|sums| (None, sums))
                .chain(losses.candidates.into_iter().map(|(l, sums)| (Some(l), sums)));
            self.enter(number, records, rows, sheet)?;
        }
        if announce.is_some() {
            self.progress.end();
        }
        Ok(())
    }

    /// Journals sums and enters them in the sheet.
    fn enter(
        &mut self,
        round: usize,
        records: &[usize],
        rows: impl Iterator<Item = (Option<usize>, Vec<f64>)>,
        sheet: &mut Sheet,
    ) -> Result<()> {
        let mut entries = Vec::new();
        for (layer, sums) in rows {
            if let Some(&sum) = sums.iter().find(|sum| !sum.is_finite()) {
                return Err(self.not_finite(layer, sum));
            }
            entries.push(Entry::Shares {
                round,
                layer,
                records: records.to_vec(),
                shares: sums.into_iter().map(Share::Sum).collect(),
            });
        }
        self.journal.append(&entries)?;
        for entry in entries {
            if let Entry::Shares { layer, records, shares, .. } = entry {
                records.iter().zip(shares).for_each(|(&record, share)| sheet.enter(layer, record, share));
            }
        }
        Ok(())
    }

    /// A score that is no number: by a weight that is none, which is then named, or by arithmetic.
    fn not_finite(&self, layer: Option<usize>, value: f64) -> Error {
        let model = layer.map_or("the model".to_owned(), |l| format!("the model without layer {l}"));
        self.decoder.folder().check_finite().err().unwrap_or_else(|| Error::Device {
            problem: format!("{model}: the {} is {value}", self.request.metric.name()),
            help: Some("the activations overflow: try --dtype f32".into()),
        })
    }

    /// Records in pieces whose hidden states, for `models` models, fit the memory budget.
    fn chunks(&self, records: &[usize], models: usize) -> Vec<Vec<usize>> {
        let pieces = sweep::pieces(self.decoder, &self.examples(records), models, self.request.mem_budget);
        pieces.into_iter().map(|piece| records[piece].to_vec()).collect()
    }

    /// Races the candidates; the survivors end complete in the sheet, the others are returned with what was known of them.
    #[expect(clippy::too_many_arguments, reason = "a round's own state, passed once")]
    fn run_race(
        &mut self,
        number: usize,
        plan: &LayerPlan,
        candidates: &[usize],
        base: bool,
        delta: f64,
        what: &str,
        sheet: &mut Sheet,
    ) -> Result<BTreeMap<usize, Partial>> {
        let order = race::order(self.records(), RACE_SEED);
        #[expect(clippy::cast_precision_loss, reason = "a count of comparisons")]
        let comparison = delta / (candidates.len().saturating_sub(1).max(1) * race::looks(order.len())) as f64;
        let mut alive = candidates.to_vec();
        let mut partial = BTreeMap::new();
        let mut seen = 0;
        // As if nobody were dropped; what a drop saves counts as done, so that the estimate shrinks with the field.
        self.progress.begin(what, self.units(plan, &alive, base, &order));
        while seen < order.len() {
            // With one left there is nothing to look for: the rest is scored in one go.
            let step = match (alive.len(), seen) {
                (1, _) => order.len(),
                (_, 0) => race::FIRST_LOOK,
                _ => race::CHUNK,
            };
            let until = (seen + step).min(order.len());
            self.score_losses(number, plan, &alive, base, &order[seen..until], None, sheet)?;
            seen = until;
            if seen < order.len() && alive.len() > 1 {
                let (stay, go) = self.look(sheet, &alive, &order[..seen], comparison);
                partial.extend(go);
                let rest = &order[seen..];
                self.progress.advance(self.units(plan, &alive, base, rest).saturating_sub(self.units(plan, &stay, base, rest)));
                alive = stay;
            }
        }
        self.progress.end();
        Ok(partial)
    }

    /// Work of scoring these candidates on these records, in the units of progress.
    fn units(&self, plan: &LayerPlan, candidates: &[usize], base: bool, records: &[usize]) -> u64 {
        let examples = self.examples(records);
        sweep::work_units(self.decoder, &self.sweep_request(plan, candidates, &examples, base))
    }

    /// Splits candidates into those that may still win and those that cannot.
    fn look(&self, sheet: &Sheet, alive: &[usize], seen: &[usize], comparison: f64) -> (Vec<usize>, BTreeMap<usize, Partial>) {
        let sums = |layer: usize| -> Vec<f64> {
            seen.iter().map(|&r| if let Some(Share::Sum(sum)) = sheet.share(Some(layer), r) { *sum } else { 0.0 }).collect()
        };
        let totals: Vec<(usize, Vec<f64>, f64)> =
            alive.iter().map(|&l| (l, sums(l))).map(|(l, s)| (l, s.iter().sum(), s)).map(|(l, t, s)| (l, s, t)).collect();
        let Some(leader) = totals.iter().reduce(|best, other| if other.2 < best.2 { other } else { best }) else {
            return (alive.to_vec(), BTreeMap::new());
        };
        let mut stay = Vec::new();
        let mut go = BTreeMap::new();
        for (layer, own, total) in &totals {
            let differences: Vec<f64> = own.iter().zip(&leader.1).map(|(a, b)| a - b).collect();
            if *layer == leader.0 || !race::hopeless(&differences, self.records(), comparison) {
                stay.push(*layer);
                continue;
            }
            let tokens = seen.iter().map(|&r| if let Rule::Mean(counts) = &self.rule { counts[r] } else { 0 }).sum::<u64>();
            #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
            let (tokens, records) = (tokens as f64, seen.len() as f64);
            let (_, error) = race::mean_and_error(own, self.records());
            go.insert(*layer, Partial { score: total / tokens, records: seen.len() as u64, stderr: error * records / tokens });
        }
        (stay, go)
    }

    fn score_influence(&mut self, number: usize, plan: &LayerPlan, what: &str, sheet: &mut Sheet) -> Result<()> {
        let all: Vec<usize> = (0..self.records()).collect();
        let chunks = self.chunks(&all, 2);
        let rows: usize = self.examples(&all).iter().map(|e| e.ids.len()).sum();
        self.progress.begin(what, (rows * plan.kept().len()) as u64);
        for records in &chunks {
            if missing(sheet, plan.kept(), records).is_empty() {
                continue;
            }
            let sums = sweep::influence(self.decoder, plan, &self.examples(records), self.progress)?;
            self.enter(number, records, sums.into_iter().map(|(l, sums)| (Some(l), sums)), sheet)?;
        }
        self.progress.end();
        Ok(())
    }

    fn score_texts(
        &mut self,
        number: usize,
        plan: &LayerPlan,
        candidates: &[usize],
        base: bool,
        what: &str,
        sheet: &mut Sheet,
    ) -> Result<()> {
        let Rule::Corpus(scorer) = self.rule else { return Ok(()) };
        let variants: Vec<Option<usize>> = base.then_some(None).into_iter().chain(candidates.iter().copied().map(Some)).collect();
        // A record is generated again for all unless all have it: the same tokens come out, and the batch stays rectangular.
        let records: Vec<usize> = (0..self.records()).filter(|&r| variants.iter().any(|&v| !sheet.has(v, r))).collect();
        self.progress.begin(what, (records.len() * variants.len()) as u64);
        let references = std::mem::take(&mut self.references);
        let result = self.generate(plan, &variants, &records, &mut |journal, record, variant, text| {
            let share = Share::Counts(scorer.segment(strip(&text), strip(&references[record])).0);
            let layer = variants[variant];
            journal.append_soon(&[Entry::Shares { round: number, layer, records: vec![record], shares: vec![share.clone()] }])?;
            sheet.enter(layer, record, share);
            Ok(())
        });
        self.references = references;
        self.progress.end();
        result
    }

    /// Texts of the records named for every variant; `done` gets journal, record, variant and text.
    fn generate(
        &mut self,
        plan: &LayerPlan,
        variants: &[Option<usize>],
        records: &[usize],
        done: &mut dyn FnMut(&mut Journal, usize, usize, String) -> Result<()>,
    ) -> Result<()> {
        let Material::Prompts { prompts, options, decode } = self.material else { return Ok(()) };
        let ids: Vec<&[u32]> = records.iter().map(|&r| prompts[r].ids.as_slice()).collect();
        let options = GenerateOptions { kv_budget: self.request.mem_budget, ..options.clone() };
        let kept = "finished texts are in the journal; --resume goes on from there";
        let request = GenerateRequest { plan, variants, prompts: &ids, options: &options, stop: &|_| false, kept };
        let journal = &mut self.journal;
        let result = generate(self.decoder, &request, self.progress, &mut |generation| {
            done(journal, records[generation.prompt], generation.variant, decode(&generation.tokens)?)
        });
        // What was finished is kept whatever stopped the rest.
        journal.flush().and(result)
    }

    /// Tokens a second of one pass of `plan` over about [`SPEED_ROWS`] tokens, the head included where there are targets.
    fn speed(&self, plan: &LayerPlan) -> Result<f64> {
        let mut rows = 0;
        let mut few = |ids: &[u32]| {
            rows += ids.len();
            rows <= SPEED_ROWS || rows == ids.len()
        };
        let mut targets = Vec::new();
        let sequences: Vec<&[u32]> = match self.material {
            Material::Texts(examples) => {
                let taken: Vec<&Example> = examples.iter().take_while(|e| few(&e.ids)).collect();
                targets.extend(taken.iter().map(|e| e.targets.as_slice()));
                taken.into_iter().map(|e| e.ids.as_slice()).collect()
            }
            Material::Prompts { prompts, .. } => prompts.iter().map(|p| p.ids.as_slice()).take_while(|ids| few(ids)).collect(),
        };
        let batch = Batch::pack(sequences);
        let mut scratch = Scratch::new(self.decoder.backend())?;
        let start = Instant::now();
        let x = self
            .decoder
            .forward(&batch, plan, &mut scratch, |_, _| self.progress.check("the round's scores are in the journal"))?;
        let (rows, tokens) = packed_targets(&batch.starts, targets);
        self.decoder.losses(&self.decoder.normed_rows(&x, &rows)?, &tokens, None)?;
        #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
        let tokens = batch.rows() as f64;
        Ok(tokens / start.elapsed().as_secs_f64().max(1e-9))
    }
}

/// Candidates that lack a share on any of the records.
fn missing(sheet: &Sheet, candidates: &[usize], records: &[usize]) -> Vec<usize> {
    candidates.iter().copied().filter(|&l| records.iter().any(|&r| !sheet.has(Some(l), r))).collect()
}
