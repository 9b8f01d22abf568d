//! `prunectl doctor`.

use crate::util::Dir;

#[test]
fn tells_what_is_there_and_what_will_be_used() {
    let ran = Dir::new().prunectl().arg("doctor").run().code(0).no_err();
    for word in ["cpu ", "memory ", "disk ", "kernels ", "--device auto computes on "] {
        assert!(ran.stdout.contains(word), "{word} is missing:\n{}", ran.stdout);
    }
}

#[test]
fn json_holds_facts_and_findings() {
    let ran = Dir::new().prunectl().args(["doctor", "--json", "--device", "cpu"]).run().code(0).no_err();
    let report = ran.json();
    assert_eq!(report["prunectl"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["device"]["name"], "cpu");
    assert!(report["cpu"]["threads"].as_u64().unwrap() >= 1);
    assert!(report["cuda"]["gpus"].is_array());
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().all(|f| ["ok", "info", "warn", "fail"].contains(&f["status"].as_str().unwrap())), "{findings:?}");
    assert_eq!(findings.last().unwrap()["check"], "device");
}

#[cfg(target_os = "linux")]
#[test]
fn figures_are_those_of_the_system() {
    let report = Dir::new().prunectl().args(["doctor", "--json"]).run().code(0).json();
    let nproc = Dir::new().program("nproc").run().code(0).stdout;
    assert_eq!(report["cpu"]["threads"].to_string(), nproc.trim());
    let free = Dir::new().program("df").args(["--output=avail", "-B1", "."]).run().code(0).stdout;
    let free: f64 = free.lines().last().unwrap().trim().parse().unwrap();
    let told = report["disk_free_bytes"].as_f64().unwrap();
    assert!((told - free).abs() < 4e9, "df says {free}, doctor {told}");
}

#[test]
fn a_gpu_that_cannot_be_used_fails_after_the_report() {
    let ran = Dir::new().prunectl().args(["doctor", "--device", "cuda:99"]).run().code(1);
    let ran = ran.out("fail  device").err("error: --device cuda:99").err("help: ");
    assert!(ran.stdout.contains("help: "), "{}", ran.stdout);
    let report = Dir::new().prunectl().args(["doctor", "--device", "cuda:99", "--json"]).run().code(1).json();
    assert!(report["device"].is_null());
}

#[test]
fn colour_marks_the_status_when_asked_for() {
    let dir = Dir::new();
    assert!(dir.prunectl().args(["doctor", "--color=always"]).run().code(0).stdout.contains("\x1b["));
    assert!(!dir.prunectl().args(["doctor", "--color=auto"]).run().code(0).stdout.contains("\x1b["));
    assert!(!dir.prunectl().args(["doctor", "--color=always", "--json"]).run().code(0).stdout.contains("\x1b["));
}
