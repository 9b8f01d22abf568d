use crate::any::{Any, KvPages};
use crate::compare::same;
use crate::data::floats;
use crate::everywhere::backends;
use prunectl::ops::cases::ATTENTION;
use prunectl::ops::{AttentionPagedArgs, Device, Heads, KvCache, KvWriteArgs, PAGE_TOKENS, PagedRow};
use prunectl::tensor::Dtype;

pub(crate) const OPS: &[&str] = &["kv_write"];

fn write(backend: &Any, pages: &mut KvPages, heads: Heads, qkv: &[f32], slots: &[u32]) {
    let qkv = backend.upload(slots.len(), heads.qkv_cols(), qkv).unwrap();
    backend.kv_write(KvWriteArgs { pages, qkv: &qkv, heads, slots }).unwrap();
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
        let qkv = backend.zeros(1, 16).unwrap();
        let error = backend.kv_write(KvWriteArgs { pages: &mut pages, qkv: &qkv, heads, slots: &[32] }).unwrap_err();
        assert_eq!(error.to_string(), "kv_write: slots has shape [32], expected [32]");
    }
}
