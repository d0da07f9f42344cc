//! The page from top to bottom.

use super::data::{Class, Example, Group, Kind, Panels, Report, Threshold};
use super::html::{count, decimals, esc, grouped, milliseconds, name, put};
use super::{curves, histogram, roc, scatter, table};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

const GLOBAL: &str = "Every picture becomes one point, at which a whole feature map is read. Classes that lie apart share \
                      nothing; a defective picture far from the good ones of its class is rebuilt from what another class \
                      stored. Crosses are the nodes of the grid.";
const STORED: &str = "Places on a line through the global grid, from that of a training picture in the middle of its class to that \
                      of one of the class that lies nearest. The network rebuilds each of them and a decoder, which \
                      learnt from good training pictures alone, paints the result. A place of the global grid says \
                      nothing of single positions, so the local grid is read as for the picture at one end.";
const DECODED: &str = "Below the views of a picture: what the decoder makes of its features, which is the best it can do, and \
                       of their reconstruction, before the gate mixes the features themselves in again. It learnt from \
                       good training pictures alone, and nothing is scored by it.";
const LOCAL: &str = "Every position of a picture becomes a point, at which its features are read. Here are the same positions \
                     of a good and a defective picture, joined by lines: the first two where the defect is strongest, the \
                     others where it is weakest. Positions of parts that lie alike read from the same neighbourhood; a \
                     texture has no fixed positions.";

/// Classes whose details are open when the page is.
const OPEN: usize = 3;
/// Fewer held-out pictures than this can promise nothing below 1 in 100.
const ENOUGH: usize = 99;

impl Report {
    /// The file.
    pub fn html(&self) -> String {
        let mut out = String::new();
        head(&mut out, self);
        summary(&mut out, self);
        classes(&mut out, self);
        grids(&mut out, self);
        training(&mut out, self);
        facts(&mut out, self);
        closing(&mut out);
        out
    }
}

fn head(out: &mut String, report: &Report) {
    let grids = report.local.is_some() || report.global.is_some();
    let sections = [
        ("summary", true),
        ("classes", true),
        ("grids", grids),
        ("training", !report.epochs.is_empty()),
        ("facts", true),
    ];
    let sections: Vec<&str> = sections.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect();
    opening(out, &report.title, "GRAD report", &sections);
}

/// Of a page with these sections.
pub(super) fn opening(out: &mut String, title: &str, kicker: &str, sections: &[&str]) {
    out.push_str("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    // Nothing is fetched, whatever the page says.
    out.push_str("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; ");
    out.push_str("style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    put!(out, "<title>{} · {kicker}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n", esc(title));
    put!(out, "<header><div><p class=\"kicker\">{kicker}</p>\n");
    put!(out, "<h1>{}</h1></div>\n<nav aria-label=\"sections\">", name(title, 80));
    sections.iter().for_each(|section| put!(out, "<a href=\"#{section}\">{section}</a> "));
    out.push_str("<button type=\"button\" id=\"theme\" hidden>light or dark</button></nav></header>\n<main>\n");
}

/// Ends a page.
pub(super) fn closing(out: &mut String) {
    out.push_str("</main>\n<dialog aria-label=\"enlarged picture\"></dialog>\n");
    put!(out, "<script>{SCRIPT}</script>\n</body>\n</html>\n");
}

fn summary(out: &mut String, report: &Report) {
    let [good, defective] = [0, 1].map(|kind| report.classes.iter().map(|c| c.counts()[kind]).sum::<usize>());
    out.push_str("<section id=\"summary\"><h2>Summary</h2>\n");
    let train = report.classes.iter().map(|class| class.train).sum();
    put!(
        out,
        "<p class=\"lead\">One <b>{}</b> model on {} features learnt ",
        esc(&report.model.kind),
        esc(&report.model.backbone)
    );
    put!(out, "from {} of good parts and was measured on ", count(train, "picture"));
    put!(out, "{} and {}.</p>\n", count(good, "good picture"), count(defective, "defective one"));
    let warnings = warnings(report);
    if !warnings.is_empty() {
        out.push_str("<aside class=\"warning\" role=\"note\"><h3>Before you trust this</h3>\n<ul>\n");
        warnings.iter().for_each(|warning| put!(out, "<li>{}</li>\n", esc(warning)));
        out.push_str("</ul></aside>\n");
    }
    table::draw(out, report);
    out.push_str(
        "<p class=\"note\">Raw scores, neither scaled nor clamped. Small figures are 95 % intervals over the choice ",
    );
    out.push_str(
        "of test pictures. F1max is at the threshold that is best for these very labels: an oracle, which no one ",
    );
    put!(out, "has in use. Protocol {}.</p>\n</section>\n", esc(&report.protocol));
}

/// What was passed on, and what the figures themselves show.
fn warnings(report: &Report) -> Vec<String> {
    let mut all = report.warnings.clone();
    let mut add = |warning: String| {
        if !all.contains(&warning) {
            all.push(warning);
        }
    };
    let few = || report.classes.iter().filter_map(|c| c.threshold.as_ref()).map(|t| t.held_out).filter(|n| *n < ENOUGH);
    if let Some(fewest) = few().min() {
        add(format!(
            "{} from few held-out pictures, the least of them from {fewest}: that cannot promise fewer than 1 false reject \
             in {}",
            match few().count() {
                1 => "one threshold comes".into(),
                n => format!("{n} thresholds come"),
            },
            fewest + 1
        ));
    }
    for class in &report.classes {
        if class.threshold.is_none() {
            add(format!("{}: there is no threshold, so there are no verdicts", class.name));
        }
        if class.counts()[0] == 0 && !class.pictures.is_empty() {
            add(format!("{}: no good test picture, so false alarms were not measured", class.name));
        }
    }
    all
}

fn classes(out: &mut String, report: &Report) {
    out.push_str("<section id=\"classes\"><h2>Classes</h2>\n");
    if report.classes.iter().flat_map(|class| &class.examples).any(|example| example.decoded.is_some()) {
        put!(out, "<p class=\"note\">{DECODED}</p>\n");
    }
    for (i, class) in report.classes.iter().enumerate() {
        let open = if i < OPEN { " open" } else { "" };
        let [good, defective] = class.counts();
        put!(out, "<details id=\"class-{i}\" class=\"class\"{open}><summary><h3>{}</h3> ", name(&class.name, 60));
        put!(out, "<span>{}, {}</span></summary>\n", count(good, "good picture"), count(defective, "defective one"));
        if let Some(threshold) = &class.threshold {
            promise(out, threshold);
        }
        out.push_str("<div class=\"charts\"><figure>");
        histogram::draw(out, class);
        out.push_str("</figure>\n<figure>");
        roc::draw(out, class);
        out.push_str("</figure></div>\n");
        examples(out, class);
        list(out, class);
        out.push_str("</details>\n");
    }
    out.push_str("</section>\n");
}

/// What a threshold means, in plain words.
fn promise(out: &mut String, threshold: &Threshold) {
    let Threshold { value, target, interval, held_out, basis } = threshold;
    let digits = decimals([f64::from(*value)].into_iter());
    put!(
        out,
        "<p>Pictures that score above <b class=\"number\">{value:.digits$}</b> are rejected. The threshold comes from "
    );
    put!(out, "{} of good parts ({}) that were held out of training, ", count(*held_out, "picture"), esc(basis));
    put!(out, "for {} false rejects in 1000", digits_of(1000.0 * target));
    if let Some([low, high]) = interval {
        let [low, high] = [low, high].map(|share| digits_of(1000.0 * share));
        put!(out, "; with 95 % confidence it will reject {low} to {high} of 1000 good parts");
    }
    out.push_str(".</p>\n");
}

/// One digit below 10, none above.
fn digits_of(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}").trim_end_matches(".0").to_owned() } else { format!("{value:.0}") }
}

fn examples(out: &mut String, class: &Class) {
    for (group, title, meaning) in [
        (Group::GoodHigh, "Good, highest scores", "the worst false alarms, or the nearest to one"),
        (Group::DefectiveLow, "Defective, lowest scores", "the worst misses, or the nearest to one"),
        (Group::DefectiveHigh, "Defective, highest scores", "the clearest finds"),
    ] {
        let of: Vec<&Example> = class.examples.iter().filter(|e| e.group == group).collect();
        if of.is_empty() {
            continue;
        }
        put!(out, "<h4>{title} <small>{meaning}</small></h4>\n<div class=\"examples\">\n");
        of.iter().for_each(|example| card(out, class, example));
        out.push_str("</div>\n");
    }
}

/// A picture's views with what was said of it.
fn card(out: &mut String, class: &Class, example: &Example) {
    let Some(picture) = class.pictures.get(example.picture) else { return };
    let Panels { original, overlay, outline } = &example.panels;
    out.push_str("<figure class=\"card\"><div class=\"panels\">");
    let views = [("picture", Some(original)), ("heat map", Some(overlay)), ("marked defect", outline.as_ref())];
    for (what, view) in views.into_iter().filter_map(|(what, view)| Some((what, view?))) {
        put!(
            out,
            "<button type=\"button\" class=\"zoom\"><img loading=\"lazy\" alt=\"{what} of {}\" ",
            esc(&picture.name)
        );
        put!(out, "width=\"{}\" height=\"{}\" src=\"{}\"></button>", view.width, view.height, view.uri());
    }
    if let Some(decoded) = &example.decoded {
        out.push_str("</div><div class=\"panels decoded\">");
        let views = [("decoded features", &decoded.features), ("decoded reconstruction", &decoded.reconstruction)];
        for (what, view) in views {
            put!(
                out,
                "<span><button type=\"button\" class=\"zoom\"><img loading=\"lazy\" alt=\"{what} of {}\" ",
                esc(&picture.name)
            );
            put!(out, "width=\"{}\" height=\"{}\" src=\"{}\"></button>", view.width, view.height, view.uri());
            put!(out, "<small>{what}</small></span>");
        }
    }
    put!(out, "</div><figcaption>{} ", name(&picture.name, 40));
    verdict(out, class, example.picture);
    out.push_str("</figcaption></figure>\n");
}

/// Raw score, threshold, calibrated score and verdict, always together.
fn verdict(out: &mut String, class: &Class, picture: usize) {
    let picture = &class.pictures[picture];
    let threshold = class.threshold.as_ref().map(|t| f64::from(t.value));
    let digits = decimals([f64::from(picture.score)].into_iter().chain(threshold));
    put!(out, "<span class=\"verdict\">score <b>{:.digits$}</b>", picture.score);
    if let Some(threshold) = threshold {
        put!(out, ", threshold {threshold:.digits$}");
    }
    if let Some(p) = picture.p_value {
        put!(out, ", p {p:.3}");
    }
    if let Some(rejected) = picture.rejected {
        let right = rejected == (picture.kind != Kind::Good);
        let word = if rejected { "rejected" } else { "passed" };
        put!(
            out,
            " <b class=\"{}\">{word}{}</b>",
            if right { "right" } else { "wrong" },
            if right { "" } else { ", wrongly" }
        );
    }
    out.push_str("</span>");
}

/// Every test picture of a class.
fn list(out: &mut String, class: &Class) {
    put!(out, "<details class=\"all\"><summary>all {}</summary>\n", count(class.pictures.len(), "test picture"));
    out.push_str(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"test pictures\"><table><thead><tr>",
    );
    for (head, sort) in [("picture", "text"), ("is", "text"), ("score", "number"), ("threshold", "number")] {
        put!(out, "<th scope=\"col\" data-sort=\"{sort}\">{head}</th>");
    }
    out.push_str("<th scope=\"col\" data-sort=\"number\" title=\"share of good pictures that would score as high\">");
    out.push_str("p-value</th><th scope=\"col\" data-sort=\"text\">verdict</th></tr></thead><tbody>\n");
    let threshold = class.threshold.as_ref().map(|t| f64::from(t.value));
    let digits = decimals(class.pictures.iter().map(|p| f64::from(p.score)).chain(threshold));
    let limit = threshold.map_or("–".into(), |t| format!("{t:.digits$}"));
    for picture in &class.pictures {
        let kind = match &picture.kind {
            Kind::Good => "good".into(),
            Kind::Defective(kind) if kind.is_empty() => "defective".into(),
            Kind::Defective(kind) => name(kind, 30),
        };
        let verdict = match picture.rejected {
            None => "–",
            Some(true) => "rejected",
            Some(false) => "passed",
        };
        put!(out, "<tr><th scope=\"row\">{}</th><td class=\"text\">{kind}</td>", name(&picture.name, 60));
        put!(out, "<td>{:.digits$}</td><td>{limit}</td>", picture.score);
        put!(out, "<td>{}</td>", picture.p_value.map_or("–".into(), |p| format!("{p:.4}")));
        put!(out, "<td class=\"text\">{verdict}</td></tr>\n");
    }
    out.push_str("</tbody></table></div></details>\n");
}

fn grids(out: &mut String, report: &Report) {
    if report.local.is_none() && report.global.is_none() {
        return;
    }
    out.push_str("<section id=\"grids\"><h2>What the grids know</h2>\n");
    if let Some(map) = &report.global {
        put!(out, "<h3>Global grid</h3>\n<p>{GLOBAL}</p>\n");
        out.push_str("<figure class=\"wide\">");
        scatter::global(out, map, report);
        scatter::key(out, &report.classes);
        out.push_str("</figure>\n");
        if !map.samples.is_empty() {
            out.push_str("<h4>What is stored <small>a few channels at the numbered points above</small></h4>\n");
            scatter::samples(out, &map.samples);
        }
        if !map.lines.is_empty() {
            put!(out, "<h4>What that looks like</h4>\n<p>{STORED}</p>\n<div class=\"lines\">\n");
            map.lines.iter().for_each(|line| scatter::line(out, line));
            out.push_str("</div>\n");
        }
    }
    if let Some(map) = &report.local {
        put!(out, "<h3>Local grid</h3>\n<p>{LOCAL}</p>\n");
        map.pairs.iter().for_each(|pair| scatter::local(out, map, pair));
    }
    out.push_str("</section>\n");
}

fn training(out: &mut String, report: &Report) {
    if report.epochs.is_empty() {
        return;
    }
    out.push_str("<section id=\"training\"><h2>Training</h2>\n<div class=\"charts\">\n");
    curves::draw(out, &report.epochs);
    out.push_str("</div>\n</section>\n");
}

fn facts(out: &mut String, report: &Report) {
    out.push_str("<section id=\"facts\"><h2>Facts</h2>\n");
    if let Some(speed) = &report.speed {
        put!(out, "<h3>Time of a picture</h3>\n<p class=\"note\">{}</p>\n", esc(&speed.conditions));
        out.push_str("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"timings\"><table><thead><tr>");
        out.push_str("<th scope=\"col\">stage</th><th scope=\"col\">median, ms</th><th scope=\"col\">99 %, ms</th>");
        out.push_str("<th scope=\"col\">pictures</th></tr></thead><tbody>\n");
        for (timing, tag) in speed.stages.iter().map(|t| (t, "tr")).chain([(&speed.total, "tr class=\"total\"")]) {
            put!(out, "<{tag}><th scope=\"row\">{}</th><td>{}</td>", esc(&timing.name), milliseconds(timing.p50_ms));
            put!(out, "<td>{}</td><td>{}</td></tr>\n", milliseconds(timing.p99_ms), timing.n);
        }
        out.push_str("</tbody></table></div>\n");
    }
    out.push_str("<h3>Model, data and machine</h3>\n<dl>\n");
    let model = &report.model;
    let mut fact = |term: &str, value: String| put!(out, "<dt>{}</dt><dd>{value}</dd>\n", esc(term));
    fact("model", format!("{}, {} parameters", esc(&model.kind), grouped(model.parameters)));
    fact("backbone", format!("{} at {} pixels", esc(&model.backbone), model.image_size));
    fact("training", format!("{}, seed {}, {}", count(model.epochs, "epoch"), model.seed, esc(&model.precision)));
    model.facts.iter().chain(&report.machine).for_each(|(term, value)| fact(term, esc(value).to_string()));
    model.digests.iter().for_each(|(term, value)| fact(term, format!("<code>{}</code>", esc(value))));
    fact("run", format!("<code>{}</code>", esc(&report.run.path)));
    fact("written by", format!("<code>{}</code>, version {}", esc(&report.run.command), esc(&report.run.version)));
    out.push_str("</dl>\n");
    let pictures = report.classes.iter().map(|class| class.train).collect::<Vec<_>>();
    out.push_str(
        "<h3>Pictures</h3>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"pictures\"><table>",
    );
    out.push_str("<thead><tr><th scope=\"col\">class</th><th scope=\"col\">learnt</th><th scope=\"col\">held out</th>");
    out.push_str("<th scope=\"col\">test, good</th><th scope=\"col\">test, defective</th></tr></thead><tbody>\n");
    for (class, train) in report.classes.iter().zip(pictures) {
        let [good, defective] = class.counts();
        put!(out, "<tr><th scope=\"row\">{}</th><td>{train}</td><td>{}</td>", name(&class.name, 40), class.held_out);
        put!(out, "<td>{good}</td><td>{defective}</td></tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    if !report.run.settings.is_empty() {
        put!(
            out,
            "<details class=\"all\"><summary>every setting</summary>\n<pre>{}</pre></details>\n",
            lines(&report.run.settings)
        );
    }
    out.push_str("</section>\n");
}

/// Text of several lines.
fn lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", esc(line))).collect()
}
