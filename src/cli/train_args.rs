//! The options of `prunectl train-qlora`, by what they are about.

use super::layers::{LayerList, parse_layers};
use super::train::nothing_matches;
use crate::error::{Error, Result};
use crate::model::linear_name::LinearName;
use crate::model::train::{LoraSpec, Trainable};
use crate::model::{Adapter, LayerPlan, ModelFolder};
use crate::tasks::train::Length;
use crate::tasks::train::filters::Filters;
use crate::tasks::train::optimiser::Hyper;
use crate::tasks::train::order::Order;
use crate::tasks::train::schedule::Schedule;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;

/// LoRA pairs. Defaults are those of arXiv 2505.20237 and 2510.22763.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "LoRA")]
pub(crate) struct LoraArgs {
    /// Rank
    #[arg(long, value_name = "R", default_value_t = 64)]
    r: usize,
    /// Factor on the pairs' products, before the division by the rank
    #[arg(long, value_name = "ALPHA", default_value_t = 128.0)]
    alpha: f32,
    /// Divide alpha by the root of the rank instead of the rank
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    rslora: bool,
    /// Probability that an input of a pair is dropped
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    dropout: f32,
    /// Linears that get a pair: all-linear, or a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj
    #[arg(long, value_name = "LIST", default_value = "all-linear")]
    targets: String,
    /// Begin with this adapter, whose rank, alpha and targets count
    #[arg(long, value_name = "DIR", conflicts_with_all = ["r", "alpha", "rslora", "targets"])]
    init_adapter: Option<PathBuf>,
}

impl LoraArgs {
    pub(super) fn init_adapter(&self) -> Option<&PathBuf> {
        self.init_adapter.as_ref()
    }

    pub(super) fn trainable(&self, folder: &ModelFolder) -> Result<(Trainable, Option<Adapter>)> {
        let Some(path) = &self.init_adapter else {
            let (r, alpha, rslora, dropout) = (self.r, self.alpha, self.rslora, self.dropout);
            return Ok((Trainable::Lora(LoraSpec { r, alpha, rslora, dropout, targets: self.targets()? }), None));
        };
        let adapter = Adapter::open(path, folder)?;
        let config = &adapter.config;
        if !config.ranks.is_empty() || !config.alphas.is_empty() {
            return Err(Error::request(format!(
                "--init-adapter {}: pairs of different ranks or alphas cannot be trained on",
                path.display()
            )));
        }
        let mut targets: Vec<LinearName> = adapter.pairs().map(|(_, linear, _)| linear).collect();
        targets.sort_unstable();
        targets.dedup();
        #[expect(clippy::cast_possible_truncation, reason = "alpha is rounded to f32 wherever it is used")]
        let alpha = config.alpha as f32;
        let spec = LoraSpec { r: config.r, alpha, rslora: config.rslora, dropout: self.dropout, targets };
        Ok((Trainable::Lora(spec), Some(adapter)))
    }

    fn targets(&self) -> Result<Vec<LinearName>> {
        if self.targets == "all-linear" {
            return Ok(LinearName::ALL.to_vec());
        }
        let mut targets = self
            .targets
            .split(',')
            .map(|name| {
                let known = LinearName::ALL.map(LinearName::name).join(", ");
                LinearName::parse(name.trim()).ok_or_else(|| nothing_matches("--targets", name, &format!("all-linear, {known}")))
            })
            .collect::<Result<Vec<_>>>()?;
        targets.sort_unstable();
        targets.dedup();
        Ok(targets)
    }
}

/// `--train-layers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrainLayers {
    last: usize,
    layers: Vec<usize>,
    lm_head: bool,
}

impl FromStr for TrainLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut found = Self { last: 0, layers: Vec::new(), lm_head: false };
        for part in text.split(',').map(str::trim) {
            if part == "lm_head" {
                found.lm_head = true;
            } else if let Some(count) = part.strip_prefix("last:") {
                let count = count.parse().ok().filter(|&n| n > 0);
                found.last = count.ok_or_else(|| format!("{part:?}: expected last:N with a whole number N above 0"))?;
            } else {
                found.layers.extend(parse_layers(part).map_err(|e| format!("{e}; or last:N, lm_head"))?);
            }
        }
        Ok(found)
    }
}

impl TrainLayers {
    pub(super) fn trainable(&self, plan: &LayerPlan) -> Result<Trainable> {
        let kept = plan.kept();
        if self.last > kept.len() {
            return Err(Error::request(format!("--train-layers last:{}: the model runs {} layers", self.last, kept.len())));
        }
        let mut layers: Vec<usize> = kept[kept.len() - self.last..].to_vec();
        if let Some(layer) = self.layers.iter().find(|&&layer| !plan.keeps(layer)) {
            let known = kept.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            return Err(nothing_matches("--train-layers", &layer.to_string(), &format!("{known}, last:N, lm_head")));
        }
        layers.extend(&self.layers);
        layers.sort_unstable();
        layers.dedup();
        Ok(Trainable::Layers { layers, lm_head: self.lm_head })
    }
}

/// Course of the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScheduleChoice {
    /// Half a cosine, down to 0
    Cosine,
    /// A straight line, down to 0
    Linear,
    /// As it is
    Constant,
}

impl From<ScheduleChoice> for Schedule {
    fn from(choice: ScheduleChoice) -> Self {
        match choice {
            ScheduleChoice::Cosine => Self::Cosine,
            ScheduleChoice::Linear => Self::Linear,
            ScheduleChoice::Constant => Self::Constant,
        }
    }
}

/// How it is trained.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Training")]
pub(crate) struct OptimiserArgs {
    /// Highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-5)]
    pub(super) lr: f64,
    /// Course of the learning rate after its warmup
    #[arg(long, value_enum, value_name = "NAME", default_value = "cosine")]
    pub(super) schedule: ScheduleChoice,
    /// Updates until the highest rate is reached; below 1, a share of all updates
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    pub(super) warmup: f64,
    /// Times through the data; a fraction stops within an epoch
    #[arg(long, value_name = "N", default_value_t = 3.0, conflicts_with = "steps")]
    epochs: f64,
    /// Updates, instead of --epochs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Records an update, times --grad-accum; batches are never padded, and cut by the memory that is free
    #[arg(long, value_name = "N", default_value = "4", value_parser = super::at_least_one)]
    batch: usize,
    /// Batches an update: what counts is the product, for memory does not depend on either
    #[arg(long, value_name = "N", default_value = "1", value_parser = super::at_least_one)]
    grad_accum: usize,
    /// Largest norm of the gradient; 0: no clipping
    #[arg(long, value_name = "NORM", default_value_t = 0.0)]
    clip: f64,
    /// Decoupled weight decay of matrices
    #[arg(long, value_name = "RATE", default_value_t = 0.01)]
    weight_decay: f64,
    /// AdamW's decay of its two moments
    #[arg(long, value_name = "B1,B2", default_value = "0.9,0.999", value_parser = betas)]
    betas: (f64, f64),
    /// AdamW's term beside the root
    #[arg(long, value_name = "EPS", default_value_t = 1e-8)]
    eps: f64,
    /// Seed of initial values, order of the data and dropout
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(super) seed: u64,
    /// Keep the data's order in each epoch
    #[arg(long)]
    no_shuffle: bool,
    /// Put records of like length into the same update
    #[arg(long)]
    group_by_length: bool,
    /// Let --batch count packs of up to --seq-len tokens; records in a pack do not see each other
    #[arg(long)]
    pack: bool,
}

/// Two numbers from 0 to below 1.
fn betas(text: &str) -> Result<(f64, f64), String> {
    let number = |text: &str| text.trim().parse().ok().filter(|b| (0.0..1.0).contains(b));
    let pair = text.split_once(',').and_then(|(a, b)| Some((number(a)?, number(b)?)));
    pair.ok_or_else(|| "expected two numbers from 0 to below 1, as 0.9,0.999".into())
}

impl OptimiserArgs {
    pub(super) fn order(&self, seq_len: usize) -> Order {
        Order {
            shuffle: (!self.no_shuffle).then_some(self.seed),
            group_by_length: self.group_by_length,
            pack: self.pack.then_some(seq_len),
            per_update: self.batch.saturating_mul(self.grad_accum),
        }
    }

    pub(super) fn length(&self) -> Length {
        self.steps.map_or(Length::Epochs(self.epochs), Length::Updates)
    }

    pub(super) fn hyper(&self) -> Result<Hyper> {
        let at_least_zero =
            [("--lr", self.lr), ("--clip", self.clip), ("--weight-decay", self.weight_decay), ("--eps", self.eps)];
        if let Some((name, value)) = at_least_zero.into_iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite())) {
            return Err(Error::request(format!("{name} must be 0 or more, not {value}")));
        }
        let (beta1, beta2) = self.betas;
        Ok(Hyper { beta1, beta2, eps: self.eps, weight_decay: self.weight_decay, clip: self.clip })
    }
}

/// Rules that keep bad records out.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Filters of the training data")]
pub(crate) struct FilterArgs {
    /// Drop pairs one side of which has more than R times the other's characters
    #[arg(long, value_name = "R")]
    filter_ratio: Option<f64>,
    /// Drop records with a side of fewer words
    #[arg(long, value_name = "N")]
    filter_min_words: Option<usize>,
    /// Drop records with a side of more words
    #[arg(long, value_name = "N")]
    filter_max_words: Option<usize>,
    /// Drop records with tags or entities of HTML or XML
    #[arg(long)]
    filter_markup: bool,
    /// Drop pairs whose sides are the same text
    #[arg(long)]
    filter_copies: bool,
}

impl FilterArgs {
    pub(super) fn filters(&self) -> Result<Filters> {
        if let Some(ratio) = self.filter_ratio.filter(|r| !(*r >= 1.0 && r.is_finite())) {
            return Err(Error::request(format!("--filter-ratio must be 1 or more, not {ratio}")));
        }
        Ok(Filters {
            max_ratio: self.filter_ratio,
            min_words: self.filter_min_words,
            max_words: self.filter_max_words,
            no_markup: self.filter_markup,
            no_copies: self.filter_copies,
        })
    }
}

/// A teacher.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Distillation")]
pub(crate) struct DistilArgs {
    /// Learn from this model's distributions too: a model folder, or a file that `prunectl teach` wrote
    #[arg(long, value_name = "MODEL|FILE")]
    pub(super) teacher: Option<PathBuf>,
    /// Layers of the teacher to leave out
    #[arg(long, value_name = "LAYERS", value_parser = parse_layers, requires = "teacher")]
    pub(super) teacher_skip: Option<LayerList>,
    /// Weight of the divergence from the teacher, 0 to 1; the data's tokens have the rest
    #[arg(long, value_name = "W", default_value = "0.5", value_parser = share, requires = "teacher")]
    pub(super) teacher_mix: f32,
    /// Both sides' logits are divided by it
    #[arg(long, value_name = "T", default_value = "1", value_parser = temperature, requires = "teacher")]
    pub(super) temperature: f32,
}

fn share(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|w| (0.0..=1.0).contains(w)).ok_or_else(|| "expected a number from 0 to 1".into())
}

fn temperature(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|t: &f32| *t > 0.0 && t.is_finite()).ok_or_else(|| "expected a number above 0".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_to_train_are_named_in_three_ways() {
        let plan = LayerPlan::without(6, &[4]).unwrap();
        let layers = |text: &str| text.parse::<TrainLayers>().unwrap().trainable(&plan);
        assert_eq!(layers("last:2,lm_head").unwrap(), Trainable::Layers { layers: vec![3, 5], lm_head: true });
        assert_eq!(layers("0-1,5,last:1").unwrap(), Trainable::Layers { layers: vec![0, 1, 5], lm_head: false });
        assert_eq!(layers("4").unwrap_err().to_string(), "--train-layers: 4 matches nothing in the model");
        assert!(layers("last:6").is_err());
        for text in ["", "last:0", "last:x", "head", "3-1"] {
            assert!(text.parse::<TrainLayers>().is_err(), "{text}");
        }
    }
}
