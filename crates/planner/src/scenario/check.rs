//! Everything that the types of a scenario do not rule out.

use super::error::{Key, Problem};
use super::{Network, NodeGroup, Scenario, Service, Topology, User, WarmUp};
use crate::random::Distribution;
use std::collections::BTreeSet;

type Checked = Result<(), Problem>;

fn problem<T>(path: Vec<Key>, message: impl Into<String>) -> Result<T, Problem> {
    Err(Problem { path, message: message.into() })
}

/// Checks the values of one table.
struct Table<'a> {
    path: &'a [Key],
}

impl Table<'_> {
    fn fail<T>(&self, key: &'static str, message: impl Into<String>) -> Result<T, Problem> {
        let path = self.path.iter().cloned().chain([Key::Name(key)]).collect();
        problem(path, message)
    }

    fn number(&self, key: &'static str, value: f64, low: f64, high: f64) -> Checked {
        if value.is_finite() && (low..=high).contains(&value) {
            return Ok(());
        }
        self.fail(key, format!("{key} is {value}: must be {low} to {high}"))
    }

    fn distribution(&self, key: &'static str, value: &Distribution) -> Checked {
        match value.problem() {
            Some(why) => self.fail(key, format!("{key} {why}")),
            None => Ok(()),
        }
    }

    /// A time that must pass, or the run would never end.
    fn time(&self, key: &'static str, value: &Distribution) -> Checked {
        self.distribution(key, value)?;
        if value.mean() > 0.0 { Ok(()) } else { self.fail(key, format!("{key} must be above 0")) }
    }
}

impl Scenario {
    /// Whether it would be read without an error.
    pub(crate) fn is_valid(&self) -> bool {
        self.check().is_ok()
    }

    pub(super) fn check(&self) -> Checked {
        let run = Table { path: &[Key::Name("run")] };
        run.number("replications", self.run.replications.into(), 1.0, 10_000.0)?;
        run.number("duration_secs", self.run.duration_secs, 1e-3, 1e9)?;
        run.number("confidence", self.run.confidence, 0.5, 0.999)?;
        if let WarmUp::Fixed { secs } = self.run.warm_up {
            run.number("warm_up", secs, 0.0, self.run.duration_secs * 0.9)?;
        }
        for (key, empty) in [
            ("nodes", self.nodes.is_empty()),
            ("services", self.services.is_empty()),
            ("users", self.users.is_empty()),
        ] {
            if empty {
                return problem(vec![Key::Name(key)], format!("needs at least one of {key}"));
            }
        }
        for (at, group) in self.nodes.iter().enumerate() {
            group.check(&Table { path: &[Key::Name("nodes"), Key::At(at)] })?;
        }
        let nodes = self.node_names();
        let mut names = BTreeSet::new();
        for (name, group) in &nodes {
            if !names.insert(name.as_str()) {
                let table = Table { path: &[Key::Name("nodes"), Key::At(*group)] };
                return table.fail("name", format!("node {name} is there twice"));
            }
        }
        if let Some(network) = &self.network {
            network.check(&names)?;
        }
        let mut services = BTreeSet::new();
        for (at, service) in self.services.iter().enumerate() {
            let table = Table { path: &[Key::Name("services"), Key::At(at)] };
            if !services.insert(service.name.as_str()) {
                return table.fail("name", format!("service {} is there twice", service.name));
            }
            service.check(&table, &names)?;
        }
        for (at, user) in self.users.iter().enumerate() {
            let table = Table { path: &[Key::Name("users"), Key::At(at)] };
            user.check(&table, &services, &names)?;
        }
        Ok(())
    }
}

fn known(
    table: &Table<'_>,
    key: &'static str,
    (what, name): (&str, &str),
    all: &BTreeSet<&str>,
) -> Checked {
    if all.contains(name) {
        return Ok(());
    }
    let some: Vec<&str> = all.iter().take(8).copied().collect();
    let more = if all.len() > some.len() { ", ..." } else { "" };
    table.fail(key, format!("{what} {name} is not there: there are {}{more}", some.join(", ")))
}

impl NodeGroup {
    fn check(&self, table: &Table<'_>) -> Checked {
        table.number("count", self.count.into(), 1.0, 100_000.0)?;
        table.number("performance", self.performance, 1e-6, 1e6)?;
        table.number("memory_mib", self.memory_mib as f64, 1.0, 1e9)?;
        table.number("cpu_milli", self.cpu_milli as f64, 1.0, 1e9)?;
        table.number("machines_max", self.machines_max.into(), 1.0, 1e6)?;
        table.distribution("background", &self.background)?;
        if self.background.mean() >= 1.0 {
            return table.fail("background", "background must leave the node something: below 1");
        }
        if let Some(lasts) = &self.background_lasts_secs {
            table.time("background_lasts_secs", lasts)?;
        }
        table.number("failure_warning_secs", self.failure_warning_secs, 0.0, 1e9)?;
        if self.failure_warning_secs > 0.0 && self.time_to_failure_secs.is_none() {
            return table
                .fail("failure_warning_secs", "failure_warning_secs needs time_to_failure_secs");
        }
        if let Some(failure) = &self.time_to_failure_secs {
            table.time("time_to_failure_secs", failure)?;
        }
        table.time("time_to_repair_secs", &self.time_to_repair_secs)
    }
}

impl Network {
    fn check(&self, names: &BTreeSet<&str>) -> Checked {
        let table = Table { path: &[Key::Name("network")] };
        table.time("throughput_mib_per_sec", &self.throughput_mib_per_sec)?;
        table.distribution("background_mib_per_sec", &self.background_mib_per_sec)?;
        table.number("latency_ms", self.latency_ms, 0.0, 1e6)?;
        // Routes are kept for every pair of nodes.
        if names.len() > 1000 {
            return table
                .fail("topology", "a network may have at most 1000 nodes; leave it out for more");
        }
        match &self.topology {
            Topology::Clique | Topology::Ring => Ok(()),
            Topology::Star { centre } => {
                known(&table, "topology", ("node", centre.as_str()), names)
            }
            Topology::Explicit { links } => {
                for (a, b) in links {
                    known(&table, "topology", ("node", a.as_str()), names)?;
                    known(&table, "topology", ("node", b.as_str()), names)?;
                    if a == b {
                        return table.fail("topology", format!("node {a} is linked with itself"));
                    }
                }
                self.connected(&table, names)
            }
        }
    }

    fn connected(&self, table: &Table<'_>, names: &BTreeSet<&str>) -> Checked {
        let Topology::Explicit { links } = &self.topology else { return Ok(()) };
        let Some(first) = names.first() else { return Ok(()) };
        let mut reached = BTreeSet::from([*first]);
        loop {
            let before = reached.len();
            for (a, b) in links {
                if reached.contains(a.as_str()) || reached.contains(b.as_str()) {
                    reached.extend([a.as_str(), b.as_str()]);
                }
            }
            if reached.len() == before {
                break;
            }
        }
        match names.iter().find(|name| !reached.contains(*name)) {
            Some(cut) => {
                table.fail("topology", format!("node {cut} cannot be reached from {first}"))
            }
            None => Ok(()),
        }
    }
}

impl Service {
    fn check(&self, table: &Table<'_>, nodes: &BTreeSet<&str>) -> Checked {
        if let Some(node) = &self.initial_node {
            known(table, "initial_node", ("node", node.as_str()), nodes)?;
        }
        table.number("code_mib", self.code_mib, 0.0, 1e9)?;
        table.number("state_mib", self.state_mib, 0.0, 1e9)?;
        table.distribution("start_secs", &self.start_secs)?;
        table.number("capacity", self.capacity.into(), 1.0, 1024.0)?;
        table.number("memory_mib", self.memory_mib as f64, 1.0, 1e6)?;
        table.number("cpu_milli", self.cpu_milli as f64, 0.0, 1e6)?;
        table.number("queue_bound", self.queue_bound.into(), 0.0, 1e6)?;
        if let Err(error) = self.name.as_str().parse::<skein_model::ImageName>() {
            return table.fail("name", error.to_string());
        }
        match self.check_scaling() {
            Ok(()) => Ok(()),
            Err(why) => table.fail("scaling", why),
        }
    }

    /// The live service's own check: what is refused there is refused here.
    pub(crate) fn check_scaling(&self) -> Result<(), String> {
        let spec = skein_model::ServiceSpec {
            name: self.name.clone(),
            image: match self.name.as_str().parse() {
                Ok(image) => image,
                Err(error) => return Err(format!("{error}")),
            },
            memory: None,
            capacity: None,
            cpu_milli: 1,
            parameters: Default::default(),
            network: Default::default(),
            scaling: self.scaling.clone(),
            queue: Default::default(),
        };
        spec.check().map_err(|error| error.to_string())
    }
}

impl User {
    fn check(
        &self,
        table: &Table<'_>,
        services: &BTreeSet<&str>,
        nodes: &BTreeSet<&str>,
    ) -> Checked {
        table.number("count", self.count.into(), 1.0, 1e6)?;
        known(table, "service", ("service", self.service.as_str()), services)?;
        if let Some(node) = &self.node {
            known(table, "node", ("node", node.as_str()), nodes)?;
        }
        table.time("interval_secs", &self.interval_secs)?;
        table.distribution("work_secs", &self.work_secs)?;
        table.distribution("input_kib", &self.input_kib)?;
        table.distribution("output_kib", &self.output_kib)?;
        self.check_rate(table)?;
        let ascending = self.arrivals_secs.windows(2).all(|pair| pair[0] <= pair[1]);
        let natural = self.arrivals_secs.iter().all(|at| at.is_finite() && *at >= 0.0);
        if !ascending || !natural {
            return table.fail("arrivals_secs", "arrivals_secs must ascend from 0 or more");
        }
        if self.arrivals_csv.is_some() && !self.arrivals_secs.is_empty() {
            return table
                .fail("arrivals_csv", "a user has arrivals_secs or arrivals_csv, not both");
        }
        if self.is_traced() && self.waits_for_answer {
            return table
                .fail("waits_for_answer", "a user with given arrivals cannot wait for answers");
        }
        Ok(())
    }

    fn check_rate(&self, table: &Table<'_>) -> Checked {
        let Some(last) = self.rate.last() else {
            return match self.rate_period_secs {
                Some(_) => table.fail("rate_period_secs", "rate_period_secs needs rate"),
                None => Ok(()),
            };
        };
        let natural = |value: f64| value.is_finite() && (0.0..=1e9).contains(&value);
        if !self.rate.iter().all(|point| natural(point.at_secs) && natural(point.factor)) {
            return table.fail("rate", "rate needs times and factors from 0");
        }
        if !self.rate.windows(2).all(|pair| pair[0].at_secs < pair[1].at_secs) {
            return table.fail("rate", "rate must ascend");
        }
        if self.is_traced() || self.waits_for_answer {
            return table.fail(
                "rate",
                "a user with given arrivals, or that waits for answers, has no rate",
            );
        }
        let Some(period) = self.rate_period_secs else { return Ok(()) };
        table.number("rate_period_secs", period, 1e-3, 1e9)?;
        if period <= last.at_secs {
            return table
                .fail("rate_period_secs", "rate_period_secs must be after the last point of rate");
        }
        let begins = self.rate[0].at_secs > 0.0;
        if !begins && self.rate.iter().all(|point| point.factor == 0.0) {
            return table.fail("rate", "rate needs a factor above 0, or no request ever comes");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Scenario;

    const GOOD: &str = r#"
name = "small"
[[nodes]]
name = "n"
count = 3
[network]
topology = { kind = "star", centre = "n1" }
throughput_mib_per_sec = 100
[[services]]
name = "search"
scaling = { replicas_max = 3 }
[[users]]
name = "people"
service = "search"
interval_secs = { kind = "exponential", mean = 0.5 }
work_secs = 0.1
"#;

    /// Replaces a line, and expects an error in a line that contains `line` and says `says`.
    fn check(from: &str, to: &str, line: &str, says: &str) {
        assert!(GOOD.contains(from));
        let text = GOOD.replacen(from, to, 1);
        let error = Scenario::parse(&text).expect_err(to);
        assert!(error.source_line.contains(line), "{error:?}");
        assert!(error.message.contains(says), "{error:?}");
    }

    #[test]
    fn a_good_scenario_survives_being_written() {
        let scenario = Scenario::parse(GOOD).unwrap();
        assert_eq!(Scenario::parse(&scenario.to_toml()), Ok(scenario));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        check("count = 3", "cuont = 3", "cuont", "unknown field `cuont`");
        check("count = 3", "count = 0", "count = 0", "1 to 100000");
        check(
            "centre = \"n1\"",
            "centre = \"n9\"",
            "topology",
            "node n9 is not there: there are n1",
        );
        check("service = \"search\"", "service = \"serch\"", "serch", "there are search");
        check("mean = 0.5", "mean = 0", "mean = 0", "needs a mean above 0");
        check("mean = 0.5", "rate = 2", "rate = 2", "unknown field `rate`");
        check("work_secs = 0.1", "work_secs = \"0.1s\"", "0.1s", "a number or a table");
        check("replicas_max = 3", "replicas_max = 0", "scaling", "must be 1 to 1000");
        check("[[users]]", "[[user]]", "[[user]]", "unknown field");
        let after = |key: &str| format!("work_secs = 0.1\n{key}");
        for (key, says) in [
            ("rate = [{ at_secs = 5, factor = 1 }, { at_secs = 5, factor = 2 }]", "ascend"),
            ("rate = [{ at_secs = 5, factor = -1 }]", "from 0"),
            ("rate = [{ at_secs = 0, factor = 0 }]\nrate_period_secs = 9", "factor above 0"),
            ("rate = [{ at_secs = 5, factor = 1 }]\nrate_period_secs = 5", "after the last"),
            ("rate_period_secs = 5", "needs rate"),
        ] {
            check("work_secs = 0.1", &after(key), "rate", says);
        }
        let trace = after("arrivals_csv = \"trace.csv\"");
        check("work_secs = 0.1", &trace, "arrivals_csv", "only a scenario in a file");
        check("count = 3", "count = 3\n[[nodes]]\nname = \"n2\"", "n2", "n2 is there twice");
        check(
            "replicas_max = 3",
            r#"rule = { kind = "thresholds", replicate_above = 2, dereplicate_at = 5, scope = "service" }"#,
            "scaling",
            "dereplicate_at below replicate_above",
        );
        check(
            r#"{ kind = "star", centre = "n1" }"#,
            r#"{ kind = "explicit", links = [["n1", "n2"]] }"#,
            "explicit",
            "node n3 cannot be reached",
        );
    }
}
