//! A teacher's most likely tokens for a data set, in one mapped file, so that the teacher need not be in memory while its
//! student learns. `prunectl teach` writes it, `--teacher FILE` reads it.
//!
//! A safetensors file: `ids` [targets, k] u32 and `log_probs` [targets, k] f32 (ln p over the whole vocabulary, most likely
//! first), `starts` [examples + 1] u64 (an example's first target) and `examples` [examples, 32] u8 (the digest of its tokens
//! and targets, so that examples are found in any order). Metadata says which teacher and vocabulary.

use super::data::identity;
use crate::data::{Example, Tokenizer};
use crate::error::{Error, Result};
use crate::io;
use crate::model::safetensors::{SafetensorsFile, StoredDtype, StoredTensor};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Fingerprint of the teacher.
    pub teacher: String,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// [`vocabulary`] of its tokenizer; empty where it has none.
    pub vocabulary: String,
    /// Tokens kept a target.
    pub k: usize,
}

/// Digest of all tokens of a tokenizer in the order of their ids: two models whose logits mean the same have the same.
/// Empty without a tokenizer.
#[must_use]
pub fn vocabulary(tokenizer: Option<&Tokenizer>) -> String {
    let Some(tokenizer) = tokenizer else { return String::new() };
    let mut hash = Sha256::new();
    for id in 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX) {
        let text = tokenizer.token_text(id).unwrap_or_default();
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Refuses a teacher that speaks another vocabulary than its student: their logits do not belong to the same tokens.
///
/// # Errors
/// [`Error::Request`].
pub fn same_vocabulary(teacher: &Path, theirs: (usize, &str), ours: (usize, &str)) -> Result<()> {
    let help = "distillation needs a teacher with the student's own vocabulary; let another teacher write texts with `prunectl translate` and pass them with --add-data";
    let refused = |problem: String| Err(Error::request(format!("--teacher {}: {problem}", teacher.display())).with_help(help));
    if theirs.0 != ours.0 {
        return refused(format!("its vocabulary has {} tokens, the model's {}", theirs.0, ours.0));
    }
    if !theirs.1.is_empty() && !ours.1.is_empty() && theirs.1 != ours.1 {
        return refused("its tokenizer gives the tokens other ids than the model's".into());
    }
    Ok(())
}

/// Where the parts of a file begin.
struct Layout {
    head: Vec<u8>,
    ids: u64,
    log_probs: u64,
}

fn layout(about: &About, examples: usize, targets: usize) -> Layout {
    let (examples, targets, k) = (examples as u64, targets as u64, about.k as u64);
    let mut header = Map::new();
    header.insert(
        "__metadata__".into(),
        json!({"format": "prunectl-teacher", "teacher": about.teacher, "vocab_size": about.vocab_size.to_string(),
               "vocabulary": about.vocabulary}),
    );
    let mut end = 0;
    let mut put = |name: &str, dtype: &str, shape: &[u64], bytes: u64| {
        header.insert(name.into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes]}));
        end += bytes;
        end - bytes
    };
    put("starts", "U64", &[examples + 1], 8 * (examples + 1));
    let ids = put("ids", "U32", &[targets, k], 4 * targets * k);
    let log_probs = put("log_probs", "F32", &[targets, k], 4 * targets * k);
    put("examples", "U8", &[examples, 32], 32 * examples);
    let mut text = serde_json::Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend(text.as_bytes());
    let start = head.len() as u64;
    Layout { head, ids: start + ids, log_probs: start + log_probs }
}

/// Most likely tokens of some rows: [rows, k] each, row-major.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopK {
    /// Token ids, most likely first.
    pub ids: Vec<u32>,
    /// Their ln p.
    pub log_probs: Vec<f32>,
}

/// Picks the `k` largest of a row of logits, ties by the lower id, with ln p over the whole row, appended to `out`.
pub fn pick(logits: &[f32], k: usize, out: &mut TopK) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - highest).exp()).sum();
    let log_sum = f64::from(highest) + sum.ln();
    let mut order: Vec<u32> = (0..u32::try_from(logits.len()).unwrap_or(u32::MAX)).collect();
    let better = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    if k < order.len() {
        order.select_nth_unstable_by(k, better);
        order.truncate(k);
    }
    order.sort_unstable_by(better);
    #[expect(clippy::cast_possible_truncation, reason = "what is written is f32")]
    out.log_probs.extend(order.iter().map(|&id| (f64::from(logits[id as usize]) - log_sum) as f32));
    out.ids.extend(order);
}

/// Writes a file for `examples`; `next` gives the tokens of the next few targets, in order, until all have been given.
///
/// # Errors
/// [`Error::Io`]; those of `next`. On failure nothing is left behind.
pub fn write(path: &Path, about: &About, examples: &[Example], mut next: impl FnMut() -> Result<TopK>) -> Result<()> {
    let targets: usize = examples.iter().map(|e| e.targets.len()).sum();
    let layout = layout(about, examples.len(), targets);
    let mut failed = None;
    let written = io::write_with(path, |file| {
        file.write_all(&layout.head)?;
        let mut start = 0_u64;
        file.write_all(&start.to_le_bytes())?;
        for example in examples {
            start += example.targets.len() as u64;
            file.write_all(&start.to_le_bytes())?;
        }
        let mut done = 0;
        while done < targets * about.k {
            let part = match next() {
                Ok(part) if !part.ids.is_empty() => part,
                Ok(_) => return Err(std::io::Error::other("fewer targets than announced")),
                Err(error) => {
                    failed = Some(error);
                    return Err(std::io::Error::other("no values"));
                }
            };
            put(file, layout.ids + 4 * done as u64, part.ids.iter().flat_map(|id| id.to_le_bytes()))?;
            put(file, layout.log_probs + 4 * done as u64, part.log_probs.iter().flat_map(|p| p.to_le_bytes()))?;
            done += part.ids.len();
        }
        put(file, layout.log_probs + 4 * (targets * about.k) as u64, examples.iter().flat_map(identity))
    });
    failed.map_or(written, Err)
}

fn put(file: &mut BufWriter<&File>, at: u64, bytes: impl Iterator<Item = u8>) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&bytes.collect::<Vec<u8>>())
}

/// An opened file.
#[derive(Debug)]
pub struct TopKFile {
    /// What it says of itself.
    pub about: About,
    file: SafetensorsFile,
    ids: StoredTensor,
    log_probs: StoredTensor,
    /// Targets of each example, by its digest.
    found: HashMap<[u8; 32], (usize, usize)>,
}

impl TopKFile {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] for a file that is not one, or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path)?;
        let bad = |problem: &str| {
            Error::data(path, "", problem.to_owned()).with_help("a teacher's file is written by `prunectl teach`")
        };
        let metadata: HashMap<&str, &str> =
            file.header.metadata.iter().flatten().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        if metadata.get("format") != Some(&"prunectl-teacher") {
            return Err(bad("not a teacher's file"));
        }
        let tensor = |name: &str, dtype: StoredDtype| {
            let found = file.header.tensors.iter().find(|t| t.name == name && t.dtype == dtype);
            found.cloned().ok_or_else(|| bad(&format!("tensor {name} is missing")))
        };
        let (ids, log_probs) = (tensor("ids", StoredDtype::U32)?, tensor("log_probs", StoredDtype::F32)?);
        let (starts, examples) = (tensor("starts", StoredDtype::U64)?, tensor("examples", StoredDtype::U8)?);
        let &[targets, k] = ids.shape.as_slice() else { return Err(bad("ids is not [targets, k]")) };
        let vocab_size: usize = metadata.get("vocab_size").and_then(|v| v.parse().ok()).unwrap_or(0);
        let count = examples.shape.first().copied().unwrap_or(0);
        if log_probs.shape != ids.shape
            || examples.shape != [count, 32]
            || starts.shape != [count + 1]
            || k == 0
            || k > vocab_size
        {
            return Err(bad("the shapes of its tensors do not fit each other"));
        }
        let starts: Vec<usize> = file
            .tensor_bytes(&starts)
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| usize::try_from(u64::from_le_bytes(*b)).unwrap_or(usize::MAX))
            .collect();
        if starts.first() != Some(&0) || starts.last() != Some(&targets) || starts.windows(2).any(|w| w[0] > w[1]) {
            return Err(bad("starts are not ascending"));
        }
        let digests = file.tensor_bytes(&examples).as_chunks::<32>().0;
        let found = digests.iter().zip(starts.windows(2)).map(|(&digest, w)| (digest, (w[0], w[1]))).collect();
        let text = |name: &str| metadata.get(name).copied().unwrap_or_default().to_owned();
        let about = About { teacher: text("teacher"), vocab_size, vocabulary: text("vocabulary"), k };
        Ok(Self { about, file, ids, log_probs, found })
    }

    /// Appends the tokens of an example's targets.
    ///
    /// # Errors
    /// [`Error::Data`] when the file does not know the example, or holds an id outside the vocabulary.
    pub fn extend(&self, example: &Example, out: &mut TopK) -> Result<()> {
        let at = |problem: &str| Error::data(&self.file.path, "", problem.to_owned());
        let range = self.found.get(&identity(example)).filter(|(a, b)| b - a == example.targets.len());
        let &(first, last) = range.ok_or_else(|| {
            at(&format!("knows nothing of example {}: it was made for other data", example.record + 1))
                .with_help("make it anew by `prunectl teach` with the same --data, --prompt and --seq-len")
        })?;
        let k = self.about.k;
        let part = |tensor: &StoredTensor| &self.file.tensor_bytes(tensor)[4 * first * k..4 * last * k];
        let ids = part(&self.ids).as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
        let before = out.ids.len();
        out.ids.extend(ids);
        if out.ids[before..].iter().any(|&id| id as usize >= self.about.vocab_size) {
            return Err(at("holds a token outside the vocabulary"));
        }
        out.log_probs.extend(part(&self.log_probs).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        if out.log_probs.iter().any(|p| p.is_nan()) {
            return Err(at("holds a probability that is no number"));
        }
        Ok(())
    }

    /// Refuses data that the file was not made for, before anything is trained.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first example that is missing.
    pub fn check(&self, examples: &[Example]) -> Result<()> {
        examples.iter().try_for_each(|example| self.extend(example, &mut TopK::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Target;

    fn example(ids: &[u32]) -> Example {
        let targets = ids.iter().zip(0..).skip(1).map(|(&token, row)| Target { row, token }).collect();
        Example { record: 0, ids: ids.to_vec(), targets }
    }

    #[test]
    fn the_most_likely_come_first_and_ties_go_to_the_lower_id() {
        let mut out = TopK::default();
        pick(&[0.0, 2.0, 1.0, 2.0, -1.0], 3, &mut out);
        assert_eq!(out.ids, [1, 3, 2]);
        let sum: f64 = [0.0_f64, 2.0, 1.0, 2.0, -1.0].iter().map(|x| x.exp()).sum();
        for (found, logit) in out.log_probs.iter().zip([2.0, 2.0, 1.0]) {
            assert!((f64::from(*found) - (logit - sum.ln())).abs() < 1e-6);
        }
    }

    #[test]
    fn examples_are_found_in_any_order_and_others_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher");
        let about = About { teacher: "t".into(), vocab_size: 9, vocabulary: "v".into(), k: 2 };
        let examples = [example(&[1, 2, 3]), example(&[4, 5]), example(&[6, 7, 8])];
        let parts = [vec![0, 1, 2, 3, 4, 5], vec![6, 7, 8, 0]];
        let mut given = parts.iter();
        write(&path, &about, &examples, || {
            let ids = given.next().unwrap().clone();
            Ok(TopK { log_probs: ids.iter().map(|&id| -(id as f32)).collect(), ids })
        })
        .unwrap();
        let file = TopKFile::open(&path).unwrap();
        assert_eq!(file.about, about);
        let mut out = TopK::default();
        file.extend(&examples[2], &mut out).unwrap();
        file.extend(&examples[1], &mut out).unwrap();
        assert_eq!(out.ids, [6, 7, 8, 0, 4, 5]);
        assert_eq!(out.log_probs, [-6.0, -7.0, -8.0, -0.0, -4.0, -5.0]);
        assert!(file.check(&examples).is_ok());
        let error = file.check(&[example(&[1, 2, 4])]).unwrap_err().to_string();
        assert!(error.contains("it was made for other data"), "{error}");
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("teacher");
        std::fs::write(&path, b"{}").unwrap();
        assert!(TopKFile::open(&path).is_err());
        let about = About { teacher: "t".into(), vocab_size: 1, vocabulary: String::new(), k: 2 };
        let part = || Ok(TopK { ids: vec![0, 0], log_probs: vec![0.0, 0.0] });
        write(&path, &about, &[example(&[1, 2])], part).unwrap();
        assert!(TopKFile::open(&path).unwrap_err().to_string().contains("do not fit"));
        let about = About { vocab_size: 3, ..about };
        write(&path, &about, &[example(&[1, 2])], || Ok(TopK { ids: vec![0, 7], log_probs: vec![0.0, 0.0] })).unwrap();
        assert!(
            TopKFile::open(&path).unwrap().check(&[example(&[1, 2])]).unwrap_err().to_string().contains("outside the vocabulary")
        );
    }

    #[test]
    fn another_vocabulary_is_refused() {
        let path = Path::new("teacher");
        assert!(same_vocabulary(path, (9, "a"), (9, "a")).is_ok());
        assert!(same_vocabulary(path, (9, ""), (9, "a")).is_ok());
        assert!(same_vocabulary(path, (9, "b"), (9, "a")).unwrap_err().to_string().contains("other ids"));
        assert!(same_vocabulary(path, (8, "a"), (9, "a")).unwrap_err().to_string().contains("has 8 tokens, the model's 9"));
    }
}
