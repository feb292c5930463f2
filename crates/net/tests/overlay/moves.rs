//! Machines that move between nodes, and nodes that go and come.

use crate::common::bed::{Bed, Plan, run};
use crate::common::eventually;
use crate::tcp;
use anyhow::{Result, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;

/// Whether a byte goes there and back.
fn echoes(stream: &mut TcpStream) -> bool {
    let mut byte = [0; 1];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok()
}

async fn eventually_echoes(what: &str, stream: &mut TcpStream) -> Result<()> {
    let mut again = || {
        let echoed = echoes(stream);
        async move { echoed.then_some(()) }
    };
    eventually(what, &mut again).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_moves_takes_its_connections_along() -> Result<()> {
    let bed = Bed::new(3).await?;
    let before = Plan::new(80, "blue")
        .group("web", vec![tcp(1, 80)])
        .with(11, 1, &["web"])
        .with(12, 1, &["web"])
        .with(21, 2, &["web"])
        .with(31, 3, &["web"]);
    bed.apply(&[&before]).await?;
    let mover = bed.machine(0, &before, 11).await?;
    // On the node it leaves, on the one it goes to, and on a third.
    let others = [
        bed.machine(0, &before, 12).await?,
        bed.machine(1, &before, 21).await?,
        bed.machine(2, &before, 31).await?,
    ];
    mover.echo(80);
    let mut streams = Vec::new();
    for other in &others {
        other.echo(80);
        streams.push((format!("from {}", other.address), other.dial((mover.address, 80))?));
        streams.push((format!("to {}", other.address), mover.dial((other.address, 80))?));
    }
    for (what, stream) in &mut streams {
        ensure!(echoes(stream), "{what} before");
    }
    let vni = before.network.vni;
    let after = before.clone().moved(11, 2);
    let apply = async |at: usize| {
        let applied = bed.nodes[at].networks().apply(bed.desired(at, &[&after])).await;
        ensure!(applied.is_whole(), "node {at}: {applied:?}");
        Ok(())
    };
    // Where it goes knows its port and connections before it comes; all others learn of it then.
    apply(1).await?;
    let known = bed.nodes[0].networks().connections(vni, mover.address).await?;
    ensure!(known.len() >= streams.len(), "{known:?}");
    let sent: Vec<_> = known.iter().map(skein_net::Connection::to_text).collect();
    let came = sent.iter().filter_map(|text| skein_net::Connection::from_text(text)).collect();
    bed.nodes[1].networks().adopt_connections(vni, came).await?;
    bed.carry(&after, 11, 0, 1).await?;
    apply(0).await?;
    apply(2).await?;
    for (what, stream) in &mut streams {
        eventually_echoes(&format!("{what} after"), stream).await?;
    }
    for other in &others {
        ensure!(other.connects((mover.address, 80)), "anew from {}", other.address);
        ensure!(!other.connects((mover.address, 81)), "a closed port from {}", other.address);
    }
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_lost_comes_back() -> Result<()> {
    let bed = Bed::new(3).await?;
    let before = Plan::new(81, "blue")
        .group("web", vec![tcp(1, 80)])
        .with(11, 1, &["web"])
        .with(12, 1, &["web"])
        .with(21, 2, &["web"])
        .with(22, 2, &["web"])
        .with(31, 3, &["web"]);
    bed.apply(&[&before]).await?;
    let a = bed.machine(0, &before, 11).await?;
    let b = bed.machine(0, &before, 12).await?;
    let old = bed.machine(1, &before, 21).await?;
    let stayed = bed.machine(1, &before, 22).await?;
    let d = bed.machine(2, &before, 31).await?;
    for machine in [&b, &old, &stayed, &d] {
        machine.echo(80);
    }
    ensure!(a.connects((old.address, 80)) && a.connects((stayed.address, 80)), "before");
    let lost = &bed.nodes[1].namespace.0;
    run(&format!("ip -n {lost} link set eth0 down"))?;
    ensure!(!a.connects((old.address, 80)), "through a wire that is cut");
    ensure!(a.connects((b.address, 80)) && a.connects((d.address, 80)), "past the lost node");
    ensure!(old.connects((stayed.address, 80)), "within the lost node");
    // One of its machines begins anew elsewhere, under the same address; the lost node does not hear of it.
    let after = before.clone().moved(21, 3);
    for at in [2, 0] {
        let applied = bed.nodes[at].networks().apply(bed.desired(at, &[&after])).await;
        ensure!(applied.is_whole(), "node {at}: {applied:?}");
    }
    let new = bed.machine(2, &after, 21).await?;
    new.echo(80);
    ensure!(a.connects((new.address, 80)) && d.connects((new.address, 80)), "anew elsewhere");
    // The node comes back and is told: its copy goes, its other machine is reached again.
    run(&format!("ip -n {lost} link set eth0 up"))?;
    let applied = bed.nodes[1].networks().apply(bed.desired(1, &[&after])).await;
    ensure!(applied.is_whole(), "{applied:?}");
    let returned = || async { a.connects((stayed.address, 80)).then_some(()) };
    eventually("the node is back", returned).await?;
    ensure!(!old.connects((stayed.address, 80)), "the old copy still has its plug");
    ensure!(stayed.connects((new.address, 80)) && a.connects((new.address, 80)), "all see the new");
    bed.finish().await
}
