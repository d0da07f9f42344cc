//! Good pictures held out of training, so that thresholds come from pictures the model has not seen.

use super::{Dataset, Split};

/// Turns a share of each class's training pictures into [`Split::Validation`], unless the class has such pictures already:
/// the nearest whole number of them, and never the last one to train on. Which ones depends on their names alone (the
/// smallest hashes of class and file name), so that it is the same on every machine, for every seed, and hardly changes
/// when pictures are added.
pub fn hold_out(dataset: &mut Dataset, share: f64) {
    for class in 0..dataset.classes.len() {
        let of = |split| move |item: &&super::Item| item.class == class && item.split == split;
        if dataset.items.iter().any(|item| of(Split::Validation)(&item)) {
            continue;
        }
        let train = dataset.items.iter().filter(of(Split::Train)).count();
        let count = ((train as f64 * share).round() as usize).min(train.saturating_sub(1));
        let name = dataset.classes[class].clone();
        let key = |item: &super::Item| {
            let file = item.path.file_name().unwrap_or_default().as_encoded_bytes();
            *blake3::hash(&[name.as_bytes(), b"\0", file].concat()).as_bytes()
        };
        let mut candidates: Vec<_> = dataset
            .items
            .iter()
            .enumerate()
            .filter(|(_, item)| of(Split::Train)(item))
            .map(|(i, item)| (key(item), i))
            .collect();
        candidates.sort();
        for (_, i) in candidates.into_iter().take(count) {
            dataset.items[i].split = Split::Validation;
        }
    }
    // By class, then split; the order within is kept.
    dataset.items.sort_by_key(|item| (item.class, item.split));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Item, Label};

    fn dataset(train: &[usize], validation: usize) -> Dataset {
        let folder = tempfile::tempdir().unwrap();
        for (class, n) in train.iter().enumerate() {
            for (part, n) in [("train", *n), ("validation", if class == 0 { validation } else { 0 }), ("test", 2)] {
                let home = folder.path().join(format!("c{class}/{part}/good"));
                std::fs::create_dir_all(&home).unwrap();
                (0..n).for_each(|i| std::fs::write(home.join(format!("{i:03}.png")), b"").unwrap());
            }
        }
        Dataset::open(&[folder.path().to_owned()]).unwrap()
    }

    fn held_out(dataset: &Dataset, class: usize) -> Vec<String> {
        let of = |item: &&Item| item.class == class && item.split == Split::Validation;
        let name = |item: &Item| item.path.file_name().unwrap().to_string_lossy().into_owned();
        dataset.items.iter().filter(of).map(name).collect()
    }

    #[test]
    fn a_share_of_each_class() {
        let mut some = dataset(&[40, 4, 25, 1], 0);
        let before = some.items.len();
        hold_out(&mut some, 0.1);
        assert_eq!((0..4).map(|class| held_out(&some, class).len()).collect::<Vec<_>>(), [4, 0, 3, 0]);
        assert_eq!(some.items.len(), before);
        assert!(some.items.is_sorted_by_key(|item| (item.class, item.split)));
        assert!(some.items.iter().all(|item| item.label == Label::Good));
        let mut nearly_all = dataset(&[40, 4, 25, 1], 0);
        hold_out(&mut nearly_all, 0.999);
        assert!((0..4).all(|class| nearly_all.of(Split::Train).any(|item| item.class == class)));
    }

    #[test]
    fn the_choice_depends_on_names_alone() {
        let (mut first, mut second, mut more) = (dataset(&[40], 0), dataset(&[40], 0), dataset(&[44], 0));
        for some in [&mut first, &mut second, &mut more] {
            hold_out(some, 0.1);
        }
        assert_eq!(held_out(&first, 0), held_out(&second, 0));
        // 44 pictures give 4 too, and most of them are the same.
        let kept = held_out(&more, 0).into_iter().filter(|name| held_out(&first, 0).contains(name)).count();
        assert!(kept >= 2, "{kept}");
    }

    #[test]
    fn what_is_held_out_already_is_enough() {
        let mut some = dataset(&[40, 40], 7);
        hold_out(&mut some, 0.1);
        assert_eq!([held_out(&some, 0).len(), held_out(&some, 1).len()], [7, 4]);
        let mut none = dataset(&[40], 0);
        hold_out(&mut none, 0.0);
        assert!(held_out(&none, 0).is_empty());
    }
}
