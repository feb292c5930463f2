//! From the records to whom a node's light protocol knows. Pure.

use skein_link::broker::Project;
use skein_link::node::PeerConfig;
use skein_model::NodeName;
use skein_registry::View;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The other nodes that have a light protocol, at an address that is not this node's own.
///
/// A node whose lease has ended is among them: whether it can be reached is the session's to find out, not the state's.
/// One whose record is gone is not.
pub(super) fn peers(view: &View, own: &NodeName, listens: SocketAddr) -> Vec<PeerConfig> {
    let others = view.nodes.values().map(|stored| &stored.value).filter(|node| node.name != *own);
    let reached = others.filter_map(|node| {
        let socket = SocketAddr::new(IpAddr::V4(node.underlay), node.light_port);
        let is_there = node.light_port != 0 && !node.underlay.is_unspecified();
        let name = node.name.to_string();
        (is_there && socket != listens).then_some(PeerConfig { name, socket, addresses: vec![] })
    });
    reached.collect()
}

/// The projects whose programs may ask, each on a socket of its own.
pub(super) fn projects(view: &View, sockets: impl Fn(&str) -> Vec<PathBuf>) -> Vec<Project> {
    let names = view.projects.keys().map(ToString::to_string);
    let served = names.flat_map(|name| {
        let all = sockets(&name).into_iter();
        all.map(move |socket| Project { socket, name: name.clone() })
    });
    served.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use skein_fabric::Revision;
    use skein_model::{CpuMilli, NodeRecord, Timestamp};
    use skein_registry::Stored;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    pub(crate) fn node(name: &str, underlay: [u8; 4], light_port: u16) -> NodeRecord {
        NodeRecord {
            name: name.parse().unwrap(),
            memory_mib: 1024,
            cpu: CpuMilli(1000),
            machines_max: 10,
            performance: 1.0,
            accel: "tcg".to_owned(),
            vmm: "QEMU".to_owned(),
            number: 1,
            underlay: Ipv4Addr::from(underlay),
            vxlan_port: 4789,
            wire_key: None,
            light_port,
            joined_at: Timestamp::default(),
        }
    }

    #[test]
    fn peers_are_the_nodes_with_a_light_protocol_elsewhere() {
        let mut view = View::default();
        for record in [
            node("n1", [10, 0, 0, 1], 4077),
            node("n2", [10, 0, 0, 2], 4077),
            // Beside n1, in the same namespace: its programs are this host's.
            node("n3", [10, 0, 0, 1], 4077),
            node("n4", [10, 0, 0, 4], 0),
            node("n5", [0, 0, 0, 0], 4077),
        ] {
            let stored =
                Stored { value: Arc::new(record.clone()), revision: Revision::ZERO.next() };
            view.nodes.insert(record.name, stored);
        }
        let own = "n1".parse().unwrap();
        let found = peers(&view, &own, "10.0.0.1:4077".parse().unwrap());
        let names: Vec<&str> = found.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["n2"]);
        assert_eq!(found[0].socket, "10.0.0.2:4077".parse().unwrap());
        assert!(found[0].addresses.is_empty());
    }
}
