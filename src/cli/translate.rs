//! `prunectl translate`.

use super::adapter_args::AdapterArgs;
use super::compute::{ComputeArgs, Opened, plan};
use super::data_args::{DataArgs, digest};
use super::examples;
use super::generate_args::{GenerateArgs, decode, longest};
use super::layers::{LayerList, parse_layers};
use super::ui::Ui;
use crate::data::{Dataset, Tokenizer};
use crate::error::{Error, Result};
use crate::journal::{Begin, Journal};
use crate::model::{Decoder, GenerateOptions, ModelFolder, Residency};
use crate::ops::Backend;
use crate::tasks::generation::{Generated, Text, TextRequest, texts};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Generate greedily from the records of a file
///
/// Writes a line a record, in the order of the input: the record with `hypothesis` and `tokens` added. Until all are there,
/// finished texts lie in FILE.journal, which --resume goes on with.
#[derive(Debug, Args)]
#[command(after_help = examples::translate())]
pub(crate) struct Translate {
    /// Model folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// File to write, JSON lines
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Go on with what an interrupted run has finished
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Overwrite --out where it exists
    #[arg(long)]
    force: bool,
    /// Layers to leave out, as 13,12 or 20-23
    #[arg(long, value_name = "LAYERS", value_parser = parse_layers)]
    skip: Option<LayerList>,
    /// End a text before this (may be repeated)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Serialize)]
struct Report {
    out: String,
    segments: usize,
    truncated: usize,
    generated_tokens: usize,
    /// Until the weights were ready on the device.
    load_seconds: f64,
    /// From then on, prompts included.
    seconds: f64,
    /// `generated_tokens` / `seconds`.
    tokens_per_second: f64,
    max_new_tokens: usize,
}

impl Translate {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let goes_on = self.resume && self.journal().exists();
        if self.out.exists() && !self.force && !goes_on {
            return Err(
                Error::request(format!("{} exists", self.out.display())).with_help("choose another --out, or pass --force")
            );
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::request("--stop takes a text that is not empty"));
        }
        let folder = ModelFolder::open(&self.model)?;
        match self.compute.open(ui, &folder)? {
            Opened::Cpu(backend) => self.run_on(ui, backend, folder),
            #[cfg(feature = "cuda")]
            Opened::Cuda(backend) => self.run_on(ui, *backend, folder),
        }
    }

    fn run_on<B: Backend>(&self, ui: &Ui, backend: B, folder: ModelFolder) -> Result<()> {
        let plan = plan(&folder, self.skip.as_deref())?;
        let adapter = self.adapter.open(&folder)?;
        let dataset = Dataset::open(&self.data.options(folder.config.max_position_embeddings)?)?;
        let tokenizer = Tokenizer::open_for(&dataset, &self.model)?;
        let prompts = dataset.prompts(tokenizer.as_ref(), folder.config.vocab_size)?;
        if prompts.truncated > 0 {
            ui.progress().note(&format!("{} prompts are longer than --seq-len and lost their end", prompts.truncated));
        }
        let memory = self.compute.memory(&backend, &folder, Residency::Resident)?;
        let options = self.generate.options(&folder, tokenizer.as_ref(), &prompts.prompts, memory.budget)?;
        let decoder = Decoder::new(backend, folder, memory.residency, longest(&prompts.prompts, &options))?;
        let decoder = adapter.over(decoder)?;
        let decode = decode(tokenizer.as_ref(), decoder.folder())?;
        let begin =
            Begin { path: &self.journal(), what: "translation", place: &self.out, resume: self.resume, force: self.force };
        let mut header = self.header(&decoder, &dataset, &options, &digest(prompts.prompts.iter().map(|p| p.ids.as_slice())));
        header.extend(adapter.facts());
        let (mut journal, finished) = Journal::open::<Text>(begin, &header)?;
        let before: usize = finished.iter().map(|t| t.tokens).sum();
        let request = TextRequest {
            plan: &plan,
            prompts: &prompts.prompts,
            options: &options,
            stops: &self.stop,
            decode: &decode,
            kept: "finished texts are in the journal beside --out; --resume goes on from there",
        };
        let keep = &mut |text: &Text| journal.append_soon(std::slice::from_ref(text));
        let result = texts(&decoder, &request, finished, ui.progress(), keep);
        // What ended before an interruption or an error lasts too.
        let Generated { texts, load_seconds, seconds } = journal.flush().and(result)?;
        self.write(&dataset, &texts)?;
        journal.remove()?;
        let generated_tokens = texts.iter().map(|t| t.tokens).sum::<usize>() - before;
        #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
        let report = Report {
            out: self.out.display().to_string(),
            segments: texts.len(),
            truncated: prompts.truncated,
            generated_tokens,
            load_seconds,
            seconds,
            tokens_per_second: generated_tokens as f64 / seconds,
            max_new_tokens: options.max_new_tokens,
        };
        let text = format!(
            "{}: {} texts, {} tokens in {:.1} s ({:.0} tokens/s)\n",
            report.out, report.segments, report.generated_tokens, report.seconds, report.tokens_per_second
        );
        ui.print(&report, &text)
    }

    /// Where finished texts wait for the others.
    fn journal(&self) -> PathBuf {
        let mut name = self.out.as_os_str().to_owned();
        name.push(".journal");
        PathBuf::from(name)
    }

    /// What a resumed run must have asked for.
    fn header<B: Backend>(
        &self,
        decoder: &Decoder<B>,
        dataset: &Dataset,
        options: &GenerateOptions,
        tokens: &str,
    ) -> Map<String, Value> {
        let header = [
            ("translation", json!(1)),
            ("model", json!(decoder.folder().fingerprint())),
            ("data", json!(dataset.sha256)),
            ("tokens", json!(tokens)),
            ("skip", json!(self.skip.as_deref().unwrap_or_default())),
            ("stop", json!(self.stop)),
            ("max_new_tokens", json!(options.max_new_tokens)),
            ("eos", json!(options.eos)),
            ("device", json!(decoder.backend().name())),
            ("dtype", json!(decoder.backend().compute_dtype().to_string())),
            ("gemm", json!(decoder.backend().gemm())),
        ];
        header.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
    }

    fn write(&self, dataset: &Dataset, texts: &[Text]) -> Result<()> {
        crate::io::write_with(&self.out, |file| {
            for (record, text) in dataset.records.iter().zip(texts) {
                let mut object = record.object.clone();
                object.insert("hypothesis".into(), Value::from(text.hypothesis.clone()));
                object.insert("tokens".into(), Value::from(text.tokens));
                serde_json::to_writer(&mut *file, &object)?;
                file.write_all(b"\n")?;
            }
            Ok(())
        })
    }
}
