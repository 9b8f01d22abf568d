//! Every op against independent references: f64 arithmetic written as the formula stands, at the sizes of
//! `prunectl::ops::cases`, on every instruction set of this machine, with one, two and three threads, and on the GPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod any;
mod any_training;
mod compare;
mod data;
mod everywhere;
mod exp;
mod harness;

mod adamw;
mod argmax;
mod attention;
mod attention_paged;
mod backward;
mod block_influence;
mod cols;
mod cross_entropy;
mod embedding;
mod head_norm;
mod kv_write;
mod layer_norm;
mod linear;
mod linear_swiglu;
mod nf4;
mod rms_norm;
mod rope;
mod rows;
mod steps;
mod swiglu;

/// Ops that the modules above test, by the names they give themselves.
const TESTED: &[&[&str]] = &[
    adamw::OPS,
    argmax::OPS,
    attention::OPS,
    attention_paged::OPS,
    block_influence::OPS,
    cols::OPS,
    cross_entropy::OPS,
    embedding::OPS,
    head_norm::OPS,
    kv_write::OPS,
    layer_norm::OPS,
    linear::OPS,
    linear_swiglu::OPS,
    rms_norm::OPS,
    rope::OPS,
    rows::OPS,
    swiglu::OPS,
];

#[test]
fn every_op_has_a_test_and_cases() {
    let mut tested = TESTED.concat();
    tested.sort_unstable();
    assert_eq!(tested, prunectl::ops::ALL);
    let with_cases: Vec<&str> = prunectl::ops::cases::COUNTS.iter().filter(|c| c.1 > 0).map(|c| c.0).collect();
    assert_eq!(with_cases, prunectl::ops::ALL);
    assert_eq!(backward::OPS, prunectl::ops::TRAINING);
}
