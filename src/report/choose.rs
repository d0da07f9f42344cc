//! Which pictures are worth a look: the worst false alarms, the worst misses, the clearest finds.

use super::data::{Group, Kind, Scored};

/// Pictures of a group.
const EACH: usize = 4;

/// Places of the pictures to show, group by group, the most telling first. None is in two groups.
pub fn choose(pictures: &[Scored]) -> Vec<(Group, usize)> {
    let ranked = |defective: bool| {
        let mut of: Vec<usize> =
            (0..pictures.len()).filter(|&i| (pictures[i].kind != Kind::Good) == defective).collect();
        of.sort_by(|&a, &b| pictures[b].score.total_cmp(&pictures[a].score).then(a.cmp(&b)));
        of
    };
    let (good, defective) = (ranked(false), ranked(true));
    // With few defective pictures, misses first.
    let low = EACH.min(defective.len().div_ceil(2));
    let high = EACH.min(defective.len() - low);
    let group = |group, of: Vec<usize>| of.into_iter().map(move |i| (group, i));
    group(Group::GoodHigh, good.into_iter().take(EACH).collect())
        .chain(group(Group::DefectiveLow, defective.iter().rev().take(low).copied().collect()))
        .chain(group(Group::DefectiveHigh, defective.iter().take(high).copied().collect()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pictures(scores: &[(f32, bool)]) -> Vec<Scored> {
        let kind = |defective| if defective { Kind::Defective("x".into()) } else { Kind::Good };
        let scored = |&(score, defective): &(f32, bool)| Scored {
            name: String::new(),
            kind: kind(defective),
            score,
            p_value: None,
            rejected: None,
        };
        scores.iter().map(scored).collect()
    }

    #[test]
    fn the_most_telling_come_first() {
        let all = pictures(&[(0.1, false), (0.9, false), (0.5, true), (0.2, true), (0.8, true)]);
        let expected = [(Group::GoodHigh, 1), (Group::GoodHigh, 0), (Group::DefectiveLow, 3), (Group::DefectiveLow, 2)];
        assert_eq!(choose(&all), [&expected[..], &[(Group::DefectiveHigh, 4)]].concat());
        assert_eq!(choose(&pictures(&[(0.3, true)])), [(Group::DefectiveLow, 0)]);
        assert_eq!(choose(&[]), []);
        let many: Vec<(f32, bool)> = (0..60).map(|i| (i as f32, i % 2 == 0)).collect();
        assert_eq!(choose(&pictures(&many)).len(), 3 * EACH);
    }
}
