//! In the light protocol's place where nodes seal what they send each other: it reaches nobody, and says so of the other nodes.

use skein_link::remote::{Local, Meeting, Remote, Unreached};
use skein_registry::{Mirror, View};
use std::net::{IpAddr, SocketAddr};

/// Knows the nodes by their records.
pub(super) struct Sealed {
    pub(super) mirror: Mirror,
}

impl Remote for Sealed {
    fn reaches(&self, _: SocketAddr) -> bool {
        false
    }

    fn why_not(&self, peer: SocketAddr) -> Unreached {
        self.mirror.read(|view| why_not(view, peer.ip()))
    }

    fn open(&self, meeting: Meeting, _: SocketAddr, _: Box<dyn Local>) {
        // It reaches nobody, so nobody opens; the program would stay on TCP.
        tracing::debug!(project = %meeting.project, "a connection has no way to its host");
    }
}

fn why_not(view: &View, peer: IpAddr) -> Unreached {
    let is_node = view.nodes.values().any(|node| IpAddr::V4(node.value.underlay) == peer);
    if is_node { Unreached::Encrypted } else { Unreached::NoNode }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::peers::tests::node;
    use skein_fabric::Revision;
    use skein_registry::Stored;
    use std::sync::Arc;

    #[test]
    fn other_nodes_encrypt_and_others_are_none() {
        let mut view = View::default();
        let record = node("n2", [10, 0, 0, 2], 0);
        let stored = Stored { value: Arc::new(record.clone()), revision: Revision::ZERO.next() };
        view.nodes.insert(record.name, stored);
        let why = |address: &str| why_not(&view, address.parse().unwrap());
        assert_eq!(why("10.0.0.2"), Unreached::Encrypted);
        assert_eq!(why("10.0.0.9"), Unreached::NoNode);
    }
}
