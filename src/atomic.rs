//! Files appear whole or not at all: temporary file beside the target -> write -> fsync -> rename -> fsync the folder.
//! Every file this crate writes goes through [`write_atomic`]; a crash leaves the old file or the new one, never half.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile};

/// What the closure given to [`write_atomic`] writes to: buffered, and seekable for formats that go back.
pub type AtomicWriter = BufWriter<NamedTempFile>;

/// Writes `path` through `write`, which sees an empty file. The folder must exist; a symbolic link is followed, so
/// that it is its target that changes. If anything fails the old file is untouched and nothing is left beside it.
///
/// Errors: [`Error::Io`] with the target's path, whichever step failed; `path` exists and is not a regular file.
pub fn write_atomic(path: impl AsRef<Path>, write: impl FnOnce(&mut AtomicWriter) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    replace(path, write).map_err(|cause| Error::io("write", path, &cause))
}

fn replace(path: &Path, write: impl FnOnce(&mut AtomicWriter) -> io::Result<()>) -> io::Result<()> {
    let target = target(path)?;
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = target.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
    let prefix = format!(".{}.", name.to_string_lossy());
    let mut builder = Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    // Temporary files are private by default; a result should get the rights any new file gets.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut writer = BufWriter::new(builder.tempfile_in(folder)?);
    write(&mut writer)?;
    writer.flush()?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|refused| refused.error)?;
    // Without this the rename itself may be lost when the power fails.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// The regular file that `path` names or will name. Renaming over a device or a folder would destroy it.
fn target(path: &Path) -> io::Result<PathBuf> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => fs::canonicalize(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is there and is not a regular file")),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(path.into()),
        Err(cause) => Err(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn is_io(result: Result<()>, path: &Path) -> bool {
        matches!(result, Err(Error::Io { action: "write", path: named, .. }) if named == path)
    }

    #[test]
    fn writes_new_and_replaces_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomic(&path, |w| w.write_all(b"first, and longer")).unwrap();
        write_atomic(&path, |w| w.write_all(b"second")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_failing_writer_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, "old").unwrap();
        let result = write_atomic(&path, |w| {
            w.write_all(&[7; 100_000])?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(is_io(result, &path));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_panicking_writer_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, "old").unwrap();
        let caught = std::panic::catch_unwind(|| write_atomic(&path, |_| panic!("on purpose")));
        assert!(caught.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn folders_that_cannot_be_written_are_io_errors() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "old").unwrap();
        for path in [folder.path().join("missing/a.txt"), file.join("a.txt"), folder.path().to_path_buf()] {
            assert!(is_io(write_atomic(&path, |w| w.write_all(b"new")), &path), "{}", path.display());
        }
        assert_eq!(names(folder.path()), ["file"]);
        assert_eq!(fs::read(&file).unwrap(), b"old");
    }

    /// `/proc` refuses new files to every user, also to one who may ignore permissions.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_read_only_folder_is_an_io_error() {
        let path = Path::new("/proc/grad-test.txt");
        assert!(is_io(write_atomic(path, |w| w.write_all(b"new")), path));
    }

    #[test]
    #[cfg(unix)]
    fn follows_links_keeps_devices_and_gives_usual_rights() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (real, link, plain) = (folder.path().join("real"), folder.path().join("link"), folder.path().join("plain"));
        fs::write(&real, "old").unwrap();
        symlink(&real, &link).unwrap();
        write_atomic(&link, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(is_io(write_atomic("/dev/null", |w| w.write_all(b"new")), Path::new("/dev/null")));

        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&real), mode(&plain));
    }
}
