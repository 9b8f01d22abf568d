//! Writes a model's folder with the linears of its layers in NF4, as transformers and bitsandbytes save it.

use super::prune::{LeftBehind, PROVENANCE};
use super::rewrite::{Fate, Rewrite};
use crate::error::{Error, Result};
use crate::model::nf4_weights::linear_names;
use crate::model::{ModelFolder, Weight};
use crate::progress::Progress;
use crate::quant::checkpoint::{self, CONFIG_KEY};
use crate::quant::nf4::{dequantise, quantise};
use crate::tensor::{Dtype, HostTensor};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The folder of the model.
    pub model: PathBuf,
    /// The folder to make.
    pub out: PathBuf,
    /// Magnitudes in 8 bits too.
    pub double_quant: bool,
    /// Replace an existing `out`.
    pub force: bool,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The folder that was made.
    pub out: PathBuf,
    /// True if magnitudes are in 8 bits.
    pub double_quant: bool,
    /// Matrices in four bits.
    pub matrices: usize,
    /// Their weights.
    pub weights: u64,
    /// Bytes of all tensors before.
    pub bytes_before: u64,
    /// And after.
    pub bytes: u64,
    /// Bits a weight of these matrices takes, magnitudes and maps included.
    pub bits_per_weight: f64,
    /// Root of the mean squared change of these weights, divided by that of the weights; before magnitudes become 8 bits.
    pub relative_error: f64,
    /// Names of the weight files.
    pub weight_files: Vec<String>,
    /// Names of the other files carried over.
    pub carried: Vec<String>,
    /// Files that were left behind, each with the reason.
    pub left_behind: Vec<LeftBehind>,
    /// Identity of the result.
    pub fingerprint: String,
}

/// Quantises a model.
///
/// # Errors
/// [`Error::Request`] for a model that is in four bits already, or an `out` that exists; [`Error::Data`] naming a weight that
/// is not finite; [`Error::Io`]; [`Error::Interrupted`]. In every case `out` is as it was.
pub fn quantize(request: &Request, progress: &dyn Progress) -> Result<Report> {
    let model = ModelFolder::open(&request.model)?;
    if model.nf4().len() > 0 {
        return Err(Error::request(format!("{} is in four bits already", request.model.display())));
    }
    let linears: BTreeSet<String> = linear_names(model.config.num_hidden_layers).collect();
    let compute = model.dtypes().iter().max_by_key(|(_, parameters)| *parameters).map_or(Dtype::F32, |(dtype, _)| *dtype);
    let mut config = model.raw_config.clone();
    config.insert(CONFIG_KEY.to_owned(), checkpoint::config(compute, request.double_quant));
    let fingerprint = model.fingerprint();
    let mut provenance = json!({
        "schema": 1,
        "prunectl": env!("CARGO_PKG_VERSION"),
        "command": "quantize",
        "source": {"path": request.model, "fingerprint": fingerprint},
        "double_quant": request.double_quant,
    });
    super::prune::insert_before(&request.model.join(PROVENANCE), &mut provenance)?;

    let mut sums = Sums::default();
    let rewrite =
        Rewrite { model: &model, out: &request.out, force: request.force, config: &config, provenance: &provenance, most: 6 };
    progress.begin("quantising", model.bytes());
    let written = rewrite.write(progress, &mut |stored| {
        if !linears.contains(&stored.name) {
            return Ok(Fate::Kept);
        }
        let Weight::Dense(dense) = model.weight(&stored.name)? else { return Ok(Fate::Kept) };
        sums.matrix(dense, request.double_quant).map(Fate::Replaced)
    })?;
    progress.end();
    let result = ModelFolder::open(written.folder.path())?;
    if result.config != model.config || result.nf4().len() != linears.len() || result.parameters() != model.parameters() {
        return Err(Error::data(&request.out, "", "check of the written model failed: it differs in more than its four bits"));
    }
    #[expect(clippy::cast_precision_loss, reason = "counts for a report")]
    let bits_per_weight = 8.0 * sums.bytes as f64 / sums.weights.max(1) as f64;
    let report = Report {
        out: request.out.clone(),
        double_quant: request.double_quant,
        matrices: linears.len(),
        weights: sums.weights,
        bytes_before: model.bytes(),
        bytes: result.bytes(),
        bits_per_weight,
        relative_error: if sums.square > 0.0 { (sums.change / sums.square).sqrt() } else { 0.0 },
        weight_files: written.weight_files,
        carried: written.carried,
        left_behind: written.left_behind,
        fingerprint: result.fingerprint(),
    };
    progress.check("nothing was written")?;
    written.folder.commit()?;
    Ok(report)
}

/// Over all matrices.
#[derive(Default)]
struct Sums {
    weights: u64,
    bytes: u64,
    square: f64,
    change: f64,
}

impl Sums {
    /// The tensors that take a matrix's place.
    fn matrix(&mut self, dense: &HostTensor, double_quant: bool) -> Result<Vec<checkpoint::Written>> {
        let &[rows, cols] = dense.shape.as_slice() else {
            return Err(Error::shape("quantize", "weight", &[0, 0], &dense.shape));
        };
        let values = dense.to_f32();
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let problem = format!("element [{}, {}] is {}", at / cols, at % cols, values[at]);
            return Err(Error::data(&dense.file, format!("tensor {}", dense.name), problem));
        }
        let quantised = quantise(&values);
        let mut row = vec![0.0; cols];
        for (index, values) in values.chunks_exact(cols.max(1)).enumerate() {
            dequantise(&quantised.codes, &quantised.absmax, index * cols, &mut row);
            for (v, q) in values.iter().zip(&row) {
                let (v, q) = (f64::from(*v), f64::from(*q));
                self.square += v * v;
                self.change += (v - q) * (v - q);
            }
        }
        let tensors = checkpoint::written(&dense.name, [rows, cols], dense.dtype, quantised, double_quant)?;
        self.weights += values.len() as u64;
        self.bytes += tensors.iter().map(|t| t.bytes.len() as u64).sum::<u64>();
        Ok(tensors)
    }
}
