//! Connections that both ends have agreed on go past bridge and rules, and still nobody speaks for another, no bound is
//! passed and no connection outlives its rule.

use crate::common::bed::{Bed, Machine, Plan, run};
use crate::common::eventually;
use crate::hostile::{Listener, send};
use crate::tcp;
use anyhow::{Result, ensure};
use skein_net::{PortLimits, Rate};
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};

/// What a forged segment carries.
const FORGED: &[u8] = b"in the name of another";
/// What the same segment carries when its sender is who it says.
const GENUINE: &[u8] = b"in a name of its own..";

fn plan(vni: u32) -> Plan {
    Plan::new(vni, "blue")
        .group("web", vec![tcp(1, 80)])
        .with(11, 1, &["web"])
        .with(12, 1, &["web"])
        .with(13, 1, &["web"])
        .with(21, 2, &["web"])
}

/// How many connections a network of a node knows the short way of; none if its kernel has no short way.
fn known(bed: &Bed, at: usize, plan: &Plan) -> Option<usize> {
    let space = bed.nodes[at].networks().name(plan.network.vni).namespace();
    let text =
        run(&format!("timeout 5 ip netns exec {space} nft list map netdev skein known")).ok()?;
    Some(text.matches("expires").count())
}

fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"hello")?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    ensure!(&back == b"hello", "an echo");
    Ok(())
}

/// A connection that has taken the short way; `None` if the kernel has none.
async fn settled(
    bed: &Bed,
    plan: &Plan,
    (from, to): (&Machine, &Machine),
) -> Result<Option<TcpStream>> {
    let mut stream = from.dial(SocketAddrV4::new(to.address, 80))?;
    for _ in 0..5 {
        echoes(&mut stream)?;
    }
    match known(bed, 0, plan) {
        None => Ok(None),
        Some(count) => {
            ensure!(count >= 2, "{count} ways are known");
            Ok(Some(stream))
        }
    }
}

/// A segment of a connection, in its sender's name.
fn segment(
    plan: &Plan,
    (from, to): (u8, u8),
    (source, destination): (u16, u16),
    carried: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(plan.mac(to).octets());
    frame.extend(plan.mac(from).octets());
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(u16::try_from(40 + carried.len()).unwrap_or(0).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(plan.address(from).octets());
    frame.extend(plan.address(to).octets());
    let sum: u32 = frame[14..34].chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(p[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(source.to_be_bytes());
    frame.extend(destination.to_be_bytes());
    // Far outside of the window, an acknowledgement with data.
    frame.extend([0x11; 8]);
    frame.extend([0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.extend(carried);
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_for_another_on_a_short_way() -> Result<()> {
    let bed = Bed::new(2).await?;
    let plan = plan(65);
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(0, &plan, 12).await?;
    let hostile = bed.machine(0, &plan, 13).await?;
    let far = bed.machine(1, &plan, 21).await?;
    for (to, index) in [(&b, 12), (&far, 21)] {
        to.echo(80);
        let Some(stream) = settled(&bed, &plan, (&a, to)).await? else { return Ok(()) };
        let SocketAddr::V4(own) = stream.local_addr()? else { continue };
        let mut heard = Listener::at(to);
        let forged = |marker: &[u8]| segment(&plan, (11, index), (own.port(), 80), marker);
        // By another machine; and by the machine itself, in another VLAN.
        send(&hostile, vec![forged(FORGED)]);
        let mut tagged = forged(FORGED);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        send(&a, vec![tagged]);
        // The same by the machine itself arrives, so that the other would have.
        send(&a, vec![forged(GENUINE)]);
        let frames = heard.until(GENUINE);
        ensure!(frames.is_some(), "the machine's own segment to {index}");
        let has = |frame: &Vec<u8>| frame.windows(FORGED.len()).any(|part| part == FORGED);
        ensure!(!frames.into_iter().flatten().any(|frame| has(&frame)), "forged, to {index}");
    }
    drop((a, b, hostile, far));
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_way_ends_with_its_rule_and_gives_way_to_bounds() -> Result<()> {
    let bed = Bed::new(2).await?;
    let mut plan = plan(66);
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(0, &plan, 12).await?;
    b.echo(80);
    let Some(mut stream) = settled(&bed, &plan, (&a, &b)).await? else { return Ok(()) };
    // With a bound its packets are counted again: none is known, and none becomes known.
    let rate = Rate { bits_per_second: Some(80_000_000), packets_per_second: None };
    plan.limits = vec![(11, PortLimits { sends: rate, receives: rate })];
    bed.apply(&[&plan]).await?;
    for _ in 0..5 {
        echoes(&mut stream)?;
    }
    ensure!(known(&bed, 0, &plan) == Some(0), "ways of a bounded machine");
    plan.limits.clear();
    bed.apply(&[&plan]).await?;
    for _ in 0..5 {
        echoes(&mut stream)?;
    }
    ensure!(known(&bed, 0, &plan) >= Some(2), "the short way again");
    // Without the rule nothing passes any more, at once.
    plan.set_group("web", vec![tcp(2, 81)]);
    bed.apply(&[&plan]).await?;
    ensure!(known(&bed, 0, &plan) == Some(0), "ways that no rule allows");
    ensure!(echoes(&mut stream).is_err(), "a connection without a rule");
    // A machine that goes away takes its ways along.
    plan.set_group("web", vec![tcp(1, 80)]);
    bed.apply(&[&plan]).await?;
    let Some(stream) = settled(&bed, &plan, (&a, &b)).await? else { return Ok(()) };
    plan.machines.retain(|(index, _, _)| *index != 12);
    bed.apply(&[&plan]).await?;
    let forgotten = || async { (known(&bed, 0, &plan) == Some(0)).then_some(()) };
    eventually("the ways to a machine that is gone are forgotten", forgotten).await?;
    drop((stream, a, b));
    bed.finish().await
}
