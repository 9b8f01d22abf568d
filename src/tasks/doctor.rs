//! What this machine and this build offer, what will be used, and what to do about what is missing.
//!
//! [`examine`] looks, [`judge`] decides: everything that can be wrong is a [`Finding`] with a remedy.

use crate::backend::{DeviceChoice, DeviceRequest, choose_device};
use crate::error::Error;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// Less free memory or disk than this is worth a word.
const LITTLE: u64 = 1 << 30;

/// Everything `doctor` tells.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this program.
    pub prunectl: &'static str,
    /// What was found.
    #[serde(flatten)]
    pub facts: Facts,
    /// What the request for a device comes to; `None` if it cannot be met.
    pub device: Option<DeviceChoice>,
    /// What to make of it.
    pub findings: Vec<Finding>,
}

/// The machine and the build.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// The processor.
    pub cpu: Cpu,
    /// Main memory, where the system tells.
    pub memory: Option<Memory>,
    /// Bytes free in the current folder, where the system tells.
    pub disk_free_bytes: Option<u64>,
    /// GPUs, driver and kernels.
    pub cuda: Cuda,
}

/// The processor.
#[derive(Debug, Clone, Serialize)]
pub struct Cpu {
    /// Marketing name, or the architecture.
    pub model: String,
    /// Threads this process may use.
    pub threads: usize,
    /// Those instruction sets it has that our code chooses between.
    pub features: Vec<&'static str>,
}

/// Main memory in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// Installed, or the limit of the container if that is lower.
    pub total_bytes: u64,
    /// What can be used without swapping.
    pub available_bytes: u64,
}

/// GPUs, driver and kernels.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cuda {
    /// Built with the Cargo feature `cuda`.
    pub built_in: bool,
    /// The nvcc that compiled the kernels; `None` if there are none in this build.
    pub kernels_by_nvcc: Option<&'static str>,
    /// libcuda can be loaded.
    pub driver_library: bool,
    /// CUDA version the driver supports.
    pub driver_cuda: Option<String>,
    /// The driver's own version.
    pub driver: Option<String>,
    /// Version of cuBLASLt (`--gemm cublaslt`), where its library can be loaded.
    pub cublaslt: Option<String>,
    /// Why the driver offers no GPU.
    pub problem: Option<String>,
    /// Usable ones, numbered as `--device cuda:N` does.
    pub gpus: Vec<Gpu>,
    /// What NVML says, in the order of the PCI bus.
    #[cfg(feature = "cuda")]
    pub nvml: Vec<crate::backend::cuda::nvml::Facts>,
    /// Why NVML says nothing.
    pub nvml_problem: Option<String>,
}

/// A GPU as the driver describes it.
#[derive(Debug, Clone, Serialize)]
pub struct Gpu {
    /// N of `cuda:N`.
    pub ordinal: usize,
    /// Marketing name.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Memory in bytes, free or not.
    pub total_memory_bytes: u64,
    /// How the kernels of this program reach it: `machine_code`, `ptx` or `none`.
    pub coverage: &'static str,
}

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Info,
    /// Works, but worse than it could.
    Warn,
    /// What was asked for cannot work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `cpu`, `memory`, `disk`, `driver`, `gpu`, `nvml`, `kernels`, `cublaslt`, `device`.
    pub check: &'static str,
    /// How grave.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// Remedy.
    pub help: Option<String>,
}

/// Looks at the machine, and judges it for a device and a number of threads that were asked for. The second part is the
/// error of a request for a device that cannot be met.
#[must_use]
pub fn run(request: DeviceRequest, threads: Option<usize>) -> (Report, Option<Error>) {
    let facts = examine();
    let (device, refused) = match choose_device(request) {
        Ok(choice) => (Some(choice), None),
        Err(error) => (None, Some(error)),
    };
    let mut findings = judge(&facts, request, threads);
    findings.push(match (&device, &refused) {
        (Some(choice), _) => {
            finding("device", Status::Ok, format!("--device {request} computes on {}: {}", choice.name, choice.reason))
        }
        (None, error) => Finding {
            check: "device",
            status: Status::Fail,
            message: error.as_ref().map(ToString::to_string).unwrap_or_default(),
            help: error.as_ref().and_then(Error::help),
        },
    });
    (Report { prunectl: env!("CARGO_PKG_VERSION"), facts, device, findings }, refused)
}

/// Looks, without judging.
#[must_use]
pub fn examine() -> Facts {
    Facts {
        cpu: Cpu {
            model: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            features: cpu_features(),
        },
        memory: memory(),
        disk_free_bytes: disk_free(Path::new(".")),
        cuda: cuda(),
    }
}

/// Findings about everything but the choice of the device.
#[must_use]
pub fn judge(facts: &Facts, request: DeviceRequest, threads: Option<usize>) -> Vec<Finding> {
    let mut findings = vec![judge_cpu(&facts.cpu, threads)];
    if let Some(memory) = facts.memory {
        let message = format!("{} available of {}", gib(memory.available_bytes), gib(memory.total_bytes));
        findings.push(if memory.available_bytes < LITTLE {
            warning("memory", message, "end other programs, or pass a lower --mem-budget to scan")
        } else {
            finding("memory", Status::Ok, message)
        });
    }
    if let Some(free) = facts.disk_free_bytes {
        let message = format!("{} free in the current folder", gib(free));
        findings.push(if free < LITTLE {
            warning("disk", message, "pruned models are about as large as their input: free some space or write elsewhere")
        } else {
            finding("disk", Status::Ok, message)
        });
    }
    judge_cuda(&facts.cuda, request, &mut findings);
    findings
}

fn judge_cpu(cpu: &Cpu, threads: Option<usize>) -> Finding {
    let features = if cpu.features.is_empty() { "no vector instructions we use".into() } else { cpu.features.join(", ") };
    let message = format!("{}: {} thread{}, {features}", cpu.model, cpu.threads, if cpu.threads == 1 { "" } else { "s" });
    if cpu.features.is_empty() {
        return warning("cpu", message, "portable code is used, several times slower than AVX2 or NEON");
    }
    match threads {
        Some(asked) if asked > cpu.threads => warning(
            "cpu",
            format!("{message}; --threads {asked} is more than that"),
            "more threads than the machine has slow it down",
        ),
        _ => finding("cpu", Status::Ok, message),
    }
}

fn judge_cuda(cuda: &Cuda, request: DeviceRequest, findings: &mut Vec<Finding>) {
    // What is missing is a failure only for those who asked for a GPU.
    let missing = |check, message: String, help: &str| {
        let status = if matches!(request, DeviceRequest::Cuda(_)) { Status::Fail } else { Status::Info };
        Finding { status, ..hint(check, message, help) }
    };
    if !cuda.built_in {
        findings.push(missing("kernels", "this build leaves GPUs out".into(), "build with the Cargo feature `cuda`"));
        return;
    }
    findings.push(match cuda.kernels_by_nvcc {
        Some(nvcc) => finding("kernels", Status::Ok, format!("CUDA kernels are in this build, compiled by nvcc {nvcc}")),
        None => missing("kernels", "CUDA kernels are not in this build".into(), "run scripts/cuda-toolchain and build again"),
    });
    if !cuda.driver_library {
        let help = "install the NVIDIA driver if there is an NVIDIA GPU in this machine";
        findings.push(missing("driver", "no NVIDIA driver: libcuda.so.1 is not on this machine".into(), help));
        return;
    }
    match (&cuda.problem, &cuda.driver_cuda) {
        (Some(problem), _) => {
            findings.push(missing(
                "driver",
                problem.clone(),
                "see whether nvidia-smi works; update the driver or restart if it does not",
            ));
        }
        (None, version) => {
            let driver = cuda.driver.as_deref().unwrap_or("of unknown version");
            let version = version.as_deref().unwrap_or("unknown");
            findings.push(finding("driver", Status::Ok, format!("NVIDIA driver {driver}, CUDA {version}")));
        }
    }
    if !cuda.gpus.is_empty() {
        findings.push(match &cuda.cublaslt {
            Some(version) => finding("cublaslt", Status::Ok, format!("cuBLASLt {version} is there for --gemm cublaslt")),
            None => hint(
                "cublaslt",
                "no cuBLASLt (libcublasLt.so): --gemm native only".into(),
                "for --gemm cublaslt put its folder, which CUDA's toolkit has, into LD_LIBRARY_PATH",
            ),
        });
    }
    for gpu in &cuda.gpus {
        let (major, minor) = gpu.compute_capability;
        let what =
            format!("cuda:{} {}, compute capability {major}.{minor}, {}", gpu.ordinal, gpu.name, gib(gpu.total_memory_bytes));
        #[cfg(feature = "cuda")]
        if gpu.name == crate::backend::cuda::driver::EMULATED {
            findings.push(warning(
                "gpu",
                format!("cuda:{} is no GPU: the driver's library is the emulated one of prunectl's own tests", gpu.ordinal),
                "take its folder out of LD_LIBRARY_PATH",
            ));
            continue;
        }
        findings.push(match gpu.coverage {
            "machine_code" => finding("gpu", Status::Ok, what),
            "ptx" => hint(
                "gpu",
                format!("{what}; kernels are compiled for it by the driver at the first start"),
                "for code made for it add its compute capability to build.rs and build again",
            ),
            _ => {
                // Another GPU that is too old is no failure of the one that was asked for.
                let other = matches!(request, DeviceRequest::Cuda(Some(asked)) if asked != gpu.ordinal);
                let message = format!("{what}; older than 8.0, the oldest we have kernels for");
                let help = "use --device cpu, or another GPU";
                if other { hint("gpu", message, help) } else { missing("gpu", message, help) }
            }
        });
    }
    #[cfg(feature = "cuda")]
    findings.extend(cuda.nvml.iter().map(|gpu| finding("nvml", Status::Info, nvml_line(gpu))));
    if let Some(problem) = cuda.nvml_problem.as_ref().filter(|_| !cuda.gpus.is_empty()) {
        findings.push(hint(
            "nvml",
            format!("no clocks, power and energy in reports: {problem}"),
            "install NVML (libnvidia-ml.so.1), which comes with the NVIDIA driver",
        ));
    }
}

#[cfg(feature = "cuda")]
fn nvml_line(gpu: &crate::backend::cuda::nvml::Facts) -> String {
    let mut parts = vec![gpu.bus_id.clone().unwrap_or_else(|| "GPU".into()), gpu.name.clone().unwrap_or_default()];
    parts.extend(gpu.free_memory.map(|bytes| format!("{} free", gib(bytes))));
    parts.extend(gpu.sm_clock_mhz.map(|now| match gpu.max_sm_clock_mhz {
        Some(most) => format!("{now} of {most} MHz"),
        None => format!("{now} MHz"),
    }));
    parts.extend(gpu.memory_clock_mhz.map(|now| format!("memory {now} MHz")));
    parts.extend(gpu.power_mw.map(|now| match gpu.power_limit_mw {
        Some(most) => format!("{} of {} W", now / 1000, most / 1000),
        None => format!("{} W", now / 1000),
    }));
    parts.extend(gpu.temperature_c.map(|now| format!("{now} C")));
    parts
        .extend(gpu.throttle_reasons.as_ref().filter(|reasons| !reasons.is_empty()).map(|r| format!("held by {}", r.join(", "))));
    parts.join(", ")
}

fn finding(check: &'static str, status: Status, message: String) -> Finding {
    Finding { check, status, message, help: None }
}

fn hint(check: &'static str, message: String, help: &str) -> Finding {
    Finding { check, status: Status::Info, message, help: Some(help.into()) }
}

fn warning(check: &'static str, message: String, help: &str) -> Finding {
    Finding { status: Status::Warn, ..hint(check, message, help) }
}

/// `23.4 GiB`.
fn gib(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one decimal")]
    let value = bytes as f64 / f64::from(1_u32 << 30);
    format!("{value:.1} GiB")
}

/// The value of the first `key : value` line of a file of /proc.
fn field(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().to_owned())
}

fn memory() -> Option<Memory> {
    let bytes = |key| Some(field("/proc/meminfo", key)?.strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024));
    let (total, available) = (bytes("MemTotal")?, bytes("MemAvailable")?);
    // In a container: its limit, and what it has used of it.
    let number = |name: &str| fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok()?.trim().parse::<u64>().ok();
    Some(match number("memory.max").filter(|&limit| limit < total) {
        Some(limit) => {
            let unused = limit.saturating_sub(number("memory.current").unwrap_or(0));
            Memory { total_bytes: limit, available_bytes: available.min(unused) }
        }
        None => Memory { total_bytes: total, available_bytes: available },
    })
}

#[cfg(unix)]
fn disk_free(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn disk_free(_folder: &Path) -> Option<u64> {
    None
}

fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("AVX2", is_x86_feature_detected!("avx2")),
            ("FMA", is_x86_feature_detected!("fma")),
            ("AVX512F", is_x86_feature_detected!("avx512f")),
            ("AVX512-BF16", is_x86_feature_detected!("avx512bf16")),
        ];
        found.extend(all.into_iter().filter(|&(_, has)| has).map(|(name, _)| name));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let all = [
            ("NEON", std::arch::is_aarch64_feature_detected!("neon")),
            ("BF16", std::arch::is_aarch64_feature_detected!("bf16")),
        ];
        found.extend(all.into_iter().filter(|&(_, has)| has).map(|(name, _)| name));
    }
    found
}

#[cfg(feature = "cuda")]
fn cuda() -> Cuda {
    use crate::backend::cuda::kernels::{Coverage, NVCC_VERSION, coverage};
    use crate::backend::cuda::{driver, nvml};
    let ((driver_version, nvml), nvml_problem) = match nvml::query() {
        Ok(told) => (told, None),
        Err(problem) => (Default::default(), Some(problem)),
    };
    let mut cuda = Cuda {
        built_in: true,
        kernels_by_nvcc: NVCC_VERSION,
        driver_library: driver::library_present(),
        driver: driver_version,
        nvml,
        nvml_problem,
        ..Cuda::default()
    };
    if !cuda.driver_library {
        return cuda;
    }
    cuda.cublaslt = driver::cublaslt_version().map(|(major, minor, patch)| format!("{major}.{minor}.{patch}"));
    match driver::version().and_then(|version| Ok((version, driver::devices()?))) {
        Ok(((major, minor), devices)) => {
            cuda.driver_cuda = Some(format!("{major}.{minor}"));
            cuda.gpus = devices
                .into_iter()
                .map(|gpu| Gpu {
                    ordinal: gpu.ordinal,
                    coverage: match coverage(gpu.compute_capability.0, gpu.compute_capability.1) {
                        Coverage::MachineCode => "machine_code",
                        Coverage::Ptx => "ptx",
                        Coverage::None => "none",
                    },
                    name: gpu.name,
                    compute_capability: gpu.compute_capability,
                    total_memory_bytes: gpu.total_memory,
                })
                .collect();
        }
        Err(error) => cuda.problem = Some(error.to_string()),
    }
    cuda
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Cuda {
    Cuda::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(cuda: Cuda) -> Facts {
        Facts {
            cpu: Cpu { model: "EPYC".into(), threads: 2, features: vec!["AVX2", "FMA"] },
            memory: Some(Memory { total_bytes: 24 << 30, available_bytes: 20 << 30 }),
            disk_free_bytes: Some(100 << 30),
            cuda,
        }
    }

    fn statuses(findings: &[Finding]) -> Vec<(&'static str, Status)> {
        findings.iter().map(|f| (f.check, f.status)).collect()
    }

    #[test]
    fn a_machine_without_a_gpu_is_fine_unless_one_is_asked_for() {
        let facts = facts(Cuda { built_in: true, ..Cuda::default() });
        let auto = judge(&facts, DeviceRequest::Auto, None);
        let fine = [
            ("cpu", Status::Ok),
            ("memory", Status::Ok),
            ("disk", Status::Ok),
            ("kernels", Status::Info),
            ("driver", Status::Info),
        ];
        assert_eq!(statuses(&auto), fine);
        let asked = judge(&facts, DeviceRequest::Cuda(None), None);
        assert_eq!(statuses(&asked)[3..], [("kernels", Status::Fail), ("driver", Status::Fail)]);
        assert!(asked[3..].iter().all(|f| f.help.is_some()), "{asked:?}");
    }

    #[test]
    fn an_old_gpu_is_named_with_a_remedy() {
        let gpu =
            |coverage| Gpu { ordinal: 0, name: "T4".into(), compute_capability: (7, 5), total_memory_bytes: 16 << 30, coverage };
        let cuda = |coverage| Cuda { built_in: true, driver_library: true, gpus: vec![gpu(coverage)], ..Cuda::default() };
        let of_gpu = |coverage| judge(&facts(cuda(coverage)), DeviceRequest::Cuda(Some(0)), None).pop().unwrap();
        assert_eq!(
            (of_gpu("machine_code").status, of_gpu("ptx").status, of_gpu("none").status),
            (Status::Ok, Status::Info, Status::Fail)
        );
        assert!(of_gpu("none").message.contains("cuda:0 T4, compute capability 7.5, 16.0 GiB"));
    }

    #[test]
    fn another_gpu_that_is_too_old_is_no_failure_of_the_one_asked_for() {
        let gpu = |ordinal, coverage| Gpu {
            ordinal,
            name: "GPU".into(),
            compute_capability: (7, 5),
            total_memory_bytes: 16 << 30,
            coverage,
        };
        let gpus = vec![gpu(0, "none"), gpu(1, "machine_code")];
        let facts = facts(Cuda { built_in: true, kernels_by_nvcc: Some("13.0"), driver_library: true, gpus, ..Cuda::default() });
        let fails = |asked| judge(&facts, DeviceRequest::Cuda(Some(asked)), None).iter().any(|f| f.status == Status::Fail);
        assert!(fails(0) && !fails(1));
    }

    #[test]
    fn whatever_is_missing_has_a_remedy() {
        let gpu = |coverage| Gpu { ordinal: 0, name: "GPU".into(), compute_capability: (13, 0), total_memory_bytes: 1, coverage };
        let cuda = Cuda { built_in: true, driver_library: true, nvml_problem: Some("no NVML".into()), ..Cuda::default() };
        for coverage in ["machine_code", "ptx", "none"] {
            let findings = judge(&facts(Cuda { gpus: vec![gpu(coverage)], ..cuda.clone() }), DeviceRequest::Auto, None);
            for check in ["cublaslt", "nvml", "kernels"] {
                assert!(findings.iter().any(|f| f.check == check && f.help.is_some()), "{check}: {findings:?}");
            }
            assert!(findings.iter().all(|f| f.status == Status::Ok || f.help.is_some()), "{findings:?}");
        }
    }

    #[test]
    fn shortages_are_warnings_with_a_remedy() {
        let mut poor = facts(Cuda::default());
        poor.memory = Some(Memory { total_bytes: 2 << 30, available_bytes: 1 << 29 });
        poor.disk_free_bytes = Some(0);
        poor.cpu.features.clear();
        let findings = judge(&poor, DeviceRequest::Auto, None);
        assert_eq!(statuses(&findings)[..3], [("cpu", Status::Warn), ("memory", Status::Warn), ("disk", Status::Warn)]);
        assert!(findings[..3].iter().all(|f| f.help.is_some()));
        assert_eq!(judge(&facts(Cuda::default()), DeviceRequest::Auto, Some(3))[0].status, Status::Warn);
    }

    #[test]
    fn a_broken_driver_is_told_in_its_own_words() {
        let problem = Some("cuInit: no CUDA-capable device is detected".into());
        let cuda = Cuda { built_in: true, driver_library: true, problem, ..Cuda::default() };
        let last = judge(&facts(cuda), DeviceRequest::Auto, None).pop().unwrap();
        assert_eq!((last.check, last.status), ("driver", Status::Info));
        assert!(last.message.starts_with("cuInit:"));
    }
}
