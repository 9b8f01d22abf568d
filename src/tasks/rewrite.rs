//! Writes a model's folder anew with other tensors in the place of some: what `merge` and `quantize` share.
//!
//! Shard by shard, tensor by tensor, in the original's order. The result lies beside its place until the caller, having
//! looked at it, commits it.

use super::prune::{LeftBehind, PROVENANCE, carry, write_json};
use crate::error::{Error, Result};
use crate::io::NewFolder;
use crate::model::ModelFolder;
use crate::model::folder::CONFIG;
use crate::model::safetensors::{SafetensorsFile, StoredTensor};
use crate::model::shard_index::INDEX;
use crate::progress::Progress;
use crate::quant::checkpoint::Written;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What becomes of a tensor.
pub(super) enum Fate {
    /// Its bytes as they are.
    Kept,
    /// Nothing.
    Dropped,
    /// These.
    Replaced(Vec<Written>),
}

/// What to write.
pub(super) struct Rewrite<'a> {
    /// The original.
    pub(super) model: &'a ModelFolder,
    /// The folder to make.
    pub(super) out: &'a Path,
    /// Replace it if it is there.
    pub(super) force: bool,
    /// The new config.json.
    pub(super) config: &'a Map<String, Value>,
    /// The new prunectl.json.
    pub(super) provenance: &'a Value,
    /// Most tensors that one of the original's can become.
    pub(super) most: usize,
}

/// What was written, not yet in its place.
pub(super) struct Rewritten {
    pub(super) folder: NewFolder,
    pub(super) weight_files: Vec<String>,
    pub(super) carried: Vec<String>,
    pub(super) left_behind: Vec<LeftBehind>,
}

impl Rewrite<'_> {
    /// Writes all files. `fate` is asked once for each tensor; progress is counted in bytes of the original.
    pub(super) fn write(
        &self,
        progress: &dyn Progress,
        fate: &mut dyn FnMut(&StoredTensor) -> Result<Fate>,
    ) -> Result<Rewritten> {
        refuse_overwriting(&[&self.model.path], self.out)?;
        let folder = NewFolder::begin(self.out, self.force)?;
        let named = |name: &str| self.out.join(name);
        let files = self.model.files();
        let mut weight_files = Vec::new();
        let mut weight_map: Map<String, Value> = Map::new();
        let (mut total, mut seen) = (0_u64, Vec::new());
        for shard in &files.shards {
            let name = shard.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let mut writer = ShardWriter::create(&folder.path().join(&name), named(&name), shard, self.most)?;
            for stored in &shard.header.tensors {
                progress.check("nothing was written")?;
                match fate(stored)? {
                    Fate::Kept => writer.tensor(&stored.name, stored.dtype.name(), &stored.shape, shard.tensor_bytes(stored))?,
                    Fate::Dropped => {}
                    Fate::Replaced(tensors) => {
                        for t in tensors {
                            writer.tensor(&t.name, t.dtype, &t.shape, &t.bytes)?;
                        }
                    }
                }
                progress.advance(stored.range.len() as u64);
            }
            let (names, bytes) = writer.finish()?;
            weight_map.extend(names.into_iter().map(|tensor| (tensor, json!(name))));
            total += bytes;
            seen.push(name.clone());
            weight_files.push(name);
        }
        if let Some(index) = &files.index {
            let mut metadata = index.metadata.clone();
            metadata.insert("total_size".to_owned(), json!(total));
            let index = json!({"metadata": metadata, "weight_map": weight_map});
            write_json(&folder.path().join(INDEX), &named(INDEX), &index)?;
        }
        let (carried, left_behind) = carry::copy(&self.model.path, folder.path(), &seen, &named)?;
        write_json(&folder.path().join(CONFIG), &named(CONFIG), &Value::Object(self.config.clone()))?;
        write_json(&folder.path().join(PROVENANCE), &named(PROVENANCE), self.provenance)?;
        Ok(Rewritten { folder, weight_files, carried, left_behind })
    }
}

/// `out` may be replaced, but never a folder that is read, nor one around it.
pub(super) fn refuse_overwriting(sources: &[&PathBuf], out: &Path) -> Result<()> {
    let Ok(existing) = out.canonicalize() else { return Ok(()) };
    for source in sources {
        let path = source.canonicalize().map_err(Error::io("resolve", source))?;
        if path.starts_with(&existing) {
            let problem = format!("--out {} would replace {}, which is read", out.display(), source.display());
            return Err(Error::request(problem).with_help("choose another --out"));
        }
    }
    Ok(())
}

/// A file whose header is written last, into room that was left for it: what a tensor becomes is known when its turn comes.
struct ShardWriter {
    file: BufWriter<File>,
    /// What messages call it.
    named: PathBuf,
    header: Map<String, Value>,
    /// Bytes left for the header's JSON.
    room: usize,
    end: u64,
}

impl ShardWriter {
    fn create(path: &Path, named: PathBuf, source: &SafetensorsFile, most: usize) -> Result<Self> {
        // An entry is the name, at most thrice (escapes and what follows it), and numbers of at most 20 digits.
        let entries: usize =
            source.header.tensors.iter().map(|t| most * (3 * t.name.len() + 64 + 24 * (t.shape.len() + 4))).sum();
        let mut header = Map::new();
        let mut metadata: Map<String, Value> =
            source.header.metadata.iter().flatten().map(|(key, value)| (key.clone(), json!(value))).collect();
        // transformers refuses files that do not say what framework their layout follows.
        metadata.entry("format").or_insert(json!("pt"));
        header.insert("__metadata__".to_owned(), Value::Object(metadata));
        let room = (Value::Object(header.clone()).to_string().len() + entries).next_multiple_of(8);
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(Error::io("create", &named))?);
        let length = (room as u64).to_le_bytes();
        file.write_all(&length)
            .and_then(|()| file.seek(SeekFrom::Start(8 + room as u64)).map(drop))
            .map_err(Error::io("write", &named))?;
        Ok(Self { file, named, header, room, end: 0 })
    }

    fn tensor(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) -> Result<()> {
        let begin = self.end;
        self.end += bytes.len() as u64;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, self.end]});
        if self.header.insert(name.to_owned(), entry).is_some() {
            return Err(Error::data(&self.named, format!("tensor {name}"), "is there twice"));
        }
        self.file.write_all(bytes).map_err(Error::io("write", &self.named))
    }

    /// The names of the tensors, and their bytes.
    fn finish(mut self) -> Result<(Vec<String>, u64)> {
        let mut text = Value::Object(self.header.clone()).to_string();
        if text.len() > self.room {
            return Err(Error::data(
                &self.named,
                "header",
                format!("takes {} bytes, more than the {} left", text.len(), self.room),
            ));
        }
        text.extend(std::iter::repeat_n(' ', self.room - text.len()));
        let written = self
            .file
            .seek(SeekFrom::Start(8))
            .and_then(|_| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.flush());
        written.map_err(Error::io("write", &self.named))?;
        let names = self.header.keys().filter(|name| *name != "__metadata__").cloned().collect();
        Ok((names, self.end))
    }
}
