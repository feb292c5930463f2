//! From the records to what the networks of one node shall be. Pure: same records, same answer.
//!
//! A network is on a node as long as a machine of it is there, or a publication leads into it from there, or it leaves by
//! that node. Everything else about it - who is where, who may talk to whom, which names there are - follows from the
//! records of all nodes.

use skein_model as model;
use skein_model::{
    MachineId, NetworkRecord, NodeName, NodeRecord, NodeState, PhaseName, PortRecord,
    PublicationRecord, PublishTarget, ServiceRecord,
};
use skein_net as net;
use skein_registry::{View, backends, exit_of, groups_of, is_ready, network_of};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// The node whose networks are decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own<'a> {
    pub(crate) name: &'a NodeName,
    pub(crate) underlay: net::Underlay,
}

impl Own<'_> {
    /// Whether it encrypts what it sends to other nodes.
    fn encryption(self) -> model::Encryption {
        encryption(&self.underlay)
    }
}

/// Whether a node encrypts what it sends to others.
pub(crate) fn encryption(node: &net::Underlay) -> model::Encryption {
    match node.wire {
        Some(_) => model::Encryption::WireGuard,
        None => model::Encryption::Off,
    }
}

/// The network's name on a node.
pub(crate) fn vni(vni: model::Vni) -> Option<net::Vni> {
    net::Vni::new(vni.get())
}

fn number(node: &NodeRecord) -> Option<net::NodeNumber> {
    net::NodeNumber::new(node.number)
}

pub(super) fn underlay(node: &NodeRecord) -> Option<net::Underlay> {
    let (address, vxlan_port, wire) = (node.underlay, node.vxlan_port, node.wire_key);
    Some(net::Underlay { number: number(node)?, address, vxlan_port, wire })
}

/// What the networks of a node shall be. Networks that are as they were are those of `before` themselves.
pub(crate) fn desired(view: &View, own: Own<'_>, before: &net::Desired) -> net::Desired {
    let others = view.nodes.values().filter(|other| other.value.name != *own.name);
    let present = Present::of(view, own);
    let same: BTreeMap<net::Vni, &Arc<net::DesiredNetwork>> =
        before.networks.iter().map(|network| (network.vni, network)).collect();
    let networks = view.networks.values().filter_map(|stored| {
        let shape = present.network(view, own, &stored.value)?;
        match same.get(&shape.vni) {
            Some(kept) if ***kept == shape => Some(Arc::clone(kept)),
            Some(_) | None => Some(Arc::new(shape)),
        }
    });
    net::Desired {
        underlay: own.underlay,
        peers: others.filter_map(|other| underlay(&other.value)).collect(),
        networks: networks.collect(),
    }
}

/// What the networks of all nodes shall be.
pub(crate) fn of_all_nodes(view: &View) -> Vec<net::Desired> {
    let nodes = view.nodes.values().filter_map(|stored| {
        let underlay = underlay(&stored.value)?;
        let own = Own { name: &stored.value.name, underlay };
        Some(desired(view, own, &net::Desired::new(underlay)))
    });
    nodes.collect()
}

/// What is plugged in and published, by network.
struct Present<'a> {
    ports: BTreeMap<model::Vni, Vec<&'a PortRecord>>,
    publications: BTreeMap<model::Vni, Vec<&'a PublicationRecord>>,
}

impl<'a> Present<'a> {
    fn of(view: &'a View, own: Own<'_>) -> Self {
        let mut ports: BTreeMap<model::Vni, Vec<&PortRecord>> = BTreeMap::new();
        for stored in view.ports.values().filter(|port| is_plugged(view, &port.value.machine)) {
            ports.entry(stored.value.vni).or_default().push(&stored.value);
        }
        let mut publications: BTreeMap<model::Vni, Vec<&PublicationRecord>> = BTreeMap::new();
        let here = publishes(view, own);
        for stored in view.publications.values().filter(|_| here) {
            if let Some(network) = network_of(view, &stored.value) {
                publications.entry(network.vni).or_default().push(&stored.value);
            }
        }
        Self { ports, publications }
    }

    /// A network as it shall be on a node; none if it shall not be there.
    fn network(
        &self,
        view: &View,
        own: Own<'_>,
        record: &NetworkRecord,
    ) -> Option<net::DesiredNetwork> {
        let node = own.name;
        let none = Vec::new();
        let ports = self.ports.get(&record.vni).unwrap_or(&none);
        let publications = self.publications.get(&record.vni).map_or(&[][..], Vec::as_slice);
        let (local, remote): (Vec<&PortRecord>, Vec<&PortRecord>) =
            ports.iter().partition(|port| port.node == *node);
        let leaves_here = exit_of(view, record).is_some_and(|exit| exit.node == *node);
        if local.is_empty() && publications.is_empty() && (remote.is_empty() || !leaves_here) {
            return None;
        }
        let spec = &record.spec;
        // The node by which a connection comes in judges it, wherever the machine is that takes it, and before there is one.
        let behind = publications.iter().flat_map(|published| takers(view, record, published));
        let judged = local.iter().copied().chain(behind).flat_map(|port| groups_of(view, port));
        let woken = publications.iter().filter_map(|published| wakes(view, published));
        let woken = woken.flat_map(|service| &service.spec.network.groups);
        let groups = groups(view, record, judged.chain(woken).collect());
        let numbers = |port: &&PortRecord| number(&view.nodes.get(&port.node)?.value);
        Some(net::DesiredNetwork {
            vni: vni(record.vni)?,
            kind: kind(view, node, record)?,
            cidr: spec.cidr,
            gateway: spec.cidr.gateway(),
            ipv6: spec.ipv6.and_then(|prefix| {
                let (network, length) = (prefix.network().into(), prefix.prefix_len());
                let gateway = prefix.gateway();
                Some(net::Ipv6Range {
                    prefix: model::AddressRange::new(network, length).ok()?,
                    gateway,
                })
            }),
            mtu: spec.packet_max(own.encryption()),
            ports: local.iter().filter_map(|port| local_port(view, port, &groups)).collect(),
            remote_ports: remote
                .iter()
                .filter_map(|port| remote_port(view, port, numbers(port)?, &groups))
                .collect(),
            groups: groups.values().cloned().collect(),
            dhcp: net::DhcpSettings {
                resolvers: spec.resolvers.clone(),
                routes: spec.routes.iter().map(|r| net::Route { to: r.to, via: r.via }).collect(),
                ..net::DhcpSettings::default()
            },
            dns: names(view, record, ports),
            publications: publications
                .iter()
                .filter_map(|p| publication(view, record, p, &groups))
                .collect(),
            gateway_services: Vec::new(),
        })
    }
}

/// Whether a machine has its port: from its record on, until it has ended.
fn is_plugged(view: &View, machine: &MachineId) -> bool {
    let ended = |status: &model::MachineStatus| status.phase.name() == PhaseName::Gone;
    view.machines.contains_key(machine)
        && !view.statuses.get(machine).is_some_and(|status| ended(&status.value))
}

/// Whether publications are opened by this node: by one of those that are on the same host.
fn publishes(view: &View, own: Own<'_>) -> bool {
    let mut others = view.nodes.values().map(|stored| &stored.value).filter(|other| {
        let beside = other.name != *own.name && other.underlay == own.underlay.address;
        beside && view.node_state(&other.name) != NodeState::Lost
    });
    !others.any(|other| other.number != 0 && other.number < own.underlay.number.get())
}

fn kind(view: &View, node: &NodeName, record: &NetworkRecord) -> Option<net::NetworkKind> {
    Some(match record.spec.kind {
        model::NetworkKind::Isolated => net::NetworkKind::Isolated,
        model::NetworkKind::Bridged => {
            net::NetworkKind::Bridged { attach: record.spec.interface.as_deref()?.parse().ok()? }
        }
        model::NetworkKind::Nat => net::NetworkKind::Nat(exit(view, node, record)),
    })
}

/// Where packets for the outside leave. While the network's exit is lost, each node lets out what is its own.
fn exit(view: &View, node: &NodeName, record: &NetworkRecord) -> net::Exit {
    let here = net::Exit::Here { source: None };
    let Some(exit) = exit_of(view, record) else { return here };
    if exit.node == *node {
        return net::Exit::Here { source: exit.address };
    }
    let there = view.nodes.get(&exit.node);
    let there = there.filter(|_| view.node_state(&exit.node) != NodeState::Lost);
    there.and_then(|there| number(&there.value)).map_or(here, net::Exit::Via)
}

/// The groups by which clients are judged here, with those that their rules name, and so on.
fn groups<'a>(
    view: &'a View,
    record: &NetworkRecord,
    mut open: BTreeSet<&'a model::GroupName>,
) -> BTreeMap<model::GroupName, net::RuleGroup> {
    let mut found = BTreeMap::new();
    while let Some(name) = open.pop_first() {
        let Some(stored) = view.groups.get(&(record.project.clone(), name.clone())) else {
            continue;
        };
        if found.contains_key(name) {
            continue;
        }
        let Ok(called) = name.as_str().parse() else { continue };
        let rules = stored.value.rules.iter().filter_map(rule).collect();
        found.insert(name.clone(), net::RuleGroup { name: called, rules });
        open.extend(stored.value.peers().filter(|peer| !found.contains_key(*peer)));
    }
    // A group that is no more has no members: a rule that names it lets nobody through.
    let known: BTreeSet<net::GroupName> = found.values().map(|group| group.name.clone()).collect();
    for group in found.values_mut() {
        group.rules.retain(|rule| match &rule.peer {
            net::RulePeer::Group(peer) => known.contains(peer),
            net::RulePeer::Any | net::RulePeer::Range(_) => true,
        });
    }
    found
}

fn rule(rule: &model::Rule) -> Option<net::Rule> {
    let spec = &rule.spec;
    let ports = match spec.ports {
        Some(ports) => net::PortRange::new(ports.first(), ports.last())?,
        None => net::PortRange::ALL,
    };
    Some(net::Rule {
        id: net::RuleId(rule.id.get()),
        direction: match spec.direction {
            model::Direction::Ingress => net::Direction::Ingress,
            model::Direction::Egress => net::Direction::Egress,
        },
        protocol: match spec.protocol {
            model::Protocol::Any => net::RuleProtocol::Any,
            model::Protocol::Tcp => net::RuleProtocol::Tcp(ports),
            model::Protocol::Udp => net::RuleProtocol::Udp(ports),
            model::Protocol::Icmp => net::RuleProtocol::Icmp(None),
        },
        peer: match &spec.peer {
            model::Peer::Any => net::RulePeer::Any,
            model::Peer::Cidr(range) => net::RulePeer::Range(*range),
            model::Peer::Group(name) => net::RulePeer::Group(name.as_str().parse().ok()?),
        },
        log: match spec.log {
            model::RuleLog::Off => net::Log::No,
            model::RuleLog::Connections => net::Log::Yes,
        },
    })
}

type Groups = BTreeMap<model::GroupName, net::RuleGroup>;

/// The groups of a port that matter on this node.
fn memberships(view: &View, port: &PortRecord, groups: &Groups) -> Vec<net::GroupName> {
    known(groups_of(view, port), groups)
}

/// Those of `names` that are groups on this node.
fn known<'a>(
    names: impl IntoIterator<Item = &'a model::GroupName>,
    groups: &Groups,
) -> Vec<net::GroupName> {
    let names = names.into_iter().filter_map(|name| groups.get(name));
    names.map(|group| group.name.clone()).collect()
}

/// The local end of a machine's port.
fn local_port(view: &View, port: &PortRecord, groups: &Groups) -> Option<net::LocalPort> {
    let service = view.services.get(&(port.project.clone(), port.service.clone()));
    let of_service = || service.map(|service| service.value.spec.network.limits);
    let limits = port.limits.or_else(of_service).unwrap_or_default();
    let rate = |bits, packets| net::Rate { bits_per_second: bits, packets_per_second: packets };
    Some(net::LocalPort {
        address: port.ipv4,
        ipv6: port.ipv6,
        mac: port.mac,
        label: port.machine.as_str().parse().ok()?,
        host_name: port.machine.to_string(),
        groups: memberships(view, port, groups),
        peers: net::Peers::Reachable,
        limits: net::PortLimits {
            sends: rate(limits.egress_bits, limits.egress_packets),
            receives: rate(limits.ingress_bits, limits.ingress_packets),
        },
    })
}

fn remote_port(
    view: &View,
    port: &PortRecord,
    node: net::NodeNumber,
    groups: &Groups,
) -> Option<net::RemotePort> {
    let groups = memberships(view, port, groups);
    Some(net::RemotePort { address: port.ipv4, ipv6: port.ipv6, mac: port.mac, groups, node })
}

/// The names of a network: its machines', and those of the services that are in it, which lead to their ready replicas.
fn names(view: &View, record: &NetworkRecord, ports: &[&PortRecord]) -> net::DnsSettings {
    let of_project = format!("{}.internal", record.project);
    let domain = format!("{}.{of_project}", record.spec.name);
    let addresses = |port: &PortRecord| {
        let six = port.ipv6.map(IpAddr::from);
        std::iter::once(IpAddr::from(port.ipv4)).chain(six).collect::<Vec<_>>()
    };
    let machines = ports.iter().map(|port| net::DnsRecord {
        name: format!("{}.{domain}", port.machine),
        addresses: addresses(port),
    });
    let services = view.services.values().map(|stored| &stored.value).filter(|service| {
        service.project == record.project && service.spec.network.name == record.spec.name
    });
    let services = services.map(|service| {
        let ready =
            ports.iter().filter(|port| port.service == service.spec.name && is_ready(view, port));
        net::DnsRecord {
            name: format!("{}.{of_project}", service.spec.name),
            addresses: ready.flat_map(|port| addresses(port)).collect(),
        }
    });
    net::DnsSettings {
        records: machines.chain(services).collect(),
        search: vec![domain.clone(), of_project.clone()],
        domain,
        others: match record.spec.kind {
            model::NetworkKind::Nat | model::NetworkKind::Bridged => net::OtherNames::Forward,
            model::NetworkKind::Isolated => net::OtherNames::Refuse,
        },
    }
}

/// Who is told when a connection comes and no machine is there.
pub(crate) fn wake_label(service: &model::ServiceName, project: &model::ProjectName) -> String {
    format!("{project}/{service}")
}

/// The inverse of [`wake_label`].
pub(crate) fn of_wake_label(label: &str) -> Option<(model::ProjectName, model::ServiceName)> {
    let (project, service) = label.split_once('/')?;
    Some((project.parse().ok()?, service.parse().ok()?))
}

/// The machines that take connections of a publication and have their ports.
fn takers<'a>(
    view: &'a View,
    network: &NetworkRecord,
    record: &'a PublicationRecord,
) -> impl Iterator<Item = &'a PortRecord> + use<'a> {
    let vni = network.vni;
    backends(view, record).filter(move |port| port.vni == vni && is_plugged(view, &port.machine))
}

/// The service of which a publication's connections wake a machine.
fn wakes<'a>(view: &'a View, record: &PublicationRecord) -> Option<&'a ServiceRecord> {
    match (&record.spec.target, record.spec.protocol) {
        (PublishTarget::Service(service), model::Transport::Tcp) => {
            let service = view.services.get(&(record.project.clone(), service.clone()))?;
            Some(&service.value)
        }
        (PublishTarget::Service(_), model::Transport::Udp) | (PublishTarget::Machine(_), _) => None,
    }
}

fn publication(
    view: &View,
    network: &NetworkRecord,
    record: &PublicationRecord,
    groups: &Groups,
) -> Option<net::Publication> {
    let spec = &record.spec;
    let backends: BTreeSet<Ipv4Addr> = takers(view, network, record).map(|p| p.ipv4).collect();
    let wake = wakes(view, record).and_then(|service| {
        let label = wake_label(&service.spec.name, &service.project).parse().ok()?;
        Some(net::Wake { label, groups: known(&service.spec.network.groups, groups) })
    });
    Some(net::Publication {
        address: None,
        protocol: match spec.protocol {
            model::Transport::Tcp => net::Transport::Tcp,
            model::Transport::Udp => net::Transport::Udp,
        },
        port: spec.port,
        target_port: spec.target_port,
        backends: backends.into_iter().collect(),
        balance: match spec.affinity {
            model::Affinity::None => net::Balance::Turns,
            model::Affinity::Client => net::Balance::Clients,
        },
        wake,
    })
}

#[cfg(test)]
pub(super) mod tests;
