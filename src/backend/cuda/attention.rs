//! Launches of kernels/attention.cu and kernels/attention_mma.cu.

use super::driver::{Argument, Element, Geometry};
use super::kernels::Kernel;
use super::{CudaBackend, KvPages, Storage, Tensor, kernel_for, kernels, size};
use crate::error::{Error, Result};
use crate::ops::{Attention, AttentionArgs, AttentionPagedArgs, Heads};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Mirrors AttentionSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
pub(super) struct AttentionSizes {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    scale: f32,
    count: u32,
    splits: u32,
}

const _: () =
    assert!(size_of::<AttentionSizes>() == 24 && offset_of!(AttentionSizes, splits) == 20, "layout shared with the kernels");

/// Keys whose softmax is one chain, SPLIT of the kernels.
const SPLIT: usize = 1024;

/// Widest head there is a kernel for.
pub(super) const MOST_HEAD_DIM: usize = 256;

/// kernels/attention.cu: threads a block, queries a block, keys in shared memory.
const SIMT_BLOCK: u32 = 256;
const SIMT_QUERIES: usize = 8;
const SIMT_KEYS: usize = 32;

/// kernels/attention_mma.cu: threads a block; queries a block of packed sequences and of paged rows; keys in shared memory.
const MMA_BLOCK: u32 = 128;
const MMA_QUERIES: usize = 64;
const MMA_PAGED_QUERIES: usize = 16;
const MMA_KEYS: usize = 64;

/// How heads of one size are computed.
#[derive(Debug, Clone, Copy)]
enum Path {
    /// f32 arithmetic, any head_dim.
    Simt,
    /// Tensor cores: the kernels' head_dim (ours rounded up), packed and paged.
    Mma(usize, Kernel, Kernel),
}

pub(super) fn too_wide(op: &str, head_dim: usize) -> Error {
    Error::Device {
        problem: format!("{op}: heads of {head_dim} elements; the CUDA kernels go up to {MOST_HEAD_DIM}"),
        help: Some("use --device cpu".into()),
    }
}

fn path(storage: Storage, head_dim: usize) -> Result<Path> {
    let mma = |width, packed, paged| Ok(Path::Mma(width, packed, paged));
    match (storage, head_dim) {
        (_, MOST_HEAD_DIM..) if head_dim > MOST_HEAD_DIM => Err(too_wide("attention", head_dim)),
        (Storage::F32, _) => Ok(Path::Simt),
        // Rows of heads that 16-byte copies cannot reach.
        (Storage::Bf16, _) if !head_dim.is_multiple_of(8) => Ok(Path::Simt),
        (Storage::Bf16, ..=32) => mma(32, kernels::ATTENTION_MMA_32, kernels::ATTENTION_PAGED_MMA_32),
        (Storage::Bf16, ..=64) => mma(64, kernels::ATTENTION_MMA_64, kernels::ATTENTION_PAGED_MMA_64),
        (Storage::Bf16, ..=80) => mma(80, kernels::ATTENTION_MMA_80, kernels::ATTENTION_PAGED_MMA_80),
        (Storage::Bf16, ..=96) => mma(96, kernels::ATTENTION_MMA_96, kernels::ATTENTION_PAGED_MMA_96),
        (Storage::Bf16, ..=128) => mma(128, kernels::ATTENTION_MMA_128, kernels::ATTENTION_PAGED_MMA_128),
        (Storage::Bf16, _) => mma(256, kernels::ATTENTION_MMA_256, kernels::ATTENTION_PAGED_MMA_256),
    }
}

/// Bytes of shared memory: keys with a column more, values and queries in f32.
fn simt_shared(head_dim: usize) -> Result<u32> {
    size("attention", "head_dim", (SIMT_KEYS * (2 * head_dim + 1) + SIMT_QUERIES * head_dim) * 4)
}

/// Bytes of shared memory: queries, keys and values, rows 16 bytes longer than they are wide.
fn mma_shared(width: usize, queries: usize) -> Result<u32> {
    size("attention", "head_dim", (queries + 2 * MMA_KEYS) * (width + 8) * 2)
}

pub(super) fn sizes(heads: Heads, scale: f32, count: usize, splits: usize) -> Result<AttentionSizes> {
    Ok(AttentionSizes {
        heads: size("attention", "heads", heads.heads)?,
        kv_heads: size("attention", "heads", heads.kv_heads)?,
        head_dim: size("attention", "heads", heads.head_dim)?,
        scale,
        count: size("attention", "rows", count)?,
        splits: size("attention", "rows", splits)?,
    })
}

/// Queries (or keys) of each sequence cut into tiles: the sequence's first row, first query, number of queries, the sequence's length.
pub(super) fn tiles(starts: &[u32], queries: usize) -> Result<Vec<u32>> {
    let queries = size("attention", "queries", queries)?;
    let mut tiles = Vec::new();
    for range in starts.windows(2) {
        let length = range[1] - range[0];
        let mut first = 0;
        while first < length {
            tiles.extend([range[0], first, queries.min(length - first), length]);
            first += queries;
        }
    }
    Ok(tiles)
}

impl Attention for CudaBackend {
    fn attention(&self, args: AttentionArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let AttentionArgs { y, qkv, heads, starts, scale } = args;
        let kernels = [Some(kernels::ATTENTION_F32), None, None, Some(kernels::ATTENTION_BF16)];
        let simt = kernel_for("attention", y.storage, qkv.storage, kernels)?;
        let path = path(qkv.storage, heads.head_dim)?;
        let tiles = tiles(starts, if matches!(path, Path::Simt) { SIMT_QUERIES } else { MMA_QUERIES })?;
        let count = tiles.len() / 4;
        let longest = starts.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
        let splits = longest.div_ceil(SPLIT);
        let tiles = self.indices.get(&self.gpu, &tiles)?;
        let sizes = sizes(heads, scale, count, splits)?;
        let grid = size("attention", "rows", count * heads.heads)?;
        match path {
            Path::Simt => {
                let geometry = Geometry { shared: simt_shared(heads.head_dim)?, ..Geometry::row(grid, SIMT_BLOCK) };
                self.gpu.launch(simt, geometry, &[y.write(), qkv.read(), tiles.read()], sizes)
            }
            Path::Mma(width, kernel, _) => {
                let geometry = Geometry { shared: mma_shared(width, MMA_QUERIES)?, ..Geometry::row(grid, MMA_BLOCK) };
                let parked = if splits > 1 { qkv.rows * heads.heads * (heads.head_dim + 2) } else { 0 };
                let mut parked = self.gpu.allocate(parked * size_of::<f32>())?;
                let arguments = [y.write(), Argument::write(&mut parked, Element::F32), qkv.read(), tiles.read()];
                self.gpu.launch(kernel, geometry, &arguments, sizes)
            }
        }
    }
}

impl CudaBackend {
    pub(super) fn attend_paged(&self, args: AttentionPagedArgs<'_, Tensor, KvPages>) -> Result<()> {
        let AttentionPagedArgs { y, qkv, heads, pages, rows, scale } = args;
        pages.check("attention_paged", heads, qkv.storage)?;
        let kernels = [Some(kernels::ATTENTION_PAGED_F32), None, None, Some(kernels::ATTENTION_PAGED_BF16)];
        let simt = kernel_for("attention_paged", y.storage, qkv.storage, kernels)?;
        let path = path(qkv.storage, heads.head_dim)?;
        let mut tables = Vec::new();
        let mut views = Vec::with_capacity(2 * rows.len());
        for row in rows {
            views.extend([size("attention_paged", "rows", tables.len())?, row.len]);
            tables.extend_from_slice(row.pages);
        }
        let tables = self.indices.get(&self.gpu, &tables)?;
        let views = self.indices.get(&self.gpu, &views)?;
        let longest = rows.iter().map(|row| row.len as usize).max().unwrap_or(0);
        let splits = longest.div_ceil(SPLIT);
        let sizes = sizes(heads, scale, rows.len(), splits)?;
        let grid = size("attention_paged", "rows", rows.len() * heads.kv_heads)?;
        let parts = |queries: usize| size("attention_paged", "heads", (heads.heads / heads.kv_heads.max(1)).div_ceil(queries));
        match path {
            Path::Simt => {
                let shared = simt_shared(heads.head_dim)?;
                let geometry = Geometry { grid: [grid, parts(SIMT_QUERIES)?, 1], block: SIMT_BLOCK, shared };
                let arguments = [y.write(), qkv.read(), pages.read(), tables.read(), views.read()];
                self.gpu.launch(simt, geometry, &arguments, sizes)
            }
            Path::Mma(width, _, kernel) => {
                let shared = mma_shared(width, MMA_PAGED_QUERIES)?;
                let grid = [grid, parts(MMA_PAGED_QUERIES)?, sizes.splits];
                let chains = if splits > 1 { rows.len() * heads.heads * splits * (heads.head_dim + 2) } else { 0 };
                let mut chains = self.gpu.allocate(chains * size_of::<f32>())?;
                let arguments = [
                    y.write(),
                    Argument::write(&mut chains, Element::F32),
                    qkv.read(),
                    pages.read(),
                    tables.read(),
                    views.read(),
                ];
                self.gpu.launch(kernel, Geometry { grid, block: MMA_BLOCK, shared }, &arguments, sizes)?;
                if splits > 1 {
                    let geometry = Geometry::row(size("attention_paged", "rows", rows.len() * heads.heads)?, MMA_BLOCK);
                    let arguments = [y.write(), Argument::read(&chains, Element::F32), views.read()];
                    self.gpu.launch(kernels::ATTENTION_PAGED_MERGE, geometry, &arguments, sizes)?;
                }
                Ok(())
            }
        }
    }
}
