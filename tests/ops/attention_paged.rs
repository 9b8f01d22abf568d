use crate::any::{Any, KvPages, Stored};
use crate::attention::{SCALE, attention, starts};
use crate::compare::same;
use crate::data::floats;
use crate::everywhere::{backends, gpu, poisoned};
use crate::harness::levels;
use crate::kv_write;
use prunectl::backend::cpu::CpuBackend;
use prunectl::ops::cases::ATTENTION;
use prunectl::ops::{AttentionPagedArgs, Device, Heads, KvCache, PAGE_TOKENS, PagedRow};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["attention_paged"];

/// Sequences decoded in steps: every call takes some rows of each.
struct Decoder<'a> {
    backend: &'a Any,
    heads: Heads,
    pool: KvPages,
    /// Pages of each sequence, scattered over the pool.
    pages: Vec<Vec<u32>>,
}

impl<'a> Decoder<'a> {
    fn new(backend: &'a Any, heads: Heads, lengths: &[usize]) -> Self {
        let sequences = u32::try_from(lengths.len()).unwrap();
        let pages: Vec<Vec<u32>> = (0..sequences)
            .zip(lengths)
            .map(|(s, &length)| (0..).map(|p| p * sequences + s).take(length.div_ceil(PAGE_TOKENS)).collect())
            .collect();
        let needed = pages.iter().flatten().max().map_or(0, |&p| p as usize + 1);
        let mut pool = backend.kv_pages(needed / 2, heads).unwrap();
        backend.kv_grow(&mut pool, needed).unwrap();
        Self { backend, heads, pool, pages }
    }

    /// Stores keys and values of rows (sequence, position).
    fn write(&mut self, rows: &[(usize, usize)], qkv: &[f32]) {
        let page_tokens = u32::try_from(PAGE_TOKENS).unwrap();
        let slots: Vec<u32> = rows
            .iter()
            .map(|&(s, t)| self.pages[s][t / PAGE_TOKENS] * page_tokens + u32::try_from(t % PAGE_TOKENS).unwrap())
            .collect();
        kv_write::write(self.backend, &mut self.pool, self.heads, qkv, &slots);
    }

    /// Rows (sequence, position) in one call; `qkv` holds them.
    fn step(&mut self, rows: &[(usize, usize)], qkv: &[f32]) -> Vec<f32> {
        self.write(rows, qkv);
        let qkv = self.backend.upload(rows.len(), self.heads.qkv_cols(), qkv).unwrap();
        let views: Vec<PagedRow<'_>> =
            rows.iter().map(|&(s, t)| PagedRow { pages: &self.pages[s], len: u32::try_from(t + 1).unwrap() }).collect();
        let mut y = poisoned(self.backend, rows.len(), self.heads.q_cols());
        let args = AttentionPagedArgs { y: &mut y, qkv: &qkv, heads: self.heads, pages: &self.pool, rows: &views, scale: SCALE };
        self.backend.attention_paged(args).unwrap();
        self.backend.download(&y).unwrap()
    }
}

/// Each instruction set, and each way the GPU computes attention.
fn ways() -> Vec<(String, Any)> {
    let cpu = |isa| Any::Cpu(CpuBackend::with_isa(Dtype::F32, Some(2), isa).unwrap());
    let cpus = levels().into_iter().map(|isa| (isa.name().to_owned(), cpu(isa)));
    let gpus = [(Dtype::F32, Stored::Plain), (Dtype::Bf16, Stored::Scratch)];
    let gpus = gpus.into_iter().filter_map(|(dtype, stored)| gpu(dtype, stored)).map(|b| (b.name(), b));
    cpus.chain(gpus).collect()
}

/// Rows that see more than one chain of keys (1024): each chain has a block of its own, and the result still has the bits of
/// the kernel that walks them one after the other. With more query heads a key head than a tile has rows.
#[test]
fn long_rows_have_the_bits_of_attention() {
    let Some(backend) = gpu(Dtype::Bf16, Stored::Scratch) else { return };
    let heads = Heads { heads: 17, kv_heads: 1, head_dim: 8 };
    let lengths = [2070, 5];
    let rows: Vec<(usize, usize)> =
        lengths.iter().enumerate().flat_map(|(s, &length)| (0..length).map(move |t| (s, t))).collect();
    let qkv = floats(2, rows.len() * heads.qkv_cols());
    let expected = attention(&backend, &qkv, &lengths, heads);
    let mut decoder = Decoder::new(&backend, heads, &lengths);
    // All but some rows only write their keys.
    let some: Vec<usize> = [3, 1023, 1024, 1087, 2047, 2048, 2069, 2070, 2074].to_vec();
    decoder.write(&rows, &qkv);
    let picked: Vec<(usize, usize)> = some.iter().map(|&r| rows[r]).collect();
    let part = crate::harness::pick(&qkv, heads.qkv_cols(), &some);
    same("long rows", &decoder.step(&picked, &part), &crate::harness::pick(&expected, heads.q_cols(), &some));
}

/// All rows at once, one by one, and in ragged steps: the bits of `attention` each time.
#[test]
fn has_the_bits_of_attention() {
    for case in ATTENTION {
        let (lengths, heads) = (case.lengths, case.heads);
        let starts = starts(lengths);
        let rows: Vec<(usize, usize)> =
            lengths.iter().enumerate().flat_map(|(s, &length)| (0..length).map(move |t| (s, t))).collect();
        let qkv = floats(1, rows.len() * heads.qkv_cols());
        let (q_cols, qkv_cols) = (heads.q_cols(), heads.qkv_cols());
        let index = |(s, t): (usize, usize)| starts[s] as usize + t;
        for (name, backend) in ways() {
            let expected = attention(&backend, &qkv, lengths, heads);
            let what = format!("{case:?} on {name}");
            let all = Decoder::new(&backend, heads, lengths).step(&rows, &qkv);
            same(&format!("{what}, in one call"), &all, &expected);
            let longest = lengths.iter().copied().max().unwrap_or(0);
            // Steps of one take long on an emulated GPU.
            let strides = if matches!(backend, Any::Cpu(_)) { [1, 5] } else { [7, 31] };
            for stride in strides {
                let mut decoder = Decoder::new(&backend, heads, lengths);
                for first in (0..longest).step_by(stride) {
                    let now: Vec<(usize, usize)> =
                        rows.iter().copied().filter(|&(_, t)| (first..first + stride).contains(&t)).collect();
                    let part: Vec<f32> = now.iter().flat_map(|&r| qkv[index(r) * qkv_cols..][..qkv_cols].to_vec()).collect();
                    let want: Vec<f32> = now.iter().flat_map(|&r| expected[index(r) * q_cols..][..q_cols].to_vec()).collect();
                    same(&format!("{what}, {stride} at a time from {first}"), &decoder.step(&now, &part), &want);
                }
            }
        }
    }
}

/// Each kernel for tensor cores, with heads that fill it and heads that do not.
#[test]
fn heads_of_every_kernel_have_the_bits_of_attention() {
    let Some(backend) = gpu(Dtype::Bf16, Stored::Scratch) else { return };
    for head_dim in [8, 16, 32, 40, 64, 80, 96, 112, 128, 136, 256] {
        let heads = Heads { heads: 6, kv_heads: 2, head_dim };
        let lengths = [70, 3];
        let rows: Vec<(usize, usize)> = (0..70).map(|t| (0, t)).chain((0..3).map(|t| (1, t))).collect();
        let qkv = floats(6, rows.len() * heads.qkv_cols());
        let expected = attention(&backend, &qkv, &lengths, heads);
        same(&format!("{heads:?}"), &Decoder::new(&backend, heads, &lengths).step(&rows, &qkv), &expected);
    }
}

/// What lies in a page behind a row's last token may be anything, NaN included: pages are reused.
#[test]
fn stale_tokens_are_not_seen() {
    for (name, backend) in ways() {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim: 8 };
        let qkv = floats(3, 20 * heads.qkv_cols());
        let expected = attention(&backend, &qkv, &[20], heads);
        let mut decoder = Decoder::new(&backend, heads, &[32]);
        let all: Vec<(usize, usize)> = (0..32).map(|t| (0, t)).collect();
        decoder.step(&all, &vec![f32::NAN; 32 * heads.qkv_cols()]);
        same(&format!("over stale NaN on {name}"), &decoder.step(&all[..20], &qkv), &expected);
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    for backend in backends(Dtype::F32) {
        refuses(&backend);
    }
}

fn refuses(backend: &Any) {
    let heads = Heads { heads: 2, kv_heads: 1, head_dim: 4 };
    let pages = backend.kv_pages(2, heads).unwrap();
    let qkv = backend.zeros(1, 16).unwrap();
    let mut y = backend.zeros(1, 8).unwrap();
    for (ids, len) in [(&[2][..], 1), (&[0], 17), (&[0], 0)] {
        let rows = [PagedRow { pages: ids, len }];
        let args = AttentionPagedArgs { y: &mut y, qkv: &qkv, heads, pages: &pages, rows: &rows, scale: 1.0 };
        assert!(matches!(backend.attention_paged(args), Err(prunectl::Error::Shape { op: "attention_paged", .. })));
    }
    let other = Heads { head_dim: 8, ..heads };
    let (qkv, mut y) = (backend.zeros(0, 32).unwrap(), backend.zeros(0, 16).unwrap());
    let args = AttentionPagedArgs { y: &mut y, qkv: &qkv, heads: other, pages: &pages, rows: &[], scale: 1.0 };
    assert!(matches!(backend.attention_paged(args), Err(prunectl::Error::Shape { arg: "pages", .. })));
}
