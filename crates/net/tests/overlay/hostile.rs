//! A machine that lies about who it is gets nothing through.

use crate::common::bed::{Bed, Machine, Plan, inside, run};
use crate::common::eventually;
use crate::{allow, tcp};
use anyhow::{Result, ensure};
use skein_net::{Direction, RulePeer, RuleProtocol};
use std::io::Read;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

fn everything() -> Vec<skein_net::Rule> {
    vec![allow(1, Direction::Ingress, RuleProtocol::Any, RulePeer::Any)]
}

/// Listens to every frame that arrives at a machine.
pub(crate) struct Listener(socket2::Socket);

impl Listener {
    pub(crate) fn at(machine: &Machine) -> Self {
        let open = || {
            let all = socket2::Protocol::from(i32::from(3_u16.to_be()));
            let socket =
                socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, Some(all));
            let socket = socket.expect("a packet socket");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            socket
        };
        Self(inside(machine.name(), open))
    }

    /// Frames until one holds `marker`.
    pub(crate) fn until(&mut self, marker: &[u8]) -> Option<Vec<Vec<u8>>> {
        let (start, mut frames) = (Instant::now(), Vec::new());
        let mut buffer = vec![0; 4096];
        while start.elapsed() < Duration::from_secs(10) {
            let Ok(count) = (&self.0).read(&mut buffer) else { continue };
            let frame = buffer[..count].to_vec();
            let is_marker = frame.windows(marker.len()).any(|part| part == marker);
            frames.push(frame);
            if is_marker {
                return Some(frames);
            }
        }
        None
    }
}

/// Sends raw frames from a machine's interface.
pub(crate) fn send(machine: &Machine, frames: Vec<Vec<u8>>) {
    inside(machine.name(), move || frames.iter().for_each(|frame| raw_send(frame)));
}

/// By a script: choosing the interface of a packet socket takes `unsafe` in Rust.
fn raw_send(frame: &[u8]) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let script = "import socket,sys\ns=socket.socket(17,3)\ns.bind(('eth0',0))\ns.send(sys.stdin.buffer.read())";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .spawn()
        .expect("python3 sends frames");
    child.stdin.take().expect("piped").write_all(frame).expect("written");
    child.wait().expect("ended");
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A UDP datagram with this text.
fn udp(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), text: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).expect("short").to_be_bytes();
    let mut packet = vec![0x45, 0];
    packet.extend(length(28 + text.len()));
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let words = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.extend(length(8 + text.len()));
    packet.extend([0, 0]);
    packet.extend(text);
    packet
}

fn arp_reply(
    sender_mac: [u8; 6],
    sender: Ipv4Addr,
    target_mac: [u8; 6],
    target: Ipv4Addr,
) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 2];
    payload.extend(sender_mac);
    payload.extend(sender.octets());
    payload.extend(target_mac);
    payload.extend(target.octets());
    payload
}

/// The kernel has ways of its own for the reserved addresses of IEEE 802.1D; none may lead past the rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_for_reserved_addresses_are_no_way_past_the_rules() -> Result<()> {
    let bed = Bed::new(1).await?;
    let plan = Plan::new(34, "blue").group("all", everything()).with(11, 1, &["all"]);
    let plan = plan.with(12, 1, &["all"]);
    bed.apply(&[&plan]).await?;
    let liar = bed.machine(0, &plan, 11).await?;
    let near = bed.machine(0, &plan, 12).await?;
    let mut ears = Listener::at(&near);
    let other = plan.mac(99).octets();
    let forged = |last: u8| {
        let sender = Ipv4Addr::new(10, 20, 0, 70 + last);
        let mut question = arp_reply(other, sender, [0; 6], plan.network.gateway);
        question[7] = 1;
        ethernet([0x01, 0x80, 0xc2, 0, 0, last], other, 0x0806, &question)
    };
    send(&liar, (0..16).map(forged).collect());
    // What comes behind them has come, so they have been looked at.
    let (own, to) = (plan.mac(11).octets(), plan.mac(12).octets());
    let honest = udp(liar.address, near.address, (5, 5), b"honest");
    send(&liar, vec![ethernet(to, own, 0x0800, &honest)]);
    ensure!(ears.until(b"honest").is_some(), "nothing comes at all");
    let inner = bed.nodes[0].networks().name(plan.network.vni).namespace();
    let known = run(&format!("ip -n {inner} neigh show"))?;
    let strangers = known
        .lines()
        .filter(|line| (70..86).any(|last| line.starts_with(&format!("10.20.0.{last} "))));
    ensure!(strangers.count() == 0, "somebody was believed: {known}");
    // A bridge that an earlier release made is guarded too.
    run(&format!("ip -n {inner} link set skbr0 type bridge group_fwd_mask 0"))?;
    let guarded = async || {
        let shown = run(&format!("ip -n {inner} -d link show skbr0")).ok()?;
        shown.contains("group_fwd_mask 0xfff8").then_some(())
    };
    eventually("the bridge to be guarded again", guarded).await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_frames_reach_nobody() -> Result<()> {
    let bed = Bed::new(2).await?;
    let plan = Plan::new(30, "blue")
        .group("all", everything())
        .with(11, 1, &["all"])
        .with(12, 1, &["all"])
        .with(21, 2, &["all"]);
    bed.apply(&[&plan]).await?;
    let liar = bed.machine(0, &plan, 11).await?;
    let near = bed.machine(0, &plan, 12).await?;
    let far = bed.machine(1, &plan, 21).await?;
    let (own, mut other) = (plan.mac(11).octets(), plan.mac(99).octets());
    other[5] = 99;
    for victim in [&near, &far] {
        let mut ears = Listener::at(victim);
        let index = victim.address.octets()[3];
        let to = plan.mac(index).octets();
        let say = |from: Ipv4Addr, text: &[u8]| udp(from, victim.address, (5, 5), text);
        let mut tagged = vec![0, 7, 8, 0];
        tagged.extend(say(liar.address, b"forged vlan"));
        let stranger = Ipv4Addr::new(10, 20, 0, 77);
        let gateway = plan.network.gateway;
        let mut router = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
        router.extend("fe80::1".parse::<std::net::Ipv6Addr>()?.octets());
        router.extend("ff02::1".parse::<std::net::Ipv6Addr>()?.octets());
        router.extend([134, 0, 0, 0]);
        router.extend(b"forged router");
        let frames = vec![
            ethernet(to, other, 0x0800, &say(liar.address, b"forged mac")),
            ethernet(to, own, 0x0800, &say(stranger, b"forged address")),
            ethernet(to, own, 0x8100, &tagged),
            ethernet(to, own, 0x0800, &udp(liar.address, victim.address, (67, 68), b"forged dhcp")),
            ethernet(to, own, 0x0806, &arp_reply(own, gateway, to, victim.address)),
            ethernet(to, own, 0x86dd, &router),
            ethernet(
                [0xff; 6],
                own,
                0x0800,
                &udp(liar.address, Ipv4Addr::BROADCAST, (5, 5), b"forged broadcast"),
            ),
            ethernet([0x33, 0x33, 0, 0, 0, 1], own, 0x86dd, &router),
            ethernet(to, own, 0x88b5, b"forged type"),
            ethernet(to, own, 0x0800, &say(liar.address, b"honest")),
        ];
        let sent = frames.len();
        send(&liar, frames);
        let heard = ears.until(b"honest").expect("what is honest arrives");
        for frame in &heard {
            let forged = frame.windows(6).any(|part| part == b"forged");
            let arp = frame[12..14] == [8, 6]
                && frame.get(28..32) == Some(&gateway.octets()[..])
                && frame.get(22..28) == Some(&own[..]);
            ensure!(!forged && !arp, "{} of {sent} frames, among them {frame:x?}", heard.len());
        }
    }
    let counters = bed.nodes[0].networks().counters(plan.network.vni).await?;
    for name in ["drop spoofed-mac", "drop spoofed-ip4", "drop spoofed-arp", "drop ether-type"] {
        let counted = counters.iter().any(|counter| counter.name == name && counter.packets > 0);
        ensure!(counted, "{name}: {counters:?}");
    }
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_addresses_of_two_projects_do_not_meet() -> Result<()> {
    let bed = Bed::new(2).await?;
    let with = |vni, project| {
        Plan::new(vni, project).group("all", everything()).with(11, 1, &["all"]).with(
            21,
            2,
            &["all"],
        )
    };
    let (blue, green) = (with(31, "blue"), with(32, "green"));
    bed.apply(&[&blue, &green]).await?;
    let a = bed.machine(0, &blue, 11).await?;
    let b = bed.machine(1, &blue, 21).await?;
    let c = bed.machine(0, &green, 11).await?;
    let d = bed.machine(1, &green, 21).await?;
    b.echo(80);
    ensure!(a.connects((b.address, 80)), "blue reaches blue");
    ensure!(!c.connects((d.address, 80)), "green reached blue");
    ensure!(!c.connects((d.address6.expect("IPv6"), 80)), "green reached blue");
    let mut ears = Listener::at(&d);
    let to = [0xff; 6];
    let own = blue.mac(11).octets();
    let text = udp(a.address, Ipv4Addr::BROADCAST, (5, 5), b"blue to all");
    send(&a, vec![ethernet(to, own, 0x0800, &text)]);
    let text = udp(c.address, d.address, (5, 5), b"green");
    send(&c, vec![ethernet(green.mac(21).octets(), own, 0x0800, &text)]);
    let heard = ears.until(b"green").expect("green hears green");
    ensure!(!heard.iter().any(|frame| frame.windows(4).any(|part| part == b"blue")));
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_goes_cuts_a_live_connection() -> Result<()> {
    use std::io::Write;
    let bed = Bed::new(2).await?;
    let mut plan = Plan::new(33, "blue")
        .group("web", vec![tcp(1, 80), tcp(2, 81)])
        .with(11, 1, &["web"])
        .with(12, 1, &["web"])
        .with(21, 2, &["web"]);
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let near = bed.machine(0, &plan, 12).await?;
    let far = bed.machine(1, &plan, 21).await?;
    let mut streams = Vec::new();
    for (to, port) in [(&near, 80), (&far, 80), (&near, 81), (&far, 81)] {
        to.echo(port);
        let to = std::net::SocketAddr::from((to.address, port));
        let stream = inside(a.name(), move || std::net::TcpStream::connect(to))?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        streams.push((port, stream));
    }
    let echoes = |stream: &mut std::net::TcpStream| {
        let mut byte = [0; 1];
        stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok()
    };
    for (port, stream) in &mut streams {
        ensure!(echoes(stream), "port {port} before");
    }
    plan.set_group("web", vec![tcp(2, 81)]);
    bed.apply(&[&plan]).await?;
    for (port, stream) in &mut streams {
        ensure!(echoes(stream) == (*port == 81), "port {port} after");
    }
    bed.finish().await
}
