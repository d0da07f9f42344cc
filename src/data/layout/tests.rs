//! Trees of empty files: opening a data set opens no picture.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::data::finding::brief;

/// A folder holding empty files of these names.
fn folder(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    files.iter().for_each(|file| add(folder.path(), file, ""));
    folder
}

fn add(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn open(path: &Path) -> Dataset {
    let dataset = Dataset::open(&[path.into()]).unwrap();
    assert!(dataset.items.is_sorted_by_key(|i| (i.class, i.split, i.path.as_os_str().as_encoded_bytes())));
    dataset
}

fn refusal(path: &Path) -> String {
    let error = Dataset::open(&[path.into()]).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    error.to_string()
}

/// `SPLIT LABEL PATH [MASK…]` of every item, paths from `root` on.
fn lines(dataset: &Dataset, root: &Path) -> Vec<String> {
    let relative = |path: &PathBuf| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    let line = |item: &Item| {
        let label = match &item.label {
            Label::Good => "good",
            Label::Defect(kind) => kind,
        };
        let paths: Vec<String> = [&item.path].into_iter().chain(&item.masks).map(relative).collect();
        format!("{} {label} {}", item.split.name(), paths.join(" "))
    };
    dataset.into_iter().map(line).collect()
}

/// Every picture file that is seen is an item, a mask or named as left out.
fn nothing_is_lost(dataset: &Dataset, root: &Path) {
    let seen = listing::pictures_below(root);
    let used: usize = dataset.items.iter().map(|item| 1 + item.masks.len()).sum();
    let left_out: usize = dataset.findings.iter().map(|f| f.left_out).sum();
    assert_eq!(seen, used + left_out, "{:#?}\n{:#?}", dataset.items, dataset.findings);
}

#[test]
fn mvtec() {
    let folder = folder(&[
        "b c/train/good/2.PNG",
        "b c/train/good/10.jpg",
        "b/train/good/ü.png",
        "b/train/good/0.png",
        "b/validation/good/5.png",
        "b/test/Good/7.png",
        "b/test/broken/3.png",
        "b/test/broken/4.png",
        "b/test/broken-2/1.png",
        "b/test/broken-2/2.png",
        "b/ground_truth/broken/3_mask.png",
        "b/ground_truth/broken/4.png",
        "b/ground_truth/broken-2/1/000.png",
        "b/ground_truth/broken-2/1/001.png",
        "b/ground_truth/broken-2/2_mask.tif",
    ]);
    let dataset = open(folder.path());
    assert_eq!((dataset.sources[0].layout, dataset.sources[0].classes), (Layout::Mvtec, 2));
    assert_eq!(dataset.classes, ["b", "b c"]);
    let want = [
        "train good b/train/good/0.png",
        "train good b/train/good/ü.png",
        "validation good b/validation/good/5.png",
        "test good b/test/Good/7.png",
        "test broken-2 b/test/broken-2/1.png b/ground_truth/broken-2/1/000.png b/ground_truth/broken-2/1/001.png",
        "test broken-2 b/test/broken-2/2.png b/ground_truth/broken-2/2_mask.tif",
        "test broken b/test/broken/3.png b/ground_truth/broken/3_mask.png",
        "test broken b/test/broken/4.png b/ground_truth/broken/4.png",
        "train good b c/train/good/10.jpg",
        "train good b c/train/good/2.PNG",
    ];
    assert_eq!(lines(&dataset, folder.path()), want);
    assert_eq!([Split::Train, Split::Validation, Split::Test].map(|split| dataset.of(split).count()), [4, 1, 5]);
    let counted = BTreeMap::from([(Split::Train, 4), (Split::Validation, 1), (Split::Test, 5)]);
    assert_eq!(dataset.sources[0].pictures, counted);
    assert_eq!(dataset.class_of(&dataset.items[9]), "b c");
    assert_eq!(dataset.findings, []);
    nothing_is_lost(&dataset, folder.path());
    dataset.require_training().unwrap();
}

#[test]
fn one_class_alone() {
    let folder = folder(&["nut/train/good/0.png", "nut/train/good/1.png"]);
    let dataset = open(&folder.path().join("nut"));
    assert_eq!((dataset.classes, dataset.items.len()), (vec!["nut".to_owned()], 2));
    assert_eq!(open(&folder.path().join("nut/train/..")).classes, ["nut"]);
}

#[test]
fn what_is_left_out_is_said() {
    let folder = folder(&[
        "a/train/good/0.png",
        "a/train/good/.hidden.png",
        "a/train/good/Thumbs.db",
        "a/train/good/1.gif",
        "a/train/good/deep/er/0.png",
        "a/train/bent/0.png",
        "a/train/1.png",
        "a/test/2.png",
        "a/test/bent/3.png",
        "a/test/bent/4.png",
        "a/test/bent/.ipynb_checkpoints/4.png",
        "a/test/torn/notes.txt",
        "a/ground_truth/bent/9_mask.png",
        "a/ground_truth/lost/1.png",
        "a/ground_truth/1.png",
        "a/extra/0.png",
        "photos/0.png",
        "5.png",
    ]);
    let dataset = open(folder.path());
    let want = ["train good a/train/good/0.png", "test bent a/test/bent/3.png", "test bent a/test/bent/4.png"];
    assert_eq!(lines(&dataset, folder.path()), want);
    nothing_is_lost(&dataset, folder.path());
    let said = [
        ("left-out", "a/train/good/deep", "left out 1 picture: pictures lie in good/ itself"),
        ("unsupported-format", "a/train/good", "left out 1.gif"),
        ("other-files", "a/train/good", "left out Thumbs.db"),
        ("left-out", "a/train", "left out 1 picture outside good/"),
        ("left-out", "a/train/bent", "left out 1 picture: only good pictures are learnt from"),
        ("missing-mask", "a/test/bent/3.png", "defective, and has no mask"),
        ("missing-mask", "a/test/bent/4.png", "defective, and has no mask"),
        ("orphan-mask", "a/ground_truth/bent/9_mask.png", "a mask without a picture"),
        ("empty-folder", "a/test/torn", "holds no picture"),
        ("other-files", "a/test/torn", "left out notes.txt"),
        ("left-out", "a/test", "left out 1 picture in no folder that would say what they show"),
        ("orphan-mask", "a/ground_truth/lost/1.png", "a mask without a picture"),
        ("left-out", "a/ground_truth", "left out 1 picture of masks in no folder of a kind of defect"),
        ("left-out", "a/extra", "left out 1 picture: it is none of train, validation, test and ground_truth"),
        ("left-out", "", "left out 1 picture beside the classes"),
        ("left-out", "photos", "left out 1 picture: it has neither train/ nor test/"),
        (
            "single-training-picture",
            "a/train/good",
            "class a has a single picture: it will be learnt by heart, so expect false alarms",
        ),
    ];
    assert_eq!(dataset.findings.len(), said.len(), "{:#?}", dataset.findings);
    for (finding, (code, path, what)) in dataset.findings.iter().zip(said) {
        assert_eq!((finding.code.name(), &finding.path, &*finding.what), (code, &folder.path().join(path), what));
    }
    assert_eq!(brief(&dataset.findings, 9).len(), 15, "notes are not for every run");
}

#[test]
fn plain_folders() {
    let folder = folder(&[
        "parts/bolt/good/0.png",
        "parts/bolt/good/1.png",
        "parts/bolt/bent/3.png",
        "parts/bolt/torn/3.png",
        "parts/bolt/masks/bent/3_mask.png",
        "parts/bolt/masks/torn/3/a.png",
        "parts/bolt/masks/torn/3/b.png",
        "parts/bolt/6.png",
        "parts/nut/GOOD/0.png",
        "parts/nut/GOOD/1.png",
        "parts/nut/bent/0.png",
        "parts/nut/mask/0.png",
        "parts/new/0.png",
        "loose/1.png",
        "loose/0.png",
        "loose/read me.txt",
    ]);
    let parts = open(&folder.path().join("parts"));
    assert_eq!((parts.sources[0].layout, &parts.classes[..]), (Layout::Folder, &["bolt".into(), "nut".to_owned()][..]));
    let want = [
        "train good parts/bolt/good/0.png",
        "train good parts/bolt/good/1.png",
        "test bent parts/bolt/bent/3.png parts/bolt/masks/bent/3_mask.png",
        "test torn parts/bolt/torn/3.png parts/bolt/masks/torn/3/a.png parts/bolt/masks/torn/3/b.png",
        "train good parts/nut/GOOD/0.png",
        "train good parts/nut/GOOD/1.png",
        "test bent parts/nut/bent/0.png parts/nut/mask/0.png",
    ];
    assert_eq!(lines(&parts, folder.path()), want);
    assert_eq!(parts.findings.iter().map(|f| f.left_out).collect::<Vec<_>>(), [1, 1], "{:#?}", parts.findings);
    nothing_is_lost(&parts, &folder.path().join("parts"));

    let bolt = open(&folder.path().join("parts/bolt"));
    assert_eq!((&bolt.classes[..], bolt.items.len()), (&["bolt".to_owned()][..], 4));
    nothing_is_lost(&bolt, &folder.path().join("parts/bolt"));

    let loose = open(&folder.path().join("loose"));
    assert_eq!((loose.sources[0].layout, &loose.classes[..]), (Layout::Pictures, &["loose".to_owned()][..]));
    assert_eq!(lines(&loose, folder.path()), ["train good loose/0.png", "train good loose/1.png"]);
    assert!(Layout::Pictures.describe().contains("every picture counts as good"));
    nothing_is_lost(&loose, &folder.path().join("loose"));
}

#[test]
fn a_part_of_a_class_is_no_plain_folder() {
    let folder = folder(&["a/train/good/0.png", "a/test/good/1.png", "a/test/bent/2.png"]);
    for part in ["a/test", "a/train"] {
        let text = refusal(&folder.path().join(part));
        assert!(text.contains("is a part of a class") && text.contains("give the class: "), "{text}");
    }
}

#[test]
fn no_folder_and_no_class_are_explained() {
    assert!(refusal(Path::new("nowhere/at all")).contains("no such folder"));
    let folder = folder(&["one.png", "two.jpg", "notes.txt", "x/three.png", "y/z/four.png"]);
    assert!(refusal(&folder.path().join("one.png")).contains("is a file, not a folder"));
    let text = refusal(folder.path());
    assert!(text.contains("train/good/000.png"), "{text}");
    assert!(text.ends_with("what is there: 2 folders (x, y), 2 pictures, 1 other files"), "{text}");
    assert!(refusal(&folder.path().join("y")).contains("holds no class"));
}

#[test]
fn a_class_with_nothing_to_train_on_is_named() {
    let folder = folder(&["a/train/good/0.png", "b/test/good/0.png", "c/train/0.png"]);
    let mut dataset = open(folder.path());
    assert_eq!((dataset.classes.len(), dataset.of(Split::Test).count()), (3, 1));
    let refused = |dataset: &Dataset| dataset.require_training().unwrap_err().to_string();
    assert!(refused(&dataset).contains("class b has no picture to train on"));
    dataset.keep_classes(&["c".into(), "a".into()]);
    assert_eq!((&dataset.classes[..], dataset.items.len()), (&["a".into(), "c".to_owned()][..], 1));
    let text = refused(&dataset);
    assert!(text.contains("class c has") && text.contains("move the 1 picture of"), "{text}");
    dataset.keep_classes(&["a".into()]);
    dataset.require_training().unwrap();
}

const TABLE: &str = "object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0.JPG,
candle,test,normal,candle/Data/Images/Normal/1.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png
pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,
pcb1,train,normal,pcb1/Data/Images/Normal/1.JPG,
";

#[test]
fn visa() {
    let folder = folder(&[
        "candle/Data/Images/Normal/0.JPG",
        "candle/Data/Images/Normal/1.JPG",
        "candle/Data/Images/Normal/2.JPG",
        "candle/Data/Images/Anomaly/0.JPG",
        "candle/Data/Masks/Anomaly/0.png",
        "candle/image_anno.csv",
        "pcb1/Data/Images/Normal/0.JPG",
        "pcb1/Data/Images/Normal/1.JPG",
    ]);
    let text = refusal(folder.path());
    assert!(text.contains("nothing says which pictures are for test") && text.contains("split_csv/1cls.csv"), "{text}");
    assert!(refusal(&folder.path().join("candle")).contains("is one class of VisA"));
    for place in ["1cls.csv", "split_csv/1cls.csv"] {
        add(folder.path(), place, TABLE);
        let dataset = open(folder.path());
        assert_eq!(
            (dataset.sources[0].layout, &dataset.classes[..]),
            (Layout::Visa, &["candle".into(), "pcb1".to_owned()][..])
        );
        let want = [
            "train good candle/Data/Images/Normal/0.JPG",
            "test anomaly candle/Data/Images/Anomaly/0.JPG candle/Data/Masks/Anomaly/0.png",
            "test good candle/Data/Images/Normal/1.JPG",
        ];
        assert_eq!(lines(&dataset, folder.path())[..3], want);
        assert_eq!(dataset.items.len(), 5);
        nothing_is_lost(&dataset, folder.path());
        assert_eq!(dataset.findings[0].what, "left out 1 picture: not in 1cls.csv");
    }
    // Reorganised, it is like MVTec AD.
    let like = self::folder(&["candle/train/good/0.JPG", "candle/test/bad/0.JPG", "candle/ground_truth/bad/0.png"]);
    let dataset = open(like.path());
    assert_eq!((dataset.sources[0].layout, dataset.items[1].masks.len()), (Layout::Mvtec, 1));
}

#[test]
fn manifests() {
    let folder = folder(&["set/images/bolt/train/good/0.png", "set/images/bolt/test/bent/1.png"]);
    let line = |rest: &str| format!("{{\"filename\": \"bolt/{rest}}}\n");
    add(folder.path(), "set/train.json", &line("train/good/0.png\", \"label\": 0, \"clsname\": \"bolt\""));
    let bad = "test/bent/1.png\", \"label\": 1, \"label_name\": \"defective\", \"maskname\": \"bolt/1.png\"";
    add(folder.path(), "set/test.json", &line(bad));
    let want = [
        "train good set/images/bolt/train/good/0.png",
        "test defective set/images/bolt/test/bent/1.png set/images/bolt/1.png",
    ];
    // The pictures may lie in a folder beside the official files.
    let set = open(&folder.path().join("set"));
    assert_eq!((set.sources[0].layout, &set.classes[..]), (Layout::Manifest, &["bolt".to_owned()][..]));
    assert_eq!(lines(&set, folder.path()), want);
    assert_eq!(open(&folder.path().join("set/test.json")).items.len(), 1);

    add(folder.path(), "bad/train.json", "{\"filename\": 1}\n");
    let text = refusal(&folder.path().join("bad"));
    assert!(text.contains("bad/train.json:1: invalid type: integer `1`, expected a string"), "{text}");
    add(folder.path(), "empty.jsonl", "\n\n");
    assert!(refusal(&folder.path().join("empty.jsonl")).contains("lists no picture"));
}

/// What is written reads back as the same items, whatever the layout was.
fn round_trip(dataset: &Dataset, home: &Path) {
    let text: String = dataset.into_iter().map(|item| manifest::line(dataset, item).unwrap() + "\n").collect();
    add(home, "again.jsonl", &text);
    let again = open(&home.join("again.jsonl"));
    assert_eq!((&again.classes, &again.items), (&dataset.classes, &dataset.items));
}

#[test]
fn data_sets_are_put_together() {
    let folder = folder(&[
        "one/bolt/train/good/0.png",
        "one/bolt/train/good/1.png",
        "one/nut/train/good/0.png",
        "one/nut/train/good/1.png",
        "two/bolt/good/0.png",
        "two/bolt/good/1.png",
        "two/bolt/bent/2.png",
        "three/deeper/one/bolt/good/0.png",
    ]);
    let at = |name: &str| folder.path().join(name);
    let dataset = Dataset::open(&[at("two"), at("one")]).unwrap();
    assert_eq!(dataset.classes, ["nut", "one/bolt", "two/bolt"]);
    assert_eq!(dataset.sources.iter().map(|s| s.layout).collect::<Vec<_>>(), [Layout::Folder, Layout::Mvtec]);
    assert_eq!(dataset.root(), at("two"));
    let of = |class: &str| dataset.items.iter().filter(|item| dataset.class_of(item) == class).count();
    assert_eq!(["nut", "one/bolt", "two/bolt"].map(of), [2, 2, 3]);
    round_trip(&dataset, folder.path());
    for paths in [[at("one"), at("one")], [at("one"), at("three/deeper/one")]] {
        let error = Dataset::open(&paths).unwrap_err().to_string();
        assert!(error.contains("both hold a class one/bolt"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn loops_of_links_are_harmless() {
    use std::os::unix::fs::symlink;
    let folder = folder(&["a/train/good/0.png", "a/train/good/1.png", "a/test/bent/2.png"]);
    let at = |path: &str| folder.path().join(path);
    symlink("..", at("a/loop")).unwrap();
    symlink(".", at("again")).unwrap();
    symlink("itself", at("a/test/itself")).unwrap();
    symlink("..", at("a/test/bent/up")).unwrap();
    symlink("0.png", at("a/train/good/3.png")).unwrap();
    symlink("nothing", at("a/train/good/4.png")).unwrap();
    let dataset = open(folder.path());
    let order = ["0.png", "1.png", "3.png", "4.png"].map(|name| format!("train good a/train/good/{name}"));
    assert_eq!(lines(&dataset, folder.path())[..4], order);
    assert_eq!((dataset.classes.len(), dataset.items.len()), (1, 5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Trees of words that layouts know, in any order: opened or refused, and no picture is lost.
    #[test]
    fn any_tree(paths in proptest::collection::btree_set(
        "(a/|b/)?(train/|test/|validation/|ground_truth/|masks/|good/|Good/|bent/|0/){0,4}[01](_mask)?\\.(png|txt|gif)", 1..16)) {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("set");
        for path in &paths {
            // A file may be in the way of a folder; then there is one file less.
            let path = root.join(path);
            if fs::create_dir_all(path.parent().unwrap()).is_ok() {
                let _ = fs::write(path, "");
            }
        }
        if let Ok(dataset) = Dataset::open(std::slice::from_ref(&root)) {
            nothing_is_lost(&dataset, &root);
            prop_assert!(dataset.items.iter().all(|item| item.split == Split::Test || item.label.is_good()));
            if !dataset.items.is_empty() && dataset.classes.iter().enumerate().all(|(c, _)| dataset.items.iter().any(|i| i.class == c)) {
                round_trip(&dataset, home.path());
            }
        }
    }
}
