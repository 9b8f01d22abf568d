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

/// Temporary folders are called this, in the folder of their target.
const TEMPORARY: (&str, &str) = (".prunectl-", ".tmp");

/// A folder that is filled under a temporary name beside its target and appears there only when complete.
/// Dropped without [`NewFolder::commit`], it is removed with all its content.
///
/// What a killed process left behind is removed by the next that begins a folder in the same place. So that it never
/// removes the folder of one that still runs, each holds a lock on its own, which the system drops with the process.
#[derive(Debug)]
pub struct NewFolder {
    temporary: tempfile::TempDir,
    target: PathBuf,
    replace: bool,
    /// Held until the folder is complete or gone; `None` where the file system has no locks.
    _lock: Option<File>,
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
        remove_stale(&folder);
        loop {
            let temporary = tempfile::Builder::new()
                .prefix(TEMPORARY.0)
                .suffix(TEMPORARY.1)
                .tempdir_in(&folder)
                .map_err(Error::io("create a folder in", &folder))?;
            // Between creation and lock another process may have taken it for a leftover: then take a new one.
            let lock = match File::open(temporary.path()) {
                Ok(file) => match file.try_lock() {
                    Ok(()) => Some(file),
                    Err(fs::TryLockError::WouldBlock) => continue,
                    Err(fs::TryLockError::Error(_)) => None,
                },
                Err(_) if !temporary.path().exists() => continue,
                Err(source) => return Err(Error::Io { action: "open", path: temporary.path().to_path_buf(), source }),
            };
            if temporary.path().exists() {
                return Ok(Self { temporary, target: target.to_path_buf(), replace: force, _lock: lock });
            }
        }
    }

    /// Where to write meanwhile.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Fsyncs every file, then renames the folder to its target. A folder that is replaced changes places with it in one
    /// step where the system can do that (Linux, macOS), and is removed last.
    ///
    /// # Errors
    /// [`Error::Io`]; the former content of the target is still there.
    pub fn commit(self) -> Result<()> {
        let Self { temporary, target, replace, _lock } = self;
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
        if replace && target.exists() {
            if exchange(temporary.path(), &target) {
                // The temporary name now holds the old content, which goes with it.
                sync_folder(&folder)?;
                return temporary.close().map_err(Error::io("remove what was replaced by", &target));
            }
            // Another name than temporary folders have: were we killed before the second rename, nothing removes it.
            let aside = tempfile::Builder::new()
                .prefix(".prunectl-replaced-")
                .tempdir_in(&folder)
                .map_err(Error::io("create a folder in", &folder))?;
            let old = aside.path().join("replaced");
            fs::rename(&target, &old).map_err(Error::io("rename", &target))?;
            if let Err(source) = fs::rename(temporary.path(), &target) {
                fs::rename(&old, &target).map_err(Error::io("restore", &target))?;
                return Err(Error::Io { action: "rename to", path: target, source });
            }
        } else {
            fs::rename(temporary.path(), &target).map_err(Error::io("rename to", &target))?;
        }
        // Its content has moved away: nothing is left to remove at the old name.
        let _ = temporary.keep();
        sync_folder(&folder)
    }
}

/// Lets two paths change places in one step; false where system or file system cannot.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "macos"))]
fn exchange(a: &Path, b: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos")))]
fn exchange(_a: &Path, _b: &Path) -> bool {
    false
}

/// Removes temporary folders that no process holds a lock on. What cannot be removed stays: it is in nobody's way.
fn remove_stale(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let ours = name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1);
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        if file.try_lock().is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
