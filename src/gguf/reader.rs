//! The GGUF container: header, key-value section, tensor table. Nothing of the file is trusted.
//!
//! Each count is held against the bytes that are left before anything is allocated for it, so a lying header costs no
//! more memory than a small multiple of the file, and every offset is checked before it is used.

use super::metadata::{Value, scalar_size};
use super::tensor_type::TensorType;
use crate::error::{Error, Result};
use crate::tensor::SharedBytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// ggml tensors have at most this many dimensions.
const MAX_DIMENSIONS: u32 = 4;
/// Where tensor data starts, and each tensor in it, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: usize = 32;
/// Longest key or tensor name: the format's own limit on keys.
const MAX_NAME: usize = 65535;

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub kind: TensorType,
    /// Extents, outermost first (the file has them innermost first).
    pub shape: Vec<usize>,
    /// Where its blocks lie in the file.
    pub range: Range<usize>,
}

/// A parsed file. Tensors stay in the map.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: SharedBytes,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Maps and parses a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] or [`Error::Unsupported`] naming the key or tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let map = crate::io::map(path)?;
        let length = map.len();
        let bytes = SharedBytes::of_file(Arc::new(map), 0..length).ok_or_else(|| Error::data(path, "", "cannot be mapped"))?;
        Self::parse(path, bytes)
    }

    /// Parses the content of a file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::Unsupported`] naming the key or tensor.
    pub fn parse(path: &Path, bytes: SharedBytes) -> Result<Self> {
        let mut cursor = Cursor { path, bytes: bytes.as_slice(), at: 0 };
        if cursor.take(4, "the header")? != b"GGUF" {
            return Err(Error::data(path, "", "not a GGUF file: it does not start with the letters GGUF"));
        }
        match cursor.u32("the header")? {
            2 | 3 => {}
            version if version.swap_bytes() <= 3 && version != 0 => {
                return Err(Error::unsupported(path, "", "a big-endian GGUF file; only little-endian ones are supported"));
            }
            version => {
                return Err(Error::unsupported(path, "", format!("GGUF version {version}; versions 2 and 3 are supported")));
            }
        }
        // A tensor record has at least a name's length, one dimension, a type and an offset; a pair a length, type and byte.
        let tensor_count = cursor.count(8 + 4 + 8 + 4 + 8, "the number of tensors")?;
        let pair_count = cursor.count(8 + 4 + 1, "the number of keys")?;
        let mut metadata = BTreeMap::new();
        for index in 0..pair_count {
            let key = cursor.name(&format!("key number {index}"))?;
            let value = cursor.value(&key)?;
            if metadata.contains_key(&key) {
                return Err(Error::data(path, format!("key {key}"), "appears twice"));
            }
            metadata.insert(key, value);
        }
        let mut records = Vec::with_capacity(tensor_count);
        for index in 0..tensor_count {
            records.push(cursor.tensor(&format!("tensor number {index}"))?);
        }
        let alignment = alignment(path, &metadata)?;
        let end = bytes.as_slice().len();
        let start = cursor.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
        let mut tensors = BTreeMap::new();
        for (name, record) in records {
            let info = record.locate(path, &name, start, end, alignment)?;
            if tensors.contains_key(&name) {
                return Err(Error::data(path, format!("tensor {name}"), "appears twice"));
            }
            tensors.insert(name, info);
        }
        refuse_overlap(path, &tensors)?;
        Ok(Self { path: path.to_path_buf(), bytes, metadata, tensors })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// All tensors, by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Bytes of the file; `range` comes from this file's own table, and was checked there.
    pub(super) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes.as_slice()[range.clone()]
    }

    /// The blocks of a tensor of this file.
    #[must_use]
    pub fn blocks(&self, tensor: &TensorInfo) -> &[u8] {
        self.bytes(&tensor.range)
    }
}

fn alignment(path: &Path, metadata: &BTreeMap<String, Value>) -> Result<usize> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => Ok(usize::try_from(*n).unwrap_or(DEFAULT_ALIGNMENT)),
        Some(_) => Err(Error::data(path, "key general.alignment", "must be a power of two, at most 1 MiB")),
    }
}

/// Two tensors that share bytes are a lie about one of them.
fn refuse_overlap(path: &Path, tensors: &BTreeMap<String, TensorInfo>) -> Result<()> {
    let mut by_start: Vec<_> = tensors.iter().collect();
    by_start.sort_by_key(|(_, info)| info.range.start);
    for pair in by_start.windows(2) {
        if let [(first, a), (second, b)] = pair
            && b.range.start < a.range.end
        {
            return Err(Error::data(path, format!("tensor {second}"), format!("overlaps tensor {first}")));
        }
    }
    Ok(())
}

/// A record of the tensor table, before it is known where data starts.
struct Record {
    kind: TensorType,
    shape: Vec<usize>,
    offset: u64,
}

impl Record {
    fn locate(self, path: &Path, name: &str, start: usize, end: usize, alignment: usize) -> Result<TensorInfo> {
        let bad = |problem: String| Error::data(path, format!("tensor {name}"), problem);
        let Self { kind, shape, offset } = self;
        let elements = shape
            .iter()
            .try_fold(1_usize, |product, n| product.checked_mul(*n))
            .ok_or_else(|| bad(format!("shape {shape:?} is larger than memory can be")))?;
        let row = shape.last().copied().unwrap_or(0);
        if elements == 0 {
            return Err(bad(format!("shape {shape:?} has no elements")));
        }
        if !row.is_multiple_of(kind.block_elements()) {
            return Err(bad(format!("rows of {row} elements are not whole blocks of {} ({kind})", kind.block_elements())));
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if !offset.is_multiple_of(alignment) {
            return Err(bad(format!("offset {offset} is not a multiple of the alignment {alignment}")));
        }
        let range = (elements / kind.block_elements())
            .checked_mul(kind.block_bytes())
            .and_then(|length| {
                let from = start.checked_add(offset)?;
                Some(from..from.checked_add(length)?)
            })
            .filter(|range| range.end <= end)
            .ok_or_else(|| {
                bad(format!("{kind} {shape:?} at offset {offset} reaches beyond the end of the file ({end} bytes)"))
            })?;
        Ok(TensorInfo { kind, shape, range })
    }
}

/// Walks the file; each step is checked against its length.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8]> {
        let taken = self.at.checked_add(length).and_then(|end| self.bytes.get(self.at..end)).ok_or_else(|| {
            Error::data(
                self.path,
                what,
                format!("needs {length} bytes where {} are left: the file is truncated or lies", self.left()),
            )
        })?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let count = self.u64(what)?;
        usize::try_from(count)
            .ok()
            .filter(|n| n.checked_mul(least).is_some_and(|bytes| bytes <= self.left()))
            .ok_or_else(|| Error::data(self.path, what, format!("{count} do not fit in the {} bytes that are left", self.left())))
    }

    fn range(&mut self, length: usize, what: &str) -> Result<Range<usize>> {
        let from = self.at;
        self.take(length, what)?;
        Ok(from..self.at)
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.count(1, what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Error::data(self.path, what, "not valid UTF-8"))
    }

    /// A key or a tensor's name. Control characters would garble every message it is in.
    fn name(&mut self, what: &str) -> Result<String> {
        let name = self.text(what)?;
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(Error::data(self.path, what, "its name is empty, too long or has control characters"));
        }
        Ok(name)
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let what = &format!("key {key}");
        Ok(match self.u32(what)? {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array(what)?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array(what)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array(what)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array(what)?))),
            4 => Value::Unsigned(u64::from(self.u32(what)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array(what)?))),
            6 => Value::Float32(f32::from_le_bytes(self.array(what)?)),
            7 => Value::Flag(match self.array::<1>(what)? {
                [0] => false,
                [1] => true,
                [other] => return Err(Error::data(self.path, what, format!("a boolean is 0 or 1, found {other}"))),
            }),
            8 => Value::Text(self.text(what)?),
            9 => self.array_value(what)?,
            10 => Value::Unsigned(self.u64(what)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(what)?)),
            12 => Value::Float64(f64::from_le_bytes(self.array(what)?)),
            other => return Err(Error::data(self.path, what, format!("unknown value type {other}"))),
        })
    }

    fn array_value(&mut self, what: &str) -> Result<Value> {
        let kind = self.u32(what)?;
        if kind == 8 {
            let count = self.count(8, what)?;
            let mut ranges = Vec::with_capacity(count);
            for _ in 0..count {
                let length = self.count(1, what)?;
                ranges.push(self.range(length, what)?);
            }
            return Ok(Value::Texts(ranges));
        }
        let size = scalar_size(kind)
            .ok_or_else(|| Error::data(self.path, what, format!("an array of value type {kind} is not supported")))?;
        let count = self.count(size, what)?;
        Ok(Value::Scalars { kind, range: self.range(count * size, what)? })
    }

    fn tensor(&mut self, what: &str) -> Result<(String, Record)> {
        let name = self.name(what)?;
        let what = &format!("tensor {name}");
        let dimensions = self.u32(what)?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err(Error::data(self.path, what, format!("{dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let extent = self.u64(what)?;
            shape.push(usize::try_from(extent).map_err(|_| Error::data(self.path, what, format!("an extent of {extent}")))?);
        }
        shape.reverse();
        let kind = TensorType::from_number(self.u32(what)?).map_err(|name| {
            let supported = TensorType::ALL.map(|kind| kind.to_string()).join(", ");
            Error::unsupported(self.path, what.as_str(), format!("type {name} is not supported; these are: {supported}"))
        })?;
        let offset = self.u64(what)?;
        Ok((name, Record { kind, shape, offset }))
    }
}
