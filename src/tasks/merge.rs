//! Merges a LoRA adapter into the weights of its base: W + scale * (B A), in f32, rounded once.

use super::prune::{LeftBehind, PROVENANCE, insert_before};
use super::rewrite::{Fate, Rewrite, refuse_overwriting};
use crate::error::{Error, Result};
use crate::model::adapter::{Adapter, AdapterPair};
use crate::model::folder::CONFIG;
use crate::model::safetensors::StoredTensor;
use crate::model::tensor_set::layer_of;
use crate::model::{LinearName, ModelFolder, Weight};
use crate::ops::{AddColsArgs, Backend, LinearArgs};
use crate::progress::Progress;
use crate::quant::Nf4Tensor;
use crate::quant::checkpoint::{CONFIG_KEY, Written, matrix_of_part, matrix_of_state};
use crate::tensor::{Dtype, HostTensor};
use half::{bf16, f16};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;

/// Which weights the adapter is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The folder's own.
    Original,
    /// What NF4 keeps of them: those an adapter was trained over with `--quant nf4`.
    Nf4 {
        /// With magnitudes in 8 bits.
        double_quant: bool,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The folder of the base.
    pub model: PathBuf,
    /// The folder of the adapter.
    pub adapter: PathBuf,
    /// The folder to make.
    pub out: PathBuf,
    /// Dtype of all tensors; `None`: each as it is stored, those in four bits as before they were.
    pub dtype: Option<Dtype>,
    /// What is added to.
    pub base: Base,
    /// Replace an existing `out`.
    pub force: bool,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The folder that was made.
    pub out: PathBuf,
    /// Matrices that the adapter changed.
    pub matrices: usize,
    /// Parameters of the result.
    pub parameters: u64,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Names of the weight files.
    pub weight_files: Vec<String>,
    /// Names of the other files carried over.
    pub carried: Vec<String>,
    /// Files that were left behind, each with the reason.
    pub left_behind: Vec<LeftBehind>,
    /// Identity of the result.
    pub fingerprint: String,
    /// Both models on some text.
    pub comparison: Option<Comparison>,
}

/// The base with its adapter against the merged model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// Mean KL(base with adapter || merged) over the targets' positions, in nats.
    pub kl: f64,
    /// Mean negative log-likelihood of the base with the adapter.
    pub nll_adapter: f64,
    /// And of the merged model.
    pub nll_merged: f64,
    /// Positions.
    pub target_tokens: u64,
}

/// Opens the base as the merge sees it.
///
/// # Errors
/// Those of opening; [`Error::Request`] where the original is asked for and the folder is in four bits.
pub fn open_base(request: &Request) -> Result<ModelFolder> {
    let mut model = ModelFolder::open(&request.model)?;
    if let Base::Nf4 { double_quant } = request.base {
        model.quantise_nf4(double_quant)?;
    }
    Ok(model)
}

/// Measures base and merged model; the first folder is the request's, the second the one that was written.
pub type Compare<'a> = &'a dyn Fn(&Request, &ModelFolder) -> Result<Option<Comparison>>;

/// Merges. `backend` multiplies, in f32.
///
/// # Errors
/// [`Error::Request`] for an `out` that exists; [`Error::Data`] naming a weight that `dtype` cannot hold; those of
/// [`Adapter::open`]; [`Error::Io`]; [`Error::Interrupted`]. In every case `out` is as it was.
pub fn merge<B: Backend>(request: &Request, backend: &B, compare: Compare<'_>, progress: &dyn Progress) -> Result<Report> {
    let model = open_base(request)?;
    let adapter = Adapter::open(&request.adapter, &model)?;
    refuse_overwriting(&[&request.model, &request.adapter], &request.out)?;
    let mut config = model.raw_config.clone();
    config.remove(CONFIG_KEY);
    if let Some(dtype) = request.dtype {
        // transformers renamed it; a file may have both.
        let name = match dtype {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        };
        let old = config.contains_key("torch_dtype");
        if old {
            config.insert("torch_dtype".to_owned(), json!(name));
        }
        if !old || config.contains_key("dtype") {
            config.insert("dtype".to_owned(), json!(name));
        }
    }
    let mut provenance = json!({
        "schema": 1,
        "prunectl": env!("CARGO_PKG_VERSION"),
        "command": "merge",
        "source": {"path": request.model, "fingerprint": model.fingerprint()},
        "adapter": {"path": request.adapter, "sha256": adapter.digest()},
        "base_dtype": match request.base { Base::Original => "original", Base::Nf4 { .. } => "nf4" },
    });
    insert_before(&request.model.join(PROVENANCE), &mut provenance)?;

    let merger = Merger { model: &model, adapter: &adapter, dtype: request.dtype, backend };
    let rewrite =
        Rewrite { model: &model, out: &request.out, force: request.force, config: &config, provenance: &provenance, most: 1 };
    progress.begin("merging", model.bytes());
    let written = rewrite.write(progress, &mut |stored| merger.fate(stored))?;
    progress.end();
    let result = ModelFolder::open(written.folder.path())?;
    if result.config != model.config || result.parameters() != model.parameters() {
        let problem = format!("check of the written model failed: {CONFIG} or tensors differ in more than their values");
        return Err(Error::data(&request.out, "", problem));
    }
    result.check_finite()?;
    let comparison = compare(request, &result)?;
    let report = Report {
        out: request.out.clone(),
        matrices: adapter.pairs().len(),
        parameters: result.parameters(),
        bytes: result.bytes(),
        weight_files: written.weight_files,
        carried: written.carried,
        left_behind: written.left_behind,
        fingerprint: result.fingerprint(),
        comparison,
    };
    progress.check("nothing was written")?;
    written.folder.commit()?;
    Ok(report)
}

struct Merger<'a, B> {
    model: &'a ModelFolder,
    adapter: &'a Adapter,
    dtype: Option<Dtype>,
    backend: &'a B,
}

impl<B: Backend> Merger<'_, B> {
    fn fate(&self, stored: &StoredTensor) -> Result<Fate> {
        let part_of = matrix_of_state(&stored.name).or_else(|| matrix_of_part(&stored.name));
        if part_of.is_some_and(|matrix| matches!(self.model.weight(matrix), Ok(Weight::Nf4(_)))) {
            return Ok(Fate::Dropped);
        }
        // Buffers that take no part stay as they are.
        let Ok(weight) = self.model.weight(&stored.name) else { return Ok(Fate::Kept) };
        let pair = linear_of(&stored.name).and_then(|(layer, linear)| self.adapter.pair(layer, linear));
        let (dtype, shape) = match weight {
            Weight::Dense(dense) => (dense.dtype, dense.shape.clone()),
            Weight::Nf4(nf4) => (nf4.dtype, nf4.shape.to_vec()),
        };
        let new = self.dtype.unwrap_or(dtype);
        if let (Weight::Dense(_), None, true) = (weight, pair, new == dtype) {
            return Ok(Fate::Kept);
        }
        let values = match weight {
            Weight::Dense(dense) => dense.to_f32(),
            Weight::Nf4(nf4) => Nf4Tensor::to_f32(nf4),
        };
        let values = match pair {
            Some(pair) => self.sum(&shape, &values, pair)?,
            None => values,
        };
        let bytes = self.bytes(stored, &values, new)?;
        let dtype = match new {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        };
        Ok(Fate::Replaced(vec![Written { name: stored.name.clone(), dtype, shape, bytes }]))
    }

    /// W + scale * (B A): the product as rows of B times the matrix A^T.
    fn sum(&self, shape: &[usize], weight: &[f32], pair: &AdapterPair) -> Result<Vec<f32>> {
        let (&[rows, cols], &[_, r]) = (shape, pair.b.shape.as_slice()) else {
            return Err(Error::shape("merge", "weight", &[0, 0], shape));
        };
        let a = pair.a.to_f32();
        let transposed: Vec<f32> = (0..cols).flat_map(|col| a.iter().skip(col).step_by(cols.max(1)).copied()).collect();
        let transposed = HostTensor::from_f32(pair.a.name.clone(), &[cols, r], &transposed)
            .ok_or_else(|| Error::shape("merge", "lora_A", &[r, cols], &pair.a.shape))?;
        let a = self.backend.prepare(&[transposed])?;
        let b = self.backend.upload(rows, r, &pair.b.to_f32())?;
        let mut product = self.backend.zeros(rows, cols)?;
        self.backend.linear(LinearArgs { y: &mut product, x: &b, weight: &a, bias: None, accumulate: false })?;
        let mut sum = self.backend.upload(rows, cols, weight)?;
        self.backend.add_cols(AddColsArgs { y: &mut sum, x: &product, first_col: 0, scale: pair.scale })?;
        self.backend.download(&sum)
    }

    /// Values in `dtype`, each rounded to the nearest.
    fn bytes(&self, stored: &StoredTensor, values: &[f32], dtype: Dtype) -> Result<Vec<u8>> {
        let bytes = match dtype {
            Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => {
                if let Some(at) = values.iter().position(|x| x.is_finite() && !f16::from_f32(*x).is_finite()) {
                    let problem = format!("element {at} is {}, beyond what f16 holds", values[at]);
                    return Err(Error::data(&self.model.path, format!("tensor {}", stored.name), problem)
                        .with_help("write bf16 or f32 with --dtype"));
                }
                values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
            }
            Dtype::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        };
        Ok(bytes)
    }
}

/// Layer and linear of a weight by its name.
fn linear_of(name: &str) -> Option<(usize, LinearName)> {
    let layer = layer_of(name)?;
    let module = name.strip_suffix(".weight")?;
    LinearName::ALL.into_iter().find(|linear| module.ends_with(&format!(".{layer}.{}", linear.module()))).map(|l| (layer, l))
}

impl Comparison {
    /// Adds the two models' logits of one target, each `[vocab_size]`; means are made by [`Comparison::mean`].
    pub fn add(&mut self, adapter: &[f32], merged: &[f32], target: u32) {
        let [a, m] = [adapter, merged].map(log_sum_exp);
        let kl: f64 = adapter
            .iter()
            .zip(merged)
            .map(|(&x, &y)| {
                let (p, q) = (f64::from(x) - a, f64::from(y) - m);
                p.exp() * (p - q)
            })
            .sum();
        self.kl += kl;
        let at = target as usize;
        self.nll_adapter += a - f64::from(adapter[at]);
        self.nll_merged += m - f64::from(merged[at]);
        self.target_tokens += 1;
    }

    /// Of nothing.
    #[must_use]
    pub const fn empty() -> Self {
        Self { kl: 0.0, nll_adapter: 0.0, nll_merged: 0.0, target_tokens: 0 }
    }

    /// Sums to means.
    #[must_use]
    pub fn mean(self) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
        let n = self.target_tokens.max(1) as f64;
        Self { kl: self.kl / n, nll_adapter: self.nll_adapter / n, nll_merged: self.nll_merged / n, ..self }
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    f64::from(largest) + logits.iter().map(|&x| f64::from(x - largest).exp()).sum::<f64>().ln()
}
