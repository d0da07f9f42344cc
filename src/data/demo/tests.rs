//! The set is what its documentation says: deterministic, whole or not there, with masks that tell the truth.

use super::*;
use std::collections::BTreeMap;

const SMALL: DemoCounts = DemoCounts { train_good: 2, test_good: 2, per_kind: 1 };

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = walkdir::WalkDir::new(dir).into_iter().map(Result::unwrap).filter(|e| e.file_type().is_file());
    files.map(|e| (e.path().strip_prefix(dir).unwrap().into(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn same_seed_same_bytes_whatever_the_threads() {
    let temporary = tempfile::tempdir().unwrap();
    let made = |name: &str, seed, threads| {
        let dir = temporary.path().join(name);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| write_demo(&dir, seed, SMALL)).unwrap();
        contents(&dir)
    };
    let (one, three, other) = (made("one", 1, 1), made("three", 1, 3), made("other", 2, 2));
    assert!(one == three);
    assert!(one.keys().eq(other.keys()));
    assert!(one.iter().zip(&other).all(|(a, b)| a.1 != b.1), "another seed gave the same file");
    let pictures = one.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "png"));
    let distinct: std::collections::BTreeSet<_> = pictures.clone().map(|(_, bytes)| bytes).collect();
    assert_eq!(distinct.len(), pictures.count(), "a picture comes twice");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 3, "something was left beside the sets");
}

#[test]
fn folders_and_counts_are_those_of_mvtec() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("deep/er/demo");
    let counts = DemoCounts { train_good: 3, test_good: 1, per_kind: 2 };
    let summary = write_demo(&dir, 5, counts).unwrap();
    assert!(!summary.reused);
    let files = contents(&dir);
    let of = |folder: &str| files.keys().filter(|path| path.starts_with(folder)).count();
    for class in &summary.classes {
        assert_eq!((of(&format!("{class}/train/good")), of(&format!("{class}/train"))), (3, 3));
        assert_eq!((of(&format!("{class}/test/good")), of(&format!("{class}/test"))), (1, 13));
        for kind in &summary.kinds {
            for number in 0..2 {
                let picture = image::open(dir.join(format!("{class}/test/{kind}/00{number}.png"))).unwrap();
                let mask = image::open(dir.join(format!("{class}/ground_truth/{kind}/00{number}_mask.png"))).unwrap();
                assert_eq!((picture.width(), picture.height()), (256, 256));
                let mask = mask.as_luma8().expect("an 8-bit mask");
                assert_eq!(mask.dimensions(), (256, 256));
                assert!(mask.pixels().all(|p| p.0 == [0] || p.0 == [255]));
            }
        }
    }
    assert_eq!(summary.pictures(), files.keys().filter(|p| !p.to_string_lossy().contains("_mask")).count() - 1);
}

/// The undamaged picture is taken again, and the mask is where the two differ.
#[test]
fn masks_are_where_the_pixels_changed() {
    for (class, material) in MATERIALS.iter().enumerate() {
        let [_, surface] = Surface::halves(material).unwrap();
        for shot in Shot::all(DemoCounts { train_good: 0, test_good: 0, per_kind: 3 }) {
            let Shot::Defect(kind, number) = shot else { panic!("no other sort was asked for") };
            let what = format!("{} {} {number}", material.name, kind.name());
            let stage = Stage::new(shot, &surface, 11, class);
            let (picture, mask) = stage.defective(kind, number, |purpose| shot.rng(11, class, purpose));
            let (clean, channels) = (stage.good(), surface.channels);
            let difference: Vec<u8> = std::iter::zip(picture.chunks(channels), clean.chunks(channels))
                .map(|(a, b)| std::iter::zip(a, b).map(|(a, b)| a.abs_diff(*b)).max().unwrap())
                .collect();
            let changed = |u: usize, v: usize| difference[v * SIZE + u] >= damage::NOTICEABLE;
            for (u, v) in (0..SIZE * SIZE).map(|i| (i % SIZE, i / SIZE)) {
                let masked = mask[v * SIZE + u] == 255;
                assert!(masked || !changed(u, v), "{what}: ({u}, {v}) changed but is not in the mask");
                let around = |c: usize| c.saturating_sub(2)..(c + 3).min(SIZE);
                let near = || around(v).any(|v| around(u).any(|u| changed(u, v)));
                assert!(!masked || near(), "{what}: ({u}, {v}) is in the mask but nothing changed there");
            }
            let area = mask.iter().filter(|&&m| m > 0).count();
            assert!((SMALLEST..SIZE * SIZE / 8).contains(&area), "{what}: {area} pixels");
        }
    }
}

/// The mean brightness of a picture must not tell whether it is defective.
#[test]
fn brightness_does_not_give_defects_away() {
    for (class, material) in MATERIALS.iter().enumerate() {
        let [_, surface] = Surface::halves(material).unwrap();
        let brightness = |shot: Shot| {
            let stage = Stage::new(shot, &surface, 3, class);
            let picture = match shot {
                Shot::Defect(kind, i) => stage.defective(kind, i, |purpose| shot.rng(3, class, purpose)).0,
                _ => stage.good(),
            };
            picture.iter().map(|&x| f64::from(x)).sum::<f64>() / picture.len() as f64
        };
        let good: Vec<f64> = (0..12).map(|i| brightness(Shot::TestGood(i))).collect();
        let bad: Vec<f64> =
            Damage::ALL.into_iter().flat_map(|k| (0..3).map(move |i| Shot::Defect(k, i))).map(brightness).collect();
        let darker = bad.iter().flat_map(|b| good.iter().map(move |g| b < g)).filter(|&d| d).count();
        let auroc = darker as f64 / (good.len() * bad.len()) as f64;
        // 0.5 is chance; its standard error with 12 against 12 is 0.12.
        assert!((auroc - 0.5).abs() <= 0.3, "{}: AUROC of darkness {auroc}", material.name);
    }
}

#[test]
fn a_second_call_reuses_the_set_and_a_changed_set_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("demo");
    fs::create_dir(&dir).unwrap(); // empty: it may be filled
    assert!(!write_demo(&dir, 1, SMALL).unwrap().reused);
    let before = contents(&dir);
    assert!(write_demo(&dir, 1, SMALL).unwrap().reused);
    fs::write(dir.join(".DS_Store"), "left by a file manager").unwrap();
    assert!(write_demo(&dir, 1, SMALL).unwrap().reused);
    fs::remove_file(dir.join(".DS_Store")).unwrap();
    for (seed, counts) in [(2, SMALL), (1, DemoCounts { per_kind: 2, ..SMALL })] {
        let error = write_demo(&dir, seed, counts).unwrap_err();
        assert!(matches!(&error, Error::Data { what, .. } if what.contains("another seed")), "{error}");
    }
    assert!(contents(&dir) == before);
    fs::remove_file(dir.join("wood/train/good/001.png")).unwrap();
    let error = write_demo(&dir, 1, SMALL).unwrap_err();
    assert!(matches!(&error, Error::Data { what, .. } if what.contains("removed")), "{error}");
}

#[test]
fn foreign_folders_files_and_empty_counts_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let mine = temporary.path().join("thesis.txt");
    fs::write(&mine, "years of work").unwrap();
    for place in [temporary.path(), &mine] {
        let error = write_demo(place, 1, SMALL).unwrap_err();
        assert!(matches!(error, Error::Data { .. }), "{error}");
    }
    fs::write(temporary.path().join(MARKER), "{}").unwrap();
    assert!(matches!(write_demo(temporary.path(), 1, SMALL), Err(Error::Data { .. })));
    assert_eq!(fs::read(&mine).unwrap(), b"years of work");
    let nowhere = temporary.path().join("new");
    let error = write_demo(&nowhere, 1, DemoCounts { train_good: 0, ..SMALL }).unwrap_err();
    assert!(matches!(error, Error::Config { .. }) && !nowhere.exists());
}
