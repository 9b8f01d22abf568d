//! `prunectl train-qlora` and `teach` on the GPU (or the emulated one): the losses of the CPU, and interruption changes nothing.

use crate::cuda::gpu;
use crate::train::{ADAPTER, bytes, killed_again_and_again, losses, metrics, records, train};
use crate::util::{Dir, fixture};

/// Losses on the CPU and on the GPU, in f32: sums in another order move the weights apart, a little more with each update.
fn assert_like_the_cpu(dir: &Dir, model: &str, name: &str, args: &[&str]) {
    let [cpu, cuda] = ["cpu", "cuda"].map(|device| {
        let out = format!("{name}-{device}");
        train(dir, model, &out, &[args, &["-q", "--device", device]].concat()).code(0).no_err();
        losses(dir, &out)
    });
    assert!(!cpu.is_empty() && cpu.len() == cuda.len(), "{name}: {cpu:?} and {cuda:?}");
    assert!(cpu[cpu.len() - 1] < cpu[0], "{name} learns nothing: {cpu:?}");
    for (step, (cuda, cpu)) in cuda.iter().zip(&cpu).enumerate() {
        assert!((cuda - cpu).abs() <= 1e-4 * cpu, "{name}, step {step}: {cuda} on the GPU, {cpu} on the CPU");
    }
}

#[test]
fn losses_equal_those_of_the_cpu() {
    if !gpu() {
        return;
    }
    let dir = Dir::new();
    records(&dir, "data.jsonl", 10, 24);
    let steps = ["--steps", "8", "--batch", "3"];
    for (model, name, args) in [
        ("llama", "lora", &["--dropout", "0.1"][..]),
        ("cohere-qknorm", "full", &["--full"]),
        ("qwen2", "layers", &["--train-layers", "last:1,lm_head", "--skip", "1"]),
    ] {
        assert_like_the_cpu(&dir, model, name, &[&steps[..], args].concat());
    }
    let teacher = fixture("llama-tied-llama3rope");
    let args = ["--teacher", teacher.to_str().unwrap(), "--temperature", "2", "--teacher-mix", "0.5"];
    assert_like_the_cpu(&dir, "llama", "taught", &[&steps[..], &args].concat());
}

#[test]
fn a_base_in_four_bits_and_a_teacher_in_a_file() {
    if !gpu() {
        return;
    }
    let dir = Dir::new();
    records(&dir, "data.jsonl", 6, 20);
    let model = fixture("llama");
    for device in ["cpu", "cuda"] {
        let common = ["--data", "data.jsonl", "--dtype", "f32", "--device", device];
        let file = format!("teacher-{device}");
        dir.prunectl().arg("teach").arg(&model).args(common).args(["--top-k", "9", "--out", &file]).run().code(0);
        let lesson = ["--steps", "4", "--lr", "1e-2", "--r", "4", "--teacher", &file, "--skip", "2", "-q", "--out", device];
        dir.prunectl().arg("train-qlora").arg(&model).args(common).args(lesson).run().code(0).no_err();
    }
    for (cuda, cpu) in losses(&dir, "cuda").iter().zip(losses(&dir, "cpu")) {
        assert!((cuda - cpu).abs() <= 1e-4 * cpu, "{cuda} on the GPU, {cpu} on the CPU");
    }
}

#[test]
fn in_bf16_it_learns_and_writes_an_adapter() {
    if !gpu() {
        return;
    }
    let dir = Dir::new();
    records(&dir, "data.jsonl", 8, 24);
    let args = ["--dtype", "bf16", "--device", "cuda", "--lr", "1e-2", "--steps", "12", "--batch", "4", "--out", "out", "-q"];
    dir.prunectl().arg("train-qlora").arg(fixture("llama")).args(["--data", "data.jsonl"]).args(args).run().code(0).no_err();
    let found = losses(&dir, "out");
    assert!(found[found.len() - 1] < found[0] - 0.1, "{found:?}");
    assert!(!bytes(&dir, &format!("out/{ADAPTER}")).is_empty());
}

#[test]
fn killed_at_any_instant_it_ends_with_the_same_bits() {
    if !gpu() {
        return;
    }
    let dir = Dir::new();
    records(&dir, "data.jsonl", 8, 16);
    let args = ["--steps", "6", "--save-every", "2", "--dropout", "0.1", "--device", "cuda", "-q"];
    train(&dir, "llama", "whole", &args).code(0);
    let kills = killed_again_and_again(&dir, "cut", &args);
    assert!(kills > 0, "no run was killed");
    assert!(bytes(&dir, &format!("whole/{ADAPTER}")) == bytes(&dir, &format!("cut/{ADAPTER}")), "differs after {kills} kills");
    assert_eq!(metrics(&dir, "whole"), metrics(&dir, "cut"));
    // A training stays on its device.
    train(&dir, "llama", "cut", &[&args[..6], &["--device", "cpu", "--resume"]].concat())
        .code(2)
        .err("cannot resume: device was");
}
