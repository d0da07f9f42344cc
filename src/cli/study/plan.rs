//! The rows of a study: the settings of each, round those that the user gave.

use std::collections::BTreeMap;

use crate::baseline::Method;
use crate::config::{Config, RecipeArgs, suggest};
use crate::error::{Error, Result};
use crate::model::{MemoryKind, ModelKind};
use crate::study::Kind;

/// A row to be trained.
pub struct Planned {
    /// Its folder.
    pub name: String,
    /// What it is, in a few words.
    pub about: String,
    pub config: Config,
    /// What is fitted instead of a head that is trained.
    pub method: Option<Method>,
}

impl Planned {
    fn new(name: impl Into<String>, about: impl Into<String>, config: Config) -> Self {
        Planned { name: name.into(), about: about.into(), config, method: None }
    }

    /// What it changes of the settings of the study.
    pub fn changes(&self, base: &Config) -> BTreeMap<String, String> {
        let mut changes = base.changes(&self.config);
        changes.extend(self.method.map(|method| ("method".to_owned(), method.name().to_owned())));
        changes
    }
}

/// Entries of the memories that are compared: local, global. A grid has as many cells.
const ENTRIES: [[usize; 2]; 2] = [[64, 256], [16, 64]];

/// Refuses settings that a study chooses itself.
///
/// # Errors
/// [`Error::Config`] naming the first.
pub fn refuse_own(kind: Kind, recipe: &RecipeArgs) -> Result<()> {
    let parts = [
        ("local", recipe.local.is_some()),
        ("global", recipe.global.is_some()),
        ("refine", recipe.refine.is_some()),
        ("jitter", recipe.jitter.is_some()),
    ];
    let memory = [
        ("memory", recipe.memory.is_some()),
        ("local_entries", recipe.local_entries.is_some()),
        ("global_entries", recipe.global_entries.is_some()),
        ("local_resolution", recipe.local_resolution.is_some()),
        ("global_resolution", recipe.global_resolution.is_some()),
    ];
    let own = match kind {
        Kind::Ablation => parts.to_vec(),
        Kind::Memory => [&parts[..], &memory].concat(),
        Kind::Settings => vec![],
        Kind::Baselines => vec![("separate", recipe.separate.is_some())],
    };
    match own.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((key, _)) => Err(Error::config(
            format!("{key} is given, and `grad study {}` chooses it itself, row by row", kind.name()),
            "leave it out",
        )),
    }
}

/// Table 5 of the paper: global branch, local branch, both, with the gate, with jitter.
pub fn ablation(base: &Config) -> Vec<Planned> {
    let row = |name: &str, about: &str, [local, global, refine, jitter]: [bool; 4]| {
        Planned::new(name, about, Config { local, global, refine, jitter, ..base.clone() })
    };
    vec![
        row("global", "global only", [false, true, false, false]),
        row("local", "local only", [true, false, false, false]),
        row("both", "local and global", [true, true, false, false]),
        row("refinement", "+ refinement", [true, true, true, false]),
        row("jitter", "+ jitter", [true, true, true, true]),
    ]
}

/// Table 1 of the paper: one branch alone, without gate and jitter, reading each kind of memory.
pub fn memory(base: &Config) -> Vec<Planned> {
    let base = Config { refine: false, jitter: false, local_entries: None, global_entries: None, ..base.clone() };
    let mut rows = vec![];
    for (local, entries) in [(true, ENTRIES[0]), (false, ENTRIES[1])] {
        for memory in MemoryKind::ALL {
            for n in entries {
                let mut config = Config { memory, local, global: !local, ..base.clone() };
                let (side, own) = (n.isqrt(), Some(n).filter(|_| memory != MemoryKind::Grid));
                match local {
                    true => (config.local_resolution, config.local_entries) = (side, own),
                    false => (config.global_resolution, config.global_entries) = (side, own),
                }
                let branch = if local { "local" } else { "global" };
                let (name, about) = (format!("{branch}-{}-{n}", memory.name()), format!("{branch} {}", memory.name()));
                rows.push(Planned::new(name, format!("{about}, {n}"), config));
            }
        }
    }
    rows
}

/// The model beside PaDiM and PatchCore, one for all classes and, where there are several, one for each.
pub fn baselines(base: &Config, classes: usize) -> Vec<Planned> {
    let methods = [("PaDiM", Method::named("padim")), ("PatchCore", Method::named("patchcore"))];
    let mut rows = vec![];
    for separate in [false, true].into_iter().filter(|separate| !separate || classes > 1) {
        for (about, method) in [(base.model.name(), None)].into_iter().chain(methods) {
            let name = method.map_or("model", |method| method.name());
            let (name, about) = match separate {
                false => (name.to_owned(), about.to_owned()),
                true => (format!("{name}-separate"), format!("{about}, separate")),
            };
            rows.push(Planned { method, ..Planned::new(name, about, Config { separate, ..base.clone() }) });
        }
    }
    rows
}

/// A setting that can be varied.
struct Axis {
    name: &'static str,
    /// Whether it means anything here; the number is that of the classes.
    applies: fn(&Config, usize) -> bool,
    /// What is tried where the user names no values.
    values: fn(&Config) -> Vec<String>,
    /// Sets it, and says what it is; `None` when that is no value.
    set: fn(&mut Config, &str) -> Option<String>,
}

fn texts(values: &[impl ToString]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

const AXES: [Axis; 7] = [
    Axis {
        name: "separate",
        applies: |_, classes| classes > 1,
        values: |base| texts(&[if base.separate { "off" } else { "on" }]),
        set: |config, value| {
            config.separate = ["off", "on"].iter().position(|known| *known == value)? == 1;
            Some(if config.separate { "a model for each class" } else { "one model for all" }.into())
        },
    },
    Axis {
        name: "local-resolution",
        applies: |base, _| base.local && base.memory.has_coordinates(),
        values: |_| texts(&[4, 8, 16]),
        set: |config, value| {
            config.local_resolution = value.parse().ok()?;
            Some(format!("local grid {value} x {value}"))
        },
    },
    Axis {
        name: "global-resolution",
        applies: |base, _| base.global && base.memory.has_coordinates(),
        values: |_| texts(&[2, 4, 8]),
        set: |config, value| {
            config.global_resolution = value.parse().ok()?;
            Some(format!("global grid {value} x {value}"))
        },
    },
    Axis {
        name: "expansion",
        applies: |base, _| base.model != ModelKind::Grad,
        values: |base| if base.expansion < 4.0 { texts(&[0.5, 1.0, 2.0]) } else { texts(&[1, 2, 4]) },
        set: |config, value| {
            config.expansion = value.parse().ok()?;
            Some(format!("channels x {value}"))
        },
    },
    Axis {
        name: "blocks",
        applies: |_, _| true,
        values: |base| if base.model == ModelKind::Grad { texts(&[3, 5, 7, 9]) } else { texts(&[3, 7, 11, 15]) },
        set: |config, value| {
            config.blocks = value.parse().ok()?;
            Some(format!("{value} blocks"))
        },
    },
    Axis {
        name: "jitter",
        applies: |base, _| base.local && base.memory.has_coordinates(),
        values: |_| texts(&["off", "0.025", "0.05", "0.1", "0.2"]),
        set: |config, value| {
            config.jitter = value != "off";
            if config.jitter {
                config.jitter_std = value.parse().ok()?;
            }
            Some(if config.jitter { format!("jitter {value}") } else { "no jitter".into() })
        },
    },
    // Four times the batch, in groups of BatchNorm as before (what four devices do), and in one group.
    Axis {
        name: "batch",
        applies: |_, _| true,
        values: |base| {
            let (batch, group) = (4 * base.batch, base.bn_group);
            vec![format!("{batch}/{group}"), format!("{batch}/{batch}")]
        },
        set: |config, value| {
            let (batch, group) = value.split_once('/')?;
            (config.batch, config.bn_group) = (batch.parse().ok()?, group.parse().ok()?);
            Some(format!("batch {batch}, groups of {group}"))
        },
    },
];

/// An axis that the user named, and the values named with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Vary {
    axis: String,
    values: Vec<String>,
}

impl std::str::FromStr for Vary {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (axis, values) = text.split_once('=').unwrap_or((text, ""));
        let values = values.split(',').map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned);
        Ok(Vary { axis: axis.trim().replace('_', "-"), values: values.collect() })
    }
}

/// One setting after the other round those given; all that apply to `classes` classes where none is named.
///
/// # Errors
/// [`Error::Config`] for an axis or a value that there is not, or that means nothing here.
pub fn settings(base: &Config, vary: &[Vary], classes: usize) -> Result<Vec<Planned>> {
    let mut rows = vec![Planned::new("configured", "as configured", base.clone())];
    let all: Vec<Vary> = AXES.iter().map(|axis| Vary { axis: axis.name.into(), values: vec![] }).collect();
    for Vary { axis: name, values } in if vary.is_empty() { &all } else { vary } {
        let Some(axis) = AXES.iter().find(|axis| axis.name == name) else {
            let what = format!("there is nothing called `{name}` to vary");
            return Err(Error::config(what, suggest(name, &AXES.map(|axis| axis.name.to_owned()))));
        };
        if !(axis.applies)(base, classes) {
            if vary.is_empty() {
                continue;
            }
            let help = "name other axes, or change the settings round which it is varied";
            let why = if name == "separate" { "there is one class only" } else { "the model has no such part" };
            return Err(Error::config(format!("{name} cannot be varied: {why}"), help));
        }
        let values = if values.is_empty() { (axis.values)(base) } else { values.clone() };
        for value in values {
            let mut config = base.clone();
            let Some(about) = (axis.set)(&mut config, &value) else {
                let what = format!("`{value}` is no value of {name}");
                return Err(Error::config(what, format!("write values as in {}", (axis.values)(base).join(","))));
            };
            config.check()?;
            if !base.differences(&config).is_empty() {
                rows.push(Planned::new(format!("{name}-{}", value.replace('/', "-")), about, config));
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn base() -> Config {
        let mut settings = Settings::default();
        settings.source.data = Some(vec!["parts".into()]);
        Config::settle(settings).unwrap()
    }

    fn vary(axes: &[&str]) -> Result<Vec<Planned>> {
        let axes: Vec<Vary> = axes.iter().map(|text| text.parse().unwrap()).collect();
        settings(&base(), &axes, 2)
    }

    fn names(rows: &[Planned]) -> Vec<&str> {
        rows.iter().map(|row| row.name.as_str()).collect()
    }

    #[test]
    fn the_ablation_ends_with_the_whole_model() {
        let rows = ablation(&base());
        let parts = |row: &Planned| [row.config.local, row.config.global, row.config.refine, row.config.jitter];
        assert_eq!(parts(&rows[1]), [true, false, false, false]);
        assert_eq!(rows[4].config, base());
        assert!(rows.iter().all(|row| row.config.check().is_ok()));
    }

    #[test]
    fn memories_have_as_many_entries_as_grids_have_cells() {
        let rows = memory(&base());
        assert_eq!(rows.len(), 12);
        for row in &rows {
            row.config.check().unwrap();
            let head = row.config.head([28, 28, 152], 0.05);
            let n: usize = row.name.rsplit('-').next().unwrap().parse().unwrap();
            let cells = |side: usize| side * side;
            let (local, global) = match head.memory {
                MemoryKind::Grid => (cells(head.local_resolution), cells(head.global_resolution)),
                _ => (head.local_entries, head.global_entries),
            };
            assert_eq!(if head.local { local } else { global }, n, "{}", row.name);
            assert_eq!((head.fused_channels(), head.fault()), (152, None));
        }
    }

    #[test]
    fn baselines_stand_beside_the_model() {
        let rows = baselines(&base(), 3);
        let all = ["model", "padim", "patchcore", "model-separate", "padim-separate", "patchcore-separate"];
        assert_eq!(names(&rows), all);
        assert!(rows.iter().all(|row| row.method.is_some() != row.name.starts_with("model")));
        assert_eq!(rows[4].changes(&base())["separate"], "true");
        assert_eq!(names(&baselines(&base(), 1)), all[..3]);
    }

    #[test]
    fn one_axis_at_a_time() {
        let rows = vary(&[]).unwrap();
        for row in &rows[1..] {
            let changed = base().differences(&row.config);
            assert!((1..=2).contains(&changed.len()), "{}: {changed:?}", row.name);
        }
        let some = vary(&["blocks", "batch"]).unwrap();
        assert_eq!(names(&some), ["configured", "blocks-3", "blocks-7", "blocks-15", "batch-64-16", "batch-64-64"]);
        assert_eq!(names(&vary(&["jitter=off, 0.3"]).unwrap()), ["configured", "jitter-off", "jitter-0.3"]);
        assert!(!names(&settings(&base(), &[], 1).unwrap()).contains(&"separate-on"));
    }

    #[test]
    fn what_cannot_be_varied_is_said() {
        for (axis, said) in [
            ("block", "did you mean `blocks`"),
            ("blocks=many", "`many` is no value of blocks"),
            ("blocks=999", "blocks is 999"),
            ("batch=64", "write values as in 64/16,64/64"),
        ] {
            let refusal = vary(&[axis]).err().unwrap().to_string();
            assert!(refusal.contains(said), "{refusal}");
        }
        let one = settings(&base(), &["separate".parse().unwrap()], 1).err().unwrap();
        assert!(one.to_string().contains("one class only"), "{one}");
    }
}
