//! The training, epoch by epoch: small charts of one quantity each, on one time axis.

use super::chart::{Axis, Frame, plot};
use super::data::Epoch;
use super::html::put;

const SIZE: [f64; 2] = [420.0, 230.0];
/// Room on the right for the names of the lines.
const NAMES: f64 = 62.0;

/// A line: its name, its class in the style sheet, its value in an epoch.
type Line = (&'static str, &'static str, fn(&Epoch) -> Option<f64>);

const CHARTS: [(&str, &[Line]); 4] = [
    ("training loss", &[("loss", "first", |e| Some(e.loss))]),
    ("gradient norm before clipping", &[("norm", "first", |e| Some(e.gradient_norm))]),
    ("learning rate", &[("grids", "second", |e| Some(e.grid_rate)), ("network", "first", |e| Some(e.rate))]),
    (
        "AUROC on the test pictures, %",
        &[
            ("image", "first", |e| e.image_auroc.map(|a| 100.0 * a)),
            ("pixel", "second", |e| e.pixel_auroc.map(|a| 100.0 * a)),
        ],
    ),
];

/// Draws a chart of each quantity that was recorded.
pub(super) fn draw(out: &mut String, epochs: &[Epoch]) {
    for (title, lines) in CHARTS {
        let recorded = |line: &Line| epochs.iter().any(|e| (line.2)(e).is_some_and(f64::is_finite));
        if lines.iter().any(recorded) {
            out.push_str("<figure>");
            chart(out, epochs, title, lines);
            out.push_str("</figure>\n");
        }
    }
}

fn chart(out: &mut String, epochs: &[Epoch], title: &str, lines: &[Line]) {
    let values = |line: &Line| {
        let value = line.2;
        epochs.iter().map(move |e| (e.epoch as f64, value(e).filter(|v| v.is_finite())))
    };
    let all = || lines.iter().flat_map(values).filter_map(|(_, value)| value);
    let (low, high) = all().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let [width, height] = SIZE;
    let [[left, right], y] = plot(width, height);
    let right = right - NAMES;
    let ends = epochs.iter().map(|e| e.epoch as f64);
    let (first, last) = ends.fold((f64::MAX, f64::MIN), |(first, last), e| (first.min(e), last.max(e)));
    let mut x = Axis::linear([first, last], 6, [left, right]);
    x.ticks.retain(|(epoch, _)| epoch.fract().abs() < 1e-6);
    // What falls by much more than it ends with needs a logarithmic axis to be seen at its end.
    let y_axis = if low > 0.0 && high / low > 8.0 { Axis::log([low, high], y) } else { Axis::round([low, high], 4, y) };
    let frame = Frame { width, height, x, y: y_axis };
    let ended: Vec<String> = lines
        .iter()
        .filter_map(|line| Some(format!("{} ends at {:.4}", line.0, values(line).filter_map(|(_, v)| v).next_back()?)))
        .collect();
    frame.open(out, &format!("{title} by epoch: {}.", ended.join(", ")));
    frame.axes(out, "epoch", title);
    let mut names = vec![];
    for line in lines {
        let series: Vec<(f64, Option<f64>)> = values(line).collect();
        // An epoch that diverged interrupts the line; one where nothing was measured does not.
        let measured: Vec<_> =
            epochs.iter().zip(series).filter(|(e, _)| (line.2)(e).is_some()).map(|(_, p)| p).collect();
        for run in measured.split(|(_, value)| value.is_none()).filter(|run| !run.is_empty()) {
            let points = run.iter().filter_map(|(epoch, value)| Some([*epoch, (*value)?]));
            put!(out, "<polyline class=\"line {}\" points=\"{}\"/>\n", line.1, frame.points(points));
        }
        let points: Vec<[f64; 2]> = measured.iter().filter_map(|(epoch, value)| Some([*epoch, (*value)?])).collect();
        let dots = if points.len() <= 60 { "dot" } else { "dot hidden" };
        for [epoch, value] in &points {
            let [x, y] = [frame.x.at(*epoch), frame.y.at(*value)];
            put!(out, "<circle class=\"{dots} {}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\">", line.1);
            put!(out, "<title>epoch {epoch}: {} {}</title></circle>", line.0, short(*value));
        }
        if let Some([_, value]) = points.last() {
            names.push((frame.y.at(*value), line, short(*value)));
        }
    }
    for (y, line, value) in apart(names) {
        put!(out, "<text class=\"note {}\" x=\"{:.1}\" y=\"{:.1}\">{}", line.1, right + 8.0, y - 2.0, line.0);
        put!(out, "<tspan x=\"{:.1}\" dy=\"12\">{value}</tspan></text>\n", right + 8.0);
    }
    frame.close(out);
}

/// Four digits, with an exponent where decimals would be many.
fn short(value: f64) -> String {
    match value.abs() {
        small if small > 0.0 && small < 1e-3 => format!("{value:.1e}").replace('-', "−"),
        large if large >= 1e4 => format!("{value:.1e}"),
        _ => format!("{value:.*}", super::html::decimals([value].into_iter()).min(4)),
    }
}

/// Moves two lines of text that would overlap away from each other.
fn apart<T>(mut names: Vec<(f64, T, String)>) -> Vec<(f64, T, String)> {
    const LINE: f64 = 27.0;
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    if let [first, second] = &mut names[..]
        && second.0 - first.0 < LINE
    {
        let middle = (first.0 + second.0) / 2.0;
        (first.0, second.0) = (middle - LINE / 2.0, middle + LINE / 2.0);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(epoch: usize, loss: f64) -> Epoch {
        let (rate, grid_rate, gradient_norm) = (0.001, 0.1, 0.5);
        Epoch { epoch, loss, rate, grid_rate, gradient_norm, image_auroc: None, pixel_auroc: None }
    }

    #[test]
    fn an_epoch_that_diverged_interrupts_the_line() {
        let mut out = String::new();
        chart(&mut out, &[epoch(1, 0.5), epoch(2, 0.4), epoch(3, f64::NAN), epoch(4, 0.3)], CHARTS[0].0, CHARTS[0].1);
        assert_eq!(out.matches("<polyline").count(), 2);
        assert!(!out.contains("NaN"), "{out}");
    }

    #[test]
    fn measuring_now_and_then_does_not() {
        let epochs = [0.7, 0.0, 0.9].map(|a| Epoch { image_auroc: (a > 0.0).then_some(a), ..epoch(1, 0.1) });
        let mut out = String::new();
        draw(&mut out, &epochs);
        assert_eq!(out.matches("<figure>").count(), 4);
        assert_eq!(out.matches("<polyline").count(), 5);
        let mut out = String::new();
        draw(&mut out, &[epoch(1, 0.1)]);
        assert_eq!(out.matches("<figure>").count(), 3);
        draw(&mut out, &[]);
        assert_eq!(out.matches("<figure>").count(), 3);
    }

    #[test]
    fn names_do_not_overlap() {
        let y: Vec<f64> =
            apart(vec![(50.0, (), String::new()), (48.0, (), String::new())]).iter().map(|n| n.0).collect();
        assert_eq!(y, [35.5, 62.5]);
    }
}
