//! Pages of keys and values, in the form in which attention reads them.
//!
//! A page holds sixteen tokens. For each kv head: K transposed, [head_dim][16 tokens], so that sixteen scores are one vector;
//! then V, [16 tokens][head_dim], rows padded to whole lines.

use super::mapped::map_lines;
use super::rope::Turn;
use super::simd::{Kernel, LANES, Line, Simd};
use super::{CpuBackend, Tensor};
use crate::error::{Error, Result};
use crate::ops::{AttentionPagedArgs, Heads, KvCache, KvWriteArgs, PAGE_TOKENS, RopeArgs, Shaped};
use bytemuck::{cast_slice, cast_slice_mut};
use memmap2::MmapMut;

/// Keys that one thread writes sooner than it would wake another: each goes to a line of its own.
const WRITE_ALONE: usize = 2000;

/// A pool of pages, in memory that was mapped for more of them: what was never written takes none.
#[derive(Debug)]
pub struct KvPages {
    pub(super) heads: Heads,
    capacity: usize,
    /// Empty until there are pages.
    memory: Option<MmapMut>,
}

impl KvPages {
    /// Pages in the pool.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The pages, [`page_lines`] each.
    pub(super) fn lines(&self) -> &[Line] {
        self.memory.as_ref().map_or(&[], |memory| &cast_slice(memory)[..self.capacity * page_lines(self.heads)])
    }

    fn lines_mut(&mut self) -> &mut [Line] {
        self.memory.as_mut().map_or(&mut [], |memory| &mut cast_slice_mut(memory)[..self.capacity * page_lines(self.heads)])
    }

    /// Has addresses for `pages` pages, and moves there what is in use where there were fewer.
    fn map(&mut self, pages: usize) -> Result<()> {
        let lines = pages.saturating_mul(page_lines(self.heads));
        let mapped = self.memory.as_ref().map_or(0, |memory| memory.len() / size_of::<Line>());
        if lines > mapped {
            let mut memory = map_lines(lines)?;
            let used = self.lines();
            cast_slice_mut(&mut memory)[..used.len()].copy_from_slice(used);
            self.memory = Some(memory);
        }
        Ok(())
    }
}

/// Lines a row of V takes.
pub(super) const fn value_lines(heads: Heads) -> usize {
    heads.head_dim.div_ceil(LANES)
}

/// Lines a page takes for one kv head.
pub(super) const fn head_lines(heads: Heads) -> usize {
    heads.head_dim + PAGE_TOKENS * value_lines(heads)
}

/// Lines a page takes.
pub(super) const fn page_lines(heads: Heads) -> usize {
    heads.kv_heads * head_lines(heads)
}

/// Stores k and v of one qkv row as token `offset` of `page`.
#[inline(always)]
pub(super) fn write_token(page: &mut [Line], heads: Heads, offset: usize, qkv: &[f32]) {
    let head_dim = heads.head_dim;
    if head_dim == 0 {
        return;
    }
    let (k, v) = qkv[heads.q_cols()..].split_at(heads.kv_cols());
    for (page, (k, v)) in page.chunks_exact_mut(head_lines(heads)).zip(k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim))) {
        let (keys, values) = page.split_at_mut(head_dim);
        for (line, &k) in keys.iter_mut().zip(k) {
            line.0[offset] = k;
        }
        for (line, v) in values[offset * value_lines(heads)..].iter_mut().zip(v.chunks(LANES)) {
            match v.as_array::<LANES>() {
                Some(v) => line.0 = *v,
                None => line.0[..v.len()].copy_from_slice(v),
            }
        }
    }
}

/// A row whose k and v go to a page.
struct Token<'a> {
    slot: usize,
    qkv: &'a mut [f32],
    position: u32,
}

impl Token<'_> {
    fn page(&self) -> usize {
        self.slot / PAGE_TOKENS
    }
}

/// Rows of one page: rotated, then stored.
struct Write<'a, 'x> {
    page: &'a mut [Line],
    heads: Heads,
    tokens: &'a mut [Token<'x>],
    /// None where there is nothing to rotate.
    turn: Option<Turn<'a>>,
}

impl Kernel for Write<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        for Token { slot, qkv, position } in self.tokens {
            if let Some(turn) = self.turn {
                turn.row(qkv, *position);
            }
            write_token(self.page, self.heads, *slot % PAGE_TOKENS, qkv);
        }
    }
}

fn same_heads(op: &'static str, pool: Heads, heads: Heads) -> Result<()> {
    if pool == heads {
        return Ok(());
    }
    let shape = |h: Heads| [h.heads, h.kv_heads, h.head_dim];
    Err(Error::shape(op, "pages", &shape(heads), &shape(pool)))
}

impl KvCache for CpuBackend {
    type KvPages = KvPages;

    fn kv_pages(&self, pages: usize, heads: Heads) -> Result<KvPages> {
        let mut pool = KvPages { heads, capacity: 0, memory: None };
        self.kv_grow(&mut pool, pages)?;
        Ok(pool)
    }

    fn kv_grow(&self, pool: &mut KvPages, pages: usize) -> Result<()> {
        pool.map(pages)?;
        pool.capacity = pool.capacity.max(pages);
        Ok(())
    }

    fn kv_expect(&self, pool: &mut KvPages, pages: usize) {
        // Where there are no addresses to spare, the pool moves as it grows.
        let _ = pool.map(pages);
    }

    fn kv_page_bytes(&self, heads: Heads) -> u64 {
        (page_lines(heads) * size_of::<Line>()) as u64
    }

    fn kv_write(&self, args: KvWriteArgs<'_, Tensor, KvPages>) -> Result<()> {
        args.check(args.pages.capacity())?;
        same_heads("kv_write", args.pages.heads, args.heads)?;
        let KvWriteArgs { pages, rope, heads, slots } = args;
        let size = page_lines(heads);
        if size == 0 {
            return Ok(());
        }
        let RopeArgs { x, heads: turned, cos, sin, positions, interleaved } = rope;
        // A width of 0 is none of a row, and has no rows to cut.
        let turn = (cos.cols() > 0).then_some(Turn { heads: turned, cos, sin, interleaved, direction: 1.0 });
        // Rows by page, so that each page is one thread's.
        let cols = x.cols();
        let rows = x.data.chunks_exact_mut(cols).zip(slots).zip(positions);
        let mut tokens: Vec<Token<'_>> =
            rows.map(|((qkv, &slot), &position)| Token { slot: slot as usize, qkv, position }).collect();
        tokens.sort_unstable_by_key(|token| token.slot);
        let mut rest = pages.lines_mut();
        let mut passed = 0;
        let tasks = tokens.chunk_by_mut(|a, b| a.page() == b.page()).map(|tokens| {
            let page = tokens[0].page();
            let (own, after) = std::mem::take(&mut rest)[(page - passed) * size..].split_at_mut(size);
            rest = after;
            passed = page + 1;
            Write { page: own, heads, tokens, turn }
        });
        if slots.len() * heads.kv_cols() < WRITE_ALONE {
            tasks.for_each(|task| self.isa.run(task));
        } else {
            self.pool.each(tasks, |_, task| self.isa.run(task));
        }
        Ok(())
    }

    fn kv_copy_page(&self, pool: &mut KvPages, from: u32, to: u32) -> Result<()> {
        crate::ops::expect_below("kv_copy_page", "from, to", &[from, to], pool.capacity())?;
        let lines = page_lines(pool.heads);
        let start = from as usize * lines;
        pool.lines_mut().copy_within(start..start + lines, to as usize * lines);
        Ok(())
    }

    fn attention_paged(&self, args: AttentionPagedArgs<'_, Tensor, KvPages>) -> Result<()> {
        args.check(args.pages.capacity())?;
        same_heads("attention_paged", args.pages.heads, args.heads)?;
        let AttentionPagedArgs { y, qkv, heads, pages, rows, scale } = args;
        let mut seen = Vec::with_capacity(rows.len());
        for row in rows {
            seen.push((row.pages, row.len as usize));
        }
        self.attend(&mut y.data, qkv, heads, pages.lines(), &seen, scale);
        Ok(())
    }
}
