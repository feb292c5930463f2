//! What can be asked about a network.

use crate::desired::{DesiredNetwork, LocalPort, NetworkKind};
use crate::plan::BRIDGED_SERVER;
use skein_model::MacAddr;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A network, ready to be asked.
#[derive(Debug)]
pub struct Directory {
    network: Arc<DesiredNetwork>,
    by_mac: BTreeMap<MacAddr, usize>,
    names: BTreeMap<String, Vec<IpAddr>>,
    reverse: BTreeMap<IpAddr, String>,
    /// Answers so far, so that addresses of a name take turns.
    turn: AtomicUsize,
}

impl Directory {
    /// Of a network whose check went well.
    pub fn new(network: Arc<DesiredNetwork>) -> Self {
        let ports = network.ports.iter().enumerate();
        let by_mac = ports.map(|(at, port)| (port.mac, at)).collect();
        let mut names: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        let mut reverse = BTreeMap::new();
        for record in &network.dns.records {
            names.entry(record.name.clone()).or_default().extend(&record.addresses);
            for address in &record.addresses {
                reverse.entry(*address).or_insert_with(|| record.name.clone());
            }
        }
        Self { network, by_mac, names, reverse, turn: AtomicUsize::new(0) }
    }

    /// The network it is about.
    pub fn network(&self) -> &DesiredNetwork {
        &self.network
    }

    /// The network it is about, shared.
    pub(crate) fn arc(&self) -> Arc<DesiredNetwork> {
        self.network.clone()
    }

    /// The port of this node with this MAC address.
    pub(crate) fn port(&self, mac: MacAddr) -> Option<&LocalPort> {
        self.by_mac.get(&mac).map(|at| &self.network.ports[*at])
    }

    /// The addresses of a name (lower case, no final dot), beginning with another one each time;
    /// `None` if there is no such name.
    pub(crate) fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let mut addresses = self.names.get(name)?.clone();
        if !addresses.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
            addresses.rotate_left(turn);
        }
        Some(addresses)
    }

    /// The name of an address.
    pub(crate) fn name(&self, address: IpAddr) -> Option<&str> {
        self.reverse.get(&address).map(String::as_str)
    }

    /// Whether a name (as in [`Directory::addresses`]) is for this network alone to answer.
    pub(crate) fn is_own(&self, name: &str) -> bool {
        let within = |domain: &str| {
            name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        within("internal") || within(&self.network.dns.domain) || self.names.contains_key(name)
    }

    /// By which address the DHCP server is known, the same on every node.
    pub(crate) fn server(&self) -> Ipv4Addr {
        match self.network.kind {
            NetworkKind::Bridged { .. } => BRIDGED_SERVER,
            NetworkKind::Nat(_) | NetworkKind::Isolated => self.network.gateway,
        }
    }

    /// The resolvers machines are told.
    pub(crate) fn resolvers(&self) -> Vec<Ipv4Addr> {
        match (self.network.dhcp.resolvers.as_slice(), &self.network.kind) {
            ([], NetworkKind::Bridged { .. }) => Vec::new(),
            ([], NetworkKind::Nat(_) | NetworkKind::Isolated) => vec![self.network.gateway],
            (given, _) => given.to_vec(),
        }
    }

    /// The domains machines try.
    pub(crate) fn search(&self) -> Vec<&str> {
        match self.network.dns.search.as_slice() {
            [] => vec![&self.network.dns.domain],
            given => given.iter().map(String::as_str).collect(),
        }
    }
}
