//! What a WireGuard interface shall be, what it shows, and the steps between. Pure.

use super::key::SecretKey;
use crate::desired::Desired;
use skein_model::WireKey;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Seconds between two packets to a node that hears nothing else. The first is sent at once, so that a node that returns,
/// or has another key, is spoken to before anybody has something to say.
pub(super) const KEEPALIVE_SECONDS: u16 = 25;

/// What an interface shall be.
#[derive(Debug, Clone)]
pub(crate) struct WireConfig {
    pub(super) key: SecretKey,
    pub(super) port: u16,
    pub(super) peers: BTreeMap<WireKey, WirePeer>,
}

/// Another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WirePeer {
    pub(super) endpoint: SocketAddr,
    /// The only address that it may send from, and that is sent to it.
    pub(super) address: Ipv4Addr,
}

/// What an interface shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(super) key: Option<WireKey>,
    pub(super) port: u16,
    pub(super) peers: BTreeMap<WireKey, Vec<(IpAddr, u8)>>,
}

/// One request to an interface: all of it, in this order.
#[derive(Debug, Clone, Default)]
pub(crate) struct WireChange {
    pub(super) key: Option<SecretKey>,
    pub(super) port: Option<u16>,
    pub(super) gone: Vec<WireKey>,
    pub(super) set: BTreeMap<WireKey, WirePeer>,
}

impl WireChange {
    /// Whether there is nothing to be done.
    pub(crate) fn is_empty(&self) -> bool {
        self.key.is_none() && self.port.is_none() && self.gone.is_empty() && self.set.is_empty()
    }
}

impl WireConfig {
    /// That of the node of `desired`, whose secret is `key`.
    pub(crate) fn of(desired: &Desired, key: SecretKey) -> Self {
        let peers = desired.peers().filter_map(|peer| {
            let endpoint = SocketAddr::from((peer.address, peer.vxlan_port));
            Some((peer.wire?, WirePeer { endpoint, address: peer.number.wire_address() }))
        });
        Self { key, port: desired.underlay.vxlan_port, peers: peers.collect() }
    }

    /// What makes an interface that shows `shown` into this. `before`: what it was last told to be; where other nodes are
    /// is told again only if that changed, because an interface follows a node that moves by itself.
    pub(crate) fn since(&self, shown: &Shown, before: Option<&Self>) -> WireChange {
        let told = |key: &WireKey| before.and_then(|before| before.peers.get(key));
        let fits = |key: &WireKey, peer: &WirePeer| {
            shown.peers.get(key).is_some_and(|found| *found == [(peer.address.into(), 32)])
                && told(key).is_none_or(|before| before == peer)
        };
        let own = self.key.public();
        WireChange {
            key: (shown.key != Some(own)).then(|| self.key.clone()),
            port: (shown.port != self.port).then_some(self.port),
            gone: shown
                .peers
                .keys()
                .filter(|key| !self.peers.contains_key(*key))
                .copied()
                .collect(),
            set: self
                .peers
                .iter()
                .filter(|(key, peer)| **key != own && !fits(key, peer))
                .map(|(key, peer)| (*key, *peer))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> WirePeer {
        let endpoint = SocketAddr::from(([192, 0, 2, last], 4789));
        WirePeer { endpoint, address: Ipv4Addr::new(100, 126, 0, last) }
    }

    fn key(byte: u8) -> WireKey {
        WireKey::new([byte; 32])
    }

    #[test]
    fn an_interface_is_told_only_what_it_does_not_show() {
        let secret = SecretKey::new([7; 32]);
        let peers = BTreeMap::from([(key(1), peer(1)), (key(2), peer(2))]);
        let config = WireConfig { key: secret.clone(), port: 4789, peers };
        let all = config.since(&Shown::default(), None);
        assert!(all.key.is_some() && all.port == Some(4789) && all.gone.is_empty());
        assert_eq!(all.set.keys().copied().collect::<Vec<_>>(), [key(1), key(2)]);
        let allowed = |last| vec![(IpAddr::from([100, 126, 0, last]), 32)];
        let mut shown = Shown { key: Some(secret.public()), port: 4789, peers: BTreeMap::new() };
        shown.peers.extend([(key(1), allowed(1)), (key(2), allowed(2))]);
        assert!(config.since(&shown, Some(&config)).is_empty());
        // Somebody took a node out, gave another more than its own, and put a third in.
        shown.peers.remove(&key(1));
        shown.peers.insert(key(2), [allowed(2), allowed(9)].concat());
        shown.peers.insert(key(3), allowed(3));
        let change = config.since(&shown, Some(&config));
        assert_eq!(change.gone, [key(3)]);
        assert_eq!(change.set.keys().copied().collect::<Vec<_>>(), [key(1), key(2)]);
        // A node that is elsewhere now.
        let mut moved = config.clone();
        moved.peers.insert(key(1), WirePeer { endpoint: peer(9).endpoint, ..peer(1) });
        shown.peers = BTreeMap::from([(key(1), allowed(1)), (key(2), allowed(2))]);
        let change = moved.since(&shown, Some(&config));
        assert_eq!(change.set.keys().copied().collect::<Vec<_>>(), [key(1)]);
    }
}
