//! The weight files of a shallower model: the same shards without the removed layers' tensors, the others renumbered.

use crate::error::{Error, Result};
use crate::model::safetensors::{SafetensorsFile, StoredTensor};
use crate::model::shard_index::INDEX;
use crate::model::tensor_set::{LAYERS_PREFIX, layer_of};
use crate::model::{LayerPlan, ModelFolder};
use crate::progress::Progress;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes copied or compared at a time; between two, Ctrl-C is heard.
const BUFFER: usize = 4 << 20;

/// What goes where.
pub(in crate::tasks) struct Layout<'a> {
    shards: Vec<Shard<'a>>,
    /// The index to write, if the original has one.
    index: Option<Value>,
}

/// One file to write.
struct Shard<'a> {
    source: &'a SafetensorsFile,
    name: String,
    /// Length prefix and header.
    head: Vec<u8>,
    /// In the order of their bytes.
    tensors: Vec<&'a StoredTensor>,
}

impl Layout<'_> {
    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.shards.iter().flat_map(|s| &s.tensors).map(|t| t.range.len() as u64).sum()
    }

    /// Number of tensors.
    pub(super) fn tensors(&self) -> usize {
        self.shards.iter().map(|s| s.tensors.len()).sum()
    }
}

/// Plans the files: shards that would be empty are dropped, and the rest renumbered where their names count them.
pub(in crate::tasks) fn layout<'a>(model: &'a ModelFolder, plan: &LayerPlan) -> Result<Layout<'a>> {
    let files = model.files();
    let mut place = vec![None; plan.num_hidden_layers()];
    for (new, &old) in plan.kept().iter().enumerate() {
        place[old] = Some(new);
    }
    // Outside the model's layers: kept under its name. A removed layer: gone.
    let renamed = |name: &str| match layer_of(name) {
        None => Some(name.to_owned()),
        Some(old) => {
            let new = place.get(old).copied().flatten()?;
            let rest = &name[LAYERS_PREFIX.len() + old.to_string().len()..];
            Some(format!("{LAYERS_PREFIX}{new}{rest}"))
        }
    };
    let mut kept = Vec::new();
    for source in &files.shards {
        let tensors: Vec<(&StoredTensor, String)> =
            source.header.tensors.iter().filter_map(|t| renamed(&t.name).map(|name| (t, name))).collect();
        if !tensors.is_empty() {
            kept.push((source, tensors));
        }
    }
    let original: Vec<String> = kept.iter().map(|(source, _)| file_name(&source.path)).collect();
    let names = if kept.len() == files.shards.len() { original.clone() } else { recounted(&original) };
    let shards = kept
        .into_iter()
        .zip(&names)
        .map(|((source, tensors), name)| {
            let head = head(source, &tensors)?;
            Ok(Shard { source, name: name.clone(), head, tensors: tensors.into_iter().map(|(t, _)| t).collect() })
        })
        .collect::<Result<Vec<_>>>()?;
    let new_file: BTreeMap<&str, &str> = original.iter().map(String::as_str).zip(names.iter().map(String::as_str)).collect();

    let index = files.index.as_ref().map(|index| {
        let weight_map: Map<String, Value> = index
            .weight_map
            .iter()
            .filter_map(|(name, file)| Some((renamed(name)?, json!(new_file.get(file.as_str())?))))
            .collect();
        let mut metadata = index.metadata.clone();
        let removed = || plan.removed().into_iter();
        let removed_bytes: u64 = removed().flat_map(|l| model.layer_stored(l)).map(|t| t.range.len() as u64).sum();
        let removed_parameters: u64 = removed().map(|l| model.layer_parameters(l)).sum();
        for (key, less) in [("total_size", removed_bytes), ("total_parameters", removed_parameters)] {
            if let Some(total) = metadata.get(key).and_then(Value::as_u64) {
                metadata.insert(key.to_owned(), json!(total.saturating_sub(less)));
            }
        }
        json!({"metadata": metadata, "weight_map": weight_map})
    });
    Ok(Layout { shards, index })
}

pub(in crate::tasks) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// `model-00001-of-00003.safetensors`, `…00003-of-00003…` -> `…00001-of-00002…`, `…00002-of-00002…`. Names that do not
/// count their files stay.
fn recounted(names: &[String]) -> Vec<String> {
    let stems: Option<Vec<&str>> = names.iter().map(|name| stem(name)).collect();
    match stems {
        Some(stems) if stems.windows(2).all(|pair| pair[0] == pair[1]) => {
            let count = stems.len();
            stems.iter().enumerate().map(|(i, stem)| format!("{stem}-{:05}-of-{count:05}.safetensors", i + 1)).collect()
        }
        _ => names.to_vec(),
    }
}

/// `model` of `model-00001-of-00003.safetensors`.
fn stem(name: &str) -> Option<&str> {
    let five = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    (five(count) && five(number)).then_some(stem)
}

/// Length prefix and header of a file with `tensors` one after another; padded so that their bytes begin at a multiple
/// of 8, as the original's do.
fn head(source: &SafetensorsFile, tensors: &[(&StoredTensor, String)]) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if let Some(metadata) = &source.header.metadata {
        let pairs = metadata.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        header.insert("__metadata__".to_owned(), Value::Object(pairs));
    }
    let mut end = 0;
    for (tensor, name) in tensors {
        let begin = end;
        end += tensor.range.len();
        let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [begin, end]});
        if header.insert(name.clone(), entry).is_some() {
            return Err(Error::data(&source.path, format!("tensor {name}"), "is named twice after renumbering"));
        }
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend(text.as_bytes());
    Ok(head)
}

/// Gives the bytes of a tensor that does not stay as it is, by its name in the original; `None` for one that does.
pub(in crate::tasks) type Changed<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<u8>>>;

/// Writes the files into `folder` and gives their names. `named` is what messages call a file.
pub(in crate::tasks) fn write(
    layout: &Layout<'_>,
    folder: &Path,
    named: &dyn Fn(&str) -> PathBuf,
    changed: Changed<'_>,
    progress: &dyn Progress,
) -> Result<Vec<String>> {
    let mut buffer = vec![0; BUFFER];
    let mut names = Vec::new();
    for shard in &layout.shards {
        let (from, to) = (&shard.source.path, named(&shard.name));
        let mut source = File::open(from).map_err(Error::io("open", from))?;
        let mut file = File::create(folder.join(&shard.name)).map_err(Error::io("create", &to))?;
        file.write_all(&shard.head).map_err(Error::io("write", &to))?;
        for tensor in &shard.tensors {
            if let Some(bytes) = changed(&tensor.name)? {
                if bytes.len() != tensor.range.len() {
                    return Err(Error::shape("write", "tensor", &[tensor.range.len()], &[bytes.len()]));
                }
                file.write_all(&bytes).map_err(Error::io("write", &to))?;
                progress.advance(bytes.len() as u64);
                continue;
            }
            source.seek(SeekFrom::Start(tensor.range.start as u64)).map_err(Error::io("read", from))?;
            let mut left = tensor.range.len();
            while left > 0 {
                progress.check("nothing was written")?;
                let part = &mut buffer[..left.min(BUFFER)];
                source.read_exact(part).map_err(Error::io("read", from))?;
                file.write_all(part).map_err(Error::io("write", &to))?;
                left -= part.len();
                progress.advance(part.len() as u64);
            }
        }
        names.push(shard.name.clone());
    }
    if let Some(index) = &layout.index {
        super::write_json(&folder.join(INDEX), &named(INDEX), index)?;
    }
    Ok(names)
}

/// Reads what was written and compares it with the original, byte for byte.
pub(super) fn compare(
    layout: &Layout<'_>,
    folder: &Path,
    named: &dyn Fn(&str) -> PathBuf,
    progress: &dyn Progress,
) -> Result<()> {
    let (mut ours, mut theirs) = (vec![0; BUFFER], vec![0; BUFFER]);
    for shard in &layout.shards {
        let (from, to) = (&shard.source.path, named(&shard.name));
        let mut source = File::open(from).map_err(Error::io("open", from))?;
        let mut file = File::open(folder.join(&shard.name)).map_err(Error::io("open", &to))?;
        file.seek(SeekFrom::Start(shard.head.len() as u64)).map_err(Error::io("read", &to))?;
        for tensor in &shard.tensors {
            source.seek(SeekFrom::Start(tensor.range.start as u64)).map_err(Error::io("read", from))?;
            let mut left = tensor.range.len();
            while left > 0 {
                progress.check("nothing was written")?;
                let n = left.min(BUFFER);
                source.read_exact(&mut theirs[..n]).map_err(Error::io("read", from))?;
                file.read_exact(&mut ours[..n]).map_err(Error::io("read", &to))?;
                if ours[..n] != theirs[..n] {
                    let problem = format!("what was written differs from {}", from.display());
                    return Err(Error::data(&to, format!("tensor {}", tensor.name), problem)
                        .with_help("the disk or the memory is faulty, or another program changed the file meanwhile"));
                }
                left -= n;
                progress.advance(n as u64);
            }
        }
    }
    Ok(())
}
