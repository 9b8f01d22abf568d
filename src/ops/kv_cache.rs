//! Keys and values of past tokens in pages, and attention over them, for generation.
//!
//! A page holds k and v of up to [`PAGE_TOKENS`] tokens of one sequence in one layer. Which page belongs to whom is decided
//! on the host (`src/model/kv_pages.rs`); sequences may share pages (a common prompt prefix), so a page is written only by its
//! one owner.

use super::{Heads, Rope, RopeArgs, Shaped, expect, expect_below, expect_len};
use crate::error::{Error, Result};

/// Tokens a page.
pub const PAGE_TOKENS: usize = 16;

/// Arguments of [`KvCache::kv_write`].
#[derive(Debug)]
pub struct KvWriteArgs<'a, T, P> {
    /// The pages.
    pub pages: &'a mut P,
    /// The rotation of q and k; its x, [rows, qkv_cols], has v behind them.
    pub rope: RopeArgs<'a, T>,
    /// How x is cut.
    pub heads: Heads,
    /// Where k and v of each row go: page * PAGE_TOKENS + offset in the page. All different.
    pub slots: &'a [u32],
}

impl<T: Shaped, P> KvWriteArgs<'_, T, P> {
    /// `capacity` is the number of pages.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self, capacity: usize) -> Result<()> {
        let (RopeArgs { x, heads, cos, .. }, cut) = (&self.rope, self.heads);
        self.rope.check()?;
        expect("kv_write", "x", *x, x.rows(), cut.qkv_cols())?;
        expect("kv_write", "cos", *cos, cos.rows(), cut.head_dim / 2)?;
        expect_len("kv_write", "rotated heads", *heads, cut.heads + cut.kv_heads)?;
        expect_len("kv_write", "slots", self.slots.len(), x.rows())?;
        expect_below("kv_write", "slots", self.slots, capacity * PAGE_TOKENS)
    }
}

/// What one query row of [`KvCache::attention_paged`] sees.
#[derive(Debug, Clone, Copy)]
pub struct PagedRow<'a> {
    /// Pages of its sequence in this layer, in order.
    pub pages: &'a [u32],
    /// Tokens it attends to, itself included (position + 1): at least 1, at most pages.len() * PAGE_TOKENS.
    pub len: u32,
}

/// Arguments of [`KvCache::attention_paged`].
#[derive(Debug)]
pub struct AttentionPagedArgs<'a, T, P> {
    /// [rows, heads * head_dim], written.
    pub y: &'a mut T,
    /// [rows, qkv_cols]; only q is read: k and v of the row itself are in its pages already.
    pub qkv: &'a T,
    /// How qkv is cut.
    pub heads: Heads,
    /// The pages.
    pub pages: &'a P,
    /// A view a row.
    pub rows: &'a [PagedRow<'a>],
    /// Factor on q·k.
    pub scale: f32,
}

impl<T: Shaped, P> AttentionPagedArgs<'_, T, P> {
    /// `capacity` is the number of pages.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(&self, capacity: usize) -> Result<()> {
        let rows = self.qkv.rows();
        expect("attention_paged", "qkv", self.qkv, rows, self.heads.qkv_cols())?;
        expect("attention_paged", "y", self.y, rows, self.heads.q_cols())?;
        expect_len("attention_paged", "rows", self.rows.len(), rows)?;
        for row in self.rows {
            expect_below("attention_paged", "pages", row.pages, capacity)?;
            if row.len == 0 || row.len as usize > row.pages.len() * PAGE_TOKENS {
                return Err(Error::shape("attention_paged", "len", &[row.pages.len() * PAGE_TOKENS], &[row.len as usize]));
            }
        }
        Ok(())
    }
}

/// Paged keys and values.
pub trait KvCache: Rope {
    /// A pool of pages.
    type KvPages: Send + Sync;

    /// A pool of `pages` pages, each of k and v for PAGE_TOKENS tokens of `heads.kv_heads` heads.
    ///
    /// # Errors
    /// [`Error::Device`] when memory is short.
    fn kv_pages(&self, pages: usize, heads: Heads) -> Result<Self::KvPages>;

    /// Makes room for at least `pages` pages; what is there stays.
    ///
    /// # Errors
    /// [`Error::Device`] when memory is short.
    fn kv_grow(&self, pool: &mut Self::KvPages, pages: usize) -> Result<()>;

    /// Says that the pool may grow to `pages` pages, for a backend that can set addresses aside for them: memory is taken as they
    /// are written, and nothing has to move. Changes no result.
    fn kv_expect(&self, _pool: &mut Self::KvPages, _pages: usize) {}

    /// Bytes a page takes.
    fn kv_page_bytes(&self, heads: Heads) -> u64;

    /// Rotates q of each row in place, and stores k, rotated, and v at the row's slot. What stays in the columns of k is
    /// unspecified.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn kv_write(&self, args: KvWriteArgs<'_, Self::Tensor, Self::KvPages>) -> Result<()>;

    /// Page `to` becomes a copy of page `from`.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn kv_copy_page(&self, pool: &mut Self::KvPages, from: u32, to: u32) -> Result<()>;

    /// y = softmax(scale q k^T over the row's first `len` tokens) v, with the bits that
    /// [`Attention::attention`](super::Attention::attention) gives for the same row.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn attention_paged(&self, args: AttentionPagedArgs<'_, Self::Tensor, Self::KvPages>) -> Result<()>;
}
