//! Whole commands on the GPU (or the emulated one, see emulator/README.md), and without one.

use crate::util::{Dir, Ran, fixture};
use prunectl::backend::cuda::driver::{EMULATED, cublaslt_present, devices};
use prunectl::backend::cuda::kernels;
use serde_json::{Value, json};

/// As tests/ops/everywhere.rs finds it.
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
pub(crate) fn gpu() -> bool {
    let found = kernels::CUDA_KERNELS.is_some() && devices().is_ok_and(|d| !d.is_empty());
    assert!(found || std::env::var_os("PRUNECTL_TEST_DEVICE").is_none(), "PRUNECTL_TEST_DEVICE is set, and there is no GPU");
    if !found {
        eprintln!("skipped: there is no GPU, or no CUDA kernels in this build");
    }
    found
}

/// Whether the first GPU is the tests' own.
pub(crate) fn emulated() -> bool {
    devices().is_ok_and(|found| found.first().is_some_and(|gpu| gpu.name == EMULATED))
}

fn records(dir: &Dir, records: u64, tokens: u64) {
    let ids = |r: u64| (0..tokens).map(move |t| 3 + (r * 7919 + t * t * 31 + t * 17) % 250).collect::<Vec<_>>();
    let lines: Vec<String> = (0..records).map(|r| json!({ "input_ids": ids(r) }).to_string() + "\n").collect();
    dir.write("data.jsonl", lines.concat());
}

fn scan(dir: &Dir, model: &str, out: &str, args: &[&str]) -> Ran {
    let common = ["--data", "data.jsonl", "--remove", "2", "--protect", "none", "-q", "--out", out];
    dir.prunectl().arg("scan").arg(fixture(model)).args(common).args(args).run()
}

fn scan_json(dir: &Dir, out: &str) -> Value {
    serde_json::from_str(&dir.read(&format!("{out}/scan.json"))).unwrap()
}

#[test]
fn scan_finds_the_layers_that_the_cpu_finds() {
    if !gpu() {
        return;
    }
    let dir = Dir::new();
    records(&dir, 5, 24);
    for (model, metric) in [("llama", "nll"), ("cohere-qknorm", "kl"), ("qwen2", "bi")] {
        let (on_cpu, on_gpu) = (format!("{model}-cpu"), format!("{model}-gpu"));
        scan(&dir, model, &on_cpu, &["--metric", metric, "--dtype", "f32", "--device", "cpu"]).code(0);
        scan(&dir, model, &on_gpu, &["--metric", metric, "--dtype", "f32", "--device", "cuda"]).code(0);
        let (cpu, gpu) = (scan_json(&dir, &on_cpu), scan_json(&dir, &on_gpu));
        assert_eq!(gpu["device"], "cuda:0");
        assert_eq!(gpu["order"], cpu["order"], "{model}");
        for (cpu, gpu) in cpu["rounds"].as_array().unwrap().iter().zip(gpu["rounds"].as_array().unwrap()) {
            for (layer, score) in cpu["scores"].as_object().unwrap() {
                let (c, g) = (score.as_f64().unwrap(), gpu["scores"][layer].as_f64().unwrap());
                assert!((c - g).abs() <= 1e-5 * c.abs().max(0.1), "{model} without {layer}: {g} on the GPU, {c} on the CPU");
            }
        }
    }
}

#[test]
fn scores_do_not_depend_on_memory() {
    if !gpu() {
        return;
    }
    let dir = Dir::new();
    records(&dir, 4, 20);
    let scores =
        |out: &str| scan_json(&dir, out)["rounds"].as_array().unwrap().iter().map(|r| r["scores"].clone()).collect::<Vec<_>>();
    scan(&dir, "llama", "free", &["--dtype", "bf16", "--device", "cuda:0"]).code(0);
    // Three states of 80 rows: one candidate at a time.
    scan(&dir, "llama", "tight", &["--dtype", "bf16", "--device", "cuda:0", "--mem-budget", "61440"]).code(0);
    assert_eq!(scores("free"), scores("tight"));
}

#[test]
fn out_of_memory_says_what_would_fit() {
    if !gpu() || !emulated() {
        return;
    }
    let dir = Dir::new();
    records(&dir, 4, 100);
    let run = |memory: u32| {
        let out = format!("out-{memory}");
        let common = ["--data", "data.jsonl", "--remove", "1", "--protect", "none", "--mem-budget", "1G", "--out", &out];
        let run = dir.prunectl().arg("scan").arg(fixture("llama")).args(common).args(["--dtype", "f32", "--device", "cuda"]);
        (run.env("PRUNECTL_EMULATOR_MEMORY", &memory.to_string()).run(), out)
    };
    let (_, free) = run(1 << 30);
    // A state is 400 x 64 x 4 bytes. The least memory that is enough, to within one of them, is enough for small groups only.
    let enough = (0..30).map(|step| run(1_600_000 + step * 100_000)).find_map(|(ran, out)| match ran.status.code() {
        Some(0) => Some((ran, out)),
        _ => {
            ran.code(1).err("error: out of memory on the GPU").err("help: ");
            None
        }
    });
    let (ran, tight) = enough.unwrap();
    assert!(ran.stderr.contains("smaller groups"), "{}", ran.stderr);
    assert_eq!(scan_json(&dir, &free)["rounds"][0]["scores"], scan_json(&dir, &tight)["rounds"][0]["scores"]);
}

#[test]
fn generation_out_of_memory_goes_on_with_fewer_sequences() {
    if !gpu() || devices().unwrap()[0].name != EMULATED {
        return;
    }
    let dir = model_with_texts();
    let lines: Vec<String> =
        (0..12).map(|r| json!({"prompt": "to be or not to be ".repeat(r % 3 + 1), "completion": "x"}).to_string()).collect();
    dir.write("data.jsonl", lines.join("\n"));
    let run = |memory: u32| {
        let out = format!("out-{memory}.jsonl");
        let args = ["--data", "data.jsonl", "--max-new-tokens", "20", "--mem-budget", "1G", "--device", "cuda", "--out", &out];
        let run = dir.prunectl().args(["translate", "model", "--dtype", "f32"]).args(args);
        (run.env("PRUNECTL_EMULATOR_MEMORY", &memory.to_string()).run(), out)
    };
    let (ran, free) = run(1 << 30);
    assert!(!ran.code(0).stderr.contains("out of memory"));
    // The least memory that is enough, to within a few pages of the KV cache, is enough for few sequences only.
    let enough = (0..60).map(|step| run(400_000 + step * 50_000)).find_map(|(ran, out)| match ran.status.code() {
        Some(0) => Some((ran, out)),
        _ => {
            ran.code(1).err("error: out of memory on the GPU").err("help: ");
            None
        }
    });
    let (ran, tight) = enough.unwrap();
    assert!(ran.stderr.contains("sequences decode together now"), "{}", ran.stderr);
    assert_eq!(dir.read(&free), dir.read(&tight));
}

/// The llama fixture with a tokenizer, as `model`.
fn model_with_texts() -> Dir {
    let dir = Dir::new();
    for file in ["config.json", "model.safetensors", "generation_config.json"] {
        dir.write(&format!("model/{file}"), std::fs::read(fixture("llama").join(file)).unwrap());
    }
    dir.write("model/tokenizer.json", std::fs::read(fixture("byte-tokenizer").join("tokenizer.json")).unwrap());
    dir
}

#[test]
fn translate_eval_and_prune_run_on_it() {
    if !gpu() {
        return;
    }
    let dir = model_with_texts();
    dir.write("data.jsonl", "{\"source\":\"one two\",\"target\":\"eins\"}\n{\"source\":\"three\",\"target\":\"drei\"}\n");
    let texts = |device: &str| {
        let out = format!("{}.jsonl", device.replace(':', "-"));
        let args = ["--data", "data.jsonl", "--dtype", "f32", "--max-new-tokens", "6", "--device", device, "--out", &out];
        dir.prunectl().args(["translate", "model"]).args(args).run().code(0);
        dir.read(&out)
    };
    assert_eq!(texts("cuda:0"), texts("cpu"));
    let nll = |device: &str| {
        let args = ["--data", "data.jsonl", "--dtype", "f32", "--json", "--device", device];
        let report = dir.prunectl().args(["eval", "model"]).args(args).run().code(0).json();
        assert!(report["device"].as_str().unwrap().starts_with(device.split(':').next().unwrap()));
        report["nll"].as_f64().unwrap()
    };
    assert!((nll("cuda") - nll("cpu")).abs() < 1e-5);
    dir.prunectl().args(["prune", "model", "--remove", "1", "--out", "pruned", "--device", "cuda"]).run().code(0);
}

#[test]
fn cublaslt_has_to_be_asked_for_and_is_named() {
    let dir = Dir::new();
    records(&dir, 2, 20);
    let eval = |device: &str, gemm: &str| {
        let args = ["--data", "data.jsonl", "--dtype", "bf16", "--json", "--device", device, "--gemm", gemm];
        dir.prunectl().arg("eval").arg(fixture("llama")).args(args)
    };
    eval("cpu", "cublaslt").run().code(2).err("--gemm cublaslt: the CPU has no cuBLASLt");
    if !gpu() || !cublaslt_present() {
        return;
    }
    let reports = ["auto", "native", "cublaslt"].map(|gemm| eval("cuda", gemm).run().code(0).json());
    assert_eq!(reports.each_ref().map(|r| r["gemm"].as_str().unwrap()), ["native", "native", "cublaslt"]);
    assert_eq!(reports[0]["nll"], reports[1]["nll"]);
    let [_, native, cublaslt] = reports.map(|r| r["nll"].as_f64().unwrap());
    // Other orders of sums in f32: some roundings to bf16 go the other way.
    assert!(native != cublaslt && (native - cublaslt).abs() < 1e-3, "{native} and {cublaslt}");

    let args = ["--metric", "nll", "--dtype", "bf16", "--device", "cuda"];
    scan(&dir, "llama", "out", &[&args[..], &["--gemm", "cublaslt"]].concat()).code(0);
    assert_eq!(scan_json(&dir, "out")["gemm"], "cublaslt");
    scan(&dir, "llama", "native", &args).code(0);
    assert_eq!(scan_json(&dir, "native")["gemm"], Value::Null);
}

/// The emulated library lies beside the emulated driver: without its folder there is none.
#[test]
fn a_missing_cublaslt_is_named() {
    if !gpu() || devices().unwrap()[0].name != EMULATED {
        return;
    }
    let dir = Dir::new();
    records(&dir, 2, 20);
    let driver = std::env::split_paths(&std::env::var_os("LD_LIBRARY_PATH").unwrap())
        .map(|folder| folder.join("libcuda.so"))
        .find(|library| library.exists())
        .unwrap();
    dir.write("driver/libcuda.so", std::fs::read(driver).unwrap());
    let run = |args: &[&str]| dir.prunectl().args(args).env("LD_LIBRARY_PATH", dir.path().join("driver").to_str().unwrap()).run();
    let model = fixture("llama");
    let args = ["eval", model.to_str().unwrap(), "--data", "data.jsonl", "--device", "cuda"];
    run(&[&args[..], &["--gemm", "cublaslt"]].concat()).code(1).err("cuBLASLt's library (libcublasLt.so) is not on this machine");
    run(&args).code(0);
    assert_eq!(run(&["doctor", "--json"]).code(0).json()["cuda"]["cublaslt"], Value::Null);
}

/// The emulated GPU is for tests: nobody gets it who did not ask.
#[test]
fn auto_does_not_take_the_emulated_gpu_and_doctor_names_it() {
    if !gpu() || !emulated() {
        return;
    }
    let doctor = |device: &str| Dir::new().prunectl().args(["doctor", "--json", "--device", device]).run().code(0).json();
    assert_eq!(doctor("auto")["device"]["name"], "cpu");
    let report = doctor("cuda");
    assert_eq!(report["device"]["name"], "cuda:0");
    let findings = report["findings"].as_array().unwrap();
    assert!(
        findings.iter().any(|f| f["status"] == "warn" && f["message"].as_str().unwrap().contains("emulated")),
        "{findings:?}"
    );
}

#[test]
fn without_a_driver_auto_takes_the_cpu_and_cuda_fails_in_clear_words() {
    let real = || devices().is_ok_and(|d| d.iter().any(|gpu| gpu.name != EMULATED));
    if !cfg!(target_os = "linux") || real() {
        return;
    }
    let dir = Dir::new();
    records(&dir, 2, 9);
    let eval = |device: &str| {
        let args = ["--data", "data.jsonl", "--json", "--device", device];
        dir.prunectl().arg("eval").arg(fixture("llama")).args(args).env("LD_LIBRARY_PATH", "").run()
    };
    assert_eq!(eval("auto").code(0).json()["device"], "cpu");
    eval("cuda").code(1).err("error: --device cuda: the NVIDIA driver's library (libcuda.so.1) is not").err("help: install");
}
