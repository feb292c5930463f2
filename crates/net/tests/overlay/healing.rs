//! What somebody else removes is back, and what a killed agent left is taken over.

use crate::common::bed::{Bed, Plan, inside, run};
use crate::common::eventually;
use crate::tcp;
use anyhow::{Context as _, Result, ensure};
use skein_net::{Balance, NetworkName, Publication, Transport};
use std::net::Ipv4Addr;
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

/// What the node's own namespace has that is not ours.
fn of_others(node: &str) -> Result<String> {
    let mut all = run(&format!("ip netns exec {node} nft -s list table ip firewall"))?;
    all += &run(&format!("ip netns exec {node} nft -s list table inet filter"))?;
    all += &run(&format!("ip -n {node} rule show"))?;
    all += &run(&format!("ip -n {node} route show table 100"))?;
    all += &run(&format!("ip -n {node} -4 addr show dev other0"))?;
    Ok(all)
}

/// Where a network leaves the node and is entered from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ways_out_and_in_that_are_removed_by_hand_are_back_and_others_are_left_alone() -> Result<()>
{
    let bed = Bed::new(1).await?;
    let mut plan = Plan::new(26, "blue").group("web", vec![tcp(1, 80)]).with(11, 1, &["web"]);
    plan.exit = Some(1);
    plan.network.publications = vec![Publication {
        address: None,
        protocol: Transport::Tcp,
        port: 8081,
        target_port: 80,
        backends: vec![plan.address(11)],
        balance: Balance::Turns,
        wake: None,
    }];
    let (node, group) = (bed.nodes[0].namespace.0.clone(), bed.nodes[0].group.clone());
    for line in [
        "nft add table ip firewall",
        "nft add chain ip firewall input { type filter hook input priority 5 ; policy accept ; }",
        "nft add rule ip firewall input tcp dport 9999 drop",
        "nft add table inet filter",
        "nft add set inet filter known { type ipv4_addr ; elements = { 198.51.100.1 } ; }",
        "ip rule add from 198.51.100.7 lookup 100 priority 100",
        "ip link add other0 type bridge",
        "ip addr add 198.51.100.7/24 dev other0",
        "ip link set other0 up",
        "ip route add 203.0.113.0/24 dev other0 table 100",
    ] {
        run(&format!("ip netns exec {node} {line}"))?;
    }
    let before = of_others(&node)?;
    bed.apply(&[&plan]).await?;
    let machine = bed.machine(0, &plan, 11).await?;
    machine.echo(80);
    let inner = bed.nodes[0].networks().name(plan.network.vni).namespace();
    let links = run(&format!("ip -n {node} -o link show"))?;
    let way = links.split([' ', ':', '@']).find(|word| word.starts_with("sku"));
    let way = way.context("the node's end")?.to_owned();
    let outside = inside(&bed.world.0, || std::net::TcpListener::bind("192.0.2.254:7000"))?;
    let (out, into) = ((Ipv4Addr::new(192, 0, 2, 254), 7000), Ipv4Addr::new(192, 0, 2, 1));
    let comes_in = || {
        let to = std::net::SocketAddr::from((into, 8081));
        let wait = std::time::Duration::from_millis(400);
        inside(&bed.world.0, move || std::net::TcpStream::connect_timeout(&to, wait).is_ok())
    };
    ensure!(machine.connects(out) && comes_in(), "before");
    let harms = [
        format!("ip -n {inner} link delete skup0"),
        format!("ip -n {inner} route delete default"),
        format!("ip -n {inner} addr flush dev skup0"),
        format!("ip -n {inner} link set skup0 down"),
        format!("ip -n {node} addr flush dev {way}"),
        format!("ip -n {node} route flush dev {way}"),
        format!("ip -n {node} link set {way} down"),
        format!("ip -n {node} link delete {way}"),
        format!("ip netns exec {node} nft delete table ip skein-{group}"),
        format!("ip netns exec {node} nft flush table ip skein-{group}"),
        format!("ip netns exec {node} sysctl -q -w net.ipv4.ip_forward=0"),
    ];
    for harm in harms {
        run(&harm)?;
        let healed = || async { (machine.connects(out) && comes_in()).then_some(()) };
        eventually(&harm, healed).await?;
    }
    ensure!(of_others(&node)? == before, "{before} became {}", of_others(&node)?);
    drop((machine, outside));
    bed.apply(&[]).await?;
    ensure!(of_others(&node)? == before, "{before} became {}", of_others(&node)?);
    let left = run(&format!("ip netns exec {node} nft list tables"))?;
    ensure!(!left.contains("skein"), "{left}");
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
