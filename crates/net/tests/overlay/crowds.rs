//! A machine that begins connections without end takes no more than its share of what the node can know.

use crate::allow;
use crate::common::bed::{Bed, Machine, Plan, inside};
use crate::common::eventually;
use anyhow::{Result, ensure};
use skein_net::{Direction, RulePeer, RuleProtocol, Vni};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

/// More than a machine may have.
const MANY: u16 = 20_000;

/// A datagram to each of many ports: a connection each, known for 30 seconds.
fn begin_many(from: &Machine, to: Ipv4Addr) -> Result<()> {
    let socket = inside(from.name(), || UdpSocket::bind("0.0.0.0:0"))?;
    for port in 10_000..10_000 + MANY {
        // A port that is closed says so, to the next who sends.
        let _ = socket.send_to(b"d", (to, port));
    }
    Ok(())
}

async fn dropped(bed: &Bed, vni: Vni) -> Result<u64> {
    let counters = bed.nodes[0].networks().counters(vni).await?;
    let found = counters.iter().find(|found| found.name == "drop connections");
    Ok(found.map_or(0, |found| found.packets))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_has_so_many_connections_and_its_neighbours_have_theirs() -> Result<()> {
    let bed = Bed::new(1).await?;
    let mut plan = Plan::new(64, "blue")
        .group("all", vec![allow(1, Direction::Ingress, RuleProtocol::Any, RulePeer::Any)]);
    for index in [11, 12, 13] {
        plan = plan.with(index, 1, &["all"]);
    }
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(0, &plan, 12).await?;
    let c = bed.machine(0, &plan, 13).await?;
    b.echo(80);
    let mut open = a.dial((b.address, 80))?;
    ensure!(dropped(&bed, plan.network.vni).await? == 0);
    let bounded = || async {
        let before = Instant::now();
        begin_many(&a, b.address).ok()?;
        println!("{MANY} in {:?}", before.elapsed());
        (dropped(&bed, plan.network.vni).await.ok()? > 0).then_some(())
    };
    eventually("what is too much is dropped", bounded).await?;
    ensure!(!a.connects((b.address, 80)), "one more");
    ensure!(c.connects((b.address, 80)), "a neighbour");
    open.write_all(b"x")?;
    let mut echoed = [0];
    open.read_exact(&mut echoed)?;
    ensure!(&echoed == b"x", "the connection that was there");
    bed.finish().await
}
