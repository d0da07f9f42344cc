//! Everything that a report shows, measured: figures, verdicts, pictures, grids, timings.

use std::path::Path;

use image::RgbImage;

use super::super::pictures::Selection;
use super::super::train::oracle::Oracle;
use super::super::ui::{Ui, count};
use super::{decoded, grids, speed};
use crate::calibrate::Rule;
use crate::data::{Dataset, Item, Label, Split, decode_file, load_mask};
use crate::decoder::Painter;
use crate::detector::Detector;
use crate::error::{Error, Result};
use crate::evaluate::evaluate;
use crate::metrics::{ClassMetrics, Intervals, Metrics};
use crate::model::MemoryKind;
use crate::report::{
    Class, Epoch, Example, Figure, Figures, Kind, Model, Panels, Report, Run, Scored, Threshold, choose, panels,
};
use crate::score;
use crate::train::FeatureSource;

/// Pictures whose maps are held at a time.
const LOT: usize = 32;

/// A test picture and what it scored.
pub struct Judged {
    /// Its place among the test pictures.
    pub item: usize,
    pub score: f32,
    pub good: bool,
}

/// What a report is made of.
pub struct Gather<'a> {
    pub ui: &'a Ui,
    pub detector: &'a Detector,
    /// Paints features, if the user gave one.
    pub painter: Option<&'a Painter>,
    pub dataset: &'a Dataset,
    /// Only with a painter.
    pub train: &'a Selection<'a>,
    pub test: &'a Selection<'a>,
    /// What computes, in words.
    pub machine: String,
    /// The model's file.
    pub file: &'a Path,
}

impl Gather<'_> {
    /// The report of a run whose files lie in `folder`.
    ///
    /// # Errors
    /// What files, pictures and the device refuse.
    pub fn report(&self, folder: &Path) -> Result<Report> {
        let (info, items) = (&self.detector.info, self.test.items());
        let metrics = {
            let bar = self.ui.bar("evaluate", items.len());
            evaluate(self.detector, self.dataset, &items, self.test, &|n| bar.advance(n))?
        };
        let judged = self.judge(&items)?;
        let classes = self.dataset.classes.iter().zip(&judged);
        let classes = classes.map(|(name, of)| self.class(name, of, &items, &metrics)).collect::<Result<Vec<_>>>()?;
        let (local, mut global) = grids::maps(self.detector, self.dataset, &items, self.test, &judged)?;
        if let (Some(painter), Some(map)) = (self.painter, &mut global) {
            map.lines = decoded::lines(self.detector, painter, self.dataset, self.train)?;
        }
        let paths: Vec<&Path> = items.iter().map(|item| item.path.as_path()).collect();
        let settings = folder.join("config.toml");
        let settings = if settings.is_file() { read(&settings)? } else { String::new() };
        let decoder = self.painter.map_or(String::new(), |painter| format!(" --decoder {}", painter.path.display()));
        Ok(Report {
            title: name_of(folder),
            run: Run {
                version: env!("CARGO_PKG_VERSION").into(),
                path: folder.display().to_string(),
                command: format!("grad report {}{decoder}", folder.display()),
                date: String::new(),
                settings,
            },
            model: self.model()?,
            protocol: info.protocol.describe(),
            mean: figures(&metrics.mean),
            classes,
            epochs: self.epochs(folder)?,
            local,
            global,
            speed: speed::measure(self.detector, &paths, &self.machine)?,
            machine: vec![("computes on".into(), self.machine.clone())],
            warnings: metrics.warnings,
        })
    }

    /// Scores of the test pictures, class by class.
    fn judge(&self, items: &[&Item]) -> Result<Vec<Vec<Judged>>> {
        let mut judged: Vec<Vec<Judged>> = self.dataset.classes.iter().map(|_| vec![]).collect();
        let all: Vec<usize> = (0..items.len()).collect();
        for lot in all.chunks(LOT) {
            let inputs: Vec<&[f32]> = lot.iter().map(|&i| self.test.get(i)).collect();
            for (&item, scored) in lot.iter().zip(self.detector.score_features(&inputs)?) {
                let good = items[item].label.is_good();
                judged[items[item].class].push(Judged { item, score: scored.image_score, good });
            }
        }
        Ok(judged)
    }

    /// The class's own rule where it has one, else the one for any class; and whose pictures it is from.
    fn rule(&self, class: &str) -> Option<(Rule, &'static str)> {
        let calibration = self.detector.info.calibration.as_ref()?;
        let own = calibration.rule(Some(class)).map(|rule| (rule, "this class"));
        own.or_else(|| Some((calibration.rule(None)?, "all classes")))
    }

    fn class(&self, name: &str, judged: &[Judged], items: &[&Item], metrics: &Metrics) -> Result<Class> {
        let rule = self.rule(name);
        let pictures: Vec<Scored> =
            judged.iter().map(|j| scored(items[j.item], j.score, rule.as_ref().map(|r| &r.0))).collect();
        let class = self.dataset.classes.iter().position(|n| n == name);
        let of = |split| self.dataset.of(split).filter(|item| Some(item.class) == class).count();
        let examples = choose(&pictures).into_iter().map(|(group, picture)| {
            let item = judged[picture].item;
            let panels = self.panels(items[item], item, rule.as_ref().map(|r| &r.0))?;
            let decoded = self.painter.map(|painter| decoded::of(self.detector, painter, self.test.get(item)));
            Ok(Example { group, picture, panels, decoded: decoded.transpose()? })
        });
        Ok(Class {
            name: name.into(),
            train: of(Split::Train),
            held_out: of(Split::Validation),
            figures: figures(&metrics.classes[name]),
            threshold: rule.as_ref().map(|(rule, basis)| Threshold {
                value: rule.threshold(),
                target: rule.target(),
                interval: Some(rule.interval()),
                held_out: rule.held_out(),
                basis: (*basis).into(),
            }),
            oracle_threshold: metrics.classes[name].image_f1_threshold.map(|score| score as f32),
            examples: examples.collect::<Result<_>>()?,
            pictures,
        })
    }

    /// A picture as it is, under its heat map, and with its defect outlined.
    fn panels(&self, item: &Item, index: usize, rule: Option<&Rule>) -> Result<Panels> {
        let size = self.detector.info.image_size;
        let picture = decode_file(&item.path)?;
        let (width, height) = (picture.width as u32, picture.height as u32);
        let picture = RgbImage::from_raw(width, height, picture.rgb).expect("three bytes a pixel");
        let score::Scored { map, height, width, .. } = self.detector.score_features(&[self.test.get(index)])?.remove(0);
        let known = !item.label.is_good() && !item.masks.is_empty();
        let mask = known.then(|| load_mask(item, size)).transpose()?;
        let painting = self.detector.painting(rule).ok_or_else(|| {
            Error::model(self.file, "holds no scale for heat maps", "train again with this version of the program")
        })?;
        panels(
            &picture,
            (&map, height, width),
            painting.scale,
            painting.contour,
            mask.as_deref().map(|m| (m, size, size)),
        )
    }

    fn model(&self) -> Result<Model> {
        let info = &self.detector.info;
        let bytes = std::fs::read(self.file).map_err(|e| Error::io("read", self.file, &e))?;
        // Of the fingerprints, which are in ascending order: the same pictures give the same digest.
        let learnt: Vec<u8> = info.trained_on.iter().flat_map(|print| print.to_le_bytes()).collect();
        let head = &info.head;
        let decoder = self.painter.map(|Painter { info, .. }| {
            let loss = info.losses.last().copied().unwrap_or(f64::NAN);
            let of = format!("{} on {}", count(info.losses.len(), "epoch"), count(info.images, "picture"));
            ("decoder".into(), format!("{of}, loss {loss:.4}"))
        });
        let memory = |branch: &str, has: bool, side: usize, entries: usize| {
            let (what, size) = match head.memory {
                MemoryKind::Grid => ("grid", format!("{side} x {side} cells")),
                other => ("memory", format!("{}, {entries} entries", other.name())),
            };
            (format!("{branch} {what}"), if has { size } else { "none".into() })
        };
        Ok(Model {
            kind: info.head.kind.name().into(),
            backbone: info.backbone.clone(),
            parameters: info.head.parameters() as u64,
            image_size: info.image_size,
            epochs: info.record.len(),
            seed: info.train.seed,
            precision: info.train.precision.name().into(),
            digests: vec![
                ("model file".into(), blake3::hash(&bytes).to_string()),
                ("backbone weights".into(), info.backbone_digest.clone()),
                ("pictures learnt".into(), blake3::hash(&learnt).to_string()),
            ],
            facts: [
                memory("local", head.local, head.local_resolution, head.local_entries),
                memory("global", head.global, head.global_resolution, head.global_entries),
                ("training pictures".into(), info.images.to_string()),
                ("data".into(), info.data.join(", ")),
            ]
            .into_iter()
            .chain(decoder)
            .collect(),
        })
    }

    /// What each epoch did, and what it was worth where that was measured.
    fn epochs(&self, folder: &Path) -> Result<Vec<Epoch>> {
        let record = &self.detector.info.record;
        let measured = Oracle::read(&folder.join("oracle.json"))?.measured;
        let epoch = |e: &crate::train::EpochSummary| {
            let measured = measured.iter().find(|m| m.epoch == e.epoch);
            Epoch {
                epoch: e.epoch,
                loss: e.loss,
                rate: e.rate,
                grid_rate: e.grid_rate,
                gradient_norm: e.gradient_norm,
                image_auroc: measured.and_then(|m| m.image_auroc),
                pixel_auroc: measured.and_then(|m| m.pixel_auroc),
            }
        };
        Ok(record.iter().map(epoch).collect())
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))
}

/// Of a folder, `.` too.
pub fn name_of(folder: &Path) -> String {
    let full = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    full.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn scored(item: &Item, score: f32, rule: Option<&Rule>) -> Scored {
    let verdict = rule.map(|rule| rule.judge(score));
    let kind = match &item.label {
        Label::Good => Kind::Good,
        Label::Defect(kind) => Kind::Defective(kind.clone()),
    };
    let name: Vec<_> = item.path.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy()).collect();
    Scored {
        name: name.into_iter().rev().collect::<Vec<_>>().join("/"),
        kind,
        score,
        p_value: verdict.map(|v| v.p_value),
        rejected: verdict.map(|v| v.anomalous),
    }
}

fn figures(of: &ClassMetrics) -> Figures {
    let plain = |value: Option<f64>| value.map(Figure::from);
    let with = |value: Option<f64>, get: fn(&Intervals) -> [f64; 2]| {
        value.map(|value| Figure { value, interval: of.intervals.as_ref().map(get) })
    };
    Figures {
        image_auroc: with(of.image_auroc, |i| i.image_auroc),
        image_ap: with(of.image_ap, |i| i.image_ap),
        image_f1_max: with(of.image_f1_max, |i| i.image_f1_max),
        recall: with(of.image_recall, |i| i.image_recall),
        pixel_auroc: plain(of.pixel_auroc),
        pixel_ap: plain(of.pixel_ap),
        pixel_f1_max: plain(of.pixel_f1_max),
        aupro: plain(of.pixel_aupro),
    }
}
