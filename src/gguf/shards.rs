//! Weights, streamed: block by block from the map to safetensors files. What is held in memory is one slab of rows.

use super::decoder::PlannedTensor;
use super::dequantise::dequantise;
use super::reader::Gguf;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::tensor::Dtype;
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value as Json, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Largest shard, unless one tensor alone is larger: what transformers writes by default.
pub const SHARD_BYTES: usize = 5_000_000_000;
/// Elements converted at a time.
const SLAB_ELEMENTS: usize = 4 << 20;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Elements.
    pub parameters: usize,
    /// Bytes of tensor data, headers not counted.
    pub bytes: usize,
    /// Files.
    pub shards: usize,
}

/// Writes `tensors` as `dtype` into `folder`: model.safetensors, or shards of at most `shard_bytes` and their index.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] naming a tensor that holds a value which is not a number, or that `dtype` cannot hold;
/// [`Error::Interrupted`].
pub fn write(
    gguf: &Gguf,
    tensors: &[PlannedTensor],
    dtype: Dtype,
    folder: &Path,
    shard_bytes: usize,
    progress: &dyn Progress,
) -> Result<Written> {
    let groups = group(tensors, dtype, shard_bytes);
    let file_name = |number: usize| match groups.len() {
        1 => "model.safetensors".to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    let bytes = tensors.iter().map(|tensor| length(tensor, dtype)).sum();
    for (number, group) in groups.iter().enumerate() {
        write_shard(gguf, group, dtype, &folder.join(file_name(number)), progress)?;
    }
    if groups.len() > 1 {
        let weight_map: Map<String, Json> = groups
            .iter()
            .enumerate()
            .flat_map(|(number, group)| group.iter().map(move |tensor| (tensor.name.clone(), number)))
            .map(|(name, number)| (name, Json::from(file_name(number))))
            .collect();
        let index = json!({"metadata": {"total_size": bytes}, "weight_map": weight_map});
        let index = serde_json::to_vec_pretty(&index).map_err(|e| Error::data(gguf.path(), "", e.to_string()))?;
        crate::io::write(&folder.join("model.safetensors.index.json"), &index)?;
    }
    Ok(Written { parameters: bytes / dtype.size(), bytes, shards: groups.len() })
}

fn elements(tensor: &PlannedTensor) -> usize {
    tensor.info.shape.iter().product()
}

/// Bytes in the new file. Cannot overflow: a GGUF block of n elements is at least n / 2 bytes of a real file.
fn length(tensor: &PlannedTensor, dtype: Dtype) -> usize {
    elements(tensor) * dtype.size()
}

/// Runs of tensors that fit a shard each; a tensor that alone is larger has one to itself.
fn group(tensors: &[PlannedTensor], dtype: Dtype, shard_bytes: usize) -> Vec<&[PlannedTensor]> {
    let mut groups = Vec::new();
    let (mut first, mut filled) = (0, 0_usize);
    for (i, tensor) in tensors.iter().enumerate() {
        let length = length(tensor, dtype);
        if i > first && filled.saturating_add(length) > shard_bytes {
            groups.push(&tensors[first..i]);
            (first, filled) = (i, 0);
        }
        filled += length;
    }
    groups.push(&tensors[first..]);
    groups
}

/// The header: its length as u64, then JSON padded with spaces to a multiple of 8, so that data is aligned.
fn header(tensors: &[PlannedTensor], dtype: Dtype) -> Result<Vec<u8>, serde_json::Error> {
    let mut entries = Map::new();
    // transformers refuses files that do not say what framework their layout follows.
    entries.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + length(tensor, dtype);
        let name = match dtype {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        };
        entries.insert(tensor.name.clone(), json!({"dtype": name, "shape": tensor.info.shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut json = serde_json::to_vec(&entries)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut out = u64::try_from(json.len()).unwrap_or(u64::MAX).to_le_bytes().to_vec();
    out.append(&mut json);
    Ok(out)
}

fn write_shard(gguf: &Gguf, tensors: &[PlannedTensor], dtype: Dtype, path: &Path, progress: &dyn Progress) -> Result<()> {
    let file = File::create(path).map_err(Error::io("create", path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let header = header(tensors, dtype).map_err(|e| Error::data(gguf.path(), "", e.to_string()))?;
    out.write_all(&header).map_err(Error::io("write", path))?;
    let mut slab = Vec::new();
    for tensor in tensors {
        let rows = Rows::new(gguf, tensor);
        let rows_a_slab = (SLAB_ELEMENTS / rows.width).max(1);
        for first in (0..rows.count).step_by(rows_a_slab) {
            progress.check("nothing was written")?;
            let count = rows_a_slab.min(rows.count - first);
            slab.resize(count * rows.width * dtype.size(), 0);
            rows.convert(gguf, first, dtype, &mut slab)?;
            out.write_all(&slab).map_err(Error::io("write", path))?;
            progress.advance(u64::try_from(slab.len()).unwrap_or(0));
        }
    }
    out.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?.sync_all().map_err(Error::io("write", path))
}

/// A tensor as rows that are dequantised apart.
struct Rows<'a> {
    tensor: &'a PlannedTensor,
    blocks: &'a [u8],
    count: usize,
    width: usize,
    row_bytes: usize,
}

impl<'a> Rows<'a> {
    fn new(gguf: &'a Gguf, tensor: &'a PlannedTensor) -> Self {
        let info = &tensor.info;
        let width = match info.shape.as_slice() {
            // A bias is permuted as a matrix of one column; any other vector is one row.
            [_] if tensor.interleaved_heads.is_some() => 1,
            shape => shape.last().copied().unwrap_or(1),
        };
        let row_bytes = width / info.kind.block_elements() * info.kind.block_bytes();
        Self { tensor, blocks: gguf.blocks(info), count: elements(tensor) / width, width, row_bytes }
    }

    /// The row of the GGUF tensor that becomes row `row`. Within a head of d rows, llama.cpp's row 2 j + half is row
    /// half * d / 2 + j of the original.
    fn source_row(&self, row: usize) -> usize {
        let Some(heads) = self.tensor.interleaved_heads else { return row };
        let head_dim = self.count / heads;
        let (head, within) = (row / head_dim, row % head_dim);
        let (part, j) = (within / (head_dim / 2), within % (head_dim / 2));
        head * head_dim + 2 * j + part
    }

    /// Rows from `first` on, as many as `out` has room for.
    fn convert(&self, gguf: &Gguf, first: usize, dtype: Dtype, out: &mut [u8]) -> Result<()> {
        let kind = self.tensor.info.kind;
        out.par_chunks_mut(self.width * dtype.size())
            .enumerate()
            .try_for_each_init(
                || vec![0.0_f32; self.width],
                |values, (i, out)| {
                    let start = self.source_row(first + i) * self.row_bytes;
                    dequantise(kind, &self.blocks[start..start + self.row_bytes], values);
                    let bad = match dtype {
                        Dtype::F32 => store::<4>(values, out, |x| (x.to_le_bytes(), x.is_finite())),
                        Dtype::F16 => store::<2>(values, out, |x| finite_f16(f16::from_f32(x))),
                        Dtype::Bf16 => store::<2>(values, out, |x| finite_bf16(bf16::from_f32(x))),
                    };
                    bad.map_or(Ok(()), |column| Err((first + i, column, values[column])))
                },
            )
            .map_err(|(row, column, value)| {
                let problem = if value.is_finite() {
                    format!("row {row}, column {column}: {value} is too large for {dtype}")
                } else {
                    format!("row {row}, column {column} is {value}")
                };
                let error = Error::data(gguf.path(), format!("tensor {}", self.tensor.source), problem);
                if value.is_finite() { error.with_help("write another type with --dtype") } else { error }
            })
    }
}

fn finite_f16(x: f16) -> ([u8; 2], bool) {
    (x.to_le_bytes(), x.is_finite())
}

fn finite_bf16(x: bf16) -> ([u8; 2], bool) {
    (x.to_le_bytes(), x.is_finite())
}

/// Stores all values, rounded to the nearest, ties to even; the place of the first that does not come out finite.
fn store<const BYTES: usize>(values: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> ([u8; BYTES], bool)) -> Option<usize> {
    let mut bad = None;
    for (i, (x, b)) in values.iter().zip(out.as_chunks_mut::<BYTES>().0).enumerate() {
        let (stored, finite) = bytes(*x);
        *b = stored;
        if !finite && bad.is_none() {
            bad = Some(i);
        }
    }
    bad
}
