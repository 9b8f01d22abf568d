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
    let models = [("llama", "nll"), ("llama-tied-llama3rope", "kl"), ("qwen2", "bi"), ("cohere", "nll"), ("cohere-qknorm", "kl")];
    for (model, metric) in models {
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
fn losses_of_the_fixtures_equal_those_of_transformers() {
    if gpu() {
        crate::eval::losses_equal_those_of_transformers("cuda");
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

/// The llama fixture, its layers over and over: 40 of them, in f32.
fn deep_model(dir: &Dir) -> u64 {
    const TIMES: usize = 10;
    let bytes = std::fs::read(fixture("llama").join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => {
                let layer: usize = layer.parse().unwrap();
                tensors.extend((0..TIMES).map(|n| (format!("model.layers.{}.{rest}", 4 * n + layer), view.clone())));
            }
            None => tensors.push((name, view)),
        }
    }
    let model = safetensors::serialize(tensors, None).unwrap();
    dir.write("deep/model.safetensors", &model);
    let mut config: Value = serde_json::from_slice(&std::fs::read(fixture("llama").join("config.json")).unwrap()).unwrap();
    config["num_hidden_layers"] = (4 * TIMES).into();
    dir.write("deep/config.json", config.to_string());
    model.len() as u64
}

#[test]
fn a_model_larger_than_the_gpus_memory_is_scanned() {
    if !gpu() || !emulated() {
        return;
    }
    let dir = Dir::new();
    records(&dir, 3, 20);
    let bytes = deep_model(&dir);
    let run = |out: &str, memory: u64| {
        let args = ["--data", "data.jsonl", "--remove", "1", "--protect", "0-36", "--dtype", "f32", "--device", "cuda", "-q"];
        let run = dir.prunectl().args(["scan", "deep", "--out", out]).args(args);
        run.env("PRUNECTL_EMULATOR_MEMORY", &memory.to_string()).run().code(0);
        scan_json(&dir, out)
    };
    let (large, small) = (run("large", 1 << 30), run("small", bytes / 2));
    assert!(large["peak_memory_bytes"].as_u64().unwrap() > bytes, "{large}");
    assert!(small["peak_memory_bytes"].as_u64().unwrap() <= bytes / 2, "{small}");
    assert_eq!(small["rounds"][0]["scores"], large["rounds"][0]["scores"]);
}

#[test]
fn two_scans_on_one_gpu_do_not_disturb_each_other() {
    if !gpu() {
        return;
    }
    let dir = Dir::new();
    records(&dir, 4, 20);
    let start = |out: &str| {
        let args = ["--data", "data.jsonl", "--remove", "3", "--protect", "none", "--device", "cuda", "-q", "--out", out];
        dir.prunectl().arg("scan").arg(fixture("qwen2")).args(args).start()
    };
    let rounds = |out: &str| -> Vec<Value> {
        scan_json(&dir, out)["rounds"].as_array().unwrap().iter().map(|round| round["scores"].clone()).collect()
    };
    start("alone").wait().code(0);
    let both = ["first", "second"].map(|out| (out, start(out)));
    for (out, running) in both {
        running.wait().code(0);
        assert_eq!(rounds(out), rounds("alone"), "{out}");
    }
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
    if !gpu() || !emulated() {
        return;
    }
    let dir = model_with_texts("llama");
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

/// A fixture with a tokenizer, as `model`.
fn model_with_texts(name: &str) -> Dir {
    let dir = Dir::new();
    for file in ["config.json", "model.safetensors", "generation_config.json"] {
        dir.write(&format!("model/{file}"), std::fs::read(fixture(name).join(file)).unwrap());
    }
    dir.write("model/tokenizer.json", std::fs::read(fixture("byte-tokenizer").join("tokenizer.json")).unwrap());
    dir
}

#[test]
fn translate_gives_the_cpus_texts_and_prune_runs() {
    if !gpu() {
        return;
    }
    for name in ["llama", "llama-tied-llama3rope", "qwen2", "cohere", "cohere-qknorm"] {
        let dir = model_with_texts(name);
        dir.write("data.jsonl", "{\"source\":\"one two\",\"target\":\"eins\"}\n{\"source\":\"three\",\"target\":\"drei\"}\n");
        let texts = |device: &str| {
            let out = format!("{}.jsonl", device.replace(':', "-"));
            let args = ["--data", "data.jsonl", "--dtype", "f32", "--max-new-tokens", "6", "--device", device, "--out", &out];
            dir.prunectl().args(["translate", "model"]).args(args).run().code(0);
            dir.read(&out)
        };
        assert_eq!(texts("cuda:0"), texts("cpu"), "{name}");
        dir.prunectl().args(["prune", "model", "--remove", "1", "--out", "pruned", "--device", "cuda"]).run().code(0);
    }
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
    if !gpu() || !emulated() {
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
    let report = run(&["doctor", "--json"]).code(0).json();
    assert_eq!(report["cuda"]["cublaslt"], Value::Null);
    // NVML lies there too.
    assert_eq!(report["cuda"]["nvml"], json!([]));
    let nvml = report["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "nvml").unwrap();
    assert!(nvml["message"].as_str().unwrap().contains("libnvidia-ml.so.1") && nvml["help"].is_string(), "{nvml}");
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

/// The figures of emulator/nvml/nvml.cpp, whose energy grows by 0.25 J with each question.
#[test]
fn nvml_tells_doctor_of_clocks_and_power_and_a_scan_of_energy() {
    if !gpu() || !emulated() {
        return;
    }
    let dir = Dir::new();
    let doctor = |args: &[&str]| dir.prunectl().args(["doctor", "--device", "cuda"]).args(args).run().code(0);
    let report = doctor(&["--json"]).json();
    assert_eq!(report["cuda"]["driver"], "580.00.01");
    let facts = json!([{
        "name": EMULATED, "bus_id": "00000000:00:00.0", "free_memory": 3_u64 << 30, "sm_clock_mhz": 1110, "max_sm_clock_mhz": 1980,
        "memory_clock_mhz": 2220, "power_mw": 123_456, "power_limit_mw": 300_000, "temperature_c": 45,
        "throttle_reasons": ["SW_POWER_CAP", "SW_THERMAL_SLOWDOWN"],
    }]);
    assert_eq!(report["cuda"]["nvml"], facts);
    doctor(&[]).out("NVIDIA driver 580.00.01, CUDA 13.0").out(
        "00000000:00:00.0, prunectl emulated device, 3.0 GiB free, 1110 of 1980 MHz, memory 2220 MHz, 123 of 300 W, 45 C, \
         held by SW_POWER_CAP, SW_THERMAL_SLOWDOWN",
    );
    records(&dir, 2, 9);
    scan(&dir, "llama", "gpu", &["--device", "cuda"]).code(0);
    scan(&dir, "llama", "cpu", &["--device", "cpu"]).code(0);
    let (on_gpu, on_cpu) = (scan_json(&dir, "gpu"), scan_json(&dir, "cpu"));
    assert_eq!(on_gpu["energy_joules"], 0.5, "two rounds, asked before and after each");
    assert_eq!(on_cpu.get("energy_joules"), None);
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
