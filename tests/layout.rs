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
    // `mod` is the registry, the others are what two ops share, or half of one.
    let shared = ["mod", "composed", "normalise", "normalise_cuda", "on_load", "readers"];
    let halves = ["basic_block_cuda", "mobile_bottleneck_cpu", "mobile_bottleneck_cuda", "mobile_bottleneck_lines"];
    for shared in shared.into_iter().chain(halves) {
        assert!(sources.remove(shared), "src/ops/{shared}.rs is gone: mend this list");
    }
    assert_eq!(sources, registry, "src/ops against the registry");
    let fixtures = stems(&files("fixtures", "safetensors"));
    let missing: Vec<_> = registry.difference(&fixtures).collect();
    assert!(missing.is_empty(), "ops without a fixture: {missing:?}");
    let kernels = stems(&files("kernels", "cu"));
    let missing: Vec<_> = registry.difference(&kernels).collect();
    assert!(missing.is_empty(), "ops without a kernel file: {missing:?}");
}

/// A kernel that nobody launches is dead code, which no compiler reports.
#[test]
fn every_kernel_is_launched() {
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    let sources: String = files("src", "rs").iter().map(read).collect();
    let folders = ["kernels", "kernels/hopper"].map(|folder| root().join(folder));
    for file in files("kernels", "cu").iter().filter(|f| folders.iter().any(|folder| f.parent() == Some(folder))) {
        let text = read(file);
        let kernels: Vec<&str> = text
            .split("extern \"C\" __global__")
            .skip(1)
            .filter_map(|k| Some(k.split_once("void ")?.1.split_once('(')?.0))
            .collect();
        assert!(!kernels.is_empty(), "{} holds no kernel", relative(file));
        for kernel in kernels {
            assert!(sources.contains(&format!("launch::{kernel}")), "{}: nobody launches {kernel}", relative(file));
        }
    }
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
    for (folder, extension, most) in [
        ("src", "rs", 600),
        ("build", "rs", 600),
        ("tests", "rs", 600),
        ("benches", "rs", 600),
        ("fixtures", "py", 600),
        ("benches", "py", 600),
        ("kernels", "cu", 300),
        ("kernels", "cuh", 300),
        ("kernels", "h", 500),
        ("kernels", "cpp", 500),
    ] {
        for file in files(folder, extension) {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            if lines > most {
                long.push(format!("{} has {lines} lines", relative(&file)));
            }
        }
    }
    assert!(long.is_empty(), "split these: {long:?}");
}

#[test]
fn every_source_file_begins_with_what_it_is() {
    let begins = |f: &PathBuf, with: &str| std::fs::read_to_string(f).unwrap().starts_with(with);
    let rust = [files("src", "rs"), files("build", "rs")].concat();
    let device = ["cu", "cuh", "h", "cpp"].map(|extension| files("kernels", extension)).concat();
    let bare = rust.iter().filter(|f| !begins(f, "//!")).chain(device.iter().filter(|f| !begins(f, "// ")));
    let bare: Vec<String> = bare.map(|f| relative(f)).collect();
    assert!(bare.is_empty(), "no head comment: {bare:?}");
}

fn relative(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}
