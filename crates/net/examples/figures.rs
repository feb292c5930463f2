//! Prints what plugging, unplugging and connecting cost on this host at 1, 200 and 800 ports. Needs
//! root.
//!
//! `cargo run --release -p skein-net --example figures`

#[path = "../tests/common/mod.rs"]
mod common;

use anyhow::{Result, ensure};
use common::Scratch;
use common::machine::TestMachine;
use skein_net::{NodeNetwork, Port};
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Samples for each figure.
const ROUNDS: u32 = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    println!("{:<28}{:>8}{:>10}{:>10}{:>10}", "figure", "ports", "p10 us", "p50 us", "p90 us");
    for count in [1, 200, 800] {
        let scratch = Scratch::new("figures");
        let network = scratch.open().await?;
        let mut ports: Vec<Port> = Vec::new();
        for index in 0..count {
            ports.push(network.plug(scratch.port(index)).await?);
        }
        plugging(&scratch, &network, count).await?;
        connecting(&network, count).await?;
        reaching(&scratch, &network, &mut ports, count).await?;
        drop(network);
        let start = Instant::now();
        let network = scratch.open().await?;
        report("adopt", count, vec![start.elapsed()]);
        let start = Instant::now();
        ensure!(network.ports().await?.len() == ports.len());
        report("list", count, vec![start.elapsed()]);
        let start = Instant::now();
        network.close().await?;
        report("close", count, vec![start.elapsed()]);
    }
    Ok(())
}

async fn plugging(scratch: &Scratch, network: &NodeNetwork, count: u32) -> Result<()> {
    let (mut plug, mut unplug, mut release) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let port = network.plug(scratch.port(count)).await?;
        plug.push(start.elapsed());
        let start = Instant::now();
        network.unplug(port.address).await?;
        unplug.push(start.elapsed());
        let start = Instant::now();
        drop(port);
        release.push(start.elapsed());
    }
    report("plug", count, plug);
    report("unplug", count, unplug);
    let mut last = Vec::new();
    for _ in 0..ROUNDS {
        let port = network.plug(scratch.port(count)).await?;
        let start = Instant::now();
        drop(port);
        last.push(start.elapsed());
    }
    report("last holder closes", count, last);
    while_others_end(scratch, network, count).await
}

/// Plugging while taps of ended machines are removed all the time, as in a fleet that shrinks and
/// grows.
async fn while_others_end(scratch: &Scratch, network: &NodeNetwork, count: u32) -> Result<()> {
    let (ended, inbox) = std::sync::mpsc::sync_channel::<Port>(ROUNDS as usize);
    for index in 0..ROUNDS / 2 {
        ended.send(network.plug(scratch.port(count + 1 + index)).await?)?;
    }
    let closer = std::thread::spawn(move || inbox.into_iter().for_each(drop));
    let (mut plug, mut kept) = (Vec::new(), Vec::new());
    for index in 0..ROUNDS / 4 {
        let start = Instant::now();
        kept.push(network.plug(scratch.port(count + 1000 + index)).await?);
        plug.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    report("plug while others end", count, plug);
    drop((ended, kept));
    closer.join().expect("closing does not panic");
    Ok(())
}

/// Through the connector, beside a plain connect to the host's loopback, taking turns.
async fn connecting(network: &NodeNetwork, count: u32) -> Result<()> {
    let connector = network.connector();
    let inside = connector.listen_tcp(SocketAddrV4::new(network.spec().gateway(), 0)).await?;
    let outside = TcpListener::bind("127.0.0.1:0").await?;
    let SocketAddr::V4(to) = inside.local_addr()? else { unreachable!("bound to IPv4") };
    let plain = outside.local_addr()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { while inside.accept().await.is_ok() {} });
    tasks.spawn(async move { while outside.accept().await.is_ok() {} });
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 5 {
        let start = Instant::now();
        let stream = connector.connect(to).await?;
        ours.push(start.elapsed());
        drop(stream);
        let start = Instant::now();
        let stream = TcpStream::connect(plain).await?;
        stream.set_nodelay(true)?;
        theirs.push(start.elapsed());
        drop(stream);
    }
    report("connect (connector)", count, ours);
    report("connect (plain, loopback)", count, theirs);
    Ok(())
}

async fn reaching(
    scratch: &Scratch,
    network: &NodeNetwork,
    ports: &mut Vec<Port>,
    count: u32,
) -> Result<()> {
    let port = ports.remove(0);
    let to = SocketAddrV4::new(port.address, 7);
    let _machine = TestMachine::start(port.tap.try_clone()?, port.mac, port.address, 7);
    let connector = network.connector();
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        drop(connector.connect(to).await?);
        samples.push(start.elapsed());
        // The machine serves few connections at a time and needs to see this one end.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    report("connect to a machine", count, samples);
    ports.insert(0, port);
    let _ = scratch;
    Ok(())
}

fn report(figure: &str, ports: u32, mut samples: Vec<Duration>) {
    samples.sort();
    let at = |percent: usize| samples[(samples.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let [low, middle, high] = [10, 50, 90].map(at);
    println!("{figure:<28}{ports:>8}{low:>10.0}{middle:>10.0}{high:>10.0}");
}
