//! Ways out of a network and into it: whose address, through which node, to which machine, and who may.

use crate::common::bed::{Bed, Machine, Plan, inside, run};
use crate::common::eventually;
use crate::{allow, tcp};
use anyhow::{Context as _, Result, ensure};
use skein_net::{
    Balance, Direction, NetworkEvent, Payload, PortRange, Probe, Publication, Rule, RulePeer,
    RuleProtocol, Transport, Wake, trace,
};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

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

/// Also where their machines are on one node and have the same addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projects_leave_under_addresses_of_their_own() -> Result<()> {
    let bed = Bed::new(2).await?;
    let of = |vni: u32, project: &str, last: u8| {
        let mut plan = Plan::new(vni, project).group("web", vec![tcp(1, 80)]);
        plan = plan.with(11, 1, &["web"]).with(21, 2, &["web"]);
        (plan.exit, plan.exit_address) = (Some(1), Some(Ipv4Addr::new(192, 0, 2, last)));
        plan
    };
    let mut plans = [of(54, "blue", 71), of(55, "green", 72), of(56, "red", 73)];
    for (plan, port) in plans.iter_mut().zip(8081..) {
        plan.network.publications = vec![published(port, vec![plan.address(11)], None)];
    }
    // One without an address of its own has the node's.
    plans[2].exit_address = None;
    bed.apply(&plans.each_ref()).await?;
    let world = bed.world.0.clone();
    let outside: SocketAddr = "192.0.2.254:7000".parse()?;
    for (plan, port) in plans.iter().zip(8081..) {
        let own = plan.exit_address.unwrap_or(Ipv4Addr::new(192, 0, 2, 1));
        for (at, index) in [(0, 11), (1, 21)] {
            let machine = bed.machine(at, plan, index).await?;
            let heard = greet(inside(&world, move || TcpListener::bind(outside))?);
            ensure!(hears(machine.name(), outside), "out from {index} of {own}");
            let from = heard.join().expect("the world does not panic").ip();
            ensure!(from == std::net::IpAddr::from(own), "{from} instead of {own}");
            if at == 0 {
                let served = greet(inside(machine.name(), || TcpListener::bind("0.0.0.0:80"))?);
                ensure!(hears(&world, (own, port).into()), "in by {own}");
                drop(served.join());
            }
        }
    }
    bed.finish().await
}

/// TCP port 80 of the machines, opened as `port`; those that it wakes are of the group `web`.
fn published(port: u16, backends: Vec<Ipv4Addr>, wake: Option<&str>) -> Publication {
    Publication {
        address: None,
        protocol: Transport::Tcp,
        port,
        target_port: 80,
        backends,
        balance: Balance::Turns,
        wake: wake.map(|label| Wake {
            label: label.parse().expect("a label"),
            groups: vec!["web".parse().expect("a group")],
        }),
    }
}

/// The next connection that waits for a machine: of whom, and at which port.
async fn woken(bed: &mut Bed, node: usize) -> Result<(String, u16)> {
    let event = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match bed.nodes[node].events.recv().await {
                Some(NetworkEvent::Wake { label, port, .. }) => {
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

/// Lets clients of a range in at port 80.
fn from(range: &str) -> Result<Rule> {
    let peer = RulePeer::Range(range.parse()?);
    Ok(allow(1, Direction::Ingress, RuleProtocol::Tcp(PortRange::single(80)), peer))
}

/// A rule with a range means the client's own address, through whichever node it comes, and also while it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_published_ports_are_judged_by_their_own_address() -> Result<()> {
    let mut bed = Bed::new(2).await?;
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
    // One that waits is let in or not by the same rules; who is not wakes nobody.
    let to = SocketAddr::from(([192, 0, 2, 1], 8090));
    let mut stranger = dial_as(&world, "192.0.2.253", to)?;
    ensure!(is_cut(&mut stranger), "a stranger waits");
    let mut held = dial_as(&world, "192.0.2.254", to)?;
    ensure!(woken(&mut bed, 0).await? == ("sleeper".to_owned(), 8090));
    ensure!(!has_woken(&mut bed, 0), "a stranger woke somebody");
    // Who waits and may not any more is cut.
    plan.set_group("web", vec![from("192.0.2.253/32")?]);
    bed.apply(&[&plan]).await?;
    ensure!(is_cut(&mut held), "it waits although it may not");
    let mut held = dial_as(&world, "192.0.2.253", to)?;
    ensure!(woken(&mut bed, 0).await? == ("sleeper".to_owned(), 8090));
    let mut stranger = dial_as(&world, "192.0.2.254", to)?;
    ensure!(is_cut(&mut stranger), "it waits although it may not any more");
    plan.network.publications[2].backends = vec![plan.address(21)];
    bed.apply(&[&plan]).await?;
    let mut word = [0; 5];
    ensure!(held.read_exact(&mut word).is_ok() && &word == b"hello", "it waited in vain");
    ensure!(!serves(&world, "192.0.2.254", to)?, "a stranger was let in");
    ensure!(!has_woken(&mut bed, 0), "a stranger woke somebody");
    bed.finish().await
}

/// A connection from one of the world's addresses.
fn dial_as(world: &str, client: &str, to: SocketAddr) -> Result<TcpStream> {
    run(&format!("ip -n {world} route replace {} dev wire src {client}", to.ip()))?;
    let wait = Duration::from_secs(5);
    let stream = inside(world, move || TcpStream::connect_timeout(&to, wait))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Whether a connection over which nothing comes ends, before its read's time is over.
fn is_cut(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Whether another connection has been told of that waits for a machine.
fn has_woken(bed: &mut Bed, node: usize) -> bool {
    std::iter::from_fn(|| bed.nodes[node].events.try_recv().ok())
        .any(|event| matches!(event, NetworkEvent::Wake { .. }))
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

/// Says a word to an echoing machine and hears it back.
fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"still?")?;
    let mut back = [0; 6];
    stream.read_exact(&mut back)?;
    ensure!(&back == b"still?", "{back:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_published_machine_disturbs_nobody() -> Result<()> {
    let mut bed = Bed::new(2).await?;
    let mut plan = Plan::new(49, "blue").group("web", vec![tcp(1, 80)]);
    plan = plan.with(11, 1, &["web"]).with(12, 1, &["web"]).with(13, 1, &["web"]);
    plan = plan.with(21, 2, &["web"]);
    plan.network.kind = skein_net::NetworkKind::Nat(skein_net::Exit::Here { source: None });
    let [first, second, far] = [11, 12, 21].map(|index| plan.address(index));
    plan.network.publications = vec![
        published(8081, vec![first], None),
        published(8082, vec![second], None),
        published(8083, vec![first, far], None),
    ];
    bed.apply(&[&plan]).await?;
    let mut machines = Vec::new();
    for (at, index) in [(0, 11), (0, 12), (0, 13), (1, 21)] {
        let machine = bed.machine(at, &plan, index).await?;
        machine.echo(80);
        machines.push(machine);
    }
    let [a, b, neighbour, c] = machines.try_into().map_err(|_| anyhow::anyhow!("four"))?;
    let world = bed.world.0.clone();
    let to = |node: u8, port: u16| SocketAddr::from(([192, 0, 2, node], port));
    let mut ended = dial_as(&world, "192.0.2.254", to(1, 8081))?;
    echoes(&mut ended)?;
    let mut others = vec![
        ("another published machine's", dial_as(&world, "192.0.2.254", to(1, 8082))?),
        ("the same, through another node", dial_as(&world, "192.0.2.254", to(2, 8082))?),
        ("a neighbour's to a published machine", neighbour.dial((b.address, 80))?),
        ("two neighbours'", b.dial((neighbour.address, 80))?),
        ("of two nodes", c.dial((neighbour.address, 80))?),
    ];
    // The publication with two machines leads to them in turns.
    let mut two = [
        dial_as(&world, "192.0.2.254", to(1, 8083))?,
        dial_as(&world, "192.0.2.254", to(1, 8083))?,
    ];
    two.iter_mut().try_for_each(echoes)?;
    for (what, stream) in &mut others {
        echoes(stream).with_context(|| format!("{what}, before"))?;
    }
    // The bed's machines have been taken in.
    drop(healed(&mut bed));
    // The machine ends: its port, and what leads to it alone.
    drop(a);
    plan.machines.retain(|(index, _, _)| *index != 11);
    plan.network.publications =
        vec![published(8082, vec![second], None), published(8083, vec![far], None)];
    bed.apply(&[&plan]).await?;
    for (what, stream) in &mut others {
        echoes(stream).with_context(|| format!("{what}, after"))?;
    }
    ensure!(echoes(&mut ended).is_err(), "a connection to a machine that is gone");
    let live = two.iter_mut().filter_map(|stream| echoes(stream).ok()).count();
    ensure!(live == 1, "of the two connections of one publication {live} live");
    for _ in 0..4 {
        echoes(&mut dial_as(&world, "192.0.2.254", to(1, 8083))?)?;
    }
    let healed = healed(&mut bed);
    ensure!(healed.is_empty(), "put back although nobody had changed it: {healed:?}");
    drop((b, neighbour, c));
    bed.finish().await
}

/// What nodes say they put back.
fn healed(bed: &mut Bed) -> Vec<NetworkEvent> {
    let nodes = bed.nodes.iter_mut();
    let events = nodes.flat_map(|node| std::iter::from_fn(|| node.events.try_recv().ok()));
    events.filter(|event| matches!(event, NetworkEvent::Healed { .. })).collect()
}

/// Rules of routing that somebody else has in a network's namespace stay, also those that ask our table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_routing_of_others_are_left_alone() -> Result<()> {
    let bed = Bed::new(2).await?;
    let mut plan = Plan::new(51, "blue").group("web", vec![tcp(1, 80)]);
    plan = plan.with(11, 1, &["web"]).with(21, 2, &["web"]);
    plan.exit = Some(1);
    bed.apply(&[&plan]).await?;
    let machine = bed.machine(1, &plan, 21).await?;
    answer(&machine, 21)?;
    let inner = bed.nodes[1].networks().name(plan.network.vni).namespace();
    let others = [
        "from 198.51.100.7 lookup 100 priority 90",
        "fwmark 0x7/0x7 lookup 100 priority 110",
        "from 198.51.100.8 lookup 200 priority 100",
    ];
    for other in others {
        run(&format!("ip -n {inner} rule add {other}"))?;
    }
    let shows = |count: usize| -> Result<()> {
        let rules = run(&format!("ip -n {inner} rule show"))?;
        for address in ["198.51.100.7", "0x7/0x7", "198.51.100.8"] {
            ensure!(rules.contains(address), "{address} is not there any more: {rules}");
        }
        let ours =
            rules.lines().filter(|rule| rule.starts_with("100:") && rule.contains("lookup 100"));
        ensure!(ours.count() == count, "{count} of ours: {rules}");
        Ok(())
    };
    shows(0)?;
    let world = bed.world.0.clone();
    let at = SocketAddr::from(([192, 0, 2, 2], 8081));
    plan.network.publications = vec![published(8081, vec![plan.address(21)], None)];
    bed.apply(&[&plan]).await?;
    ensure!(
        first_byte(&world, at) == Some(21),
        "in through the node that the network does not leave by"
    );
    shows(2)?;
    // What somebody takes of ours is back, and theirs is not touched by that.
    run(&format!("ip -n {inner} rule del priority 100 lookup 100"))?;
    eventually("our rules are back", || async { shows(2).ok() }).await?;
    ensure!(first_byte(&world, at) == Some(21), "after our rule was taken away");
    plan.network.publications.clear();
    bed.apply(&[&plan]).await?;
    shows(0)?;
    drop(machine);
    bed.finish().await
}
