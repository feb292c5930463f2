//! Networks that span nodes: who reaches whom, and who does not. Needs root.

#[path = "../common/mod.rs"]
mod common;
mod crowds;
mod encrypted;
mod floods;
mod forms;
mod healing;
mod hostile;
mod killed;
mod kinds;
mod moves;
mod published;
mod services;
mod shortcut;
mod sizes;
mod ways;

use anyhow::{Result, ensure};
use common::bed::{Bed, Plan};
use skein_net::{Direction, Log, PortRange, Rule, RuleId, RulePeer, RuleProtocol};

fn allow(id: u32, direction: Direction, protocol: RuleProtocol, peer: RulePeer) -> Rule {
    Rule { id: RuleId(id), direction, protocol, peer, log: Log::No }
}

fn tcp(id: u32, port: u16) -> Rule {
    let protocol = RuleProtocol::Tcp(PortRange::single(port));
    allow(id, Direction::Ingress, protocol, RulePeer::Any)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_meet_across_nodes_as_rules_allow() -> Result<()> {
    let bed = Bed::new(3).await?;
    let plan = Plan::new(10, "blue")
        .group("web", vec![tcp(1, 80)])
        .with(11, 1, &["web"])
        .with(12, 1, &["web"])
        .with(21, 2, &["web"])
        .with(31, 3, &[]);
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(0, &plan, 12).await?;
    let c = bed.machine(1, &plan, 21).await?;
    let d = bed.machine(2, &plan, 31).await?;
    for machine in [&a, &b, &c, &d] {
        machine.echo(80);
        machine.echo(81);
    }
    ensure!(a.connects((b.address, 80)), "one node");
    ensure!(a.connects((c.address, 80)), "two nodes");
    ensure!(d.connects((a.address, 80)), "from the third");
    ensure!(a.connects((c.address6.expect("IPv6"), 80)), "two nodes, IPv6");
    ensure!(a.connects((b.address6.expect("IPv6"), 80)), "one node, IPv6");
    ensure!(!a.connects((b.address, 81)) && !a.connects((c.address, 81)), "closed port");
    ensure!(!a.connects((d.address, 80)), "a machine without groups");
    ensure!(!a.connects((c.address6.expect("IPv6"), 81)), "closed port, IPv6");
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_meet_across_nodes_of_one_host() -> Result<()> {
    let bed = Bed::on_one_host(3).await?;
    let plan = Plan::new(12, "blue")
        .group("web", vec![tcp(1, 80)])
        .with(11, 1, &["web"])
        .with(21, 2, &["web"])
        .with(31, 3, &["web"]);
    bed.apply(&[&plan]).await?;
    let mut machines = Vec::new();
    for (at, index) in [(0, 11), (1, 21), (2, 31)] {
        let machine = bed.machine(at, &plan, index).await?;
        machine.echo(80);
        machine.echo(81);
        machines.push(machine);
    }
    for from in &machines {
        for to in machines.iter().filter(|to| to.address != from.address) {
            let six = to.address6.expect("IPv6");
            ensure!(from.connects((to.address, 80)), "{} to {}", from.address, to.address);
            ensure!(from.connects((six, 80)), "{} to {six}", from.address);
            ensure!(!from.connects((to.address, 81)) && !from.connects((six, 81)), "closed port");
        }
    }
    bed.finish().await
}
