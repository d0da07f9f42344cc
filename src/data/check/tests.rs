//! Small data sets with one thing wrong at a time.

use std::fs;

use image::{GrayImage, ImageBuffer, Luma, Rgb, RgbImage, Rgba};

use super::*;

/// Side of the prepared picture in these tests.
const SIZE: usize = 32;

struct Tree(tempfile::TempDir);

impl Tree {
    /// One class with nothing wrong: three pictures to train on, a good and a defective one to test, a mask.
    fn sound() -> Self {
        let tree = Tree(tempfile::tempdir().unwrap());
        (0..3).for_each(|i| tree.picture(&format!("a/train/good/{i}.png"), i));
        tree.picture("a/test/good/0.png", 10);
        tree.picture("a/test/bent/0.png", 11);
        tree.mask("a/ground_truth/bent/0_mask.png", 40, 40, |x, y| if x < 20 && y < 20 { 255 } else { 0 });
        tree
    }

    fn at(&self, file: &str) -> PathBuf {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn picture(&self, file: &str, variant: u32) {
        rgb(variant).save(self.at(file)).unwrap();
    }

    fn mask(&self, file: &str, width: u32, height: u32, value: impl Fn(u32, u32) -> u8) {
        GrayImage::from_fn(width, height, |x, y| Luma([value(x, y)])).save(self.at(file)).unwrap();
    }

    fn check(&self) -> Report {
        check(&Dataset::open(&[self.0.path().into()]).unwrap(), SIZE, &|| ())
    }

    /// `code path` of every finding, paths from the root on.
    fn findings(&self) -> Vec<String> {
        let line = |f: &Finding| {
            let path = f.path.strip_prefix(self.0.path()).unwrap_or(&f.path);
            format!("{} {}", f.code.name(), path.display())
        };
        self.check().findings.iter().map(line).collect()
    }
}

fn rgb(variant: u32) -> RgbImage {
    RgbImage::from_fn(40, 40, |x, y| Rgb([(x * 5 + variant) as u8, (y * 6) as u8, variant as u8]))
}

#[test]
fn a_sound_data_set_has_no_finding() {
    let report = Tree::sound().check();
    assert_eq!(report.findings, []);
    assert_eq!((report.pictures, report.masks, report.left_out), (5, 1, 0));
    let class = ClassReport {
        train: 3,
        validation: 0,
        test_good: 1,
        test_defective: 1,
        kinds: BTreeMap::from([("bent".into(), 1)]),
        with_mask: 1,
    };
    assert_eq!(report.classes["a"], class);
    assert_eq!(report.sizes, BTreeMap::from([("40x40".into(), 5)]));
    assert_eq!(report.modes, BTreeMap::from([("8-bit colour".into(), 5)]));
    verdict(&report, Path::new("a")).unwrap();
}

#[test]
fn files_that_cannot_be_read() {
    let tree = Tree::sound();
    let png = fs::read(tree.at("a/train/good/0.png")).unwrap();
    fs::write(tree.at("a/train/good/8.png"), &png[..png.len() / 2]).unwrap();
    fs::write(tree.at("a/train/good/9 – x.png"), b"text").unwrap();
    fs::write(tree.at("a/ground_truth/bent/0_mask.png"), b"").unwrap();
    let report = tree.check();
    assert_eq!((report.count(Level::Error), report.pictures), (3, 7));
    assert!(report.findings[0].what.starts_with("is cut short or damaged: "), "{:?}", report.findings[0]);
    assert_eq!(
        tree.findings(),
        [
            "unreadable a/train/good/8.png",
            "unreadable a/train/good/9 – x.png",
            "unreadable-mask a/ground_truth/bent/0_mask.png"
        ]
    );
    let error = verdict(&report, Path::new("root")).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string().starts_with("root: 3 errors in the data\n")), (3, true));
}

#[test]
fn equal_pixels_are_found_in_any_file() {
    let tree = Tree::sound();
    // A copy in another format, in another split and label; a plain copy; a good picture among the defective.
    rgb(0).save(tree.at("a/test/bent/5.bmp")).unwrap();
    fs::copy(tree.at("a/train/good/1.png"), tree.at("a/train/good/copy.png")).unwrap();
    tree.picture("a/test/torn/6.png", 10);
    let report = tree.check();
    let said: Vec<&Finding> = report.findings.iter().filter(|f| f.code.name().starts_with("duplicate")).collect();
    let codes: Vec<&str> = said.iter().map(|f| f.code.name()).collect();
    assert_eq!(codes, ["duplicate-across-splits", "duplicate-good-and-defective", "duplicate"]);
    assert!(said[0].path.ends_with("a/test/bent/5.bmp"));
    let train = tree.at("a/train/good/0.png");
    assert_eq!(said[0].what, format!("in test of a, equals {} in train of a", train.display()));
    // test/good comes before test/torn.
    assert!(said[1].path.ends_with("a/test/torn/6.png") && said[1].what.contains("a/test/good/0.png"));
    assert!(said[2].path.ends_with("copy.png"));
}

#[test]
fn masks_that_do_not_fit() {
    let bad = |width: u32, height: u32, value: &dyn Fn(u32, u32) -> u8| {
        let tree = Tree::sound();
        tree.mask("a/ground_truth/bent/0_mask.png", width, height, value);
        tree.findings().iter().map(|f| f.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let corner = |value: u8| move |x: u32, y: u32| if x < 8 && y < 8 { value } else { 0 };
    assert_eq!(bad(40, 40, &corner(255)), [""; 0]);
    assert_eq!(bad(40, 40, &corner(1)), ["mask-values"]);
    assert_eq!(bad(40, 40, &corner(254)), ["mask-values"]);
    assert_eq!(bad(40, 40, &corner(0)), ["empty-mask"]);
    assert_eq!(bad(80, 80, &corner(255)), ["mask-size"]);
    assert_eq!(bad(40, 30, &corner(255)), ["mask-aspect"]);
    // A column that the resize to 32 pixels skips.
    let columns: Vec<u8> = (0..40).collect();
    let kept = crate::data::resize::nearest(&columns, (40, 1), (SIZE, 1));
    let skipped = (0..40).find(|x| !kept.contains(&(*x as u8))).unwrap();
    assert_eq!(bad(40, 40, &|x, _| if x == skipped { 255 } else { 0 }), ["mask-vanishes"]);
}

#[test]
fn a_mask_of_several_files_is_judged_as_one() {
    let tree = Tree::sound();
    tree.picture("a/test/torn/1.png", 12);
    tree.mask("a/ground_truth/torn/1/000.png", 40, 40, |_, _| 0);
    tree.mask("a/ground_truth/torn/1/001.png", 40, 40, |x, _| u8::from(x > 9) * 255);
    assert_eq!(tree.findings(), [""; 0]);
    assert_eq!(tree.check().masks, 3);
    tree.mask("a/ground_truth/good/0.png", 40, 40, |x, _| u8::from(x == 3) * 255);
    assert_eq!(tree.findings(), ["mask-on-good a/ground_truth/good/0.png"]);
}

#[test]
fn pictures_that_show_nothing_or_little() {
    let tree = Tree::sound();
    RgbImage::new(40, 40).save(tree.at("a/train/good/black.png")).unwrap();
    RgbImage::from_pixel(40, 40, Rgb([9, 8, 7])).save(tree.at("a/train/good/flat.png")).unwrap();
    let dark = ImageBuffer::from_fn(40, 40, |x, y| Luma([(x * y) as u16]));
    dark.save(tree.at("a/train/good/twelve.png")).unwrap();
    RgbImage::from_fn(20, 40, |x, y| Rgb([x as u8, y as u8, 0])).save(tree.at("a/train/good/small.png")).unwrap();
    ImageBuffer::from_fn(40, 40, |x, y| Rgba([x as u8, y as u8, 0, 9]))
        .save(tree.at("a/train/good/alpha.png"))
        .unwrap();
    let want = [
        "constant a/train/good/black.png",
        "constant a/train/good/flat.png",
        "dark-16-bit a/train/good/twelve.png",
        "mixed-modes a/train/good/twelve.png",
        "mixed-sizes a/train/good/small.png",
        "smaller-than-network a/train/good/small.png",
    ];
    assert_eq!(tree.findings(), want);
    let report = tree.check();
    assert_eq!(report.modes["16-bit grey"], 1);
    let mixed = report.findings.iter().find(|f| f.code == Code::MixedModes).unwrap();
    assert!(mixed.what.starts_with("class a: 8 are 8-bit colour, 1 are "), "{}", mixed.what);
}

#[test]
fn classes_that_cannot_be_trained_or_measured() {
    let tree = Tree(tempfile::tempdir().unwrap());
    tree.picture("one/train/good/0.png", 0);
    tree.picture("none/test/good/0.png", 1);
    tree.picture("no good/train/good/0.png", 2);
    tree.picture("no good/train/good/1.png", 3);
    tree.picture("no good/test/bent/0.png", 4);
    let want = [
        "missing-mask no good/test/bent/0.png",
        "no-training none/train/good",
        "single-training-picture one/train/good",
        "no-good-test no good/train/good",
        "no-test one/train/good",
        "no-defective-test none/train/good",
    ];
    assert_eq!(tree.findings(), want);
}

#[test]
fn the_report_does_not_depend_on_the_number_of_threads() {
    let tree = Tree::sound();
    (0..20).for_each(|i| tree.picture(&format!("a/train/good/again {i}.png"), i % 4));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| serde_json::to_string(&tree.check()).unwrap())
    };
    let one = on(1);
    assert_eq!(one, on(4));
    let parsed: serde_json::Value = serde_json::from_str(&one).unwrap();
    assert_eq!(parsed["levels"]["warning"], parsed["findings"].as_array().unwrap().len());
    assert!(parsed["findings"][0]["help"].is_string() && parsed["findings"][0]["code"] == "duplicate");
}
