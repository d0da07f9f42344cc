//! The page of a made-up run: whole, closed in itself, and deaf to what names try.

use image::{Rgb, RgbImage};

use super::*;
use crate::heatmap::Scale;
use crate::rng::Rng;

/// Names that would be markup, scripts or layout if they were let through.
const HOSTILE: [&str; 4] = ["<script>alert(1)</script>", "a\" onload='x' &", "\u{202e}gnp.\ntxt", "long"];

fn thumbnails(seed: u64) -> Panels {
    let mut rng = Rng::new(seed, 0);
    let shade = rng.uniform_in(60.0, 180.0) as u8;
    let picture = RgbImage::from_fn(300, 240, |x, y| Rgb([shade + (x % 16) as u8, shade + (y % 24) as u8, shade]));
    let mut map = vec![0.1; 28 * 28];
    (0..9).for_each(|i| map[(10 + i / 3) * 28 + 12 + i % 3] = 1.4);
    let mask: Vec<u8> =
        (0..28 * 28).map(|i| u8::from((10..13).contains(&(i / 28)) && (12..15).contains(&(i % 28)))).collect();
    panels(&picture, (&map, 28, 28), Scale::new(0.5, 1.5).unwrap(), 0.5, Some((&mask, 28, 28))).unwrap()
}

/// Every other picture has been painted.
fn decoded(picture: usize) -> Option<Decoded> {
    let [features, reconstruction] = [1, 2].map(|seed| thumbnails(seed).original);
    picture.is_multiple_of(2).then_some(Decoded { features, reconstruction })
}

fn class(index: usize, name: &str) -> Class {
    let mut class = without_pictures(index, name);
    let examples = choose(&class.pictures).into_iter();
    let examples = examples.map(|(group, picture)| Example {
        group,
        picture,
        panels: thumbnails(picture as u64),
        decoded: decoded(picture),
    });
    class.examples = examples.collect();
    class
}

fn without_pictures(index: usize, name: &str) -> Class {
    let mut rng = Rng::new(3, index as u64);
    let pictures: Vec<Scored> = (0..30)
        .map(|i| {
            let defective = i >= 12;
            let score = rng.uniform_in(1.0, 2.0) + if defective { rng.uniform_in(-0.2, 2.0) } else { 0.0 };
            let kind = if defective { Kind::Defective(HOSTILE[i % 4].into()) } else { Kind::Good };
            let (p_value, rejected) = (Some(f64::from(1.0 / (1.0 + score))), Some(score > 1.9));
            Scored { name: format!("{name}/{i:03}.png"), kind, score, p_value, rejected }
        })
        .collect();
    let figure = |value: f64| Some(Figure { value, interval: Some([value - 0.05, (value + 0.04).min(1.0)]) });
    Class {
        name: name.into(),
        train: 36,
        held_out: 4,
        figures: Figures {
            image_auroc: figure(0.93 - 0.02 * index as f64),
            image_ap: figure(0.95),
            image_f1_max: figure(0.9),
            recall: figure(0.6),
            pixel_auroc: Some(0.97.into()),
            pixel_ap: Some(0.41.into()),
            pixel_f1_max: Some(0.44.into()),
            aupro: None,
        },
        threshold: (index != 2).then(|| Threshold {
            value: 1.9,
            target: 0.01,
            interval: Some([0.001, 0.09]),
            held_out: 40,
            basis: "this class".into(),
        }),
        oracle_threshold: Some(1.8),
        examples: vec![],
        pictures,
    }
}

/// A report with every part filled.
fn sample() -> Report {
    let names = ["brick", "wood", HOSTILE[0], HOSTILE[1]];
    let long = "x".repeat(300);
    let classes: Vec<Class> = names.into_iter().chain([&*long]).enumerate().map(|(i, name)| class(i, name)).collect();
    let mut rng = Rng::new(5, 0);
    let mut at =
        |class: usize| [0.3 * class as f32 - 0.6, 0.2 * (class % 3) as f32].map(|x| x + rng.uniform_in(-0.08, 0.08));
    let points = classes.iter().enumerate().flat_map(|(class, c)| (0..c.pictures.len()).map(move |p| (class, p)));
    let points = points.map(|(class, picture)| GlobalPoint { class, picture, at: at(class) }).collect();
    let channel = |channel: usize| {
        let values = (0..28 * 28).map(|i| ((i % 28 + channel * (i / 28)) % 9) as f32).collect();
        ChannelMap { channel, height: 28, width: 28, values }
    };
    let sample = |label: &str, at| GridSample { at, label: label.into(), channels: (0..4).map(channel).collect() };
    let view = |seed| thumbnails(seed).original;
    let point = |i: usize| LocalPoint {
        position: 58 + 97 * i,
        good: [-0.5 + 0.2 * i as f32, 0.1 * i as f32],
        defective: [-0.45 + 0.2 * i as f32, 0.15 * i as f32],
    };
    let pair =
        LocalPair { class: HOSTILE[2].into(), good: view(1), defective: view(2), points: (0..5).map(point).collect() };
    let epoch = |e: usize| Epoch {
        epoch: e,
        loss: 5.0 / e as f64,
        rate: if e < 5 { 1e-3 } else { 1e-4 },
        grid_rate: if e < 5 { 0.1 } else { 0.01 },
        gradient_norm: 3.0 / (e as f64).sqrt(),
        image_auroc: e.is_multiple_of(2).then_some(0.8 + 0.02 * e as f64),
        pixel_auroc: e.is_multiple_of(2).then_some(0.9 + 0.01 * e as f64),
    };
    let timing = |name: &str, p50_ms| Timing { name: name.into(), p50_ms, p99_ms: 1.7 * p50_ms, n: 100 };
    Report {
        title: HOSTILE[1].into(),
        run: Run {
            version: "0".into(),
            path: HOSTILE[0].into(),
            command: "grad report".into(),
            date: String::new(),
            settings: "epochs = 6\n# </pre><script>\n".into(),
        },
        model: Model {
            kind: "crad-s".into(),
            backbone: "lite0".into(),
            parameters: 2_116_300,
            image_size: 224,
            epochs: 6,
            seed: 0,
            precision: "f32".into(),
            digests: vec![("model file".into(), "00ff".repeat(16))],
            facts: vec![("data".into(), HOSTILE[2].into())],
        },
        protocol: "official: smoothed".into(),
        mean: class(0, "").figures,
        classes,
        epochs: (1..=6).map(epoch).collect(),
        local: Some(LocalMap { resolution: 8, features: [28, 28], pairs: vec![pair] }),
        global: Some(GlobalMap {
            resolution: 4,
            points,
            samples: vec![sample("brick", [-0.6, 0.0]), sample("between brick and wood", [-0.45, 0.1])],
            lines: vec![GridLine {
                ends: HOSTILE[..2].iter().map(|end| end.to_string()).collect(),
                places: vec![[-0.6, 0.0], [0.2, 0.4]],
                rows: vec![vec![view(3), view(4)], vec![view(5), view(6)]],
            }],
        }),
        speed: Some(Speed {
            conditions: "cpu, 2 threads".into(),
            total: timing("from file to score", 31.0),
            stages: vec![timing("read and decode", 4.0), timing("backbone", 20.0), timing("head", 7.0)],
        }),
        machine: vec![("computes on".into(), "cpu".into())],
        warnings: vec![HOSTILE[0].into()],
    }
}

/// Every tag in order, without what is inside of style and script.
fn tags(page: &str) -> Vec<(bool, String)> {
    let mut tags = vec![];
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let end = rest.find('>').expect("every tag ends");
        let (tag, after) = rest.split_at(end);
        rest = &after[1..];
        if tag.starts_with('!') {
            continue;
        }
        let closing = tag.starts_with('/');
        let name: String = tag.trim_start_matches('/').chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        assert!(!name.is_empty(), "`<{tag}>`");
        if !closing && ["style", "script"].contains(&&*name) {
            rest = &rest[rest.find(&format!("</{name}>")).expect("it ends")..];
        }
        if !tag.ends_with('/') && !["meta", "img", "br"].contains(&&*name) {
            tags.push((closing, name));
        }
    }
    tags
}

fn check(page: &str) {
    let mut open: Vec<String> = vec![];
    for (closing, name) in tags(page) {
        match closing {
            false => open.push(name),
            true => assert_eq!(open.pop().as_ref(), Some(&name), "after {open:?}"),
        }
    }
    assert_eq!(open, [""; 0]);
    for attribute in ["src=\"", "href=\""] {
        for found in page.split(attribute).skip(1) {
            assert!(found.starts_with("data:") || found.starts_with('#'), "{}", &found[..40]);
        }
    }
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("@import"));
    assert!(!page.contains("<script>alert") && !page.contains("onload='") && !page.contains('\u{202e}'));
    assert_eq!(page.matches("<script").count(), 1);
}

#[test]
fn the_page_is_whole_and_closed_in_itself() {
    let page = sample().html();
    check(&page);
    if let Some(file) = std::env::var_os("GRAD_SAMPLE_REPORT") {
        std::fs::write(file, &page).unwrap();
    }
    for part in
        ["id=\"summary\"", "id=\"classes\"", "id=\"grids\"", "id=\"training\"", "id=\"facts\"", "Before you trust"]
    {
        assert!(page.contains(part), "{part}");
    }
    // Score, threshold, p-value and verdict stand together.
    assert!(page.contains(", threshold 1.900, p 0."), "a verdict");
}

#[test]
fn parts_that_are_not_there_leave_no_trace() {
    let empty = Report::default().html();
    check(&empty);
    let few = Report { local: None, global: None, epochs: vec![], speed: None, ..sample() };
    let page = few.html();
    check(&page);
    assert!(!page.contains("id=\"grids\"") && !page.contains("id=\"training\"") && !page.contains("#grids"));
}

#[test]
fn a_hundred_classes_are_one_page() {
    let classes: Vec<Class> = (0..100).map(|i| without_pictures(i, &format!("class {i}"))).collect();
    let page = Report { classes, ..sample() }.html();
    check(&page);
    assert_eq!(page.matches("<details id=\"class-").count(), 100);
    assert_eq!(page.matches("class=\"class\" open").count(), 3);
}
