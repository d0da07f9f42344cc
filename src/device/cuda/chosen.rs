//! When the kernels of `kernels/hopper/` are taken in place of those that the emulator has judged.
//!
//! The emulator has neither copy engine nor warpgroup products, so nothing but a real device can judge them. They are taken
//! for a shape on a kind of device only where `kernels/hopper/chosen.json` has an entry for it, which `scripts/gpu-check`
//! writes after the judges have passed there, and only if they were faster there:
//!
//! ```text
//! format    1
//! entries   kernel, shape [m, n, k, taps], architecture [9, 0], multiprocessors, device (its name),
//!           wgmma and mma (seconds of a call by these kernels, and by the others)
//! ```
//! `GRAD_HOPPER=off` takes them never, `GRAD_HOPPER=force` wherever they can run: for tests and measurements.

use std::sync::OnceLock;

use serde::Deserialize;

use super::{Facts, Gpu, Precision, launch};
use crate::error::{Error, Result};

/// Who decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hopper {
    /// What was measured.
    #[default]
    Measured,
    /// Never.
    Off,
    /// Wherever they can run.
    Force,
}

impl Hopper {
    /// As the variable `GRAD_HOPPER` has it; [`Self::Measured`] without it.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is none.
    pub fn from_environment() -> Result<Self> {
        Self::named(std::env::var("GRAD_HOPPER").ok().as_deref())
    }

    fn named(name: Option<&str>) -> Result<Self> {
        match name {
            None | Some("") => Ok(Hopper::Measured),
            Some("off") => Ok(Hopper::Off),
            Some("force") => Ok(Hopper::Force),
            Some(other) => Err(Error::Config {
                what: format!("GRAD_HOPPER={other} is no choice of kernels"),
                help: "use GRAD_HOPPER=off or force, or leave the variable out".into(),
            }),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    format: u32,
    entries: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kernel: String,
    shape: [usize; 4],
    architecture: [usize; 2],
    multiprocessors: usize,
    #[allow(dead_code)] // for readers of the file
    device: String,
    wgmma: f64,
    mma: f64,
}

impl Entry {
    fn speaks_for(&self, facts: &Facts, kernel: &str, shape: [usize; 4]) -> bool {
        (self.kernel == kernel && self.shape == shape)
            && (self.architecture == facts.architecture && self.multiprocessors == facts.multiprocessors)
            && self.wgmma < self.mma
    }
}

fn parse(text: &str) -> serde_json::Result<Vec<Entry>> {
    let table: Table = serde_json::from_str(text)?;
    // Another format is another program's.
    Ok(if table.format == 1 { table.entries } else { vec![] })
}

/// The entries of this build. A file that cannot be read, which a test rules out, has none.
fn entries() -> &'static [Entry] {
    static ENTRIES: OnceLock<Vec<Entry>> = OnceLock::new();
    ENTRIES.get_or_init(|| parse(include_str!("../../../kernels/hopper/chosen.json")).unwrap_or_default())
}

/// Whether `kernel` is taken where it can run.
fn chosen(by: Hopper, entries: &[Entry], facts: &Facts, kernel: &str, shape: [usize; 4]) -> bool {
    match by {
        Hopper::Off => false,
        Hopper::Force => true,
        Hopper::Measured => entries.iter().any(|e| e.speaks_for(facts, kernel, shape)),
    }
}

impl Gpu {
    /// Whether the kernels of `kernels/hopper/` can run here: the device, the build and the precision must be theirs.
    pub fn has_warpgroup_products(&self) -> bool {
        let files = ["conv2d_wgmma", "pointwise_conv_wgmma"];
        self.facts().architecture == [9, 0]
            && self.precision() == Precision::Bf16
            && files.iter().all(|file| launch::holds(file, Precision::Bf16))
    }

    /// Whether `kernel` is taken for `shape` `[m, n, k, taps]`.
    pub(crate) fn takes(&self, kernel: &str, shape: [usize; 4]) -> bool {
        self.has_warpgroup_products() && chosen(self.0.hopper, entries(), self.facts(), kernel, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 4] = [12544, 432, 432, 9];
    const KERNEL: &str = "conv2d_wgmma_forward";

    fn h100() -> Facts {
        Facts { name: "H100".into(), architecture: [9, 0], multiprocessors: 132, memory: 0, driver: [13, 0] }
    }

    fn entry(wgmma: f64) -> Vec<Entry> {
        let text = format!(
            r#"{{"format": 1, "entries": [{{"kernel": "{KERNEL}", "shape": [12544, 432, 432, 9], "architecture": [9, 0],
                "multiprocessors": 132, "device": "H100", "wgmma": {wgmma}, "mma": 2e-4}}]}}"#
        );
        parse(&text).unwrap()
    }

    #[test]
    fn an_entry_chooses_its_kernel_shape_and_device_alone() {
        let (found, by) = (entry(1e-4), Hopper::Measured);
        assert!(chosen(by, &found, &h100(), KERNEL, SHAPE));
        assert!(!chosen(by, &found, &h100(), "conv2d_wgmma_weight_gradient", SHAPE));
        assert!(!chosen(by, &found, &h100(), KERNEL, [50176, 432, 432, 9]));
        assert!(!chosen(by, &found, &Facts { multiprocessors: 114, ..h100() }, KERNEL, SHAPE));
        assert!(!chosen(by, &found, &Facts { architecture: [10, 0], ..h100() }, KERNEL, SHAPE));
        assert!(!chosen(by, &entry(3e-4), &h100(), KERNEL, SHAPE), "slower");
        assert!(!chosen(by, &[], &h100(), KERNEL, SHAPE), "never measured");
        assert!(!chosen(Hopper::Off, &found, &h100(), KERNEL, SHAPE));
        assert!(chosen(Hopper::Force, &[], &h100(), KERNEL, SHAPE));
    }

    /// The file in the repository can be read, and says of every entry that it was faster.
    #[test]
    fn the_table_is_well_formed() {
        let found = parse(include_str!("../../../kernels/hopper/chosen.json")).unwrap();
        for e in &found {
            assert!(e.wgmma > 0.0 && e.wgmma < e.mma, "{e:?}");
            let facts = Facts { architecture: e.architecture, multiprocessors: e.multiprocessors, ..h100() };
            assert!(chosen(Hopper::Measured, entries(), &facts, &e.kernel, e.shape), "{e:?}");
        }
        // No entry: no kernel that no device has judged.
        assert_eq!(
            chosen(Hopper::Measured, entries(), &h100(), KERNEL, SHAPE),
            found.iter().any(|e| e.kernel == KERNEL)
        );
    }

    #[test]
    fn the_variable_is_understood_or_refused() {
        assert_eq!(Hopper::named(None).unwrap(), Hopper::Measured);
        assert_eq!(Hopper::named(Some("off")).unwrap(), Hopper::Off);
        assert_eq!(Hopper::named(Some("force")).unwrap(), Hopper::Force);
        assert!(Hopper::named(Some("on")).unwrap_err().to_string().contains("GRAD_HOPPER=on"));
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn the_emulated_device_never_takes_them() {
        let gpu = Gpu::new(Box::new(super::super::emulated::Emulated::new()), Precision::Bf16, Hopper::Force).unwrap();
        assert!(!gpu.takes(KERNEL, SHAPE));
    }
}
