//! A history played again: nodes, replicas, queues and requests as they were, in the terminal and in a browser.
//!
//! Simulated and live histories have the same events, so both replay the same way.

use crate::jobs::{Jobs, Stand};
use skein_model::{Event, EventKind};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Most events in a page: a browser that shows more of them at once is slow to open it.
pub const PAGE_EVENTS_MAX: usize = 500_000;

/// A history is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not an event: {message}")]
pub struct HistoryError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

impl HistoryError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        "HISTORY_MALFORMED"
    }
}

/// Reads a history: one event a line, as JSON, as a simulation writes it or as `skein events -o json` prints it.
///
/// # Errors
/// The first line that is not an event.
pub fn parse(text: &str) -> Result<Vec<Event>, HistoryError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| event(line).map_err(|message| HistoryError { line: at + 1, message }))
        .collect()
}

/// One line. A live one says `time`, in words, where a simulated one says `at`, in microseconds.
fn event(line: &str) -> Result<Event, String> {
    let mut value: serde_json::Value =
        serde_json::from_str(line).map_err(|error| error.to_string())?;
    if let Some(fields) = value.as_object_mut()
        && let Some(time) = fields.get("time").and_then(|time| time.as_str())
    {
        let at = micros_of(time).ok_or_else(|| format!("{time:?} is not a time"))?;
        fields.insert("at".to_owned(), at.into());
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// Microseconds since the epoch of a time of RFC 3339 in UTC (`2026-11-22T08:30:00.25Z`).
fn micros_of(time: &str) -> Option<u64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let mut parts = clock.splitn(3, ':');
    let (hour, minute) = (parts.next()?.parse::<u64>().ok()?, parts.next()?.parse::<u64>().ok()?);
    let (second, fraction) = {
        let text = parts.next()?;
        text.split_once('.').unwrap_or((text, "0"))
    };
    let second: u64 = second.parse().ok()?;
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    let natural = digits && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !natural || !(1970..=9999).contains(&year) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let micros: u64 = format!("{:0<6.6}", fraction).parse().ok()?;
    // Days of the civil calendar (Hinnant 2013): years begin in March, eras have 400 years.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = u64::try_from(days).ok()? * 86_400 + hour * 3600 + minute * 60 + second;
    Some(seconds * 1_000_000 + micros)
}

/// Writes a history: one event a line, as JSON.
pub fn to_lines(history: &[Event]) -> String {
    let mut text = String::new();
    for event in history {
        // Events have no key that is not a string and no number that is not finite.
        let _ = writeln!(text, "{}", serde_json::to_string(event).unwrap_or_default());
    }
    text
}

/// Whether a node works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeView {
    /// It does.
    Works,
    /// It has failed or left.
    Gone,
}

/// Where a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineView {
    /// It starts.
    Starts,
    /// It listens.
    Ready,
    /// It finishes what it has.
    Drains,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its service.
    pub service: String,
    /// Its node; empty when the history does not say.
    pub node: String,
    /// Where it stands.
    pub view: MachineView,
    /// Requests that it serves.
    pub in_service: u32,
}

/// Requests of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// Waiting now.
    pub waiting: u32,
    /// Served so far.
    pub served: u64,
    /// Refused so far.
    pub refused: u64,
    /// Given up so far.
    pub lost: u64,
}

/// Something on its way over links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// `input`, `output`, `code` or `state`.
    pub what: String,
    /// The nodes that it passes.
    pub route: Vec<String>,
}

/// How things stand at a moment of a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scene {
    /// The time, microseconds since the first event: a live history counts from 1970.
    pub at_us: u64,
    begun_us: Option<u64>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeView>,
    /// Replicas by id.
    pub machines: BTreeMap<String, Machine>,
    /// Services by name.
    pub services: BTreeMap<String, Requests>,
    /// What is on the links, by number.
    pub transfers: BTreeMap<u64, Sent>,
    jobs: Jobs,
}

impl Scene {
    /// Lets one event happen.
    pub fn apply(&mut self, event: &Event) {
        let now_us = event.at.as_micros();
        self.at_us = now_us.saturating_sub(*self.begun_us.get_or_insert(now_us));
        let subject = &event.subject;
        let node = subject.node.as_ref().map(ToString::to_string);
        let service = subject.service.as_ref().map(ToString::to_string).unwrap_or_default();
        let turned = self.turn_requests(event);
        match &event.kind {
            EventKind::NodeJoined => self.node(node, NodeView::Works),
            EventKind::NodeLeft | EventKind::NodeLost => self.node(node, NodeView::Gone),
            EventKind::Replicated { .. }
            | EventKind::Migrating { .. }
            | EventKind::MachineLaunched => {
                self.machine(event, MachineView::Starts);
            }
            EventKind::MachineReady { .. } | EventKind::MachineAdopted => {
                self.machine(event, MachineView::Ready);
            }
            EventKind::Dereplicated { .. }
            | EventKind::Migrated { .. }
            | EventKind::MachineDraining => {
                self.machine(event, MachineView::Drains);
            }
            EventKind::MachineGone { .. } => {
                if let Some(machine) = &subject.machine {
                    self.machines.remove(machine.as_str());
                }
            }
            EventKind::JobRefused { .. } => self.requests(service).refused += 1,
            EventKind::JobDone { .. } => self.requests(service).served += u64::from(turned),
            EventKind::JobDeadLettered { .. } => {
                self.requests(service).lost += u64::from(turned);
            }
            EventKind::JobAccepted
            | EventKind::JobStarted { .. }
            | EventKind::JobReturned { .. }
            | EventKind::JobCancelled => {}
            EventKind::TransferBegan { transfer, what, route, .. } => {
                let sent = Sent { what: what.clone(), route: route.clone() };
                self.transfers.insert(*transfer, sent);
            }
            EventKind::TransferEnded { transfer } => {
                self.transfers.remove(transfer);
            }
            other => debug_assert!(!other.changes_what_runs(), "{other:?} is shown nowhere"),
        }
    }

    fn node(&mut self, name: Option<String>, view: NodeView) {
        if let Some(name) = name {
            self.nodes.insert(name, view);
        }
    }

    fn requests(&mut self, service: String) -> &mut Requests {
        self.services.entry(service).or_default()
    }

    fn machine(&mut self, event: &Event, view: MachineView) {
        let subject = &event.subject;
        let Some(id) = &subject.machine else { return };
        let text = |name: Option<String>| name.unwrap_or_default();
        let machine = self.machines.entry(id.to_string()).or_insert_with(|| Machine {
            service: text(subject.service.as_ref().map(ToString::to_string)),
            node: text(subject.node.as_ref().map(ToString::to_string)),
            view,
            in_service: 0,
        });
        machine.view = view;
    }

    /// Lets an event happen to the requests; whether any stands elsewhere for it.
    fn turn_requests(&mut self, event: &Event) -> bool {
        let Self { jobs, services, machines, .. } = self;
        let turned = jobs.apply(event, |service, before, now| {
            if !services.contains_key(service) {
                services.insert(service.to_owned(), Requests::default());
            }
            for (stand, more) in [(before, false), (now, true)] {
                let count = match stand {
                    Stand::Waits => services.get_mut(service).map(|it| &mut it.waiting),
                    Stand::Runs(at) => machines.get_mut(&at.machine).map(|it| &mut it.in_service),
                    Stand::Unknown | Stand::Over => None,
                };
                if let Some(count) = count {
                    // A machine that was heard of late counts from then on.
                    *count = if more { *count + 1 } else { count.saturating_sub(1) };
                }
            }
        });
        turned > 0
    }

    /// How many transfers of each kind are on each link, from one node to the next.
    pub fn on_links(&self) -> BTreeMap<(&str, &str), BTreeMap<&str, usize>> {
        let mut links: BTreeMap<_, BTreeMap<&str, usize>> = BTreeMap::new();
        for sent in self.transfers.values() {
            for pair in sent.route.windows(2) {
                let link = links.entry((pair[0].as_str(), pair[1].as_str())).or_default();
                *link.entry(sent.what.as_str()).or_default() += 1;
            }
        }
        links
    }

    /// The scene as lines of text. With `dim` a failed node is darker, by an ANSI sequence.
    pub fn draw(&self, dim: bool) -> String {
        let mut text = format!("t = {:.3} s\n", self.at_us as f64 * 1e-6);
        for (name, view) in &self.nodes {
            let mut line = format!("{name:<12} ");
            for machine in self.machines.values().filter(|machine| machine.node == *name) {
                let mark = match machine.view {
                    MachineView::Starts => '.',
                    MachineView::Ready if machine.in_service > 0 => '#',
                    MachineView::Ready => 'o',
                    MachineView::Drains => '-',
                };
                let _ = write!(line, "{}{mark} ", machine.service);
            }
            let line = match view {
                NodeView::Works => line.trim_end().to_owned(),
                NodeView::Gone if dim => format!("\x1b[2m{} (failed)\x1b[0m", line.trim_end()),
                NodeView::Gone => format!("{} (failed)", line.trim_end()),
            };
            let _ = writeln!(text, "{line}");
        }
        for ((from, to), sent) in self.on_links() {
            let counts: Vec<String> =
                sent.iter().map(|(what, count)| format!("{count} {what}")).collect();
            let marks = ">".repeat(sent.values().sum::<usize>().min(40));
            let _ = writeln!(text, "{from} -> {to}  {marks} {}", counts.join(", "));
        }
        for (name, requests) in &self.services {
            let Requests { waiting, served, refused, lost } = requests;
            let bar = "|".repeat((*waiting).min(40) as usize);
            let _ = writeln!(
                text,
                "{name:<12} waiting {waiting:<5} {bar:<40} served {served} refused {refused} lost {lost}"
            );
        }
        text
    }
}

/// One page with everything in it that plays the history: start, pause, step, speed; failed nodes are darker. Histories
/// beyond [`PAGE_EVENTS_MAX`] are cut there.
pub fn to_html(title: &str, history: &[Event]) -> String {
    let shown = &history[..history.len().min(PAGE_EVENTS_MAX)];
    // In a script a "<" could end it: JSON can say it in another way.
    let data = serde_json::to_string(shown).unwrap_or_default().replace('<', "\\u003c");
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    include_str!("replay.html").replace("{{title}}", &title).replace("{{history}}", &data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;
    use crate::sim::{Recording, replicate};

    fn history() -> (Scenario, crate::sim::Replication) {
        let text = include_str!("../scenarios/e6-fifteen.toml");
        let mut scenario = Scenario::parse(text).unwrap();
        scenario.run.duration_secs = 600.0;
        let replication = replicate(&scenario, 0, Recording::On);
        (scenario, replication)
    }

    #[test]
    fn a_live_line_is_an_event() {
        let live = r#"{"seq":7,"time":"2026-11-22T00:05:46.25Z","node":"n1","kind":"node_joined"}"#;
        let events = parse(live).unwrap();
        assert_eq!(events[0].at.as_micros(), 1_795_305_946_250_000);
        for (time, micros) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T23:59:59.999999Z", Some(951_868_799_999_999)),
            ("2100-03-01T00:00:00.1234567Z", Some(4_107_542_400_123_456)),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-22 00:00:00", None),
            ("yesterday", None),
        ] {
            assert_eq!(micros_of(time), micros, "{time}");
        }
        let bad = live.replace("2026-11-22T00:05:46.25Z", "soon");
        assert!(parse(&bad).unwrap_err().message.contains("not a time"));
    }

    #[test]
    fn a_replay_ends_where_the_run_ended() {
        let (scenario, replication) = history();
        let mut scene = Scene::default();
        let (mut failed, mut linked) = (0, 0);
        for event in &replication.history {
            scene.apply(event);
            linked = linked.max(scene.on_links().len());
            failed = failed.max(scene.nodes.values().filter(|it| **it == NodeView::Gone).count());
            assert!(scene.machines.values().all(|machine| machine.in_service <= 1));
        }
        assert_eq!(scene.nodes.len(), scenario.node_count());
        assert!(failed > 0, "nodes fail in this scenario");
        assert!(linked > 1, "inputs and outputs are on several links at once");
        let sent: usize = scene.on_links().values().flat_map(|link| link.values()).sum();
        assert_eq!(sent, scene.transfers.len(), "each link of a clique is a route");
        for (service, measured) in scenario.services.iter().zip(&replication.services) {
            let requests = scene.services[service.name.as_str()];
            assert_eq!(requests.waiting, measured.left_waiting, "{}", service.name);
            assert!(requests.served > 100);
        }
        let drawn = scene.draw(false);
        assert!(drawn.contains("n15") && drawn.contains("waiting"), "{drawn}");
        let sent =
            Sent { what: "input".into(), route: vec!["n1".into(), "n2".into(), "n3".into()] };
        scene.transfers.insert(u64::MAX, sent);
        let drawn = scene.draw(false);
        assert!(drawn.contains("n1 -> n2  >") && drawn.contains("n2 -> n3  >"), "{drawn}");
        let mut dark = scene.clone();
        dark.nodes.insert("n1".into(), NodeView::Gone);
        assert!(dark.draw(true).contains("\x1b[2mn1"));
    }

    #[test]
    fn a_history_survives_a_file_and_fits_in_a_page() {
        let (_, replication) = history();
        let lines = to_lines(&replication.history);
        assert_eq!(parse(&lines).unwrap(), replication.history);
        let error = parse("\n{\"at\": 1}\n").unwrap_err();
        assert_eq!((error.line, error.code()), (2, "HISTORY_MALFORMED"));
        let page = to_html("a <b>", &replication.history[..100]);
        assert!(page.contains("a &lt;b>") && !page.contains("{{"));
        assert!(page.len() > lines.lines().take(100).map(str::len).sum());
    }
}
