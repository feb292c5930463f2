use super::*;
use model::{
    AddressRange, Addressing, Attachment, CpuMilli, Direction, ExitCause, Generation, GroupRecord,
    ImageManifest, Limits, MacAddr, MachineGoal, MachinePhase, MachineRecord, MachineStatus,
    MemoryMib, NetworkName, NetworkSpec, Peer, ProjectName, ProjectRecord, Protocol,
    PublicationSpec, QueuePolicy, Rule, RuleId, RuleLog, RuleSpec, ScalingPolicy, ServiceRecord,
    ServiceSpec, Timestamp,
};
use skein_fabric::{LeaseId, Revision};
use skein_registry::{Alive, Stored};

fn stored<T>(value: T) -> Stored<T> {
    Stored { value: Arc::new(value), revision: Revision::ZERO.next() }
}

const NOW: Timestamp = Timestamp::ZERO;

fn project(name: &str) -> ProjectName {
    name.parse().unwrap()
}

/// Records, built up step by step.
#[derive(Default)]
pub(crate) struct Records(pub(crate) View);

impl Records {
    pub(crate) fn node(mut self, number: u16, host: u8) -> Self {
        let name: NodeName = format!("n{number}").parse().unwrap();
        let record = NodeRecord {
            name: name.clone(),
            memory_mib: 1,
            cpu: CpuMilli(1),
            machines_max: 1,
            performance: 1.0,
            accel: String::new(),
            vmm: String::new(),
            number,
            underlay: Ipv4Addr::new(192, 0, 2, host),
            vxlan_port: 4789 + number,
            wire_key: None,
            light_port: 0,
            joined_at: NOW,
        };
        self.0.nodes.insert(name.clone(), stored(record));
        let lease: LeaseId = serde_json::from_str("1").unwrap();
        self.0.alive.insert(name, stored(Alive { lease, since: NOW }));
        self
    }

    fn lose(mut self, node: &str) -> Self {
        self.0.alive.remove(&node.parse::<NodeName>().unwrap());
        self
    }

    pub(crate) fn network(
        mut self,
        of: &str,
        vni: u32,
        change: impl FnOnce(&mut NetworkSpec),
    ) -> Self {
        let mut spec = NetworkSpec::new("web".parse().unwrap(), "10.20.0.0/24".parse().unwrap());
        change(&mut spec);
        let key = (project(of), spec.name.clone());
        let vni = model::Vni::new(vni).unwrap();
        let record = NetworkRecord { project: project(of), spec, vni, created_at: NOW };
        self.0.networks.insert(key, stored(record));
        self
    }

    fn project(mut self, name: &str, exit: Option<model::Exit>) -> Self {
        let (name, description) = (project(name), String::new());
        let record = ProjectRecord { name: name.clone(), description, exit, created_at: NOW };
        self.0.projects.insert(name, stored(record));
        self
    }

    pub(crate) fn service(mut self, of: &str, name: &str, groups: &[&str]) -> Self {
        let network = Attachment {
            name: "web".parse().unwrap(),
            groups: groups.iter().map(|group| group.parse().unwrap()).collect(),
            limits: Limits { egress_bits: Some(1_000_000), ..Limits::default() },
            addresses: Vec::new(),
            addressing: Addressing::Static,
        };
        let spec = ServiceSpec {
            name: name.parse().unwrap(),
            image: "echo".parse().unwrap(),
            memory: None,
            capacity: None,
            cpu_milli: 1,
            parameters: BTreeMap::new(),
            network,
            scaling: ScalingPolicy::default(),
            queue: QueuePolicy::default(),
        };
        let generation = Generation(1);
        let record = ServiceRecord { project: project(of), spec, generation, created_at: NOW };
        self.0.services.insert((project(of), name.parse().unwrap()), stored(record));
        self
    }

    /// A machine of a service, plugged in at 10.20.0.`at`.
    pub(crate) fn machine(
        mut self,
        of: &str,
        id: &str,
        node: &str,
        at: u8,
        phase: MachinePhase,
    ) -> Self {
        let (service, _) = id.split_once('-').unwrap();
        let machine: MachineId = id.parse().unwrap();
        let image = ImageManifest {
            name: "echo".parse().unwrap(),
            kernel: "00".repeat(32).parse().unwrap(),
            kernel_bytes: 1,
            modules: Vec::new(),
            memory: MemoryMib::DEFAULT,
            capacity: 1,
            port: 80,
            created_at: NOW,
        };
        let network: NetworkName = "web".parse().unwrap();
        let vni = self.0.networks[&(project(of), network.clone())].value.vni;
        let record = MachineRecord {
            id: machine.clone(),
            project: project(of),
            service: service.parse().unwrap(),
            node: node.parse().unwrap(),
            generation: Generation(1),
            image,
            memory: MemoryMib::DEFAULT,
            cpu_milli: 1,
            capacity: 1,
            parameters: BTreeMap::new(),
            network: network.clone(),
            addressing: Addressing::Static,
            goal: MachineGoal::Run,
            reason: String::new(),
            created_at: NOW,
        };
        let ipv4 = Ipv4Addr::new(10, 20, 0, at);
        let port = PortRecord {
            machine: machine.clone(),
            project: project(of),
            service: record.service.clone(),
            node: record.node.clone(),
            network,
            vni,
            mac: MacAddr::for_port(vni.get(), ipv4),
            ipv4,
            ipv6: None,
            groups: None,
            limits: None,
            generation: Generation(1),
            created_at: NOW,
        };
        let status = MachineStatus {
            id: machine.clone(),
            generation: Generation(1),
            phase,
            address: Some(ipv4),
            port: 80,
            launched_at: None,
            ready_at: None,
            boot_us: None,
        };
        self.0.machines.insert(machine.clone(), stored(record));
        self.0.ports.insert(machine.clone(), stored(port));
        self.0.statuses.insert(machine, stored(status));
        self
    }

    pub(crate) fn group(mut self, of: &str, name: &str, peers: &[Peer]) -> Self {
        let rules = peers.iter().enumerate().map(|(at, peer)| Rule {
            id: RuleId::new(at as u32),
            spec: RuleSpec {
                direction: Direction::Ingress,
                protocol: Protocol::Tcp,
                ports: Some("80-90".parse().unwrap()),
                peer: peer.clone(),
                log: RuleLog::Off,
            },
        });
        let record = GroupRecord {
            project: project(of),
            name: name.parse().unwrap(),
            description: String::new(),
            rules: rules.collect(),
            generation: Generation(1),
            created_at: NOW,
        };
        self.0.groups.insert((project(of), record.name.clone()), stored(record));
        self
    }

    fn publish(mut self, of: &str, port: u16, target: PublishTarget) -> Self {
        let protocol = model::Transport::Tcp;
        let spec = PublicationSpec {
            protocol,
            port,
            target,
            target_port: 80,
            affinity: model::Affinity::None,
        };
        let record = PublicationRecord { project: project(of), spec, created_at: NOW };
        self.0.publications.insert((protocol, port), stored(record));
        self
    }

    pub(crate) fn on(&self, node: &str) -> net::Desired {
        let name: NodeName = node.parse().unwrap();
        let underlay = underlay(&self.0.nodes[&name].value).unwrap();
        let before = net::Desired::new(underlay);
        let desired = desired(&self.0, Own { name: &name, underlay }, &before);
        let (good, bad) = desired.check();
        assert_eq!((good.len(), bad), (desired.networks.len(), vec![]), "{node}");
        desired
    }
}

pub(crate) fn ready() -> MachinePhase {
    MachinePhase::Ready { since: NOW }
}

fn addresses<T>(ports: &[T], of: fn(&T) -> Ipv4Addr) -> Vec<u8> {
    ports.iter().map(|port| of(port).octets()[3]).collect()
}

#[test]
fn a_network_is_where_its_machines_are_and_knows_all_of_them() {
    let records = Records::default()
        .node(1, 1)
        .node(2, 2)
        .node(3, 3)
        .network("blue", 5000, |_| {})
        .service("blue", "app", &[])
        .machine("blue", "app-1", "n1", 2, ready())
        .machine("blue", "app-2", "n2", 3, ready())
        .machine(
            "blue",
            "app-3",
            "n2",
            4,
            MachinePhase::Gone { cause: ExitCause::Stopped, at: NOW },
        );
    let one = records.on("n1");
    assert_eq!(one.networks.len(), 1);
    assert_eq!(addresses(&one.networks[0].ports, |port| port.address), [2]);
    assert_eq!(addresses(&one.networks[0].remote_ports, |port| port.address), [3]);
    assert_eq!(one.networks[0].remote_ports[0].node.get(), 2);
    assert_eq!(one.networks[0].ports[0].limits.sends.bits_per_second, Some(1_000_000));
    assert_eq!(one.peers.len(), 2);
    let two = records.on("n2");
    assert_eq!(addresses(&two.networks[0].ports, |port| port.address), [3]);
    assert!(records.on("n3").networks.is_empty());
}

#[test]
fn equal_addresses_of_two_projects_do_not_meet() {
    let records = Records::default()
        .node(1, 1)
        .network("blue", 5000, |_| {})
        .network("red", 5001, |_| {})
        .service("blue", "app", &["web"])
        .service("red", "app", &["web"])
        .group("blue", "web", &[Peer::Any])
        .group("red", "web", &[])
        .machine("blue", "app-1", "n1", 2, ready())
        .machine("red", "app-2", "n1", 2, ready());
    let desired = records.on("n1");
    assert_eq!(desired.networks.len(), 2);
    for (network, (label, rules, name)) in desired
        .networks
        .iter()
        .zip([("app-1", 1, "app-1.web.blue.internal"), ("app-2", 0, "app-2.web.red.internal")])
    {
        assert_eq!(network.ports[0].label.as_str(), label);
        assert!(network.remote_ports.is_empty());
        assert_eq!(network.groups[0].rules.len(), rules);
        assert_eq!(network.dns.records[0].name, name);
        assert_eq!(network.dns.records.len(), 2);
    }
}

#[test]
fn names_of_services_lead_to_ready_machines_of_all_nodes() {
    let records = Records::default()
        .node(1, 1)
        .node(2, 2)
        .network("blue", 5000, |_| {})
        .service("blue", "app", &[])
        .service("blue", "idle", &[])
        .machine("blue", "app-1", "n1", 2, ready())
        .machine("blue", "app-2", "n2", 3, ready())
        .machine("blue", "app-3", "n2", 4, MachinePhase::Booting { deadline: NOW });
    let desired = records.on("n1");
    let dns = &desired.networks[0].dns;
    let of = |name: &str| {
        let record = dns.records.iter().find(|record| record.name == name).unwrap();
        record.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(of("app.blue.internal"), ["10.20.0.2", "10.20.0.3"]);
    assert_eq!(of("app-3.web.blue.internal"), ["10.20.0.4"]);
    assert!(of("idle.blue.internal").is_empty());
    assert_eq!(dns.domain, "web.blue.internal");
}

#[test]
fn groups_come_with_those_that_their_rules_name() {
    let named = |name: &str| Peer::Group(name.parse().unwrap());
    let range: AddressRange = "10.0.0.0/8".parse().unwrap();
    let records = Records::default()
        .node(1, 1)
        .node(2, 2)
        .network("blue", 5000, |_| {})
        .service("blue", "app", &["web"])
        .service("blue", "db", &["store", "other"])
        .group("blue", "web", &[named("store"), named("lost"), Peer::Cidr(range)])
        .group("blue", "store", &[named("web"), named("store")])
        .group("blue", "other", &[])
        .machine("blue", "app-1", "n1", 2, ready())
        .machine("blue", "db-1", "n2", 3, ready());
    let desired = records.on("n1");
    let network = &desired.networks[0];
    let names: Vec<&str> = network.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["store", "web"]);
    // The rule about a group that is no more lets nobody through.
    assert_eq!(network.groups[1].rules.len(), 2);
    let of_remote: Vec<&str> =
        network.remote_ports[0].groups.iter().map(net::GroupName::as_str).collect();
    assert_eq!(of_remote, ["store"]);
}

#[test]
fn one_node_of_each_host_opens_what_is_published() {
    let to_service = || PublishTarget::Service("app".parse().unwrap());
    let records = Records::default()
        .node(1, 1)
        .node(2, 1)
        .node(3, 3)
        .network("blue", 5000, |_| {})
        .service("blue", "app", &[])
        .publish("blue", 8080, to_service())
        .machine("blue", "app-1", "n2", 2, ready())
        .machine("blue", "app-2", "n2", 3, MachinePhase::Booting { deadline: NOW });
    let opened = |records: &Records, node: &str| {
        let desired = records.on(node);
        desired.networks.iter().flat_map(|n| n.publications.clone()).collect::<Vec<_>>()
    };
    let here = opened(&records, "n1");
    assert_eq!(addresses(&here[0].backends, |at| *at), [2]);
    let wake = here[0].wake.as_ref().unwrap();
    let app = (project("blue"), "app".parse().unwrap());
    assert_eq!(of_wake_label(wake.label.as_str()), Some(app));
    assert!(opened(&records, "n2").is_empty());
    assert_eq!(opened(&records, "n3").len(), 1);
    // The other node of the host takes over.
    let records = records.lose("n1");
    assert_eq!(opened(&records, "n2").len(), 1);
}

/// Or who is not let in would start machines.
#[test]
fn the_groups_of_a_service_are_known_before_it_has_a_machine() {
    let named = |name: &str| Peer::Group(name.parse().unwrap());
    let records = Records::default()
        .node(1, 1)
        .network("blue", 5000, |_| {})
        .service("blue", "app", &["web", "lost"])
        .group("blue", "web", &[named("store")])
        .group("blue", "store", &[])
        .group("blue", "other", &[])
        .publish("blue", 8080, PublishTarget::Service("app".parse().unwrap()));
    let desired = records.on("n1");
    let network = &desired.networks[0];
    let names: Vec<&str> = network.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["store", "web"]);
    let wake = network.publications[0].wake.as_ref().unwrap();
    assert_eq!(wake.groups, ["web".parse().unwrap()]);
    assert_eq!(desired.check().1, []);
}

#[test]
fn a_network_leaves_by_its_exit_as_long_as_that_lives() {
    let exit = model::Exit { node: "n3".parse().unwrap(), address: "192.0.2.9".parse().ok() };
    let records = Records::default()
        .node(1, 1)
        .node(2, 2)
        .node(3, 3)
        .network("blue", 5000, |spec| spec.exit = Some(exit))
        .service("blue", "app", &[])
        .machine("blue", "app-1", "n1", 2, ready());
    let way = |records: &Records, node: &str| match records.on(node).networks.first() {
        Some(network) => match network.kind {
            net::NetworkKind::Nat(exit) => Some(exit),
            _ => None,
        },
        None => None,
    };
    let three = net::NodeNumber::new(3).unwrap();
    assert_eq!(way(&records, "n1"), Some(net::Exit::Via(three)));
    assert_eq!(way(&records, "n2"), None);
    assert_eq!(way(&records, "n3"), Some(net::Exit::Here { source: "192.0.2.9".parse().ok() }));
    let records = records.lose("n3");
    assert_eq!(way(&records, "n1"), Some(net::Exit::Here { source: None }));
}

#[test]
fn a_network_without_an_exit_leaves_by_its_projects() {
    let at = |node: &str, last: u8| model::Exit {
        node: node.parse().unwrap(),
        address: Some(Ipv4Addr::new(192, 0, 2, last)),
    };
    let records = Records::default()
        .node(1, 1)
        .node(2, 2)
        .project("blue", Some(at("n2", 7)))
        .project("red", Some(at("n2", 8)))
        .network("blue", 5000, |_| {})
        .network("red", 5001, |spec| spec.exit = Some(at("n1", 9)))
        .service("blue", "app", &[])
        .service("red", "app", &[])
        .machine("blue", "app-1", "n1", 2, ready())
        .machine("red", "app-2", "n1", 2, ready());
    let ways = |node: &str| -> Vec<net::NetworkKind> {
        records.on(node).networks.iter().map(|network| network.kind.clone()).collect()
    };
    let two = net::NodeNumber::new(2).unwrap();
    let here = |last: u8| {
        let source = Some(Ipv4Addr::new(192, 0, 2, last));
        net::NetworkKind::Nat(net::Exit::Here { source })
    };
    assert_eq!(ways("n1"), [net::NetworkKind::Nat(net::Exit::Via(two)), here(9)]);
    assert_eq!(ways("n2"), [here(7)]);
}

#[test]
fn what_did_not_change_is_the_same() {
    let records = Records::default()
        .node(1, 1)
        .network("blue", 5000, |_| {})
        .network("red", 5001, |spec| spec.ipv6 = Some("fd00:20::/64".parse().unwrap()))
        .service("blue", "app", &[])
        .service("red", "app", &[])
        .machine("blue", "app-1", "n1", 2, ready())
        .machine("red", "app-2", "n1", 2, ready());
    let before = records.on("n1");
    let records = records.machine("red", "app-3", "n1", 3, ready());
    let name: NodeName = "n1".parse().unwrap();
    let after = desired(&records.0, Own { name: &name, underlay: before.underlay }, &before);
    assert!(Arc::ptr_eq(&before.networks[0], &after.networks[0]));
    assert!(!Arc::ptr_eq(&before.networks[1], &after.networks[1]));
}
