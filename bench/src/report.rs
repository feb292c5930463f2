//! What a bench found, in the form that tools read.

use crate::stats::Sample;
use serde::{Serialize, Serializer};
use std::fmt;

/// What one bench found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Its name.
    pub bench: &'static str,
    /// Release of the product.
    pub version: &'static str,
    /// Where it ran.
    pub host: Host,
    /// What was measured.
    pub checks: Vec<Check>,
    /// Curves, without goals.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plots: Vec<Plot>,
}

/// Curves over one quantity.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plot {
    /// Stable id, `BENCH.WHAT`.
    pub id: &'static str,
    /// What is over what, and what is beside what.
    #[serde(skip)]
    pub about: &'static str,
    /// What the points' first numbers are, with its unit.
    pub x: &'static str,
    /// And the second.
    pub y: &'static str,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// One curve.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// What it is of.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

impl Report {
    /// Whether every check with a goal holds.
    pub fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.holds != Some(false))
    }
}

/// Where a bench ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Name of the processor.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: u32,
    /// Who ran the guests' instructions: `kvm` or `tcg`; `none` where there were no guests.
    pub accel: String,
}

/// What a check must reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Ours divided by the baseline is at most this.
    RatioAtMost(f64),
    /// Ours divided by the baseline is at least this.
    RatioAtLeast(f64),
    /// Ours is at most this much more than the baseline, in the check's unit.
    AboveBaselineAtMost(f64),
    /// Ours is at most this, in the check's unit.
    AtMost(f64),
    /// Ours is at least this, in the check's unit.
    AtLeast(f64),
}

impl Goal {
    /// Whether a check reaches it. A goal that speaks of a baseline is not reached without one.
    fn holds(self, check: &Check) -> bool {
        match self {
            Self::RatioAtMost(most) => check.ratio.is_some_and(|ratio| ratio <= most),
            Self::RatioAtLeast(least) => check.ratio.is_some_and(|ratio| ratio >= least),
            Self::AboveBaselineAtMost(most) => {
                check.baseline.is_some_and(|b| check.ours - b <= most)
            }
            Self::AtMost(most) => check.ours <= most,
            Self::AtLeast(least) => check.ours >= least,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtMost(most) => write!(f, "ratio <= {most}"),
            Self::RatioAtLeast(least) => write!(f, "ratio >= {least}"),
            Self::AboveBaselineAtMost(most) => write!(f, "ours - baseline <= {most}"),
            Self::AtMost(most) => write!(f, "ours <= {most}"),
            Self::AtLeast(least) => write!(f, "ours >= {least}"),
        }
    }
}

/// What ours is compared with.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// What it is, in a few words.
    pub name: &'static str,
    /// Its measurements, in the check's unit.
    pub sample: Sample,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Stable id, `BENCH.WHAT`.
    pub id: &'static str,
    /// Our figure: the median of `sample`, unless the check says otherwise.
    #[serde(serialize_with = "rounded")]
    pub ours: f64,
    /// Unit of `ours`, `baseline`, `p10` and `p90`.
    pub unit: &'static str,
    /// The median of the baseline.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "rounded_option")]
    pub baseline: Option<f64>,
    /// What the baseline is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_name: Option<&'static str>,
    /// Ours divided by the baseline; where both were measured in turn, the median of the turns' ratios.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "rounded_option")]
    pub ratio: Option<f64>,
    /// What it must reach, in words; absent for a figure that is only told.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "words")]
    pub goal: Option<Goal>,
    /// Whether it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holds: Option<bool>,
    /// Measurements of ours.
    pub n: usize,
    /// Why there is no figure; absent when there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// A tenth of ours lies below.
    #[serde(serialize_with = "rounded")]
    pub p10: f64,
    /// Nine tenths of ours lie below.
    #[serde(serialize_with = "rounded")]
    pub p90: f64,
    /// What is measured, what the baseline is and why it is fair.
    #[serde(skip)]
    pub about: &'static str,
    /// Our measurements.
    #[serde(skip)]
    pub sample: Sample,
    /// The baseline's measurements; empty without one.
    #[serde(skip)]
    pub baseline_sample: Sample,
}

impl Check {
    /// A figure that is the median of `sample`, without a baseline and a goal.
    pub fn new(id: &'static str, unit: &'static str, sample: Sample, about: &'static str) -> Self {
        Self {
            id,
            ours: sample.median(),
            unit,
            baseline: None,
            baseline_name: None,
            ratio: None,
            goal: None,
            holds: None,
            n: sample.len(),
            problem: None,
            p10: sample.quantile(0.1),
            p90: sample.quantile(0.9),
            about,
            sample,
            baseline_sample: Sample::default(),
        }
    }

    /// A check that came to no figure. With a goal it fails; without one it only says why.
    pub fn without_figure(
        id: &'static str,
        unit: &'static str,
        about: &'static str,
        problem: impl Into<String>,
    ) -> Self {
        let check = Self::new(id, unit, Sample::default(), about);
        Self { problem: Some(problem.into()), ..check }
    }

    /// The same with the mean of its sample as the figure.
    #[must_use]
    pub fn by_mean(mut self) -> Self {
        self.ours = self.sample.mean();
        self
    }

    /// The same beside a baseline, whose figure is a median.
    #[must_use]
    pub fn beside(mut self, baseline: Baseline) -> Self {
        let figure = baseline.sample.median();
        self.baseline = Some(figure);
        self.baseline_name = Some(baseline.name);
        self.ratio = (figure > 0.0).then(|| self.ours / figure);
        self.baseline_sample = baseline.sample;
        self
    }

    /// The same beside a baseline that was measured in turn with ours: the ratio is the median of those of the turns. What slows
    /// a host down for some seconds slows down both of a turn.
    #[must_use]
    pub fn beside_in_turn(self, baseline: Baseline, ratios: &Sample) -> Self {
        let ratio = (!ratios.is_empty()).then(|| ratios.median());
        Self { ratio, ..self.beside(baseline) }
    }

    /// The same with a goal, told last. A figure of no measurements reaches none.
    #[must_use]
    pub fn with_goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self.holds = Some(self.n > 0 && goal.holds(&self));
        self
    }
}

/// Four digits say all that a measurement knows.
fn four_digits(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    let scale = 10_f64.powi(digits.clamp(-12, 12));
    (value * scale).round() / scale
}

fn rounded<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(four_digits(*value))
}

fn rounded_option<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => rounded(value, serializer),
        None => serializer.serialize_none(),
    }
}

fn words<S: Serializer>(goal: &Option<Goal>, serializer: S) -> Result<S::Ok, S::Error> {
    match goal {
        Some(goal) => serializer.collect_str(goal),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(goal: Goal, ours: f64, baseline: Option<f64>, expect: bool, words: &str) {
        let sample = |value: f64| Sample::new([value]);
        let check = Check::new("a.b", "ms", sample(ours), "");
        let check = match baseline {
            Some(figure) => check.beside(Baseline { name: "x", sample: sample(figure) }),
            None => check,
        };
        let holds = check.with_goal(goal).holds;
        assert_eq!(holds, Some(expect), "{goal:?} of {ours} beside {baseline:?}");
        assert_eq!(goal.to_string(), words);
    }

    #[test]
    fn goals() {
        check(Goal::RatioAtMost(1.5), 60.0, Some(40.0), true, "ratio <= 1.5");
        check(Goal::RatioAtMost(1.5), 60.1, Some(40.0), false, "ratio <= 1.5");
        check(Goal::RatioAtMost(1.5), 60.0, None, false, "ratio <= 1.5");
        check(Goal::RatioAtMost(1.5), 0.0, Some(0.0), false, "ratio <= 1.5");
        check(Goal::RatioAtLeast(50.0), 100.0, Some(2.0), true, "ratio >= 50");
        check(Goal::RatioAtLeast(50.0), 99.0, Some(2.0), false, "ratio >= 50");
        check(Goal::RatioAtLeast(2.0), 80.0, Some(40.0), true, "ratio >= 2");
        check(Goal::RatioAtLeast(2.0), 79.0, Some(40.0), false, "ratio >= 2");
        check(Goal::AboveBaselineAtMost(1.0), 2.0, Some(1.0), true, "ours - baseline <= 1");
        check(Goal::AboveBaselineAtMost(1.0), 2.1, Some(1.0), false, "ours - baseline <= 1");
        check(Goal::AtMost(5.0), 5.0, None, true, "ours <= 5");
        check(Goal::AtMost(5.0), 5.1, None, false, "ours <= 5");
        check(Goal::AtLeast(1500.0), 1500.0, None, true, "ours >= 1500");
        check(Goal::AtLeast(1500.0), 1499.0, Some(1.0), false, "ours >= 1500");
    }

    #[test]
    fn turns_are_compared_one_by_one() {
        // A host that was half as fast in one of three turns: medians of each side alone would say 0.9.
        let (ours, theirs) = ([11.0, 6.0, 9.0], [10.0, 5.0, 10.0]);
        let ratios = Sample::new(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs));
        let check = Check::new("a.b", "MB/s", Sample::new(ours), "")
            .beside_in_turn(Baseline { name: "x", sample: Sample::new(theirs) }, &ratios)
            .with_goal(Goal::RatioAtLeast(1.0));
        assert_eq!((check.baseline, check.ratio, check.holds), (Some(10.0), Some(1.1), Some(true)));
    }

    #[test]
    fn nothing_measured_reaches_no_goal() {
        let empty = Check::new("a.b", "ms", Sample::default(), "").with_goal(Goal::AtMost(5.0));
        assert_eq!(empty.holds, Some(false));
    }

    #[test]
    fn a_check_without_a_figure_says_why() {
        let failed = Check::without_figure("a.b", "ms", "", "no way").with_goal(Goal::AtMost(5.0));
        let json = serde_json::to_value(&failed).expect("JSON");
        assert_eq!((&json["problem"], &json["holds"]), (&"no way".into(), &false.into()));
        let left_out = Check::without_figure("a.b", "ms", "", "not here");
        assert_eq!(left_out.holds, None);
    }

    #[test]
    fn digits() {
        for (value, expect) in
            [(0.0, 0.0), (55.123_4, 55.12), (123_456.0, 123_500.0), (0.012_345, 0.012_35)]
        {
            assert!((four_digits(value) - expect).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn the_form() {
        let cold = Check::new("start.cold", "ms", Sample::new([55.0, 50.0, 71.0]), "about")
            .beside(Baseline { name: "bare QEMU", sample: Sample::new([41.0, 40.0, 44.0]) })
            .with_goal(Goal::RatioAtMost(1.5));
        let told = Check::new("density.control", "% of a core", Sample::new([1.25]), "about");
        let report = Report {
            bench: "start",
            version: "0.1.0",
            host: Host { cpu: "a processor".into(), cores: 2, accel: "tcg".into() },
            checks: vec![cold, told],
            plots: Vec::new(),
        };
        let expect = r#"{
  "bench": "start",
  "version": "0.1.0",
  "host": {
    "cpu": "a processor",
    "cores": 2,
    "accel": "tcg"
  },
  "checks": [
    {
      "id": "start.cold",
      "ours": 55.0,
      "unit": "ms",
      "baseline": 41.0,
      "baseline_name": "bare QEMU",
      "ratio": 1.341,
      "goal": "ratio <= 1.5",
      "holds": true,
      "n": 3,
      "p10": 51.0,
      "p90": 67.8
    },
    {
      "id": "density.control",
      "ours": 1.25,
      "unit": "% of a core",
      "n": 1,
      "p10": 1.25,
      "p90": 1.25
    }
  ]
}"#;
        assert_eq!(serde_json::to_string_pretty(&report).expect("JSON"), expect);
        assert!(report.holds());
    }
}
