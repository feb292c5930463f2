//! A small network to ask about.

use skein_model::MacAddr;
use skein_net::{
    DesiredNetwork, DhcpSettings, Directory, DnsRecord, DnsSettings, Ipv6Range, LocalPort,
    NetworkKind, OtherNames, Peers, PortLimits, Vni,
};
use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};

/// The MAC address of its one machine.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Its directory.
pub(crate) static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| {
    let address = Ipv4Addr::new(10, 20, 0, 9);
    let port = LocalPort {
        address,
        ipv6: "fd00:20::9".parse().ok(),
        mac: MacAddr::new(MAC).expect("a MAC address"),
        label: "machine".parse().expect("a label"),
        host_name: "machine".into(),
        groups: Vec::new(),
        peers: Peers::Reachable,
        limits: PortLimits::default(),
    };
    let records = vec![DnsRecord {
        name: "machine.web.blue.internal".into(),
        addresses: vec![address.into()],
    }];
    Directory::new(Arc::new(DesiredNetwork {
        vni: Vni::new(1).expect("an identifier"),
        kind: NetworkKind::Isolated,
        cidr: "10.20.0.0/24".parse().expect("a range"),
        gateway: Ipv4Addr::new(10, 20, 0, 1),
        ipv6: Some(Ipv6Range {
            prefix: "fd00:20::/64".parse().expect("a range"),
            gateway: "fd00:20::1".parse().expect("an address"),
        }),
        mtu: 1450,
        ports: vec![port],
        remote_ports: Vec::new(),
        groups: Vec::new(),
        dhcp: DhcpSettings::default(),
        dns: DnsSettings {
            domain: "web.blue.internal".into(),
            search: Vec::new(),
            records,
            others: OtherNames::Refuse,
        },
        publications: Vec::new(),
        gateway_services: Vec::new(),
    }))
});
