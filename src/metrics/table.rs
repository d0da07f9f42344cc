//! The figures as text for a terminal: per cent, aligned, at most 80 columns wide unless a class has a long name.

use super::class::{ClassMetrics, FIGURES, Figure};
use super::{FALSE_REJECT_RATE, Intervals, Metrics, Spread};

/// Columns that lines of words are broken at.
const WIDTH: usize = 80;

/// A text of lines.
#[derive(Default)]
pub(crate) struct Lines(String);

impl Lines {
    pub(crate) fn line(&mut self, text: impl AsRef<str>) {
        self.0.push_str(text.as_ref().trim_end());
        self.0.push('\n');
    }

    /// Words, broken between them, continued indented.
    pub(crate) fn words(&mut self, text: &str) {
        let (mut line, mut width) = (String::new(), 0);
        for word in text.split_whitespace() {
            let more = word.chars().count();
            if width > 0 && width + 1 + more > WIDTH {
                self.line(std::mem::take(&mut line));
                (line, width) = ("  ".into(), 2);
            } else if width > 0 {
                line.push(' ');
                width += 1;
            }
            line.push_str(word);
            width += more;
        }
        self.line(line);
    }

    pub(crate) fn text(self) -> String {
        self.0
    }
}

pub(crate) fn percent(value: Option<f64>) -> String {
    value.map_or("-".into(), |x| format!("{:.2}", 100.0 * x))
}

/// Width of the first column.
fn name_width<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    names.map(|name| name.chars().count()).max().unwrap_or(0).max("worst".len())
}

impl Metrics {
    /// The figures in per cent as an aligned text table: one line per class, the mean, the worst class of each
    /// column; below it what the columns mean and the warnings.
    pub fn table(&self) -> String {
        let name = name_width(self.classes.keys());
        let mut lines = Lines::default();
        let figures = |of: &dyn Fn(Figure) -> Option<f64>| {
            FIGURES.map(|(_, figure)| format!("{:>7}", percent(of(figure)))).concat()
        };
        let rule = "-".repeat(name + 11 + FIGURES.len() * 7);

        lines.line(format!("{:name$}   pictures  {:^26}  {:^26}", "", "image %", "pixel %"));
        lines.line(format!(
            "{:name$}  {:>4}  {:>3}{}",
            "class",
            "good",
            "def",
            FIGURES.map(|(head, _)| format!("{head:>7}")).concat()
        ));
        lines.line(&rule);
        for (class, of) in &self.classes {
            lines.line(format!("{class:name$}  {:>4}  {:>3}{}", of.good, of.defective, figures(&|figure| figure(of))));
        }
        lines.line(&rule);
        let mean = &self.mean;
        lines.line(format!(
            "{:name$}  {:>4}  {:>3}{}",
            "mean",
            mean.good,
            mean.defective,
            figures(&|figure| figure(mean))
        ));
        let worst = figures(&|figure| self.classes.values().filter_map(figure).reduce(f64::min));
        lines.line(format!("{:name$}  {:>4}  {:>3}{worst}", "worst", "", ""));
        lines.words(&format!("protocol {}", self.convention));
        lines.words("F1max: at the threshold that is best for these very labels, an oracle");
        lines.words(&format!(
            "R@{0}%: share of defective pictures found where at most {0} % of the good test pictures are rejected, none \
             where they are fewer than {1}; threshold from these labels; ties count as not found",
            100.0 * FALSE_REJECT_RATE,
            (1.0 / FALSE_REJECT_RATE).round(),
        ));
        lines.words("AUPRO: up to 30 % false positives; worst: of each column");
        self.warnings.iter().for_each(|warning| lines.words(&format!("warning: {warning}")));
        lines.0
    }

    /// The 95 % intervals of the picture figures as a text table, and how they were made.
    pub fn intervals_table(&self) -> String {
        let name = name_width(self.classes.keys());
        let mut lines = Lines::default();
        let row = |class: &str, of: &ClassMetrics| {
            let ends: [fn(&Intervals) -> [f64; 2]; 4] =
                [|i| i.image_auroc, |i| i.image_ap, |i| i.image_f1_max, |i| i.image_recall];
            let cells = ends.map(|end| match &of.intervals {
                Some(intervals) => end(intervals).map(|x| format!("{:.2}", 100.0 * x)).join("-"),
                None => "-".into(),
            });
            format!("{class:name$}{}", cells.map(|cell| format!("{cell:>15}")).concat())
        };
        lines.line(format!("{:name$}{:^60}", "", "95 % intervals, image %"));
        let heads = FIGURES[..4].iter().map(|(head, _)| format!("{head:>15}")).collect::<String>();
        lines.line(format!("{:name$}{heads}", "class"));
        lines.line("-".repeat(name + 60));
        self.classes.iter().for_each(|(class, of)| lines.line(row(class, of)));
        lines.line("-".repeat(name + 60));
        lines.line(row("mean", &self.mean));
        lines.words(&format!("intervals: {}", self.interval_method));
        lines.0
    }

    /// [`Self::table`] of the last checkpoint, and below it its AUROC beside that of the checkpoint after `epoch`, which
    /// of all was the best on the test set. Publications often report the latter; nobody can choose it in use.
    pub fn table_with_oracle(&self, oracle: &Metrics, epoch: usize) -> String {
        let name = name_width(self.classes.keys());
        let mut lines = Lines(self.table());
        let row = |class: &str, of: Option<&ClassMetrics>, best: Option<&ClassMetrics>| {
            let figures: [Figure; 2] = [|c| c.image_auroc, |c| c.pixel_auroc];
            let cells =
                figures.map(|figure| [of, best].map(|c| format!("{:>9}", percent(c.and_then(figure)))).concat());
            format!("{class:name$}{}", cells.concat())
        };
        lines.line("");
        lines.line(format!("{:name$}  {:^16}  {:^16}", "", "image AUROC %", "pixel AUROC %"));
        lines.line(format!("{:name$}{:>9}{:>9}{:>9}{:>9}", "class", "last", "oracle", "last", "oracle"));
        lines.line("-".repeat(name + 36));
        self.classes.iter().for_each(|(class, of)| lines.line(row(class, Some(of), oracle.classes.get(class))));
        lines.line("-".repeat(name + 36));
        lines.line(row("mean", Some(&self.mean), Some(&oracle.mean)));
        lines.words(&format!(
            "oracle: the checkpoint after epoch {epoch}, the best of all on this test set, chosen on it; last: what a \
             user gets"
        ));
        lines.0
    }
}

impl Spread {
    /// Mean ± standard deviation in per cent as two text tables, pictures and pixels.
    pub fn table(&self) -> String {
        let name = name_width(self.classes.keys());
        let mut lines = Lines::default();
        let cell = |mean: Option<f64>, std: Option<f64>| match (mean, std) {
            (Some(mean), Some(std)) => format!("{:.2} ± {:>5.2}", 100.0 * mean, 100.0 * std),
            (mean, _) => percent(mean),
        };
        for (what, columns) in [("image %", 0..4), ("pixel %", 4..8)] {
            let row = |class: &str, of: &dyn Fn(Figure) -> String| {
                let cells = FIGURES[columns.clone()].iter().map(|&(_, figure)| format!("{:>17}", of(figure)));
                format!("{class:name$}{}", cells.collect::<String>())
            };
            let rule = "-".repeat(name + 68);
            lines.line(format!("{:name$}{:^68}", "", what));
            let heads = FIGURES[columns.clone()].iter().map(|(head, _)| format!("{head:>17}")).collect::<String>();
            lines.line(format!("{:name$}{heads}", "class"));
            lines.line(&rule);
            for (class, of) in &self.classes {
                lines.line(row(class, &|figure| cell(figure(&of.mean), figure(&of.std))));
            }
            lines.line(&rule);
            lines.line(row("mean", &|figure| cell(figure(&self.mean.mean), figure(&self.mean.std))));
            lines.line(row("± mean", &|figure| percent(figure(&self.mean_of_std))));
            lines.line("");
        }
        lines.words(&format!("protocol {}", self.convention));
        lines.words(&format!(
            "{} runs that differ in their seed: mean ± sample standard deviation; mean: of the runs' means; ± mean: mean \
             of the classes' deviations",
            self.runs
        ));
        lines.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::example;

    #[test]
    fn the_table_is_aligned_and_fits_a_terminal() {
        let table = example().table();
        let expected = "
              pictures           image %                     pixel %
class        good  def  AUROC     AP  F1max   R@1%  AUROC     AP  F1max  AUPRO
------------------------------------------------------------------------------
bottle         20   63  99.12      -      -  87.30  97.50      -      -  91.25
capsule         3    9  25.00      -      -      -      -      -      -      -
metal_plate     4    0      -      -      -      -      -      -      -      -
------------------------------------------------------------------------------
mean           27   72  62.06      -      -  87.30  97.50      -      -  91.25
worst                   25.00      -      -  87.30  97.50      -      -  91.25
";
        assert!(table.starts_with(&expected[1..]), "{table}");
        assert_eq!(table.lines().filter(|line| line.starts_with("warning: ")).count(), 4);
        assert!(table.lines().all(|line| line.chars().count() <= WIDTH), "{table}");
    }

    #[test]
    fn the_oracle_stands_beside_the_last() {
        let (last, mut best) = (example(), example());
        best.classes.get_mut("bottle").unwrap().image_auroc = Some(1.0);
        best.mean.image_auroc = Some(0.625);
        let table = last.table_with_oracle(&best, 34);
        let expected = "
             image AUROC %     pixel AUROC %
class           last   oracle     last   oracle
-----------------------------------------------
bottle         99.12   100.00    97.50    97.50
capsule        25.00    25.00        -        -
metal_plate        -        -        -        -
-----------------------------------------------
mean           62.06    62.50    97.50    97.50
oracle: the checkpoint after epoch 34, the best of all on this test set, chosen
  on it; last: what a user gets
";
        assert!(table.ends_with(&expected[1..]), "{table}");
        assert!(table.starts_with(&last.table()));
    }

    #[test]
    fn intervals_stand_below_each_other() {
        let mut metrics = example();
        let ends = [0.98123, 1.0];
        let intervals = Intervals { image_auroc: ends, image_ap: ends, image_f1_max: ends, image_recall: [0.5, 0.9] };
        metrics.classes.get_mut("bottle").unwrap().intervals = Some(intervals);
        let table = metrics.intervals_table();
        let row = "bottle        98.12-100.00   98.12-100.00   98.12-100.00    50.00-90.00\n";
        assert!(table.contains(row), "{table}");
        assert!(table.contains("capsule                  -              -"), "{table}");
        assert!(table.lines().all(|line| line.chars().count() <= WIDTH), "{table}");
    }

    #[test]
    fn words_are_broken_between_them() {
        let mut lines = Lines::default();
        lines.words(&["word"; 40].join(" "));
        let text = lines.0;
        assert!(text.lines().all(|line| (44..=WIDTH).contains(&line.len())), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("  word")), "{text}");
        assert_eq!(text.split_whitespace().count(), 40);
    }
}
