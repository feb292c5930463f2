//! What nodes send each other is sealed by WireGuard: seen on the wire between them. Where the kernel has none,
//! `wireguard-go` must be installed.

use crate::common::bed::{Bed, Machine, Node, Plan, inside, run};
use crate::common::eventually;
use crate::{allow, sizes, tcp};
use anyhow::{Context, Result, ensure};
use skein_net::{Direction, RulePeer, RuleProtocol, renew_wire_key};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

/// `ETH_P_ALL` in the network's byte order.
const EVERY_PROTOCOL: i32 = 0x0300;
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// What no sealed packet has in it.
const CLEAR: &[u8] = b"nobody but the two of us reads this";
/// Longest time without a packet before a capture counts as whole.
const QUIET: Duration = Duration::from_millis(300);

/// A network whose packets fit Ethernet sealed.
fn plan(vni: u32) -> Plan {
    let mut plan = Plan::new(vni, "blue")
        .group("all", vec![allow(1, Direction::Ingress, RuleProtocol::Any, RulePeer::Any)])
        .with(11, 1, &["all"])
        .with(12, 1, &["all"])
        .with(21, 2, &["all"]);
    plan.network.mtu = 1370;
    plan
}

/// Every frame on the wire between nodes from now on.
pub(crate) struct Wire(Socket);

impl Wire {
    pub(crate) fn tap(bed: &Bed) -> Result<Self> {
        let open = || Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL)));
        let socket = inside(&bed.world.0, open)?;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.set_read_timeout(Some(QUIET))?;
        Ok(Self(socket))
    }

    pub(crate) fn frames(mut self) -> Vec<Vec<u8>> {
        let (mut frames, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(count) = self.0.read(&mut buffer) {
            frames.push(buffer[..count].to_vec());
        }
        frames
    }
}

fn has_clear(frame: &[u8]) -> bool {
    frame.windows(CLEAR.len()).any(|part| part == CLEAR)
}

/// Whether a frame is one of WireGuard's, by its four kinds of messages.
fn is_sealed(frame: &[u8]) -> bool {
    let udp = frame.get(23) == Some(&17) && frame.get(36..38) == Some(&4789_u16.to_be_bytes());
    udp && matches!(frame.get(42..46), Some([1..=4, 0, 0, 0]))
}

/// Says something to `b`, and hears it back.
fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(CLEAR)?;
    let mut back = vec![0; CLEAR.len()];
    stream.read_exact(&mut back)?;
    ensure!(back == CLEAR, "an echo");
    Ok(())
}

fn dial(from: &Machine, to: &Machine) -> Result<TcpStream> {
    let at = SocketAddrV4::new(to.address, 80);
    inside(from.name(), move || TcpStream::connect(at)).context("connecting")
}

/// The name of the namespace of a node's encrypted way.
fn inner(node: &Node) -> String {
    format!("skein-{}-wire", node.group)
}

/// The processes that encrypt for a node.
fn programs(node: &Node) -> Vec<String> {
    let links = run(&format!("ip -n {} -o link show", inner(node))).unwrap_or_default();
    let name = links.split([' ', ':']).find(|word| word.starts_with("skw")).unwrap_or("none");
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().into_string().ok());
    let has = |pid: &String| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("wireguard-go") && line.contains(name)
    };
    pids.filter(has).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nodes_send_each_other_is_sealed() -> Result<()> {
    for is_encrypted in [false, true] {
        let bed = if is_encrypted { Bed::encrypted(2).await? } else { Bed::new(2).await? };
        let plan = plan(60);
        bed.apply(&[&plan]).await?;
        let a = bed.machine(0, &plan, 11).await?;
        let b = bed.machine(0, &plan, 12).await?;
        let c = bed.machine(1, &plan, 21).await?;
        c.echo(80);
        let wire = Wire::tap(&bed)?;
        echoes(&mut dial(&a, &c)?)?;
        if is_encrypted {
            sizes::check(&a, &c, &[1369, 1370])?;
            sizes::check(&a, &b, &[1369, 1370])?;
        }
        let frames = wire.frames();
        let clear = frames.iter().filter(|frame| has_clear(frame)).count();
        ensure!((clear > 0) != is_encrypted, "{clear} frames with the text, {is_encrypted}");
        let of = |kind: [u8; 2]| frames.iter().filter(move |f| f.get(12..14) == Some(&kind));
        let plain = of(IPV4).filter(|frame| !is_sealed(frame)).count();
        // The interfaces of the bed itself speak of their own IPv6 addresses.
        let other = frames.len() - of(IPV4).count() - of(ARP).count() - of(IPV6).count();
        ensure!(!is_encrypted || plain + other == 0, "{plain} plain, {other} others");
        ensure!(!is_encrypted || of(IPV4).count() > 100, "the wire was seen");
        let all = run("ip netns list")?;
        bed.nodes.iter().for_each(|node| assert_eq!(all.contains(&inner(node)), is_encrypted));
        let pids: Vec<String> = bed.nodes.iter().flat_map(programs).collect();
        let spaces: Vec<String> = bed.nodes.iter().map(inner).collect();
        bed.finish().await?;
        let left = run("ip netns list")?;
        ensure!(!spaces.iter().any(|name| left.contains(name)), "nothing is left");
        let lives = |pid: &String| std::path::Path::new(&format!("/proc/{pid}")).exists();
        ensure!(!pids.iter().any(lives), "no program is left");
    }
    Ok(())
}

/// A machine of each node, and a connection between them.
async fn two_that_talk(bed: &Bed, plan: &Plan) -> Result<(Machine, Machine, TcpStream)> {
    bed.apply(&[plan]).await?;
    let a = bed.machine(0, plan, 11).await?;
    let c = bed.machine(1, plan, 21).await?;
    c.echo(80);
    let mut stream = dial(&a, &c)?;
    echoes(&mut stream)?;
    Ok((a, c, stream))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_takes_another_key_and_its_connections_live() -> Result<()> {
    let mut bed = Bed::encrypted(2).await?;
    let plan = plan(61);
    let (a, c, mut stream) = two_that_talk(&bed, &plan).await?;
    let path = bed.nodes[1].wire_key().context("a file")?;
    let before = bed.nodes[1].underlay.wire;
    bed.nodes[1].underlay.wire = Some(renew_wire_key(&path)?);
    ensure!(before != bed.nodes[1].underlay.wire, "another key");
    // First the node itself, then the other hears of it.
    let own = bed.nodes[1].networks().apply(bed.desired(1, &[&plan])).await;
    ensure!(own.is_whole(), "{own:?}");
    bed.apply(&[&plan]).await?;
    echoes(&mut stream)?;
    drop((a, c));
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_way_outlives_its_node_and_comes_back_when_it_is_lost() -> Result<()> {
    let mut bed = Bed::encrypted(2).await?;
    let plan = plan(62);
    let (a, c, mut stream) = two_that_talk(&bed, &plan).await?;
    // The node's process ends; its machines go on to talk, and the next takes over.
    let before = programs(&bed.nodes[1]);
    bed.nodes[1].networks = None;
    echoes(&mut stream)?;
    bed.nodes[1].restart().await?;
    let applied = bed.nodes[1].networks().apply(bed.desired(1, &[&plan])).await;
    ensure!(applied.is_whole(), "{applied:?}");
    echoes(&mut stream)?;
    ensure!(programs(&bed.nodes[1]) == before, "the program is the same");
    // Somebody takes its interface away, and with it the program.
    let space = inner(&bed.nodes[1]);
    let links = run(&format!("ip -n {space} -o link show"))?;
    let name = links.split([' ', ':']).find(|word| word.starts_with("skw")).context("a link")?;
    run(&format!("ip -n {space} link del {name}"))?;
    let shows = || async { run(&format!("ip -n {space} -o addr show {name}")).ok() };
    eventually("the way is back", || async { shows().await.filter(|s| s.contains("100.126.0.2")) })
        .await?;
    echoes(&mut stream)?;
    ensure!(before.is_empty() || programs(&bed.nodes[1]) != before, "another program");
    // An agent that does not encrypt any more leaves nothing of it.
    let pids = programs(&bed.nodes[1]);
    bed.nodes[1].networks = None;
    bed.nodes[1].underlay.wire = None;
    bed.nodes[1].restart().await?;
    let applied = bed.nodes[1].networks().apply(bed.desired(1, &[&plan])).await;
    ensure!(applied.is_whole(), "{applied:?}");
    ensure!(!run("ip netns list")?.contains(&space), "its namespace is left");
    let gone = || async {
        let lives = |pid: &String| std::path::Path::new(&format!("/proc/{pid}")).exists();
        (!pids.iter().any(lives)).then_some(())
    };
    // A program that nobody waits for stays until whoever started it does; here that is this test.
    let reaped =
        || async { gone().await.or_else(|| pids.iter().all(|p| is_zombie(p)).then_some(())) };
    eventually("the program ends", reaped).await?;
    drop((a, c));
    bed.finish().await
}

/// The tunnels that were there have the port that WireGuard is to have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_that_encrypts_from_its_next_start_on_is_in_order_at_once() -> Result<()> {
    let mut bed = Bed::new(2).await?;
    let (plan, other) = (plan(65), Plan::new(66, "red").with(11, 1, &[]).with(21, 2, &[]));
    bed.apply(&[&plan, &other]).await?;
    let (a, c, mut stream) = two_that_talk(&bed, &plan).await?;
    for at in 0..2 {
        bed.nodes[at].networks = None;
        bed.nodes[at].encrypt()?;
        bed.nodes[at].restart().await?;
    }
    // Nothing is wrong, and nothing is said to be.
    bed.apply(&[&plan, &other]).await?;
    let wire = Wire::tap(&bed)?;
    echoes(&mut stream)?;
    let frames = wire.frames();
    ensure!(frames.iter().any(|frame| is_sealed(frame)), "nothing sealed was seen");
    ensure!(!frames.iter().any(|frame| has_clear(frame)), "something was sent as it is");
    drop((a, c));
    bed.finish().await
}

fn is_zombie(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_encrypt_is_not_talked_to() -> Result<()> {
    let mut bed = Bed::new(2).await?;
    bed.nodes[0].encrypt()?;
    bed.nodes[0].restart().await?;
    let plan = plan(63);
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let c = bed.machine(1, &plan, 21).await?;
    c.echo(80);
    a.echo(80);
    let wire = Wire::tap(&bed)?;
    ensure!(!a.connects(SocketAddrV4::new(c.address, 80)), "to a plain node");
    ensure!(!c.connects(SocketAddrV4::new(a.address, 80)), "from a plain node");
    let tunnelled = |frame: &Vec<u8>| frame.get(23) == Some(&17);
    ensure!(!wire.frames().iter().any(tunnelled), "something was sent");
    drop((a, c));
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_one_host_encrypt_too() -> Result<()> {
    let mut bed = Bed::new(2).await?;
    bed.nodes.iter_mut().try_for_each(Node::encrypt)?;
    let bed = bed.move_to_one_host().await?;
    let plan = plan(64).group("web", vec![tcp(1, 80)]).with(22, 2, &["web"]);
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let c = bed.machine(1, &plan, 22).await?;
    c.echo(80);
    c.echo(81);
    echoes(&mut dial(&a, &c)?)?;
    ensure!(!a.connects(SocketAddrV4::new(c.address, 81)), "rules hold");
    drop((a, c));
    bed.finish().await
}
