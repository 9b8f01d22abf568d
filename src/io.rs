//! Files: open, map, and write so that nothing that was there is lost. Every error carries the path.
//!
//! Writing goes to a temporary name in the same folder, is fsynced, then renamed over the target, and the folder is
//! fsynced: a crash at any instant leaves either the old file or the new one.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Reads a whole file.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io("read", path))
}

/// Reads a whole file as UTF-8.
///
/// # Errors
/// [`Error::Io`], or [`Error::Data`] naming the offset of the first byte that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|e| Error::data(path, format!("byte {}", e.utf8_error().valid_up_to()), "not valid UTF-8"))
}

/// Maps a file read-only. An empty file is an error: nothing we map may be empty.
///
/// # Errors
/// [`Error::Io`] with the path; [`Error::Data`] if the file is empty.
pub fn map(path: &Path) -> Result<memmap2::Mmap> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    if length == 0 {
        return Err(Error::data(path, "", "the file is empty"));
    }
    #[expect(unsafe_code, reason = "mapping a file is one of the four places where unsafe is allowed")]
    // SAFETY: the map is read-only and private to us; every read is bounds-checked against the length taken here. Another
    // process that truncates the file while we read would end ours with SIGBUS: the documented limit of mapping files.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("map", path))?;
    Ok(map)
}

/// Replaces `path` by `bytes`, atomically and durably.
///
/// # Errors
/// [`Error::Io`]; on failure `path` is as it was and the temporary file is gone.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// Replaces `path` by what `fill` writes, atomically and durably. `fill` gets a buffered writer.
///
/// # Errors
/// [`Error::Io`]; on failure `path` is as it was and the temporary file is gone.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut io::BufWriter<&File>) -> io::Result<()>) -> Result<()> {
    let folder = parent(path);
    let temporary = tempfile::Builder::new()
        .prefix(".prunectl-")
        .suffix(".tmp")
        .tempfile_in(&folder)
        .map_err(Error::io("create a file in", &folder))?;
    let mut writer = io::BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut writer).and_then(|()| writer.flush()).map_err(Error::io("write", path))?;
    drop(writer);
    temporary.as_file().sync_all().map_err(Error::io("write", path))?;
    set_default_mode(temporary.as_file()).map_err(Error::io("write", path))?;
    temporary.persist(path).map_err(|e| Error::Io { action: "rename to", path: path.to_path_buf(), source: e.error })?;
    sync_folder(&folder)
}

/// Temporary files are created 0600; what we leave behind gets what `open` would have given (0644 or less).
#[cfg(unix)]
fn set_default_mode(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_default_mode(_file: &File) -> io::Result<()> {
    Ok(())
}

/// The folder a path lies in (`.` for a bare name).
#[must_use]
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes renames in `folder` durable.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("sync", folder))?;
    }
    Ok(())
}

/// A folder that is filled under a temporary name beside its target and appears there only when complete.
/// Dropped without [`NewFolder::commit`], it is removed with all its content.
#[derive(Debug)]
pub struct NewFolder {
    temporary: tempfile::TempDir,
    target: PathBuf,
    replace: bool,
}

impl NewFolder {
    /// Begins a folder that will become `target`. With `force` an existing `target` is replaced at commit, and kept until then.
    ///
    /// # Errors
    /// [`Error::Request`] if `target` exists and `force` is false; [`Error::Io`].
    pub fn begin(target: &Path, force: bool) -> Result<Self> {
        if target.exists() && !force {
            return Err(Error::request(format!("{} exists", target.display()))
                .with_help("choose another --out, or pass --force to replace it"));
        }
        if target.exists() && !target.is_dir() {
            return Err(Error::request(format!("{} exists and is not a folder", target.display())));
        }
        let folder = parent(target);
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let temporary = tempfile::Builder::new()
            .prefix(".prunectl-")
            .suffix(".tmp")
            .tempdir_in(&folder)
            .map_err(Error::io("create a folder in", &folder))?;
        Ok(Self { temporary, target: target.to_path_buf(), replace: force })
    }

    /// Where to write meanwhile.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Fsyncs every file, then renames the folder to its target. A replaced folder is removed last.
    ///
    /// # Errors
    /// [`Error::Io`]; the former content of the target is still there.
    pub fn commit(self) -> Result<()> {
        let Self { temporary, target, replace } = self;
        for entry in fs::read_dir(temporary.path()).map_err(Error::io("read", temporary.path()))? {
            let path = entry.map_err(Error::io("read", temporary.path()))?.path();
            File::open(&path).and_then(|f| f.sync_all()).map_err(Error::io("sync", &path))?;
        }
        sync_folder(temporary.path())?;
        let folder = parent(&target);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).map_err(Error::io("write", &target))?;
        }
        let old = if replace && target.exists() {
            let aside = tempfile::Builder::new()
                .prefix(".prunectl-old-")
                .tempdir_in(&folder)
                .map_err(Error::io("create a folder in", &folder))?;
            let old = aside.path().join("replaced");
            fs::rename(&target, &old).map_err(Error::io("rename", &target))?;
            Some((aside, old))
        } else {
            None
        };
        if let Err(source) = fs::rename(temporary.path(), &target) {
            if let Some((_, old)) = &old {
                fs::rename(old, &target).map_err(Error::io("restore", &target))?;
            }
            return Err(Error::Io { action: "rename to", path: target, source });
        }
        // Its content has moved away: nothing is left to remove at the old name.
        let _ = temporary.keep();
        sync_folder(&folder)
    }
}
