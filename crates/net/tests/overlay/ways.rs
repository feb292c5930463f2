//! Limits and captures; and that a trace says what real packets do.

use crate::common::bed::{Bed, Machine, Plan, inside};
use crate::{allow, tcp};
use anyhow::{Context, Result, ensure};
use skein_net::{
    CaptureOptions, Direction, Payload, PortLimits, PortRange, Probe, Rate, Rule, RulePeer,
    RuleProtocol, Transport, trace,
};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Bytes per second of one stream from one machine to another, for `window`.
pub(crate) fn rate(from: &Machine, to: &Machine, port: u16, window: Duration) -> f64 {
    let listener = inside(to.name(), move || TcpListener::bind(("0.0.0.0", port)).expect("free"));
    let at = SocketAddr::from((to.address, port));
    let mut sender = inside(from.name(), move || TcpStream::connect(at).expect("allowed"));
    let (mut receiver, _) = listener.accept().expect("a connection");
    sender.set_write_timeout(Some(window)).expect("a timeout");
    let reader = std::thread::spawn(move || {
        let (mut buffer, start, mut bytes) = (vec![0; 1 << 16], Instant::now(), 0_usize);
        while start.elapsed() < window {
            match receiver.read(&mut buffer) {
                Ok(count @ 1..) => bytes += count,
                _ => break,
            }
        }
        bytes as f64 / start.elapsed().as_secs_f64()
    });
    let (chunk, start) = (vec![7; 1 << 16], Instant::now());
    while start.elapsed() < window && sender.write(&chunk).is_ok() {}
    drop(sender);
    reader.join().expect("the reader does not panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold() -> Result<()> {
    let bed = Bed::new(2).await?;
    let mut plan = Plan::new(50, "blue")
        .group("all", vec![allow(1, Direction::Ingress, RuleProtocol::Any, RulePeer::Any)])
        .with(11, 1, &["all"])
        .with(12, 1, &["all"])
        .with(21, 2, &["all"]);
    let limit = Rate { bits_per_second: Some(20_000_000), packets_per_second: None };
    plan.limits = vec![(12, PortLimits { sends: limit, receives: Rate::default() })];
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(0, &plan, 12).await?;
    let c = bed.machine(1, &plan, 21).await?;
    let free = rate(&a, &c, 9000, Duration::from_secs(1));
    let limited = rate(&b, &c, 9001, Duration::from_secs(2));
    // 20 Mbit/s are 2.5 MB/s, and of the first second twice that.
    ensure!(limited < 4e6 && limited > 2e5, "{limited} bytes a second");
    ensure!(free > limited * 2.0, "{free} and {limited} bytes a second");
    bed.finish().await
}

/// Datagrams that arrive of those that are sent without a pause for `window`, a second.
fn datagrams(from: &Machine, to: &Machine, port: u16, window: Duration) -> f64 {
    let ears = inside(to.name(), move || UdpSocket::bind(("0.0.0.0", port)).expect("free"));
    ears.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let at = SocketAddr::from((to.address, port));
    let mouth = inside(from.name(), || UdpSocket::bind("0.0.0.0:0").expect("free"));
    let sender = std::thread::spawn(move || {
        let start = Instant::now();
        while start.elapsed() < window {
            let _ = mouth.send_to(b"datagram", at);
        }
    });
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < window {
        count += u32::from(ears.recv(&mut [0; 16]).is_ok());
    }
    let seconds = start.elapsed().as_secs_f64();
    sender.join().expect("no panic");
    f64::from(count) / seconds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_of_packets_and_of_what_a_machine_receives_hold() -> Result<()> {
    let bed = Bed::new(2).await?;
    let mut plan = Plan::new(57, "blue")
        .group("all", vec![allow(1, Direction::Ingress, RuleProtocol::Any, RulePeer::Any)]);
    for (index, at) in [(11, 1), (12, 1), (13, 1), (14, 1), (21, 2)] {
        plan = plan.with(index, at, &["all"]);
    }
    let bits = Rate { bits_per_second: Some(20_000_000), packets_per_second: None };
    let packets = Rate { bits_per_second: None, packets_per_second: Some(500) };
    let (sends, receives) = (Rate::default(), Rate::default());
    plan.limits = vec![
        (12, PortLimits { sends: packets, receives }),
        (13, PortLimits { sends, receives: packets }),
        (14, PortLimits { sends, receives: bits }),
    ];
    bed.apply(&[&plan]).await?;
    let mut machines = Vec::new();
    for (at, index) in [(0, 11), (0, 12), (0, 13), (0, 14), (1, 21)] {
        machines.push(bed.machine(at, &plan, index).await?);
    }
    let [free, sender, receiver, slow, far] = &machines[..] else { anyhow::bail!("five") };
    let window = Duration::from_secs(1);
    // 500 a second, and a burst of 32.
    for (from, to) in [(sender, free), (sender, far), (free, receiver), (far, receiver)] {
        let count = datagrams(from, to, 9005, window);
        ensure!((50.0..650.0).contains(&count), "{} to {}: {count}", from.address, to.address);
    }
    let count = datagrams(free, far, 9005, window);
    ensure!(count > 1000.0, "without a bound: {count}");
    for from in [free, far] {
        // 20 Mbit/s are 2.5 MB/s, and of the first second twice that.
        let limited = rate(from, slow, 9001, window * 2);
        ensure!((2e5..4e6).contains(&limited), "{limited} bytes a second from {}", from.address);
    }
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_holds_what_passes() -> Result<()> {
    let bed = Bed::new(1).await?;
    let plan = Plan::new(51, "blue").group("web", vec![tcp(1, 80)]).with(11, 1, &["web"]).with(
        12,
        1,
        &["web"],
    );
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(0, &plan, 12).await?;
    b.echo(80);
    let networks = bed.nodes[0].networks();
    let options = CaptureOptions::default();
    let mut capture = networks.capture(plan.network.vni, b.address, options).await?;
    ensure!(a.connects((b.address, 80)));
    let found = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let frame = capture.frame().await?;
            // TCP to port 80, from one machine to the other.
            if frame.get(36..38) == Some(&[0, 80]) && frame.get(26..30) == Some(&a.address.octets())
            {
                return anyhow::Ok(());
            }
        }
    });
    found.await.context("no frame")??;
    let counters = networks.counters(plan.network.vni).await?;
    ensure!(counters.iter().any(|c| c.name == "rule web in 1" && c.packets == 1), "{counters:?}");
    bed.finish().await
}

/// Rules and packets from a small generator, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn rule(&mut self, id: u32) -> Rule {
        let first = 80 + u16::try_from(self.roll(4)).expect("small");
        let ports = PortRange::new(first, first + u16::try_from(self.roll(2)).expect("small"));
        let protocol = match self.roll(5) {
            0 => RuleProtocol::Any,
            1 => RuleProtocol::Udp(ports.expect("in order")),
            _ => RuleProtocol::Tcp(ports.expect("in order")),
        };
        let peer = match self.roll(4) {
            0 => RulePeer::Any,
            1 => RulePeer::Range("10.20.0.8/29".parse().expect("a range")),
            2 => RulePeer::Group("one".parse().expect("a group")),
            _ => RulePeer::Group("two".parse().expect("a group")),
        };
        let direction = if self.roll(3) == 0 { Direction::Egress } else { Direction::Ingress };
        allow(id, direction, protocol, peer)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_says_what_packets_do() -> Result<()> {
    let bed = Bed::new(2).await?;
    let base = |one: Vec<Rule>, two: Vec<Rule>| {
        Plan::new(52, "blue")
            .group("one", one)
            .group("two", two)
            .with(11, 1, &["one"])
            .with(12, 1, &["two"])
            .with(21, 2, &["one", "two"])
    };
    let plan = base(Vec::new(), Vec::new());
    bed.apply(&[&plan]).await?;
    let mut machines = Vec::new();
    for (index, at) in [(11, 0), (12, 0), (21, 1)] {
        let machine = bed.machine(at, &plan, index).await?;
        (80..84).for_each(|port| machine.echo(port));
        machines.push(machine);
    }
    for seed in 1..=6_u64 {
        let mut dice = Dice(seed);
        let [one, two] = [0, 1].map(|_| (0..3).map(|id| dice.rule(id)).collect::<Vec<_>>());
        let plan = base(one, two);
        bed.apply(&[&plan]).await?;
        let nodes = [bed.desired(0, &[&plan]), bed.desired(1, &[&plan])];
        for from in &machines {
            for to in machines.iter().filter(|to| to.address != from.address) {
                for port in 80..84 {
                    let probe = Probe {
                        source: from.address.into(),
                        destination: to.address.into(),
                        payload: Payload::Port(Transport::Tcp, port),
                    };
                    let said = trace(&nodes, plan.network.vni, &probe);
                    let real = from.connects((to.address, port));
                    ensure!(said.arrives() == real, "seed {seed}, port {port}: {real}, {said:?}");
                }
            }
        }
    }
    bed.finish().await
}
