//! Compiles kernels/*.cu with nvcc, one fatbin a file, and writes `cuda_kernels.rs`: a constant for each kernel, so that a
//! launch of one that does not exist does not compile, and the fatbins themselves.
//!
//! nvcc is looked for in NVCC, CUDA_HOME, CUDA_PATH, PATH and target/cuda-toolchain (`scripts/cuda-toolchain` installs it
//! there). Without one the crate builds all the same, without fatbins; `NVCC=none` asks for that. The architectures come
//! from the list below, never from the machine's own GPU: two machines build the same program.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "Cargo reads directives on standard output")]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

type Result<T, E = String> = std::result::Result<T, E>;

/// Machine code for these compute capabilities. `a`: with the features of exactly this one (wgmma and TMA of Hopper).
/// Code for x.y runs on every x.z with z >= y; with `a`, on x.y only.
const MACHINE_CODE: [(u32, u32, &str); 6] = [(8, 0, ""), (8, 6, ""), (8, 9, ""), (9, 0, "a"), (10, 0, ""), (12, 0, "")];
/// PTX for GPUs that none of these covers: the lowest for those between, the highest for those to come.
const PTX: [(u32, u32); 2] = [(8, 0), (12, 0)];
/// The first nvcc that knows them all.
const OLDEST_NVCC: (u32, u32) = (12, 8);

/// All warnings are errors; IEEE division and square root, no fast-math.
const FLAGS: [&str; 5] = ["-std=c++17", "-O3", "-fatbin", "-Werror=all-warnings", "-Xfatbin=-compress-all"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let kernels = root.join("kernels");
    // The folders too, so that a new file is noticed.
    println!("cargo:rerun-if-changed={}", kernels.display());
    let sources = files(&kernels, "cu")?;
    let headers = files(&kernels.join("include"), "cuh")?;
    for file in sources.iter().chain(&headers) {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let nvcc = Nvcc::find(&root)?;
    let cache = fatbin_cache(&out)?;
    let mut text = constants(&sources)?;
    let mut images = String::new();
    if let Some(nvcc) = &nvcc {
        for source in &sources {
            let image = nvcc.compile(source, &root, &cache)?;
            let _ = write!(images, "(\"{}\", include_bytes!({image:?})), ", stem(source));
        }
    }
    let images = if nvcc.is_some() { format!("Some(&[{images}])") } else { "None".into() };
    let version = nvcc.map(|n| n.version);
    let _ = write!(
        text,
        "/// The fatbins by the name of their source file; `None` where nvcc was missing when this was built.\n\
         pub const CUDA_KERNELS: Option<&[(&str, &[u8])]> = {images};\n\
         /// Version of the compiler they came from.\n\
         pub const NVCC_VERSION: Option<&str> = {version:?};\n\
         /// Compute capabilities with machine code, and whether it runs on exactly that one only.\n\
         pub const MACHINE_CODE: &[(u32, u32, bool)] = &{:?};\n\
         /// Compute capabilities with PTX, which the driver compiles for them and all later ones.\n\
         pub const PTX: &[(u32, u32)] = &{PTX:?};\n",
        MACHINE_CODE.map(|(major, minor, exact)| (major, minor, !exact.is_empty())),
    );
    write(&out.join("cuda_kernels.rs"), text.as_bytes())
}

/// Where fatbins lie: one folder of the target folder, for all profiles, since compiling them takes minutes; OUT_DIR where
/// that is not TARGET/PROFILE/build/CRATE/out.
fn fatbin_cache(out: &Path) -> Result<PathBuf> {
    let builds = out.ancestors().nth(2).filter(|folder| folder.ends_with("build"));
    let target = builds.and_then(|folder| folder.ancestors().nth(2));
    let cache = target.map_or_else(|| out.to_path_buf(), |folder| folder.join("fatbins"));
    fs::create_dir_all(&cache).map_err(|e| format!("cannot create {}: {e}", cache.display()))?;
    Ok(cache)
}

struct Nvcc {
    path: PathBuf,
    version: String,
}

impl Nvcc {
    /// The first usable one. One that was named has to work; one that was merely found may be too old.
    fn find(root: &Path) -> Result<Option<Self>> {
        if let Some(named) = env::var_os("NVCC") {
            if named.is_empty() || named == "none" {
                return Ok(None);
            }
            return Self::check(PathBuf::from(named)).map(Some).map_err(|e| format!("NVCC: {e}"));
        }
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|home| PathBuf::from(home).join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let toolchain = fs::read_dir(root.join("target/cuda-toolchain/lib"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|python| python.path().join("site-packages/nvidia/cu13/bin"));
        let folders = homes.chain(env::split_paths(&path).collect::<Vec<_>>()).chain(toolchain);
        let mut refused = None;
        for candidate in
            folders.map(|folder| folder.join(if cfg!(windows) { "nvcc.exe" } else { "nvcc" })).filter(|p| p.is_file())
        {
            match Self::check(candidate) {
                Ok(nvcc) => return Ok(Some(nvcc)),
                Err(problem) => refused = Some(problem),
            }
        }
        if let Some(problem) = refused {
            println!(
                "cargo:warning={problem}; building without CUDA kernels (scripts/cuda-toolchain installs an nvcc that works)"
            );
        }
        Ok(None)
    }

    fn check(path: PathBuf) -> Result<Self> {
        let output = Command::new(&path).arg("--version").output().map_err(|e| format!("{}: {e}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_once(", V").and_then(|(_, rest)| rest.split_whitespace().next()).unwrap_or_default().to_owned();
        let mut numbers = version.split('.').map(str::parse::<u32>);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            return Err(format!("{} --version does not say which nvcc it is", path.display()));
        };
        if (major, minor) < OLDEST_NVCC {
            let (a, b) = OLDEST_NVCC;
            return Err(format!(
                "{} is nvcc {version}, and the architectures we build for need {a}.{b} or later",
                path.display()
            ));
        }
        Ok(Self { path, version })
    }

    /// The fatbin of one file in the folder `cache`, made unless one from the same source, headers, flags and compiler is there.
    /// Names are taken from `root`, so that a copy of the repository may take over the fatbins.
    fn compile(&self, source: &Path, root: &Path, cache: &Path) -> Result<PathBuf> {
        let flags = flags();
        let include = root.join("kernels/include");
        let files = with_headers(source, &include)?;
        let mut hasher = DefaultHasher::new();
        (self.path.strip_prefix(root).unwrap_or(&self.path), &self.version, &flags).hash(&mut hasher);
        for file in &files {
            (file.file_name(), read(file)?).hash(&mut hasher);
        }
        let image = cache.join(format!("{}-{:016x}.fatbin", stem(source), hasher.finish()));
        if image.is_file() {
            return Ok(image);
        }
        // Under another name until it is whole: builds of two profiles may run at once.
        let unfinished = image.with_extension(format!("{}.tmp", std::process::id()));
        let dependencies = unfinished.with_extension("d.tmp");
        let mut command = Command::new(&self.path);
        command.args(&flags).arg("--threads").arg(env::var("NUM_JOBS").unwrap_or_else(|_| "1".into()));
        command.arg("-MD").arg("-MF").arg(&dependencies).arg("-I").arg(&include).arg("-o").arg(&unfinished).arg(source);
        let output = command.output().map_err(|e| format!("{}: {e}", self.path.display()))?;
        if !output.status.success() {
            return Err(format!(
                "nvcc could not compile {}\n{}{}\nhelp: NVCC=none builds without CUDA kernels",
                source.display(),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        // A header that the name of the fatbin does not stand for would leave an old fatbin in use when it changes.
        let read_by_nvcc = prerequisites(&read(&dependencies)?);
        fs::remove_file(&dependencies).map_err(|e| format!("cannot remove {}: {e}", dependencies.display()))?;
        if let Some(overlooked) = overlooked(&read_by_nvcc, &root.join("kernels"), &files)? {
            return Err(format!(
                "{} includes {} in a way that build.rs does not see\nhelp: write #include \"name\"",
                source.display(),
                overlooked.display()
            ));
        }
        fs::rename(&unfinished, &image).map_err(|e| format!("cannot write {}: {e}", image.display()))?;
        Ok(image)
    }
}

/// A source file and the headers of ours that it includes, directly or not. Others are the compiler's.
fn with_headers(source: &Path, include: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::from([canonical(source)?]);
    let mut unread = vec![source.to_path_buf()];
    while let Some(file) = unread.pop() {
        let folder = file.parent().unwrap_or(include);
        for name in read(&file)?.lines().filter_map(included) {
            // Where the compiler looks: beside the file, then in the folder of headers.
            let Some(header) = [folder.join(name), include.join(name)].into_iter().find(|path| path.is_file()) else { continue };
            if found.insert(canonical(&header)?) {
                unread.push(header);
            }
        }
    }
    Ok(found)
}

/// `#include "pack.cuh"` -> `pack.cuh`.
fn included(line: &str) -> Option<&str> {
    let name = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim_start();
    let (name, end) = name.strip_prefix('"').map(|n| (n, '"')).or_else(|| name.strip_prefix('<').map(|n| (n, '>')))?;
    name.split_once(end).map(|(name, _)| name)
}

/// The files that a rule for make names behind its colon.
fn prerequisites(rule: &str) -> Vec<PathBuf> {
    const SPACE: &str = "\0";
    let rule = rule.replace("\\\r\n", " ").replace("\\\n", " ").replace("\\ ", SPACE);
    let words = rule.split_whitespace().map(|word| word.replace(SPACE, " "));
    words.skip_while(|word| !word.ends_with(':')).skip(1).map(PathBuf::from).collect()
}

/// A file of the folder `kernels` among what the compiler read that is not one of `files`.
fn overlooked(read: &[PathBuf], kernels: &Path, files: &BTreeSet<PathBuf>) -> Result<Option<PathBuf>> {
    let kernels = canonical(kernels)?;
    for file in read {
        let file = canonical(file)?;
        if file.starts_with(&kernels) && !files.contains(&file) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| format!("cannot open {}: {e}", path.display()))
}

fn flags() -> Vec<String> {
    let mut flags: Vec<String> = FLAGS.iter().map(ToString::to_string).collect();
    let codes = MACHINE_CODE.iter().map(|(major, minor, exact)| {
        let arch = format!("{major}{minor}{exact}");
        format!("-gencode=arch=compute_{arch},code=sm_{arch}")
    });
    flags.extend(codes);
    flags.extend(PTX.iter().map(|(major, minor)| format!("-gencode=arch=compute_{major}{minor},code=compute_{major}{minor}")));
    flags
}

/// A constant for every `extern "C" __global__` function.
fn constants(sources: &[PathBuf]) -> Result<String> {
    let mut homes = BTreeMap::new();
    let mut text = String::new();
    for source in sources {
        let file = stem(source);
        for (name, parameters) in kernels(&read(source)?) {
            if let Some(other) = homes.insert(name.clone(), file.clone()) {
                return Err(format!("kernel {name} stands in kernels/{other}.cu and in kernels/{file}.cu"));
            }
            let _ = writeln!(text, "/// `{name}` of kernels/{file}.cu.");
            let _ = writeln!(
                text,
                "pub const {}: Kernel =\n    Kernel {{ name: {name:?}, file: {file:?}, parameters: {parameters:?} }};",
                name.to_uppercase()
            );
        }
    }
    Ok(text)
}

/// Names and parameter types of the kernels defined in a source text, comments left out.
fn kernels(source: &str) -> Vec<(String, String)> {
    let code: String =
        source.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code)).collect::<Vec<_>>().join(" ");
    code.split("extern \"C\" __global__")
        .skip(1)
        .filter_map(|rest| {
            // `void __launch_bounds__(256) name(`: the parenthesis of the bounds is not that of the arguments.
            let rest = match rest.split_once("__launch_bounds__") {
                Some((before, after)) if !before.contains('(') => after.split_once(')')?.1,
                _ => rest,
            };
            let (before, after) = rest.split_once('(')?;
            let parameters = after.split_once(')')?.0.split(',').map(parameter_type).collect::<Vec<_>>().join(", ");
            Some((before.split_whitespace().last()?.to_owned(), parameters))
        })
        .collect()
}

/// `const float* __restrict__ x` -> `const float*`; `const __grid_constant__ TensorMap x` -> `TensorMap`: what is passed by
/// value has no const in its type.
fn parameter_type(parameter: &str) -> String {
    let words: Vec<&str> = parameter.split_whitespace().filter(|word| !word.starts_with("__")).collect();
    let name = words[..words.len().saturating_sub(1)].join(" ");
    match name.strip_prefix("const ") {
        Some(by_value) if !name.contains('*') => by_value.to_owned(),
        _ => name,
    }
}

/// Files with an extension, in the order of their names. A folder that is not there has none.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
            let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
            if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

fn variable(name: &str) -> Result<String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}
