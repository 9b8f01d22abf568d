use crate::any::{Any, KvPages, Stored, Tensor};
use crate::compare::same;
use crate::data::{floats, indices};
use crate::everywhere::{backends, gpu, poisoned};
use prunectl::ops::cases::{ATTENTION, AttentionCase};
use prunectl::ops::{
    Attention, AttentionArgs, AttentionPagedArgs, Device, Heads, KvCache, KvWriteArgs, PAGE_TOKENS, PagedRow, Rope, RopeArgs,
};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["kv_write"];

/// Rows of q, k and v to their slots as they are: at a position that turns nothing.
pub(crate) fn write(backend: &Any, pages: &mut KvPages, heads: Heads, qkv: &[f32], slots: &[u32]) {
    let mut x = backend.upload(slots.len(), heads.qkv_cols(), qkv).unwrap();
    let half = heads.head_dim / 2;
    let [cos, sin] = [1.0, 0.0].map(|value| backend.upload(1, half, &vec![value; half]).unwrap());
    let positions = vec![0; slots.len()];
    let rope = rope(&mut x, heads, [&cos, &sin], &positions, false);
    backend.kv_write(KvWriteArgs { pages, rope, heads, slots }).unwrap();
}

fn rope<'a>(
    x: &'a mut Tensor,
    heads: Heads,
    [cos, sin]: [&'a Tensor; 2],
    positions: &'a [u32],
    interleaved: bool,
) -> RopeArgs<'a, Tensor> {
    RopeArgs { x, heads: heads.heads + heads.kv_heads, cos, sin, positions, interleaved }
}

/// The same as rotating all rows and attending to them as a packed sequence, bit for bit: q where it was, k and v in pages.
#[test]
fn rotates_on_the_way() {
    const ROWS: usize = 19;
    for backend in backends(Dtype::F32).into_iter().chain(gpu(Dtype::Bf16, Stored::Scratch)) {
        for (&AttentionCase { heads, .. }, interleaved) in ATTENTION.iter().flat_map(|case| [(case, false), (case, true)]) {
            let what = format!("{heads:?} interleaved {interleaved} on {}", backend.name());
            let half = heads.head_dim / 2;
            let [cos, sin] = [2, 3].map(|seed| backend.upload(31, half, &floats(seed, 31 * half)).unwrap());
            let positions = indices(4, ROWS, 31);
            let qkv = floats(5, ROWS * heads.qkv_cols());
            let upload = || backend.upload(ROWS, heads.qkv_cols(), &qkv).unwrap();
            let mut y = poisoned(&backend, ROWS, heads.q_cols());

            let mut x = upload();
            backend.rope(rope(&mut x, heads, [&cos, &sin], &positions, interleaved)).unwrap();
            let starts = [0, u32::try_from(ROWS).unwrap()];
            backend.attention(AttentionArgs { y: &mut y, qkv: &x, heads, starts: &starts, scale: 1.0 }).unwrap();
            let expected = backend.download(&y).unwrap();

            // The second page comes first in the pool.
            let slots: Vec<u32> = (0..starts[1]).map(|t| (t + 16) % 32).collect();
            let (mut x, mut pages) = (upload(), backend.kv_pages(2, heads).unwrap());
            let args = rope(&mut x, heads, [&cos, &sin], &positions, interleaved);
            backend.kv_write(KvWriteArgs { pages: &mut pages, rope: args, heads, slots: &slots }).unwrap();
            let rows: Vec<PagedRow<'_>> = (1..=starts[1]).map(|len| PagedRow { pages: &[1, 0], len }).collect();
            let args = AttentionPagedArgs { y: &mut y, qkv: &x, heads, pages: &pages, rows: &rows, scale: 1.0 };
            backend.attention_paged(args).unwrap();
            same(&what, &backend.download(&y).unwrap(), &expected);
        }
    }
}

/// v of the first token of `page`, read through attention: a row that sees one key gets its v, whatever q is.
fn first_value(backend: &Any, pages: &KvPages, heads: Heads, page: u32) -> Vec<f32> {
    let qkv = backend.zeros(1, heads.qkv_cols()).unwrap();
    let mut y = backend.zeros(1, heads.q_cols()).unwrap();
    let rows = [PagedRow { pages: &[page], len: 1 }];
    let args = AttentionPagedArgs { y: &mut y, qkv: &qkv, heads, pages, rows: &rows, scale: 1.0 };
    backend.attention_paged(args).unwrap();
    backend.download(&y).unwrap()
}

/// The v of each query head's kv head.
fn values(qkv: &[f32], heads: Heads) -> Vec<f32> {
    let v = &qkv[heads.q_cols() + heads.kv_cols()..];
    let group = heads.heads / heads.kv_heads;
    (0..heads.heads).flat_map(|h| v[h / group * heads.head_dim..][..heads.head_dim].to_vec()).collect()
}

#[test]
fn stores_at_its_slot_and_nowhere_else() {
    for backend in backends(Dtype::F32) {
        stores(&backend);
    }
}

fn stores(backend: &Any) {
    for case in ATTENTION {
        let heads = case.heads;
        let mut pages = backend.kv_pages(3, heads).unwrap();
        let qkv = floats(5, 3 * heads.qkv_cols());
        write(backend, &mut pages, heads, &qkv, &[32, 0, 16]);
        for (row, page) in [(0, 2), (1, 0), (2, 1)] {
            let expected = values(&qkv[row * heads.qkv_cols()..][..heads.qkv_cols()], heads);
            same(&format!("{case:?} page {page}"), &first_value(backend, &pages, heads, page), &expected);
        }
    }
}

#[test]
fn copied_pages_and_grown_pools_keep_what_was_there() {
    for backend in backends(Dtype::F32) {
        // Within what was expected, and beyond it.
        for expected in [None, Some(4), Some(9)] {
            copies_and_grows(&backend, expected);
        }
    }
}

fn copies_and_grows(backend: &Any, expected: Option<usize>) {
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 12 };
    let mut pages = backend.kv_pages(2, heads).unwrap();
    let qkv = floats(6, 2 * heads.qkv_cols());
    write(backend, &mut pages, heads, &qkv, &[0, 16]);
    if let Some(expected) = expected {
        backend.kv_expect(&mut pages, expected);
    }
    backend.kv_grow(&mut pages, 5).unwrap();
    backend.kv_copy_page(&mut pages, 1, 4).unwrap();
    write(backend, &mut pages, heads, &qkv[..heads.qkv_cols()], &[16]);
    same("the copy", &first_value(backend, &pages, heads, 4), &values(&qkv[heads.qkv_cols()..], heads));
    same("the original, overwritten", &first_value(backend, &pages, heads, 1), &values(&qkv, heads));
    assert!(backend.kv_copy_page(&mut pages, 5, 0).is_err());
    assert!(backend.kv_page_bytes(heads) >= (PAGE_TOKENS * 2 * heads.kv_cols() * 4) as u64);
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    for backend in backends(Dtype::F32) {
        let heads = Heads { heads: 2, kv_heads: 1, head_dim: 4 };
        let mut pages = backend.kv_pages(2, heads).unwrap();
        let (mut x, table) = (backend.zeros(1, 16).unwrap(), backend.zeros(1, 2).unwrap());
        let mut refused = |rotated, slots: &[u32]| {
            let rope = RopeArgs { heads: rotated, ..rope(&mut x, heads, [&table, &table], &[0], false) };
            backend.kv_write(KvWriteArgs { pages: &mut pages, rope, heads, slots }).unwrap_err().to_string()
        };
        assert_eq!(refused(3, &[32]), "kv_write: slots has shape [32], expected [32]");
        assert_eq!(refused(2, &[0]), "kv_write: rotated heads has shape [2], expected [3]");
    }
}
