//! Addresses, names and ways out, as real clients ask for them.

use crate::common::bed::{Bed, Machine, Plan, inside, run};
use crate::common::eventually;
use crate::{allow, tcp};
use anyhow::{Context as _, Result, ensure};
use skein_net::{
    Balance, Direction, DnsRecord, Payload, PortRange, Probe, Publication, Route, RulePeer,
    RuleProtocol, Transport, trace,
};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

fn has(program: &str) -> bool {
    std::process::Command::new(program).arg("--help").output().is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_distributions_get_leases() -> Result<()> {
    let bed = Bed::new(1).await?;
    let mut plan = Plan::new(40, "blue").with(11, 1, &[]).with(12, 1, &[]);
    let route = Route { to: "10.0.0.0/8".parse()?, via: Ipv4Addr::new(10, 20, 0, 9) };
    plan.network.dhcp.routes = vec![route];
    bed.apply(&[&plan]).await?;
    let directory = tempfile::tempdir()?;
    if has("udhcpc") {
        let machine = bed.bare_machine(0, &plan, 11).await?;
        let script = directory.path().join("udhcpc.sh");
        let out = directory.path().join("lease");
        std::fs::write(
            &script,
            format!("#!/bin/sh\n[ \"$1\" = bound ] && env > {}\n", out.display()),
        )?;
        run(&format!("chmod +x {}", script.display()))?;
        let m = machine.name();
        run(&format!(
            "ip netns exec {m} udhcpc -i eth0 -n -q -f -t 5 -T 1 -s {} -O mtu -O search -O staticroutes",
            script.display()
        ))?;
        let lease = std::fs::read_to_string(&out)?;
        for line in [
            "ip=10.20.0.11",
            "router=10.20.0.1",
            "mtu=1450",
            "hostname=m11",
            "dns=10.20.0.1",
            "domain=web.blue.internal",
            "serverid=10.20.0.1",
            "staticroutes=10.0.0.0/8 10.20.0.9 0.0.0.0/0 10.20.0.1",
        ] {
            ensure!(lease.contains(line), "{line} is not in {lease}");
        }
    }
    if has("dhclient") {
        let machine = bed.bare_machine(0, &plan, 12).await?;
        let (m, d) = (machine.name(), directory.path().display());
        run(&format!(
            "ip netns exec {m} dhclient -1 -4 -sf /bin/true -lf {d}/4.leases -pf {d}/4.pid eth0"
        ))?;
        let lease = std::fs::read_to_string(directory.path().join("4.leases"))?;
        let known_free = || async {
            let addresses = run(&format!("ip -n {m} -6 addr show eth0")).ok()?;
            (!addresses.contains("tentative")).then_some(())
        };
        eventually("the link-local address is known to be free", known_free).await?;
        let six = run(&format!(
            "ip netns exec {m} timeout 20 dhclient -1 -6 -sf /bin/true -lf {d}/6.leases -pf {d}/6.pid eth0"
        ));
        for pid in ["4.pid", "6.pid"] {
            if let Ok(pid) = std::fs::read_to_string(directory.path().join(pid)) {
                let _ = run(&format!("kill {}", pid.trim()));
            }
        }
        ensure!(lease.contains("fixed-address 10.20.0.12"), "{lease}");
        six?;
        let lease = std::fs::read_to_string(directory.path().join("6.leases"))?;
        ensure!(lease.contains("iaaddr fd00:20::c"), "{lease}");
    }
    bed.finish().await
}

/// The client of systemd, for a network of `eth0` alone. It has mounts of its own: without the host's configuration, and
/// with a /sys that can only be read, by which it knows that no device manager tells it when an interface is ready.
const NETWORKD: &str = "mount --make-rprivate / && mount -t tmpfs none /run/systemd && mkdir /run/systemd/network \
    && printf '[Match]\nName=eth0\n[Network]\nDHCP=yes\n' > /run/systemd/network/eth0.network \
    && mount -o remount,bind,ro /sys && exec /lib/systemd/systemd-networkd";

struct Client(std::process::Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_systemd_gets_leases() -> Result<()> {
    if !std::path::Path::new("/lib/systemd/systemd-networkd").exists() {
        return Ok(());
    }
    let bed = Bed::new(1).await?;
    let plan = Plan::new(43, "blue").with(11, 1, &[]);
    bed.apply(&[&plan]).await?;
    let machine = bed.bare_machine(0, &plan, 11).await?;
    let m = machine.name();
    let _client = Client(
        std::process::Command::new("ip")
            .args(["netns", "exec", m, "unshare", "--mount", "sh", "-c", NETWORKD])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?,
    );
    let leased = || async {
        let addresses = run(&format!("ip -n {m} addr show eth0")).ok()?;
        let routes = run(&format!("ip -n {m} route")).ok()?;
        let routes6 = run(&format!("ip -n {m} -6 route")).ok()?;
        let both = addresses.contains("10.20.0.11/24") && addresses.contains("fd00:20::b/128");
        let ways =
            routes.contains("default via 10.20.0.1") && routes6.contains("default via fe80::1");
        (both && ways).then_some(())
    };
    eventually("addresses and routes of both families", leased).await?;
    bed.finish().await
}

/// Which addresses has a name?
fn question(name: &str) -> Vec<u8> {
    let mut question = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).expect("short"));
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    question
}

/// Asks for addresses of a name; the answer's code and bytes.
fn ask(from: &str, server: Ipv4Addr, name: &str) -> Option<(u8, Vec<u8>)> {
    let question = question(name);
    inside(from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        socket.send_to(&question, (server, 53)).ok()?;
        let mut answer = vec![0; 512];
        let count = socket.recv(&mut answer).ok()?;
        answer.truncate(count);
        Some((answer[3] & 15, answer))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_the_network_resolve_and_others_are_passed_on() -> Result<()> {
    let bed = Bed::new(1).await?;
    let mut plan = Plan::new(41, "blue").with(11, 1, &[]);
    let address = Ipv4Addr::new(10, 20, 0, 12);
    plan.network.dns.records =
        vec![DnsRecord { name: "db.web.blue.internal".into(), addresses: vec![address.into()] }];
    bed.apply(&[&plan]).await?;
    let machine = bed.machine(0, &plan, 11).await?;
    let (m, gateway) = (machine.name(), plan.network.gateway);
    let (code, answer) = ask(m, gateway, "DB.web.blue.internal").expect("an answer");
    ensure!(code == 0 && answer.ends_with(&address.octets()), "{answer:x?}");
    let (code, _) = ask(m, gateway, "nobody.web.blue.internal").expect("an answer");
    ensure!(code == 3, "an unknown name: {code}");
    // The node's resolver is the world's end of the wire.
    let resolver = inside(&bed.world.0, || UdpSocket::bind("192.0.2.254:53"))?;
    let thread = std::thread::spawn(move || {
        let mut question = [0; 512];
        let (count, from) = resolver.recv_from(&mut question).expect("a question");
        let mut answer = question[..count].to_vec();
        answer[2] = 0x81;
        answer[3] = 0x85;
        resolver.send_to(&answer, from).expect("an answer");
    });
    let (code, _) = ask(m, gateway, "example.org").expect("an answer");
    ensure!(code == 5, "what the resolver says: {code}");
    thread.join().expect("the resolver does not panic");
    bed.finish().await
}

/// The code of the answer to a question over TCP.
fn ask_tcp(from: &str, server: Ipv4Addr, name: &str) -> Option<u8> {
    let question = question(name);
    inside(from, move || {
        let wait = Duration::from_secs(8);
        let mut stream = TcpStream::connect_timeout(&(server, 53).into(), wait).ok()?;
        stream.set_read_timeout(Some(wait)).ok()?;
        let length = u16::try_from(question.len()).ok()?.to_be_bytes();
        stream.write_all(&[&length[..], &question].concat()).ok()?;
        let mut answer = [0; 2 + 12];
        stream.read_exact(&mut answer).ok()?;
        Some(answer[2 + 3] & 15)
    })
}

/// Answers by its code alone whoever asks for a name that begins with `good`, and nobody else, until it is stopped.
fn resolve(socket: UdpSocket, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while !stop.load(Ordering::Relaxed) {
            let Ok((count, from)) = socket.recv_from(&mut question) else { continue };
            if question[..count].get(13..17) == Some(b"good") {
                (question[2], question[3]) = (0x81, 0x85);
                socket.send_to(&question[..count], from).expect("it listens");
            }
        }
    })
}

/// Asks for names that nobody answers, until it is stopped; counts what failed at once.
fn pester(
    socket: UdpSocket,
    server: Ipv4Addr,
    (stop, failed): (Arc<AtomicBool>, Arc<AtomicU32>),
) -> std::thread::JoinHandle<()> {
    socket.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
    std::thread::spawn(move || {
        let mut answer = [0; 512];
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let question = question(&format!("bad{number}.example"));
            socket.send_to(&question, (server, 53)).expect("a way");
            if socket.recv(&mut answer).is_ok() && answer[3] & 15 == 2 {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_names_nobody_answers_leaves_room_to_its_neighbour() -> Result<()> {
    let bed = Bed::new(1).await?;
    let plan = Plan::new(48, "blue").with(11, 1, &[]).with(12, 1, &[]);
    bed.apply(&[&plan]).await?;
    let (a, b) = (bed.machine(0, &plan, 11).await?, bed.machine(0, &plan, 12).await?);
    let gateway = plan.network.gateway;
    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let socket = inside(&bed.world.0, || UdpSocket::bind("192.0.2.254:53"))?;
    let resolver = resolve(socket, stop.clone());
    let socket = inside(a.name(), || UdpSocket::bind("0.0.0.0:0"))?;
    let pestering = pester(socket, gateway, (stop.clone(), failed.clone()));
    let many = || async { (failed.load(Ordering::Relaxed) > 100).then_some(()) };
    eventually("it is told that its share is taken", many).await?;
    for number in 0..20 {
        let answer = ask(b.name(), gateway, &format!("good{number}.example"));
        ensure!(answer.is_some_and(|(code, _)| code == 5), "the neighbour's question {number}");
    }
    // What the network knows itself is answered still.
    let known = ask(a.name(), gateway, "nobody.web.blue.internal");
    ensure!(known.is_some_and(|(code, _)| code == 3), "a name of the network");
    // Over TCP: no more than its share of connections.
    let held: Vec<_> = (0..200).map(|_| a.dial((gateway, 53))).collect();
    ensure!(ask_tcp(b.name(), gateway, "nobody.web.blue.internal") == Some(3), "over TCP");
    drop(held);
    stop.store(true, Ordering::Relaxed);
    for thread in [resolver, pestering] {
        thread.join().expect("no panic");
    }
    bed.finish().await
}

fn greet(listener: TcpListener) -> std::thread::JoinHandle<SocketAddr> {
    std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("a client");
        stream.write_all(b"hello").expect("it listens");
        from
    })
}

fn hears(from: &str, to: SocketAddr) -> bool {
    inside(from, move || {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(2)) else {
            return false;
        };
        let mut word = [0; 5];
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream.read_exact(&mut word).is_ok() && &word == b"hello"
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nat_network_reaches_out_and_is_reached() -> Result<()> {
    let mut bed = Bed::new(2).await?;
    let mut plan = Plan::new(42, "blue").group("web", vec![tcp(1, 80)]).with(11, 1, &["web"]).with(
        21,
        2,
        &["web"],
    );
    plan.exit = Some(1);
    plan.network.publications = vec![
        published(8081, vec![plan.address(11)], None),
        published(8082, vec![plan.address(21)], None),
        published(8090, Vec::new(), Some("sleeper")),
    ];
    plan.network.kind = skein_net::NetworkKind::Nat(skein_net::Exit::Here { source: None });
    let node_two = |plan: &Plan| {
        let mut plan = plan.clone();
        plan.network.publications.clear();
        plan
    };
    let apply = async |bed: &Bed, plan: &Plan| -> Result<()> {
        let two = node_two(plan);
        for (at, plan) in [(0, plan), (1, &two)] {
            let applied = bed.nodes[at].networks().apply(bed.desired(at, &[plan])).await;
            ensure!(applied.is_whole(), "{applied:?}");
        }
        Ok(())
    };
    apply(&bed, &plan).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(1, &plan, 21).await?;
    for machine in [&a, &b] {
        let world = greet(inside(&bed.world.0, || TcpListener::bind("192.0.2.254:7000"))?);
        ensure!(hears(machine.name(), "192.0.2.254:7000".parse()?), "out from {}", machine.address);
        let from = world.join().expect("the world does not panic");
        ensure!(from.ip() == std::net::IpAddr::from([192, 0, 2, 1]), "{from}");
    }
    let world = bed.world.0.clone();
    let at = |machine: &crate::common::bed::Machine| {
        inside(machine.name(), || TcpListener::bind("0.0.0.0:80"))
    };
    let served = greet(at(&a)?);
    ensure!(hears(&world, "192.0.2.1:8081".parse()?), "in to a machine of the node");
    ensure!(served.join().expect("no panic").ip() == std::net::IpAddr::from([192, 0, 2, 254]));
    let served = greet(at(&b)?);
    ensure!(hears(&world, "192.0.2.1:8082".parse()?), "in to a machine of another node");
    drop(served.join());
    // Nobody is there: the client waits, somebody is told, and then it is served.
    let served = greet(at(&b)?);
    let waiting = std::thread::spawn(move || hears(&world, "192.0.2.1:8090".parse().expect("one")));
    ensure!(woken(&mut bed, 0).await? == ("sleeper".to_owned(), 8090));
    plan.network.publications[2].backends = vec![plan.address(21)];
    apply(&bed, &plan).await?;
    ensure!(waiting.join().expect("no panic"), "the client that waited is served");
    drop(served.join());
    // A machine must not speak VXLAN to the nodes, nor reach them.
    let _listener = inside(&bed.nodes[0].namespace.0, || TcpListener::bind("192.0.2.1:7100"))?;
    ensure!(!a.connects(("192.0.2.1".parse::<Ipv4Addr>()?, 7100)), "a machine reached the node");
    // A trace says so, and what the gateway answers.
    let nodes = [bed.desired(0, &[&plan]), bed.desired(1, &[&node_two(&plan)])];
    let gateway = plan.network.gateway;
    let says = [
        (Ipv4Addr::new(192, 0, 2, 1), Payload::Port(Transport::Tcp, 7100), false),
        (Ipv4Addr::new(192, 0, 2, 254), Payload::Port(Transport::Tcp, 7000), true),
        (gateway, Payload::Port(Transport::Udp, 53), true),
        (gateway, Payload::Icmp(8), true),
        (gateway, Payload::Port(Transport::Tcp, 22), false),
    ];
    for (destination, payload, arrives) in says {
        let (source, destination) = (a.address.into(), destination.into());
        let found = trace(&nodes, plan.network.vni, &Probe { source, destination, payload });
        ensure!(found.arrives() == arrives, "to {destination}, {payload:?}: {found:?}");
    }
    bed.finish().await
}

/// TCP port 80 of the machines, opened as `port`.
fn published(port: u16, backends: Vec<Ipv4Addr>, wake: Option<&str>) -> Publication {
    Publication {
        address: None,
        protocol: Transport::Tcp,
        port,
        target_port: 80,
        backends,
        balance: Balance::Turns,
        wake: wake.map(|label| label.parse().expect("a label")),
    }
}

/// The next connection that waits for a machine: of whom, and at which port.
async fn woken(bed: &mut Bed, node: usize) -> Result<(String, u16)> {
    let event = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match bed.nodes[node].events.recv().await {
                Some(skein_net::NetworkEvent::Wake { label, port, .. }) => {
                    return (label.to_string(), port);
                }
                Some(_) => {}
                None => panic!("the node ended"),
            }
        }
    });
    Ok(event.await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_answers_for_a_network_that_leaves_by_another() -> Result<()> {
    let mut bed = Bed::new(2).await?;
    let mut plan = Plan::new(46, "blue").group("web", vec![tcp(1, 80)]);
    plan = plan.with(11, 1, &["web"]).with(21, 2, &["web"]);
    plan.exit = Some(1);
    plan.network.publications = vec![
        published(8081, vec![plan.address(21)], None),
        published(8082, vec![plan.address(11)], None),
        published(8090, Vec::new(), Some("sleeper")),
    ];
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(1, &plan, 21).await?;
    let world = bed.world.0.clone();
    let at = |machine: &Machine| inside(machine.name(), || TcpListener::bind("0.0.0.0:80"));
    let node_two = |port| SocketAddr::from(([192, 0, 2, 2], port));
    let served = greet(at(&b)?);
    ensure!(hears(&world, node_two(8081)), "in to a machine of the node");
    ensure!(served.join().expect("no panic").ip() == std::net::IpAddr::from([192, 0, 2, 254]));
    let served = greet(at(&a)?);
    ensure!(hears(&world, node_two(8082)), "in to a machine of the node where the network leaves");
    drop(served.join());
    // What machines begin still leaves by the other node.
    let outside = greet(inside(&world, || TcpListener::bind("192.0.2.254:7000"))?);
    ensure!(hears(b.name(), "192.0.2.254:7000".parse()?), "out");
    let from = outside.join().expect("the world does not panic");
    ensure!(from.ip() == std::net::IpAddr::from([192, 0, 2, 1]), "{from}");
    // A client that waits is answered by the node itself.
    let served = greet(at(&b)?);
    let waiting = {
        let world = world.clone();
        std::thread::spawn(move || hears(&world, node_two(8090)))
    };
    ensure!(woken(&mut bed, 1).await? == ("sleeper".to_owned(), 8090));
    plan.network.publications[2].backends = vec![plan.address(21)];
    bed.apply(&[&plan]).await?;
    ensure!(waiting.join().expect("no panic"), "the client that waited is served");
    drop(served.join());
    // Without publications nothing of it is left.
    plan.network.publications.clear();
    bed.apply(&[&plan]).await?;
    let inner = bed.nodes[1].networks().name(plan.network.vni).namespace();
    let rules = run(&format!("ip -n {inner} rule show"))?;
    ensure!(!rules.contains("lookup 100"), "{rules}");
    let routes = run(&format!("ip -n {inner} route show table all"))?;
    ensure!(!routes.contains("table 100"), "{routes}");
    bed.finish().await
}

/// Whether the machine at a node's port answers a client with this address.
fn serves(world: &str, client: &str, to: SocketAddr) -> Result<bool> {
    run(&format!("ip -n {world} route replace {} dev wire src {client}", to.ip()))?;
    Ok(hears(world, to))
}

/// Greets whoever comes, again and again.
fn greet_all(machine: &Machine) -> Result<()> {
    let listener = inside(machine.name(), || TcpListener::bind("0.0.0.0:80"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.map(|mut stream| stream.write_all(b"hello"));
        }
    });
    Ok(())
}

/// A rule with a range means the client's own address, through whichever node it comes, and also while it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_published_ports_are_judged_by_their_own_address() -> Result<()> {
    let mut bed = Bed::new(2).await?;
    let from = |range: &str| -> Result<skein_net::Rule> {
        let peer = RulePeer::Range(range.parse()?);
        Ok(allow(1, Direction::Ingress, RuleProtocol::Tcp(PortRange::single(80)), peer))
    };
    let mut plan = Plan::new(47, "blue").group("web", vec![from("192.0.2.254/32")?]);
    plan = plan.with(11, 1, &["web"]).with(21, 2, &["web"]);
    plan.network.kind = skein_net::NetworkKind::Nat(skein_net::Exit::Here { source: None });
    plan.network.publications = vec![
        published(8081, vec![plan.address(11)], None),
        published(8082, vec![plan.address(21)], None),
        published(8090, Vec::new(), Some("sleeper")),
    ];
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(1, &plan, 21).await?;
    let world = bed.world.0.clone();
    run(&format!("ip -n {world} addr add 192.0.2.253/24 dev wire"))?;
    greet_all(&a)?;
    greet_all(&b)?;
    for node in [1, 2] {
        for port in [8081, 8082] {
            let to = SocketAddr::from(([192, 0, 2, node], port));
            ensure!(serves(&world, "192.0.2.254", to)?, "{to} is open to the one");
            ensure!(!serves(&world, "192.0.2.253", to)?, "{to} is closed to the other");
        }
    }
    // One that waits is let in or not by the same rules, and cut when they change.
    let to = SocketAddr::from(([192, 0, 2, 1], 8090));
    run(&format!("ip -n {world} route replace 192.0.2.1 dev wire src 192.0.2.254"))?;
    let mut held = inside(&world, move || TcpStream::connect(to))?;
    held.set_read_timeout(Some(Duration::from_secs(20)))?;
    ensure!(woken(&mut bed, 0).await? == ("sleeper".to_owned(), 8090));
    run(&format!("ip -n {world} route replace 192.0.2.1 dev wire src 192.0.2.253"))?;
    let mut stranger = inside(&world, move || TcpStream::connect(to))?;
    stranger.set_read_timeout(Some(Duration::from_secs(20)))?;
    ensure!(woken(&mut bed, 0).await? == ("sleeper".to_owned(), 8090));
    plan.network.publications[2].backends = vec![plan.address(21)];
    bed.apply(&[&plan]).await?;
    let mut word = [0; 5];
    ensure!(held.read_exact(&mut word).is_ok() && &word == b"hello", "it waited in vain");
    ensure!(stranger.read_exact(&mut word).is_err(), "a stranger was let in");
    bed.finish().await
}

/// Answers each connection with the machine's last number.
fn answer(machine: &Machine, index: u8) -> Result<()> {
    let listener = inside(machine.name(), || TcpListener::bind("0.0.0.0:80"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.map(|mut stream| stream.write_all(&[index]));
        }
    });
    Ok(())
}

/// Which machine each client meets behind a node.
fn meet(world: &str, node: u8, clients: &[u8]) -> Result<Vec<u8>> {
    let mut met = Vec::new();
    for client in clients {
        run(&format!("ip -n {world} route replace 192.0.2.{node} dev wire src 192.0.2.{client}"))?;
        let met_one = inside(world, move || -> Result<u8> {
            let to = SocketAddr::from(([192, 0, 2, node], 8083));
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut index = [0];
            stream.read_exact(&mut index)?;
            Ok(index[0])
        });
        met.push(
            met_one.with_context(|| format!("client {client} at node {node}, after {met:?}"))?,
        );
    }
    Ok(met)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_stays_with_its_machine_through_every_node() -> Result<()> {
    let bed = Bed::new(2).await?;
    let mut plan = Plan::new(45, "blue").group("web", vec![tcp(1, 80)]);
    plan = plan.with(11, 1, &["web"]).with(12, 1, &["web"]).with(21, 2, &["web"]);
    let backends = [11, 12, 21].map(|index| plan.address(index)).to_vec();
    let mut publication =
        Publication { balance: Balance::Clients, ..published(8083, backends, None) };
    plan.network.kind = skein_net::NetworkKind::Nat(skein_net::Exit::Here { source: None });
    plan.network.publications = vec![publication.clone()];
    bed.apply(&[&plan]).await?;
    let machines = [(0, 11), (0, 12), (1, 21)];
    let mut running = Vec::new();
    for (at, index) in machines {
        let machine = bed.machine(at, &plan, index).await?;
        answer(&machine, index)?;
        running.push(machine);
    }
    let world = &bed.world.0;
    let clients: Vec<u8> = (200..224).collect();
    for client in &clients {
        run(&format!("ip -n {world} addr add 192.0.2.{client}/24 dev wire"))?;
    }
    let first = meet(world, 1, &clients)?;
    for (_, index) in machines {
        ensure!(first.contains(&index), "nobody meets {index}: {first:?}");
    }
    ensure!(meet(world, 1, &clients)? == first, "the same clients meet others");
    ensure!(meet(world, 2, &clients)? == first, "another node leads to others");
    // One machine less: its clients alone go elsewhere.
    publication.backends.retain(|backend| *backend != plan.address(12));
    plan.network.publications = vec![publication];
    bed.apply(&[&plan]).await?;
    for (before, after) in first.iter().zip(meet(world, 1, &clients)?) {
        ensure!(after != 12 && (*before == 12 || *before == after), "{before} became {after}");
    }
    bed.finish().await
}

/// Whom a client meets: the first byte it hears.
fn first_byte(from: &str, to: SocketAddr) -> Option<u8> {
    inside(from, move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        Some(byte[0])
    })
}

/// A program of the node: answers so many connections with a byte, and each byte of theirs with itself. It ends when the
/// last of them is closed by its client.
fn program(listener: TcpListener, connections: usize) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let accepted = listener.incoming().take(connections);
        let served: Vec<_> = accepted
            .map(|stream| {
                let mut stream = stream.expect("a client");
                stream.write_all(b"n").expect("it listens");
                let mut writer = stream.try_clone().expect("a descriptor");
                std::thread::spawn(move || drop(std::io::copy(&mut stream, &mut writer)))
            })
            .collect();
        served.into_iter().for_each(|thread| thread.join().expect("no panic"));
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_the_node_uses_stays_its_own() -> Result<()> {
    let bed = Bed::new(1).await?;
    let mut plan = Plan::new(47, "blue").group("web", vec![tcp(1, 80)]).with(11, 1, &["web"]);
    plan.exit = Some(1);
    bed.apply(&[&plan]).await?;
    let machine = bed.machine(0, &plan, 11).await?;
    answer(&machine, 11)?;
    let (world, node) = (bed.world.0.clone(), bed.nodes[0].namespace.0.clone());
    let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
    let loopback = SocketAddr::from(([127, 0, 0, 1], 8081));
    let own = program(inside(&node, || TcpListener::bind("0.0.0.0:8081"))?, 3);
    let datagrams = inside(&node, || UdpSocket::bind("192.0.2.1:8083"))?;
    datagrams.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut kept = inside(&world, move || TcpStream::connect(at(8081)))?;
    let to_machine = |port| published(port, vec![plan.address(11)], None);
    let udp = Publication { protocol: Transport::Udp, ..to_machine(8083) };
    let publications = vec![to_machine(8081), to_machine(8082), udp];
    plan.network.publications = publications;
    bed.apply(&[&plan]).await?;
    ensure!(first_byte(&world, at(8082)) == Some(11), "the port that nobody has");
    ensure!(first_byte(&world, at(8081)) == Some(b'n'), "from the wire");
    ensure!(first_byte(&node, loopback) == Some(b'n'), "from the node itself");
    let mut byte = [0];
    kept.set_read_timeout(Some(Duration::from_secs(5)))?;
    kept.read_exact(&mut byte)?;
    kept.write_all(b"k")?;
    kept.read_exact(&mut byte)?;
    ensure!(&byte == b"k", "the connection that was there: {byte:?}");
    inside(&world, || UdpSocket::bind("0.0.0.0:0")?.send_to(b"d", "192.0.2.1:8083"))?;
    ensure!(datagrams.recv(&mut byte)? == 1 && &byte == b"d", "a datagram");
    // The programs end.
    drop((kept, datagrams));
    own.join().expect("no panic");
    let opened = || async {
        let both = [(&world, at(8081)), (&node, loopback)];
        both.iter().all(|(from, to)| first_byte(from, *to) == Some(11)).then_some(())
    };
    eventually("the published port is opened", opened).await?;
    let binds = |port: u16| {
        let address = (Ipv4Addr::UNSPECIFIED, port);
        inside(&node, move || {
            (TcpListener::bind(address).is_ok(), UdpSocket::bind(address).is_ok())
        })
    };
    let taken = || async { (binds(8083) == (true, false)).then_some(()) };
    eventually("the datagrams' port is opened", taken).await?;
    ensure!(binds(8081) == (false, true), "another program takes a published port");
    plan.network.publications.clear();
    bed.apply(&[&plan]).await?;
    ensure!(binds(8081) == (true, true) && binds(8083) == (true, true), "it is not given back");
    bed.finish().await
}
