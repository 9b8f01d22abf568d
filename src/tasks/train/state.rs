//! The state of a training on disk: what `--resume` goes on from.
//!
//! `state/step-00000120.safetensors` holds every trained value and both moments in f32, and as metadata `state` (JSON: what
//! the training was asked for, where it stands) and `sha256`, the digest of all other bytes of the file. A file is written
//! beside its name and renamed, so a crash leaves the one before; the newest two are kept, so that one that rots on disk
//! does not lose the training.

use crate::error::{Error, Result};
use crate::io;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::io::{Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// States that are kept: the newest, and the one before it.
const KEPT: usize = 2;

/// The header begins with this, then the digest: its place is known without parsing.
const BEFORE_DIGEST: &str = r#"{"__metadata__":{"sha256":""#;
const DIGEST: usize = 64;
const DIGEST_AT: usize = 8 + BEFORE_DIGEST.len();

/// A tensor to save: its name and shape; its values come when they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Unique within the file.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// A state that was read back and found whole.
#[derive(Debug)]
pub struct Saved {
    /// Its file.
    pub path: PathBuf,
    /// What was saved beside the tensors.
    pub facts: Map<String, Value>,
    header: Map<String, Value>,
    map: memmap2::Mmap,
    start: usize,
}

/// Saves a state for `step` into `folder` (made where it is missing) and removes those before the last one. `values` gives
/// the elements of an entry, row-major.
///
/// # Errors
/// [`Error::Io`] (a full disk among them): what was there before is untouched; those of `values`.
pub fn save(
    folder: &Path,
    step: u64,
    facts: &Map<String, Value>,
    entries: &[Entry],
    mut values: impl FnMut(usize) -> Result<Vec<f32>>,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let path = folder.join(format!("step-{step:08}.safetensors"));
    let head = head(&path, facts, entries)?;
    let mut failed = None;
    let written = io::write_with(&path, |file| {
        let mut hash = Sha256::new();
        hash.update(&head[..DIGEST_AT]);
        hash.update(&head[DIGEST_AT + DIGEST..]);
        file.write_all(&head)?;
        for (index, entry) in entries.iter().enumerate() {
            let values = match values(index) {
                Ok(values) if values.len() == entry.rows * entry.cols => values,
                Ok(values) => {
                    failed = Some(Error::shape("save", "values", &[entry.rows * entry.cols], &[values.len()]));
                    return Err(std::io::Error::other("no values"));
                }
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::Error::other("no values"));
                }
            };
            for part in values.chunks(1 << 16) {
                let bytes: Vec<u8> = part.iter().flat_map(|x| x.to_le_bytes()).collect();
                hash.update(&bytes);
                file.write_all(&bytes)?;
            }
        }
        file.seek(SeekFrom::Start(DIGEST_AT as u64))?;
        file.write_all(hex(&hash.finalize()).as_bytes())
    });
    match failed {
        Some(error) => return Err(error),
        None => written?,
    }
    for (_, old) in list(folder)?.into_iter().skip(KEPT) {
        fs::remove_file(&old).map_err(Error::io("remove", &old))?;
    }
    Ok(())
}

/// The newest whole state in `folder`, with a line for each damaged one that was passed over; `None` where there is no state.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] when there are states and all of them are damaged.
pub fn newest(folder: &Path) -> Result<Option<(Saved, Vec<String>)>> {
    let mut passed_over = Vec::new();
    let mut last = None;
    for (_, path) in list(folder)? {
        match Saved::open(&path) {
            Ok(saved) => return Ok(Some((saved, passed_over))),
            Err(error) => {
                passed_over.push(format!("{error}; the state before it is used"));
                last = Some(error);
            }
        }
    }
    last.map_or(Ok(None), Err)
}

/// The states of a folder, newest first.
fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(source) => return Err(Error::Io { action: "read", path: folder.to_path_buf(), source }),
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("read", folder))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|n| n.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok());
        if let Some(step) = step {
            found.push((step, entry.path()));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Length prefix and header, with zeros for the digest.
fn head(path: &Path, facts: &Map<String, Value>, entries: &[Entry]) -> Result<Vec<u8>> {
    let mut header = Map::new();
    let facts = Value::Object(facts.clone()).to_string();
    header.insert("__metadata__".into(), json!({"sha256": "0".repeat(DIGEST), "state": facts, "format": "prunectl-train"}));
    let mut end = 0_usize;
    for entry in entries {
        let begin = end;
        end += 4 * entry.rows * entry.cols;
        let about = json!({"dtype": "F32", "shape": [entry.rows, entry.cols], "data_offsets": [begin, end]});
        if header.insert(entry.name.clone(), about).is_some() {
            return Err(Error::data(path, format!("tensor {}", entry.name), "is there twice"));
        }
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend(text.as_bytes());
    Ok(head)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

impl Saved {
    /// Reads a state and checks its digest before anything in it is believed.
    fn open(path: &Path) -> Result<Self> {
        let damaged = |problem: &str| Error::data(path, "", format!("damaged: {problem}"));
        let map = io::map(path)?;
        if map.len() < DIGEST_AT + DIGEST || &map[8..DIGEST_AT] != BEFORE_DIGEST.as_bytes() {
            return Err(damaged("not the beginning of a training state"));
        }
        let mut hash = Sha256::new();
        hash.update(&map[..DIGEST_AT]);
        hash.update(&map[DIGEST_AT + DIGEST..]);
        if hex(&hash.finalize()).as_bytes() != &map[DIGEST_AT..DIGEST_AT + DIGEST] {
            return Err(damaged("its checksum does not match"));
        }
        let mut length = [0; 8];
        length.copy_from_slice(&map[..8]);
        let start = usize::try_from(u64::from_le_bytes(length)).ok().and_then(|n| n.checked_add(8));
        let start = start.filter(|&s| s <= map.len()).ok_or_else(|| damaged("its header is cut short"))?;
        let header: Map<String, Value> = serde_json::from_slice(&map[8..start]).map_err(|e| damaged(&e.to_string()))?;
        let facts = header["__metadata__"]["state"].as_str().unwrap_or_default();
        let facts = serde_json::from_str(facts).map_err(|e| damaged(&format!("its facts are no JSON: {e}")))?;
        Ok(Self { path: path.to_path_buf(), facts, header, map, start })
    }

    /// Values of a tensor, row-major.
    ///
    /// # Errors
    /// [`Error::Data`] naming a tensor that is missing or has another shape.
    pub fn values(&self, entry: &Entry) -> Result<Vec<f32>> {
        let wrong = |problem: String| Error::data(&self.path, format!("tensor {}", entry.name), problem);
        let about = self.header.get(&entry.name).ok_or_else(|| wrong("missing".into()))?;
        let shape = json!([entry.rows, entry.cols]);
        if about["shape"] != shape {
            return Err(wrong(format!("found shape {}, expected {shape}", about["shape"])));
        }
        let offset = |i: usize| about["data_offsets"][i].as_u64().and_then(|n| usize::try_from(n).ok());
        let range = offset(0).zip(offset(1)).and_then(|(a, b)| Some(self.start.checked_add(a)?..self.start.checked_add(b)?));
        let bytes = range.and_then(|r| self.map.get(r)).filter(|b| b.len() == 4 * entry.rows * entry.cols);
        let bytes = bytes.ok_or_else(|| wrong("lies outside the file".into()))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        vec![Entry { name: "a".into(), rows: 2, cols: 3 }, Entry { name: "b".into(), rows: 1, cols: 1 }]
    }

    fn put(folder: &Path, step: u64) {
        let facts = json!({"step": step, "quote": "a \"b\""}).as_object().cloned().unwrap();
        let values = |i: usize| Ok(if i == 0 { vec![step as f32, -0.0, f32::NAN, 1e-40, 5.0, 6.0] } else { vec![7.0] });
        save(folder, step, &facts, &entries(), values).unwrap();
    }

    #[test]
    fn what_is_saved_comes_back_bit_by_bit_and_two_states_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        assert!(newest(folder.path()).unwrap().is_none());
        for step in [5, 10, 15] {
            put(folder.path(), step);
        }
        let names: Vec<u64> = list(folder.path()).unwrap().into_iter().map(|s| s.0).collect();
        assert_eq!(names, [15, 10]);
        let (saved, passed_over) = newest(folder.path()).unwrap().unwrap();
        assert!(passed_over.is_empty());
        assert_eq!(saved.facts["step"], 15);
        let bits: Vec<u32> = saved.values(&entries()[0]).unwrap().iter().map(|x| x.to_bits()).collect();
        assert_eq!(bits, [15.0, -0.0, f32::NAN, 1e-40, 5.0, 6.0].map(f32::to_bits));
        let other = Entry { name: "a".into(), rows: 3, cols: 2 };
        assert!(saved.values(&other).unwrap_err().to_string().contains("tensor a: found shape [2,3], expected [3,2]"));
    }

    #[test]
    fn other_programs_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), 3);
        let bytes = fs::read(folder.path().join("step-00000003.safetensors")).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("b").unwrap().data(), 7.0_f32.to_le_bytes());
    }

    #[test]
    fn any_flipped_bit_is_found_and_the_state_before_is_used() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), 1);
        put(folder.path(), 2);
        let path = folder.path().join("step-00000002.safetensors");
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(7).chain([good.len() - 1]) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&path, &bad).unwrap();
            let (saved, passed_over) = newest(folder.path()).unwrap().unwrap();
            assert_eq!(saved.facts["step"], 1, "byte {at}");
            assert!(passed_over[0].contains("step-00000002.safetensors: damaged"), "{passed_over:?}");
        }
        for length in [0, 1, 40, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..length]).unwrap();
            assert_eq!(newest(folder.path()).unwrap().unwrap().0.facts["step"], 1, "{length} bytes");
        }
        fs::write(folder.path().join("step-00000001.safetensors"), b"x").unwrap();
        assert!(newest(folder.path()).is_err());
    }

    #[test]
    fn a_failed_save_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), 1);
        let failed = save(folder.path(), 2, &Map::new(), &entries(), |_| Err(Error::request("no")));
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert_eq!(newest(folder.path()).unwrap().unwrap().0.facts["step"], 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
