//! The other files of a model's folder: tokenizer, chat template, generation config and the like go with the pruned model.

use super::{LeftBehind, PROVENANCE};
use crate::error::{Error, Result};
use crate::model::folder::CONFIG;
use crate::model::shard_index::{INDEX, lies_in_folder_or_cache};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Endings of files that hold weights; those of the original would not fit the pruned model.
const WEIGHTS: [&str; 13] = [
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".gguf",
    ".pth",
    ".pt",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".ot",
];

/// Larger than any tokenizer: what is above is data of another kind.
const LARGEST: u64 = 256 << 20;

/// Copies the files but for `own`, the model's weight files, and gives the names of those copied and of those left behind, each sorted.
pub(in crate::tasks) fn copy(
    model: &Path,
    folder: &Path,
    own: &[String],
    named: &dyn Fn(&str) -> PathBuf,
) -> Result<(Vec<String>, Vec<LeftBehind>)> {
    let (mut carried, mut left_behind) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(model).map_err(Error::io("read", model))? {
        let entry = entry.map_err(Error::io("read", model))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            left_behind.push(LeftBehind { name: entry.file_name().to_string_lossy().into_owned(), reason: "name is not UTF-8" });
            continue;
        };
        // Written anew; or no part of the model (.gitattributes, .cache, .git).
        if [CONFIG, INDEX, PROVENANCE].contains(&name.as_str()) || own.contains(&name) || name.starts_with('.') {
            continue;
        }
        match reason_to_leave(model, &path, &name)? {
            Some(reason) => left_behind.push(LeftBehind { name, reason }),
            None => {
                let to = named(&name);
                let mut source = File::open(&path).map_err(Error::io("open", &path))?;
                let mut file = File::create(folder.join(&name)).map_err(Error::io("create", &to))?;
                io::copy(&mut source, &mut file).map_err(Error::io("write", &to))?;
                carried.push(name);
            }
        }
    }
    carried.sort();
    left_behind.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((carried, left_behind))
}

fn reason_to_leave(model: &Path, path: &Path, name: &str) -> Result<Option<&'static str>> {
    if WEIGHTS.iter().any(|ending| name.to_ascii_lowercase().ends_with(ending)) {
        return Ok(Some("other weights"));
    }
    let Ok(about) = fs::metadata(path) else { return Ok(Some("a link to nothing")) };
    if about.is_dir() {
        return Ok(Some("a folder"));
    }
    if !about.is_file() {
        return Ok(Some("not a regular file"));
    }
    if about.len() > LARGEST {
        return Ok(Some("larger than 256 MiB"));
    }
    if !lies_in_folder_or_cache(model, path)? {
        return Ok(Some("a link out of the folder"));
    }
    Ok(None)
}
