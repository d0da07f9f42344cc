//! The ROC curve of a class: share of good pictures rejected against share of defective ones found, for every threshold.

use super::chart::{Axis, Frame, plot};
use super::data::{Class, Kind};
use super::html::{count, percent, put};

const SIZE: [f64; 2] = [420.0, 320.0];

/// Corners of the curve from (0, 0) to (1, 1), one per distinct score; scores that are equal are one oblique step.
/// `None` where only one of the two kinds occurs.
pub(super) fn curve(scores: impl Iterator<Item = (f32, bool)>) -> Option<Vec<[f64; 2]>> {
    let mut scores: Vec<(f32, bool)> = scores.collect();
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    let positives = scores.iter().filter(|(_, defective)| *defective).count();
    let negatives = scores.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    let mut points = vec![[0.0, 0.0]];
    let (mut rejected, mut found) = (0, 0);
    for same in scores.chunk_by(|a, b| a.0 == b.0) {
        found += same.iter().filter(|(_, defective)| *defective).count();
        rejected += same.iter().filter(|(_, defective)| !defective).count();
        points.push([rejected as f64 / negatives as f64, found as f64 / positives as f64]);
    }
    // Corners alone: a point between two others on one line says nothing.
    let on_line = |[a, b, c]: [[f64; 2]; 3]| (b[0] - a[0]) * (c[1] - a[1]) == (c[0] - a[0]) * (b[1] - a[1]);
    let mut corners: Vec<[f64; 2]> = vec![];
    for point in points {
        while let [.., a, b] = corners[..]
            && on_line([a, b, point])
        {
            corners.pop();
        }
        corners.push(point);
    }
    Some(corners)
}

/// Draws the curve, with the verdicts at the threshold as a point on it. Nothing where there is no curve.
pub(super) fn draw(out: &mut String, class: &Class) {
    let scores = class.pictures.iter().map(|p| (p.score, p.kind != Kind::Good));
    let Some(curve) = curve(scores) else { return };
    let [width, height] = SIZE;
    let [x, y] = plot(width, height);
    let frame = Frame { width, height, x: Axis::linear([0.0, 1.0], 5, x), y: Axis::linear([0.0, 1.0], 5, y) };
    let auroc = class.figures.image_auroc.map_or("undefined".into(), |f| format!("{} %", percent(f.value)));
    frame.open(out, &format!("ROC curve of {}: area under it {auroc}.", class.name));
    frame.axes(out, "share of good pictures rejected", "share of defective pictures found");
    let ([left, right], [bottom, top]) = (x, y);
    put!(out, "<line class=\"chance\" x1=\"{left}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{top}\"/>\n");
    put!(out, "<text class=\"note end\" x=\"{:.1}\" y=\"{:.1}\">chance</text>\n", right - 62.0, top + 74.0);
    let corners = frame.points(curve.iter().copied());
    put!(out, "<polygon class=\"area\" points=\"{corners} {right},{bottom}\"/>\n");
    put!(out, "<polyline class=\"curve\" points=\"{corners}\"/>\n");
    put!(
        out,
        "<text class=\"note strong end\" x=\"{:.1}\" y=\"{:.1}\">AUROC {auroc}</text>\n",
        right - 8.0,
        bottom - 10.0
    );

    let judged = |defective: bool| {
        let mut verdicts = class.pictures.iter().filter(|p| (p.kind != Kind::Good) == defective);
        let total = verdicts.clone().count();
        verdicts.try_fold(0, |n, p| p.rejected.map(|r| n + usize::from(r))).map(|rejected| (rejected, total))
    };
    if let (Some((false_alarms, good)), Some((found, defective))) = (judged(false), judged(true)) {
        let at = [false_alarms as f64 / good as f64, found as f64 / defective as f64];
        let [px, py] = [frame.x.at(at[0]), frame.y.at(at[1])];
        put!(out, "<circle class=\"operating\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"5\"><title>at the threshold: ");
        put!(out, "{false_alarms} of {} rejected, ", count(good, "good picture"));
        put!(out, "{found} of {} found</title></circle>\n", count(defective, "defective picture"));
        // Beside the point, on the side with room, clear of the curve above it.
        let (dx, anchor) = if at[0] < 0.6 { (10.0, "note strong") } else { (-10.0, "note strong end") };
        put!(out, "<text class=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">at the threshold</text>\n", px + dx, py + 16.0);
    }
    frame.close(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(points: &[[f64; 2]]) -> f64 {
        points.windows(2).map(|p| (p[1][0] - p[0][0]) * (p[0][1] + p[1][1]) / 2.0).sum()
    }

    #[test]
    fn perfect_inverted_and_equal_scores() {
        let of = |scores: &[(f32, bool)]| curve(scores.iter().copied());
        let perfect = of(&[(0.1, false), (0.2, false), (0.8, true), (0.9, true)]).unwrap();
        assert_eq!(perfect, [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]);
        let inverted = of(&[(0.9, false), (0.2, true)]).unwrap();
        assert_eq!(inverted, [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]);
        assert_eq!(of(&[(0.5, false), (0.5, true), (0.5, true)]).unwrap(), [[0.0, 0.0], [1.0, 1.0]]);
        assert_eq!(of(&[(0.5, true)]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn its_area_counts_pairs_and_ties_half() {
        let scores = [(3.0, true), (2.0, false), (2.0, true), (2.0, true), (1.0, false), (0.5, true), (0.1, false)];
        let pairs = scores.iter().filter(|s| s.1).flat_map(|p| scores.iter().filter(|s| !s.1).map(move |n| (p.0, n.0)));
        let wins: f64 = pairs
            .map(|(p, n)| {
                if p > n {
                    1.0
                } else if p == n {
                    0.5
                } else {
                    0.0
                }
            })
            .sum();
        assert!((area(&curve(scores.into_iter()).unwrap()) - wins / 12.0).abs() < 1e-12);
    }
}
