//! The planner: how many events it simulates, how large chains it solves, and how much faster than what is in use it is.
//!
//! Needs no cloud, no root and no image. Everything is measured on the wall clock, medians of several runs; `plan.parallel` is
//! measured beside a loop that touches no memory, which says what the host's cores give at that moment.

mod peers;

use crate::error::BenchError;
use crate::host;
use crate::options::{Bench, Progress};
use crate::report::{Baseline, Check, Goal, Report};
use crate::stats::Sample;
use peers::{Peer, Python};
use skein_planner::bench as work;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

/// What the bench of the planner is told.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// How often each thing is measured; 5 unless given.
    pub count: Option<u32>,
    /// Where the Python of the peers is kept.
    pub cache: PathBuf,
}

const MMC: &str = "Events (arrivals and ends of service) per second of one thread simulating M/M/5 at load 0.8, with all statistics: \
    time-weighted means in 1,000 cells, a histogram of the time in system, the policy asked as in production.";
const FIFTEEN: &str = "Events per second of one thread simulating the fifteen-node system (experiment E6): links shared by transfers, \
    failures and repairs, three services that scale.";
const MEMORY: &str = "Growth of the process's greatest resident memory while M/M/5 is simulated for 2,000,000 s; the baseline is the same \
    for 20,000 s.";
const PARALLEL: &str = "How many times as fast two threads simulate as one (replications of M/M/5). The baseline is the same quotient of a \
    loop of additions, which shares nothing: what the host's two cores gave at that moment.";
const PEERS: &str = "Events per second of ours on M/M/5 at load 0.8, one thread; the baseline is the same model in Python, counted the same \
    way, from PyPI, run between ours.";
const CHAIN_2D: &str = "Seconds to build and solve the chain of a migrating service with 100 nodes and queues of 50 (258,000 states), certified.";
const CHAIN: &str = "Seconds to build and solve the published cluster of 2 x 128 workstations (597,012 states) as a general chain, certified.";
const CHAIN_MEMORY: &str = "Growth of the process's greatest resident memory while a chain of five million states is built and solved, certified.";
const STORM: &str = "Seconds to build and solve a migrating service with 20 nodes and queues of 20 (4,431 states); the baseline is Storm's \
    default method on the same model in PRISM's language, as `plan export --prism` writes it. Both must say the same share of refusals.";
const LARGE: &str = "Simulated seconds per second: 10,000 nodes with 100,000 replicas of 1,000 services under failures, one thread.";

/// Simulated seconds of one run of M/M/5: 8 events each.
const MMC_SECS: f64 = 250_000.0;

/// Runs the bench. `stop` ends it before its time.
///
/// # Errors
/// [`BenchError::Count`], [`BenchError::Interrupted`], or a chain that could not be certified.
pub async fn run_plan(
    options: &PlanOptions,
    stop: impl Future<Output = ()>,
    progress: Progress<'_>,
) -> Result<Report, BenchError> {
    let bench = Bench::Plan;
    let given = options.count.unwrap_or(bench.count_default());
    let (least, most) = bench.counts();
    if !(least..=most).contains(&given) {
        return Err(BenchError::Count { bench: bench.name(), given, least, most });
    }
    let checks = tokio::select! {
        checks = measure(options, given, progress) => checks?, // owns all it needs; a computation in progress ends by itself
        () = stop => return Err(BenchError::Interrupted),      // as the caller says
    };
    let host = host::without_guests();
    Ok(Report { bench: bench.name(), version: env!("CARGO_PKG_VERSION"), host, checks })
}

async fn measure(
    options: &PlanOptions,
    count: u32,
    progress: Progress<'_>,
) -> Result<Vec<Check>, BenchError> {
    let mut checks = vec![];
    progress("plan: simulating");
    let mmc = samples(count, || rate(|| work::mmc(MMC_SECS))).await?;
    checks.push(check("plan.mmc", "events/s", mmc, MMC, Goal::AtLeast(10e6)));
    let fifteen = samples(count, || rate(|| work::fifteen(20_000.0))).await?;
    checks.push(check("plan.fifteen", "events/s", fifteen, FIFTEEN, Goal::AtLeast(3e6)));
    checks.push(memory().await?);
    checks.push(parallel(count).await?);
    let large = samples(count.min(3), || simulated_per_second(10_000, 600.0)).await?;
    checks.push(check("plan.large", "times real time", large, LARGE, Goal::AtLeast(100.0)));
    progress("plan: solving chains");
    let chain_2d = samples(count, || certified(work::chain_2d)).await?;
    checks.push(check("plan.chain2d", "s", chain_2d, CHAIN_2D, Goal::AtMost(2.0)));
    let chain = samples(count.min(3), || certified(|| work::cluster(128))).await?;
    checks.push(check("plan.chain", "s", chain, CHAIN, Goal::AtMost(5.0)));
    let peak = samples(1, || {
        let before = Peak::begin();
        certified(work::chain_of_millions)?;
        Ok(before.grown_mib() / 1024.0)
    });
    checks.push(check("plan.chain_memory", "GiB", peak.await?, CHAIN_MEMORY, Goal::AtMost(4.0)));
    checks.extend(beside_peers(options, count, progress).await?);
    Ok(checks)
}

fn check(
    id: &'static str,
    unit: &'static str,
    sample: Vec<f64>,
    about: &'static str,
    goal: Goal,
) -> Check {
    Check::new(id, unit, Sample::new(sample), about).with_goal(goal)
}

/// So many measurements, on a thread of their own.
async fn samples(
    count: u32,
    one: impl Fn() -> Result<f64, BenchError> + Send + Sync + 'static,
) -> Result<Vec<f64>, BenchError> {
    let all = tokio::task::spawn_blocking(move || (0..count).map(|_| one()).collect());
    all.await.map_err(|_| BenchError::Bug)?
}

/// Work per second.
fn rate(work: impl Fn() -> u64) -> Result<f64, BenchError> {
    let begun = Instant::now();
    let done = black_box(work());
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

/// Seconds that a chain takes.
fn certified<T, E: std::fmt::Display>(solve: impl Fn() -> Result<T, E>) -> Result<f64, BenchError> {
    let begun = Instant::now();
    match solve() {
        Ok(answer) => {
            black_box(answer);
            Ok(begun.elapsed().as_secs_f64())
        }
        Err(error) => Err(BenchError::unexpected(format!("a chain of the bench: {error}"))),
    }
}

fn simulated_per_second(nodes: u32, secs: f64) -> Result<f64, BenchError> {
    let begun = Instant::now();
    black_box(work::large(nodes, secs));
    Ok(secs / begun.elapsed().as_secs_f64())
}

async fn memory() -> Result<Check, BenchError> {
    let grown = |secs: f64| {
        samples(1, move || {
            let before = Peak::begin();
            black_box(work::mmc(secs));
            Ok(before.grown_mib())
        })
    };
    // Once, so that what is made once in a process is not counted.
    grown(20_000.0).await?;
    let (short, long) = (grown(20_000.0).await?, grown(2_000_000.0).await?);
    let baseline = Baseline { name: "a hundredth of the time", sample: Sample::new(short) };
    let check = Check::new("plan.memory", "MiB", Sample::new(long), MEMORY).beside(baseline);
    Ok(check.with_goal(Goal::AboveBaselineAtMost(1.0)))
}

async fn parallel(count: u32) -> Result<Check, BenchError> {
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..count {
        let one = samples(1, || {
            let time = |threads| {
                let begun = Instant::now();
                let events = work::parallel(threads, 8, MMC_SECS / 4.0);
                let events = events.map_err(BenchError::unexpected)?;
                Ok::<f64, BenchError>(events as f64 / begun.elapsed().as_secs_f64())
            };
            Ok(time(2)? / time(1)?)
        });
        ours.extend(one.await?);
        theirs.push(spin_quotient().await?);
    }
    let baseline = Baseline { name: "a loop that shares nothing", sample: Sample::new(theirs) };
    let check = Check::new("plan.parallel", "times", Sample::new(ours), PARALLEL).beside(baseline);
    Ok(check.with_goal(Goal::AtLeast(1.8)))
}

/// How many times as much two threads add as one does.
async fn spin_quotient() -> Result<f64, BenchError> {
    fn spin() {
        let mut sum = 1u64;
        for step in 0..400_000_000u64 {
            sum = black_box(sum.wrapping_mul(3).wrapping_add(step));
        }
    }
    let one = samples(1, || {
        let time = |threads: usize| {
            let begun = Instant::now();
            std::thread::scope(|scope| {
                (0..threads).for_each(|_| drop(scope.spawn(spin)));
            });
            threads as f64 / begun.elapsed().as_secs_f64()
        };
        Ok(time(2) / time(1))
    });
    one.await?.first().copied().ok_or(BenchError::Bug)
}

/// Beside SimPy, Ciw and Storm, as far as they can be had.
async fn beside_peers(
    options: &PlanOptions,
    count: u32,
    progress: Progress<'_>,
) -> Result<Vec<Check>, BenchError> {
    let python = match Python::open(&options.cache).await {
        Ok(python) => python,
        Err(why) => {
            progress(&format!("plan: plan.simpy, plan.ciw and plan.storm are left out: {why}"));
            return Ok(vec![]);
        }
    };
    let mut checks = vec![];
    let simulators = [
        (Peer::SimPy, "plan.simpy", "SimPy 4.1.2", 20_000.0, 50.0),
        (Peer::Ciw, "plan.ciw", "Ciw 3.2.7", 5_000.0, 100.0),
    ];
    for (peer, id, name, secs, times) in simulators {
        progress(&format!("plan: beside {name}"));
        match simulator(&python, peer, secs, count.min(3)).await {
            Ok((ours, theirs)) => {
                let baseline = Baseline { name, sample: Sample::new(theirs) };
                let check = Check::new(id, "events/s", Sample::new(ours), PEERS).beside(baseline);
                checks.push(check.with_goal(Goal::RatioAtLeast(times)));
            }
            Err(why) => progress(&format!("plan: {id} is left out: {why}")),
        }
    }
    progress("plan: beside Storm");
    match storm(&python, options, count.min(3)).await {
        Ok((ours, theirs)) => {
            let baseline = Baseline { name: "Storm 2.0.0", sample: Sample::new(theirs) };
            let check = Check::new("plan.storm", "s", Sample::new(ours), STORM).beside(baseline);
            checks.push(check.with_goal(Goal::RatioAtMost(1.0)));
        }
        Err(why) => progress(&format!("plan: plan.storm is left out: {why}")),
    }
    Ok(checks)
}

/// Events per second of ours and of a peer, in turn.
async fn simulator(
    python: &Python,
    peer: Peer,
    secs: f64,
    count: u32,
) -> Result<(Vec<f64>, Vec<f64>), String> {
    python.install(peer).await?;
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..count {
        let one = samples(1, || rate(|| work::mmc(MMC_SECS))).await;
        ours.extend(one.map_err(|error| error.to_string())?);
        let printed = python.run(peer, &secs.to_string()).await?;
        // M/M/5 at load 0.8: 1 + C(5, 4) = 1.554 s; a run so short may be a few per cent off.
        if !(1.3..1.85).contains(&printed.mean) {
            return Err(format!("{peer:?} simulated something else: {} s in system", printed.mean));
        }
        theirs.push(printed.work / printed.seconds);
    }
    Ok((ours, theirs))
}

/// Seconds of ours and of Storm, in turn.
async fn storm(
    python: &Python,
    options: &PlanOptions,
    count: u32,
) -> Result<(Vec<f64>, Vec<f64>), String> {
    python.install(Peer::Storm).await?;
    let file = options.cache.join("bench-chain.prism");
    std::fs::write(&file, work::exported_model())
        .map_err(|error| format!("{}: {error}", file.display()))?;
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..count {
        let begun = Instant::now();
        let (states, share) = work::exported_chain().map_err(|error| error.to_string())?;
        ours.push(begun.elapsed().as_secs_f64());
        let printed = python.run(Peer::Storm, &file.to_string_lossy()).await?;
        // Storm's default precision is 1e-6.
        let same = (printed.mean - share).abs() <= 1e-5 && printed.work == states as f64;
        if !same {
            return Err(format!(
                "Storm says {} of {} states are full in the long run, ours {share} of {states}",
                printed.mean, printed.work
            ));
        }
        theirs.push(printed.seconds);
    }
    Ok((ours, theirs))
}

/// The greatest resident memory of this process since a moment.
struct Peak {
    before_kib: f64,
}

impl Peak {
    /// From now on. Where the kernel does not let the record be reset, the greatest of all times counts.
    fn begin() -> Self {
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        Self { before_kib: status_kib("VmRSS:") }
    }

    fn grown_mib(&self) -> f64 {
        ((status_kib("VmHWM:") - self.before_kib) / 1024.0).max(0.0)
    }
}

fn status_kib(key: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_used_shows() {
        let before = Peak::begin();
        let held = black_box(vec![1u8; 64 << 20]);
        assert!(before.grown_mib() > 50.0, "{}", before.grown_mib());
        drop(held);
    }

    #[tokio::test]
    async fn what_cannot_run_is_said() {
        let most = std::time::Duration::from_secs(10);
        let why = peers::output(std::path::Path::new("/no/such/python"), &["-V"], most).await;
        assert!(why.unwrap_err().contains("/no/such/python -V"));
    }
}
