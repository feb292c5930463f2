//! Two nodes as network namespaces, machines as namespaces behind interfaces with a tap's name, and the same machines
//! on bare bridges.

use super::arp::{Question, first_answer};
use super::{names, whole};
use crate::error::BenchError;
use skein_model::MacAddr;
use skein_net::{
    Desired, DesiredNetwork, DhcpSettings, Direction, DnsSettings, GroupName, InterfaceName,
    LocalPort, Log, NetworkKind, NetworkName, NodeNetworks, NodeNetworksConfig, NodeNumber,
    OtherNames, Peers, Port, PortLimits, PortRange, RemotePort, Rule, RuleGroup, RuleId, RulePeer,
    RuleProtocol, Underlay, VXLAN_PORT_DEFAULT, Vni,
};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of one write of a stream.
const CHUNK: usize = 128 << 10;
/// Bytes of an exchange.
const PING: usize = 64;
/// How long an interface may take to be taken.
const PATIENCE: Duration = Duration::from_secs(20);
/// The network's gateway.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The machine that is plugged in and out.
const NEWCOMER: u16 = 500;
/// The first of those that are plugged in besides.
const CROWD: u16 = 1000;
/// What the lab's own namespaces are called, before the process id.
const LAB: &str = "skbench-";
/// What its nodes are called, before the process id.
const NODES: &str = "bench-";

/// Namespaces that go with it.
struct Namespaces(Vec<String>);

impl Namespaces {
    fn add(&mut self, name: String) -> Result<String, BenchError> {
        run(&format!("ip netns add {name}"))?;
        self.0.push(name.clone());
        run(&format!("ip -n {name} link set lo up"))?;
        Ok(name)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = run(&format!("ip netns delete {name}"));
        }
    }
}

/// What is measured on.
pub(super) struct Lab {
    networks: Vec<NodeNetworks>,
    bases: Vec<Desired>,
    prefix: String,
    namespaces: Namespaces,
}

/// Two machines.
pub(super) struct Pair {
    from: String,
    to: String,
    address: Ipv4Addr,
}

/// Runs a command of the set-up.
fn run(line: &str) -> Result<String, BenchError> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output().map_err(BenchError::io(line))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BenchError::unexpected(format!("{line}: {why}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The one network of the lab.
fn network() -> Result<DesiredNetwork, BenchError> {
    let wrong = |_| BenchError::Bug;
    Ok(DesiredNetwork {
        vni: Vni::new(7).ok_or(BenchError::Bug)?,
        kind: NetworkKind::Isolated,
        cidr: "10.77.0.0/16".parse().map_err(wrong)?,
        gateway: GATEWAY,
        ipv6: None,
        mtu: 1450,
        ports: Vec::new(),
        remote_ports: Vec::new(),
        groups: vec![group("open", 100)],
        dhcp: DhcpSettings::default(),
        dns: DnsSettings {
            domain: "bench.internal".into(),
            search: Vec::new(),
            records: Vec::new(),
            others: OtherNames::Refuse,
        },
        publications: Vec::new(),
        gateway_services: Vec::new(),
    })
}

/// A group whose last rule lets everything in, so that a new connection meets all of them.
pub(super) fn group(name: &str, rules: u16) -> RuleGroup {
    let rule = |id: u16| {
        let protocol = match id + 1 == rules {
            true => RuleProtocol::Any,
            false => RuleProtocol::Udp(PortRange::single(1000 + id)),
        };
        let (id, direction) = (RuleId(u32::from(id)), Direction::Ingress);
        Rule { id, direction, protocol, peer: RulePeer::Any, log: Log::No }
    };
    let name: Result<GroupName, _> = name.parse();
    RuleGroup {
        name: name.unwrap_or_else(|_| unreachable!()),
        rules: (0..rules).map(rule).collect(),
    }
}

fn address(index: u16) -> Ipv4Addr {
    let [high, low] = (index + 256).to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

fn mac(index: u16) -> MacAddr {
    let [high, low] = index.to_be_bytes();
    MacAddr::new([2, 0, 0, 0, high, low]).unwrap_or_else(|_| unreachable!())
}

/// A port.
pub(super) fn desired_with(index: u16, groups: &[String]) -> LocalPort {
    LocalPort {
        address: address(index),
        ipv6: None,
        mac: mac(index),
        label: format!("machine-{index}").parse().unwrap_or_else(|_| unreachable!()),
        host_name: format!("m{index}"),
        groups: names(groups),
        peers: Peers::Reachable,
        limits: PortLimits::default(),
    }
}

impl Lab {
    pub(super) async fn new() -> Result<Self, BenchError> {
        remove_those_of_dead_benches();
        let prefix = format!("{LAB}{}", std::process::id());
        let (networks, bases) = (Vec::new(), Vec::new());
        let mut lab = Self { networks, bases, prefix, namespaces: Namespaces(Vec::new()) };
        match lab.build().await {
            Ok(()) => Ok(lab),
            Err(error) => {
                // The first failure is the one to tell.
                let _ = lab.end().await;
                Err(error)
            }
        }
    }

    async fn build(&mut self) -> Result<(), BenchError> {
        let node = |at: u16| format!("{}-n{at}", self.prefix);
        let hosts = [self.namespaces.add(node(1))?, self.namespaces.add(node(2))?];
        let [one, two] = &hosts;
        run(&format!("ip -n {one} link add eth0 type veth peer name eth0 netns {two}"))?;
        let mut underlays = Vec::new();
        for (at, host) in (1_u16..).zip(&hosts) {
            run(&format!("ip -n {host} addr add 192.0.2.{at}/24 dev eth0"))?;
            run(&format!("ip -n {host} link set eth0 up"))?;
            let number = NodeNumber::new(at).ok_or(BenchError::Bug)?;
            let address = Ipv4Addr::new(192, 0, 2, u8::try_from(at).unwrap_or(0));
            let vxlan_port = VXLAN_PORT_DEFAULT;
            underlays.push(Underlay { number, address, vxlan_port, wire: None });
            let group: Result<NetworkName, _> =
                format!("{NODES}{}-n{at}", std::process::id()).parse();
            let config = NodeNetworksConfig {
                group: group.map_err(|_| BenchError::Bug)?,
                underlay: Some(format!("/run/netns/{host}").into()),
                resolvers: Vec::new(),
                wire_key: None,
                events: None,
            };
            self.networks.push(NodeNetworks::start(config).await?);
        }
        for (at, own) in underlays.iter().enumerate() {
            let mut base = Desired::new(*own);
            base.peers = vec![underlays[1 - at]];
            self.bases.push(base);
        }
        for at in 0..2 {
            self.apply(at, self.of_node(at)?).await?;
        }
        self.machines().await?;
        self.bare(&hosts)
    }

    async fn apply(&self, at: usize, desired: Desired) -> Result<(), BenchError> {
        super::applied(&self.networks[at], desired).await.map(drop)
    }

    /// Machines 1 and 2 run on the first node, 3 on the second.
    fn of_node(&self, at: usize) -> Result<Desired, BenchError> {
        let mut network = network()?;
        for index in 1..=3 {
            let node = usize::from(index == 3);
            let port = desired_with(index, &["open".to_owned()]);
            if node == at {
                network.ports.push(port);
            } else {
                let (address, mac, groups) = (port.address, port.mac, port.groups);
                let node = self.bases[node].underlay.number;
                network.remote_ports.push(RemotePort { address, ipv6: None, mac, groups, node });
            }
        }
        Ok(whole(&self.bases[at], network))
    }

    async fn machines(&mut self) -> Result<(), BenchError> {
        for index in 1..=3_u16 {
            let node = &self.networks[usize::from(index == 3)];
            let name = node.name(Vni::new(7).ok_or(BenchError::Bug)?);
            let (inner, tap) = (name.namespace(), InterfaceName::of_port(&name, address(index)));
            let machine = self.namespaces.add(format!("{}-m{index}", self.prefix))?;
            let (mac, tap) = (mac(index), tap.as_str());
            run(&format!(
                "ip -n {machine} link add eth0 mtu 1450 address {mac} type veth peer name {tap} netns {inner}"
            ))?;
            run(&format!("ip -n {machine} addr add {}/16 dev eth0", address(index)))?;
            run(&format!("ip -n {machine} link set eth0 up"))?;
            let alias = format!("{mac} reachable machine-{index}");
            let set = Command::new("ip")
                .args(["-n", &inner, "link", "set", tap, "alias", &alias])
                .status();
            set.map_err(BenchError::io("naming a port"))?;
            let start = Instant::now();
            while !run(&format!("ip -n {inner} -o link show {tap}"))?.contains("master skbr0") {
                if start.elapsed() > PATIENCE {
                    return Err(BenchError::Deadline {
                        what: "taking a port".into(),
                        waited: PATIENCE,
                    });
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// The same three machines on bare bridges, joined by a bare tunnel.
    fn bare(&mut self, hosts: &[String; 2]) -> Result<(), BenchError> {
        for (at, host) in hosts.iter().enumerate() {
            let other = 2 - at;
            run(&format!(
                "ip -n {host} link add br0 type bridge forward_delay 0 mcast_snooping 0"
            ))?;
            run(&format!(
                "ip -n {host} link add vx0 mtu 1450 type vxlan id 99 local 192.0.2.{} remote 192.0.2.{other} dstport 8472",
                at + 1
            ))?;
            run(&format!("ip -n {host} link set vx0 master br0 up"))?;
            run(&format!("ip -n {host} link set br0 up"))?;
            // Bare means that no rule is looked at.
            for name in ["iptables", "ip6tables", "arptables"] {
                let key = format!("net.bridge.bridge-nf-call-{name}=0");
                run(&format!("ip netns exec {host} sysctl -q -w {key}"))?;
            }
        }
        for index in 1..=3_u16 {
            let host = &hosts[usize::from(index == 3)];
            let machine = self.namespaces.add(format!("{}-b{index}", self.prefix))?;
            run(&format!(
                "ip -n {machine} link add eth0 mtu 1450 type veth peer name m{index} netns {host}"
            ))?;
            run(&format!("ip -n {host} link set m{index} mtu 1450 master br0 up"))?;
            run(&format!("ip -n {machine} addr add {}/16 dev eth0", address(index)))?;
            run(&format!("ip -n {machine} link set eth0 up"))?;
        }
        Ok(())
    }

    fn pair(&self, kind: &str, to: u16) -> Pair {
        let name = |index: u16| format!("{}-{kind}{index}", self.prefix);
        Pair { from: name(1), to: name(to), address: address(to) }
    }

    /// On one node: ours, bare.
    pub(super) fn local(&self) -> [Pair; 2] {
        [self.pair("m", 2), self.pair("b", 2)]
    }

    /// On two nodes: ours, bare.
    pub(super) fn remote(&self) -> [Pair; 2] {
        [self.pair("m", 3), self.pair("b", 3)]
    }

    /// The first node.
    pub(super) fn networks(&self) -> &NodeNetworks {
        &self.networks[0]
    }

    /// What the first node has between measurements of rules.
    pub(super) fn plain(&self) -> Desired {
        self.with_network(|_| {})
    }

    /// The network with other ports.
    pub(super) fn with_network(&self, change: impl FnOnce(&mut DesiredNetwork)) -> Desired {
        let mut network = network().unwrap_or_else(|_| unreachable!());
        change(&mut network);
        whole(&self.bases[0], network)
    }

    /// What the first node has with `others` ports more.
    fn crowded(&self, others: u16) -> Result<Desired, BenchError> {
        let mut desired = self.of_node(0)?;
        let network = Arc::make_mut(&mut desired.networks[0]);
        let ports = (CROWD..CROWD + others).map(|at| desired_with(at, &["open".to_owned()]));
        network.ports.extend(ports);
        Ok(desired)
    }

    /// Plugs in `others` ports, which nobody uses.
    pub(super) async fn crowd(&self, others: u16) -> Result<Vec<Port>, BenchError> {
        self.apply(0, self.crowded(others)?).await?;
        let vni = Vni::new(7).ok_or(BenchError::Bug)?;
        let mut ports = Vec::new();
        for at in CROWD..CROWD + others {
            ports.push(self.networks[0].plug(vni, address(at)).await?);
        }
        Ok(ports)
    }

    /// Unplugs them.
    pub(super) async fn disperse(&self, ports: Vec<Port>) -> Result<(), BenchError> {
        // The kernel waits for each tap that goes.
        tokio::task::spawn_blocking(move || drop(ports)).await.map_err(|_| BenchError::Bug)?;
        self.apply(0, self.of_node(0)?).await
    }

    /// How long one port takes, from desired to answered, in a network that has `others` more.
    pub(super) async fn plug(&self, others: u16) -> Result<Duration, BenchError> {
        let mut desired = self.crowded(others)?;
        let vni = Vni::new(7).ok_or(BenchError::Bug)?;
        let network = Arc::make_mut(&mut desired.networks[0]);
        network.ports.push(desired_with(NEWCOMER, &["open".to_owned()]));
        let start = Instant::now();
        self.apply(0, desired).await?;
        let port = self.networks[0].plug(vni, address(NEWCOMER)).await?;
        let asked = port.tap.try_clone().map_err(BenchError::io("using a tap"))?;
        let (mac, address) = (mac(NEWCOMER), address(NEWCOMER));
        first_answer(asked, Question { mac, address, gateway: GATEWAY }, PATIENCE).await?;
        let took = start.elapsed();
        self.networks[0].unplug(vni, address).await?;
        drop(port);
        self.apply(0, self.crowded(others)?).await?;
        Ok(took)
    }

    /// Removes everything; the first failure is told.
    pub(super) async fn end(mut self) -> Result<(), BenchError> {
        let mut ended = Ok(());
        for networks in std::mem::take(&mut self.networks) {
            ended = ended.and(networks.remove().await.map_err(BenchError::from));
        }
        ended
    }
}

/// A bench that was killed could not clean up; names tell its process id.
fn remove_those_of_dead_benches() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let inner = format!("skein-{NODES}");
        let rest = file.strip_prefix(LAB).or_else(|| file.strip_prefix(&inner));
        let pid = rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = run(&format!("ip netns delete {file}"));
        }
    }
}

impl Pair {
    /// Nanoseconds per KiB of one TCP stream.
    pub(super) async fn stream(&self, window: Duration) -> Result<f64, BenchError> {
        self.connected(move |mut sender, mut receiver| {
            let reader = std::thread::spawn(move || {
                let mut buffer = vec![0; CHUNK];
                let (start, mut bytes) = (Instant::now(), 0_usize);
                while let Ok(count @ 1..) = receiver.read(&mut buffer) {
                    bytes += count;
                }
                (bytes, start.elapsed())
            });
            let (chunk, start) = (vec![7; CHUNK], Instant::now());
            while start.elapsed() < window {
                sender.write_all(&chunk)?;
            }
            drop(sender);
            let (bytes, took) = reader.join().map_err(|_| io::ErrorKind::Other)?;
            Ok(took.as_nanos() as f64 / (bytes as f64 / 1024.0))
        })
        .await
    }

    /// Microseconds of an exchange, the median of `count`.
    pub(super) async fn round_trip(&self, count: u32) -> Result<f64, BenchError> {
        self.connected(move |mut client, mut server| {
            let echo = std::thread::spawn(move || {
                let mut ping = [0; PING];
                while server.read_exact(&mut ping).is_ok() && server.write_all(&ping).is_ok() {}
            });
            let mut times = Vec::new();
            for _ in 0..count {
                let (mut ping, start) = ([7; PING], Instant::now());
                client.write_all(&ping)?;
                client.read_exact(&mut ping)?;
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            drop(client);
            echo.join().map_err(|_| io::ErrorKind::Other)?;
            Ok(crate::stats::Sample::new(times).median())
        })
        .await
    }

    async fn connected(
        &self,
        work: impl FnOnce(TcpStream, TcpStream) -> io::Result<f64> + Send + 'static,
    ) -> Result<f64, BenchError> {
        let (from, to, address) = (self.from.clone(), self.to.clone(), self.address);
        let measured = tokio::task::spawn_blocking(move || {
            let listener = inside(&to, move || TcpListener::bind((address, 0)))?;
            let at: SocketAddr = listener.local_addr()?;
            let client = inside(&from, move || TcpStream::connect(at))?;
            let (server, _) = listener.accept()?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            work(client, server)
        });
        measured.await.map_err(|_| BenchError::Bug)?.map_err(BenchError::io("two machines talking"))
    }
}

/// Opens a socket on a thread inside a namespace.
fn inside<T: Send + 'static>(
    namespace: &str,
    open: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let file = std::fs::File::open(format!("/run/netns/{namespace}"))?;
    let body = move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        open()
    };
    std::thread::spawn(body).join().map_err(|_| io::ErrorKind::Other)?
}
