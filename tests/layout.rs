//! The house rules that can be checked: every op has its file and its fixture, nothing is left over, files stay small.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with this extension.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = walkdir::WalkDir::new(root().join(folder))
        .into_iter()
        .map(|e| e.unwrap().into_path())
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}

fn stems(files: &[PathBuf]) -> BTreeSet<String> {
    files.iter().map(|p| p.file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn ops_files_registry_and_fixtures_are_the_same_list() {
    let registry: BTreeSet<String> = grad::ops::REGISTRY.iter().map(|e| e.name.to_string()).collect();
    let mut sources = stems(&files("src/ops", "rs"));
    // `mod` is the registry, `normalise` is what two ops share.
    for shared in ["mod", "normalise"] {
        assert!(sources.remove(shared), "src/ops/{shared}.rs is gone: mend this list");
    }
    assert_eq!(sources, registry, "src/ops against the registry");
    let fixtures = stems(&files("fixtures", "safetensors"));
    let missing: Vec<_> = registry.difference(&fixtures).collect();
    assert!(missing.is_empty(), "ops without a fixture: {missing:?}");
}

#[test]
fn fixtures_are_the_ones_the_manifest_lists() {
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(root().join("fixtures/MANIFEST.json")).unwrap()).unwrap();
    let listed = manifest["files"].as_object().expect("the manifest lists files");
    for (name, entry) in listed {
        let bytes = std::fs::read(root().join("fixtures").join(name)).unwrap();
        assert_eq!(entry["sha256"].as_str(), Some(&*sha256(&bytes)), "{name}");
    }
}

/// Every digest that a notice beside the assets quotes belongs to a file that is there, unless it is said of a source.
#[test]
fn notices_quote_the_digests_of_the_files_beside_them() {
    for (notice, extension) in [("assets/demo/SOURCES.md", "png"), ("assets/backbone/NOTICE.md", "safetensors")] {
        let text = std::fs::read_to_string(root().join(notice)).unwrap();
        let folder = Path::new(notice).parent().unwrap().to_str().unwrap();
        let files = files(folder, extension);
        assert!(!files.is_empty(), "{notice} speaks of nothing");
        for file in files {
            let digest = sha256(&std::fs::read(&file).unwrap());
            assert!(text.contains(&digest), "{notice} does not quote {digest} of {}", relative(&file));
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn no_source_file_holds_two_things() {
    let mut long = vec![];
    for (folder, extension) in
        [("src", "rs"), ("tests", "rs"), ("benches", "rs"), ("fixtures", "py"), ("benches", "py")]
    {
        for file in files(folder, extension) {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            if lines > 600 {
                long.push(format!("{} has {lines} lines", relative(&file)));
            }
        }
    }
    assert!(long.is_empty(), "split these: {long:?}");
}

#[test]
fn every_source_file_begins_with_what_it_is() {
    let bare: Vec<String> = files("src", "rs")
        .iter()
        .filter(|f| !std::fs::read_to_string(f).unwrap().starts_with("//!"))
        .map(|f| relative(f))
        .collect();
    assert!(bare.is_empty(), "no head comment: {bare:?}");
}

fn relative(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}
