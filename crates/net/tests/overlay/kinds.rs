//! Networks on a segment of the operator's, ports that are alone, and rules that tell what they let through.

use crate::common::bed::{Bed, Machine, Namespace, Plan, inside, run};
use crate::{allow, tcp};
use anyhow::{Context, Result, ensure};
use skein_net::{
    Direction, Log, NetworkEvent, NetworkKind, OtherNames, PortRange, Rule, RulePeer, RuleProtocol,
};
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

/// The operator's router, at the other end of the segment.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 254);

fn bridged(vni: u32, interface: &str) -> Result<Plan> {
    let mut plan = Plan::new(vni, "blue")
        .group("web", vec![tcp(1, 80)])
        .with(11, 1, &["web"])
        .with(12, 1, &["web"]);
    plan.network.kind = NetworkKind::Bridged { attach: interface.parse()? };
    plan.network.gateway = ROUTER;
    plan.network.ipv6 = None;
    plan.network.mtu = 1500;
    plan.network.dns.others = OtherNames::Refuse;
    Ok(plan)
}

/// The operator's segment: the bridge `lan` of the node, with the world as router on it.
fn lay_segment(bed: &Bed) -> Result<()> {
    let (n, w) = (&bed.nodes[0].namespace.0, &bed.world.0);
    run(&format!("ip -n {n} link add lan type bridge"))?;
    run(&format!("ip -n {n} link set lan up"))?;
    run(&format!("ip -n {n} link add port0 type veth peer name lan netns {w}"))?;
    run(&format!("ip -n {n} link set port0 master lan up"))?;
    run(&format!("ip -n {w} addr add {ROUTER}/24 dev lan"))?;
    run(&format!("ip -n {w} link set lan up"))?;
    Ok(())
}

/// The world as a machine: its namespace is the bed's.
fn world(bed: &Bed) -> ManuallyDrop<Machine> {
    let namespace = Namespace(bed.world.0.clone());
    ManuallyDrop::new(Machine { namespace, address: ROUTER, address6: None })
}

/// What is the same whether the segment is a bridge of the node or an interface.
async fn neighbours_of_the_segment(bed: &Bed, plan: &Plan) -> Result<()> {
    bed.apply(&[plan]).await?;
    let a = bed.machine(0, plan, 11).await?;
    let b = bed.machine(0, plan, 12).await?;
    for machine in [&a, &b] {
        machine.echo(80);
        machine.echo(81);
    }
    let world = world(bed);
    world.echo(8000);
    ensure!(a.connects((ROUTER, 8000)), "a machine reaches the segment");
    ensure!(world.connects((a.address, 80)), "the segment reaches a machine");
    ensure!(!world.connects((a.address, 81)), "the segment reaches a closed port");
    ensure!(a.connects((b.address, 80)) && !a.connects((b.address, 81)), "two machines");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_of_a_bridged_network_are_neighbours_of_a_bridge() -> Result<()> {
    let bed = Bed::new(1).await?;
    let n = &bed.nodes[0].namespace.0;
    lay_segment(&bed)?;
    let plan = bridged(90, "lan")?;
    neighbours_of_the_segment(&bed, &plan).await?;
    ensure!(run(&format!("ip -n {n} -o link show master lan"))?.lines().count() == 2);
    // The operator's bridge stays when the network goes.
    bed.apply(&[]).await?;
    ensure!(run(&format!("ip -n {n} -o link show master lan"))?.lines().count() == 1);
    bed.finish().await
}

/// In other networks such an address is a node's, which has judged for whom it speaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_segment_an_address_of_nodes_is_a_neighbours_like_any_other() -> Result<()> {
    let bed = Bed::new(1).await?;
    lay_segment(&bed)?;
    let mut plan = bridged(95, "lan")?;
    bed.apply(&[&plan]).await?;
    let machine = bed.machine(0, &plan, 11).await?;
    machine.echo(80);
    machine.echo(81);
    let (world, w) = (world(&bed), &bed.world.0);
    let speak_as = |source: &str| {
        run(&format!("ip -n {w} route replace 10.20.0.0/24 dev lan src {source}")).map(drop)
    };
    // A node's number or not, and the first and last of the range.
    let like_nodes = ["100.127.0.1", "100.127.0.2", "100.127.255.255", "100.127.0.0"];
    for address in like_nodes {
        run(&format!("ip -n {w} addr add {address}/32 dev lan"))?;
        speak_as(address)?;
        ensure!(world.connects((machine.address, 80)), "{address} to the open port");
        ensure!(!world.connects((machine.address, 81)), "{address} to the closed port");
    }
    // A rule for the segment's own range lets nobody in who is not of it, and cuts who was.
    speak_as("100.127.0.1")?;
    let mut live = world.dial((machine.address, 80))?;
    echoes(&mut live).context("before the rule")?;
    let peer = RulePeer::Range("10.20.0.0/24".parse()?);
    let rule = allow(2, Direction::Ingress, RuleProtocol::Tcp(PortRange::single(80)), peer);
    plan.set_group("web", vec![rule]);
    bed.apply(&[&plan]).await?;
    ensure!(echoes(&mut live).is_err(), "a connection that no rule allows any more");
    for address in like_nodes {
        speak_as(address)?;
        ensure!(!world.connects((machine.address, 80)), "{address} is not of the segment's range");
    }
    speak_as(&ROUTER.to_string())?;
    ensure!(world.connects((machine.address, 80)), "the router is");
    drop(machine);
    bed.finish().await
}

/// Says a word to an echoing machine and hears it back.
fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"heard?")?;
    let mut back = [0; 6];
    stream.read_exact(&mut back)?;
    ensure!(&back == b"heard?", "{back:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_of_a_bridged_network_are_neighbours_of_an_interface() -> Result<()> {
    let bed = Bed::new(1).await?;
    let (n, w) = (&bed.nodes[0].namespace.0, &bed.world.0);
    run(&format!("ip -n {n} link add eth1 type veth peer name lan netns {w}"))?;
    run(&format!("ip -n {n} link set eth1 up"))?;
    run(&format!("ip -n {w} addr add {ROUTER}/24 dev lan"))?;
    run(&format!("ip -n {w} link set lan up"))?;
    let plan = bridged(91, "eth1")?;
    neighbours_of_the_segment(&bed, &plan).await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interface_that_is_missing_is_told_and_taken_when_it_comes() -> Result<()> {
    let bed = Bed::new(1).await?;
    let plan = bridged(92, "late0")?;
    let desired = || bed.desired(0, &[&plan]);
    let applied = bed.nodes[0].networks().apply(desired()).await;
    let code = applied.failed.first().map(|(_, error)| error.code());
    ensure!(code == Some("ATTACH_MISSING"), "{applied:?}");
    let n = &bed.nodes[0].namespace.0;
    run(&format!("ip -n {n} link add late0 type bridge"))?;
    run(&format!("ip -n {n} link set late0 up"))?;
    let applied = bed.nodes[0].networks().apply(desired()).await;
    ensure!(applied.is_whole(), "{applied:?}");
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_port_reaches_no_machine_of_its_network() -> Result<()> {
    let bed = Bed::new(2).await?;
    let all = vec![allow(1, Direction::Ingress, RuleProtocol::Any, RulePeer::Any)];
    let mut plan = Plan::new(93, "blue")
        .group("all", all)
        .with(11, 1, &["all"])
        .with(12, 1, &["all"])
        .with(13, 1, &["all"])
        .with(21, 2, &["all"])
        .with(22, 2, &["all"]);
    plan.isolated = vec![11, 12, 21];
    plan.exit = Some(1);
    bed.apply(&[&plan]).await?;
    let mut machines = Vec::new();
    for (index, at) in [(11, 0), (12, 0), (13, 0), (21, 1), (22, 1)] {
        let machine = bed.machine(at, &plan, index).await?;
        machine.echo(80);
        machines.push((index, machine));
    }
    for (from, a) in &machines {
        for (to, b) in machines.iter().filter(|(to, _)| to != from) {
            let allowed = !plan.isolated.contains(from) && !plan.isolated.contains(to);
            ensure!(a.connects((b.address, 80)) == allowed, "from {from} to {to}");
            let six = b.address6.context("IPv6")?;
            ensure!(a.connects((six, 80)) == allowed, "from {from} to {to} by IPv6");
        }
    }
    // What is not of the network is open to them all the same.
    let world = inside(&bed.world.0, || std::net::TcpListener::bind("192.0.2.254:7000"))?;
    for (index, machine) in &machines {
        ensure!(machine.connects((Ipv4Addr::new(192, 0, 2, 254), 7000)), "{index} to the outside");
    }
    drop(world);
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_logs_tells_each_connection() -> Result<()> {
    let mut bed = Bed::new(2).await?;
    let plan = Plan::new(94, "blue")
        .group("web", vec![Rule { log: Log::Yes, ..tcp(7, 80) }, tcp(8, 81)])
        .with(11, 1, &["web"])
        .with(12, 1, &["web"])
        .with(21, 2, &["web"]);
    bed.apply(&[&plan]).await?;
    let near = bed.machine(0, &plan, 11).await?;
    let server = bed.machine(0, &plan, 12).await?;
    let far = bed.machine(1, &plan, 21).await?;
    server.echo(80);
    server.echo(81);
    let six = server.address6.context("IPv6")?;
    for client in [&near, &far] {
        ensure!(client.connects((server.address, 81)) && client.connects((server.address, 80)));
        ensure!(client.connects((six, 80)));
    }
    // The node of the receiver tells: four connections, and nothing of the rule that does not log.
    let mut told = Vec::new();
    while told.len() < 4 {
        let event = tokio::time::timeout(Duration::from_secs(10), bed.nodes[0].events.recv());
        let event = event.await.with_context(|| format!("only {told:?}"))?;
        if let Some(NetworkEvent::RuleMatched {
            rule, source, destination, protocol, port, ..
        }) = event
        {
            ensure!((rule.as_str(), protocol, port) == ("web in 7", 6, 80), "{rule} {port}");
            told.push((source, destination));
        }
    }
    for client in [&near, &far] {
        let four = (IpAddr::from(client.address), IpAddr::from(server.address));
        let six = (IpAddr::from(client.address6.context("IPv6")?), IpAddr::from(six));
        ensure!(told.contains(&four) && told.contains(&six), "{told:?}");
    }
    bed.finish().await
}
