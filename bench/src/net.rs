//! How fast machines talk, and how fast networks change: two nodes as network namespaces, without a cloud around them; and
//! a whole cloud whose machines are played, for what a user waits for a port.

mod api;
mod arp;
mod lab;

use crate::error::BenchError;
use crate::host;
use crate::options::{Bench, Progress};
use crate::report::{Baseline, Check, Goal, Report};
use crate::rig::until;
use crate::stats::Sample;
use api::Played;
use lab::{Lab, Pair, desired_with, group};
use skein_net::{Desired, DesiredNetwork, GroupName, NodeNetworks};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one stream runs in each window.
const WINDOW: Duration = Duration::from_millis(500);
/// Exchanges of one window, and windows of each turn: short ones, so that ours and the baseline meet the same host.
const EXCHANGES: u32 = 1_000;
const EXCHANGE_WINDOWS: u32 = 4;
/// Ports and rules that are programmed at once.
const PORTS: u16 = 1_000;
const RULES: u16 = 100;
/// Changes and plugs of one measurement: one by itself says little.
const CHANGES: u32 = 5;

/// Runs the bench; it needs root, and no image. `stop` ends it before its time.
///
/// # Errors
/// [`BenchError`]; nothing is left behind then either.
pub async fn run_net(
    count: Option<u32>,
    stop: impl Future<Output = ()>,
    progress: Progress<'_>,
) -> Result<Report, BenchError> {
    let bench = Bench::Net;
    let given = bench.count(count)?;
    let mut stop = std::pin::pin!(stop);
    progress("net: starting a cloud whose machines are played");
    let played = Played::start().await?;
    let plugs = until(&mut stop, played.plugs(given * CHANGES, progress)).await;
    let ended = played.end().await;
    let plug = Check::new("net.plug", "ms", plugs?, PLUG_ABOUT).with_goal(Goal::AtMost(50.0));
    ended?;
    progress("net: making two nodes, and the same without anything in between");
    let lab = Lab::new().await?;
    let checks = until(&mut stop, measure(&lab, given, progress)).await;
    let ended = lab.end().await;
    let mut checks = checks?;
    ended?;
    checks.push(plug);
    let host = host::without_guests();
    Ok(Report {
        bench: bench.name(),
        version: env!("CARGO_PKG_VERSION"),
        host,
        checks,
        plots: Vec::new(),
    })
}

/// Throughput and round trip beside a bare bridge and a bare tunnel, then plugging, programming and changing.
async fn measure(lab: &Lab, count: u32, progress: Progress<'_>) -> Result<Vec<Check>, BenchError> {
    let mut checks = Vec::new();
    for (ids, pairs) in [
        (["net.local", "net.local.rtt"], lab.local()),
        (["net.remote", "net.remote.rtt"], lab.remote()),
    ] {
        checks.extend(talk(ids, pairs, count, progress).await?);
    }
    checks.extend(plug(lab, count, progress).await?);
    checks.extend(program(lab, count, progress).await?);
    Ok(checks)
}

/// Ours and the baseline in turns.
async fn talk(
    [stream_id, rtt_id]: [&'static str; 2],
    [ours, bare]: [Pair; 2],
    count: u32,
    progress: Progress<'_>,
) -> Result<[Check; 2], BenchError> {
    let (mut rates, mut times) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for turn in 0..count {
        progress(&format!("{stream_id}: {} of {count}", turn + 1));
        for (at, pair) in [&ours, &bare].into_iter().enumerate() {
            rates[at].push(pair.stream(WINDOW).await?);
        }
        for _ in 0..EXCHANGE_WINDOWS {
            for (at, pair) in [&ours, &bare].into_iter().enumerate() {
                times[at].push(pair.round_trip(EXCHANGES).await?);
            }
        }
    }
    let name = if stream_id == "net.local" { "bare bridge" } else { "bare VXLAN" };
    let [our_rates, bare_rates] = rates.map(Sample::new);
    let [our_times, bare_times] = times.map(Sample::new);
    // Gigabits per second turned into nanoseconds per kilobyte, so that less is better for both.
    let stream = Check::new(stream_id, "ns/KiB", our_rates, STREAM_ABOUT)
        .beside(Baseline { name, sample: bare_rates })
        .with_goal(Goal::RatioAtMost(1.11));
    let rtt = Check::new(rtt_id, "us", our_times, RTT_ABOUT)
        .beside(Baseline { name, sample: bare_times })
        .with_goal(Goal::RatioAtMost(1.11));
    Ok([stream, rtt])
}

const STREAM_ABOUT: &str = "One TCP stream between two machines (network namespaces, so that no emulator is measured), \
    time per KiB. Beside it: the same machines on a bridge, or on bridges joined by VXLAN, with no rules at all.";
const RTT_ABOUT: &str =
    "64 bytes there and back over one TCP connection; the median of 1,000. Beside it: as above.";

/// From the desired state with one more port to the gateway's first answer to its machine: alone, and among many.
async fn plug(lab: &Lab, count: u32, progress: Progress<'_>) -> Result<[Check; 2], BenchError> {
    let few = plugs(lab, ("net.plug.node", 0), count, progress).await?;
    progress(&format!("net.plug.many: plugging {MANY} ports"));
    let crowd = lab.crowd(MANY).await?;
    let many = plugs(lab, ("net.plug.many", MANY), count, progress).await;
    lab.disperse(crowd).await?;
    let alone = Check::new("net.plug.node", "ms", few.clone(), NODE_ABOUT);
    let among = Check::new("net.plug.many", "ms", many?, MANY_ABOUT);
    let beside = Baseline { name: "the same among 2", sample: few };
    Ok([alone, among.beside(beside).with_goal(Goal::RatioAtMost(2.0))])
}

/// One port after the other, each gone before the next, in a network with `others` besides its own.
async fn plugs(
    lab: &Lab,
    (id, others): (&str, u16),
    count: u32,
    progress: Progress<'_>,
) -> Result<Sample, BenchError> {
    let mut times = Vec::new();
    for turn in 0..count * CHANGES {
        progress(&format!("{id}: {} of {}", turn + 1, count * CHANGES));
        times.push(lab.plug(others).await?.as_secs_f64() * 1e3);
    }
    Ok(Sample::new(times))
}

/// Ports that are plugged in besides.
const MANY: u16 = 500;
const MANY_ABOUT: &str = "The same in a network with 500 ports more, all plugged in. Beside it: net.plug.node. What a port costs \
    does not grow with those that are there, but for what is compared in memory.";

const PLUG_ABOUT: &str = "From the request for a service of one machine to the API, to the gateway's answer to the machine's \
    first packet: record, decision, address, port, rules. The machine is played: no emulator is in it.";
const NODE_ABOUT: &str = "The node's part of net.plug: a port is added to what the node should have and plugged in: from there to the gateway's answer \
    to the machine's first packet. Rules, forwarding and neighbours are in place by then.";

/// All at once, then one member of a group.
async fn program(lab: &Lab, count: u32, progress: Progress<'_>) -> Result<[Check; 2], BenchError> {
    let nodes = lab.networks();
    let (mut whole, mut changes) = (Vec::new(), Vec::new());
    for turn in 0..count.clamp(1, 3) {
        progress(&format!("net.program: {}", turn + 1));
        let many = many_groups(lab);
        whole.push(applied(nodes, many).await?.as_secs_f64());
        applied(nodes, lab.plain()).await?;
    }
    let one = one_group(lab, None);
    applied(nodes, one).await?;
    for turn in 0..count * CHANGES {
        progress(&format!("net.change: {} of {}", turn + 1, count * CHANGES));
        let out = u16::try_from(turn).unwrap_or(0) % PORTS;
        let changed = one_group(lab, Some(out));
        changes.push(applied(nodes, changed).await?.as_secs_f64() * 1e3);
    }
    applied(nodes, lab.plain()).await?;
    let program = Check::new("net.program", "s", Sample::new(whole), PROGRAM_ABOUT);
    let change = Check::new("net.change", "ms", Sample::new(changes), CHANGE_ABOUT);
    Ok([program.with_goal(Goal::AtMost(10.0)), change.with_goal(Goal::AtMost(50.0))])
}

const PROGRAM_ABOUT: &str = "1,000 ports, each with a group of its own of 100 rules, from nothing.";
const CHANGE_ABOUT: &str = "One of 1,000 members leaves a group and another comes back, from the new desired state to the \
    kernel's answer; connections that became forbidden are cut in it.";

async fn applied(networks: &NodeNetworks, desired: Desired) -> Result<Duration, BenchError> {
    let start = Instant::now();
    let applied = networks.apply(desired).await;
    let took = start.elapsed();
    match applied.failed.into_iter().next() {
        Some((_, error)) => Err(error.into()),
        None if applied.invalid.is_empty() => Ok(took),
        None => Err(BenchError::unexpected(format!("{:?}", applied.invalid))),
    }
}

fn many_groups(lab: &Lab) -> Desired {
    lab.with_network(|network: &mut DesiredNetwork| {
        for index in 0..PORTS {
            let name = format!("g{index}");
            network.groups.push(group(&name, RULES));
            network.ports.push(desired_with(index, &[name]));
        }
    })
}

/// All ports but one in the same group, which its own rule names.
fn one_group(lab: &Lab, out: Option<u16>) -> Desired {
    lab.with_network(|network: &mut DesiredNetwork| {
        network.groups.push(group("all", RULES));
        for index in 0..PORTS {
            let groups: &[String] = if out == Some(index) { &[] } else { &["all".to_owned()] };
            network.ports.push(desired_with(index, groups));
        }
    })
}

/// Used by the lab: names of groups.
pub(crate) fn names(groups: &[String]) -> Vec<GroupName> {
    groups.iter().filter_map(|group| group.parse().ok()).collect()
}

/// A desired state with one network.
pub(crate) fn whole(base: &Desired, network: DesiredNetwork) -> Desired {
    Desired { networks: vec![Arc::new(network)], ..base.clone() }
}
