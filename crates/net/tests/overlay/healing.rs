//! What somebody else removes is back, and what a killed agent left is taken over.

use crate::common::bed::{Bed, Plan, inside, run};
use crate::common::eventually;
use crate::tcp;
use anyhow::{Result, ensure};
use skein_net::NetworkName;
use std::os::fd::AsRawFd;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_removed_by_hand_is_back() -> Result<()> {
    let bed = Bed::new(2).await?;
    let plan = Plan::new(20, "blue").group("web", vec![tcp(1, 80)]).with(11, 1, &["web"]).with(
        21,
        2,
        &["web"],
    );
    bed.apply(&[&plan]).await?;
    let (a, b) = (bed.machine(0, &plan, 11).await?, bed.machine(1, &plan, 21).await?);
    b.echo(80);
    b.echo(81);
    let inner = bed.nodes[0].networks().name(plan.network.vni).namespace();
    let there = bed.nodes[1].networks().name(plan.network.vni).namespace();
    ensure!(a.connects((b.address, 80)), "before");
    let harms = [
        format!("ip -n {inner} link delete skvx0"),
        format!("bridge -n {inner} fdb delete 02:00:00:00:00:15 dev skvx0 master"),
        format!("ip -n {inner} neigh flush dev skbr0 nud permanent"),
        format!("ip -n {inner} addr flush dev skbr0"),
        format!("ip -n {inner} link delete skbr0"),
        format!("ip netns exec {there} nft delete table inet skein"),
        format!("ip netns exec {there} nft flush ruleset"),
        format!("ip netns delete {inner}"),
    ];
    for harm in harms {
        run(&harm)?;
        let healed = || async {
            let whole = b.address6.is_some_and(|to| a.connects((to, 80)));
            (whole && a.connects((b.address, 80)) && !a.connects((b.address, 81))).then_some(())
        };
        eventually(&harm, healed).await?;
    }
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_takes_over_and_removes_what_nobody_wants() -> Result<()> {
    let mut bed = Bed::new(2).await?;
    let plan = Plan::new(21, "blue").group("web", vec![tcp(1, 80)]).with(11, 1, &["web"]).with(
        21,
        2,
        &["web"],
    );
    let other = Plan::new(22, "green").with(11, 1, &[]);
    bed.apply(&[&plan, &other]).await?;
    let (a, b) = (bed.machine(0, &plan, 11).await?, bed.machine(1, &plan, 21).await?);
    b.echo(80);
    ensure!(a.connects((b.address, 80)), "before");
    let gone = bed.nodes[0].networks().name(other.network.vni).namespace();
    bed.nodes[0].restart().await?;
    ensure!(a.connects((b.address, 80)), "without an agent");
    bed.apply(&[&plan]).await?;
    ensure!(a.connects((b.address, 80)), "with the next one");
    ensure!(!std::path::Path::new(&format!("/run/netns/{gone}")).exists(), "{gone} stayed");
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_of_a_node_that_is_no_more_is_removed_and_no_other() -> Result<()> {
    let mut bed = Bed::new(1).await?;
    let mut plan = Plan::new(23, "blue").with(11, 1, &[]);
    plan.exit = Some(1);
    bed.apply(&[&plan]).await?;
    let (node, group) = (bed.nodes[0].namespace.0.clone(), bed.nodes[0].group.clone());
    // The node ends without a word, and somebody else has tables of names like ours.
    bed.nodes[0].networks = None;
    let others = ["skein", "skein-other-n1", "filter"];
    for other in others {
        run(&format!("ip netns exec {node} nft add table ip {other}"))?;
    }
    let sweep = |group: NetworkName, stays: bool| -> Result<Vec<NetworkName>> {
        inside(&node, move || -> Result<Vec<NetworkName>> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(skein_net::sweep_tables(&group, move |_| stays))?)
        })
    };
    ensure!(sweep(group.clone(), true)?.is_empty(), "a node that stays");
    ensure!(sweep("nobody".parse()?, false)?.is_empty(), "another cloud's");
    let tables = || run(&format!("ip netns exec {node} nft list tables"));
    ensure!(tables()?.contains(&format!("skein-{group}")), "{}", tables()?);
    ensure!(sweep(group.clone(), false)? == [group.clone()], "a node that is no more");
    ensure!(sweep(group.clone(), false)?.is_empty(), "twice");
    let left = tables()?;
    ensure!(!left.contains(group.as_str()) && left.lines().count() == others.len(), "{left}");
    bed.finish().await
}

/// Gives the file of a namespace contents, below the namespace itself: it can then be left, but not removed.
fn spoil(file: &str) -> Result<()> {
    let namespace = std::fs::File::open(file)?;
    nix::mount::umount2(file, nix::mount::MntFlags::MNT_DETACH)?;
    std::fs::write(file, "somebody's")?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    let none: Option<&str> = None;
    Ok(nix::mount::mount(Some(source.as_str()), file, none, nix::mount::MsFlags::MS_BIND, none)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_could_not_be_removed_is_removed_when_it_can_be() -> Result<()> {
    let bed = Bed::new(1).await?;
    let (plan, stays) =
        (Plan::new(24, "blue").with(11, 1, &[]), Plan::new(25, "red").with(11, 1, &[]));
    bed.apply(&[&plan, &stays]).await?;
    let networks = bed.nodes[0].networks();
    let file = format!("/run/netns/{}", networks.name(plan.network.vni).namespace());
    spoil(&file)?;
    for attempt in ["the network's end", "the next attempt"] {
        let applied = networks.apply(bed.desired(0, &[&stays])).await;
        let failed: Vec<_> =
            applied.failed.iter().map(|(vni, error)| (*vni, error.code())).collect();
        ensure!(failed == [(plan.network.vni, "NETWORK_EXISTS_FOREIGN")], "{attempt}: {applied:?}");
        ensure!(std::fs::read_to_string(&file)? == "somebody's", "{attempt}: the file");
    }
    std::fs::write(&file, "")?;
    bed.apply(&[&stays]).await?;
    ensure!(!std::path::Path::new(&file).exists(), "{file} stayed");
    // It can be made again, and the other was not touched.
    bed.apply(&[&plan, &stays]).await?;
    ensure!(
        networks.ports(plan.network.vni).await?.is_empty() && std::path::Path::new(&file).exists()
    );
    bed.finish().await
}
