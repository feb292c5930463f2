//! Figures of the link: what the nodes count, by node.

use crate::metrics::OnNode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use skein_registry::LinkFigures;
use std::hash::Hash;
use std::sync::atomic::Ordering;

/// By which path, in the order of [`LinkFigures`].
const PATHS: [&str; 3] = ["ring", "light", "tcp"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPath {
    node: String,
    path: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    node: String,
    reason: String,
}

/// The families. A node's counters begin anew with its agent, as counters may.
#[derive(Debug, Default)]
pub(crate) struct LinkMetrics {
    connections: Family<ByPath, Counter>,
    bytes: Family<ByPath, Counter>,
    wakeups: Family<OnNode, Counter>,
    steps_back: Family<ByReason, Counter>,
    peers: Family<OnNode, Gauge>,
    peers_up: Family<OnNode, Gauge>,
}

impl LinkMetrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let own = Self::default();
        let help = "Connections of programs under the link, by the fastest path that they took";
        registry.register("link_connections", help, own.connections.clone());
        let help = "Bytes of connections whose programs are under the link";
        registry.register_with_unit("link", help, Unit::Bytes, own.bytes.clone());
        let help = "Times that a program slept for bytes of a linked connection and was woken";
        registry.register("link_wakeups", help, own.wakeups.clone());
        let help = "Ends of linked connections that went back to TCP for good, or were cut";
        registry.register("link_steps_back", help, own.steps_back.clone());
        let help = "Other nodes that the light protocol knows";
        registry.register("link_peers", help, own.peers.clone());
        let help = "Other nodes that the light protocol reaches";
        registry.register("link_peers_up", help, own.peers_up.clone());
        own
    }

    /// Forgets all: nodes that are no more have no figures.
    pub(crate) fn clear(&self) {
        self.connections.clear();
        self.bytes.clear();
        self.wakeups.clear();
        self.steps_back.clear();
        self.peers.clear();
        self.peers_up.clear();
    }

    /// Writes down what a node has said.
    pub(crate) fn set(&self, node: &str, figures: &LinkFigures) {
        let on = OnNode { node: node.to_owned() };
        for (at, path) in PATHS.into_iter().enumerate() {
            let by = ByPath { node: node.to_owned(), path };
            put(&self.connections, &by, figures.connections[at]);
            put(&self.bytes, &by, figures.bytes[at]);
        }
        put(&self.wakeups, &on, figures.wakeups);
        for (reason, count) in &figures.steps_back {
            let by = ByReason { node: node.to_owned(), reason: reason.clone() };
            put(&self.steps_back, &by, *count);
        }
        self.peers.get_or_create(&on).set(figures.peers.into());
        self.peers_up.get_or_create(&on).set(figures.peers_up.into());
    }
}

fn put<L: Clone + Hash + Eq>(family: &Family<L, Counter>, label: &L, value: u64) {
    family.get_or_create(label).inner().store(value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use std::collections::BTreeMap;

    #[test]
    fn a_node_s_figures_are_shown_and_go_with_it() {
        let mut registry = Registry::with_prefix("skein");
        let metrics = LinkMetrics::new(&mut registry);
        let steps_back = BTreeMap::from([("exec".to_owned(), 2)]);
        let figures = LinkFigures {
            connections: [1, 2, 3],
            bytes: [10, 20, 30],
            wakeups: 4,
            steps_back,
            peers: 2,
            peers_up: 1,
        };
        metrics.set("n1", &figures);
        let shown = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        let text = shown();
        for line in [
            "skein_link_connections_total{node=\"n1\",path=\"light\"} 2",
            "skein_link_bytes_total{node=\"n1\",path=\"ring\"} 10",
            "skein_link_wakeups_total{node=\"n1\"} 4",
            "skein_link_steps_back_total{node=\"n1\",reason=\"exec\"} 2",
            "skein_link_peers_up{node=\"n1\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        metrics.clear();
        assert!(!shown().contains("n1"));
    }
}
