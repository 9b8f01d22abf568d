//! What NVML tells about the GPUs: figures for reports and for `doctor`, never needed to compute.

use super::driver;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};
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
    /// Temperature in degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Why the clocks are not higher now, in NVML's words (`GPU_IDLE`, `SW_POWER_CAP`); empty where nothing holds them.
    pub throttle_reasons: Option<Vec<String>>,
}

impl Facts {
    fn of(gpu: &Device<'_>) -> Self {
        let reasons = |reasons: ThrottleReasons| reasons.iter_names().map(|(name, _)| name.to_owned()).collect();
        Self {
            name: gpu.name().ok(),
            bus_id: gpu.pci_info().ok().map(|pci| pci.bus_id),
            free_memory: gpu.memory_info().ok().map(|memory| memory.free),
            sm_clock_mhz: gpu.clock_info(Clock::SM).ok(),
            max_sm_clock_mhz: gpu.max_clock_info(Clock::SM).ok(),
            memory_clock_mhz: gpu.clock_info(Clock::Memory).ok(),
            power_mw: gpu.power_usage().ok(),
            power_limit_mw: gpu.enforced_power_limit().ok(),
            temperature_c: gpu.temperature(TemperatureSensor::Gpu).ok(),
            throttle_reasons: gpu.current_throttle_reasons().ok().map(reasons),
        }
    }
}

/// The driver's own version (`580.82.07`) and the facts of every GPU, in NVML's order, which is that of the PCI bus.
/// `Err` says in words why NVML is not there.
///
/// # Errors
/// The library's message.
pub fn query() -> Result<(Option<String>, Vec<Facts>), String> {
    let nvml = Nvml::init().map_err(|e| e.to_string())?;
    let count = nvml.device_count().map_err(|e| e.to_string())?;
    let gpus = (0..count).filter_map(|index| nvml.device_by_index(index).ok()).map(|gpu| Facts::of(&gpu));
    Ok((nvml.sys_driver_version().ok(), gpus.collect()))
}

/// NVML's view of one opened GPU.
#[derive(Debug)]
pub struct Meter {
    nvml: Nvml,
    bus_id: String,
}

impl Meter {
    /// The GPU that the driver describes; `None` where NVML is missing or does not know it.
    #[must_use]
    pub fn open(gpu: &driver::Facts) -> Option<Self> {
        let meter = Self { nvml: Nvml::init().ok()?, bus_id: gpu.bus_id.clone() };
        meter.gpu().is_some().then_some(meter)
    }

    fn gpu(&self) -> Option<Device<'_>> {
        self.nvml.device_by_pci_bus_id(self.bus_id.as_str()).ok()
    }

    /// The driver's own version.
    #[must_use]
    pub fn driver_version(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }

    /// Clocks, power and what holds them, now.
    #[must_use]
    pub fn facts(&self) -> Option<Facts> {
        Some(Facts::of(&self.gpu()?))
    }

    /// Energy drawn since the driver was loaded, in joules (Volta and later), whoever used the GPU.
    #[must_use]
    pub fn energy_joules(&self) -> Option<f64> {
        let millijoules = self.gpu()?.total_energy_consumption().ok()?;
        #[expect(clippy::cast_precision_loss, reason = "2^53 mJ are a card's energy of centuries")]
        let joules = millijoules as f64 / 1e3;
        Some(joules)
    }
}
