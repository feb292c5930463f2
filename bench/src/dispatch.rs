//! How fast jobs go through.

use crate::error::BenchError;
use crate::http1::Wire;
use crate::options::Progress;
use crate::report::{Baseline, Check, Goal};
use crate::rig::Rig;
use crate::start::{ms, spec};
use crate::stats::Sample;
use bytes::Bytes;
use futures_util::future::try_join_all;
use skein_api::{Job, Machine, ScaleRequest};
use skein_model::{JobStateName, PhaseName, ScalingPolicy};
use skein_net::{Connector, NetworkName};
use std::cell::{Cell, RefCell};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

const SERVICE: &str = "dispatch";
/// What a job carries: a short query.
const BODY: &[u8] = b"the quick brown fox jumps over the lazy dog";
/// Exchanges before the first that counts: the emulator has translated the code they run.
const REHEARSALS: u32 = 50;
/// Replicas of the closed loop.
const REPLICAS: u32 = 4;
/// Submitters of the closed loop: each submits one job, waits for its end, and submits the next. 64: four for each
/// slot of four replicas with four slots, so that the queue is never empty.
const SUBMITTERS: usize = 64;
/// Before the first window of the closed loop.
const WARM_UP: Duration = Duration::from_secs(2);
/// Windows in which jobs are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// How many of them: with `-n 300` and more, and at least 2.
const WINDOWS_MAX: u32 = 10;
/// How long machines may take to come or go.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sequential jobs beside the machine's own HTTP, and a closed loop over four replicas.
pub(crate) async fn measure(
    rig: &Rig,
    count: u32,
    progress: Progress<'_>,
) -> Result<Vec<Check>, BenchError> {
    let policy = ScalingPolicy { replicas_min: 1, replicas_max: 1, ..ScalingPolicy::default() };
    rig.client.create_service(&spec(SERVICE, policy)?).await?;
    let machines = ready(rig, 1).await?;
    let (ours, direct) = sequential(rig, &machines[0], count, progress).await?;
    let both = Some(REPLICAS);
    rig.client.scale(SERVICE, &ScaleRequest { min: both, max: both, warm: None }).await?;
    ready(rig, REPLICAS as usize).await?;
    let windows = (count / 30).clamp(2, WINDOWS_MAX);
    let (rate, accepted, twice) = closed_loop(rig, windows, progress).await?;
    let lost = lost(rig, accepted + u64::from(count + REHEARSALS), progress).await?;
    rig.client.remove_service(SERVICE).await?;
    Ok(vec![
        Check::new("dispatch.overhead", "ms", ours, OVERHEAD_ABOUT)
            .beside(Baseline { name: "the machine's HTTP", sample: direct })
            .with_goal(Goal::AboveBaselineAtMost(1.0)),
        Check::new("dispatch.rate", "jobs/s", rate, RATE_ABOUT).with_goal(Goal::AtLeast(1500.0)),
        Check::new("dispatch.lost", "jobs", Sample::new([(lost + twice) as f64]), LOST_ABOUT)
            .with_goal(Goal::AtMost(0.0)),
    ])
}

const OVERHEAD_ABOUT: &str = "A job of 43 bytes by the API, submitted with wait_ms, from the request to the end of \
    the answer: durable before it is accepted, and so is its result. Beside it: the same request to the same machine's \
    HTTP, in turn, over a kept connection from inside the node's namespace: what the job costs without queue and store.";
const RATE_ABOUT: &str = "Jobs per second, end to end, all durable: 64 submitters, each with one job under way \
    (single submissions with wait_ms), four replicas with the image's capacity, in windows of one second. Submitters, server, \
    agent and emulated machines share the host's cores. No baseline: what a user would pick instead (a queue in Redis or \
    PostgreSQL and a worker of their own) is not installed with the product, and what it guarantees differs.";
const LOST_ABOUT: &str = "Accepted jobs that are not done exactly once: those that did not end as done, those that took \
    more than one attempt, and every fault of an audit of the whole queue.";

async fn ready(rig: &Rig, count: usize) -> Result<Vec<Machine>, BenchError> {
    rig.machines_until("ready machines", PATIENCE, |machines| {
        let ready: Vec<Machine> =
            machines.iter().filter(|m| m.state == PhaseName::Ready).cloned().collect();
        (ready.len() == count).then_some(ready)
    })
    .await
}

/// Milliseconds by the API and directly, in turn.
async fn sequential(
    rig: &Rig,
    machine: &Machine,
    count: u32,
    progress: Progress<'_>,
) -> Result<(Sample, Sample), BenchError> {
    let mut api = rig.wire().await?;
    let mut direct = direct(rig, machine).await?;
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for round in 0..count + REHEARSALS {
        let answer = api.post_ok(&submit_path(), Bytes::from_static(BODY)).await?;
        if !done_once(&answer.body)? {
            return Err(BenchError::unexpected(
                "a sequential job was not done at its first attempt",
            ));
        }
        let alone = direct.post_ok("/", Bytes::from_static(BODY)).await?;
        if round >= REHEARSALS {
            ours.push(ms(answer.whole));
            base.push(ms(alone.whole));
        }
    }
    let (ours, base) = (Sample::new(ours), Sample::new(base));
    progress(&format!(
        "dispatch.overhead: {:.2} ms by the API, {:.2} ms directly (medians of {count})",
        ours.median(),
        base.median()
    ));
    Ok((ours, base))
}

fn submit_path() -> String {
    format!("/v1/services/{SERVICE}/jobs?wait_ms=30000")
}

fn done_once(body: &[u8]) -> Result<bool, BenchError> {
    let job: Job = serde_json::from_slice(body)
        .map_err(|error| BenchError::unexpected(format!("the answer is no job: {error}")))?;
    Ok(job.state == JobStateName::Done && job.attempts == 1)
}

/// A connection to a machine, made inside its node's network.
async fn direct(rig: &Rig, machine: &Machine) -> Result<Wire, BenchError> {
    let unknown = || BenchError::unexpected(format!("machine {} has no address", machine.id));
    let ip = machine.ip.as_ref().and_then(|ip| ip.parse().ok()).ok_or_else(unknown)?;
    let to = SocketAddrV4::new(ip, rig.port);
    let vni = rig.client.network(&machine.network).await?.vni;
    let network = format!("{}-{}-v{vni}", rig.cloud.id(), machine.node);
    let network: NetworkName =
        network.parse().map_err(|_| BenchError::unexpected(format!("{network} is no network")))?;
    let Some(connector) = Connector::beside(&network)? else {
        return Err(BenchError::unexpected(format!("the network {network} does not exist")));
    };
    let stream =
        connector.connect(to).await.map_err(BenchError::io(format!("connecting to {to}")))?;
    Wire::over(stream, &to.to_string()).await
}

/// What the submitters of the closed loop have seen. They take turns on one task.
#[derive(Default)]
struct Loop {
    accepted: Cell<u64>,
    done: Cell<u64>,
    faulty: Cell<u64>,
    ended: Cell<bool>,
    windows: RefCell<Vec<f64>>,
}

/// Jobs per second, jobs accepted, and jobs that were not done at their first attempt.
async fn closed_loop(
    rig: &Rig,
    windows: u32,
    progress: Progress<'_>,
) -> Result<(Sample, u64, u64), BenchError> {
    let seen = Loop::default();
    let mut wires = Vec::with_capacity(SUBMITTERS);
    for _ in 0..SUBMITTERS {
        wires.push(rig.wire().await?);
    }
    let submitters = try_join_all(wires.iter_mut().map(|wire| submitter(wire, &seen)));
    let count = async {
        tokio::time::sleep(WARM_UP).await;
        for window in 1..=windows {
            let (begun, before) = (Instant::now(), seen.done.get());
            tokio::time::sleep(WINDOW).await;
            let rate = (seen.done.get() - before) as f64 / begun.elapsed().as_secs_f64();
            progress(&format!("dispatch.rate {window}/{windows}: {rate:.0} jobs/s"));
            seen.windows.borrow_mut().push(rate);
        }
        seen.ended.set(true);
        Ok(())
    };
    tokio::try_join!(submitters, count)?;
    let rates = Sample::new(seen.windows.take());
    Ok((rates, seen.accepted.get(), seen.faulty.get()))
}

async fn submitter(wire: &mut Wire, seen: &Loop) -> Result<(), BenchError> {
    while !seen.ended.get() {
        let answer = wire.post_ok(&submit_path(), Bytes::from_static(BODY)).await?;
        seen.accepted.set(seen.accepted.get() + 1);
        match done_once(&answer.body)? {
            true => seen.done.set(seen.done.get() + 1),
            false => seen.faulty.set(seen.faulty.get() + 1),
        }
    }
    Ok(())
}

/// Faults of the queue, and the difference between the jobs it holds and those that were accepted.
async fn lost(rig: &Rig, accepted: u64, progress: Progress<'_>) -> Result<u64, BenchError> {
    let audit = rig.cloud.parts().queue.audit().await;
    let audit = audit.map_err(|error| BenchError::unexpected(error.to_string()))?;
    for fault in audit.faults.iter().take(10) {
        progress(&format!("dispatch.lost: {fault}"));
    }
    progress(&format!("dispatch.lost: {accepted} jobs accepted, {} found", audit.jobs));
    Ok(audit.faults.len() as u64 + audit.jobs.abs_diff(accepted))
}
