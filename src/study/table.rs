//! A study as text for a terminal: a line per row, mean ± deviation in per cent.

use super::{Row, Study};
use crate::error::Result;
use crate::metrics::table::{Lines, percent};
use crate::metrics::{ClassMetrics, ClassSpread};

/// A column: its heading and its figure.
type Column = (&'static str, fn(&ClassMetrics) -> Option<f64>);

/// What the paper reports, and the overlap of regions.
pub(crate) const COLUMNS: [Column; 3] =
    [("image AUROC", |c| c.image_auroc), ("pixel AUROC", |c| c.pixel_auroc), ("AUPRO", |c| c.pixel_aupro)];

impl Study {
    /// The table, with the classes of every row below it where asked for.
    ///
    /// # Errors
    /// As [`super::Row::spread`].
    pub fn table(&self, per_class: bool) -> Result<String> {
        let names = self.rows.iter().map(|row| &row.about).chain(self.classes.iter().filter(|_| per_class));
        let name = names.map(|name| name.chars().count() + 2).max().unwrap_or(0);
        let mut lines = Lines::default();
        lines.line(format!("{:name$}{}   seconds", "%", COLUMNS.map(|(head, _)| format!("{head:>16}")).concat()));
        let rule = "-".repeat(name + 16 * COLUMNS.len() + 10);
        lines.line(&rule);
        for row in &self.rows {
            let spread = row.spread()?;
            let figures = spread.as_ref().map_or(String::new(), |spread| cells(&spread.mean));
            let seconds = row.seconds().map_or("-".into(), |seconds| format!("{seconds:.1}"));
            lines.line(format!("{:name$}{figures:48}{seconds:>10}", row.about));
            for (class, of) in spread.iter().filter(|_| per_class).flat_map(|spread| &spread.classes) {
                lines.line(format!("  {class:0$}{1}", name - 2, cells(of)));
            }
        }
        lines.line(&rule);
        if self.rows.iter().any(|row| row.survival(None).is_some()) {
            self.survival(&mut lines, name, per_class);
        }
        let seeds = self.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        lines.words(&match self.seeds.len() {
            1 => format!("one run a row, seed {seeds}; each figure is a mean over {} classes", self.classes.len()),
            n => format!(
                "{n} runs a row, seeds {seeds}: mean ± sample standard deviation of their means over {} classes",
                self.classes.len()
            ),
        });
        lines.words("seconds: of the training steps of a run, without features and evaluation");
        if let Some(run) = self.rows.iter().find_map(|row| row.runs.first()) {
            lines.words(&format!("protocol {}", run.metrics.convention));
        }
        self.warnings().iter().for_each(|warning| lines.words(&format!("warning: {warning}")));
        Ok(lines.text())
    }

    /// Its second part: what reconstructions copy.
    fn survival(&self, lines: &mut Lines, name: usize, per_class: bool) {
        let share = |row: &Row, class: Option<&str>| match row.survival(class) {
            Some((mean, std)) => cell(Some(mean), std),
            None => "-".into(),
        };
        lines.line(format!("{:name$}{:>16}", "%", "survives"));
        let rule = "-".repeat(name + 16);
        lines.line(&rule);
        for row in &self.rows {
            lines.line(format!("{:name$}{:>16}", row.about, share(row, None)));
            for class in self.classes.iter().filter(|_| per_class) {
                lines.line(format!("  {class:0$}{1:>16}", name - 2, share(row, Some(class))));
            }
        }
        lines.line(&rule);
        lines.words(
            "survives: share of a defect that is still there in the reconstruction, 0 if it is removed and 100 if it is \
             copied; mean over classes",
        );
    }
}

fn cells(of: &ClassSpread) -> String {
    COLUMNS.iter().map(|(_, figure)| format!("{:>16}", cell(figure(&of.mean), figure(&of.std)))).collect()
}

fn cell(mean: Option<f64>, std: Option<f64>) -> String {
    match std {
        Some(std) => format!("{} ± {:>5}", percent(mean), percent(Some(std))),
        None => percent(mean),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;

    #[test]
    fn the_table_is_aligned() {
        let table = example().table(true).unwrap();
        let expected = "
%                 image AUROC     pixel AUROC           AUPRO   seconds
-----------------------------------------------------------------------
global only     62.50 ± 17.68   50.00 ±  0.00   50.00 ±  0.00      20.0
  <wood>        62.50 ± 17.68               -               -
  brick         62.50 ± 17.68   50.00 ±  0.00   50.00 ±  0.00
+ jitter               100.00           50.00           50.00      30.0
  <wood>               100.00               -               -
  brick                100.00           50.00           50.00
";
        assert!(table.starts_with(&expected[1..]), "{table}");
        assert!(table.contains("\nglobal only     31.25 ±  8.84\n  brick         31.25 ±  8.84\n"), "{table}");
        assert!(table.contains("2 runs a row, seeds 3, 1: mean ±"), "{table}");
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        assert!(!example().table(false).unwrap().contains("brick"));
    }
}
