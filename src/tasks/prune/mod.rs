//! Writes the folder of a model without some of its layers: same bytes, renumbered, and checked before it appears.
//!
//! Tensors pass through a buffer of a few MiB, never as a whole. All is written beside the target and renamed to it when
//! it has been opened again and found right; until then nothing exists there, or what did is untouched.

pub(super) mod carry;
pub(super) mod config;
pub mod probe;
pub(super) mod weights;

use crate::error::{Error, Result};
use crate::io::{self, NewFolder};
use crate::model::folder::CONFIG;
use crate::model::{LayerPlan, ModelFolder};
use crate::progress::Progress;
use crate::report::ScanJson;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The file that says where a pruned folder comes from.
pub const PROVENANCE: &str = "prunectl.json";

/// Which layers go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// These.
    Remove(Vec<usize>),
    /// All but these.
    Keep(Vec<usize>),
    /// Those that a scan removed, in its first `rounds` rounds (all of them if `None`), and those it began without.
    Scan {
        /// The scan's folder.
        folder: PathBuf,
        /// How many rounds to follow.
        rounds: Option<usize>,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The folder of the model.
    pub model: PathBuf,
    /// The folder to make.
    pub out: PathBuf,
    /// Which layers go.
    pub choice: Choice,
    /// Replace an existing `out`, and follow a scan of another model.
    pub force: bool,
}

/// A last look at what was written, before it gets its name: the original, the layers that were kept of it, the result.
/// The command line passes one that computes; files alone are compared here.
pub type Verify<'a> = &'a dyn Fn(&ModelFolder, &LayerPlan, &ModelFolder) -> Result<()>;

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The folder that was made.
    pub out: PathBuf,
    /// Layers that are gone, ascending, as numbered in the original.
    pub removed: Vec<usize>,
    /// Layers that are left, ascending, as numbered in the original.
    pub keep: Vec<usize>,
    /// Size of the original.
    pub before: Size,
    /// Size of the result.
    pub after: Size,
    /// Names of the weight files written.
    pub weight_files: Vec<String>,
    /// Names of the other files carried over.
    pub carried: Vec<String>,
    /// Files and folders that were left behind, each with the reason.
    pub left_behind: Vec<LeftBehind>,
    /// Identity of the result ([`ModelFolder::fingerprint`]).
    pub fingerprint: String,
}

/// Depth and size of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Layers.
    pub num_hidden_layers: usize,
    /// Parameters, a tied embedding counted once.
    pub parameters: u64,
    /// Bytes of the tensors.
    pub bytes: u64,
}

/// A file that was not carried over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftBehind {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: &'static str,
}

impl Size {
    fn of(model: &ModelFolder) -> Self {
        Self { num_hidden_layers: model.config.num_hidden_layers, parameters: model.parameters(), bytes: model.bytes() }
    }
}

/// Writes the shallower model.
///
/// # Errors
/// [`Error::Request`] for layers that do not exist, are named twice or are all there are, an `out` that exists, a scan of
/// another model; [`Error::Unsupported`] for a per-layer list in config.json that we do not know; [`Error::Data`] and
/// [`Error::Io`]; [`Error::Interrupted`]. In every case `out` is as it was.
pub fn prune(request: &Request, verify: Verify<'_>, progress: &dyn Progress) -> Result<Report> {
    let model = ModelFolder::open(&request.model)?;
    let fingerprint = model.fingerprint();
    let layers = model.config.num_hidden_layers;
    let (plan, scan) = plan(request, layers, &fingerprint, progress)?;
    if plan.kept().len() == layers {
        return Err(Error::request("no layer would be removed").with_help("name at least one layer to remove"));
    }
    let new_config = config::slice(&request.model.join(CONFIG), &model.raw_config, &plan)?;
    refuse_overwriting_the_source(request)?;

    let folder = NewFolder::begin(&request.out, request.force)?;
    // Messages name the place that the user knows, not the temporary one.
    let named = |name: &str| request.out.join(name);
    let layout = weights::layout(&model, &plan)?;
    // Written once, read twice (ours and the original) for the comparison.
    progress.begin("copying weights", layout.bytes() * 2);
    let weight_files = weights::write(&layout, folder.path(), &named, &|_| Ok(None), progress)?;
    let own: Vec<String> = model.files().shards.iter().map(|shard| weights::file_name(&shard.path)).collect();
    let (carried, left_behind) = carry::copy(&request.model, folder.path(), &own, &named)?;
    write_json(&folder.path().join(CONFIG), &named(CONFIG), &Value::Object(new_config))?;
    let provenance = provenance(request, &model, &fingerprint, &plan, scan)?;
    write_json(&folder.path().join(PROVENANCE), &named(PROVENANCE), &provenance)?;

    let pruned = ModelFolder::open(folder.path())?;
    check(&model, &plan, &pruned, &layout)?;
    weights::compare(&layout, folder.path(), &named, progress)?;
    progress.end();
    verify(&model, &plan, &pruned)?;
    let report = Report {
        out: request.out.clone(),
        removed: plan.removed(),
        keep: plan.kept().to_vec(),
        before: Size::of(&model),
        after: Size::of(&pruned),
        weight_files,
        carried,
        left_behind,
        fingerprint: pruned.fingerprint(),
    };
    progress.check("nothing was written")?;
    folder.commit()?;
    Ok(report)
}

/// The layers to keep, and what prunectl.json says of the scan that chose them.
fn plan(request: &Request, layers: usize, fingerprint: &str, progress: &dyn Progress) -> Result<(LayerPlan, Option<Value>)> {
    let (folder, rounds) = match &request.choice {
        Choice::Remove(removed) => return Ok((LayerPlan::without(layers, removed)?, None)),
        Choice::Keep(kept) => return Ok((LayerPlan::keeping(layers, kept)?, None)),
        Choice::Scan { folder, rounds } => (folder, *rounds),
    };
    let path = folder.join("scan.json");
    let scan = ScanJson::read(&path)?;
    let same = scan.model.fingerprint == fingerprint;
    if !same && !request.force {
        return Err(Error::request(format!(
            "{} is the scan of another model ({}), not of {}",
            path.display(),
            scan.model.path,
            request.model.display()
        ))
        .with_help("scan this model, or pass --force if the two differ in nothing that matters"));
    }
    if !same {
        progress.note(&format!(
            "{} is the scan of another model ({}); followed because of --force",
            path.display(),
            scan.model.path
        ));
    }
    if scan.model.num_hidden_layers != layers {
        return Err(Error::data(
            &path,
            "key model.num_hidden_layers",
            format!("found {}, but {} has {layers} layers", scan.model.num_hidden_layers, request.model.display()),
        ));
    }
    let done = scan.order.len();
    let rounds = rounds.unwrap_or(done);
    if rounds > done {
        return Err(Error::request(format!("--rounds {rounds}: {} has {done} rounds", path.display())));
    }
    let mut removed = scan.already_removed.clone();
    removed.extend(&scan.order[..rounds]);
    // The scan's own list is data: a layer that is wrong there is the file's fault, not the request's.
    let plan = LayerPlan::without(layers, &removed).map_err(|e| Error::data(&path, "key order", e.to_string()))?;
    if rounds == done && plan.kept() != scan.keep {
        return Err(Error::data(&path, "key keep", "does not match the layers in order"));
    }
    let about = json!({
        "path": folder,
        "metric": scan.metric,
        "rounds": rounds,
        "order": scan.order[..rounds],
        "already_removed": scan.already_removed,
        "data": {"path": scan.data.path, "sha256": scan.data.sha256},
        "model_fingerprint": scan.model.fingerprint,
    });
    Ok((plan, Some(about)))
}

/// `out` may be replaced, but never the model that is read, nor a folder around it.
fn refuse_overwriting_the_source(request: &Request) -> Result<()> {
    let Ok(out) = request.out.canonicalize() else { return Ok(()) };
    let source = request.model.canonicalize().map_err(Error::io("resolve", &request.model))?;
    if source.starts_with(&out) {
        return Err(Error::request(format!("--out {} would replace the model that is read", request.out.display()))
            .with_help("choose another --out"));
    }
    Ok(())
}

/// prunectl.json: which layers, of what, chosen by which scan. A model pruned twice keeps what is known of the first time.
fn provenance(request: &Request, model: &ModelFolder, fingerprint: &str, plan: &LayerPlan, scan: Option<Value>) -> Result<Value> {
    let mut record = Map::new();
    let mut set = |key: &str, value: Value| record.insert(key.to_owned(), value);
    set("schema", json!(1));
    set("prunectl", json!(env!("CARGO_PKG_VERSION")));
    set("command", json!("prune"));
    set(
        "source",
        json!({
            "path": request.model,
            "architecture": model.config.architecture.class(),
            "num_hidden_layers": model.config.num_hidden_layers,
            "parameters": model.parameters(),
            "fingerprint": fingerprint,
        }),
    );
    set("removed", json!(plan.removed()));
    set("keep", json!(plan.kept()));
    if let Some(scan) = scan {
        set("scan", scan);
    }
    let mut record = Value::Object(record);
    insert_before(&request.model.join(PROVENANCE), &mut record)?;
    Ok(record)
}

/// Puts the content of an earlier prunectl.json, where there is one, into `record` as `before`: as it stands; what is not
/// JSON is refused rather than dropped.
pub(super) fn insert_before(earlier: &Path, record: &mut Value) -> Result<()> {
    if earlier.exists() {
        let value: Value = serde_json::from_str(&io::read_text(earlier)?)
            .map_err(|e| Error::data(earlier, "", format!("not valid JSON: {e}")))?;
        record["before"] = value;
    }
    Ok(())
}

/// `path` in the temporary folder, called `name` in messages.
pub(super) fn write_json(path: &Path, name: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::data(name, "", format!("cannot be written: {e}")))?;
    text.push('\n');
    std::fs::write(path, text).map_err(Error::io("write", name))
}

/// The result's config and tensors are those of the original, but for the layers that are gone.
fn check(model: &ModelFolder, plan: &LayerPlan, pruned: &ModelFolder, layout: &weights::Layout<'_>) -> Result<()> {
    let wrong = |what: &str| Error::data(&pruned.path, "", format!("check of the written model failed: {what}"));
    let mut expected = model.config.clone();
    expected.num_hidden_layers = plan.kept().len();
    if pruned.config != expected {
        return Err(wrong("config.json differs in more than its depth"));
    }
    let tensors = model.stored().count() - plan.removed().iter().map(|&l| model.layer_stored(l).count()).sum::<usize>();
    if pruned.stored().count() != tensors || layout.tensors() != tensors {
        return Err(wrong(&format!("{} tensors, expected {tensors}", pruned.stored().count())));
    }
    let bytes: u64 = plan.removed().iter().flat_map(|&l| model.layer_stored(l)).map(|t| t.range.len() as u64).sum();
    if pruned.bytes() + bytes != model.bytes() {
        return Err(wrong(&format!("{} bytes of tensors, expected {}", pruned.bytes(), model.bytes() - bytes)));
    }
    Ok(())
}
