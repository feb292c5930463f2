//! Packets through a network: from this process to machines and between machines. Needs root.

mod common;

use anyhow::{Context, Result, ensure};
use common::machine::TestMachine;
use common::{Scratch, eventually};
use skein_net::{NodeNetwork, Peers, Port, PortSpec};
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PORT: u16 = 7;

async fn machine(network: &NodeNetwork, port: PortSpec) -> Result<TestMachine> {
    let Port { tap, mac, address, .. } = network.plug(port).await?;
    Ok(TestMachine::start(tap, mac, address, PORT))
}

async fn echo(stream: &mut TcpStream, size: usize) -> Result<()> {
    let sent: Vec<u8> = (0..size).map(|n| n.to_le_bytes()[0]).collect();
    let (mut reader, mut writer) = stream.split();
    let mut received = vec![0; size];
    let transfer = async {
        tokio::try_join!(writer.write_all(&sent), reader.read_exact(&mut received)).map(|_| ())
    };
    tokio::time::timeout(Duration::from_secs(30), transfer).await.context("echo stalled")??;
    ensure!(received == sent);
    Ok(())
}

#[tokio::test]
async fn this_process_reaches_its_machines() -> Result<()> {
    let scratch = Scratch::new("reach");
    let network = scratch.open().await?;
    let connector = network.connector();
    let mut machines = Vec::new();
    for index in 0..5 {
        machines.push(machine(&network, scratch.port(index)).await?);
    }
    for index in 0..5 {
        let to = SocketAddrV4::new(scratch.address(index), PORT);
        let mut stream = connector.connect(to).await?;
        ensure!(stream.nodelay()?);
        echo(&mut stream, 100_000).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_survives_the_owner_of_its_network() -> Result<()> {
    let scratch = Scratch::new("survive");
    let network = scratch.open().await?;
    let _machine = machine(&network, scratch.port(0)).await?;
    let to = SocketAddrV4::new(scratch.address(0), PORT);
    let mut old = network.connector().connect(to).await?;
    echo(&mut old, 1000).await?;
    drop(network);
    echo(&mut old, 1000).await?;
    let network = scratch.open().await?;
    echo(&mut old, 1000).await?;
    echo(&mut network.connector().connect(to).await?, 1000).await?;
    Ok(())
}

#[tokio::test]
async fn equal_addresses_in_two_networks_do_not_meet() -> Result<()> {
    let (one, two) = (Scratch::new("one"), Scratch::new("two"));
    let (first, second) = (one.open().await?, two.open().await?);
    let _machine = machine(&first, one.port(0)).await?;
    let to = SocketAddrV4::new(one.address(0), PORT);
    echo(&mut first.connector().connect(to).await?, 10).await?;
    let wait = Duration::from_millis(200);
    let error = second.connector().with_timeout(wait).connect(to).await.expect_err("nobody there");
    ensure!(
        matches!(error.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::HostUnreachable),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn refusals_are_told_apart() -> Result<()> {
    let scratch = Scratch::new("refusal");
    let network = scratch.open().await?;
    let _machine = machine(&network, scratch.port(0)).await?;
    let connector = network.connector();
    let kind = |result: std::io::Result<TcpStream>| result.expect_err("refused").kind();
    let closed = SocketAddrV4::new(scratch.address(0), PORT + 1);
    ensure!(kind(connector.connect(closed).await) == std::io::ErrorKind::ConnectionRefused);
    // The namespace has no way out: the host's other networks are not there.
    let outside = "192.0.2.1:80".parse()?;
    ensure!(kind(connector.connect(outside).await) == std::io::ErrorKind::NetworkUnreachable);
    // A machine that is plugged in and never answers.
    let _silent = network.plug(scratch.port(1)).await?;
    let silent = SocketAddrV4::new(scratch.address(1), PORT);
    let hasty = connector.with_timeout(Duration::from_millis(100));
    ensure!(kind(hasty.connect(silent).await) == std::io::ErrorKind::TimedOut);
    Ok(())
}

#[tokio::test]
async fn the_gateway_serves_sockets() -> Result<()> {
    let scratch = Scratch::new("gateway");
    let network = scratch.open().await?;
    let connector = network.connector();
    let gateway = SocketAddrV4::new(network.spec().gateway(), 0);
    let listener = connector.listen_tcp(gateway).await?;
    let std::net::SocketAddr::V4(at) = listener.local_addr()? else { unreachable!() };
    let mut client = connector.connect(at).await?;
    let (mut server, _) = listener.accept().await?;
    client.write_all(b"knit").await?;
    let mut word = [0; 4];
    server.read_exact(&mut word).await?;
    ensure!(&word == b"knit");
    let (one, two) = (connector.bind_udp(gateway).await?, connector.bind_udp(gateway).await?);
    one.send_to(b"purl", two.local_addr()?).await?;
    let (count, from) = two.recv_from(&mut word).await?;
    ensure!((&word[..count], from) == (&b"purl"[..], one.local_addr()?));
    Ok(())
}

/// A frame behind an empty virtio-net header.
fn frame(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(70), 0);
    frame
}

fn arp_request(spec: &PortSpec, target: std::net::Ipv4Addr) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 1];
    payload.extend(spec.mac.octets());
    payload.extend(spec.address.octets());
    payload.extend([0; 6]);
    payload.extend(target.octets());
    frame([0xff; 6], spec.mac.octets(), 0x0806, &payload)
}

/// What arrived at a tap, without headers. The tap is made non-blocking first.
fn arrived(tap: &OwnedFd) -> Result<Vec<Vec<u8>>> {
    rustix::io::ioctl_fionbio(tap, true)?;
    let mut frames = Vec::new();
    let mut buffer = vec![0; 2048];
    while let Ok(count) = rustix::io::read(tap, &mut buffer) {
        frames.push(buffer[10..count].to_vec());
    }
    Ok(frames)
}

/// Waits for a frame of local experimental type 0x88b5 with this first payload octet; returns all
/// that came before it. Frames keep their order, so what is not before it was not delivered.
async fn until_marker(tap: &OwnedFd, marker: u8) -> Result<Vec<Vec<u8>>> {
    let mut seen = Vec::new();
    let mut look = || -> Option<()> {
        seen.extend(arrived(tap).ok()?);
        let is_marker = |f: &Vec<u8>| f[12..15] == [0x88, 0xb5, marker];
        seen.iter().any(is_marker).then_some(())
    };
    eventually("the marker arrives", || std::future::ready(look())).await?;
    Ok(seen)
}

#[tokio::test]
async fn machines_meet_but_do_not_wake_each_other() -> Result<()> {
    let scratch = Scratch::new("meet");
    let network = scratch.open().await?;
    let [one, two, three] = [0, 1, 2].map(|index| scratch.port(index));
    let a = network.plug(one.clone()).await?;
    let b = network.plug(two.clone()).await?;
    let c = network.plug(three.clone()).await?;

    // The bridge itself answers for another machine, with that machine's MAC.
    rustix::io::write(&a.tap, &arp_request(&one, two.address))?;
    let answer = eventually("an ARP answer", || {
        let frames = arrived(&a.tap).unwrap_or_default();
        std::future::ready(frames.into_iter().find(|frame| frame[12..14] == [8, 6]))
    })
    .await?;
    ensure!(answer[20..22] == [0, 2] && answer[22..28] == two.mac.octets());

    // A broadcast, a frame to nobody and one under a false MAC arrive nowhere, one to a machine
    // only there.
    let (from, nobody) = (one.mac.octets(), [2, 9, 9, 9, 9, 9]);
    let sends = [
        frame([0xff; 6], from, 0x88b5, &[1]),
        frame([0x33, 0x33, 0, 0, 0, 1], from, 0x88b5, &[2]),
        frame(nobody, from, 0x88b5, &[3]),
        frame(two.mac.octets(), three.mac.octets(), 0x88b5, &[4]),
        frame(two.mac.octets(), nobody, 0x88b5, &[5]),
        frame(two.mac.octets(), from, 0x88b5, &[6]),
        frame(three.mac.octets(), from, 0x88b5, &[7]),
    ];
    for send in &sends {
        rustix::io::write(&a.tap, send)?;
    }
    let at_b = until_marker(&b.tap, 6).await?;
    let at_c = until_marker(&c.tap, 7).await?;
    ensure!(at_b.len() == 1, "{at_b:x?}");
    ensure!(at_c.len() == 1, "{at_c:x?}");
    Ok(())
}

#[tokio::test]
async fn isolated_machines_reach_only_the_gateway() -> Result<()> {
    let scratch = Scratch::new("isolated");
    let network = scratch.open().await?;
    let isolated = |index| PortSpec { peers: Peers::Isolated, ..scratch.port(index) };
    let (one, two, three) = (isolated(0), isolated(1), scratch.port(2));
    let a = network.plug(one.clone()).await?;
    let b = network.plug(two.clone()).await?;
    let c = network.plug(three.clone()).await?;
    rustix::io::write(&a.tap, &frame(two.mac.octets(), one.mac.octets(), 0x88b5, &[1]))?;
    rustix::io::write(&c.tap, &frame(two.mac.octets(), three.mac.octets(), 0x88b5, &[2]))?;
    let at_b = until_marker(&b.tap, 2).await?;
    ensure!(at_b.len() == 1, "{at_b:x?}");
    let _machine = machine(&network, isolated(3)).await?;
    let to = SocketAddrV4::new(scratch.address(3), PORT);
    echo(&mut network.connector().connect(to).await?, 1000).await?;
    Ok(())
}

#[tokio::test]
async fn a_port_carries_frames_as_soon_as_it_is_plugged() -> Result<()> {
    // A bridge whose last port went carries nothing until the kernel has seen the next one.
    let scratch = Scratch::new("broadcast");
    let network = scratch.open().await?;
    let gateway = SocketAddrV4::new(network.spec().gateway(), 0);
    let socket = network.connector().bind_udp(gateway).await?;
    socket.set_broadcast(true)?;
    for _ in 0..20 {
        let one = network.plug(scratch.port(0)).await?;
        socket.send_to(b"all", (scratch.cidr.broadcast(), 9)).await?;
        let look = || arrived(&one.tap).ok()?.into_iter().find(|frame| frame[..6] == [0xff; 6]);
        let frame = eventually("the broadcast arrives", || std::future::ready(look())).await?;
        // Ethernet, IPv4 and UDP headers are 14, 20 and 8 bytes long.
        ensure!(frame[42..45] == *b"all", "{frame:x?}");
        network.unplug(one.address).await?;
    }
    Ok(())
}
