//! Finding parameters that reach a goal: the chain sorts out what cannot, the simulator judges what may.

use crate::output::Estimate;
use crate::progress::Progress;
use crate::scenario::Scenario;
use crate::sim::{Measure, simulate};
use crate::solve::solve;
use rayon::prelude::*;
use serde::Serialize;
use skein_model::ScalingRule;
use std::fmt;
use std::str::FromStr;

/// Most points that are looked at.
pub const POINTS_MAX: usize = 100_000;

/// What can be varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Parameter {
    /// Nodes of the first group.
    Nodes,
    /// Fewest replicas of the first service.
    ReplicasMin,
    /// Most replicas of the first service.
    ReplicasMax,
    /// Warm machines of the first service.
    Warm,
    /// Replication threshold of the first service.
    ReplicateAbove,
    /// Dereplication threshold of the first service.
    DereplicateAt,
    /// Queue bound of the first service.
    QueueBound,
    /// Requests at a time of a machine of the first service.
    Capacity,
}

impl Parameter {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Nodes, "nodes"),
        (Self::ReplicasMin, "replicas_min"),
        (Self::ReplicasMax, "replicas_max"),
        (Self::Warm, "warm"),
        (Self::ReplicateAbove, "replicate_above"),
        (Self::DereplicateAt, "dereplicate_at"),
        (Self::QueueBound, "queue_bound"),
        (Self::Capacity, "capacity"),
    ];

    /// Sets it in a scenario; what it cannot be there is found by the scenario's own check.
    fn set(self, scenario: &mut Scenario, value: u32) {
        let service = &mut scenario.services[0];
        let scaling = &mut service.scaling;
        match self {
            Self::Nodes => scenario.nodes[0].count = value,
            Self::ReplicasMin => scaling.replicas_min = value,
            Self::ReplicasMax => scaling.replicas_max = value,
            Self::Warm => scaling.warm = value,
            Self::QueueBound => service.queue_bound = value,
            Self::Capacity => service.capacity = value,
            Self::ReplicateAbove | Self::DereplicateAt => {
                if let ScalingRule::Thresholds { replicate_above, dereplicate_at, .. } =
                    &mut scaling.rule
                {
                    *(if self == Self::ReplicateAbove {
                        replicate_above
                    } else {
                        dereplicate_at
                    }) = value;
                }
            }
        }
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::ALL.iter().find(|(parameter, _)| parameter == self);
        f.write_str(found.map_or("", |(_, name)| name))
    }
}

impl FromStr for Parameter {
    type Err = SearchError;
    fn from_str(text: &str) -> Result<Self, SearchError> {
        // The word of the source for the same thing.
        let text = if text == "replicate_at" { "replicate_above" } else { text };
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(parameter, _)| *parameter).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|(_, name)| *name).collect();
            SearchError::Parse {
                text: text.to_owned(),
                expected: format!("a parameter: {}", all.join(", ")),
            }
        })
    }
}

/// A parameter and its range, both ends among it: `nodes=2..40`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Vary {
    /// What is varied.
    pub parameter: Parameter,
    /// Least value.
    pub low: u32,
    /// Greatest value.
    pub high: u32,
}

impl FromStr for Vary {
    type Err = SearchError;
    fn from_str(text: &str) -> Result<Self, SearchError> {
        let bad = || SearchError::Parse {
            text: text.to_owned(),
            expected: "PARAMETER=LOW..HIGH, like nodes=2..40".to_owned(),
        };
        let (name, range) = text.split_once('=').ok_or_else(bad)?;
        let (low, high) = range.split_once("..").ok_or_else(bad)?;
        let number = |text: &str| text.trim().trim_start_matches('=').parse().map_err(|_| bad());
        let vary = Self { parameter: name.trim().parse()?, low: number(low)?, high: number(high)? };
        if vary.low > vary.high { Err(bad()) } else { Ok(vary) }
    }
}

/// A bound on a measure of the first service.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bound {
    /// What is bounded.
    pub measure: Measure,
    /// Whether it shall be less or more.
    pub side: Side,
    /// Than this.
    pub value: f64,
}

/// A side of a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Less than.
    Below,
    /// More than.
    Above,
}

/// Bounds that all shall hold: `refusal<0.01 && p99<2s`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Goal(pub Vec<Bound>);

impl FromStr for Goal {
    type Err = SearchError;
    fn from_str(text: &str) -> Result<Self, SearchError> {
        text.split("&&").map(parse_bound).collect::<Result<_, _>>().map(Self)
    }
}

fn parse_bound(text: &str) -> Result<Bound, SearchError> {
    let bad = |expected: &str| SearchError::Parse {
        text: text.trim().to_owned(),
        expected: expected.to_owned(),
    };
    let at = text.find(['<', '>']).ok_or_else(|| bad("MEASURE<VALUE or MEASURE>VALUE"))?;
    let measure: Measure = text[..at].trim().parse().map_err(SearchError::NoMeasure)?;
    let side = if text[at..].starts_with('<') { Side::Below } else { Side::Above };
    let value = text[at + 1..].trim_start_matches('=').trim();
    // Times may have a unit, shares a percent sign; longest endings first.
    let units = [("ms", 1e-3), ("s", 1.0), ("%", 1e-2), ("", 1.0)];
    let (number, factor) = units
        .into_iter()
        .find_map(|(unit, factor)| value.strip_suffix(unit).map(|number| (number, factor)))
        .unwrap_or((value, 1.0));
    let number: f64 = number.trim().parse().map_err(|_| SearchError::Parse {
        text: value.to_owned(),
        expected: "a number, with ms, s or % after it or nothing".to_owned(),
    })?;
    Ok(Bound { measure, side, value: number * factor })
}

/// Why a search cannot be made or has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// A text is not what it should be.
    #[error("{text:?} is not {expected}")]
    Parse {
        /// What was given.
        text: String,
        /// What was expected.
        expected: String,
    },
    /// A goal is not of a measure.
    #[error("{0}")]
    NoMeasure(String),
    /// Too many points.
    #[error("there are more than {POINTS_MAX} points: vary less")]
    TooMany,
    /// What is to be least is not varied.
    #[error("{0} is to be least and is not varied")]
    NotVaried(Parameter),
    /// Somebody wished the end before a point was found.
    #[error("stopped after {tried} of {open} points; {nearest}")]
    Stopped {
        /// Points that were simulated.
        tried: usize,
        /// Points that the chain let pass.
        open: usize,
        /// The nearest so far, in words.
        nearest: String,
    },
    /// No point of the range reaches the goal.
    #[error("no point reaches the goal; {nearest}")]
    NotReached {
        /// The nearest point, in words.
        nearest: String,
    },
}

impl SearchError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Parse { .. } | Self::NoMeasure(_) => "SEARCH_MALFORMED",
            Self::TooMany => "SEARCH_TOO_LARGE",
            Self::NotVaried(_) => "SEARCH_NOT_VARIED",
            Self::Stopped { .. } => "SEARCH_STOPPED",
            Self::NotReached { .. } => "GOAL_NOT_REACHED",
        }
    }
}

/// A point that reaches the goal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// The values of what was varied.
    pub point: Vec<(Parameter, u32)>,
    /// The scenario there, ready to be simulated.
    pub scenario: Scenario,
    /// The bounded measures, as simulated.
    pub measures: Vec<(Measure, Estimate)>,
    /// Points in the range.
    pub points: usize,
    /// Points that the chain sorted out.
    pub sorted_out: usize,
    /// Points that were simulated.
    pub simulated: usize,
}

/// A bound that the chain misses by this factor is missed for sure, whatever the chain leaves out.
const SURE: f64 = 2.0;

/// Finds the point with the least `minimise` (then the first in the order of the variation) that reaches the goal with
/// the confidence of the scenario: the whole interval of each bounded measure keeps its bound.
///
/// # Errors
/// The variation is too large or leaves `minimise` out, or no point reaches the goal.
pub fn search(
    scenario: &Scenario,
    vary: &[Vary],
    goal: &Goal,
    minimise: Parameter,
    progress: &Progress,
) -> Result<Found, SearchError> {
    if !vary.iter().any(|it| it.parameter == minimise) {
        return Err(SearchError::NotVaried(minimise));
    }
    let points = points_of(scenario, vary, minimise)?;
    let open: Vec<&(Vec<u32>, Scenario)> =
        points.par_iter().filter(|(_, it)| !surely_missed(it, goal, progress)).collect();
    let mut nearest: Option<(f64, String)> = None;
    for (number, (values, scenario)) in open.iter().enumerate() {
        if progress.is_stopped() {
            return Err(SearchError::Stopped {
                tried: number,
                open: open.len(),
                nearest: named(nearest),
            });
        }
        let report = simulate(scenario, progress);
        let service = &report.services[0];
        let measures: Vec<(Measure, Estimate)> =
            goal.0.iter().map(|bound| (bound.measure, service.get(bound.measure))).collect();
        let point: Vec<(Parameter, u32)> =
            vary.iter().map(|it| it.parameter).zip(values.iter().copied()).collect();
        let miss = goal.0.iter().zip(&measures).map(|(bound, it)| bound.miss(&it.1));
        let miss = miss.fold(0.0, f64::max);
        // What was cut short proves nothing.
        if miss == 0.0 && !progress.is_stopped() {
            return Ok(Found {
                point,
                scenario: scenario.clone(),
                measures,
                points: points.len(),
                sorted_out: points.len() - open.len(),
                simulated: number + 1,
            });
        }
        if nearest.as_ref().is_none_or(|(least, _)| miss < *least) {
            nearest = Some((miss, in_words(&point, &measures)));
        }
    }
    Err(SearchError::NotReached { nearest: named(nearest) })
}

fn named(nearest: Option<(f64, String)>) -> String {
    match nearest {
        Some((_, point)) => format!("the nearest was {point}"),
        None => "the chain rules all of them out".to_owned(),
    }
}

fn in_words(point: &[(Parameter, u32)], measures: &[(Measure, Estimate)]) -> String {
    let point = point.iter().map(|(parameter, value)| format!("{parameter}={value}"));
    let measures = measures
        .iter()
        .map(|(measure, it)| format!("{} {}", measure.as_str(), crate::report::figure(it.mean)));
    let (point, measures): (Vec<_>, Vec<_>) = (point.collect(), measures.collect());
    format!("{} with {}", point.join(" "), measures.join(", "))
}

/// All valid points, least of what is to be least first.
fn points_of(
    scenario: &Scenario,
    vary: &[Vary],
    minimise: Parameter,
) -> Result<Vec<(Vec<u32>, Scenario)>, SearchError> {
    let count = vary
        .iter()
        .map(|it| u64::from(it.high - it.low) + 1)
        .try_fold(1u64, |a, b| a.checked_mul(b).filter(|product| *product <= POINTS_MAX as u64));
    let Some(count) = count else { return Err(SearchError::TooMany) };
    let mut points: Vec<Vec<u32>> = (0..count)
        .map(|mut number| {
            vary.iter()
                .map(|it| {
                    let width = u64::from(it.high - it.low) + 1;
                    let value = it.low + (number % width) as u32;
                    number /= width;
                    value
                })
                .collect()
        })
        .collect();
    let least = vary.iter().position(|it| it.parameter == minimise).unwrap_or(0);
    points.sort_by_key(|values| values[least]);
    let with = |values: Vec<u32>| {
        let mut at = scenario.clone();
        for (it, value) in vary.iter().zip(&values) {
            it.parameter.set(&mut at, *value);
        }
        // Thresholds that contradict each other, fewer nodes than names: such points are none.
        at.is_valid().then_some((values, at))
    };
    Ok(points.into_iter().filter_map(with).collect())
}

/// Whether the chain, where there is one, misses the goal by far.
fn surely_missed(scenario: &Scenario, goal: &Goal, progress: &Progress) -> bool {
    let Ok(report) = solve(scenario, progress) else { return false };
    let solved = &report.services[0];
    goal.0.iter().any(|bound| {
        let value = solved.solution.get(bound.measure);
        match bound.side {
            _ if !value.is_finite() => false,
            Side::Below => value > SURE * bound.value,
            Side::Above => value < bound.value / SURE,
        }
    })
}

impl Bound {
    /// By how much an interval misses the bound; 0 when all of it keeps it.
    fn miss(&self, estimate: &Estimate) -> f64 {
        let width = if estimate.half_width.is_finite() { estimate.half_width } else { 0.0 };
        let miss = match self.side {
            Side::Below => estimate.mean + width - self.value,
            Side::Above => self.value - (estimate.mean - width),
        };
        if miss.is_nan() { f64::INFINITY } else { (miss / self.value.abs().max(1e-12)).max(0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_and_variations_are_parsed() {
        let goal: Goal =
            "refusal<1% && p99 < 2s && throughput>3.5 && time_in_queue<=20ms".parse().unwrap();
        let values: Vec<(Measure, Side, f64)> =
            goal.0.iter().map(|it| (it.measure, it.side, it.value)).collect();
        assert_eq!(
            values,
            [
                (Measure::Refusal, Side::Below, 0.01),
                (Measure::P99, Side::Below, 2.0),
                (Measure::Throughput, Side::Above, 3.5),
                (Measure::TimeInQueue, Side::Below, 0.02),
            ]
        );
        for bad in ["refusal", "refusals<1", "p99<fast", ""] {
            assert_eq!(bad.parse::<Goal>().unwrap_err().code(), "SEARCH_MALFORMED");
        }
        let vary: Vary = "replicate_at=1..10".parse().unwrap();
        assert_eq!((vary.parameter, vary.low, vary.high), (Parameter::ReplicateAbove, 1, 10));
        for bad in ["nodes", "nodes=3", "nodes=5..2", "colour=1..2", "nodes=a..b"] {
            assert_eq!(bad.parse::<Vary>().unwrap_err().code(), "SEARCH_MALFORMED", "{bad}");
        }
    }

    #[test]
    fn the_least_queue_that_keeps_a_promise_is_found() {
        let text = r#"
name = "fewest"
run = { replications = 10, duration_secs = 20000 }
[[nodes]]
name = "n"
[[services]]
name = "s"
start_secs = 0
queue_bound = 4
scaling = { replicas_min = 1, replicas_max = 1 }
[[users]]
name = "u"
service = "s"
interval_secs = { kind = "exponential", mean = 0.33333 }
work_secs = { kind = "exponential", mean = 1 }
"#;
        let scenario = Scenario::parse(text).unwrap();
        let goal: Goal = "refusal<0.01".parse().unwrap();
        let fixed = |n: u32| {
            let mut at = scenario.clone();
            (at.services[0].scaling.replicas_min, at.services[0].scaling.replicas_max) = (n, n);
            solve(&at, &Progress::default()).unwrap().services[0].solution.get(Measure::Refusal)
        };
        let vary: [Vary; 1] = ["queue_bound=1..40".parse().unwrap()];
        let mut five = scenario.clone();
        (five.services[0].scaling.replicas_min, five.services[0].scaling.replicas_max) = (5, 5);
        assert!(fixed(5) > 0.01);
        let found =
            search(&five, &vary, &goal, Parameter::QueueBound, &Progress::default()).unwrap();
        let bound = found.point[0].1;
        let with = |bound: u32| {
            let mut at = five.clone();
            at.services[0].queue_bound = bound;
            solve(&at, &Progress::default()).unwrap().services[0].solution.get(Measure::Refusal)
        };
        assert!(with(bound) < 0.01 && with(bound.saturating_sub(2)) > 0.01, "{found:?}");
        assert!(found.sorted_out > 0 && found.simulated < found.points);
        let never: Goal = "throughput>100".parse().unwrap();
        let error =
            search(&five, &vary, &never, Parameter::QueueBound, &Progress::default()).unwrap_err();
        assert_eq!(error.code(), "GOAL_NOT_REACHED");
    }
}
