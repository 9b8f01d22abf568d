//! What NVML tells about the GPUs: figures for reports and for `doctor`, never needed to compute.

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;
use serde::Serialize;

/// Facts of one GPU at this moment; what it does not tell is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Marketing name.
    pub name: Option<String>,
    /// PCI bus id, which tells GPUs of one name apart.
    pub bus_id: Option<String>,
    /// Free memory in bytes.
    pub free_memory: Option<u64>,
    /// Clock of the multiprocessors in MHz, now.
    pub sm_clock_mhz: Option<u32>,
    /// The highest it goes to.
    pub max_sm_clock_mhz: Option<u32>,
    /// Clock of the memory in MHz, now.
    pub memory_clock_mhz: Option<u32>,
    /// Power drawn in milliwatts, now.
    pub power_mw: Option<u32>,
    /// The limit in force, in milliwatts.
    pub power_limit_mw: Option<u32>,
}

/// The driver's own version (`580.82.07`) and the facts of every GPU, in NVML's order, which is that of the PCI bus.
/// `Err` says in words why NVML is not there.
///
/// # Errors
/// The library's message.
pub fn query() -> Result<(Option<String>, Vec<Facts>), String> {
    let nvml = Nvml::init().map_err(|e| e.to_string())?;
    let count = nvml.device_count().map_err(|e| e.to_string())?;
    let gpus = (0..count).filter_map(|index| nvml.device_by_index(index).ok()).map(|gpu| Facts {
        name: gpu.name().ok(),
        bus_id: gpu.pci_info().ok().map(|pci| pci.bus_id),
        free_memory: gpu.memory_info().ok().map(|memory| memory.free),
        sm_clock_mhz: gpu.clock_info(Clock::SM).ok(),
        max_sm_clock_mhz: gpu.max_clock_info(Clock::SM).ok(),
        memory_clock_mhz: gpu.clock_info(Clock::Memory).ok(),
        power_mw: gpu.power_usage().ok(),
        power_limit_mw: gpu.enforced_power_limit().ok(),
    });
    Ok((nvml.sys_driver_version().ok(), gpus.collect()))
}
