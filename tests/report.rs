//! The report of a run in a browser: no error on its console, its script ran to the end, nothing was fetched.
//!
//! Needs Chromium: `$CHROME`, or one on the path. Without it the test says so and passes, unless
//! `GRAD_REQUIRE_BROWSER=1` makes that a failure.

#[path = "common/program.rs"]
mod program;

use std::path::Path;
use std::process::Command;

use program::{new_folder, run};

/// The first browser that answers.
fn browser() -> Option<String> {
    let named = std::env::var("CHROME").ok().into_iter();
    let known = ["chromium", "chromium-browser", "google-chrome"].map(str::to_owned);
    let mut candidates = named.chain(known);
    candidates.find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()))
}

/// The document after its script ran, and what the browser said on the way.
fn open(browser: &str, page: &Path, size: &str, more: &[&str]) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--enable-logging=stderr", "--v=0"])
        .args(more)
        .arg(format!("--window-size={size}"))
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

/// Opens a page wide, dark and narrow: nothing is said on its console, its script ends, and it has all of these parts.
fn faultless(browser: &str, page: &Path, parts: &[&str]) {
    let dark = ["--blink-settings=preferredColorScheme=0"];
    for (size, more) in [("1200,900", &[][..]), ("1200,900", &dark), ("360,800", &[])] {
        let (document, said) = open(browser, page, size, more);
        let faults: Vec<&str> = said.lines().filter(|line| line.contains(":CONSOLE")).collect();
        assert_eq!(faults, [""; 0], "{size} {more:?}");
        assert!(document.contains("data-ready=\"yes\""), "the script did not end: {said}");
        for part in parts {
            assert!(document.contains(part), "{part}");
        }
    }
}

#[test]
fn a_browser_finds_no_fault() {
    let Some(browser) = browser() else {
        assert!(std::env::var_os("GRAD_REQUIRE_BROWSER").is_none(), "no Chromium was found");
        return println!("skipped: no Chromium");
    };
    let home = new_folder();
    let home = home.path();
    let train =
        ["train", "--data", "data", "--image-size", "64", "--blocks", "1", "--epochs", "2", "--eval-every", "1"];
    run(home, &[&train[..], &["--hold-out", "0.25", "--out", "run"]].concat()).expect(0, &[]);
    let written = run(home, &["report", "run", "--out", "page.html", "--json"]).expect(0, &[]).json();
    let page = home.join("page.html");
    assert_eq!(written["bytes"], std::fs::metadata(&page).unwrap().len());

    let grids = ["aria-label=\"ROC curve of bolt", "loss ends at", "global grid"];
    faultless(&browser, &page, &[&["bolt", "cloth", "median, ms", "pictures learnt"], &grids[..]].concat());

    run(home, &["decoder", "run", "--epochs", "1"]).expect(0, &[]);
    run(home, &["report", "run", "--decoder", "run/decoder.safetensors"]).expect(0, &[]);
    let decoded = ["decoded features of", "decoded reconstruction of", "local part of", "What that looks like"];
    faultless(&browser, &home.join("run/report.html"), &[&decoded[..], &grids].concat());

    let study = ["study", "settings", "--data", "data", "--image-size", "64", "--blocks", "0", "--epochs", "1"];
    let vary = ["--seeds", "1,2", "--vary", "jitter=off", "--out", "study"];
    run(home, &[&study[..], &vary].concat()).expect(0, &[]);
    run(home, &["report", "study"]).expect(0, &[]);
    let parts =
        ["no jitter", "bolt", "aria-label=\"pixel AUROC of every run", "as configured, seed 2", "jitter = false"];
    faultless(&browser, &home.join("study/report.html"), &parts);

    // The test itself must be able to fail: a page that breaks is noticed.
    let text = std::fs::read_to_string(&page).unwrap();
    let broken = home.join("broken.html");
    std::fs::write(&broken, text.replace("root.dataset.ready = \"yes\";", "nothing.ready = \"yes\";")).unwrap();
    let (document, said) = open(&browser, &broken, "1200,900", &[]);
    assert!(said.contains(":CONSOLE") && !document.contains("data-ready=\"yes\""), "{said}");
}
