//! A study as a page: the table of its rows, a chart of each figure with every run in it, and the classes.

use super::chart::{Axis, Frame, mark};
use super::html::{count, esc, name, percent, put, shorten};
use super::page::{closing, opening};
use crate::error::Result;
use crate::metrics::{ClassSpread, Spread};
use crate::study::{COLUMNS, Row, Run, Study};

/// Width of a chart, and room for the names of rows on its left.
const WIDTH: f64 = 560.0;
const NAMES: f64 = 170.0;
const SURVIVES: &str = "share of a defect that is still there in the reconstruction: 0 is removed, 100 is copied";
/// Height of a row, and of what is above and below all of them.
const LINE: f64 = 24.0;
const ROOM: [f64; 2] = [30.0, 42.0];

/// The page of a study that lies in `folder`.
///
/// # Errors
/// As [`Row::spread`].
pub fn study_page(study: &Study, title: &str, folder: &str) -> Result<String> {
    let spreads = study.rows.iter().map(Row::spread).collect::<Result<Vec<_>>>()?;
    let rows: Vec<(&Row, Option<Spread>)> = study.rows.iter().zip(spreads).collect();
    let mut out = String::new();
    opening(&mut out, title, "GRAD study", &["summary", "classes", "facts"]);
    summary(&mut out, study, &rows);
    classes(&mut out, study, &rows);
    facts(&mut out, study, folder);
    closing(&mut out);
    Ok(out)
}

fn summary(out: &mut String, study: &Study, rows: &[(&Row, Option<Spread>)]) {
    let runs: usize = study.rows.iter().map(|row| row.runs.len()).sum();
    out.push_str("<section id=\"summary\"><h2>Summary</h2>\n");
    put!(out, "<p class=\"lead\">The <b>{}</b> study: {} from ", study.kind.name(), count(study.rows.len(), "row"));
    put!(out, "{}, {} in all, ", count(study.seeds.len(), "seed"), count(runs, "run"));
    put!(out, "trained on {} and measured on {}.</p>\n", count(study.images, "picture"), study.tested);
    let warnings = study.warnings();
    let missing = study.rows.len() * study.seeds.len() - runs.min(study.rows.len() * study.seeds.len());
    if !warnings.is_empty() || missing > 0 {
        out.push_str("<aside class=\"warning\" role=\"note\"><h3>Before you trust this</h3>\n<ul>\n");
        if missing > 0 {
            put!(out, "<li>The study is not finished: {} missing.</li>\n", count(missing, "run"));
        }
        warnings.iter().for_each(|warning| put!(out, "<li>{}</li>\n", esc(warning)));
        out.push_str("</ul></aside>\n");
    }
    open_table(out, "rows of the study", "row");
    let survival = study.rows.iter().any(|row| row.survival(None).is_some());
    if survival {
        put!(out, "<th scope=\"col\" data-sort=\"number\" title=\"{SURVIVES}\">survives</th>");
    }
    out.push_str("<th scope=\"col\" data-sort=\"number\" title=\"of the training steps of a run\">seconds</th>");
    out.push_str("<th scope=\"col\" data-sort=\"number\">runs</th></tr></thead><tbody>\n");
    for (row, spread) in rows {
        put!(out, "<tr><th scope=\"row\">{}</th>", name(&row.about, 40));
        cells(out, spread.as_ref().map(|spread| &spread.mean));
        if survival {
            let (mean, std) = row.survival(None).unzip();
            cell(out, mean, std.flatten());
        }
        let seconds = row.seconds().map_or("–".into(), |seconds| format!("{seconds:.1}"));
        put!(out, "<td>{seconds}</td><td>{}</td></tr>\n", row.runs.len());
    }
    out.push_str(
        "</tbody></table></div>\n<p class=\"note\">Per cent. Each run's figure is the mean over its classes; ",
    );
    out.push_str("here are mean and sample standard deviation over the seeds.</p>\n<div class=\"charts\">\n");
    for (title, figure) in COLUMNS {
        chart(out, title, rows, &|run| figure(&run.metrics.mean));
    }
    if survival {
        chart(out, "survival of defects", rows, &|run| {
            let of_classes = run.survival.values();
            (of_classes.len() > 0).then(|| of_classes.sum::<f64>() / run.survival.len() as f64)
        });
    }
    out.push_str("</div>\n</section>\n");
}

/// The head of a table of figures, its last row still open.
fn open_table(out: &mut String, label: &str, first: &str) {
    put!(out, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\">\n");
    put!(out, "<table class=\"figures\"><thead><tr><th scope=\"col\" data-sort=\"text\">{first}</th>");
    for (head, _) in COLUMNS {
        put!(out, "<th scope=\"col\" data-sort=\"number\">{head}</th>");
    }
}

fn cells(out: &mut String, of: Option<&ClassSpread>) {
    for (_, figure) in COLUMNS {
        cell(out, of.and_then(|of| figure(&of.mean)), of.and_then(|of| figure(&of.std)));
    }
}

fn cell(out: &mut String, mean: Option<f64>, std: Option<f64>) {
    match (mean, std) {
        (Some(mean), Some(std)) => put!(out, "<td>{}<small>± {}</small></td>", percent(mean), percent(std)),
        (Some(mean), None) => put!(out, "<td>{}</td>", percent(mean)),
        _ => out.push_str("<td>–</td>"),
    }
}

/// A line for each row: a mark for each run, a stroke at their mean.
fn chart(out: &mut String, title: &str, rows: &[(&Row, Option<Spread>)], figure: &dyn Fn(&Run) -> Option<f64>) {
    let values = |row: &Row| -> Vec<(u64, f64)> {
        row.runs.iter().filter_map(|run| Some((run.seed, 100.0 * figure(run)?))).collect()
    };
    let all: Vec<f64> = rows.iter().flat_map(|(row, _)| values(row)).map(|(_, value)| value).collect();
    if all.is_empty() {
        return;
    }
    let ends = [all.iter().copied().fold(f64::MAX, f64::min), all.iter().copied().fold(f64::MIN, f64::max)];
    let height = ROOM[0] + LINE * rows.len() as f64 + ROOM[1];
    // Values grow upwards, rows go downwards.
    let place = |i: usize| rows.len() as f64 - i as f64 - 0.5;
    let mut y = Axis::linear([0.0, rows.len() as f64], 1, [height - ROOM[1], ROOM[0]]);
    y.ticks = rows.iter().enumerate().map(|(i, (row, _))| (place(i), shorten(&row.about, 26))).collect();
    let x = Axis::round(ends, 5, [NAMES, WIDTH - 14.0]);
    let frame = Frame { width: WIDTH, height, x, y };
    out.push_str("<figure>");
    frame.open(out, &format!("{title} of every run, a line for each of {} rows.", rows.len()));
    frame.axes(out, &format!("{title}, %"), "");
    for (i, (row, _)) in rows.iter().enumerate() {
        let (y, of_row) = (frame.y.at(place(i)), values(row));
        if !of_row.is_empty() {
            let x = frame.x.at(of_row.iter().map(|(_, value)| value).sum::<f64>() / of_row.len() as f64);
            let [top, bottom] = [y - 8.0, y + 8.0];
            put!(out, "<line class=\"threshold\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>\n");
        }
        for (seed, value) in of_row {
            let tip = format!("{}, seed {seed}: {value:.2}", row.about);
            mark(out, [frame.x.at(value), y], false, "class=\"good\"", &tip);
        }
    }
    frame.close(out);
    out.push_str("</figure>\n");
}

fn classes(out: &mut String, study: &Study, rows: &[(&Row, Option<Spread>)]) {
    out.push_str("<section id=\"classes\"><h2>Classes</h2>\n");
    for class in &study.classes {
        put!(out, "<details class=\"class\"><summary><h3>{}</h3></summary>\n", name(class, 60));
        open_table(out, "rows for a class", "row");
        out.push_str("</tr></thead><tbody>\n");
        for (row, spread) in rows {
            put!(out, "<tr><th scope=\"row\">{}</th>", name(&row.about, 40));
            cells(out, spread.as_ref().and_then(|spread| spread.classes.get(class)));
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div></details>\n");
    }
    out.push_str("</section>\n");
}

fn facts(out: &mut String, study: &Study, folder: &str) {
    out.push_str("<section id=\"facts\"><h2>Facts</h2>\n<dl>\n");
    let seeds: Vec<String> = study.seeds.iter().map(u64::to_string).collect();
    put!(out, "<dt>seeds</dt><dd>{}</dd>\n", seeds.join(", "));
    for row in &study.rows {
        let changes: Vec<String> = row.changes.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let changes = if changes.is_empty() { "the settings below".into() } else { changes.join(", ") };
        put!(out, "<dt>{}</dt><dd>{}</dd>\n", name(&row.about, 40), esc(&changes));
    }
    if let Some(run) = study.rows.iter().find_map(|row| row.runs.first()) {
        put!(out, "<dt>protocol</dt><dd>{}</dd>\n", esc(&run.metrics.convention));
    }
    put!(out, "<dt>folder</dt><dd><code>{}</code></dd>\n", esc(folder));
    put!(out, "<dt>written by</dt><dd>version {}</dd>\n</dl>\n", env!("CARGO_PKG_VERSION"));
    out.push_str("<details><summary>settings that the rows change</summary>\n<pre>");
    study.settings.lines().for_each(|line| put!(out, "{}\n", esc(line)));
    out.push_str("</pre></details>\n</section>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::tests::{example, row};

    #[test]
    fn the_page_has_every_run_and_escapes_names() {
        let page = study_page(&example(), "my <study>", "runs/a&b").unwrap();
        assert!(page.contains("<title>my &lt;study&gt; · GRAD study</title>") && page.contains("runs/a&amp;b"));
        assert!(page.contains("&lt;wood&gt;") && !page.contains("<wood>"));
        assert!(page.contains("62.50<small>± 17.68</small>"), "{page}");
        assert!(page.contains("1\u{a0}run missing") && page.contains("no defective picture has a mask"));
        assert_eq!(page.matches("<svg").count(), 4);
        assert_eq!(page.matches("global only, seed 3: 75.00").count(), 1);
        assert!(page.contains("local = false"));
        let (body, _) = page.split_once("<script").unwrap();
        assert!(!body.contains("NaN"), "{body}");
    }

    #[test]
    fn a_study_that_has_just_begun_has_a_page() {
        let mut study = Study { rows: vec![], ..example() };
        assert!(study_page(&study, "a", "a").unwrap().contains("GRAD study"));
        study.grow(&[], vec![row("local", "local only", true)]).unwrap();
        let page = study_page(&study, "a", "a").unwrap();
        assert!(page.contains("<td>–</td>") && !page.contains("<svg"), "{page}");
    }
}
