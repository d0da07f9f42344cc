//! How the scores of a class are spread: good pictures upwards, defective ones downwards, the threshold across.

use super::chart::{Axis, Frame, plot};
use super::data::{Class, Kind};
use super::html::{count, decimals, put};

const SIZE: [f64; 2] = [420.0, 320.0];
const MOST_BINS: usize = 40;

/// Equal bins over all scores.
#[derive(Debug, PartialEq)]
struct Bins {
    low: f64,
    width: f64,
    /// Good and defective pictures in each.
    counts: Vec<[usize; 2]>,
}

impl Bins {
    /// Width by Freedman and Diaconis, 2 IQR / n^(1/3), of the good scores, as far as the number of bins stays readable.
    fn new(pictures: &[(f64, bool)]) -> Option<Self> {
        let (low, high) = pictures.iter().fold((f64::MAX, f64::MIN), |(low, high), (s, _)| (low.min(*s), high.max(*s)));
        if pictures.is_empty() || low > high {
            return None;
        }
        let mut good: Vec<f64> = pictures.iter().filter(|(_, defective)| !defective).map(|(score, _)| *score).collect();
        good.sort_by(f64::total_cmp);
        let quartile = |q: usize| good.get(good.len() * q / 4).copied().unwrap_or(0.0);
        let rule = 2.0 * (quartile(3) - quartile(1)) / (good.len() as f64).cbrt();
        let span = high - low;
        let n = if rule > 0.0 { (span / rule).ceil().clamp(8.0, MOST_BINS as f64) as usize } else { 16 };
        // All scores equal: one bin around them.
        let (n, width) = if span > 0.0 { (n, span / n as f64) } else { (1, low.abs().max(1.0) * 0.1) };
        let low = if span > 0.0 { low } else { low - width / 2.0 };
        let mut counts = vec![[0; 2]; n];
        for (score, defective) in pictures {
            let bin = (((score - low) / width) as usize).min(n - 1);
            counts[bin][usize::from(*defective)] += 1;
        }
        Some(Bins { low, width, counts })
    }
}

/// Draws it; nothing where there is no finite score.
pub(super) fn draw(out: &mut String, class: &Class) {
    let finite = class.pictures.iter().filter(|p| p.score.is_finite());
    let scores: Vec<(f64, bool)> = finite.map(|p| (f64::from(p.score), p.kind != Kind::Good)).collect();
    let Some(bins) = Bins::new(&scores) else { return };
    let threshold = class.threshold.as_ref().map(|t| f64::from(t.value)).filter(|t| t.is_finite());
    let end = bins.low + bins.width * bins.counts.len() as f64;
    let marks = threshold.into_iter().chain(class.oracle_threshold.map(f64::from)).filter(|t| t.is_finite());
    let (low, high) = marks.fold((bins.low, end), |(low, high), mark| (low.min(mark), high.max(mark)));
    let [most_good, most_defective] = [0, 1].map(|kind| bins.counts.iter().map(|c| c[kind]).max().unwrap_or(0) as f64);

    let [width, height] = SIZE;
    let [x, y] = plot(width, height);
    let y_axis = Axis::round([-most_defective, most_good], 6, y);
    let mut frame = Frame { width, height, x: Axis::linear([low, high], 6, x), y: y_axis };
    // Both halves count upwards from zero, and nothing is counted in halves.
    frame.y.ticks.retain(|(value, _)| value.fract().abs() < 1e-6);
    frame.y.ticks.iter_mut().for_each(|(value, label)| *label = format!("{:.0}", value.abs()));
    let [good, defective] = [false, true].map(|kind| scores.iter().filter(|s| s.1 == kind).count());
    let alt = format!(
        "Scores of {}: {} above the line, {} below it.",
        class.name,
        count(good, "good picture"),
        count(defective, "defective picture"),
    );
    frame.open(out, &alt);
    frame.axes(out, "score of the picture", "pictures");
    let digits = decimals([low, high].into_iter());
    let zero = frame.y.at(0.0);
    for (i, counts) in bins.counts.iter().enumerate() {
        let [from, to] = [i, i + 1].map(|i| bins.low + bins.width * i as f64);
        let [left, right] = [from, to].map(|v| frame.x.at(v));
        for (kind, n) in [("good", counts[0]), ("defective", counts[1])].into_iter().filter(|(_, n)| *n > 0) {
            let tip = frame.y.at(if kind == "good" { n as f64 } else { -(n as f64) });
            let (top, tall) = (tip.min(zero), (tip - zero).abs());
            let wide = (right - left - 1.0).max(0.5);
            put!(out, "<rect class=\"{kind}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" ", left + 0.5);
            put!(out, "height=\"{tall:.1}\"><title>{}, ", count(n, &format!("{kind} picture")));
            put!(out, "score {from:.digits$} to {to:.digits$}</title></rect>\n");
        }
    }
    let ([left, right], [bottom, top]) = (x, y);
    put!(out, "<line class=\"axis\" x1=\"{left}\" y1=\"{zero:.1}\" x2=\"{right}\" y2=\"{zero:.1}\"/>\n");
    if let Some(oracle) = class.oracle_threshold.map(f64::from).filter(|t| t.is_finite()) {
        let at = frame.x.at(oracle);
        put!(out, "<line class=\"oracle\" x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{bottom}\">");
        put!(out, "<title>best F1 on these very labels, an oracle: {oracle:.digits$}</title></line>\n");
    }
    if let Some(threshold) = threshold {
        let at = frame.x.at(threshold);
        put!(
            out,
            "<line class=\"threshold\" x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>\n",
            top - 4.0
        );
        let (dx, anchor) = if at < (left + right) / 2.0 { (5.0, "note strong") } else { (-5.0, "note strong end") };
        let y = top + 5.0;
        put!(out, "<text class=\"{anchor}\" x=\"{:.1}\" y=\"{y:.1}\">threshold {threshold:.digits$}</text>\n", at + dx);
    }
    // The legend stands in the upper right corner of the paper, above the plot.
    let legend = top - 16.0;
    for (kind, x) in [("good", right - 118.0), ("defective", right - 66.0)] {
        put!(out, "<rect class=\"{kind}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\"/>", legend - 8.5);
        put!(out, "<text class=\"note\" x=\"{:.1}\" y=\"{legend:.1}\">{kind}</text>\n", x + 13.0);
    }
    frame.close(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_picture_is_in_one_bin() {
        for n in [1, 2, 7, 500] {
            let scores: Vec<_> = (0..n).map(|i| ((i * 37 % 101) as f64 / 7.0, i % 3 == 0)).collect();
            let bins = Bins::new(&scores).unwrap();
            assert_eq!(bins.counts.iter().flatten().sum::<usize>(), n);
            assert!(bins.counts.len() <= MOST_BINS);
            let defective: usize = bins.counts.iter().map(|c| c[1]).sum();
            assert_eq!(defective, scores.iter().filter(|s| s.1).count());
        }
    }

    #[test]
    fn equal_scores_and_none() {
        assert_eq!(Bins::new(&[]), None);
        let bins = Bins::new(&[(0.0, true), (0.0, false)]).unwrap();
        assert_eq!(bins.counts, [[1, 1]]);
        assert!(bins.low < 0.0 && bins.low + bins.width > 0.0);
    }
}
