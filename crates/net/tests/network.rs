//! Networks on a real kernel: making, taking over after a crash, removing. Needs root.

mod common;

use anyhow::{Result, ensure};
use common::{Scratch, eventually};
use skein_model::MacAddr;
use skein_net::{
    InterfaceName, NetError, NetworkName, NetworkSpec, NodeNetwork, Opened, Peers, PortSpec,
    Unplugged, check_host,
};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

fn code<T>(result: Result<T, NetError>) -> &'static str {
    match result {
        Ok(_) => "no error",
        Err(error) => error.code(),
    }
}

#[tokio::test]
async fn this_host_carries_networks() -> Result<()> {
    check_host()?;
    Ok(())
}

#[tokio::test]
async fn a_network_is_made_whole_and_leaves_nothing() -> Result<()> {
    let scratch = Scratch::new("whole");
    let network = scratch.open().await?;
    ensure!(network.opened() == Opened::Created);
    ensure!(network.namespace_path() == scratch.file() && scratch.file().exists());
    for index in 0..50 {
        let port = network.plug(scratch.port(index)).await?;
        ensure!(port.name.as_str().len() <= 15 && port.address == scratch.address(index));
        // The first ten are taken out again, the others go with the network.
        if index < 10 {
            ensure!(network.unplug(port.address).await? == Unplugged::Removed);
            ensure!(network.unplug(port.address).await? == Unplugged::Absent);
        } else {
            // Held beyond the network's end, as by a QEMU that is slow to die.
            std::mem::forget(port);
        }
    }
    ensure!(network.ports().await?.len() == 40);
    // Kernels with tunnel drivers put interfaces of their own into every namespace.
    let interfaces = scratch.interfaces()?;
    let ours = interfaces.iter().filter(|name| name.starts_with("sk"));
    ensure!(ours.count() == 41 && interfaces.contains(&"skbr0".to_owned()), "{interfaces:?}");
    network.close().await?;
    ensure!(!scratch.file().exists());
    ensure!(!NodeNetwork::destroy(&scratch.name).await?);
    ensure!(!NodeNetwork::destroy(&scratch.name).await?);
    Ok(())
}

#[tokio::test]
async fn the_kernel_says_what_the_ports_are() -> Result<()> {
    let scratch = Scratch::new("ports");
    let network = scratch.open().await?;
    let mac: MacAddr = "52:54:00:12:34:56".parse()?;
    let spec = PortSpec { mac, peers: Peers::Isolated, ..scratch.port(3) };
    let port = network.plug(spec.clone()).await?;
    let _other = network.plug(scratch.port(1)).await?;
    let ports = network.ports().await?;
    ensure!(ports.len() == 2 && ports[0].address == scratch.address(1));
    ensure!(ports[1].mac == mac && ports[1].label == spec.label);
    ensure!(ports[1].peers == Peers::Isolated && ports[1].name == port.name);
    ensure!(ports[1].holders == [std::process::id()]);
    drop(port);
    let gone = || async { (network.ports().await.ok()?.len() == 1).then_some(()) };
    eventually("the tap goes with its holder", gone).await?;
    Ok(())
}

#[tokio::test]
async fn nothing_in_a_network_speaks_ipv6_or_waits_to_forward() -> Result<()> {
    let scratch = Scratch::new("quiet");
    let network = scratch.open().await?;
    let _port = network.plug(scratch.port(0)).await?;
    // A kernel without IPv6 has no such file, and then nothing to switch off.
    let addresses = scratch.inside("/proc/thread-self/net/if_inet6").unwrap_or_default();
    ensure!(addresses.is_empty(), "IPv6 addresses: {addresses}");
    let arp = scratch.inside("/proc/thread-self/net/arp")?;
    let mac = scratch.name.port_mac(scratch.address(0)).to_string();
    // Flags 0x6: complete and permanent.
    ensure!(arp.lines().any(|line| line.contains(&mac) && line.contains("0x6")), "{arp}");
    Ok(())
}

#[tokio::test]
async fn addresses_that_cannot_be_plugged_are_refused() -> Result<()> {
    let scratch = Scratch::new("refused");
    let network = scratch.open().await?;
    let at = |address: [u8; 4]| PortSpec { address: address.into(), ..scratch.port(0) };
    for address in [[10, 77, 0, 0], [10, 77, 0, 1], [10, 77, 255, 255], [10, 78, 0, 2]] {
        ensure!(code(network.plug(at(address)).await) == "ADDRESS_OUTSIDE", "{address:?}");
    }
    let _held = network.plug(scratch.port(0)).await?;
    ensure!(code(network.plug(scratch.port(0)).await) == "PORT_EXISTS");
    ensure!(network.ports().await?.len() == 1);
    Ok(())
}

#[tokio::test]
async fn a_network_has_one_owner() -> Result<()> {
    let scratch = Scratch::new("owner");
    let network = scratch.open().await?;
    ensure!(code(scratch.open_raw().await) == "NETWORK_BUSY");
    ensure!(code(NodeNetwork::destroy(&scratch.name).await) == "NETWORK_BUSY");
    ensure!(NodeNetwork::sweep(&scratch.name).await?.is_empty());
    // The refused attempts left the network as it was.
    network.plug(scratch.port(0)).await?;
    drop(network);
    scratch.open().await?.close().await?;
    Ok(())
}

#[tokio::test]
async fn a_network_is_taken_over_with_its_ports() -> Result<()> {
    let scratch = Scratch::new("adopt");
    let network = scratch.open().await?;
    let _held = network.plug(scratch.port(0)).await?;
    let isolated = PortSpec { peers: Peers::Isolated, ..scratch.port(1) };
    let _isolated = network.plug(isolated).await?;
    let dropped = network.plug(scratch.port(2)).await?;
    let before = network.ports().await?;
    drop((network, dropped));

    let network = scratch.open().await?;
    ensure!(network.opened() == Opened::Adopted);
    ensure!(network.ports().await? == before[..2]);
    let arp = scratch.inside("/proc/thread-self/net/arp")?;
    let known = |index| arp.contains(&format!("{} ", scratch.address(index)));
    ensure!(known(0) && known(1) && !known(2), "{arp}");
    // The address of the dead port is free again.
    network.plug(scratch.port(2)).await?;
    Ok(())
}

#[tokio::test]
async fn a_network_with_machines_keeps_their_range() -> Result<()> {
    let scratch = Scratch::new("range");
    let network = scratch.open().await?;
    let held = network.plug(scratch.port(0)).await?;
    drop(network);
    let other = NetworkSpec::new(scratch.name.clone(), "10.99.0.0/24".parse()?);
    ensure!(code(NodeNetwork::open(other.clone()).await) == "NETWORK_IN_USE");
    drop(held);
    let moved = || async { NodeNetwork::open(other.clone()).await.ok() };
    let network = eventually("the network moves once its machines ended", moved).await?;
    let port = PortSpec { address: Ipv4Addr::new(10, 99, 0, 9), ..scratch.port(0) };
    network.plug(port).await?;
    let listener = network.connector().listen_tcp("10.99.0.1:0".parse()?).await?;
    drop(listener);
    ensure!(network.connector().listen_tcp("10.77.0.1:0".parse()?).await.is_err());
    Ok(())
}

#[tokio::test]
async fn sweep_removes_what_nobody_needs() -> Result<()> {
    let (idle, held, owned) = (Scratch::new("sweep"), Scratch::new("sweep"), Scratch::new("sweep"));
    let group: NetworkName = format!("test-sweep-{}", std::process::id()).parse()?;
    idle.open().await?.plug(idle.port(0)).await?;
    let _machine = held.open().await?.plug(held.port(0)).await?;
    let _owner = owned.open().await?;
    let swept = || async {
        let swept = NodeNetwork::sweep(&group).await.expect("sweep works");
        (!swept.is_empty()).then_some(swept)
    };
    ensure!(
        eventually("the idle network is swept", swept).await? == std::slice::from_ref(&idle.name)
    );
    ensure!(!idle.file().exists() && held.file().exists() && owned.file().exists());
    ensure!(NodeNetwork::sweep(&group).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_file_left_by_a_crash_is_replaced_and_a_foreign_one_is_not() -> Result<()> {
    let scratch = Scratch::new("file");
    std::fs::create_dir_all("/run/netns")?;
    std::fs::write(scratch.file(), "")?;
    let network = scratch.open().await?;
    ensure!(network.opened() == Opened::Created);
    network.close().await?;
    std::fs::write(scratch.file(), "precious")?;
    let refused = code(scratch.open_raw().await);
    let kept = code(NodeNetwork::destroy(&scratch.name).await);
    std::fs::remove_file(scratch.file())?;
    ensure!((refused, kept) == ("NETWORK_EXISTS_FOREIGN", "NETWORK_EXISTS_FOREIGN"));
    Ok(())
}

#[tokio::test]
async fn a_full_bridge_says_so() -> Result<()> {
    let scratch = Scratch::new("full");
    let network = scratch.open().await?;
    let mut ports = Vec::new();
    for index in 0..skein_net::PORTS_MAX {
        ports.push(network.plug(scratch.port(index)).await?);
    }
    let names: BTreeSet<&InterfaceName> = ports.iter().map(|port| &port.name).collect();
    ensure!(names.len() == ports.len());
    ensure!(code(network.plug(scratch.port(skein_net::PORTS_MAX)).await) == "PORT_LIMIT");
    // The refused one left nothing, and one place is enough to go on.
    ensure!(network.ports().await?.len() == ports.len());
    network.unplug(scratch.address(0)).await?;
    network.plug(scratch.port(skein_net::PORTS_MAX)).await?;
    network.close().await?;
    Ok(())
}
