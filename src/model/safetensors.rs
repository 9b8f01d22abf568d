//! The safetensors format, read with every check its specification asks for, so that a lying header is an error and
//! never a wrong slice: <https://github.com/huggingface/safetensors#format>.
//!
//! A file is 8 bytes with the little-endian length of the header, the header (one JSON object, padded with spaces),
//! and the tensors' bytes, which the offsets of the header must cover without overlap or hole.

use super::unique_map::UniqueMap;
use crate::error::{Error, Result};
use crate::io;
use crate::tensor::{Dtype, SharedBytes};
use serde::Deserialize;
use serde_json::Value;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest header that is read: the limit of the format's reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Element types that the format knows. Models are computed in three of them ([`StoredDtype::supported`]); of the others
/// we know the size, so that a file that holds them can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are the format's own")]
#[expect(non_camel_case_types, reason = "the names are the format's own")]
pub enum StoredDtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

/// Every dtype with its name in the header and its size in bits.
const DTYPES: [(StoredDtype, &str, u64); 22] = [
    (StoredDtype::BOOL, "BOOL", 8),
    (StoredDtype::F4, "F4", 4),
    (StoredDtype::F6_E2M3, "F6_E2M3", 6),
    (StoredDtype::F6_E3M2, "F6_E3M2", 6),
    (StoredDtype::U8, "U8", 8),
    (StoredDtype::I8, "I8", 8),
    (StoredDtype::F8_E5M2, "F8_E5M2", 8),
    (StoredDtype::F8_E4M3, "F8_E4M3", 8),
    (StoredDtype::F8_E8M0, "F8_E8M0", 8),
    (StoredDtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8),
    (StoredDtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8),
    (StoredDtype::I16, "I16", 16),
    (StoredDtype::U16, "U16", 16),
    (StoredDtype::F16, "F16", 16),
    (StoredDtype::BF16, "BF16", 16),
    (StoredDtype::I32, "I32", 32),
    (StoredDtype::U32, "U32", 32),
    (StoredDtype::F32, "F32", 32),
    (StoredDtype::C64, "C64", 64),
    (StoredDtype::F64, "F64", 64),
    (StoredDtype::I64, "I64", 64),
    (StoredDtype::U64, "U64", 64),
];

impl StoredDtype {
    fn parse(name: &str) -> Option<(Self, u64)> {
        DTYPES.iter().find(|(_, known, _)| *known == name).map(|(dtype, _, bits)| (*dtype, *bits))
    }

    /// As the header spells it: `BF16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        DTYPES.iter().find(|(dtype, ..)| *dtype == self).map_or("", |(_, name, _)| name)
    }

    /// The dtype we compute with, if it is one.
    #[must_use]
    pub const fn supported(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name, as the header has it.
    pub name: String,
    /// Element type.
    pub dtype: StoredDtype,
    /// Extents, outermost first. Their product fits `usize`.
    pub shape: Vec<usize>,
    /// Its bytes, from the start of the file. Lies within the file and fits dtype and shape.
    pub range: Range<usize>,
}

impl StoredTensor {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a tensor without elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The checked header of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// `__metadata__`, in the file's order; `None` where absent.
    pub metadata: Option<Vec<(String, String)>>,
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<StoredTensor>,
    /// The header's own bytes, the 8 of its length not counted.
    pub range: Range<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A tensor's name as a message shows it: what could garble a terminal is escaped, what is endless is cut.
pub(super) fn shown(name: &str) -> String {
    let text: String = name.chars().take(120).flat_map(char::escape_debug).collect();
    if name.chars().nth(120).is_some() { format!("{text}...") } else { text }
}

/// Reads and checks the header of `file`, the bytes of the whole file at `path` (used for messages only).
///
/// # Errors
/// [`Error::Data`] naming the file, and the tensor where it is one.
pub fn parse(path: &Path, file: &[u8]) -> Result<Header> {
    let bad = |problem: String| Error::data(path, "header", problem);
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(Error::data(path, "", format!("{} bytes are too few for a safetensors file: it is truncated", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(bad(format!("its length is given as {length} bytes, more than the format's limit of {MAX_HEADER}"))
            .with_help("the file is damaged, or not a safetensors file"));
    }
    let json = usize::try_from(length).ok().and_then(|n| rest.get(..n)).ok_or_else(|| {
        bad(format!("its length is given as {length} bytes, but only {} follow", rest.len()))
            .with_help("the file is truncated or damaged: download or copy it again")
    })?;
    if json.first() != Some(&b'{') {
        return Err(bad("does not begin with '{'".into()).with_help("the file is damaged, or not a safetensors file"));
    }
    let text = std::str::from_utf8(json).map_err(|e| bad(format!("byte {} is not valid UTF-8", e.valid_up_to())))?;
    let UniqueMap::<Value>(entries) = serde_json::from_str(text).map_err(|e| bad(format!("not valid JSON: {e}")))?;
    let start = 8 + json.len();

    let mut metadata = None;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        if name == "__metadata__" {
            let UniqueMap::<String>(pairs) =
                serde_json::from_value(value).map_err(|e| bad(format!("__metadata__ must map texts to texts: {e}")))?;
            metadata = Some(pairs);
        } else {
            tensors.push(tensor(path, name, value, start, file.len())?);
        }
    }
    // By their place in the file; of two that begin at one place the empty one comes first.
    tensors.sort_by_key(|t| (t.range.start, t.range.end));
    let mut end = start;
    for t in &tensors {
        let at = || format!("tensor {}", shown(&t.name));
        if t.range.start < end {
            return Err(Error::data(path, at(), format!("its bytes begin at {}, within another tensor", t.range.start - start)));
        }
        if t.range.start > end {
            let hole = t.range.start - end;
            return Err(Error::data(
                path,
                at(),
                format!("{hole} bytes before it belong to no tensor: offsets must leave no holes"),
            ));
        }
        end = t.range.end;
    }
    if end != file.len() {
        let problem = format!("{} bytes after the last tensor belong to no tensor", file.len() - end);
        return Err(Error::data(path, "", problem).with_help("the file is damaged: download or copy it again"));
    }
    Ok(Header { metadata, tensors, range: 8..start })
}

/// One entry of the header; `start` is where the tensors' bytes begin, `end` the length of the file.
fn tensor(path: &Path, name: String, value: Value, start: usize, end: usize) -> Result<StoredTensor> {
    let bad = |problem: String| Error::data(path, format!("tensor {}", shown(&name)), problem);
    let raw: RawTensor = serde_json::from_value(value).map_err(|e| bad(format!("header entry: {e}")))?;
    let Some((dtype, bits)) = StoredDtype::parse(&raw.dtype) else {
        return Err(bad(format!("unknown dtype \"{}\"", shown(&raw.dtype))));
    };
    let [from, to] = raw.data_offsets;
    if to < from {
        return Err(bad(format!("data_offsets are [{from}, {to}]: the end lies before the begin")));
    }
    let available = end - start;
    let (Ok(first), Ok(last)) = (usize::try_from(from), usize::try_from(to)) else {
        return Err(bad(format!("data_offsets are [{from}, {to}], but the file holds {available} bytes of tensors")));
    };
    if last > available {
        return Err(bad(format!("data_offsets are [{from}, {to}], but the file holds {available} bytes of tensors"))
            .with_help("the file is truncated or damaged: download or copy it again"));
    }
    let huge = || bad(format!("shape {:?} has more elements than fit 64 bits", raw.shape));
    let shape = raw.shape.iter().map(|&n| usize::try_from(n).map_err(|_| huge())).collect::<Result<Vec<_>>>()?;
    // Extents beside a zero count too: their product must not overflow where strides are taken.
    let elements = raw.shape.iter().try_fold(1_u64, |product, &n| product.checked_mul(n.max(1))).ok_or_else(huge)?;
    let elements = if raw.shape.contains(&0) { 0 } else { elements };
    let expected = elements.checked_mul(bits).ok_or_else(huge)?;
    if expected % 8 != 0 || expected / 8 != to - from {
        return Err(bad(format!(
            "{} of shape {:?} takes {} bytes, but data_offsets [{from}, {to}] give it {}",
            dtype.name(),
            raw.shape,
            expected.div_ceil(8),
            to - from
        )));
    }
    Ok(StoredTensor { name, dtype, shape, range: start + first..start + last })
}

/// A mapped file with its checked header.
#[derive(Debug, Clone)]
pub struct SafetensorsFile {
    /// The file, as it was asked for.
    pub path: PathBuf,
    /// Its header.
    pub header: Header,
    map: Arc<memmap2::Mmap>,
}

impl SafetensorsFile {
    /// Maps a file and checks its header. Reads no tensor.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] as [`parse`].
    pub fn open(path: &Path) -> Result<Self> {
        let map = io::map(path)?;
        let header = parse(path, &map)?;
        Ok(Self { path: path.to_path_buf(), header, map: Arc::new(map) })
    }

    /// The whole file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The bytes of one of its tensors, mapped.
    #[must_use]
    pub fn tensor_bytes(&self, tensor: &StoredTensor) -> &[u8] {
        &self.map[tensor.range.clone()]
    }

    /// The same, kept alive beyond this value.
    ///
    /// # Errors
    /// [`Error::Data`] for a tensor of another, longer file.
    pub fn shared(&self, tensor: &StoredTensor) -> Result<SharedBytes> {
        SharedBytes::of_file(Arc::clone(&self.map), tensor.range.clone())
            .ok_or_else(|| Error::data(&self.path, format!("tensor {}", shown(&tensor.name)), "lies outside the file"))
    }
}
