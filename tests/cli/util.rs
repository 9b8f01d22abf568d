//! Runs the program in a folder of its own and says everything when an expectation fails.

#![allow(dead_code, reason = "a toolbox: the files of this binary that come and go each use a part of it")]

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// No command of a test runs longer; a hang fails instead of blocking the suite.
const PATIENCE: Duration = Duration::from_secs(120);

/// A temporary folder, gone when the test ends. Commands run inside it.
#[derive(Debug)]
pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("prunectl-test-").tempdir().expect("a temporary folder"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file (and the folders on its way), returning its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("create folders");
        std::fs::write(&path, content).expect("write a file");
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.path().join(name).exists()
    }

    /// `prunectl`, to run in this folder, without what the caller's environment says about colour.
    pub(crate) fn prunectl(&self) -> Run {
        self.program(moved("PRUNECTL_TEST_PROGRAM", env!("CARGO_BIN_EXE_prunectl")))
    }

    /// Another program, to run likewise.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Run {
        let mut command = Command::new(program);
        command.current_dir(self.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        command.env("TERM", "xterm-256color");
        Run { command, stdin: None }
    }
}

/// What `variable` says where these tests run on another machine than they were built on (scripts/gpu-bundle), else `built`.
fn moved(variable: &str, built: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| built.into(), PathBuf::from)
}

/// The tiny model folders with expected values.
pub(crate) fn fixture(name: &str) -> PathBuf {
    moved("PRUNECTL_TEST_ROOT", env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A command about to run.
#[derive(Debug)]
pub(crate) struct Run {
    command: Command,
    stdin: Option<Vec<u8>>,
}

impl Run {
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Starts it, for tests that interrupt it or close its output; [`Running::wait`] gives the result.
    pub(crate) fn start(mut self) -> Running {
        let line = format!("{:?}", self.command);
        let folder = self.command.get_current_dir().expect("set by Dir").to_path_buf();
        if self.stdin.is_some() {
            self.command.stdin(Stdio::piped());
        }
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("{line}: {e}"));
        if let Some(bytes) = self.stdin {
            let mut pipe = child.stdin.take().expect("piped");
            // The program may end without reading it all.
            std::thread::spawn(move || pipe.write_all(&bytes));
        }
        Running { child, line, folder }
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Ran {
        self.start().wait()
    }
}

/// A command under way.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    line: String,
    folder: PathBuf,
}

impl Running {
    /// Sends a signal by its name, as `INT`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().expect("kill runs");
        assert!(sent.success(), "kill -{name} {}", self.line);
    }

    /// Waits for the end, collecting both streams.
    pub(crate) fn wait(mut self) -> Ran {
        fn collect(stream: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut stream) = stream {
                    stream.read_to_end(&mut bytes).expect("read a stream");
                }
                bytes
            })
        }
        let (out, err) = (collect(self.child.stdout.take()), collect(self.child.stderr.take()));
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            if started.elapsed() > PATIENCE {
                self.child.kill().expect("kill");
                panic!("{} still runs after {PATIENCE:?}", self.line);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let text =
            |handle: std::thread::JoinHandle<Vec<u8>>| String::from_utf8_lossy(&handle.join().expect("joined")).into_owned();
        Ran { status, stdout: text(out), stderr: text(err), line: self.line, folder: self.folder }
    }
}

/// What a command did. Expectations return it, so that they can be chained.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    line: String,
    folder: PathBuf,
}

impl Ran {
    /// It ended with this exit code.
    #[track_caller]
    pub(crate) fn code(self, expected: i32) -> Self {
        self.expect(self.status.code() == Some(expected), &format!("exit code {expected}"));
        self
    }

    /// Standard output holds `part`.
    #[track_caller]
    pub(crate) fn out(self, part: &str) -> Self {
        self.expect(self.stdout.contains(part), &format!("{part:?} on standard output"));
        self
    }

    /// Standard error holds `part`.
    #[track_caller]
    pub(crate) fn err(self, part: &str) -> Self {
        self.expect(self.stderr.contains(part), &format!("{part:?} on standard error"));
        self
    }

    /// Standard output is empty.
    #[track_caller]
    pub(crate) fn no_out(self) -> Self {
        self.expect(self.stdout.is_empty(), "nothing on standard output");
        self
    }

    /// Standard error is empty.
    #[track_caller]
    pub(crate) fn no_err(self) -> Self {
        self.expect(self.stderr.is_empty(), "nothing on standard error");
        self
    }

    /// Standard output is exactly one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(e) => panic!("expected one JSON document on standard output: {e}{}", self.facts()),
        }
    }

    /// Anything else about it.
    #[track_caller]
    pub(crate) fn expect(&self, holds: bool, what: &str) {
        assert!(holds, "expected {what}{}", self.facts());
    }

    fn facts(&self) -> String {
        let mut facts = format!("\n\ncommand: {}\nin {} with", self.line, self.folder.display());
        let mut names: Vec<_> = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        names.sort();
        for name in names {
            let _ = write!(facts, " {}", name.display());
        }
        let _ = write!(facts, "\n{}\n-- stdout --\n{}\n-- stderr --\n{}", self.status, self.stdout, self.stderr);
        facts
    }
}
