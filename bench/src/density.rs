//! How many machines a host holds, and what they cost.

use crate::error::BenchError;
use crate::floor::Bare;
use crate::host;
use crate::options::Progress;
use crate::process;
use crate::report::{Baseline, Check, Goal};
use crate::rig::Rig;
use crate::start::spec;
use crate::stats::Sample;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use skein_api::{EventStream, ScaleRequest};
use skein_model::{EventKind, Placement, ScalingPolicy};
use skein_net::Port;
use std::time::{Duration, Instant};

const SERVICE: &str = "dense";
/// How often all machines are started: ours, bare, ours, bare, ...
const ROUNDS: u32 = 3;
/// Idle time is measured in so many windows of this length.
const WINDOWS: u32 = 3;
const WINDOW: Duration = Duration::from_secs(10);
/// After the last machine is ready: what starting left to do is done.
const SETTLE: Duration = Duration::from_secs(5);
/// How long all machines may take to come or go.
const PATIENCE: Duration = Duration::from_secs(300);

/// Many idle machines at once: memory, processor time, and how fast they start.
pub(crate) async fn measure(
    rig: &Rig,
    count: u32,
    progress: Progress<'_>,
) -> Result<Vec<Check>, BenchError> {
    let placement = Placement::LeastLoaded;
    let policy = ScalingPolicy { replicas_max: count, placement, ..ScalingPolicy::default() };
    rig.client.create_service(&spec(SERVICE, policy)?).await?;
    let mut events = rig.client.follow_events(0).await?;
    let mut found = Found::default();
    for round in 1..=ROUNDS {
        scale(rig, count).await?;
        let rate = ready_rate(&mut events, count).await?;
        found.rate.push(rate);
        progress(&format!(
            "density {round}/{ROUNDS}: {count} machines, {rate:.1} a second and core"
        ));
        if round == 1 {
            tokio::time::sleep(SETTLE).await;
            idle(rig, count, &mut found, progress).await?;
        }
        scale(rig, 0).await?;
        rig.machines_gone(PATIENCE).await?;
        let (rate, memory) = bare(rig, count).await?;
        progress(&format!(
            "density {round}/{ROUNDS}: {count} bare QEMU, {rate:.1} a second and core"
        ));
        found.bare_rate.push(rate);
        found.bare_memory.extend(memory);
    }
    rig.client.remove_service(SERVICE).await?;
    Ok(found.checks())
}

#[derive(Default)]
struct Found {
    memory: Vec<f64>,
    bare_memory: Vec<f64>,
    idle: Vec<f64>,
    control: Vec<f64>,
    rate: Vec<f64>,
    bare_rate: Vec<f64>,
}

impl Found {
    fn checks(self) -> Vec<Check> {
        let bare = |values: Vec<f64>| Baseline { name: "bare QEMU", sample: Sample::new(values) };
        vec![
            Check::new("density.memory", "MiB", Sample::new(self.memory), MEMORY_ABOUT)
                .by_mean()
                .beside(bare(self.bare_memory))
                .with_goal(Goal::AtMost(20.0)),
            Check::new("density.idle", "% of a core", Sample::new(self.idle), IDLE_ABOUT)
                .with_goal(Goal::AtMost(10.0)),
            Check::new("density.control", "% of a core", Sample::new(self.control), CONTROL_ABOUT),
            Check::new("density.rate", "1/s and core", Sample::new(self.rate), RATE_ABOUT)
                .beside(bare(self.bare_rate))
                .with_goal(Goal::AtLeast(15.0)),
        ]
    }
}

const MEMORY_ABOUT: &str = "Proportional memory (PSS) of a machine's QEMU process, the mean over all machines. Beside \
    it: as many bare QEMU processes with the same kernel and memory, which have served one request each.";
const IDLE_ABOUT: &str = "Processor time of all machines' QEMU processes together while nothing is asked of them, in \
    windows of 10 s. No baseline: bare machines that nobody watches are the same guests.";
const CONTROL_ABOUT: &str =
    "Processor time of server and agent (and of this bench, which sleeps) in the same windows.";
const RATE_ABOUT: &str = "All machines at once, from the request to scale to the last one's readiness, divided by the \
    cores. Beside it: a loop that makes a tap, starts bare QEMU and takes its first answer, with one \
    more under way than there are cores, as the agent does.";

async fn scale(rig: &Rig, machines: u32) -> Result<(), BenchError> {
    let request = match machines {
        0 => ScaleRequest { min: Some(0), max: Some(1), warm: None },
        machines => ScaleRequest { min: Some(machines), max: Some(machines), warm: None },
    };
    rig.client.scale(SERVICE, &request).await?;
    Ok(())
}

/// Waits until so many machines have become ready; how many a second and core since the call.
async fn ready_rate(events: &mut EventStream, count: u32) -> Result<f64, BenchError> {
    let begun = Instant::now();
    let all = async {
        let mut ready = 0;
        while ready < count {
            match events.next().await? {
                Some(line) if matches!(line.event, EventKind::MachineReady { .. }) => ready += 1,
                Some(_) => {}
                None => return Err(BenchError::unexpected("the stream of events ended")),
            }
        }
        Ok(())
    };
    let what = || format!("the start of {count} machines");
    tokio::time::timeout(PATIENCE, all)
        .await
        .map_err(|_| BenchError::Deadline { what: what(), waited: PATIENCE })??;
    Ok(rate(count, begun))
}

fn rate(count: u32, begun: Instant) -> f64 {
    f64::from(count) / begun.elapsed().as_secs_f64() / f64::from(host::cores())
}

/// What machines cost while nothing is asked of them.
async fn idle(
    rig: &Rig,
    count: u32,
    found: &mut Found,
    progress: Progress<'_>,
) -> Result<(), BenchError> {
    let pids = rig.machine_processes();
    if pids.len() != count as usize {
        let what = format!("{} processes run instead of {count}", pids.len());
        return Err(BenchError::unexpected(what));
    }
    let used = || pids.iter().map(|pid| process::cpu(*pid)).sum::<Duration>();
    let own = || process::cpu(std::process::id());
    for window in 1..=WINDOWS {
        let (begun, before, own_before) = (Instant::now(), used(), own());
        tokio::time::sleep(WINDOW).await;
        let share = |spent: Duration| 100.0 * spent.as_secs_f64() / begun.elapsed().as_secs_f64();
        let (idle, control) =
            (share(used().saturating_sub(before)), share(own().saturating_sub(own_before)));
        progress(&format!(
            "density.idle {window}/{WINDOWS}: machines {idle:.1} %, server and agent {control:.1} % of a core"
        ));
        found.idle.push(idle);
        found.control.push(control);
    }
    found.memory.extend(memory(&pids));
    Ok(())
}

fn memory(pids: &[u32]) -> Vec<f64> {
    let bytes = pids.iter().filter_map(|pid| process::proportional_bytes(*pid));
    bytes.map(|bytes| bytes as f64 / (1024.0 * 1024.0)).collect()
}

/// The same with bare QEMU: rate and memory.
async fn bare(rig: &Rig, count: u32) -> Result<(f64, Vec<f64>), BenchError> {
    let begun = Instant::now();
    let at_once = host::cores() as usize + 1;
    let one = |number: u32| async move {
        let port = rig.floor.plug(number).await?;
        let machine = rig.floor.spawn(&port)?;
        machine.first_answer(Bytes::from_static(b"hello")).await?;
        Ok::<(Port, Bare), BenchError>((port, machine))
    };
    let machines: Vec<(Port, Bare)> =
        stream::iter(1..=count).map(one).buffer_unordered(at_once).try_collect().await?;
    let rate = rate(count, begun);
    let pids: Vec<u32> = machines.iter().filter_map(|(_, machine)| machine.pid()).collect();
    let memory = memory(&pids);
    for (port, machine) in machines {
        machine.end().await?;
        rig.floor.unplug(port).await?;
    }
    Ok((rate, memory))
}
