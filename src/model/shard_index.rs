//! Which safetensors files make up a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
//!
//! The index is data that someone else wrote, so a shard it names must be a file *in the folder*: its name holds no
//! separator and no `..`, and if it is a link, the link ends in the folder too. One link out of the folder is followed,
//! that of Hugging Face's cache, where `models--X/snapshots/REVISION/FILE` links to `models--X/blobs/HASH`: the folder
//! lies in one called `snapshots`, and the link ends directly in the `blobs` beside that.

use super::safetensors::{SafetensorsFile, shown};
use super::unique_map::UniqueMap;
use crate::error::{Error, Result};
use crate::io;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

/// Name of the file of an unsharded model.
pub const SINGLE: &str = "model.safetensors";
/// Name of the index of a sharded model.
pub const INDEX: &str = "model.safetensors.index.json";

/// A parsed index. File names are checked to be plain names; nothing is opened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// `metadata`, as it stands.
    pub metadata: Map<String, Value>,
    /// Tensor name -> file name, in the order of the index.
    pub weight_map: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
    weight_map: UniqueMap<String>,
}

impl ShardIndex {
    /// Parses the content of the index at `path` (used for messages only).
    ///
    /// # Errors
    /// [`Error::Data`] naming the file, and the tensor where it is one.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let text =
            std::str::from_utf8(bytes).map_err(|e| Error::data(path, format!("byte {}", e.valid_up_to()), "not valid UTF-8"))?;
        let raw: RawIndex = serde_json::from_str(text).map_err(|e| Error::data(path, "", format!("not a valid index: {e}")))?;
        let UniqueMap(weight_map) = raw.weight_map;
        if weight_map.is_empty() {
            return Err(Error::data(path, "key weight_map", "names no tensors"));
        }
        for (tensor, file) in &weight_map {
            let mut parts = Path::new(file).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(name)), None) if name == file.as_str())
                && !file.contains(['/', '\\', '\0']);
            let at = || format!("tensor {}", shown(tensor));
            if !plain {
                return Err(Error::data(path, at(), format!("points to \"{}\", outside the folder", shown(file)))
                    .with_help("an index may only name files in its own folder"));
            }
            if !file.ends_with(".safetensors") {
                return Err(Error::data(path, at(), format!("points to \"{}\", expected a .safetensors file", shown(file))));
            }
        }
        Ok(Self { metadata: raw.metadata.unwrap_or_default(), weight_map })
    }

    /// The files, sorted, each once.
    #[must_use]
    pub fn files(&self) -> BTreeSet<&str> {
        self.weight_map.iter().map(|(_, file)| file.as_str()).collect()
    }
}

/// The opened weight files of a folder, checked against the index and each other.
#[derive(Debug, Clone)]
pub struct WeightFiles {
    /// The index, if the folder has one.
    pub index: Option<ShardIndex>,
    /// The files by name, sorted. No tensor is in two of them.
    pub shards: Vec<SafetensorsFile>,
}

impl WeightFiles {
    /// Finds, maps and checks the weight files of `folder`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] naming file and tensor.
    pub fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE);
        let index_path = folder.join(INDEX);
        if !index_path.exists() {
            if !single.exists() {
                return Err(Error::data(folder, "", format!("neither {SINGLE} nor {INDEX} is there"))
                    .with_help("prunectl reads weights as safetensors; `prunectl import` makes such a folder of a GGUF file"));
            }
            return Ok(Self { index: None, shards: vec![SafetensorsFile::open(&single)?] });
        }
        let index = ShardIndex::parse(&index_path, &io::read(&index_path)?)?;
        let files = index.files();
        if single.exists() && !files.contains(SINGLE) {
            return Err(Error::data(folder, "", format!("holds both {SINGLE} and {INDEX}, which names other files"))
                .with_help("remove the one that does not belong to the model"));
        }
        let mut shards = Vec::with_capacity(files.len());
        for file in &files {
            let path = folder.join(file);
            if !path.exists() {
                return Err(Error::data(&index_path, "", format!("names the shard \"{}\", which is missing", shown(file)))
                    .with_help("download or copy the missing file"));
            }
            refuse_link_outside(folder, &path)?;
            shards.push(SafetensorsFile::open(&path)?);
        }
        check_against(&index_path, &index, &shards)?;
        Ok(Self { index: Some(index), shards })
    }
}

/// True for a file that is in `folder` itself, links resolved, or where Hugging Face's cache puts the files of `folder`:
/// the rule at the top of this file.
///
/// # Errors
/// [`Error::Io`] if one of the two does not exist.
pub fn lies_in_folder_or_cache(folder: &Path, file: &Path) -> Result<bool> {
    let resolve = |path: &Path| path.canonicalize().map_err(Error::io("resolve", path));
    let (folder, target) = (resolve(folder)?, resolve(file)?);
    let snapshots = folder.parent().filter(|p| p.file_name().is_some_and(|name| name == "snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    let lies_in = target.parent();
    Ok(lies_in == Some(&folder) || (blobs.is_some() && lies_in == blobs.as_deref()))
}

fn refuse_link_outside(folder: &Path, shard: &Path) -> Result<()> {
    if lies_in_folder_or_cache(folder, shard)? {
        return Ok(());
    }
    Err(Error::data(shard, "", "is a link out of the folder")
        .with_help("replace the link by the file itself; links out of the folder are followed in Hugging Face's cache only"))
}

/// Index and shards must name the same tensors, each in the same file.
fn check_against(index_path: &Path, index: &ShardIndex, shards: &[SafetensorsFile]) -> Result<()> {
    let mut found: BTreeMap<&str, &SafetensorsFile> = BTreeMap::new();
    for shard in shards {
        for tensor in &shard.header.tensors {
            if let Some(other) = found.insert(&tensor.name, shard) {
                let problem = format!("is in {} too", other.path.display());
                return Err(Error::data(&shard.path, format!("tensor {}", shown(&tensor.name)), problem));
            }
        }
    }
    for (name, file) in &index.weight_map {
        let at = format!("tensor {}", shown(name));
        match found.remove(name.as_str()) {
            None => return Err(Error::data(index_path, at, format!("should be in \"{}\", which lacks it", shown(file)))),
            Some(shard) if shard.path.file_name().is_some_and(|n| n == file.as_str()) => {}
            Some(shard) => {
                let problem = format!("should be in \"{}\", but is in {}", shown(file), shard.path.display());
                return Err(Error::data(index_path, at, problem));
            }
        }
    }
    if let Some((name, shard)) = found.first_key_value() {
        let problem = format!("is not named in {INDEX}");
        return Err(Error::data(&shard.path, format!("tensor {}", shown(name)), problem));
    }
    Ok(())
}
