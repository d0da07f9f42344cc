//! Compiled kernels, kept by the hash of all that they are made of: the debug and release builds, the tests and the
//! linter each run the build script, and none of them needs to compile the same file again.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where headers lie that all kernels may include, or that are included around them.
pub const SHARED: [&str; 2] = ["kernels", "kernels/emulator"];

/// Text of every header in these folders: any of them may change any kernel.
pub fn headers(folders: &[&str]) -> Result<String, String> {
    let mut text = String::new();
    for folder in folders {
        let entries = std::fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "cuh" || e == "h"));
        paths.sort();
        for path in paths {
            text += &std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(text)
}

/// A command that makes one file, and everything that the file depends on.
pub struct Job {
    pub command: Command,
    pub depends_on: String,
    /// Where the result is wanted.
    pub output: PathBuf,
    /// What it is, for messages.
    pub what: String,
}

impl Job {
    /// Runs `COMMAND -o FILE`, or takes the file of an earlier run.
    fn run(mut self, folder: &Path) -> Result<(), String> {
        let mut hash = DefaultHasher::new();
        (format!("{:?}", self.command), &self.depends_on).hash(&mut hash);
        let extension = self.output.extension().and_then(|e| e.to_str()).unwrap_or("out");
        let kept = folder.join(format!("{:016x}.{extension}", hash.finish()));
        if !kept.exists() {
            let fresh = kept.with_extension(format!("{}.{extension}", std::process::id()));
            let done = self.command.arg("-o").arg(&fresh).output().map_err(|e| format!("{}: {e}", self.what))?;
            if !done.status.success() {
                let said = [done.stdout, done.stderr].concat();
                return Err(format!("{} does not compile\n{}", self.what, String::from_utf8_lossy(&said)));
            }
            std::fs::rename(&fresh, &kept).map_err(|e| format!("{}: {e}", kept.display()))?;
        }
        std::fs::copy(&kept, &self.output).map(|_| ()).map_err(|e| format!("{}: {e}", self.output.display()))
    }
}

/// Runs all jobs, as many at a time as cargo allows. The cache lies beside the profiles' folders in `target`.
pub fn run_all(jobs: Vec<Job>, out: &Path) -> Result<(), String> {
    let target = out.ancestors().nth(4).unwrap_or(out);
    let folder = target.join("kernels");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let workers = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let queue = std::sync::Mutex::new(jobs);
    let faults = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let job = queue.lock().ok().and_then(|mut q| q.pop());
                    let Some(job) = job else { break };
                    if let Err(fault) = job.run(&folder)
                        && let Ok(mut faults) = faults.lock()
                    {
                        faults.push(fault);
                    }
                }
            });
        }
    });
    match faults.into_inner() {
        Ok(faults) if faults.is_empty() => Ok(()),
        Ok(faults) => Err(faults.join("\n")),
        Err(_) => Err("a compiling thread stopped".into()),
    }
}
