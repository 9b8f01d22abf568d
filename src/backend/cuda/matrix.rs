//! Weights on the GPU: row-major as in the file, rows padded with zeros to a multiple of 8 elements where they are bf16, so that
//! the matrix product reads 16 bytes at a time; or in four bits (nf4.rs).

use super::driver::{Argument, Buffer, Gpu};
use super::nf4::Nf4Matrix;
use super::{CudaBackend, Storage, Tensor, elements};
use crate::error::{Error, Result};
use crate::ops::{Shaped, expect};
use crate::tensor::{Dtype, HostTensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Deref;

/// A weight matrix [out_features, in_features].
#[derive(Debug)]
pub enum Matrix {
    /// In the dtype matrices are multiplied in.
    Dense(Dense),
    /// In four bits.
    Nf4(Nf4Matrix),
}

/// A matrix in the dtype matrices are multiplied in: the one that is there, or one that was restored from four bits and is gone
/// afterwards. Its memory comes from the driver's pool, which keeps it for the next.
#[derive(Debug)]
pub(super) enum Lent<'a> {
    /// Is there anyway.
    Kept(&'a Dense),
    /// Restored for this use.
    Once(Dense),
}

impl Deref for Lent<'_> {
    type Target = Dense;

    fn deref(&self) -> &Dense {
        match self {
            Self::Kept(dense) => dense,
            Self::Once(dense) => dense,
        }
    }
}

impl Matrix {
    /// The matrix as every op can read it.
    pub(super) fn dense(&self, backend: &CudaBackend) -> Result<Lent<'_>> {
        match self {
            Self::Dense(dense) => Ok(Lent::Kept(dense)),
            Self::Nf4(nf4) => backend.dequantise(nf4).map(Lent::Once),
        }
    }
}

impl Shaped for Matrix {
    fn rows(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.rows,
            Self::Nf4(nf4) => nf4.rows,
        }
    }

    fn cols(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.cols,
            Self::Nf4(nf4) => nf4.cols,
        }
    }
}

/// A matrix in the dtype matrices are multiplied in.
#[derive(Debug)]
pub struct Dense {
    rows: usize,
    cols: usize,
    pub(super) storage: Storage,
    /// Elements from one row to the next.
    pub(super) stride: usize,
    data: Buffer,
}

impl Shaped for Dense {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }
}

/// Elements from row to row of a matrix, and of activations that meet it.
pub(super) const fn stride(storage: Storage, cols: usize) -> usize {
    match storage {
        Storage::F32 => cols,
        Storage::Bf16 => cols.next_multiple_of(8),
    }
}

impl Dense {
    /// [rows, cols] of unspecified content, in memory that the compute stream writes.
    pub(super) fn new(gpu: &Gpu, storage: Storage, rows: usize, cols: usize) -> Result<Self> {
        let stride = stride(storage, cols);
        let data = gpu.allocate(elements(rows, stride)?.saturating_mul(storage.size()))?;
        Ok(Self { rows, cols, storage, stride, data })
    }

    pub(super) fn write(&mut self) -> Argument<'_> {
        Argument::write(&mut self.data, self.storage.element())
    }

    pub(super) fn read(&self) -> Argument<'_> {
        Argument::read(&self.data, self.storage.element())
    }

    pub(super) fn data(&self) -> &Buffer {
        &self.data
    }

    /// Stacks tensors along out_features: a copy, of whatever values they have.
    pub(super) fn from_tensors(backend: &CudaBackend, parts: &[&Tensor]) -> Result<Self> {
        let cols = parts.first().map_or(0, |part| part.cols);
        let mut rows = 0;
        for part in parts {
            expect("prepare_tensors", "parts", *part, part.rows, cols)?;
            rows += part.rows;
        }
        let mut dense = Self::new(&backend.gpu, backend.compute, rows, cols)?;
        let (storage, stride) = (dense.storage, dense.stride);
        let mut first = 0;
        for part in parts {
            if part.storage == storage && stride == cols {
                let row = cols * storage.size();
                backend.gpu.copy(&mut dense.data, first * row, &part.data, 0, part.rows * row)?;
            } else {
                backend.convert_rows(dense.write().from_element(first * stride), storage, stride, part)?;
            }
            first += part.rows;
        }
        Ok(dense)
    }

    /// Stacks `parts` along out_features, converted to `storage` on the way. Looks at every weight: one that is not finite is
    /// named.
    pub(super) fn upload(gpu: &Gpu, storage: Storage, parts: &[HostTensor]) -> Result<Self> {
        let cols = match parts.first().map(|part| part.shape.as_slice()) {
            Some(&[_, cols]) => cols,
            other => return Err(Error::shape("prepare", "parts", &[0, 0], other.unwrap_or_default())),
        };
        let mut rows = 0;
        for part in parts {
            match *part.shape.as_slice() {
                [n, k] if k == cols && part.bytes.as_slice().len() == n * k * part.dtype.size() => rows += n,
                _ => return Err(Error::shape("prepare", "parts", &[0, cols], &part.shape)),
            }
        }
        let stride = stride(storage, cols);
        let unit = stride * storage.size();
        let len = elements(rows, stride)?.saturating_mul(storage.size());
        let data = gpu.upload_weights(len, unit, |range, bytes| {
            let first = range.start / unit;
            bytes.par_chunks_mut(unit).enumerate().try_for_each(|(row, out)| write_row(parts, first + row, cols, storage, out))
        })?;
        Ok(Self { rows, cols, storage, stride, data })
    }
}

/// Row `row` of the stacked parts as the GPU wants it.
fn write_row(parts: &[HostTensor], row: usize, cols: usize, storage: Storage, out: &mut [u8]) -> Result<()> {
    let mut first = 0;
    for part in parts {
        let rows = part.shape[0];
        if row < first + rows {
            return write_part_row(part, row - first, cols, storage, out);
        }
        first += rows;
    }
    Ok(())
}

fn write_part_row(part: &HostTensor, row: usize, cols: usize, storage: Storage, out: &mut [u8]) -> Result<()> {
    let size = part.dtype.size();
    let from = &part.bytes.as_slice()[row * cols * size..][..cols * size];
    let (to, padding) = out.split_at_mut(cols * storage.size());
    padding.fill(0);
    let (halves, words) = (from.as_chunks::<2>().0, from.as_chunks::<4>().0);
    let finite = match (part.dtype, storage) {
        (Dtype::Bf16, Storage::Bf16) => {
            to.copy_from_slice(from);
            all(halves, |b| u16::from_le_bytes(b) & 0x7F80 != 0x7F80)
        }
        (Dtype::F32, Storage::F32) => {
            to.copy_from_slice(from);
            all(words, |b| u32::from_le_bytes(b) & 0x7F80_0000 != 0x7F80_0000)
        }
        (Dtype::Bf16, Storage::F32) => write(halves, to, |b| bf16::from_le_bytes(b).to_f32(), f32::to_le_bytes),
        (Dtype::F16, Storage::F32) => write(halves, to, |b| f16::from_le_bytes(b).to_f32(), f32::to_le_bytes),
        (Dtype::F16, Storage::Bf16) => write(halves, to, |b| f16::from_le_bytes(b).to_f32(), to_bf16),
        (Dtype::F32, Storage::Bf16) => write(words, to, f32::from_le_bytes, to_bf16),
    };
    if finite { Ok(()) } else { Err(not_finite(part, row, cols)) }
}

fn to_bf16(value: f32) -> [u8; 2] {
    bf16::from_f32(value).to_le_bytes()
}

/// Converts element by element; false where one of them is not finite in the file.
fn write<const FROM: usize, const TO: usize>(
    from: &[[u8; FROM]],
    to: &mut [u8],
    read: impl Fn([u8; FROM]) -> f32,
    write: impl Fn(f32) -> [u8; TO],
) -> bool {
    let mut finite = true;
    for (from, to) in from.iter().zip(to.as_chunks_mut::<TO>().0) {
        let value = read(*from);
        finite &= value.is_finite();
        *to = write(value);
    }
    finite
}

/// Whether `good` holds for all, without a way out in the middle, so that it vectorises.
fn all<const SIZE: usize>(elements: &[[u8; SIZE]], good: impl Fn([u8; SIZE]) -> bool) -> bool {
    elements.iter().fold(true, |all, e| all & good(*e))
}

fn not_finite(part: &HostTensor, row: usize, cols: usize) -> Error {
    let mut values = Vec::new();
    part.extend_f32(row * cols..(row + 1) * cols, &mut values);
    let (col, value) = values.iter().copied().enumerate().find(|(_, v)| !v.is_finite()).unwrap_or((0, f32::NAN));
    Error::data(
        &part.file,
        format!("tensor {}", part.name),
        format!("element {} (row {row}, column {col}) is {value}", row * cols + col),
    )
}
