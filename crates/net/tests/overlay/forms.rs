//! Each form of a rule, asked with real packets of each kind: it lets through what it says, and nothing else.

use crate::allow;
use crate::common::bed::{Bed, Machine, Plan, inside};
use anyhow::{Context, Result, ensure};
use skein_net::{
    Direction, Payload, PortRange, Probe, Rule, RulePeer, RuleProtocol, Transport, trace,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(400);
/// A protocol for experiments (RFC 3692).
const EXPERIMENT: u8 = 253;

/// A packet of some kind, from one machine to another.
#[derive(Debug, Clone, Copy)]
struct Try {
    from: u8,
    to: u8,
    is_v6: bool,
    payload: Payload,
}

impl Try {
    fn is(&self, transport: Transport, ports: std::ops::RangeInclusive<u16>) -> bool {
        matches!(self.payload, Payload::Port(of, port) if of == transport && ports.contains(&port))
    }

    fn is_icmp(&self) -> bool {
        matches!(self.payload, Payload::Icmp(_))
    }

    /// Whether something comes back.
    fn passes(&self, from: &Machine, to: &Machine) -> bool {
        let to = match self.is_v6 {
            true => IpAddr::V6(to.address6.expect("IPv6")),
            false => IpAddr::V4(to.address),
        };
        match self.payload {
            Payload::Port(Transport::Tcp, port) => from.connects((to, port)),
            Payload::Port(Transport::Udp, port) => {
                inside(from.name(), move || answers_datagram((to, port).into()))
            }
            Payload::Icmp(_) => inside(from.name(), move || answers_ping(to)),
            Payload::Number(_) => false,
        }
    }
}

fn answers_datagram(to: SocketAddr) -> bool {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.send_to(b"there?", to).is_ok() && socket.recv(&mut [0; 16]).is_ok()
}

/// Whether an echo request is answered (RFC 792; RFC 4443, section 4.1).
fn answers_ping(to: IpAddr) -> bool {
    let id: u16 = rand::random();
    let mut request = match to {
        IpAddr::V4(_) => vec![8, 0, 0, 0, 0, 0, 0, 0],
        IpAddr::V6(_) => vec![128, 0, 0, 0, 0, 0, 0, 0],
    };
    request[4..6].copy_from_slice(&id.to_be_bytes());
    // The kernel writes that of IPv6.
    let sum = 0x0800 + u32::from(id);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    let (domain, protocol, header, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 20, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 0, 129),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).expect("a raw socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    if socket.send_to(&request, &SocketAddr::from((to, 0)).into()).is_err() {
        return false;
    }
    let (start, mut buffer) = (Instant::now(), [0; 256]);
    while start.elapsed() < PATIENCE {
        let Ok(count) = (&socket).read(&mut buffer) else { continue };
        let message = buffer[..count].get(header..).unwrap_or_default();
        if message.first() == Some(&reply) && message.get(4..6) == Some(&id.to_be_bytes()) {
            return true;
        }
    }
    false
}

/// Answers datagrams at a port.
fn answer_datagrams(machine: &Machine, port: u16) {
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let socket = inside(machine.name(), move || UdpSocket::bind(at)).expect("the port is free");
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..count], from);
        }
    });
}

/// What is asked of each form.
fn tries() -> Vec<Try> {
    let mut all = Vec::new();
    for (from, to) in [(11, 12), (11, 21), (13, 12), (13, 21)] {
        for is_v6 in [false, true] {
            let ports = [Transport::Tcp, Transport::Udp].map(|of| [80, 81].map(|port| (of, port)));
            let ports = ports.into_iter().flatten().map(|(of, port)| Payload::Port(of, port));
            let echo = Payload::Icmp(if is_v6 { 128 } else { 8 });
            let of = |payload| Try { from, to, is_v6, payload };
            all.extend(ports.chain([echo]).map(of));
        }
    }
    all
}

/// A rule, and what passes with it alone.
type Form = (Rule, fn(&Try) -> bool);

fn ingress(protocol: RuleProtocol, peer: RulePeer, passes: fn(&Try) -> bool) -> Form {
    (allow(1, Direction::Ingress, protocol, peer), passes)
}

fn egress(protocol: RuleProtocol, peer: RulePeer, passes: fn(&Try) -> bool) -> Form {
    (allow(1, Direction::Egress, protocol, peer), passes)
}

fn ports(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).expect("in order")
}

fn range(text: &str) -> RulePeer {
    RulePeer::Range(text.parse().expect("a range"))
}

fn group(name: &str) -> RulePeer {
    RulePeer::Group(name.parse().expect("a group"))
}

/// Rules of those who are asked: everybody may send everything.
fn ingress_forms() -> Vec<Form> {
    use RuleProtocol::{Any, Icmp, Tcp, Udp};
    vec![
        ingress(Any, RulePeer::Any, |_| true),
        ingress(Tcp(ports(80, 80)), RulePeer::Any, |t| t.is(Transport::Tcp, 80..=80)),
        ingress(Tcp(ports(80, 81)), RulePeer::Any, |t| t.is(Transport::Tcp, 80..=81)),
        ingress(Udp(ports(81, 90)), RulePeer::Any, |t| t.is(Transport::Udp, 81..=90)),
        ingress(Icmp(None), RulePeer::Any, Try::is_icmp),
        ingress(Icmp(Some(8)), RulePeer::Any, |t| t.is_icmp() && !t.is_v6),
        ingress(RuleProtocol::Number(6), RulePeer::Any, |t| t.is(Transport::Tcp, 0..=u16::MAX)),
        ingress(Any, range("0.0.0.0/0"), |t| !t.is_v6),
        ingress(Any, range("10.20.0.11/32"), |t| !t.is_v6 && t.from == 11),
        ingress(Any, range("10.20.0.8/30"), |t| !t.is_v6 && t.from == 11),
        ingress(Any, range("fd00:20::b/128"), |t| t.is_v6 && t.from == 11),
        ingress(Tcp(ports(80, 80)), range("fd00:20::/64"), |t| {
            t.is_v6 && t.is(Transport::Tcp, 80..=80)
        }),
        ingress(Any, group("peers"), |t| t.from == 11),
        ingress(Udp(ports(80, 80)), group("peers"), |t| {
            t.from == 11 && t.is(Transport::Udp, 80..=80)
        }),
        ingress(Icmp(None), group("peers"), |t| t.from == 11 && t.is_icmp()),
    ]
}

/// Rules of one of those who ask, 11; the other may send everything, and both are let in everywhere.
fn egress_forms() -> Vec<Form> {
    use RuleProtocol::{Any, Icmp, Tcp, Udp};
    vec![
        egress(Tcp(ports(81, 81)), RulePeer::Any, |t| {
            t.from == 13 || t.is(Transport::Tcp, 81..=81)
        }),
        egress(Icmp(None), RulePeer::Any, |t| t.from == 13 || t.is_icmp()),
        egress(Udp(ports(80, 81)), range("10.20.0.12/32"), |t| {
            t.from == 13 || t.to == 12 && !t.is_v6 && t.is(Transport::Udp, 80..=81)
        }),
        egress(Any, range("fd00:20::/64"), |t| t.from == 13 || t.is_v6),
        egress(Any, group("far"), |t| t.from == 13 || t.to == 21),
    ]
}

fn plan(web: Rule, out: Option<Rule>) -> Plan {
    Plan::new(53, "blue")
        .group("web", vec![web])
        .group("peers", Vec::new())
        .group("far", Vec::new())
        .group("out", out.into_iter().collect())
        .with(11, 1, &["peers", "out"])
        .with(13, 1, &[])
        .with(12, 1, &["web"])
        .with(21, 2, &["web", "far"])
}

/// Asks everything at once, and compares with what the form says and with what a trace says.
async fn check(bed: &Bed, plan: &Plan, machines: &[(u8, Machine)], form: &Form) -> Result<()> {
    bed.apply(&[plan]).await?;
    let nodes = [bed.desired(0, &[plan]), bed.desired(1, &[plan])];
    let machine = |index: u8| {
        let found = machines.iter().find(|(of, _)| *of == index);
        found.map(|(_, machine)| machine).expect("a machine of the plan")
    };
    let all = tries();
    let seen: Vec<bool> = std::thread::scope(|scope| {
        let asked: Vec<_> = all
            .iter()
            .map(|one| scope.spawn(|| one.passes(machine(one.from), machine(one.to))))
            .collect();
        asked.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    let (rule, passes) = form;
    for (one, seen) in all.iter().zip(seen) {
        ensure!(seen == passes(one), "with {rule:?}, {one:?}: {seen}");
        let address = |index: u8| match one.is_v6 {
            true => plan.address6(index).map(IpAddr::V6),
            false => Some(IpAddr::V4(plan.address(index))),
        };
        let (source, destination) = (address(one.from), address(one.to));
        let (source, destination) = source.zip(destination).context("addresses")?;
        let probe = Probe { source, destination, payload: one.payload };
        let said = trace(&nodes, plan.network.vni, &probe);
        ensure!(said.arrives() == seen, "with {rule:?}, {one:?}: {seen}, and the trace: {said:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_form_of_a_rule_lets_through_what_it_says() -> Result<()> {
    let bed = Bed::new(2).await?;
    let everything = allow(1, Direction::Ingress, RuleProtocol::Any, RulePeer::Any);
    let first = plan(everything.clone(), None);
    bed.apply(&[&first]).await?;
    let mut machines = Vec::new();
    for (index, at) in [(11, 0), (13, 0), (12, 0), (21, 1)] {
        let machine = bed.machine(at, &first, index).await?;
        for port in [80, 81] {
            machine.echo(port);
            answer_datagrams(&machine, port);
        }
        machines.push((index, machine));
    }
    for form in ingress_forms() {
        check(&bed, &plan(form.0.clone(), None), &machines, &form).await?;
    }
    for form in egress_forms() {
        let plan = plan(everything.clone(), Some(form.0.clone()));
        check(&bed, &plan, &machines, &form).await?;
    }
    bed.finish().await
}

/// What is neither TCP, UDP nor ICMP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_protocol_may_be_named_by_its_number() -> Result<()> {
    let bed = Bed::new(2).await?;
    let of = |number| allow(1, Direction::Ingress, RuleProtocol::Number(number), RulePeer::Any);
    let first = plan(of(EXPERIMENT), None);
    bed.apply(&[&first]).await?;
    let from = bed.machine(0, &first, 11).await?;
    let to = bed.machine(1, &first, 21).await?;
    let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(EXPERIMENT))));
    let ears = inside(to.name(), raw)?;
    ears.set_read_timeout(Some(PATIENCE))?;
    let mouth = inside(from.name(), raw)?;
    let at = SocketAddr::from((to.address, 0)).into();
    let heard = || -> Result<bool> {
        mouth.send_to(b"an experiment", &at)?;
        Ok((&ears).read(&mut [0; 64]).is_ok())
    };
    ensure!(heard()?, "what the rule names");
    bed.apply(&[&plan(of(EXPERIMENT + 1), None)]).await?;
    ensure!(!heard()?, "what the rule does not name");
    bed.finish().await
}
