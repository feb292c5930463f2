//! The largest packets arrive: within a node, between nodes, to the outside and from there. What is too large is told to
//! its sender, or cut; it does not vanish.

use crate::allow;
use crate::common::bed::{Bed, Machine, Plan, inside, run};
use crate::common::eventually;
use anyhow::{Result, ensure};
use skein_net::{Balance, Direction, Publication, RulePeer, RuleProtocol, Transport};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// Bytes of the headers of UDP over IPv4, and over IPv6.
const UDP_4: usize = 28;
const UDP_6: usize = 48;
/// More than any queue on the way holds.
const STREAM_BYTES: usize = 4 << 20;

fn open_plan(vni: u32) -> Plan {
    Plan::new(vni, "blue")
        .group("all", vec![allow(1, Direction::Ingress, RuleProtocol::Any, RulePeer::Any)])
        .with(11, 1, &["all"])
        .with(12, 1, &["all"])
        .with(21, 2, &["all"])
}

/// Whether a packet of `size` bytes arrives whole. Linux forbids to cut those that fit its interface.
fn arrives(from: &str, to: (&str, IpAddr), size: usize) -> Result<bool> {
    let (receiver, address) = to;
    let headers = if address.is_ipv4() { UDP_4 } else { UDP_6 };
    let socket = inside(receiver, move || UdpSocket::bind((address, 0)))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let at = socket.local_addr()?;
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    inside(from, move || UdpSocket::bind((any, 0))?.send_to(&vec![7; size - headers], at))?;
    let mut buffer = vec![0; 1 << 16];
    Ok(socket.recv(&mut buffer).is_ok_and(|count| count == size - headers))
}

/// Whether a long stream arrives.
fn streams(from: &str, to: (&str, Ipv4Addr)) -> Result<bool> {
    let (receiver, address) = to;
    let listener = inside(receiver, move || TcpListener::bind((address, 0)))?;
    let at = listener.local_addr()?;
    let sender = inside(from, move || TcpStream::connect_timeout(&at, Duration::from_secs(3)));
    let Ok(mut sender) = sender else { return Ok(false) };
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    sender.set_write_timeout(Some(Duration::from_secs(5)))?;
    let writer = std::thread::spawn(move || sender.write_all(&vec![7; STREAM_BYTES]));
    let (mut buffer, mut count) = (vec![0; 1 << 16], 0);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        count += read;
    }
    Ok(writer.join().expect("no panic").is_ok() && count == STREAM_BYTES)
}

/// Both ways.
pub(crate) fn check(a: &Machine, b: &Machine, sizes: &[usize]) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        for size in sizes {
            let four = arrives(from.name(), (to.name(), to.address.into()), *size)?;
            ensure!(four, "{size} bytes from {} to {}", from.address, to.address);
            let six = to.address6.expect("IPv6");
            let arrived = arrives(from.name(), (to.name(), six.into()), *size)?;
            ensure!(arrived, "{size} bytes of IPv6 from {} to {}", from.address, to.address);
        }
        let streamed = streams(from.name(), (to.name(), to.address))?;
        ensure!(streamed, "a stream from {} to {}", from.address, to.address);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_as_large_as_the_network_allows_arrive() -> Result<()> {
    let bed = Bed::new(2).await?;
    let plan = open_plan(70);
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(0, &plan, 12).await?;
    let c = bed.machine(1, &plan, 21).await?;
    // As large as a packet may be, and what its sender cuts into several.
    check(&a, &b, &[1450, 1451, 9000])?;
    check(&a, &c, &[1450, 1451, 9000])?;
    // A machine that does not listen to what DHCP says of sizes is told by what it connects to.
    for machine in [&a, &c] {
        run(&format!("ip -n {} link set eth0 mtu 1500", machine.name()))?;
    }
    ensure!(streams(a.name(), (b.name(), b.address))?, "to a neighbour");
    ensure!(streams(a.name(), (c.name(), c.address))?, "to another node");
    ensure!(streams(c.name(), (a.name(), a.address))?, "from another node");
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_too_large_for_its_nodes_wire_tells_its_machines() -> Result<()> {
    let bed = Bed::new(2).await?;
    let mut plan = open_plan(71);
    // The wire carries 1,500 bytes, and the tunnel needs 50 of them.
    plan.network.mtu = 1500;
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let c = bed.machine(1, &plan, 21).await?;
    for (from, to) in [(&a, &c), (&c, &a)] {
        let six = to.address6.expect("IPv6");
        for address in [IpAddr::from(to.address), IpAddr::from(six)] {
            // The first is lost, and its sender told what fits.
            let arrived = || {
                let arrived = arrives(from.name(), (to.name(), address), 1500);
                async move { arrived.is_ok_and(|arrived| arrived).then_some(()) }
            };
            eventually(&format!("1,500 bytes from {} to {address}", from.address), arrived).await?;
        }
        ensure!(streams(from.name(), (to.name(), to.address))?, "a stream from {}", from.address);
    }
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_packets_leave_and_come_in() -> Result<()> {
    let bed = Bed::new(2).await?;
    let mut plan = open_plan(72);
    plan.exit = Some(1);
    plan.network.publications = vec![Publication {
        address: None,
        protocol: Transport::Udp,
        port: 9000,
        target_port: 9000,
        backends: vec![plan.address(11)],
        balance: Balance::Turns,
        wake: None,
    }];
    plan.network.kind = skein_net::NetworkKind::Nat(skein_net::Exit::Here { source: None });
    let mut other = plan.clone();
    other.network.publications.clear();
    for (at, plan) in [(0, &plan), (1, &other)] {
        let applied = bed.nodes[at].networks().apply(bed.desired(at, &[plan])).await;
        ensure!(applied.is_whole(), "{applied:?}");
    }
    let a = bed.machine(0, &plan, 11).await?;
    let c = bed.machine(1, &plan, 21).await?;
    let world = (bed.world.0.as_str(), Ipv4Addr::new(192, 0, 2, 254));
    for machine in [&a, &c] {
        for size in [1450, 4000] {
            let arrived = arrives(machine.name(), (world.0, world.1.into()), size)?;
            ensure!(arrived, "{size} bytes from {} to the outside", machine.address);
        }
        ensure!(streams(machine.name(), world)?, "a stream from {}", machine.address);
    }
    // From outside with 1,500 bytes: the sender is told what fits, and sends that.
    let receiver = inside(a.name(), || UdpSocket::bind("0.0.0.0:9000"))?;
    receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
    let sender = inside(world.0, || UdpSocket::bind("0.0.0.0:0"))?;
    let to: SocketAddr = "192.0.2.1:9000".parse()?;
    let mut buffer = vec![0; 1 << 16];
    let received = || {
        let sent = sender.send_to(&[7; 1500 - UDP_4], to);
        let count = receiver.recv(&mut buffer).ok();
        async move { (sent.is_ok() && count == Some(1500 - UDP_4)).then_some(()) }
    };
    eventually("1,500 bytes from outside arrive", received).await?;
    bed.finish().await
}
