//! Which page of the KV cache belongs to whom: a reference-counted allocator, on the host, for every device.

use crate::error::Result;
use crate::ops::{Heads, KvCache, PAGE_TOKENS};

/// A pool of pages with an owner count for each. A page with one owner may be written; a shared one is copied first.
pub struct KvPool<B: KvCache> {
    pages: B::KvPages,
    owners: Vec<u32>,
    free: Vec<u32>,
}

impl<B: KvCache> KvPool<B> {
    /// An empty pool, which may grow to `most` pages or so.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn new(backend: &B, heads: Heads, most: usize) -> Result<Self> {
        let mut pages = backend.kv_pages(0, heads)?;
        backend.kv_expect(&mut pages, most);
        Ok(Self { pages, owners: Vec::new(), free: Vec::new() })
    }

    /// The device's pages.
    pub fn pages(&mut self) -> &mut B::KvPages {
        &mut self.pages
    }

    /// Pages in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.owners.len() - self.free.len()
    }

    fn allocate(&mut self, backend: &B) -> Result<u32> {
        if self.free.is_empty() {
            let old = self.owners.len();
            let new = (old + old / 2).max(old + 64);
            backend.kv_grow(&mut self.pages, new)?;
            self.owners.resize(new, 0);
            self.free.extend((old..new).rev().filter_map(|page| u32::try_from(page).ok()));
        }
        let page = self
            .free
            .pop()
            .ok_or_else(|| crate::Error::Device { problem: "the KV cache has more than 2^32 pages".into(), help: None })?;
        self.owners[page as usize] = 1;
        Ok(page)
    }

    /// One more owner for each page.
    pub fn share(&mut self, pages: &[u32]) {
        for &page in pages {
            self.owners[page as usize] += 1;
        }
    }

    /// One owner less for each page; those without an owner are free again.
    pub fn release(&mut self, pages: &[u32]) {
        for &page in pages {
            let owners = &mut self.owners[page as usize];
            *owners -= 1;
            if *owners == 0 {
                self.free.push(page);
            }
        }
    }

    /// The slot of token `position` in `table`, which holds the tokens before it: adds a page where the table ends, and
    /// copies the page first where others share it.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when memory is short.
    pub fn slot(&mut self, backend: &B, table: &mut Vec<u32>, position: usize) -> Result<u32> {
        let (index, offset) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
        if index == table.len() {
            table.push(self.allocate(backend)?);
        } else if self.owners[table[index] as usize] > 1 {
            let copy = self.allocate(backend)?;
            backend.kv_copy_page(&mut self.pages, table[index], copy)?;
            self.release(&[table[index]]);
            table[index] = copy;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a page's tokens and a page's number are far below 2^32 / 16")]
        let slot = table[index] * PAGE_TOKENS as u32 + offset as u32;
        Ok(slot)
    }
}
