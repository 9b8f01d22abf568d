//! Attention over pages; without a cache, over pages made for the call. Both ops run the same kernel on the same form.
//!
//! The plain loops for a row that sees `len` keys, of one head (q, k, v: head_dim wide):
//! ```text
//! for t in 0..len { s[t] = 0; for d { s[t] = fma(q[d], k[t][d], s[t]) }; s[t] *= scale }
//! m = max(s);  for t { p[t] = e^(s[t] - m) };  total = sum(p)   // sixteen lane sums over t, then a tree
//! for d { y[d] = 0; for t in 0..len { y[d] = fma(p[t], v[t][d], y[d]) }; y[d] /= total }
//! ```
//! A tile is up to MAX_ROWS pairs of (token, query head) that share a kv head: their scores are computed sixteen or
//! thirty-two keys at a time. Keys that some rows of a tile see and others do not are added row by row, so what a row does
//! not see never enters its arithmetic, be it NaN.

use super::exp;
use super::gemm::Scratch;
use super::kv_cache::{head_lines, page_lines, value_lines, write_token};
use super::simd::{Kernel, LANES, Line, Simd};
use super::{CpuBackend, Tensor, set_len};
use crate::error::Result;
use crate::ops::{Attention, AttentionArgs, Heads, PAGE_TOKENS, Shaped};
use bytemuck::Zeroable;
use std::sync::PoisonError;

/// Tokens a task takes at most: some of the largest tiles.
const TASK_TOKENS: usize = 16;

/// Consecutive rows over the same pages, for one kv head.
struct Part<'a, 'y> {
    heads: Heads,
    kv_head: usize,
    scale: f32,
    pages: &'a [Line],
    /// Pages and number of keys of each row.
    seen: &'a [(&'a [u32], usize)],
    qkv: &'a Tensor,
    first_row: usize,
    /// For each row, the outputs of the query heads that read this kv head.
    y: &'a mut [&'y mut [f32]],
}

/// The keys and values of one kv head.
#[derive(Clone, Copy)]
struct KeyValues<'a> {
    pages: &'a [Line],
    ids: &'a [u32],
    page_lines: usize,
    at: usize,
    head_dim: usize,
    value_lines: usize,
}

impl<'a> KeyValues<'a> {
    #[inline(always)]
    fn keys(&self, block: usize) -> &'a [Line] {
        &self.pages[self.ids[block] as usize * self.page_lines + self.at..][..self.head_dim]
    }

    #[inline(always)]
    fn values(&self, block: usize) -> &'a [Line] {
        &self.pages[self.ids[block] as usize * self.page_lines + self.at + self.head_dim..][..PAGE_TOKENS * self.value_lines]
    }
}

impl Kernel for Part<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let group = heads / kv_heads;
        let most = S::MAX_ROWS.min(12);
        let tokens_a_tile = (most / group).max(1);
        let group_part = group.min(most);
        let rows = self.y.len();
        for first in (0..rows).step_by(tokens_a_tile) {
            let tokens = (rows - first).min(tokens_a_tile);
            let row = self.first_row + first;
            let longest = self.seen[row..row + tokens].iter().max_by_key(|seen| seen.1);
            let Some(&(ids, longest)) = longest else { return };
            let kv = KeyValues {
                pages: self.pages,
                ids,
                page_lines: page_lines(self.heads),
                at: self.kv_head * head_lines(self.heads),
                head_dim,
                value_lines: value_lines(self.heads),
            };
            for head in (0..group).step_by(group_part) {
                let heads = (group - head).min(group_part);
                let count = tokens * heads;
                // Row i of the tile is token i / heads, head i % heads.
                let mut lens = [0; 12];
                let mut queries = [&[][..]; 12];
                for i in 0..count {
                    let token = row + i / heads;
                    lens[i] = self.seen[token].1;
                    let column = (self.kv_head * group + head + i % heads) * head_dim;
                    queries[i] = &self.qkv.row(token)[column..][..head_dim];
                }
                let tile = Tile { kv, queries: &queries[..count], lens: &lens[..count], longest, scale: self.scale };
                let write = |i: usize, v: usize, values: &[f32; LANES]| {
                    let y = &mut self.y[first + i / heads][(head + i % heads) * head_dim..][..head_dim];
                    let y = &mut y[v * LANES..];
                    // Whole lines first: a copy of unknown length would be a call.
                    match y.first_chunk_mut::<LANES>() {
                        Some(y) => *y = *values,
                        None => y.iter_mut().zip(values).for_each(|(y, value)| *y = *value),
                    }
                };
                match count {
                    1 => tile.attend::<S, 1>(s, write),
                    2 => tile.attend::<S, 2>(s, write),
                    3 => tile.attend::<S, 3>(s, write),
                    4 => tile.attend::<S, 4>(s, write),
                    5 | 6 => tile.attend::<S, 6>(s, write),
                    7 | 8 => tile.attend::<S, 8>(s, write),
                    _ => tile.attend::<S, 12>(s, write),
                }
            }
        }
    }
}

/// Queries over the same keys.
struct Tile<'a> {
    kv: KeyValues<'a>,
    queries: &'a [&'a [f32]],
    /// Keys each query sees.
    lens: &'a [usize],
    longest: usize,
    scale: f32,
}

impl Tile<'_> {
    /// `MR`: rows computed; those beyond the queries are zeros that nobody reads.
    #[inline(always)]
    fn attend<S: Simd, const MR: usize>(&self, s: S, mut write: impl FnMut(usize, usize, &[f32; LANES])) {
        if MR > S::MAX_ROWS.min(12) {
            // Tiles have no more rows; saying so keeps the taller kernels out of the program.
            return;
        }
        let KeyValues { head_dim, value_lines, .. } = self.kv;
        let blocks = self.longest.div_ceil(PAGE_TOKENS);
        let chunks = head_dim.div_ceil(LANES);
        let mut scratch = Scratch::lend(0, (chunks + blocks) * MR);
        // Queries as [chunk of sixteen dimensions][row], as rows of x are packed for a matrix product.
        let (packed, scores) = scratch.parts().1.as_chunks_mut::<MR>().0.split_at_mut(chunks);
        for r in 0..MR {
            let query = self.queries.get(r).copied().unwrap_or_default();
            for (chunk, packed) in packed.iter_mut().enumerate() {
                let query = query.get(chunk * LANES..).unwrap_or_default();
                let query = &query[..query.len().min(LANES)];
                s.store(s.load_part(query, 0.0), &mut packed[r].0);
            }
        }
        let mut block = 0;
        while S::VECS == 2 && block + 2 <= blocks {
            self.scores::<S, MR, 2>(s, packed, block, scores);
            block += 2;
        }
        while block < blocks {
            self.scores::<S, MR, 1>(s, packed, block, scores);
            block += 1;
        }
        let mut totals = [1.0; MR];
        for (r, &len) in self.lens.iter().enumerate() {
            totals[r] = softmax::<S, MR>(s, scores, r, len);
        }
        let mut v = 0;
        while S::VECS == 2 && v + 2 <= value_lines {
            self.values::<S, MR, 2>(s, scores, &totals, v, &mut write);
            v += 2;
        }
        while v < value_lines {
            self.values::<S, MR, 1>(s, scores, &totals, v, &mut write);
            v += 1;
        }
    }

    /// scores\[block\]\[row\] = scale q k^T for NV blocks of keys.
    #[inline(always)]
    fn scores<S: Simd, const MR: usize, const NV: usize>(
        &self,
        s: S,
        packed: &[[Line; MR]],
        block: usize,
        scores: &mut [[Line; MR]],
    ) {
        let keys: [&[Line]; NV] = std::array::from_fn(|v| self.kv.keys(block + v));
        // Pages lie anywhere: what comes next is fetched meanwhile, the first values after the last keys.
        let blocks = scores.len();
        let next: [&[Line]; NV] = std::array::from_fn(|v| match block + NV + v {
            next if next < blocks => self.kv.keys(next),
            _ => self.kv.values(v.min(blocks - 1)),
        });
        let mut acc = [[s.splat(0.0); NV]; MR];
        for (chunk, q) in packed.iter().enumerate() {
            let from = chunk * LANES;
            let until = keys[0].len().min(from + LANES);
            let keys: [&[Line]; NV] = std::array::from_fn(|v| &keys[v][from..until]);
            #[expect(clippy::needless_range_loop, reason = "two arrays of keys and the queries are walked side by side")]
            for d in 0..LANES.min(until - from) {
                let k: [S::V; NV] = std::array::from_fn(|v| s.load(&keys[v][d].0));
                for next in &next {
                    s.prefetch(*next, (from + d) * size_of::<Line>());
                }
                for r in 0..MR {
                    let q = s.splat(q[r].0[d]);
                    for v in 0..NV {
                        acc[r][v] = s.fma(q, k[v], acc[r][v]);
                    }
                }
            }
        }
        let scale = s.splat(self.scale);
        for v in 0..NV {
            for r in 0..MR {
                s.store(s.mul(acc[r][v], scale), &mut scores[block + v][r].0);
            }
        }
    }

    /// NV vectors of outputs from vector `at` on.
    #[inline(always)]
    fn values<S: Simd, const MR: usize, const NV: usize>(
        &self,
        s: S,
        scores: &[[Line; MR]],
        totals: &[f32; MR],
        at: usize,
        write: &mut impl FnMut(usize, usize, &[f32; LANES]),
    ) {
        let stride = self.kv.value_lines;
        let common = self.lens.iter().copied().min().unwrap_or(0);
        let mut acc = [[s.splat(0.0); NV]; MR];
        for (block, p) in scores.iter().enumerate().take(common.div_ceil(PAGE_TOKENS)) {
            let keys = (common - block * PAGE_TOKENS).min(PAGE_TOKENS);
            // The first pass over the values has those of the next block fetched.
            let next = self.kv.values((block + 1).min(scores.len() - 1));
            for (j, v) in self.kv.values(block).chunks_exact(stride).take(keys).enumerate() {
                let v: [S::V; NV] = std::array::from_fn(|i| s.load(&v[at + i].0));
                if at == 0 {
                    for line in 0..stride {
                        s.prefetch(next, (j * stride + line) * size_of::<Line>());
                    }
                }
                for r in 0..MR {
                    let p = s.splat(p[r].0[j]);
                    for i in 0..NV {
                        acc[r][i] = s.fma(p, v[i], acc[r][i]);
                    }
                }
            }
        }
        let mut sums = [[[0.0; LANES]; NV]; MR];
        for r in 0..MR {
            for i in 0..NV {
                s.store(acc[r][i], &mut sums[r][i]);
            }
        }
        for (r, &len) in self.lens.iter().enumerate() {
            for (i, sum) in sums[r].iter().enumerate() {
                let mut sum = s.load(sum);
                for t in common..len {
                    let (block, j) = (t / PAGE_TOKENS, t % PAGE_TOKENS);
                    let v = s.load(&self.kv.values(block)[j * stride + at + i].0);
                    sum = s.fma(s.splat(scores[block][r].0[j]), v, sum);
                }
                let mut out = [0.0; LANES];
                s.store(s.div(sum, s.splat(totals[r])), &mut out);
                write(r, at + i, &out);
            }
        }
    }
}

/// Scores of row `r` become e^(s - max) for its first `len` keys; their sum.
#[inline(always)]
fn softmax<S: Simd, const MR: usize>(s: S, scores: &mut [[Line; MR]], r: usize, len: usize) -> f32 {
    let blocks = len.div_ceil(PAGE_TOKENS);
    if let (Some(last), rest @ 1..) = (blocks.checked_sub(1), len % PAGE_TOKENS) {
        scores[last][r].0[rest..].fill(f32::NEG_INFINITY);
    }
    let mut max = s.splat(f32::NEG_INFINITY);
    for block in &scores[..blocks] {
        max = s.max(s.load(&block[r].0), max);
    }
    let max = s.splat(s.max_lane(max));
    let mut total = s.splat(0.0);
    for block in &mut scores[..blocks] {
        let p = exp::below_zero(s, s.sub(s.load(&block[r].0), max));
        s.store(p, &mut block[r].0);
        total = s.add(total, p);
    }
    s.sum(total)
}

impl CpuBackend {
    /// y (rows x q_cols) = attention of each row over what it has `seen`.
    pub(super) fn attend(&self, y: &mut [f32], qkv: &Tensor, heads: Heads, pages: &[Line], seen: &[(&[u32], usize)], scale: f32) {
        let columns = heads.q_cols() / heads.kv_heads.max(1);
        if columns == 0 {
            return;
        }
        // Rows in a task see the same pages, as far as the shorter one sees.
        let mut starts = Vec::new();
        let mut first = 0;
        for row in 0..seen.len() {
            let (a, b) = (seen[first].0, seen[row].0);
            let shared = a.len().min(b.len());
            let ended = std::ptr::eq(a, b) || (a.len() == b.len() && a[..shared] == b[..shared]);
            if row == 0 || !ended || row - first >= TASK_TOKENS {
                starts.push(row);
                first = row;
            }
        }
        starts.push(seen.len());
        // One piece of memory for the slices of all tasks.
        let mut slices: Vec<&mut [f32]> = Vec::new();
        slices.resize_with(seen.len() * heads.kv_heads, Default::default);
        let mut lines = y.chunks_exact_mut(columns);
        let mut rest = slices.as_mut_slice();
        let mut parts = Vec::with_capacity((starts.len() - 1) * heads.kv_heads);
        for range in starts.windows(2) {
            let (first_row, rows) = (range[0], range[1] - range[0]);
            let own;
            (own, rest) = rest.split_at_mut(rows * heads.kv_heads);
            for (index, y) in lines.by_ref().take(rows * heads.kv_heads).enumerate() {
                own[index % heads.kv_heads * rows + index / heads.kv_heads] = y;
            }
            let by_head = own.chunks_exact_mut(rows).enumerate();
            parts.extend(by_head.map(|(kv_head, y)| Part { heads, kv_head, scale, pages, seen, qkv, first_row, y }));
        }
        // A handful of keys is not worth waking anybody.
        let work: usize = seen.iter().map(|seen| seen.1).sum::<usize>() * heads.q_cols();
        if work < 100_000 {
            parts.into_iter().for_each(|part| self.isa.run(part));
        } else {
            // Last rows see most: they go first, so that no thread ends with a long one alone.
            self.pool.each(parts.into_iter().rev(), |_, part| self.isa.run(part));
        }
    }
}

impl Attention for CpuBackend {
    fn attention(&self, args: AttentionArgs<'_, Tensor>) -> Result<()> {
        args.check()?;
        let AttentionArgs { y, qkv, heads, starts, scale } = args;
        if qkv.rows() == 0 || heads.q_cols() == 0 {
            return Ok(());
        }
        // A page of its own for every sixteen tokens of every sequence.
        let mut page_rows = Vec::new();
        let mut first_pages = Vec::new();
        for range in starts.windows(2) {
            first_pages.push(page_rows.len());
            page_rows.extend((range[0]..range[1]).step_by(PAGE_TOKENS).map(|row| row as usize..range[1] as usize));
        }
        let ids: Vec<u32> = (0..).take(page_rows.len()).collect();
        let mut seen: Vec<(&[u32], usize)> = Vec::with_capacity(qkv.rows());
        for (range, &first) in starts.windows(2).zip(&first_pages) {
            let rows = (range[1] - range[0]) as usize;
            let ids = &ids[first..first + rows.div_ceil(PAGE_TOKENS)];
            seen.extend((1..=rows).map(|len| (ids, len)));
        }
        let size = page_lines(heads);
        let mut pages = self.attention_pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.len() < size * page_rows.len() {
            set_len(&mut pages, size * page_rows.len(), Zeroable::zeroed())?;
        }
        let pages = &mut pages[..size * page_rows.len()];
        let per_task = self.pool.rows_per_task(page_rows.len(), PAGE_TOKENS * heads.kv_cols());
        self.pool.chunks(pages, size * per_task, |first, lines| {
            for (page, lines) in lines.chunks_exact_mut(size).enumerate() {
                let rows = page_rows[first / size + page].clone();
                for (offset, row) in rows.take(PAGE_TOKENS).enumerate() {
                    write_token(lines, heads, offset, qkv.row(row));
                }
            }
        });
        self.attend(&mut y.data, qkv, heads, pages, &seen, scale);
        Ok(())
    }
}
