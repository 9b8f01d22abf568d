//! `prunectl bench`.

use crate::util::{Dir, Ran};
use prunectl::ops;
use serde_json::Value;
use std::collections::BTreeSet;

fn bench(args: &[&str]) -> Ran {
    Dir::new().prunectl().arg("bench").args(args).run()
}

fn positive(value: &Value) -> bool {
    // JSON has no NaN and no infinity: they would be null.
    value.as_f64().is_some_and(|v| v.is_finite() && v > 0.0)
}

/// Names of the ops of a report, whose figures are all finite and positive.
fn ops_of(report: &Value) -> BTreeSet<&str> {
    for ceiling in ["f32_gflops", "bf16_gflops", "memory_gbytes"] {
        assert!(positive(&report[ceiling]), "{ceiling} is {}", report[ceiling]);
    }
    let rows = report["rows"].as_array().unwrap();
    for row in rows {
        for figure in ["share", "microseconds", "work", "giga_per_second"] {
            assert!(positive(&row[figure]), "{figure} of {row}");
        }
    }
    rows.iter().map(|row| row["op"].as_str().unwrap()).collect()
}

#[test]
fn every_op_has_a_row_with_a_finite_positive_share() {
    let report = bench(&["--shape", "tiny", "--repeats", "1", "--json", "--device", "cpu"]).code(0).json();
    assert_eq!(ops_of(&report), ops::ALL.iter().chain(ops::TRAINING).copied().collect());
    let report = bench(&["train", "--shape", "tiny", "--repeats", "1", "--json", "--device", "cpu"]).code(0).json();
    assert_eq!(ops_of(&report), ["adamw", "squared_norm"].iter().chain(ops::TRAINING).copied().collect());
}

#[test]
fn text_names_the_ceilings_and_the_ops() {
    let ran = bench(&["attention", "--repeats", "1", "--threads", "1", "--device", "cpu"]).code(0);
    ran.out("1 threads; ceilings: ").out("attention_paged").out("GFLOP/s");
}

#[test]
fn a_round_of_a_scan_of_random_weights() {
    let report = bench(&["scan", "--shape", "tiny", "--records", "3", "--json", "--device", "cpu"]).code(0).json();
    for figure in ["load_seconds", "seconds", "flops", "gflops", "peak_memory_bytes"] {
        assert!(positive(&report[figure]), "{figure} is {}", report[figure]);
    }
    assert_eq!((&report["records"], &report["candidates"], &report["dtype"]), (&3.into(), &2.into(), &"bf16".into()));
    assert_eq!(report.get("energy_joules"), None, "a CPU does not tell");
    // By hand: layers 4 x 48 rows, candidates 1 and 2 run 2 + 1 layers; (64 x 128 + 64 x 64 + 3 x 64 x 192) weights a layer;
    // 515 x 64 weights of the head for three models at 5 of 16 tokens.
    let flops = 2 * ((64 * 128 + 64 * 64 + 3 * 64 * 192) * (4 + 3) * 48 + 515 * 64 * 3 * 15);
    assert_eq!(report["flops"].as_f64().unwrap(), f64::from(flops));
    bench(&["scan", "--shape", "tiny", "--device", "cpu"])
        .code(0)
        .out("random weights; 6 records of 16 tokens, 5 of them scored");
    bench(&["scan", "--shape", "tiny", "--scored", "16"]).code(2).err("cannot score 16 tokens").err("help: ");
    bench(&["gemm", "--records", "1"]).code(2).err("go with `bench scan`");
}

#[cfg(feature = "cuda")]
#[test]
fn the_same_on_a_gpu_which_says_when_it_is_the_emulated_one() {
    if !crate::cuda::gpu() {
        return;
    }
    let on_gpu = |args: &[&str]| bench(&[args, &["--shape", "tiny", "--repeats", "1", "--device", "cuda"]].concat()).code(0);
    let emulated = crate::cuda::emulated();
    for (what, expected) in [
        ("ops", ops::ALL.iter().chain(ops::TRAINING).copied().collect::<BTreeSet<_>>()),
        ("train", ["adamw", "squared_norm"].iter().chain(ops::TRAINING).copied().collect()),
        ("nf4", BTreeSet::from(["linear"])),
        ("gemm", BTreeSet::from(["linear", "linear_swiglu", "cross_entropy", "argmax"])),
    ] {
        let report = on_gpu(&[what, "--json"]).json();
        assert_eq!(ops_of(&report), expected, "{what}");
        assert_eq!((&report["device"], &report["gpu"]["emulated"]), (&"cuda:0".into(), &emulated.into()));
    }
    let report = on_gpu(&["scan", "--json"]).json();
    assert!(positive(&report["seconds"]), "{report}");
    assert_eq!(report["gpu"]["emulated"], emulated);
    if emulated {
        // As emulator/nvml/nvml.cpp has it.
        assert_eq!((&report["gpu"]["driver"], &report["energy_joules"]), (&"580.00.01".into(), &0.25.into()));
        assert_eq!(
            (&report["gpu"]["before"]["sm_clock_mhz"], &report["gpu"]["after"]["power_mw"]),
            (&1110.into(), &123_456.into())
        );
        on_gpu(&["attention"]).out("emulated: these are the times of a test tool on a CPU");
    }
}
