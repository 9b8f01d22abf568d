//! The options of commands that run a model, and the model they open.

use super::ui::Ui;
use crate::backend::cpu::CpuBackend;
#[cfg(feature = "cuda")]
use crate::backend::cuda::CudaBackend;
use crate::error::{Error, Result};
use crate::model::{LayerPlan, ModelFolder, Residency};
use crate::ops::Backend;
use crate::tensor::Dtype;
use clap::{Args, ValueEnum};

/// What matrices are multiplied in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeChoice {
    /// bf16 where the model is stored in it, else f32
    Auto,
    /// Exact to the last bits of f32
    F32,
    /// Operands rounded to bf16, sums in f32
    Bf16,
}

/// Whose matrix products a GPU computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GemmChoice {
    /// native
    Auto,
    /// prunectl's own: results do not depend on what shares the batch
    Native,
    /// NVIDIA's library, for bf16: results may depend on the batch
    Cublaslt,
}

/// How to compute.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Computing")]
pub(crate) struct ComputeArgs {
    /// What matrices are multiplied in; sums are always f32
    #[arg(long, value_enum, default_value = "auto", value_name = "DTYPE")]
    pub(crate) dtype: DtypeChoice,
    /// Memory for hidden states or the KV cache, as 800M or 2G [default: half of what is free beside the weights]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) mem_budget: Option<u64>,
    /// Whose matrix products a GPU computes
    // `auto` takes what every command promises: scores and texts that do not depend on the batch.
    #[arg(long, value_enum, default_value = "auto", value_name = "WHOSE")]
    pub(crate) gemm: GemmChoice,
}

/// The device that --device came to. Commands match on it once and go on with a function that is generic over backends.
pub(crate) enum Opened {
    Cpu(CpuBackend),
    #[cfg(feature = "cuda")]
    Cuda(Box<CudaBackend>),
}

/// The same, once for each of two models.
pub(crate) enum OpenedTwice {
    Cpu([CpuBackend; 2]),
    #[cfg(feature = "cuda")]
    Cuda([Box<CudaBackend>; 2]),
}

/// Where weights are to live, and what is left for hidden states or the KV cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) residency: Residency,
    pub(crate) budget: u64,
}

impl ComputeArgs {
    /// The device asked for, multiplying in the dtype asked for.
    pub(crate) fn open(&self, ui: &Ui, folder: &ModelFolder) -> Result<Opened> {
        match ui.device()?.gpu {
            #[cfg(feature = "cuda")]
            Some(ordinal) => {
                let backend = CudaBackend::new(self.dtype(folder), ordinal)?;
                let backend = if self.gemm == GemmChoice::Cublaslt { backend.with_cublaslt()? } else { backend };
                Ok(Opened::Cuda(Box::new(backend)))
            }
            _ if self.gemm == GemmChoice::Cublaslt => {
                Err(Error::request("--gemm cublaslt: the CPU has no cuBLASLt")
                    .with_help("leave --gemm out, or pass --device cuda"))
            }
            _ => self.cpu(ui, folder).map(Opened::Cpu),
        }
    }

    /// Another model on the CPU.
    pub(crate) fn cpu(&self, ui: &Ui, folder: &ModelFolder) -> Result<CpuBackend> {
        CpuBackend::new(self.dtype(folder), ui.global.threads)
    }

    /// Another model on a GPU that is open: its tensors can be used together with the first one's.
    #[cfg(feature = "cuda")]
    pub(crate) fn same_gpu(&self, first: &CudaBackend, folder: &ModelFolder) -> Result<CudaBackend> {
        first.with_dtype(self.dtype(folder))
    }

    /// --mem-budget, or half of the free main memory (1 GiB where the system does not say).
    pub(crate) fn cpu_budget(&self) -> u64 {
        self.mem_budget.unwrap_or_else(|| crate::machine::available_memory_bytes().map_or(1 << 30, |free| free / 2))
    }

    /// What a training may take for activations, once its model is there: --mem-budget, or half of what is free beside the
    /// `moments` bytes that the optimiser will keep.
    pub(crate) fn training_budget<B: Backend>(&self, backend: &B, moments: u64) -> Result<u64> {
        Ok(match backend.free_memory()? {
            None => self.cpu_budget(),
            Some(free) => self.mem_budget.unwrap_or(free.saturating_sub(moments) / 2),
        })
    }

    /// The same device for two models that are compared.
    pub(crate) fn open_two(&self, ui: &Ui, folders: [&ModelFolder; 2]) -> Result<OpenedTwice> {
        let [a, b] = folders.map(|folder| self.dtype(folder));
        match ui.device()?.gpu {
            #[cfg(feature = "cuda")]
            Some(ordinal) => {
                Ok(OpenedTwice::Cuda([Box::new(CudaBackend::new(a, ordinal)?), Box::new(CudaBackend::new(b, ordinal)?)]))
            }
            _ => {
                let threads = ui.global.threads;
                Ok(OpenedTwice::Cpu([CpuBackend::new(a, threads)?, CpuBackend::new(b, threads)?]))
            }
        }
    }

    fn dtype(&self, folder: &ModelFolder) -> Dtype {
        match self.dtype {
            DtypeChoice::F32 => Dtype::F32,
            DtypeChoice::Bf16 => Dtype::Bf16,
            // f16 has more mantissa than bf16: rounding it would lose what the file holds.
            DtypeChoice::Auto if folder.dtypes().iter().all(|(dtype, _)| *dtype == Dtype::Bf16) => Dtype::Bf16,
            DtypeChoice::Auto => Dtype::F32,
        }
    }

    /// Plans memory. A device that reads weights where the files are mapped keeps them as `wanted` says and gives half of the
    /// free memory (1 GiB where the system does not say). On one with memory of its own weights stay if they leave as much as
    /// --mem-budget says (a quarter of the memory without it); otherwise they are streamed layer by layer.
    pub(crate) fn memory<B: Backend>(&self, backend: &B, folder: &ModelFolder, wanted: Residency) -> Result<Memory> {
        let Some(free) = backend.free_memory()? else {
            return Ok(Memory { residency: wanted, budget: self.cpu_budget() });
        };
        let weights = folder.bytes_in(backend.compute_dtype());
        let rest = free.saturating_sub(weights);
        if rest >= self.mem_budget.unwrap_or(free / 4) {
            Ok(Memory { residency: Residency::Resident, budget: self.mem_budget.unwrap_or(rest / 2) })
        } else {
            Ok(Memory { residency: Residency::Streamed, budget: self.mem_budget.unwrap_or(free / 2) })
        }
    }
}

/// `--skip`: the layers that run.
pub(crate) fn plan(folder: &ModelFolder, skip: Option<&[usize]>) -> Result<LayerPlan> {
    LayerPlan::without(folder.config.num_hidden_layers, skip.unwrap_or_default())
}

/// A count of bytes: digits, then nothing, K, M, G or T (powers of 1024; a B or iB may follow).
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let shift = match unit.trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("expected a number of bytes, as 800M or 2G".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number of bytes, as 800M or 2G".to_owned())?;
    number.checked_mul(1 << shift).filter(|&n| n > 0).ok_or_else(|| "the number of bytes must be above 0 and below 2^64".into())
}

/// The error for metrics that a command does not know.
pub(crate) fn unknown_metric(name: &str, known: &str) -> Error {
    Error::request(format!("unknown metric {name}")).with_help(format!("choose from {known}"))
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("1", 1), ("800M", 800 << 20), ("2G", 2 << 30), ("2GiB", 2 << 30), ("3kb", 3 << 10), ("1T", 1 << 40)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1X", "0", "99999999999T", "1 G"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
