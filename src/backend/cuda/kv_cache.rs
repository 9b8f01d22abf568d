//! The KV cache's memory, and launches of kernels/kv_cache.cu.

use super::driver::{Argument, Buffer, Geometry};
use super::rope::rope_step;
use super::{CudaBackend, Storage, Tensor, kernels, size};
use crate::error::{Error, Result};
use crate::ops::{AttentionPagedArgs, Heads, KvCache, KvWriteArgs, PAGE_TOKENS, RopeArgs, expect_below};
use bytemuck::NoUninit;
use std::mem::offset_of;

/// Threads a block, THREADS of the kernels.
const BLOCK: u32 = 256;

/// Mirrors KvWriteSizes of the kernels.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
struct KvWriteSizes {
    rows: u32,
    heads: u32,
    kv_heads: u32,
    half: u32,
}

const _: () = assert!(size_of::<KvWriteSizes>() == 16 && offset_of!(KvWriteSizes, half) == 12, "layout shared with the kernels");

/// Pages of keys and values: `[page][k, v][kv_head][PAGE_TOKENS][head_dim]`, stored as activations within a layer are.
#[derive(Debug)]
pub struct KvPages {
    heads: Heads,
    pub(super) storage: Storage,
    data: Buffer,
    pages: usize,
}

impl KvPages {
    pub(super) fn read(&self) -> Argument<'_> {
        Argument::read(&self.data, self.storage.element())
    }

    /// Whether the pool was made for keys and values of this shape and storage.
    pub(super) fn check(&self, op: &'static str, heads: Heads, storage: Storage) -> Result<()> {
        let shape = |h: Heads, s: Storage| [h.heads, h.kv_heads, h.head_dim, s.size()];
        let (expected, found) = (shape(heads, storage), shape(self.heads, self.storage));
        if expected == found { Ok(()) } else { Err(Error::shape(op, "pages", &expected, &found)) }
    }

    pub(super) fn capacity(&self) -> usize {
        self.pages
    }

    fn page_bytes(&self) -> usize {
        page_elements(self.heads) * self.storage.size()
    }
}

const fn page_elements(heads: Heads) -> usize {
    2 * heads.kv_cols() * PAGE_TOKENS
}

impl KvCache for CudaBackend {
    type KvPages = KvPages;

    fn kv_pages(&self, pages: usize, heads: Heads) -> Result<KvPages> {
        let bytes = pages.saturating_mul(page_elements(heads)).saturating_mul(self.compute.size());
        Ok(KvPages { heads, storage: self.compute, data: self.gpu.allocate(bytes)?, pages })
    }

    fn kv_grow(&self, pool: &mut KvPages, pages: usize) -> Result<()> {
        if pages > pool.pages {
            let mut larger = self.kv_pages(pages, pool.heads)?;
            self.gpu.copy(&mut larger.data, 0, &pool.data, 0, pool.pages * pool.page_bytes())?;
            *pool = larger;
        }
        Ok(())
    }

    fn kv_page_bytes(&self, heads: Heads) -> u64 {
        (page_elements(heads) * self.compute.size()) as u64
    }

    fn kv_write(&self, args: KvWriteArgs<'_, Tensor, KvPages>) -> Result<()> {
        args.check(args.pages.capacity())?;
        let KvWriteArgs { pages, rope: RopeArgs { x: qkv, cos, sin, positions, interleaved, .. }, heads, slots } = args;
        pages.check("kv_write", heads, qkv.storage)?;
        let kernel = match (interleaved, qkv.storage) {
            (false, Storage::F32) => kernels::KV_WRITE_HALF_F32,
            (false, Storage::Bf16) => kernels::KV_WRITE_HALF_BF16,
            (true, Storage::F32) => kernels::KV_WRITE_INTERLEAVED_F32,
            (true, Storage::Bf16) => kernels::KV_WRITE_INTERLEAVED_BF16,
        };
        let sizes = KvWriteSizes {
            rows: size("kv_write", "x", qkv.rows)?,
            heads: size("kv_write", "heads", heads.heads)?,
            kv_heads: size("kv_write", "heads", heads.kv_heads)?,
            half: size("kv_write", "cos", cos.cols)?,
        };
        let in_row = heads.qkv_cols() / 2 / rope_step(cos.cols, qkv.cols);
        let geometry = Geometry::over(qkv.rows * in_row, BLOCK)?;
        let (positions, slots) = (self.indices.get(&self.gpu, positions)?, self.indices.get(&self.gpu, slots)?);
        let element = pages.storage.element();
        self.with_f32(cos, |cos| {
            self.with_f32(sin, |sin| {
                let pages = Argument::write(&mut pages.data, element);
                let arguments = [pages, qkv.write(), cos.read(), sin.read(), positions.read(), slots.read()];
                self.gpu.launch(kernel, geometry, &arguments, sizes)
            })
        })
    }

    fn kv_copy_page(&self, pool: &mut KvPages, from: u32, to: u32) -> Result<()> {
        expect_below("kv_copy_page", "from, to", &[from, to], pool.pages)?;
        if from == to {
            return Ok(());
        }
        let bytes = pool.page_bytes();
        self.gpu.copy_within(&mut pool.data, to as usize * bytes, from as usize * bytes, bytes)
    }

    fn attention_paged(&self, args: AttentionPagedArgs<'_, Tensor, KvPages>) -> Result<()> {
        args.check(args.pages.capacity())?;
        self.attend_paged(args)
    }
}
