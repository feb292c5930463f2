//! Several services (E3), parameters for a goal (E4), chain against simulator (E5), fifteen nodes (E6).

use super::{Effort, Experiment, Finding, scenario};
use crate::compare::compare;
use crate::plot::{Line, Plot};
use crate::progress::Progress;
use crate::report::{self, Table, figure};
use crate::search::{Goal, Parameter, SearchError, Vary, search};
use crate::sim::{Measure, simulate};

const SERVICES: &str = include_str!("../../scenarios/e3-services.toml");
const SYNTHESIS: &str = include_str!("../../scenarios/e4-synthesis.toml");
const CHAIN: &str = include_str!("../../scenarios/e5-chain.toml");
const FIFTEEN: &str = include_str!("../../scenarios/e6-fifteen.toml");

/// E3: three services of different weight on six nodes.
pub(super) fn services(effort: Effort, progress: &Progress) -> Experiment {
    let report = simulate(&scenario(SERVICES, effort), progress);
    let replicas: Vec<f64> =
        report.services.iter().map(|it| it.get(Measure::Replicas).mean).collect();
    let figures: Vec<String> = replicas.iter().map(|it| figure(*it)).collect();
    Experiment {
        id: "E3",
        title: "several services on six nodes",
        scenario: SERVICES,
        tables: vec![("Measures of each service".to_owned(), report::of_simulation(&report))],
        plots: vec![],
        findings: vec![Finding {
            claim: "heavier services get more replicas".to_owned(),
            holds: replicas.windows(2).all(|pair| pair[0] < pair[1]),
            figures: figures.join(", "),
        }],
    }
}

/// E4: the fewest nodes, and a threshold, that keep refusals under a bound; and refusals against nodes.
pub(super) fn synthesis(effort: Effort, progress: &Progress) -> Experiment {
    let base = scenario(SYNTHESIS, effort);
    let mut table =
        Table::new(&["goal", "nodes", "replicate_above", "refusal", "points", "simulated"]);
    let mut found_all = vec![];
    for goal in ["refusal<0.1", "refusal<0.05", "refusal<0.01"] {
        let found = best(&base, goal, progress);
        match &found {
            Ok(it) => table.row([
                goal.to_owned(),
                it.point[0].1.to_string(),
                it.point[1].1.to_string(),
                figure(it.measures[0].1.mean),
                it.points.to_string(),
                it.simulated.to_string(),
            ]),
            Err(error) => table.row([goal.to_owned(), error.to_string()]),
        }
        found_all.push(found.ok().map(|it| it.point[0].1));
    }
    let mut line = Line { name: "refusal".to_owned(), points: vec![] };
    for nodes in 2..=10 {
        let mut at = base.clone();
        at.nodes[0].count = nodes;
        let refusal = simulate(&at, progress).services[0].get(Measure::Refusal);
        line.points.push((f64::from(nodes), refusal.mean, refusal.half_width));
    }
    let known: Vec<u32> = found_all.iter().flatten().copied().collect();
    Experiment {
        id: "E4",
        title: "parameters that reach a goal",
        scenario: SYNTHESIS,
        tables: vec![("The fewest nodes for a goal".to_owned(), table)],
        plots: vec![(
            "e4-refusal".to_owned(),
            Plot {
                title: "E4: refusals against nodes".to_owned(),
                x_label: "nodes".to_owned(),
                y_label: "share refused".to_owned(),
                lines: vec![line],
            },
        )],
        findings: vec![Finding {
            claim: "each goal has a least number of nodes, and a stricter one needs no fewer"
                .to_owned(),
            holds: known.len() == 3 && known.windows(2).all(|pair| pair[0] <= pair[1]),
            figures: format!("{known:?} nodes"),
        }],
    }
}

fn best(
    base: &crate::scenario::Scenario,
    goal: &str,
    progress: &Progress,
) -> Result<crate::search::Found, SearchError> {
    let goal: Goal = goal.parse()?;
    let vary: [Vary; 2] = ["nodes=2..12".parse()?, "replicate_above=2..4".parse()?];
    search(base, &vary, &goal, Parameter::Nodes, progress)
}

/// E5: the simulator against the chain, at the scenario's load and over a range of loads.
pub(super) fn chain(effort: Effort, progress: &Progress) -> Experiment {
    let base = scenario(CHAIN, effort);
    let comparison = compare(&base, &[], progress);
    let checked: Vec<bool> = comparison.rows.iter().filter_map(|row| row.agrees()).collect();
    let agree = checked.iter().filter(|agrees| **agrees).count();
    let curve = |name: &str| Line { name: name.to_owned(), points: vec![] };
    let (mut simulated, mut computed) = (curve("simulated"), curve("computed"));
    for load in [0.25, 0.5, 0.75, 1.0, 1.25, 1.5] {
        let mut at = base.clone();
        at.users.iter_mut().for_each(|user| user.scale_rate(load));
        let all = compare(&at, &[], progress);
        let Some(row) = all.rows.iter().find(|row| row.measure == Measure::QueueLength) else {
            continue;
        };
        simulated.points.push((load, row.simulated.mean, row.simulated.half_width));
        computed.points.push((load, row.computed.unwrap_or(f64::NAN), 0.0));
    }
    Experiment {
        id: "E5",
        title: "the chain against the simulator",
        scenario: CHAIN,
        tables: vec![("Simulated and computed".to_owned(), report::of_comparison(&comparison))],
        plots: vec![(
            "e5-queue".to_owned(),
            Plot {
                title: "E5: queue length, simulated and computed".to_owned(),
                x_label: "load, times that of the scenario".to_owned(),
                y_label: "waiting requests".to_owned(),
                lines: vec![simulated, computed],
            },
        )],
        findings: vec![Finding {
            claim: "the intervals of the simulator hold the values of the chain".to_owned(),
            // Of 95 % intervals one in twenty misses.
            holds: agree * 10 >= checked.len() * 8 && !checked.is_empty(),
            figures: format!("{agree} of {}", checked.len()),
        }],
    }
}

/// E6: a large system.
pub(super) fn fifteen(effort: Effort, progress: &Progress) -> Experiment {
    let report = simulate(&scenario(FIFTEEN, effort), progress);
    let get = |at: usize, measure| report.services[at].get(measure).mean;
    let all: Vec<usize> = (0..report.services.len()).collect();
    let lost: f64 = all.iter().map(|at| get(*at, Measure::Loss)).fold(0.0, f64::max);
    let served: Vec<String> =
        all.iter().map(|at| figure(get(*at, Measure::Service) * 100.0)).collect();
    Experiment {
        id: "E6",
        title: "a system of fifteen nodes",
        scenario: FIFTEEN,
        tables: vec![("Measures of each service".to_owned(), report::of_simulation(&report))],
        plots: vec![],
        findings: vec![Finding {
            claim: "nothing accepted is lost although nodes fail".to_owned(),
            holds: lost == 0.0,
            figures: format!("{} % served", served.join(" %, ")),
        }],
    }
}
