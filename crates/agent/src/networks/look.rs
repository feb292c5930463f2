//! What an operator asks of the networks: what would happen to a packet, what rules have let through, what passes at a
//! port.

use super::demand::rule_of;
use super::{Networks, Plug, of_all_nodes, vni};
use crate::node::Node;
use bytes::{Bytes, BytesMut};
use skein_fabric::{Message, Subscribe};
use skein_model::{GroupName, MachineId, PortRecord, ProjectName, Protocol};
use skein_net::{Capture, CaptureOptions, Connection, Payload, Probe, Transport};
use skein_registry::{
    AgentError, RuleFigures, TraceAnswer, TraceStep, capture_input_subject, capture_subject,
};
use skein_shell::{now, report};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

/// Type of an echo request (RFC 792; RFC 4443, section 4.1).
const ECHO: (u8, u8) = (8, 128);
/// Bytes of a capture that are sent at once, and how long fewer wait.
const CHUNK: usize = 32 * 1024;
const CHUNK_WAIT: Duration = Duration::from_millis(100);
/// A capture whose server has been silent for so long is over. The server speaks every five seconds.
const SILENCE: Duration = Duration::from_secs(20);

fn port_of(node: &Node, machine: &MachineId) -> Result<Arc<PortRecord>, AgentError> {
    let port = node.mirror.read(|view| view.ports.get(machine).map(|port| port.value.clone()));
    port.ok_or(AgentError::MachineUnknown)
}

fn failed(error: skein_net::NetError) -> AgentError {
    AgentError::Network { message: report::chain(&error) }
}

/// What would happen to the first packet of a connection that a machine opens, on all nodes that it passes.
pub(crate) fn trace(
    node: &Node,
    machine: &MachineId,
    destination: IpAddr,
    (protocol, port): (Protocol, Option<u16>),
) -> Result<TraceAnswer, AgentError> {
    let from = port_of(node, machine)?;
    let network = vni(from.vni).ok_or(AgentError::MachineUnknown)?;
    let source = match destination {
        IpAddr::V4(_) => Some(IpAddr::from(from.ipv4)),
        IpAddr::V6(_) => from.ipv6.map(IpAddr::from),
    };
    let message = || "its network has no IPv6 addresses".to_owned();
    let source = source.ok_or_else(|| AgentError::Network { message: message() })?;
    let echo = if destination.is_ipv4() { ECHO.0 } else { ECHO.1 };
    let payload = match (protocol, port) {
        (Protocol::Tcp, Some(port)) => Payload::Port(Transport::Tcp, port),
        (Protocol::Udp, Some(port)) => Payload::Port(Transport::Udp, port),
        (Protocol::Icmp | Protocol::Any, _) => Payload::Icmp(echo),
        (Protocol::Tcp | Protocol::Udp, None) => return Err(AgentError::Malformed),
    };
    let all = node.mirror.read(of_all_nodes);
    let trace = skein_net::trace(&all, network, &Probe { source, destination, payload });
    let hops = trace.hops.iter().map(|hop| {
        let rule = hop.why.strip_prefix("rule ").and_then(rule_of);
        let what = if rule.is_some() { "a rule lets it through" } else { &hop.why };
        TraceStep { place: hop.at.to_string(), what: what.to_owned(), rule }
    });
    Ok(TraceAnswer { arrives: trace.arrives(), hops: hops.collect() })
}

/// What the rules of a group let through on this node, in all networks of its project.
pub(crate) async fn counters(
    node: &Node,
    project: &ProjectName,
    group: &GroupName,
) -> Result<Vec<RuleFigures>, AgentError> {
    let networks = node.mirror.read(|view| {
        let own = view.networks.values().filter(|network| network.value.project == *project);
        own.filter_map(|network| vni(network.value.vni)).collect::<Vec<_>>()
    });
    let mut sums: BTreeMap<skein_model::RuleId, RuleFigures> = BTreeMap::new();
    for network in networks {
        // A network that is not here has counted nothing here.
        let Ok(counters) = node.networks.kernel.counters(network).await else { continue };
        for counter in counters {
            let Some((_, rule)) =
                counter.name.strip_prefix("rule ").and_then(rule_of).filter(|(of, _)| of == group)
            else {
                continue;
            };
            let sum = sums.entry(rule).or_insert(RuleFigures { rule, packets: 0, bytes: 0 });
            sum.packets += counter.packets;
            sum.bytes += counter.bytes;
        }
    }
    Ok(sums.into_values().collect())
}

impl Networks {
    /// Connections that are open to a port of a machine, but for `deliveries`, by which this node sends it jobs.
    pub(super) async fn open_connections(&self, plug: Plug, port: u16, deliveries: u32) -> u32 {
        let applied = self.applied();
        let network = applied.networks.iter().find(|network| network.vni == plug.vni);
        let Some(gateway) = network.map(|network| network.gateway) else { return 0 };
        let own = [IpAddr::from(gateway), applied.underlay.number.router_address().into()];
        let Ok(all) = self.kernel.connections(plug.vni, plug.address).await else { return 0 };
        let open = all.iter().filter(|connection| {
            connection.is_established() && connection.server() == (plug.address.into(), port)
        });
        // The node itself opens those that it held until the machine was there, and those of its deliveries.
        let (by_node, others): (Vec<&Connection>, Vec<&Connection>) =
            open.partition(|connection| own.contains(&connection.client()));
        let held = by_node.len().saturating_sub(deliveries as usize);
        u32::try_from(others.len() + held).unwrap_or(u32::MAX)
    }
}

/// Begins to record what passes at a machine's port. The file appears on the session's subject, until the time is over
/// or nobody asks for it any more.
pub(crate) async fn capture(
    node: &Arc<Node>,
    machine: &MachineId,
    session: &str,
    (snap, time): (u32, Duration),
    held: impl Send + 'static,
) -> Result<(), AgentError> {
    let port = port_of(node, machine)?;
    let plug = Plug::of(&port).ok_or(AgentError::MachineUnknown)?;
    let pattern = capture_input_subject(session).as_str().parse();
    let pattern = pattern.map_err(|_| AgentError::Malformed)?;
    let alive = node.bus.subscribe(Subscribe::to(pattern)).await;
    let alive = alive.map_err(|_| AgentError::NotRunning)?;
    let options = CaptureOptions { bytes_max: snap };
    let frames = node.networks.kernel.capture(plug.vni, plug.address, options).await;
    let frames = frames.map_err(failed)?;
    let (node, session) = (node.clone(), session.to_owned());
    node.tasks.clone().spawn(async move {
        let _held = held;
        pump(&node, &session, frames, alive, Instant::now() + time).await;
    });
    Ok(())
}

async fn pump(
    node: &Node,
    session: &str,
    mut frames: Capture,
    mut alive: skein_fabric::Subscription,
    ends_at: Instant,
) {
    let to = capture_subject(session);
    let mut chunk = BytesMut::from(&skein_net::pcap_header()[..]);
    let mut flush_at = Instant::now();
    let mut silent_at = Instant::now() + SILENCE;
    loop {
        let frame = tokio::select! {
            () = node.tasks.stop_token().cancelled() => break,                  // cancel-safe: token
            () = sleep_until(ends_at.min(silent_at)) => break,                  // cancel-safe: timer
            () = sleep_until(flush_at), if !chunk.is_empty() => None,           // cancel-safe: timer
            asked = alive.next() => {                                           // cancel-safe: as documented
                if asked.is_none() {
                    break;
                }
                silent_at = Instant::now() + SILENCE;
                continue;
            }
            frame = frames.frame() => Some(frame),                              // cancel-safe: as documented
        };
        match frame {
            Some(Ok(frame)) => {
                if chunk.is_empty() {
                    flush_at = Instant::now() + CHUNK_WAIT;
                }
                let at = SystemTime::UNIX_EPOCH + Duration::from_micros(now().as_micros());
                chunk.extend_from_slice(&skein_net::pcap_record(at, frame));
                if chunk.len() < CHUNK {
                    continue;
                }
            }
            Some(Err(error)) => {
                debug!(%error, "a capture ended");
                break;
            }
            None => {}
        }
        send(node, &to, chunk.split().freeze()).await;
    }
    if !chunk.is_empty() {
        send(node, &to, chunk.freeze()).await;
    }
    // An empty message says that it ended.
    send(node, &to, Bytes::new()).await;
}

async fn send(node: &Node, to: &skein_fabric::Subject, bytes: Bytes) {
    if let Err(error) = node.bus.publish(Message::new(to.clone(), bytes)).await {
        warn!(%error, "a piece of a capture was lost");
    }
}
