//! What happens in the networks and concerns others: connections that wait for a machine wake their service, and rules
//! that are logged tell whom they let through.
//!
//! A connection that comes through a published port while its service has no ready machine is held by the node. The node
//! tells the leader of it just as the queue tells of a call, again each second, until there is a machine that takes it.
//! Connections that are open through published ports count as work in service, so that no machine goes from under them.

use super::desired::of_wake_label;
use crate::node::Node;
use skein_fabric::Message;
use skein_model::{
    EventKind, EventSubject, GroupName, ProjectName, PublishTarget, RuleId, ServiceName, Transport,
};
use skein_net::NetworkEvent;
use skein_registry::{Demand, ServiceDemand, demand_subject, is_ready, network_with};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info};

/// How often what waits and what is open is told again.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// A connection is not held longer than this: its client has given up.
const HELD_MAX: Duration = Duration::from_secs(60);

type Service = (ProjectName, ServiceName);

/// Connections of one service that wait for a machine.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    connections: u32,
    last: Instant,
}

/// Hears what happens in the networks, until the agent stops.
pub(super) async fn run(node: Arc<Node>, mut events: mpsc::Receiver<NetworkEvent>) {
    let stop = node.tasks.stop_token().clone();
    let mut waiting: BTreeMap<Service, Waiting> = BTreeMap::new();
    let mut said = Demand::default();
    let mut every = tokio::time::interval(TELL_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,            // cancel-safe: token
            event = events.recv() => match event {      // cancel-safe: mpsc recv
                Some(NetworkEvent::Wake { label, .. }) => {
                    let Some(service) = of_wake_label(label.as_str()) else { continue };
                    let now = Instant::now();
                    let held = waiting.entry(service).or_insert(Waiting { connections: 0, last: now });
                    held.connections = held.connections.saturating_add(1);
                    held.last = now;
                }
                Some(event) => {
                    hear(&node, event);
                    continue;
                }
                None => return,
            },
            _ = every.tick() => {}                      // cancel-safe: timer
        }
        let gone = |service: &Service, held: &Waiting| {
            held.last.elapsed() > HELD_MAX || has_ready(&node, service)
        };
        waiting.retain(|service, held| !gone(service, held));
        let demand = look(&node, &waiting).await;
        if demand != said || !demand.services.is_empty() {
            say(&node, &demand).await;
            said = demand;
        }
    }
}

/// Whether there is a machine that takes a service's connections.
fn has_ready(node: &Node, (project, service): &Service) -> bool {
    node.mirror.read(|view| {
        let mut ports = view.ports.values().map(|stored| &stored.value);
        ports.any(|port| {
            port.project == *project && port.service == *service && is_ready(view, port)
        })
    })
}

/// All connections through published ports that this node knows of.
async fn look(node: &Node, waiting: &BTreeMap<Service, Waiting>) -> Demand {
    let mut services: BTreeMap<Service, (u32, u32)> = BTreeMap::new();
    for (service, held) in waiting {
        services.entry(service.clone()).or_default().0 = held.connections;
    }
    for (service, plug, port) in published(node) {
        let open = node.networks.open_connections(plug, port).await;
        if open > 0 {
            services.entry(service).or_default().1 += open;
        }
    }
    let demand = services.into_iter().map(|((project, service), (waiting, open))| ServiceDemand {
        project,
        service,
        waiting,
        open,
    });
    Demand { services: demand.collect() }
}

/// The machines of this node that are behind a published port of their service, with the port of theirs that it leads to.
fn published(node: &Node) -> Vec<(Service, super::Plug, u16)> {
    node.mirror.read(|view| {
        let mut found = Vec::new();
        for stored in view.publications.values() {
            let record = &stored.value;
            let PublishTarget::Service(service) = &record.spec.target else { continue };
            if record.spec.protocol != Transport::Tcp {
                continue;
            }
            let ports = view.ports.values().map(|stored| &stored.value).filter(|port| {
                let of_service = port.project == record.project && port.service == *service;
                of_service && port.node == node.config.name
            });
            found.extend(ports.filter_map(|port| {
                let service = (record.project.clone(), service.clone());
                Some((service, super::Plug::of(port)?, record.spec.target_port))
            }));
        }
        found
    })
}

async fn say(node: &Node, demand: &Demand) {
    if let Ok(json) = serde_json::to_vec(demand) {
        let message = Message::new(demand_subject(&node.config.name), json);
        if let Err(error) = node.bus.publish(message).await {
            debug!(%error, "a demand was not sent");
        }
    }
}

/// What the kernel calls a rule of ours: `GROUP in ID` or `GROUP out ID`.
pub(super) fn rule_of(text: &str) -> Option<(GroupName, RuleId)> {
    let mut words = text.split(' ');
    let group = words.next()?.parse().ok()?;
    let id = words.nth(1)?.parse().ok()?;
    Some((group, RuleId::new(id)))
}

fn hear(node: &Node, event: NetworkEvent) {
    match event {
        NetworkEvent::Wake { .. } => {}
        NetworkEvent::RuleMatched { vni, rule, source, destination, protocol, port } => {
            let record = skein_model::Vni::new(vni.get());
            let project =
                node.mirror.read(|view| Some(network_with(view, record?)?.project.clone()));
            let Some((group, id)) = rule_of(&rule) else { return };
            let subject = EventSubject {
                project,
                node: Some(node.config.name.clone()),
                ..EventSubject::default()
            };
            node.events.emit(
                subject,
                EventKind::ConnectionLogged {
                    group: group.to_string(),
                    rule: id.to_string(),
                    source: source.to_string(),
                    destination: destination.to_string(),
                    protocol,
                    port,
                },
            );
        }
        NetworkEvent::Healed { vni, steps } => {
            let vni = vni.map(|vni| vni.to_string()).unwrap_or_default();
            info!(network.vni = %vni, steps, "what somebody else changed was put back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_rule_is_known_again() {
        let rule = rule_of("web in 305419896").unwrap();
        assert_eq!((rule.0.as_str(), rule.1.to_string().as_str()), ("web", "12345678"));
        assert_eq!(rule_of("web"), None);
        assert_eq!(rule_of(""), None);
    }
}
