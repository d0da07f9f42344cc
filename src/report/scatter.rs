//! Where pictures and their positions lie in the two grids: Figures 3 and 4 of the paper.
//!
//! A grid of side R reads bilinearly with corners not aligned: node k lies at coordinate (2k + 1) / R - 1, the cell
//! around it is 2 / R wide. The first coordinate runs along the grid's columns, the second along its rows.

use super::chart::{Axis, Frame, mark, plot};
use super::data::{Class, GlobalMap, GridLine, GridSample, Kind, LocalMap, LocalPair, Report};
use super::html::{esc, name, put, shorten};
use super::thumbnail::{Thumbnail, grey};
use crate::heatmap::oklch;

/// Characters of a class's name in a chart.
const LABEL: usize = 22;

/// A square plot from -1 to 1 with the cells and nodes of a grid of side `resolution`.
fn square(out: &mut String, side: f64, resolution: usize, alt: &str) -> Frame {
    let [x, y] = plot(side, side);
    // As wide as high, so that distances mean the same in both directions.
    let y = [y[0], y[0] - (x[1] - x[0])];
    let axis = |place| Axis::linear([-1.0, 1.0], 4, place);
    let frame = Frame { width: side, height: y[0] + 42.0, x: axis(x), y: axis(y) };
    frame.open(out, alt);
    frame.axes(out, "first coordinate (columns of the grid)", "second coordinate (rows)");
    let resolution = resolution.clamp(1, 64);
    out.push_str("<g class=\"grid\">\n");
    for edge in 0..=resolution {
        let at = 2.0 * edge as f64 / resolution as f64 - 1.0;
        let (x, y) = (frame.x.at(at), frame.y.at(at));
        let [left, right, top, bottom] = [frame.x.at(-1.0), frame.x.at(1.0), frame.y.at(1.0), frame.y.at(-1.0)];
        put!(out, "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>");
        put!(out, "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\"/>\n");
    }
    let node = |k: usize| (2 * k + 1) as f64 / resolution as f64 - 1.0;
    for (i, j) in (0..resolution).flat_map(|i| (0..resolution).map(move |j| (i, j))) {
        let (x, y) = (frame.x.at(node(i)), frame.y.at(node(j)));
        put!(out, "<path d=\"M{:.1} {y:.1}h5M{x:.1} {:.1}v5\"/>", x - 2.5, y - 2.5);
    }
    out.push_str("</g>\n");
    frame
}

/// A colour per class: hues all around, lightness alternating, so that neighbours differ without hue too.
pub(super) fn class_colour(class: usize, classes: usize) -> String {
    let hue = 290.0 - 360.0 * class as f64 / classes.max(1) as f64;
    let [r, g, b] = oklch([0.58, 0.72, 0.65][class % 3], 0.14, hue);
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// All test pictures in the global grid, each class named where its pictures lie.
pub(super) fn global(out: &mut String, map: &GlobalMap, report: &Report) {
    let classes = &report.classes;
    let alt = format!("{} test pictures of {} classes in the global grid.", map.points.len(), classes.len());
    let frame = square(out, 560.0, map.resolution, &alt);
    let place = |at: [f32; 2]| {
        let [x, y] = at.map(f64::from);
        [frame.x.at(x), frame.y.at(y)]
    };
    let known = |class: usize| -> Option<&Class> { classes.get(class) };
    for point in map.points.iter().filter(|p| p.at.iter().all(|x| x.is_finite())) {
        let Some((class, picture)) = known(point.class).and_then(|c| Some((c, c.pictures.get(point.picture)?))) else {
            continue;
        };
        let defective = picture.kind != Kind::Good;
        let colour = class_colour(point.class, classes.len());
        let tip = format!("{} · {} · score {}", class.name, picture.name, picture.score);
        mark(out, place(point.at), defective, &format!("class=\"point\" fill=\"{colour}\""), &tip);
    }
    let mut labels: Vec<([f64; 2], usize)> = (0..classes.len())
        .filter_map(|class| {
            let of_class = map.points.iter().filter(|p| p.class == class && p.at.iter().all(|x| x.is_finite()));
            let (mut x, mut y): (Vec<f64>, Vec<f64>) = of_class.map(|p| (place(p.at)[0], place(p.at)[1])).unzip();
            // Above its pictures.
            Some(([median(&mut x)?, median(&mut y)? - 12.0], class))
        })
        .collect();
    spread(&mut labels, frame.width);
    for ([x, y], class) in labels {
        let text = shorten(&classes[class].name, LABEL);
        put!(out, "<text class=\"name mid\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>\n", esc(&text));
    }
    for (i, sample) in map.samples.iter().enumerate().filter(|(_, s)| s.at.iter().all(|x| x.is_finite())) {
        // Beside its place, which the pictures that lie there would hide.
        let ([px, py], side) = (place(sample.at), if i.is_multiple_of(2) { 1.0 } else { -1.0 });
        let (x, y) = (px + side * 30.0, py + side * 22.0);
        put!(out, "<g class=\"pin\"><line x1=\"{px:.1}\" y1=\"{py:.1}\" x2=\"{x:.1}\" y2=\"{y:.1}\"/>");
        put!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"8.5\"/>");
        put!(out, "<text class=\"mid\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>", y + 3.9, i + 1);
        put!(out, "<title>{}</title></g>\n", esc(&sample.label));
    }
    frame.close(out);
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Moves names that would cover each other apart, downwards, in a fixed order.
fn spread(labels: &mut [([f64; 2], usize)], width: f64) {
    const LINE: f64 = 14.0;
    labels.sort_by(|a, b| a.0[1].total_cmp(&b.0[1]).then(a.1.cmp(&b.1)));
    for i in 1..labels.len() {
        for j in 0..i {
            let ([ax, ay], [bx, by]) = (labels[j].0, labels[i].0);
            if (ax - bx).abs() < width / 7.0 && by - ay < LINE {
                labels[i].0[1] = ay + LINE;
            }
        }
    }
}

/// A key of the classes' colours and of the two marks.
pub(super) fn key(out: &mut String, classes: &[Class]) {
    out.push_str("<ul class=\"key\">\n");
    for (i, class) in classes.iter().enumerate() {
        out.push_str(
            "<li><svg class=\"swatch\" viewBox=\"0 0 12 12\" width=\"12\" height=\"12\" aria-hidden=\"true\">",
        );
        put!(out, "<rect width=\"12\" height=\"12\" rx=\"3\" fill=\"{}\"/></svg>", class_colour(i, classes.len()));
        put!(out, "{}</li>\n", name(&class.name, LABEL));
    }
    for (defective, text) in [(false, "good"), (true, "defective")] {
        out.push_str(
            "<li><svg class=\"swatch\" viewBox=\"0 0 12 12\" width=\"12\" height=\"12\" aria-hidden=\"true\">",
        );
        mark(out, [6.0, 6.4], defective, "class=\"neutral\"", text);
        put!(out, "</svg>{text}</li>\n");
    }
    out.push_str("</ul>\n");
}

/// Chosen places of the global grid: a row of channel maps each. Every channel has one scale in all rows, so that rows
/// can be compared.
pub(super) fn samples(out: &mut String, samples: &[GridSample]) {
    out.push_str("<div class=\"samples\">\n");
    for (i, sample) in samples.iter().enumerate() {
        put!(out, "<figure class=\"sample\"><figcaption><b class=\"pin\">{}</b> {} ", i + 1, name(&sample.label, 60));
        let [x, y] = sample.at;
        put!(out, "<span class=\"at\">({x:.2}, {y:.2})</span></figcaption><div class=\"maps\">");
        for map in &sample.channels {
            let same = samples.iter().flat_map(|s| &s.channels).filter(|m| m.channel == map.channel);
            let range = same.flat_map(|m| &m.values).filter(|v| v.is_finite());
            let range = range.fold([f32::MAX, f32::MIN], |[low, high], v| [low.min(*v), high.max(*v)]);
            let Some(picture) = grey(map, range) else { continue };
            put!(out, "<span><img class=\"pixels\" alt=\"channel {} at place {}\" ", map.channel, i + 1);
            put!(out, "width=\"{}\" height=\"{}\" ", picture.width, picture.height);
            put!(out, "src=\"{}\"><small>channel {}</small></span>", picture.uri(), map.channel);
        }
        out.push_str("</div></figure>\n");
    }
    out.push_str("</div>\n");
}

/// Places between two classes in the global grid, as pictures.
pub(super) fn line(out: &mut String, line: &GridLine) {
    let ends: Vec<String> = line.ends.iter().map(|end| name(end, LABEL)).collect();
    put!(out, "<figure class=\"line\"><figcaption>{}</figcaption>\n", ends.join(" to "));
    for (row, end) in line.rows.iter().zip(&line.ends) {
        if line.rows.len() > 1 {
            put!(out, "<small>local part of {}</small>\n", name(end, LABEL));
        }
        out.push_str("<div class=\"steps\">");
        for (picture, [x, y]) in row.iter().zip(&line.places) {
            put!(out, "<span><button type=\"button\" class=\"zoom\"><img loading=\"lazy\" ");
            put!(out, "alt=\"{} at {x:.2}, {y:.2}, decoded\" ", esc(&line.ends.join(" to ")));
            put!(out, "width=\"{}\" height=\"{}\" src=\"{}\"></button>", picture.width, picture.height, picture.uri());
            put!(out, "<small class=\"at\">{x:.2}, {y:.2}</small></span>");
        }
        out.push_str("</div>\n");
    }
    out.push_str("</figure>\n");
}

/// A pair of pictures with their positions marked, and where these went in the local grid.
pub(super) fn local(out: &mut String, map: &LocalMap, pair: &LocalPair) {
    put!(out, "<figure class=\"local\"><figcaption>{}</figcaption><div class=\"pair\">\n", name(&pair.class, 60));
    for (picture, kind) in [(&pair.good, "good"), (&pair.defective, "defective")] {
        marked(out, map, pair, picture, kind);
    }
    out.push_str("</div>\n");
    let alt = format!("Local coordinates of {} positions in two pictures of {}.", pair.points.len(), pair.class);
    let frame = square(out, 420.0, map.resolution, &alt);
    let place = |at: [f32; 2]| {
        let [x, y] = at.map(f64::from);
        [frame.x.at(x), frame.y.at(y)]
    };
    let finite = |at: [f32; 2]| at.iter().all(|v| v.is_finite());
    for point in pair.points.iter().filter(|p| finite(p.good) && finite(p.defective)) {
        let ([ax, ay], [bx, by]) = (place(point.good), place(point.defective));
        put!(out, "<line class=\"link\" x1=\"{ax:.1}\" y1=\"{ay:.1}\" x2=\"{bx:.1}\" y2=\"{by:.1}\"/>");
        for (at, defective, kind) in [(point.good, false, "good"), (point.defective, true, "defective")] {
            let tip = format!("position {} of the {kind} picture: {:.3}, {:.3}", point.position, at[0], at[1]);
            mark(out, place(at), defective, &format!("class=\"{kind}\""), &tip);
        }
        put!(
            out,
            "<text class=\"note strong\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            ax + 6.0,
            ay - 5.0,
            point.position
        );
    }
    frame.close(out);
    out.push_str("</figure>\n");
}

/// A picture with the numbered positions on it.
fn marked(out: &mut String, map: &LocalMap, pair: &LocalPair, picture: &Thumbnail, kind: &str) {
    let (w, h) = (f64::from(picture.width), f64::from(picture.height));
    let [rows, columns] = map.features.map(|n| n.max(1));
    put!(out, "<svg class=\"marked\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" role=\"img\" ");
    put!(out, "aria-label=\"{kind} picture of {} with its positions marked\">", esc(&pair.class));
    put!(out, "<image href=\"{}\" width=\"{w}\" height=\"{h}\"/>\n", picture.uri());
    // A seventh of the usual side per number keeps them readable on pictures of every size.
    let unit = w.max(h) / 320.0;
    for point in pair.points.iter().filter(|p| p.position / columns < rows) {
        let [x, y] = [
            ((point.position % columns) as f64 + 0.5) / columns as f64 * w,
            ((point.position / columns) as f64 + 0.5) / rows as f64 * h,
        ];
        mark(
            out,
            [x, y],
            kind == "defective",
            &format!("class=\"{kind} halo\""),
            &format!("position {}", point.position),
        );
        let (anchor, dx) = if x > 0.85 * w { (" end", -7.0) } else { ("", 7.0) };
        put!(out, "<text class=\"on-picture{anchor}\" font-size=\"{:.1}\" ", 15.0 * unit);
        put!(out, "x=\"{:.1}\" ", x + dx * unit);
        put!(out, "y=\"{:.1}\">{}</text>\n", y + 5.0 * unit, point.position);
    }
    out.push_str("</svg>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_lie_where_the_grid_reads_them() {
        let mut out = String::new();
        let frame = square(&mut out, 560.0, 4, "");
        for at in [-0.75, -0.25, 0.25, 0.75] {
            let x = frame.x.at(at) - 2.5;
            assert_eq!(out.matches(&format!("d=\"M{x:.1} ")).count(), 4, "{at}");
        }
        let [wide, high] = [frame.x.at(1.0) - frame.x.at(-1.0), frame.y.at(-1.0) - frame.y.at(1.0)];
        assert_eq!(wide, high);
    }

    #[test]
    fn a_hundred_classes_have_a_hundred_colours() {
        let mut colours: Vec<_> = (0..100).map(|i| class_colour(i, 100)).collect();
        colours.sort();
        colours.dedup();
        assert_eq!(colours.len(), 100);
    }

    #[test]
    fn names_do_not_cover_each_other() {
        let mut labels: Vec<_> = (0..6).map(|i| ([100.0, 100.0 + f64::from(i)], i as usize)).collect();
        spread(&mut labels, 560.0);
        assert!(labels.windows(2).all(|pair| pair[1].0[1] - pair[0].0[1] >= 14.0), "{labels:?}");
    }
}
