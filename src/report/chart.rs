//! Axes, ticks and the frame that every chart of the page is drawn in, as SVG with selectable text.
//!
//! Ticks: step = {1, 2, 5} 10^k, the one that gives a number of ticks nearest to the wish; logarithmic: powers of ten,
//! with 2 and 5 between where they are few. Colours are classes of `style.css`, so that both themes have their own.

use super::html::{esc, put};

/// From values to places on the paper.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Values that are marked, and what is written there.
    pub ticks: Vec<(f64, String)>,
    from: f64,
    to: f64,
}

impl Axis {
    /// From `low` at `from` to `high` at `to`, with about `wish` ticks between.
    pub fn linear([low, high]: [f64; 2], wish: usize, [from, to]: [f64; 2]) -> Self {
        let [low, high] = proper(low, high);
        let step = step(high - low, wish);
        // The ends are often ticks themselves; rounding must not lose them.
        let (first, last) = ((low / step - 1e-6).ceil(), (high / step + 1e-6).floor());
        let ticks = (0..=(last - first) as usize).map(|i| (first + i as f64) * step);
        let ticks = ticks.map(|value| (value, label(value, step))).collect();
        Axis { low, high, log: false, ticks, from, to }
    }

    /// The same, widened until both ends are ticks.
    pub fn round([low, high]: [f64; 2], wish: usize, place: [f64; 2]) -> Self {
        let [low, high] = proper(low, high);
        let step = step(high - low, wish);
        let ends = [(low / step + 1e-6).floor() * step, (high / step - 1e-6).ceil() * step];
        Self::linear(ends, wish, place)
    }

    /// Logarithmic, for values above 0.
    pub fn log([low, high]: [f64; 2], [from, to]: [f64; 2]) -> Self {
        let low = if low.is_finite() && low > 0.0 { low } else { 1e-3 };
        let high = if high.is_finite() && high > low { high } else { 10.0 * low };
        let decades = (high / low).log10();
        let digits: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let stride = (decades / 6.0).ceil().max(1.0) as usize;
        let powers = (low.log10().floor() as i32..=high.log10().ceil() as i32).step_by(stride);
        let ticks = powers.flat_map(|power| digits.iter().map(move |d| d * 10_f64.powi(power)));
        let inside = ticks.filter(|value| (low * 0.999..=high * 1.001).contains(value));
        let ticks: Vec<_> = inside.map(|value| (value, label(value, 10_f64.powf(value.log10().floor())))).collect();
        // A range too narrow for such ticks is as good as linear.
        if ticks.len() < 2 {
            return Self::linear([low, high], 4, [from, to]);
        }
        Axis { low, high, log: true, ticks, from, to }
    }

    /// Place of a value; what lies beyond the ends stays at them.
    pub fn at(&self, value: f64) -> f64 {
        let t = match self.log {
            true => (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.from + t.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Both ends.
    #[cfg(test)]
    fn ends(&self) -> [f64; 2] {
        [self.low, self.high]
    }
}

/// An interval with room inside, whatever was measured.
fn proper(low: f64, high: f64) -> [f64; 2] {
    let [low, high] = [low, high].map(|x| if x.is_finite() { x.clamp(-1e300, 1e300) } else { 0.0 });
    let room = low.abs().max(high.abs()) * 1e-6;
    match high - low > room {
        true => [low, high],
        false => {
            let reach = if room > 0.0 { low.abs().max(high.abs()) * 0.1 } else { 1.0 };
            [low - reach, low + reach]
        }
    }
}

/// 1, 2 or 5 times a power of ten, so that `span` has about `wish` of it.
fn step(span: f64, wish: usize) -> f64 {
    let raw = span / wish.max(1) as f64;
    let power = 10_f64.powf(raw.log10().floor());
    // Geometric means of neighbours, so that the nearest by ratio is taken.
    let digit = match raw / power {
        r if r < 2_f64.sqrt() => 1.0,
        r if r < 10_f64.sqrt() => 2.0,
        r if r < 50_f64.sqrt() => 5.0,
        _ => 10.0,
    };
    digit * power
}

/// A tick's value with as many decimals as its step needs.
fn label(value: f64, step: f64) -> String {
    let value = if value.abs() < step * 1e-3 { 0.0 } else { value };
    let power = step.log10();
    let text = match value.abs() {
        0.0 if power < -4.5 => "0".into(),
        large if large >= 1e5 || (large > 0.0 && power < -4.5) => {
            // Two different ticks must not read alike.
            let digits = (large.log10().floor() - (power + 1e-9).floor()).clamp(0.0, 15.0) as usize;
            format!("{value:.digits$e}")
        }
        _ => format!("{value:.*}", (-(power + 1e-9).floor()).max(0.0) as usize),
    };
    text.replace('-', "−")
}

/// Paper of a chart, in units that are pixels at its natural size, and where the plot lies on it.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub width: f64,
    pub height: f64,
    pub x: Axis,
    pub y: Axis,
}

/// Room for the axes: left, right, top, bottom.
pub(super) const MARGIN: [f64; 4] = [46.0, 14.0, 30.0, 42.0];

/// Where the axes of a chart of this size run: x from left to right, y from bottom to top.
pub(super) fn plot(width: f64, height: f64) -> [[f64; 2]; 2] {
    let [left, right, top, bottom] = MARGIN;
    [[left, width - right], [height - bottom, top]]
}

impl Frame {
    /// Opens the picture; `alt` says in a sentence what it shows.
    pub fn open(&self, out: &mut String, alt: &str) {
        let (w, h) = (self.width, self.height);
        put!(out, "<svg class=\"chart\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" role=\"img\" ");
        put!(out, "aria-label=\"{}\">\n", esc(alt));
    }

    /// Ends it.
    pub fn close(&self, out: &mut String) {
        out.push_str("</svg>\n");
    }

    /// Axes with ticks and what they measure: x below, y above its axis, where it can be read without turning the head.
    pub fn axes(&self, out: &mut String, x: &str, y: &str) {
        let ([left, right], [bottom, top]) = ([self.x.from, self.x.to], [self.y.from, self.y.to]);
        out.push_str("<g class=\"axes\">\n");
        for (value, label) in &self.y.ticks {
            let at = self.y.at(*value);
            put!(out, "<line class=\"rule\" x1=\"{left:.1}\" y1=\"{at:.1}\" x2=\"{right:.1}\" y2=\"{at:.1}\"/>");
            put!(out, "<text class=\"tick end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n", left - 7.0, at + 3.8, esc(label));
        }
        put!(out, "<line class=\"axis\" x1=\"{left:.1}\" y1=\"{bottom:.1}\" x2=\"{right:.1}\" y2=\"{bottom:.1}\"/>\n");
        for (value, label) in &self.x.ticks {
            let at = self.x.at(*value);
            put!(
                out,
                "<line class=\"axis\" x1=\"{at:.1}\" y1=\"{bottom:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>",
                bottom + 4.0
            );
            put!(out, "<text class=\"tick mid\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>\n", bottom + 17.0, esc(label));
        }
        put!(out, "<text class=\"what end\" x=\"{right:.1}\" y=\"{:.1}\">{}</text>\n", bottom + 35.0, esc(x));
        put!(out, "<text class=\"what\" x=\"2\" y=\"{:.1}\">{}</text>\n</g>\n", top - 16.0, esc(y));
    }

    /// Points as `x,y x,y …` of a `polyline` or `polygon`.
    pub fn points(&self, points: impl IntoIterator<Item = [f64; 2]>) -> String {
        let place = |[x, y]: [f64; 2]| format!("{:.1},{:.1}", self.x.at(x), self.y.at(y));
        points.into_iter().map(place).collect::<Vec<_>>().join(" ")
    }
}

/// The mark of a good picture, a circle, or of a defective one, a triangle; `tip` is shown when pointed at.
pub(super) fn mark(out: &mut String, [x, y]: [f64; 2], defective: bool, attributes: &str, tip: &str) {
    match defective {
        false => put!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\" {attributes}>"),
        true => put!(
            out,
            "<path d=\"M{:.1} {:.1}l4.4 7.6h-8.8z\" {attributes}>",
            x,
            y - 5.1 // the centre of gravity on the point
        ),
    }
    put!(out, "<title>{}</title>{}\n", esc(tip), if defective { "</path>" } else { "</circle>" });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        let linear = |low, high, wish| Axis::linear([low, high], wish, [0.0, 1.0]);
        assert_eq!(labels(&linear(0.0, 1.0, 5)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&linear(-1.0, 1.0, 4)), ["−1.0", "−0.5", "0.0", "0.5", "1.0"]);
        assert_eq!(labels(&linear(3.0, 98.0, 5)), ["20", "40", "60", "80"]);
        assert_eq!(labels(&linear(0.0, 3e-7, 3)), ["0", "1e−7", "2e−7", "3e−7"]);
        assert_eq!(labels(&linear(1e6, 1.3e6, 3)), ["1.0e6", "1.1e6", "1.2e6", "1.3e6"]);
    }

    #[test]
    fn every_range_has_ticks_inside_and_no_two_alike() {
        let ranges = [
            (0.0, 0.0),
            (7.0, 7.0),
            (-3.0, -3.0),
            (1e-30, 2e-30),
            (-1e300, 1e300),
            (f64::NAN, 1.0),
            (0.0, f64::INFINITY),
            (5.0, 1.0),
            (1e9, 1e9 + 1.0),
            (0.99999, 1.0),
        ];
        for (low, high) in ranges {
            for axis in [
                Axis::linear([low, high], 5, [10.0, 90.0]),
                Axis::round([low, high], 5, [10.0, 90.0]),
                Axis::log([low, high], [10.0, 90.0]),
            ] {
                let [a, b] = axis.ends();
                assert!(a < b && !axis.ticks.is_empty() && axis.ticks.len() <= 20, "{low} {high}: {axis:?}");
                assert!(axis.ticks.iter().all(|(v, _)| *v >= a - (b - a) * 0.01 && *v <= b + (b - a) * 0.01));
                assert!(axis.ticks.windows(2).all(|pair| pair[0].1 != pair[1].1), "{axis:?}");
                assert_eq!((axis.at(a), axis.at(b)), (10.0, 90.0));
            }
        }
    }

    #[test]
    fn logarithmic_ticks_follow_the_decades() {
        assert_eq!(labels(&Axis::log([0.01, 1.0], [0.0, 1.0])), ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]);
        assert_eq!(labels(&Axis::log([1.0, 1e4], [0.0, 1.0])), ["1", "10", "100", "1000", "10000"]);
        let axis = Axis::log([0.1, 10.0], [0.0, 100.0]);
        assert!((axis.at(1.0) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn round_ends_hold_the_data() {
        let axis = Axis::round([0.13, 0.87], 4, [0.0, 1.0]);
        assert_eq!(axis.ends().map(|x| (x * 1e9).round() / 1e9), [0.0, 1.0]);
        assert_eq!(labels(&axis).first(), Some(&"0.0"));
    }

    #[test]
    fn places_are_clamped_to_the_plot() {
        let axis = Axis::linear([0.0, 2.0], 4, [100.0, 0.0]);
        assert_eq!([-5.0, 0.0, 1.0, 2.0, 9.0].map(|v| axis.at(v)), [100.0, 100.0, 50.0, 0.0, 0.0]);
    }
}
