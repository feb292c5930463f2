//! An agent that is killed while it programs leaves what the next one takes over.

use crate::common::bed::{Bed, Plan};
use crate::common::eventually;
use crate::tcp;
use anyhow::{Context, Result, ensure};
use skein_net::{
    Desired, NodeNetworks, NodeNetworksConfig, NodeNumber, Underlay, VXLAN_PORT_DEFAULT,
};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Names the node that a copy of this program programs until it is killed: its group and its namespace.
const VICTIM: &str = "SKEIN_NET_TEST_AGENT";
/// Enough to hit each part of programming.
const ROUNDS: u64 = 15;
/// Rules of each group that comes and goes.
const RULES: u16 = 60;

fn plan() -> Plan {
    Plan::new(95, "blue")
        .group("web", vec![tcp(1, 80)])
        .with(11, 1, &["web"])
        .with(12, 1, &["web"])
        .with(21, 2, &["web"])
}

fn underlay(number: u16) -> Result<Underlay> {
    let address = Ipv4Addr::new(192, 0, 2, u8::try_from(number)?);
    let number = NodeNumber::new(number).context("a number")?;
    Ok(Underlay { number, address, vxlan_port: VXLAN_PORT_DEFAULT, wire: None })
}

/// Changes rules, members, neighbours and networks for ever, when started by the other test.
#[tokio::test]
async fn victim() -> Result<()> {
    let Ok(names) = std::env::var(VICTIM) else { return Ok(()) };
    let (group, namespace) = names.split_once(' ').context("two names")?;
    let config = NodeNetworksConfig {
        group: group.parse()?,
        underlay: Some(format!("/run/netns/{namespace}").into()),
        resolvers: Vec::new(),
        wire_key: None,
        events: None,
    };
    let networks = NodeNetworks::start(config).await?;
    for turn in 0_u8.. {
        let mut plan = plan();
        for group in 0..turn % 4 {
            let rules = (0..RULES).map(|id| tcp(u32::from(id), 1000 + id)).collect();
            plan.set_group(&format!("g{group}"), rules);
            plan = plan.with(100 + group, 1, &[&format!("g{group}")]);
            plan = plan.with(200 + group, 2, &[&format!("g{group}")]);
        }
        plan.network.mtu = if turn % 3 == 0 { 1400 } else { 1450 };
        let mut desired = Desired::new(underlay(1)?);
        desired.peers = vec![underlay(2)?];
        let mut all = vec![Arc::new(plan.on(desired.underlay.number))];
        if turn % 2 == 0 {
            let other = Plan::new(96, "green").with(11, 1, &[]).with(21, 2, &[]);
            all.push(Arc::new(other.on(desired.underlay.number)));
        }
        desired.networks = all;
        let applied = networks.apply(desired).await;
        ensure!(applied.is_whole(), "{applied:?}");
    }
    Ok(())
}

struct Victim(Child);

impl Victim {
    fn start(bed: &Bed) -> Result<Self> {
        let node = &bed.nodes[0];
        let child = Command::new(std::env::current_exe()?)
            .args(["--exact", "killed::victim"])
            .env(VICTIM, format!("{} {}", node.group, node.namespace.0))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        let status = self.0.wait()?;
        ensure!(status.code().is_none(), "the victim ended by itself: {status}");
        Ok(())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_while_it_programs_leaves_what_the_next_takes_over() -> Result<()> {
    let mut bed = Bed::new(2).await?;
    let plan = plan();
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(0, &plan, 12).await?;
    let c = bed.machine(1, &plan, 21).await?;
    for machine in [&a, &b, &c] {
        machine.echo(80);
        machine.echo(81);
    }
    let green = Plan::new(96, "green");
    let other = bed.nodes[0].networks().name(green.network.vni).namespace();
    let other = std::path::PathBuf::from("/run/netns").join(other);
    for round in 0..ROUNDS {
        bed.nodes[0].networks = None;
        let victim = Victim::start(&bed)?;
        let seen = || async { other.exists().then_some(()) };
        eventually("the victim works", seen).await?;
        // Spread over some turns of its loop; not a wait for anything.
        tokio::time::sleep(Duration::from_micros(round * 17_911 % 200_000)).await;
        victim.kill()?;
        bed.nodes[0].restart().await?;
        bed.apply(&[&plan]).await?;
        ensure!(!other.exists(), "round {round}: a network that nobody wants stayed");
        for (from, to) in [(&a, &b), (&b, &a), (&a, &c), (&c, &a)] {
            let way = format!("round {round}, from {} to {}", from.address, to.address);
            let open = || async { from.connects((to.address, 80)).then_some(()) };
            eventually(&way, open).await?;
            ensure!(!from.connects((to.address, 81)), "{way}: a closed port");
        }
    }
    bed.finish().await
}
