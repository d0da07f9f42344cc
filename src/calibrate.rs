//! Thresholds from good pictures alone: how often may a good part be rejected?
//!
//! ```text
//! s(1) ≤ … ≤ s(n)   scores of good pictures that the model was not trained on
//! threshold         t = s(k), k = ⌈(n + 1)(1 − α)⌉, at most n; a picture is anomalous if its score is above t
//! p-value           p(s) = (1 + #{i: s(i) ≥ s}) / (n + 1)
//! false rejects     of good pictures like those: (n + 1 − k)/(n + 1) on average; the rate itself is distributed as
//!                   Beta(n + 1 − k, k), whose 2.5 % and 97.5 % quantiles are the interval
//! ```
//! It assumes nothing but that good pictures to come are like those held out (exchangeable); scores need no particular
//! distribution. `anomalous` and `p ≤ (n + 1 − k)/(n + 1)` are the same statement. Scores are neither scaled nor clamped.
//! With fewer than 1/α − 1 pictures no threshold can promise α: the largest score is taken, and what it promises is said.
//! Source: split conformal prediction (V. Vovk, "Conditional validity of inductive conformal predictors", 2012).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::score::Scored;

/// Share of good parts that may be rejected, unless the user says another.
pub const DEFAULT_TARGET: f64 = 0.01;

/// What one held-out picture scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GoodScore {
    /// Its image score.
    pub image: f32,
    /// The largest value of its map.
    pub peak: f32,
}

impl GoodScore {
    /// What a picture scored.
    pub fn of(scored: &Scored) -> Self {
        GoodScore { image: scored.image_score, peak: scored.peak() }
    }
}

/// Scores of the held-out good pictures of one class, ascending.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Scores {
    image: Vec<f32>,
    peak: Vec<f32>,
}

/// Scores of good pictures that the model was not trained on, and the share of them that may be rejected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// α: the share of good parts that may be rejected, in (0, 1).
    target: f64,
    classes: BTreeMap<String, Scores>,
}

impl Calibration {
    /// From the scores of held-out good pictures, by class; a class without pictures is left out.
    ///
    /// # Errors
    /// [`Error::Config`] for a target that is no share, or a score that is not a number; [`Error::Data`] without any
    /// picture.
    pub fn new(target: f64, scores: &BTreeMap<String, Vec<GoodScore>>) -> Result<Self> {
        let sorted = |of: fn(&GoodScore) -> f32, scores: &[GoodScore]| {
            let mut values: Vec<f32> = scores.iter().map(of).collect();
            values.sort_by(f32::total_cmp);
            values
        };
        let classes = scores.iter().filter(|(_, scores)| !scores.is_empty());
        let classes = classes
            .map(|(name, s)| (name.clone(), Scores { image: sorted(|s| s.image, s), peak: sorted(|s| s.peak, s) }));
        let calibration = Calibration { target, classes: classes.collect() };
        if calibration.classes.is_empty() {
            let help = "give pictures of good parts that the model was not trained on";
            return Err(Error::data("held-out pictures", "there is none to set a threshold from", help));
        }
        calibration.check()?;
        Ok(calibration)
    }

    /// Checks what a file may hold.
    ///
    /// # Errors
    /// [`Error::Config`] naming what makes no sense.
    pub fn check(&self) -> Result<()> {
        check_target(self.target)?;
        for (name, Scores { image, peak }) in &self.classes {
            if image.iter().chain(peak).any(|score| !score.is_finite()) {
                let what = format!("a held-out score of class {name} is not a number");
                return Err(Error::config(what, "the model has diverged: train again with a lower rate and grid_rate"));
            }
            if image.is_empty() || image.len() != peak.len() || !image.is_sorted() || !peak.is_sorted() {
                let what = format!("the held-out scores of class {name} are not sorted pairs");
                return Err(Error::config(what, "the model file is damaged: copy it again, or calibrate again"));
            }
        }
        if self.classes.is_empty() {
            return Err(Error::config("the calibration holds no scores", "calibrate again"));
        }
        Ok(())
    }

    /// The same scores for another share of false rejects.
    ///
    /// # Errors
    /// [`Error::Config`] for a target that is no share.
    pub fn with_target(self, target: f64) -> Result<Self> {
        check_target(target)?;
        Ok(Calibration { target, ..self })
    }

    /// The share of good parts that may be rejected.
    pub fn target(&self) -> f64 {
        self.target
    }

    /// Classes with scores of their own, in the order of their bytes.
    pub fn classes(&self) -> impl Iterator<Item = &str> {
        self.classes.keys().map(String::as_str)
    }

    /// The rule for pictures of one class, or for pictures of any class. `None` when nothing of that class was held out.
    pub fn rule(&self, class: Option<&str>) -> Option<Rule> {
        let scores = match class {
            Some(name) => self.classes.get(name)?.clone(),
            None => {
                let pooled = |of: fn(&Scores) -> &Vec<f32>| {
                    let mut values: Vec<f32> = self.classes.values().flat_map(|s| of(s).iter().copied()).collect();
                    values.sort_by(f32::total_cmp);
                    values
                };
                Scores { image: pooled(|s| &s.image), peak: pooled(|s| &s.peak) }
            }
        };
        let (n, allowed) = (scores.image.len(), 1.0 - self.target);
        // What is a whole number in decimals must not become the next one by rounding.
        let k = ((((n + 1) as f64 * allowed) - 1e-9).ceil() as usize).clamp(1, n);
        Some(Rule { target: self.target, k, image: scores.image, peak: scores.peak })
    }
}

fn check_target(target: f64) -> Result<()> {
    if target > 0.0 && target < 1.0 {
        return Ok(());
    }
    let what = format!("the share of good parts that may be rejected is {target}");
    Err(Error::config(what, "use a number between 0 and 1, for example 0.01 for 1 %"))
}

/// How pictures of one class, or of any, are judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    target: f64,
    k: usize,
    image: Vec<f32>,
    peak: Vec<f32>,
}

/// What a score means.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Verdict {
    /// The image score, as the model gave it.
    pub score: f32,
    /// Above this score a picture is anomalous.
    pub threshold: f32,
    /// Share of good pictures that would score at least as high; small is suspicious. Never below 1/(n + 1).
    pub p_value: f64,
    /// Whether the score is above the threshold.
    pub anomalous: bool,
}

impl Rule {
    /// The threshold of image scores.
    pub fn threshold(&self) -> f32 {
        self.image[self.k - 1]
    }

    /// The threshold of map values: as many good pictures have a pixel above it as have an image score above theirs.
    pub fn pixel_threshold(&self) -> f32 {
        self.peak[self.k - 1]
    }

    /// Judges an image score.
    pub fn judge(&self, score: f32) -> Verdict {
        let below = self.image.partition_point(|held_out| *held_out < score);
        let (n, threshold) = (self.image.len(), self.threshold());
        Verdict { score, threshold, p_value: (1 + n - below) as f64 / (n + 1) as f64, anomalous: score > threshold }
    }

    /// Number of held-out pictures, n.
    pub fn held_out(&self) -> usize {
        self.image.len()
    }

    /// Share of good pictures that will be rejected, on average over sets of held-out pictures like this one.
    pub fn expected(&self) -> f64 {
        (self.held_out() + 1 - self.k) as f64 / (self.held_out() + 1) as f64
    }

    /// Where that share lies, with 95 % confidence.
    pub fn interval(&self) -> [f64; 2] {
        [0.025, 0.975].map(|q| beta_quantile(self.held_out() + 1 - self.k, self.k, q))
    }

    /// The share of good parts that may be rejected, as it was asked for.
    pub fn target(&self) -> f64 {
        self.target
    }

    /// Whether there are enough pictures for the share that was asked for.
    pub fn keeps_target(&self) -> bool {
        self.expected() <= self.target + 1e-9
    }

    /// Pictures it takes to promise the target.
    pub fn needed(&self) -> usize {
        ((1.0 / self.target - 1e-9).ceil() as usize).saturating_sub(1).max(1)
    }

    /// What to expect, in plain words.
    pub fn promise(&self) -> String {
        let [low, high] = self.interval();
        let mut text = format!(
            "about {} in 1000 good parts rejected, 95 % interval {} to {}, from {} held-out picture{}",
            per_mille(self.expected()),
            per_mille(low),
            per_mille(high),
            self.held_out(),
            if self.held_out() == 1 { "" } else { "s" },
        );
        if !self.keeps_target() {
            text += &format!("; {} in 1000 needs {} of them", per_mille(self.target), self.needed());
        }
        text
    }
}

/// Two digits below 10, none above.
fn per_mille(share: f64) -> String {
    let value = 1000.0 * share;
    if value < 9.95 { format!("{value:.1}").trim_end_matches(".0").to_owned() } else { format!("{value:.0}") }
}

/// The x where Beta(a, b) has the share q below it, a and b whole and at least 1.
///
/// `P(Beta(a, b) ≤ x) = P(Binomial(a + b − 1, x) ≥ a)`, so the distribution is a finite sum; x is found by halving.
fn beta_quantile(a: usize, b: usize, q: f64) -> f64 {
    let n = a + b - 1;
    let below = |x: f64| {
        // 1 − Σ_{j<a} C(n, j) x^j (1 − x)^(n−j), each term from the one before, in logarithms.
        let (x, y) = (x.ln(), (-x).ln_1p());
        let mut log_choose = 0.0;
        let mut sum = 0.0;
        for j in 0..a {
            sum += (log_choose + j as f64 * x + (n - j) as f64 * y).exp();
            log_choose += ((n - j) as f64).ln() - ((j + 1) as f64).ln();
        }
        1.0 - sum
    };
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if below(middle) < q { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn scores(n: usize) -> Vec<GoodScore> {
        (0..n).rev().map(|i| GoodScore { image: i as f32, peak: 10.0 + i as f32 }).collect()
    }

    fn calibration(target: f64, classes: &[(&str, usize)]) -> Calibration {
        let scores = classes.iter().map(|(name, n)| (name.to_string(), scores(*n))).collect();
        Calibration::new(target, &scores).unwrap()
    }

    #[test]
    fn the_threshold_is_an_order_statistic() {
        // (n, α) -> k: of 99, the largest; of 199, the last but one.
        for (n, target, k) in
            [(99, 0.01, 99), (199, 0.01, 198), (9, 0.1, 9), (30, 0.01, 30), (19, 0.1, 18), (1, 0.5, 1)]
        {
            let rule = calibration(target, &[("a", n)]).rule(Some("a")).unwrap();
            assert_eq!((rule.threshold(), rule.pixel_threshold()), ((k - 1) as f32, (k + 9) as f32), "{n} {target}");
            assert_eq!(rule.expected(), (n + 1 - k) as f64 / (n + 1) as f64);
        }
    }

    #[test]
    fn a_verdict_and_its_p_value_agree() {
        for (n, target) in [(99, 0.01), (30, 0.01), (57, 0.1), (3, 0.3)] {
            let rule = calibration(target, &[("a", n)]).rule(None).unwrap();
            for half in 0..2 * n + 4 {
                let verdict = rule.judge(half as f32 / 2.0 - 1.0);
                assert_eq!(verdict.anomalous, verdict.p_value <= rule.expected() + 1e-12, "{n} {half} {verdict:?}");
                assert!(verdict.p_value > 0.0 && verdict.p_value <= 1.0);
            }
            assert_eq!(rule.judge(1e9).p_value, 1.0 / (n + 1) as f64);
            assert_eq!(rule.judge(-1.0).p_value, 1.0);
        }
    }

    /// Held-out and new good scores from one distribution: the rate of false rejects is what is promised, on average,
    /// and lies in the interval as often as that says. 4000 draws: three standard errors of the share are 0.01.
    #[test]
    fn what_is_promised_is_kept() {
        let mut rng = Rng::new(17, 0);
        let (n, rounds, mut inside, mut sum) = (60, 4000, 0, 0.0);
        let rule = |scores: Vec<GoodScore>| {
            Calibration::new(0.05, &BTreeMap::from([("a".to_owned(), scores)])).unwrap().rule(None).unwrap()
        };
        let mut rate_sd = 0.0;
        for _ in 0..rounds {
            // Uniform scores: the rate above a threshold t is 1 − t.
            let drawn = (0..n).map(|_| rng.uniform_in(0.0, 1.0)).map(|s| GoodScore { image: s, peak: s });
            let rule = rule(drawn.collect());
            let rate = 1.0 - f64::from(rule.threshold());
            let [low, high] = rule.interval();
            inside += usize::from((low..=high).contains(&rate));
            sum += rate;
            let [a, b] = [rule.expected(), 1.0 - rule.expected()];
            rate_sd = (a * b / (n + 2) as f64).sqrt();
        }
        let (share, mean) = (inside as f64 / rounds as f64, sum / rounds as f64);
        assert!((share - 0.95).abs() <= 3.0 * (0.95f64 * 0.05 / rounds as f64).sqrt(), "{share}");
        let expected = rule(scores(n)).expected();
        assert!((mean - expected).abs() <= 3.0 * rate_sd / (rounds as f64).sqrt(), "{mean} for {expected}");
    }

    /// Closed forms: Beta(1, b) has 1 − (1 − x)^b below x; Beta(a, 1) has x^a; Beta(2, 2) is symmetric.
    #[test]
    fn quantiles_of_beta() {
        for (b, q) in [(1, 0.3), (30, 0.025), (99, 0.975), (5000, 0.5)] {
            let truth = 1.0 - (1.0f64 - q).powf(1.0 / b as f64);
            assert!((beta_quantile(1, b, q) - truth).abs() <= 1e-10, "{b} {q}");
            let truth = q.powf(1.0 / b as f64);
            assert!((beta_quantile(b, 1, q) - truth).abs() <= 1e-10, "{b} {q}");
        }
        assert!((beta_quantile(2, 2, 0.5) - 0.5).abs() <= 1e-12);
        // scipy.stats.beta.ppf([0.025, 0.975], 11, 990)
        for (q, truth) in [(0.025, 0.005503594192313587), (0.975, 0.01831324305511245)] {
            assert!((beta_quantile(11, 990, q) - truth).abs() <= 1e-9, "{q}");
        }
    }

    #[test]
    fn pooled_and_by_class() {
        let calibration = calibration(0.1, &[("a", 30), ("b", 9), ("none", 0)]);
        assert_eq!(calibration.classes().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(calibration.rule(Some("none")), None);
        assert_eq!(calibration.rule(None).unwrap().held_out(), 39);
        assert_eq!(calibration.rule(Some("b")).unwrap().threshold(), 8.0);
        let stricter = calibration.clone().with_target(0.5).unwrap();
        assert!(stricter.rule(Some("a")).unwrap().threshold() < calibration.rule(Some("a")).unwrap().threshold());
        let text = serde_json::to_string(&calibration).unwrap();
        assert_eq!(serde_json::from_str::<Calibration>(&text).unwrap(), calibration);
    }

    #[test]
    fn the_promise_is_in_plain_words() {
        let rule = calibration(0.01, &[("a", 999)]).rule(None).unwrap();
        let said = rule.promise();
        assert!(said.starts_with("about 10 in 1000 good parts rejected, 95 % interval 4.8 to 17"), "{said}");
        assert!(said.ends_with("from 999 held-out pictures") && rule.keeps_target());
        let rule = calibration(0.01, &[("a", 24)]).rule(None).unwrap();
        assert!(
            !rule.keeps_target() && rule.promise().ends_with("; 10 in 1000 needs 99 of them"),
            "{}",
            rule.promise()
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let good = BTreeMap::from([("a".to_owned(), scores(5))]);
        for target in [0.0, 1.0, -0.1, f64::NAN, 5.0] {
            assert!(matches!(Calibration::new(target, &good), Err(Error::Config { .. })), "{target}");
        }
        assert!(matches!(Calibration::new(0.1, &BTreeMap::new()), Err(Error::Data { .. })));
        let nan = BTreeMap::from([("a".to_owned(), vec![GoodScore { image: f32::NAN, peak: 1.0 }])]);
        assert!(matches!(Calibration::new(0.1, &nan), Err(Error::Config { .. })));
        let unsorted = r#"{"target":0.1,"classes":{"a":{"image":[2,1],"peak":[1,2]}}}"#;
        assert!(serde_json::from_str::<Calibration>(unsorted).unwrap().check().is_err());
    }
}
