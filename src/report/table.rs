//! The table at the top: a row per class, their mean and the worst of each column.

use super::data::{Class, Figure, Figures, Report};
use super::html::{decimals, name, percent, put};

/// A column: its heading, what it means, its value.
type Column = (&'static str, &'static str, fn(&Figures) -> Option<Figure>);

const IMAGE: [Column; 4] = [
    ("AUROC", "chance that a defective picture scores higher than a good one", |f| f.image_auroc),
    ("AP", "average precision of pictures", |f| f.image_ap),
    ("F1max", "best F1 of pictures, at the threshold that is best for these labels: an oracle", |f| f.image_f1_max),
    ("R@1 %", "share of defective pictures found when at most 1 % of the good test pictures are rejected", |f| {
        f.recall
    }),
];
const PIXEL: [Column; 4] = [
    ("AUROC", "chance that a defective pixel scores higher than a good one", |f| f.pixel_auroc),
    ("AP", "average precision of pixels", |f| f.pixel_ap),
    ("F1max", "best F1 of pixels: an oracle", |f| f.pixel_f1_max),
    ("AUPRO", "overlap with each defect, averaged up to 30 % false positives", |f| f.aupro),
];

/// Draws it.
pub(super) fn draw(out: &mut String, report: &Report) {
    out.push_str("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"figures per class\">\n");
    out.push_str("<table class=\"figures\"><thead>\n<tr><th></th><th></th><th></th>");
    out.push_str("<th colspan=\"4\" class=\"span\">pictures, %</th><th colspan=\"4\" class=\"span\">pixels, %</th>");
    out.push_str("<th></th></tr>\n<tr><th scope=\"col\" data-sort=\"text\">class</th>");
    out.push_str(
        "<th scope=\"col\" data-sort=\"number\">good</th><th scope=\"col\" data-sort=\"number\">defective</th>",
    );
    for (head, meaning, _) in IMAGE.iter().chain(&PIXEL) {
        put!(out, "<th scope=\"col\" data-sort=\"number\" title=\"{meaning}\">{head}</th>");
    }
    out.push_str("<th scope=\"col\" data-sort=\"number\" title=\"scores above it are rejected\">threshold</th></tr>\n");
    out.push_str("</thead><tbody>\n");
    let all = || report.classes.iter();
    let digits = decimals(all().filter_map(|c| c.threshold.as_ref()).map(|t| f64::from(t.value)));
    for (i, class) in report.classes.iter().enumerate() {
        let [good, defective] = class.counts();
        put!(out, "<tr><th scope=\"row\"><a href=\"#class-{i}\">{}</a></th>", name(&class.name, 40));
        put!(out, "<td>{good}</td><td>{defective}</td>");
        cells(out, &class.figures);
        match &class.threshold {
            Some(threshold) => put!(out, "<td>{:.digits$}</td></tr>\n", threshold.value),
            None => out.push_str("<td>–</td></tr>\n"),
        }
    }
    out.push_str("</tbody><tfoot>\n<tr><th scope=\"row\">mean</th>");
    let total = |kind: usize| all().map(|c| c.counts()[kind]).sum::<usize>();
    put!(out, "<td>{}</td><td>{}</td>", total(0), total(1));
    cells(out, &report.mean);
    out.push_str("<td></td></tr>\n<tr><th scope=\"row\">worst</th><td></td><td></td>");
    for (_, _, figure) in IMAGE.iter().chain(&PIXEL) {
        let worst = all().filter_map(|c| figure(&c.figures)).map(|f| f.value).min_by(f64::total_cmp);
        put!(out, "<td>{}</td>", worst.map_or("–".into(), percent));
    }
    out.push_str("<td></td></tr>\n</tfoot></table></div>\n");
}

fn cells(out: &mut String, figures: &Figures) {
    for (_, _, figure) in IMAGE.iter().chain(&PIXEL) {
        match figure(figures) {
            None => out.push_str("<td>–</td>"),
            Some(Figure { value, interval: None }) => put!(out, "<td>{}</td>", percent(value)),
            Some(Figure { value, interval: Some([low, high]) }) => {
                let [low, high] = [low, high].map(|end| 100.0 * end);
                put!(out, "<td>{}<small>{low:.0}–{high:.0}</small></td>", percent(value));
            }
        }
    }
}

impl Class {
    /// Good and defective test pictures.
    pub(super) fn counts(&self) -> [usize; 2] {
        let defective = self.pictures.iter().filter(|p| p.kind != super::data::Kind::Good).count();
        [self.pictures.len() - defective, defective]
    }
}
