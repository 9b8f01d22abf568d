//! `prunectl bench`.

use crate::util::Dir;
use prunectl::ops;
use std::collections::BTreeSet;

#[test]
fn every_op_has_a_row_with_a_finite_positive_share() {
    let ran = Dir::new().prunectl().args(["bench", "--repeats", "1", "--json", "--device", "cpu"]).run().code(0);
    let report = ran.json();
    let rows = report["rows"].as_array().unwrap();
    let named: BTreeSet<&str> = rows.iter().map(|row| row["op"].as_str().unwrap()).collect();
    assert_eq!(named, ops::ALL.iter().copied().collect());
    for ceiling in ["f32_gflops", "bf16_gflops", "read_gbytes"] {
        let rate = report[ceiling].as_f64().unwrap();
        assert!(rate.is_finite() && rate > 0.0, "{ceiling} is {rate}");
    }
    for row in rows {
        for figure in ["share", "microseconds", "work", "giga_per_second"] {
            // JSON has no NaN and no infinity: they would be null.
            let value = row[figure].as_f64().unwrap_or(f64::NAN);
            assert!(value.is_finite() && value > 0.0, "{figure} of {row} is {value}");
        }
    }
}

#[test]
fn text_names_the_ceilings_and_the_ops() {
    let ran = Dir::new().prunectl().args(["bench", "attention", "--repeats", "1", "--threads", "1"]).run().code(0);
    ran.out("1 threads; ceilings: ").out("attention_paged").out("GFLOP/s");
}
