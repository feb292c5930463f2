//! Nodes as network namespaces of one host, and machines as namespaces behind interfaces that carry
//! a tap's name: a whole TCP/IP for each, without an emulator. Needs root.

#![allow(dead_code, reason = "each test file uses a part")]

use anyhow::{Context, Result, bail, ensure};
use skein_model::MacAddr;
use skein_net::{
    Desired, DesiredNetwork, DhcpSettings, DnsSettings, Exit, GroupName, Ipv6Range, LocalPort,
    NetworkEvent, NetworkKind, NetworkName, NodeNetworks, NodeNetworksConfig, NodeNumber,
    OtherNames, Peers, PortLimits, RemotePort, Rule, RuleGroup, Underlay, VXLAN_PORT_DEFAULT, Vni,
    open_wire_key,
};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Runs a command of the test bed; its output, or what it complained about.
pub(crate) fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("a command")?;
    let output = Command::new(program).args(words).output().context(line.to_owned())?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `work` on a thread inside a namespace.
pub(crate) fn inside<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).expect("a namespace");
    let entered = move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("entering works");
        work()
    };
    std::thread::spawn(entered).join().expect("the thread inside does not panic")
}

/// A namespace that goes with its owner.
#[derive(Debug)]
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    fn new(name: String) -> Result<Self> {
        run(&format!("ip netns add {name}"))?;
        let namespace = Self(name);
        run(&format!("ip -n {} link set lo up", namespace.0))?;
        Ok(namespace)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run(&format!("ip netns delete {}", self.0));
    }
}

/// One node.
pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    pub(crate) networks: Option<NodeNetworks>,
    pub(crate) events: mpsc::Receiver<NetworkEvent>,
    pub(crate) underlay: Underlay,
    pub(crate) group: NetworkName,
    /// The folder of its secret, if it encrypts.
    folder: Option<tempfile::TempDir>,
}

impl Node {
    /// The file of its secret.
    pub(crate) fn wire_key(&self) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.path().join("wire.key"))
    }

    /// Has it encrypt from its next start on.
    pub(crate) fn encrypt(&mut self) -> Result<()> {
        self.folder = Some(tempfile::tempdir()?);
        self.underlay.wire = Some(open_wire_key(&self.wire_key().context("a folder")?)?);
        Ok(())
    }

    pub(crate) fn networks(&self) -> &NodeNetworks {
        self.networks.as_ref().expect("the node runs")
    }

    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.networks = None;
        let (sender, events) = mpsc::channel(64);
        self.events = events;
        let key = self.wire_key();
        self.networks = Some(start(&self.group, &self.namespace.0, key, sender).await?);
        Ok(())
    }
}

async fn start(
    group: &NetworkName,
    namespace: &str,
    wire_key: Option<PathBuf>,
    events: mpsc::Sender<NetworkEvent>,
) -> Result<NodeNetworks> {
    let config = NodeNetworksConfig {
        group: group.clone(),
        underlay: Some(format!("/run/netns/{namespace}").into()),
        resolvers: vec![SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 254), 53)],
        wire_key,
        events: Some(events),
    };
    Ok(NodeNetworks::start(config).await?)
}

/// Nodes on one wire, 192.0.2.0/24, with the world at .254.
pub(crate) struct Bed {
    pub(crate) nodes: Vec<Node>,
    pub(crate) world: Namespace,
    prefix: String,
    machines: AtomicU32,
}

impl Bed {
    pub(crate) async fn new(count: u16) -> Result<Self> {
        static BEDS: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let prefix = format!("t{pid}x{}", BEDS.fetch_add(1, Ordering::Relaxed));
        remove_those_of_dead_tests();
        let world = Namespace::new(format!("skbed-{prefix}-w"))?;
        let w = &world.0;
        run(&format!("ip -n {w} link add wire type bridge"))?;
        run(&format!("ip -n {w} addr add 192.0.2.254/24 dev wire"))?;
        run(&format!("ip -n {w} link set wire up"))?;
        let mut nodes = Vec::new();
        for number in 1..=count {
            let namespace = Namespace::new(format!("skbed-{prefix}-n{number}"))?;
            let n = &namespace.0;
            run(&format!("ip -n {w} link add n{number} type veth peer name eth0 netns {n}"))?;
            run(&format!("ip -n {w} link set n{number} master wire up"))?;
            run(&format!("ip -n {n} addr add 192.0.2.{number}/24 dev eth0"))?;
            run(&format!("ip -n {n} link set eth0 up"))?;
            run(&format!("ip -n {n} route add default via 192.0.2.254"))?;
            let address = Ipv4Addr::new(192, 0, 2, number.try_into()?);
            let number = NodeNumber::new(number).context("a number")?;
            let underlay = Underlay { number, address, vxlan_port: VXLAN_PORT_DEFAULT, wire: None };
            let group: NetworkName = format!("test-{prefix}-n{}", number.get()).parse()?;
            let (sender, events) = mpsc::channel(64);
            let networks = Some(start(&group, n, None, sender).await?);
            nodes.push(Node { namespace, networks, events, underlay, group, folder: None });
        }
        Ok(Self { nodes, world, prefix, machines: AtomicU32::new(0) })
    }

    /// Nodes that encrypt what they send each other.
    pub(crate) async fn encrypted(count: u16) -> Result<Self> {
        let mut bed = Self::new(count).await?;
        for node in &mut bed.nodes {
            node.encrypt()?;
            node.restart().await?;
        }
        Ok(bed)
    }

    /// Puts all nodes on the first one's host: one namespace, one address, and a port for each.
    pub(crate) async fn on_one_host(count: u16) -> Result<Self> {
        let bed = Self::new(count).await?;
        bed.move_to_one_host().await
    }

    pub(crate) async fn move_to_one_host(self) -> Result<Self> {
        let mut bed = self;
        let host = bed.nodes[0].namespace.0.clone();
        for (node, port) in bed.nodes.iter_mut().zip(10_240..) {
            let (sender, events) = mpsc::channel(64);
            node.events = events;
            node.networks = Some(start(&node.group, &host, node.wire_key(), sender).await?);
            node.underlay.address = Ipv4Addr::LOCALHOST;
            node.underlay.vxlan_port = port;
        }
        Ok(bed)
    }

    /// What node `at` should have, given all ports of a network with the node of each.
    pub(crate) fn desired(&self, at: usize, plans: &[&Plan]) -> Desired {
        let underlay = self.nodes[at].underlay;
        let mut desired = Desired::new(underlay);
        let others = self.nodes.iter().map(|node| node.underlay);
        desired.peers = others.filter(|other| other.number != underlay.number).collect();
        desired.networks = plans.iter().map(|plan| Arc::new(plan.on(underlay.number))).collect();
        desired
    }

    pub(crate) async fn apply(&self, plans: &[&Plan]) -> Result<()> {
        for (at, node) in self.nodes.iter().enumerate() {
            let applied = node.networks().apply(self.desired(at, plans)).await;
            ensure!(applied.is_whole(), "node {at}: {applied:?}");
        }
        Ok(())
    }

    /// A machine at a port, with its address or without.
    pub(crate) async fn machine(&self, at: usize, plan: &Plan, index: u8) -> Result<Machine> {
        let machine = self.bare_machine(at, plan, index).await?;
        let (n, network) = (&machine.namespace.0, &plan.network);
        let address = plan.address(index);
        let length = network.cidr.prefix_len();
        run(&format!("ip -n {n} addr add {address}/{length} dev eth0"))?;
        run(&format!("ip -n {n} route add default via {}", network.gateway))?;
        if let (Some(v6), Some(range)) = (plan.address6(index), network.ipv6) {
            run(&format!("ip -n {n} addr add {v6}/128 dev eth0 nodad"))?;
            let gateway = range.gateway;
            run(&format!("ip -n {n} -6 route replace {gateway}/128 dev eth0"))?;
            run(&format!("ip -n {n} -6 route replace default via {gateway} dev eth0"))?;
        }
        Ok(machine)
    }

    pub(crate) async fn bare_machine(&self, at: usize, plan: &Plan, index: u8) -> Result<Machine> {
        let number = self.machines.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace::new(format!("skbed-{}-m{number}", self.prefix))?;
        let node = &self.nodes[at];
        let name = node.networks().name(plan.network.vni);
        let inner = name.namespace();
        let tap = plan.tap(&name, index);
        let mac = plan.mac(index);
        let (m, mtu) = (&namespace.0, plan.network.mtu);
        run(&format!(
            "ip -n {m} link add eth0 mtu {mtu} address {mac} type veth peer name {tap} netns {inner}"
        ))?;
        run(&format!("ip -n {m} link set eth0 up"))?;
        // The node takes an interface for a tap of its own by name and alias.
        let peers = if plan.isolated.contains(&index) { "isolated" } else { "reachable" };
        let alias = format!("{mac} {peers} machine-{index}");
        let status = Command::new("ip")
            .args(["-n", &inner, "link", "set", &tap, "alias", &alias])
            .status()?;
        ensure!(status.success(), "setting the alias of {tap}");
        attached(&inner, &tap).await?;
        Ok(Machine { namespace, address: plan.address(index), address6: plan.address6(index) })
    }

    /// Takes a machine's plug from one node to another, which knows its port already.
    pub(crate) async fn carry(&self, plan: &Plan, index: u8, from: usize, to: usize) -> Result<()> {
        let [here, there] = [from, to].map(|at| self.nodes[at].networks().name(plan.network.vni));
        let (old, new) = (plan.tap(&here, index), plan.tap(&there, index));
        let (inner, outer) = (here.namespace(), there.namespace());
        run(&format!("ip -n {inner} link set {old} netns {outer} name {new}"))?;
        attached(&outer, &new).await
    }

    /// Ends all networks; what the bed made goes by itself.
    pub(crate) async fn finish(mut self) -> Result<()> {
        for node in &mut self.nodes {
            if let Some(networks) = node.networks.take() {
                networks.remove().await?;
            }
        }
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // After a failed test: the networks are still there.
        for node in &mut self.nodes {
            node.networks = None;
        }
        remove_networks(&format!("test-{}-n", self.prefix));
    }
}

/// Waits until a node has made an interface a port.
async fn attached(inner: &str, tap: &str) -> Result<()> {
    let done = || async {
        let link = run(&format!("ip -n {inner} -o link show {tap}")).ok()?;
        (link.contains("master skbr0") && link.contains("state UP")).then_some(())
    };
    super::eventually("the node takes the port", done).await
}

fn remove_networks(prefix: &str) {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.strip_prefix("skein-").is_some_and(|name| name.starts_with(prefix)) {
            let _ = run(&format!("ip netns delete {file}"));
        }
    }
}

/// A test that was killed could not clean up; names tell its process id.
fn remove_those_of_dead_tests() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let rest = file.strip_prefix("skbed-t").or_else(|| file.strip_prefix("skein-test-t"));
        let pid = rest.and_then(|rest| rest.split('x').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = run(&format!("ip netns delete {file}"));
        }
    }
}

/// A machine without an emulator.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) namespace: Namespace,
    pub(crate) address: Ipv4Addr,
    pub(crate) address6: Option<Ipv6Addr>,
}

impl Machine {
    pub(crate) fn name(&self) -> &str {
        &self.namespace.0
    }

    /// A TCP connection to `to`, with which a byte can be sent there and back.
    pub(crate) fn dial(&self, to: impl Into<SocketAddr>) -> std::io::Result<std::net::TcpStream> {
        let to = to.into();
        let stream = inside(&self.namespace.0, move || std::net::TcpStream::connect(to))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(stream)
    }

    /// Whether a TCP connection to `to` comes about.
    pub(crate) fn connects(&self, to: impl Into<SocketAddr>) -> bool {
        let to = to.into();
        let wait = Duration::from_millis(400);
        inside(&self.namespace.0, move || std::net::TcpStream::connect_timeout(&to, wait).is_ok())
    }

    /// Listens for TCP, and echoes.
    pub(crate) fn echo(&self, port: u16) {
        let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = inside(&self.namespace.0, move || std::net::TcpListener::bind(at));
        let listener = listener.expect("the port is free");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                std::thread::spawn(move || {
                    let Ok(mut writer) = stream.try_clone() else { return };
                    let _ = std::io::copy(&mut stream, &mut writer);
                });
            }
        });
    }
}

/// A network, and on which node each of its machines runs.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) network: DesiredNetwork,
    /// By index of the machine: the node's position and its groups.
    pub(crate) machines: Vec<(u8, u16, Vec<GroupName>)>,
    pub(crate) limits: Vec<(u8, PortLimits)>,
    pub(crate) isolated: Vec<u8>,
    /// The node by which it leaves.
    pub(crate) exit: Option<u16>,
    /// Under which address; that of the node unless given.
    pub(crate) exit_address: Option<Ipv4Addr>,
}

impl Plan {
    /// 10.20.0.0/24 and fd00:20::/64 of kind NAT, without machines; names end in web.PROJECT.internal.
    pub(crate) fn new(vni: u32, project: &str) -> Self {
        let prefix = "fd00:20::/64".parse().expect("a range");
        let ipv6 = Ipv6Range { prefix, gateway: "fd00:20::1".parse().expect("an address") };
        let network = DesiredNetwork {
            vni: Vni::new(vni).expect("an identifier"),
            kind: NetworkKind::Isolated,
            cidr: "10.20.0.0/24".parse().expect("a range"),
            gateway: Ipv4Addr::new(10, 20, 0, 1),
            ipv6: Some(ipv6),
            mtu: 1450,
            ports: Vec::new(),
            remote_ports: Vec::new(),
            groups: Vec::new(),
            dhcp: DhcpSettings::default(),
            dns: DnsSettings {
                domain: format!("web.{project}.internal"),
                search: Vec::new(),
                records: Vec::new(),
                others: OtherNames::Forward,
            },
            publications: Vec::new(),
            gateway_services: Vec::new(),
        };
        let (machines, limits, isolated) = (Vec::new(), Vec::new(), Vec::new());
        Self { network, machines, limits, isolated, exit: None, exit_address: None }
    }

    /// Puts machine `index` on node `at` (from 1) with these groups.
    pub(crate) fn with(mut self, index: u8, at: u16, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|group| group.parse().expect("a group")).collect();
        self.machines.push((index, at, groups));
        self
    }

    /// Moves machine `index` to node `at`.
    pub(crate) fn moved(mut self, index: u8, at: u16) -> Self {
        for (of, node, _) in &mut self.machines {
            if *of == index {
                *node = at;
            }
        }
        self
    }

    pub(crate) fn group(mut self, name: &str, rules: Vec<Rule>) -> Self {
        self.set_group(name, rules);
        self
    }

    pub(crate) fn set_group(&mut self, name: &str, rules: Vec<Rule>) {
        let name: GroupName = name.parse().expect("a group");
        self.network.groups.retain(|group| group.name != name);
        self.network.groups.push(RuleGroup { name, rules });
    }

    pub(crate) fn address(&self, index: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 20, 0, index)
    }

    pub(crate) fn address6(&self, index: u8) -> Option<Ipv6Addr> {
        self.network.ipv6.map(|_| Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, u16::from(index)))
    }

    pub(crate) fn mac(&self, index: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, index]).expect("a MAC address")
    }

    fn tap(&self, name: &NetworkName, index: u8) -> String {
        skein_net::InterfaceName::of_port(name, self.address(index)).as_str().to_owned()
    }

    /// What node `number` should have of it.
    pub(crate) fn on(&self, number: NodeNumber) -> DesiredNetwork {
        let mut network = self.network.clone();
        if let Some(exit) = self.exit {
            let exit = NodeNumber::new(exit).expect("a node");
            let here = Exit::Here { source: self.exit_address };
            network.kind = NetworkKind::Nat(if exit == number { here } else { Exit::Via(exit) });
        }
        for (index, at, groups) in &self.machines {
            let node = NodeNumber::new(*at).expect("a node");
            let (address, ipv6) = (self.address(*index), self.address6(*index));
            let (mac, groups) = (self.mac(*index), groups.clone());
            if node != number {
                network.remote_ports.push(RemotePort { address, ipv6, mac, groups, node });
                continue;
            }
            let limits = self.limits.iter().find(|(of, _)| of == index);
            network.ports.push(LocalPort {
                address,
                ipv6,
                mac,
                label: format!("machine-{index}").parse().expect("a label"),
                host_name: format!("m{index}"),
                groups,
                peers: match self.isolated.contains(index) {
                    true => Peers::Isolated,
                    false => Peers::Reachable,
                },
                limits: limits.map(|(_, limits)| *limits).unwrap_or_default(),
            });
        }
        network
    }
}
