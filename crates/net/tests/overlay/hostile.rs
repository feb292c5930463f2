//! A machine that lies about who it is gets nothing through.

use crate::common::bed::{Bed, Machine, Plan, inside, run};
use crate::common::eventually;
use crate::encrypted::Wire;
use crate::{allow, tcp};
use anyhow::{Result, ensure};
use skein_net::{Direction, RulePeer, RuleProtocol};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
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

/// Sends raw frames from a machine's interface. By a script: choosing the interface of a packet socket takes `unsafe` in Rust.
pub(crate) fn send(machine: &Machine, frames: Vec<Vec<u8>>) {
    const SCRIPT: &str = "import socket,sys\ns=socket.socket(17,3)\ns.bind(('eth0',0))\n\
        for line in sys.stdin:\n s.send(bytes.fromhex(line))";
    let hex = |frame: &Vec<u8>| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines: String = frames.iter().map(|frame| hex(frame) + "\n").collect();
    inside(machine.name(), move || {
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .spawn()
            .expect("python3 sends frames");
        child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("written");
        assert!(child.wait().expect("ended").success(), "frames were not sent");
    });
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

/// A packet of IPv6 with this behind its header.
fn packet6((from, to): (Ipv6Addr, Ipv6Addr), next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).expect("short").to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// A neighbour's advertisement for an address (RFC 4861, section 4.4), and text behind it.
fn advertisement(target: Ipv6Addr, mac: [u8; 6], text: &[u8]) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(target.octets());
    message.extend([2, 1]);
    message.extend(mac);
    message.extend(text);
    message
}

/// A question for a lease (RFC 2131, section 2) in the name of a MAC address, and text where a server's name stands.
fn discover(mac: [u8; 6], text: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[28..34].copy_from_slice(&mac);
    message[44..44 + text.len()].copy_from_slice(text);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, 1, 255]);
    udp(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, (68, 67), &message)
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
        let all6: Ipv6Addr = "ff02::1".parse()?;
        let router = [&[134, 0, 0, 0][..], b"forged router"].concat();
        let router = packet6(("fe80::1".parse()?, all6), 58, &router);
        let (own6, victim6) = (plan.address6(11).expect("IPv6"), victim.address6.expect("IPv6"));
        let stranger6: Ipv6Addr = "fd00:20::77".parse()?;
        // The gateway's address is the liar's, it says.
        let claim = advertisement("fe80::1".parse()?, own, b"forged neighbour");
        let frames = vec![
            ethernet(to, other, 0x0800, &say(liar.address, b"forged mac")),
            ethernet(to, own, 0x0800, &say(stranger, b"forged address")),
            ethernet(to, own, 0x8100, &tagged),
            ethernet(to, own, 0x0800, &udp(liar.address, victim.address, (67, 68), b"forged dhcp")),
            ethernet(to, own, 0x0806, &arp_reply(own, gateway, to, victim.address)),
            ethernet(
                to,
                own,
                0x86dd,
                &packet6((stranger6, victim6), 17, b"forged address of IPv6"),
            ),
            ethernet(to, own, 0x86dd, &packet6((victim6, own6), 58, &claim)),
            ethernet([0x33, 0x33, 0, 0, 0, 1], own, 0x86dd, &packet6((own6, all6), 58, &claim)),
            ethernet([0xff; 6], own, 0x0800, &discover(to, b"forged client")),
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
    let kinds =
        ["mac", "ip4", "ip6", "arp", "dhcp", "router"].map(|kind| format!("spoofed-{kind}"));
    for name in kinds.iter().map(String::as_str).chain(["ether-type"]) {
        let name = format!("drop {name}");
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
    // Every machine of each project says all it can to the other's; what it says last is for its own and honest.
    for (from, near, text, others) in [
        (&a, &b, "blue", [&c, &d]),
        (&b, &a, "blue", [&c, &d]),
        (&c, &d, "green", [&a, &b]),
        (&d, &c, "green", [&a, &b]),
    ] {
        let mut ears = others.map(Listener::at);
        let own = blue.mac(from.address.octets()[3]).octets();
        send(from, to_everybody(&blue, from, text));
        for (other, ears) in others.iter().zip(&mut ears) {
            let mate = others.iter().find(|mate| mate.address != other.address).expect("two");
            let [to, by] = [other, mate].map(|of| blue.mac(of.address.octets()[3]).octets());
            let last = udp(mate.address, other.address, (5, 5), b"of its own project");
            send(mate, vec![ethernet(to, by, 0x0800, &last)]);
            let heard = ears.until(b"of its own project").expect("its own are heard");
            let foreign =
                |frame: &Vec<u8>| frame.windows(text.len()).any(|part| part == text.as_bytes());
            ensure!(!heard.iter().any(foreign), "{} hears {text}", other.address);
        }
        let mut ears = Listener::at(near);
        let to = blue.mac(near.address.octets()[3]).octets();
        let last = udp(from.address, near.address, (5, 5), b"to its own project");
        send(from, vec![ethernet(to, own, 0x0800, &last)]);
        ensure!(ears.until(b"to its own project").is_some(), "{text} hears its own");
    }
    bed.finish().await
}

/// Frames of a machine for one, many and all, its own and forged, each with `text` in it.
fn to_everybody(plan: &Plan, from: &Machine, text: &str) -> Vec<Vec<u8>> {
    let own = plan.mac(from.address.octets()[3]).octets();
    let own6 = from.address6.expect("IPv6");
    let local: Ipv6Addr = "fe80::ff:fe00:b".parse().expect("an address");
    let all6: Ipv6Addr = "ff02::1".parse().expect("an address");
    let said = text.as_bytes();
    let (mut frames, stranger) = (Vec::new(), [2, 0, 0, 0, 0, 99]);
    // A UDP header of four ports' bytes, a length and no checksum, which nobody needs to find right.
    let datagram = [&[0, 5, 0, 5, 0, 20, 0, 0][..], said].concat();
    let targets = [11, 21, 99].map(|index| (plan.mac(index).octets(), plan.address(index)));
    let groups = [
        ([0xff; 6], Ipv4Addr::BROADCAST),
        ([0xff; 6], Ipv4Addr::new(10, 20, 0, 255)),
        ([0x01, 0, 0x5e, 0, 0, 1], Ipv4Addr::new(224, 0, 0, 1)),
        ([0x01, 0, 0x5e, 0, 0, 0xfb], Ipv4Addr::new(224, 0, 0, 251)),
    ];
    for (to, address) in targets.into_iter().chain(groups) {
        let packet = udp(from.address, address, (5, 5), said);
        let lie = udp(Ipv4Addr::new(10, 20, 0, 77), address, (5, 5), said);
        frames.push(ethernet(to, own, 0x0800, &packet));
        frames.push(ethernet(to, stranger, 0x0800, &packet));
        frames.push(ethernet(to, own, 0x0800, &lie));
        for tag in [[0, 0], [0, 31], [0, 32]] {
            let tagged = [&tag[..], &[8, 0], &packet].concat();
            frames.push(ethernet(to, own, 0x8100, &tagged));
            frames.push(ethernet(to, own, 0x88a8, &tagged));
        }
        let mut question = arp_reply(own, from.address, [0; 6], address);
        question.extend(said);
        frames.push(ethernet(to, own, 0x0806, &question));
        question[7] = 1;
        frames.push(ethernet(to, own, 0x0806, &question));
    }
    let six = [11, 21].map(|index| (plan.mac(index).octets(), plan.address6(index).expect("IPv6")));
    let many =
        [([0x33, 0x33, 0, 0, 0, 1], all6), (plan.mac(21).octets(), local), ([0xff; 6], all6)];
    for (to, address) in six.into_iter().chain(many) {
        for source in [own6, local] {
            frames.push(ethernet(to, own, 0x86dd, &packet6((source, address), 17, &datagram)));
            let claim = advertisement(address, own, said);
            frames.push(ethernet(to, own, 0x86dd, &packet6((source, address), 58, &claim)));
        }
    }
    frames.push(ethernet([0xff; 6], own, 0x0800, &discover(own, said)));
    frames.push(ethernet([0xff; 6], own, 0x88b5, said));
    frames
}

/// The MAC address to which a frame on the wire carries another, if it does (RFC 7348, section 5) and comes from the first
/// node.
fn carried_to(frame: &[u8]) -> Option<&[u8]> {
    let tunnel = frame.get(23) == Some(&17) && frame.get(36..38) == Some(&4789_u16.to_be_bytes());
    let first = frame.get(26..30) == Some(&[192, 0, 2, 1]);
    frame.get(50..56).filter(|_| tunnel && first)
}

/// DHCP, ARP, neighbours and whatever is for many, or for nobody known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_for_many_stays_on_its_node() -> Result<()> {
    let bed = Bed::new(2).await?;
    let plan = Plan::new(35, "blue").group("all", everything()).with(11, 1, &["all"]);
    let plan = plan.with(21, 2, &["all"]);
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(1, &plan, 21).await?;
    let wire = Wire::tap(&bed)?;
    let mut ears = Listener::at(&b);
    send(&a, to_everybody(&plan, &a, "blue"));
    let last = udp(a.address, b.address, (5, 5), b"the last of all");
    send(&a, vec![ethernet(plan.mac(21).octets(), plan.mac(11).octets(), 0x0800, &last)]);
    ensure!(ears.until(b"the last of all").is_some(), "what is for one arrives");
    let frames = wire.frames();
    let to: Vec<&[u8]> = frames.iter().filter_map(|frame| carried_to(frame)).collect();
    ensure!(!to.is_empty(), "nothing was seen on the wire");
    let other = to.iter().find(|to| **to != plan.mac(21).octets());
    ensure!(other.is_none(), "a frame for {other:x?} crossed");
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_goes_cuts_a_live_connection() -> Result<()> {
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
