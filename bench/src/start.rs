//! How fast a machine starts.

use crate::error::BenchError;
use crate::http1::{Answer, Wire};
use crate::options::Progress;
use crate::report::{Baseline, Check, Goal};
use crate::rig::{IMAGE, Rig};
use crate::stats::Sample;
use bytes::Bytes;
use skein_model::{PhaseName, ScalingPolicy, ScalingRule, ServiceSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const COLD: &str = "cold";
const WARM: &str = "warm";
/// What is sent and comes back.
const BODY: &[u8] = b"the quick brown fox jumps over the lazy dog";
/// Between the end of one measurement and the next: what the last one left to do is done.
const SETTLE: Duration = Duration::from_millis(200);
/// How long machines may take to come or go.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts from zero beside bare QEMU, calls of warm machines, and the guest's own boot.
pub(crate) async fn measure(
    rig: &Rig,
    count: u32,
    progress: Progress<'_>,
) -> Result<Vec<Check>, BenchError> {
    let mut wire = rig.wire().await?;
    let (cold, floor, guest) = cold(rig, &mut wire, count, progress).await?;
    let warm = warm(rig, &mut wire, count, progress).await?;
    Ok(vec![
        Check::new("start.cold", "ms", cold, COLD_ABOUT)
            .beside(Baseline { name: "bare QEMU", sample: floor })
            .with_goal(Goal::RatioAtMost(1.5)),
        Check::new("start.warm", "ms", warm, WARM_ABOUT).with_goal(Goal::AtMost(5.0)),
        Check::new("start.guest", "ms", guest, GUEST_ABOUT).with_goal(Goal::AtMost(10.0)),
    ])
}

const COLD_ABOUT: &str = "A call of a service without machines, from the request to the first byte of the answer. \
    Beside it: bare QEMU, from its start to the first byte of its first answer, with the same kernel, machine type, \
    memory, accelerator and network card, on a tap made beforehand, without sandbox, consoles or monitor. It is the \
    least anybody could take: nothing decides, nothing is durable, nothing watches.";
const WARM_ABOUT: &str = "A call when a machine waits that has not served before (scaling.warm = 1), from the \
    request to the first byte of the answer. No baseline: without a product there is no warm machine.";
const GUEST_ABOUT: &str = "From the first instruction of the kernel to listening, as the guest measures it. It is \
    the guest of start.cold; a baseline would be another system, whose work is another.";

/// A service that goes to zero as soon as it may, so that the next call finds no machine.
fn cold_spec() -> Result<ServiceSpec, BenchError> {
    let soon = Duration::from_millis(50);
    spec(
        COLD,
        ScalingPolicy {
            replicas_max: 1,
            zero_grace: soon,
            cooldown: Duration::ZERO,
            rule: ScalingRule::Concurrency {
                target: 0.7,
                stable_window: soon,
                panic_window: soon,
                panic_threshold: 2.0,
            },
            ..ScalingPolicy::default()
        },
    )
}

/// A service of the bench's image with this policy.
pub(crate) fn spec(name: &str, scaling: ScalingPolicy) -> Result<ServiceSpec, BenchError> {
    let wrong = |_| BenchError::unexpected(format!("{name} is no name"));
    Ok(ServiceSpec {
        name: name.parse().map_err(wrong)?,
        image: IMAGE.parse().map_err(wrong)?,
        memory: None,
        capacity: None,
        // Machines that wait for work reserve little, so that a small host holds as many as are measured.
        cpu_milli: 10,
        parameters: BTreeMap::new(),
        network: skein_model::Attachment::default(),
        scaling,
        queue: skein_model::QueuePolicy::default(),
    })
}

/// Ours, the floor's and the guest's milliseconds; ours and the floor's in turn.
async fn cold(
    rig: &Rig,
    wire: &mut Wire,
    count: u32,
    progress: Progress<'_>,
) -> Result<(Sample, Sample, Sample), BenchError> {
    rig.client.create_service(&cold_spec()?).await?;
    let port = rig.floor.plug(1).await?;
    let (mut ours, mut floor, mut guest) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=count {
        rig.machines_gone(PATIENCE).await?;
        tokio::time::sleep(SETTLE).await;
        let answer =
            wire.post_ok(&format!("/v1/services/{COLD}/call"), Bytes::from_static(BODY)).await?;
        ours.push(ms(answer.first));
        let machine = machine_of(&answer)?;
        let parts = parts(rig, &answer).await?;
        if let Some(boot_us) = rig.client.machine(&machine).await?.boot_us {
            guest.push(boot_us as f64 / 1000.0);
        }
        rig.machines_gone(PATIENCE).await?;
        tokio::time::sleep(SETTLE).await;
        let bare = rig.floor.spawn(&port)?;
        let first = bare.first_answer(Bytes::from_static(BODY)).await;
        bare.end().await?;
        let first = first?.0;
        floor.push(ms(first));
        progress(&format!(
            "start.cold {round}/{count}: ours {:.1} ms ({parts}), bare QEMU {:.1} ms",
            ms(answer.first),
            ms(first)
        ));
    }
    rig.floor.unplug(port).await?;
    rig.client.remove_service(COLD).await?;
    Ok((Sample::new(ours), Sample::new(floor), Sample::new(guest)))
}

/// Milliseconds of calls, each of a machine that has not served before.
async fn warm(
    rig: &Rig,
    wire: &mut Wire,
    count: u32,
    progress: Progress<'_>,
) -> Result<Sample, BenchError> {
    let policy = ScalingPolicy { warm: 1, replicas_max: 4, ..ScalingPolicy::default() };
    rig.client.create_service(&spec(WARM, policy)?).await?;
    let (mut times, mut served) = (Vec::new(), BTreeSet::new());
    for round in 1..=count {
        let fresh = rig.machines_until("a warm machine", PATIENCE, |machines| {
            let ready =
                |m: &&skein_api::Machine| m.state == PhaseName::Ready && !served.contains(&m.id);
            // Alone: so the call can reach no other.
            let alone = machines.iter().all(|m| !served.contains(&m.id));
            machines.iter().find(ready).filter(|_| alone).map(|m| m.id.clone())
        });
        let fresh = fresh.await?;
        tokio::time::sleep(SETTLE).await;
        let answer =
            wire.post_ok(&format!("/v1/services/{WARM}/call"), Bytes::from_static(BODY)).await?;
        let machine = machine_of(&answer)?;
        if !served.insert(machine.clone()) {
            return Err(BenchError::unexpected(format!("machine {machine} served twice")));
        }
        times.push(ms(answer.first));
        let parts = parts(rig, &answer).await?;
        progress(&format!("start.warm {round}/{count}: {:.2} ms ({parts})", ms(answer.first)));
        served.insert(fresh.clone());
        for used in rig.client.machines(false).await? {
            served.insert(used.id.clone());
            rig.client.stop_machine(&used.id, true).await?;
        }
    }
    rig.client.remove_service(WARM).await?;
    Ok(Sample::new(times))
}

/// Where the time of a call went, as its job tells.
async fn parts(rig: &Rig, answer: &Answer) -> Result<String, BenchError> {
    let job = header(answer, "skein-job")?;
    let job = rig.client.job(&job, Duration::ZERO).await?;
    let figure = |ms: Option<f64>| ms.unwrap_or_default();
    Ok(format!(
        "{:.1} ms in queue, {:.1} ms in service",
        figure(job.queue_ms),
        figure(job.service_ms)
    ))
}

/// The machine that gave an answer.
fn machine_of(answer: &Answer) -> Result<String, BenchError> {
    header(answer, "skein-machine")
}

fn header(answer: &Answer, name: &str) -> Result<String, BenchError> {
    let value = answer.headers.get(name).and_then(|value| value.to_str().ok());
    value
        .map(str::to_owned)
        .ok_or_else(|| BenchError::unexpected(format!("an answer without {name}")))
}

/// Milliseconds of a duration.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
