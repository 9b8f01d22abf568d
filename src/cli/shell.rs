//! `prunectl completions` and `prunectl man`: what a shell and `man` need to know about this program.

use super::Cli;
use super::ui::Ui;
use crate::error::{Error, Result};
use crate::io;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;
use std::path::PathBuf;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Serialize)]
struct CompletionsReport {
    shell: String,
    script: String,
}

impl Completions {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "prunectl", &mut script);
        let script = String::from_utf8_lossy(&script).into_owned();
        ui.print(&CompletionsReport { shell: self.shell.to_string(), script: script.clone() }, &script)
    }
}

/// Write one man page a command into a folder
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Folder for the pages; created if it does not exist
    dir: PathBuf,
}

#[derive(Debug, Serialize)]
struct ManReport {
    pages: Vec<PathBuf>,
}

impl Man {
    pub(crate) fn run(self, ui: &Ui) -> Result<()> {
        std::fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        let mut root = Cli::command();
        root.build();
        let commands = std::iter::once(&root).chain(root.get_subcommands().filter(|c| c.get_name() != "help"));
        let mut pages = Vec::new();
        for command in commands {
            let page = clap_mangen::Man::new(command.clone());
            let path = self.dir.join(page.get_filename());
            io::write_with(&path, |file| page.render(file))?;
            pages.push(path);
        }
        let text = pages.iter().fold(String::new(), |text, page| text + &page.display().to_string() + "\n");
        ui.print(&ManReport { pages }, &text)
    }
}
