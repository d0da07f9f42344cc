//! The folder of a run, `runs/NAME/`: taken once, never overwritten, open to one process at a time.
//!
//! | file | holds |
//! |---|---|
//! | `config.toml` | every setting, in the form `--config` reads |
//! | `train.jsonl` | one line per epoch, written as it ends |
//! | `checkpoint.safetensors` | what it takes to go on to the bit |
//! | `model.safetensors` | the model, written at the end |
//! | `metrics.json` | what it is worth on the test pictures, if there are any |
//! | `decoder.safetensors` | paints features in reports, if one was trained (`grad decoder`) |
//! | `oracle.json`, `oracle.safetensors` | the best epoch on the test pictures, if several were measured |
//! | `.lock` | held while a process works in the folder |

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::atomic::write_atomic;
use crate::error::{Error, Result};
use crate::train::EpochRecord;

const LOCK: &str = ".lock";

const RESUME: &str = "give the folder of a run that was interrupted or finished: --resume runs/NAME";

/// Where runs go unless the user names a folder.
pub const RUNS: &str = "runs";

/// A run's folder, held by this process.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Released by the system when the process ends, however it ends.
    _lock: File,
    /// Whether to take the folder away again if nothing came of it.
    fresh: bool,
}

impl RunFolder {
    /// Takes a folder for a new run: the one named, or the first free of `runs/MODEL-1`, `runs/MODEL-2`, …
    ///
    /// # Errors
    /// [`Error::Config`] when the folder holds anything already; [`Error::Io`] when it cannot be made.
    pub fn create(named: Option<&Path>, model: &str) -> Result<Self> {
        match named {
            Some(path) => Self::take(path)?.ok_or_else(|| occupied(path)),
            None => {
                let mut free = (1..).map(|n| Path::new(RUNS).join(format!("{model}-{n}"))).filter(|p| !p.exists());
                // Another process may be faster between the look and the taking.
                free.find_map(|path| Self::take(&path).transpose()).expect("there is always a higher number")
            }
        }
    }

    /// `None` if something is in there.
    fn take(path: &Path) -> Result<Option<Self>> {
        let refused = |e: std::io::Error| Error::io("create", path, &e);
        let there = path.exists();
        // A lock alone is what a process leaves that was killed before it began.
        if there && fs::read_dir(path).map_err(refused)?.any(|e| e.map_or(true, |e| e.file_name() != LOCK)) {
            return Ok(None);
        }
        fs::create_dir_all(path).map_err(refused)?;
        let lock = lock(path)?;
        // Two processes may both have seen it empty. The first has its configuration in it by the time it lets go.
        let run = RunFolder { path: path.into(), _lock: lock, fresh: !there };
        Ok((!run.config().exists()).then_some(run))
    }

    /// Opens the folder of a run to go on with it.
    ///
    /// # Errors
    /// [`Error::Config`] when there is nothing to go on from, or another process is at work in it.
    pub fn resume(path: &Path) -> Result<Self> {
        let run = Self::reopen(path)?;
        if run.checkpoint().is_file() {
            return Ok(run);
        }
        Err(Error::config(format!("{}: cannot be resumed, it has no checkpoint.safetensors", path.display()), RESUME))
    }

    /// Opens the folder of a run that has a configuration, whatever came of it.
    ///
    /// # Errors
    /// As [`Self::resume`].
    pub fn reopen(path: &Path) -> Result<Self> {
        Self::config_of(path)?;
        Self::hold(path)
    }

    /// Holds a folder whose files another module knows.
    ///
    /// # Errors
    /// [`Error::Config`] when another process is at work in it; [`Error::Io`].
    pub fn hold(path: &Path) -> Result<Self> {
        Ok(RunFolder { path: path.into(), _lock: lock(path)?, fresh: false })
    }

    /// The configuration of the run in a folder.
    ///
    /// # Errors
    /// [`Error::Config`] when the folder holds no run.
    pub fn config_of(path: &Path) -> Result<PathBuf> {
        let config = path.join("config.toml");
        let what = match (path.is_dir(), config.is_file()) {
            (true, true) => return Ok(config),
            (true, false) => "cannot be resumed, it has no config.toml",
            (false, _) => "no such folder",
        };
        Err(Error::config(format!("{}: {what}", path.display()), RESUME))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.toml`.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// `checkpoint.safetensors`.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    /// `model.safetensors`.
    pub fn model(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// `metrics.json`.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.json")
    }

    /// `oracle.json`.
    pub fn oracle_json(&self) -> PathBuf {
        self.path.join("oracle.json")
    }

    /// `oracle.safetensors`.
    pub fn oracle_model(&self) -> PathBuf {
        self.path.join("oracle.safetensors")
    }

    /// `train.jsonl`.
    pub fn log(&self) -> PathBuf {
        self.path.join("train.jsonl")
    }

    /// Writes `config.toml`. From here on the folder stays.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn start(&mut self, config: &str) -> Result<()> {
        write_atomic(self.config(), |file| file.write_all(config.as_bytes()))?;
        self.fresh = false;
        Ok(())
    }

    /// Seconds of the training steps of the run in a folder, by its `train.jsonl`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none.
    pub fn seconds(path: &Path) -> Result<f64> {
        let path = path.join("train.jsonl");
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
        let records = text.lines().filter_map(|line| serde_json::from_str::<EpochRecord>(line).ok());
        Ok(records.map(|record| record.seconds).sum())
    }

    /// Opens `train.jsonl` behind the first `epochs` epochs. What is there of later ones, or of a line that was not
    /// finished, is taken away: these epochs are about to be trained again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn epoch_log(&self, epochs: usize) -> Result<EpochLog> {
        let path = self.log();
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.map_err(|e| Error::io("read", &path, &e))?,
        };
        let kept =
            |line: &&str| serde_json::from_str::<EpochRecord>(line).is_ok_and(|record| record.summary.epoch <= epochs);
        let kept: String = text.lines().filter(kept).map(|line| format!("{line}\n")).collect();
        write_atomic(&path, |file| file.write_all(kept.as_bytes()))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io("write", &path, &e))?;
        Ok(EpochLog { path, file })
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.fresh {
            // Best effort: an empty folder left behind does no harm, and only an empty one is removed.
            let _ = fs::remove_file(self.path.join(LOCK));
            let _ = fs::remove_dir(&self.path);
        }
    }
}

fn occupied(path: &Path) -> Error {
    if path.join("config.toml").exists() {
        return Error::config(
            format!("{} already holds a run, and it will not be overwritten", path.display()),
            format!("choose another --out, or go on with it: --resume {}", path.display()),
        );
    }
    let what = format!("{} is not empty, and nothing in it will be overwritten", path.display());
    Error::config(what, "choose another --out, a folder that is empty or not there yet")
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io("create", &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::config(
            format!("{}: another process is training in this folder", folder.display()),
            "wait for it to end, or choose another folder",
        )),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &path, &e)),
    }
}

/// `train.jsonl`, open at its end.
#[derive(Debug)]
pub struct EpochLog {
    path: PathBuf,
    file: File,
}

impl EpochLog {
    /// Adds the line of an epoch, in one write.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn push(&mut self, record: &EpochRecord) -> Result<()> {
        let line = serde_json::to_string(record).expect("a record is plain data") + "\n";
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::EpochSummary;

    fn record(epoch: usize) -> EpochRecord {
        let [loss, rate, grid_rate, gradient_norm] = [0.25 / epoch as f64, 0.001, 0.1, 0.5];
        let summary = EpochSummary { epoch, loss, rate, grid_rate, gradient_norm };
        EpochRecord { summary, seconds: 1.5, images_per_second: 10.0 }
    }

    #[test]
    fn a_folder_is_taken_once() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        let mut run = RunFolder::create(Some(&path), "crad-s").unwrap();
        let refusal = || RunFolder::create(Some(&path), "crad-s").unwrap_err().to_string();
        assert!(refusal().contains("another process"), "{}", refusal());
        fs::write(path.join("notes.txt"), "").unwrap();
        assert!(refusal().contains("is not empty"), "{}", refusal());
        run.start("model = \"crad-s\"\n").unwrap();
        assert!(refusal().contains("--resume"), "{}", refusal());
        drop(run);
        assert!(refusal().contains("already holds a run"), "{}", refusal());
        assert!(RunFolder::resume(&path).unwrap_err().to_string().contains("checkpoint.safetensors"));
        fs::write(path.join("checkpoint.safetensors"), "x").unwrap();
        let first = RunFolder::resume(&path).unwrap();
        assert!(RunFolder::resume(&path).unwrap_err().to_string().contains("another process"));
        drop(first);
        assert!(RunFolder::resume(&path).is_ok());
    }

    #[test]
    fn a_run_that_never_started_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("run");
        drop(RunFolder::create(Some(&path), "grad").unwrap());
        assert!(!path.exists());
        // A folder of the user's own stays, even if it is empty.
        fs::create_dir(&path).unwrap();
        drop(RunFolder::create(Some(&path), "grad").unwrap());
        assert!(path.exists());
    }

    #[test]
    fn the_log_has_each_epoch_once() {
        let home = tempfile::tempdir().unwrap();
        let run = RunFolder::create(Some(&home.path().join("run")), "grad").unwrap();
        let mut log = run.epoch_log(0).unwrap();
        (1..=4).for_each(|epoch| log.push(&record(epoch)).unwrap());
        // Killed while writing the fifth line.
        log.file.write_all(b"{\"epoch\":5,\"lo").unwrap();
        let mut log = run.epoch_log(2).unwrap();
        log.push(&record(3)).unwrap();
        let text = fs::read_to_string(run.log()).unwrap();
        let epochs = text.lines().map(|line| serde_json::from_str::<EpochRecord>(line).unwrap().summary.epoch);
        assert_eq!(epochs.collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(RunFolder::seconds(run.path()).unwrap(), 4.5);
    }
}
