//! What is said of a picture: a line of text, of JSON and of CSV.

use std::path::Path;

use serde::Serialize;

use crate::atomic::write_atomic;
use crate::calibrate::Verdict;
use crate::error::Result;
use crate::heatmap::Region;

/// One picture's row. What could not be found out is left out.
#[derive(Serialize)]
pub struct Row {
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    #[serde(flatten)]
    pub judged: Option<Judged>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heatmap: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a calibrated model says beyond the score.
#[derive(Serialize)]
pub struct Judged {
    pub threshold: f32,
    pub p_value: f64,
    /// `good` or `anomalous`.
    pub verdict: &'static str,
    /// Where the map is above its threshold, in pixels of the picture, the highest first.
    pub regions: Vec<Region>,
}

impl Judged {
    pub fn new(verdict: Verdict, regions: Vec<Region>) -> Self {
        let Verdict { threshold, p_value, anomalous, .. } = verdict;
        Judged { threshold, p_value, verdict: if anomalous { "anomalous" } else { "good" }, regions }
    }

    pub fn is_anomalous(&self) -> bool {
        self.verdict == "anomalous"
    }
}

/// The line above the rows.
pub fn header(calibrated: bool) -> String {
    match calibrated {
        true => format!("{:>10}  {:>10}  {:>7}  {:<9}  picture\n", "score", "threshold", "p-value", "verdict"),
        false => format!("{:>10}  picture\n", "score"),
    }
}

impl Row {
    /// A line under [`header`].
    pub fn line(&self, calibrated: bool) -> String {
        let score = self.score.map_or("error".into(), |score| format!("{score:.4}"));
        let path = &self.path;
        match &self.judged {
            Some(Judged { threshold, p_value, verdict, .. }) => {
                format!("{score:>10}  {threshold:>10.4}  {p_value:>7.4}  {verdict:<9}  {path}\n")
            }
            None if calibrated => format!("{score:>10}  {:>10}  {:>7}  {:<9}  {path}\n", "", "", ""),
            None => format!("{score:>10}  {path}\n"),
        }
    }
}

/// Columns of the CSV file; the box is that of the highest region.
const COLUMNS: [&str; 14] = [
    "path",
    "score",
    "threshold",
    "p_value",
    "verdict",
    "regions",
    "x",
    "y",
    "width",
    "height",
    "peak",
    "heatmap",
    "map",
    "error",
];

/// Writes all rows to a CSV file, whole or not at all.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn write_csv(path: &Path, rows: &[Row]) -> Result<()> {
    write_atomic(path, |file| {
        let mut csv = csv::Writer::from_writer(file);
        csv.write_record(COLUMNS)?;
        for row in rows {
            csv.write_record(cells(row))?;
        }
        csv.flush()
    })
}

fn cells(row: &Row) -> [String; 14] {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let judged = row.judged.as_ref();
    let of = |get: &dyn Fn(&Judged) -> String| judged.map(get).unwrap_or_default();
    let of_first = |get: &dyn Fn(&Region) -> f32| {
        judged.and_then(|j| j.regions.first()).map(|region| get(region).to_string()).unwrap_or_default()
    };
    [
        row.path.clone(),
        row.score.map(|score| score.to_string()).unwrap_or_default(),
        of(&|j| j.threshold.to_string()),
        of(&|j| j.p_value.to_string()),
        of(&|j| j.verdict.into()),
        of(&|j| j.regions.len().to_string()),
        of_first(&|r| r.bounds[0]),
        of_first(&|r| r.bounds[1]),
        of_first(&|r| r.bounds[2]),
        of_first(&|r| r.bounds[3]),
        of_first(&|r| r.peak),
        text(&row.heatmap),
        text(&row.map),
        text(&row.error),
    ]
}
