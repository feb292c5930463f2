//! A history played again: nodes, replicas, queues and requests as they were, in the terminal and in a browser.
//!
//! Simulated and live histories have the same events, so both replay the same way.

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

/// Reads a history: one event a line, as JSON.
///
/// # Errors
/// The first line that is not an event.
pub fn parse(text: &str) -> Result<Vec<Event>, HistoryError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            serde_json::from_str(line)
                .map_err(|error| HistoryError { line: at + 1, message: error.to_string() })
        })
        .collect()
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

/// How things stand at a moment of a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scene {
    /// The time, microseconds.
    pub at_us: u64,
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeView>,
    /// Replicas by id.
    pub machines: BTreeMap<String, Machine>,
    /// Services by name.
    pub services: BTreeMap<String, Requests>,
    /// Machine of each request in service.
    running: BTreeMap<String, String>,
}

impl Scene {
    /// Lets one event happen.
    pub fn apply(&mut self, event: &Event) {
        self.at_us = event.at.as_micros();
        let subject = &event.subject;
        let node = subject.node.as_ref().map(ToString::to_string);
        let service = subject.service.as_ref().map(ToString::to_string).unwrap_or_default();
        match &event.kind {
            EventKind::NodeJoined => self.node(node, NodeView::Works),
            EventKind::NodeLeft | EventKind::NodeLost => self.node(node, NodeView::Gone),
            EventKind::Replicated { .. } | EventKind::MachineLaunched => {
                self.machine(event, MachineView::Starts);
            }
            EventKind::MachineReady { .. } | EventKind::MachineAdopted => {
                self.machine(event, MachineView::Ready);
            }
            EventKind::Dereplicated { .. } | EventKind::MachineDraining => {
                self.machine(event, MachineView::Drains);
            }
            EventKind::MachineGone { .. } => {
                if let Some(machine) = &subject.machine {
                    self.machines.remove(machine.as_str());
                }
            }
            EventKind::JobAccepted => self.requests(service).waiting += 1,
            EventKind::JobRefused { .. } => self.requests(service).refused += 1,
            EventKind::JobStarted { .. } => {
                let requests = self.requests(service);
                requests.waiting = requests.waiting.saturating_sub(1);
                self.begins(event);
            }
            EventKind::JobDone { .. } => {
                self.requests(service).served += 1;
                self.ends(event);
            }
            EventKind::JobReturned { .. } => {
                self.requests(service).waiting += 1;
                self.ends(event);
            }
            EventKind::JobDeadLettered { .. } => {
                let was_running = self.ends(event);
                let requests = self.requests(service);
                requests.lost += 1;
                requests.waiting = requests.waiting.saturating_sub(u32::from(!was_running));
            }
            EventKind::JobCancelled => {
                if !self.ends(event) {
                    let requests = self.requests(service);
                    requests.waiting = requests.waiting.saturating_sub(1);
                }
            }
            EventKind::ProjectCreated
            | EventKind::ProjectRemoved
            | EventKind::NetworkCreated { .. }
            | EventKind::NetworkRemoved { .. }
            | EventKind::NetworkOpened { .. }
            | EventKind::NetworkClosed { .. }
            | EventKind::FirewallChanged { .. }
            | EventKind::ConnectionLogged { .. }
            | EventKind::PortChanged
            | EventKind::Published { .. }
            | EventKind::Unpublished { .. }
            | EventKind::ServiceCreated
            | EventKind::ServiceChanged { .. }
            | EventKind::ServiceRemoved
            | EventKind::Unplaceable { .. } => {}
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

    fn begins(&mut self, event: &Event) {
        if let (Some(job), Some(machine)) = (&event.subject.job, &event.subject.machine) {
            self.running.insert(job.to_string(), machine.to_string());
            if let Some(machine) = self.machines.get_mut(machine.as_str()) {
                machine.in_service += 1;
            }
        }
    }

    /// A request leaves its machine; false when it was at none.
    fn ends(&mut self, event: &Event) -> bool {
        let job = event.subject.job.as_ref().map(ToString::to_string).unwrap_or_default();
        let Some(machine) = self.running.remove(&job) else { return false };
        if let Some(machine) = self.machines.get_mut(&machine) {
            machine.in_service = machine.in_service.saturating_sub(1);
        }
        true
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
    fn a_replay_ends_where_the_run_ended() {
        let (scenario, replication) = history();
        let mut scene = Scene::default();
        let mut failed = 0;
        for event in &replication.history {
            scene.apply(event);
            failed = failed.max(scene.nodes.values().filter(|it| **it == NodeView::Gone).count());
            assert!(scene.machines.values().all(|machine| machine.in_service <= 1));
        }
        assert_eq!(scene.nodes.len(), scenario.node_count());
        assert!(failed > 0, "nodes fail in this scenario");
        for (service, measured) in scenario.services.iter().zip(&replication.services) {
            let requests = scene.services[service.name.as_str()];
            assert_eq!(requests.waiting, measured.left_waiting, "{}", service.name);
            assert!(requests.served > 100);
        }
        let drawn = scene.draw(false);
        assert!(drawn.contains("n15") && drawn.contains("waiting"), "{drawn}");
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
