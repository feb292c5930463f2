//! The planner: how many events it simulates, how large chains it solves, and how much faster than what is in use it is.
//!
//! Needs no cloud, no root and no image. Everything is measured on the wall clock, medians of several runs; `plan.parallel` is
//! measured beside a loop that touches no memory, which says what the host's cores give at that moment. Each check stands for itself: one
//! that comes to no figure within its time says why, and the others go on.

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
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Replications that threads share, as many as a scenario with narrow intervals has, and their simulated seconds: the last of them,
/// which a thread runs while the other has none left, is to take a hundredth of a run.
const PARALLEL_REPLICATIONS: u32 = 96;
const PARALLEL_SECS: f64 = MMC_SECS / 24.0;

/// What one check may take: the longest, a chain of five million states, takes about a minute. A check that takes longer fails by
/// itself, and the others go on.
const CHECK_MAX: Duration = Duration::from_secs(300);

/// Runs the bench. `stop` ends it before its time.
///
/// # Errors
/// [`BenchError::Count`], [`BenchError::Interrupted`]. A check that comes to no figure says so in its place.
pub async fn run_plan(
    options: &PlanOptions,
    stop: impl Future<Output = ()>,
    progress: Progress<'_>,
) -> Result<Report, BenchError> {
    let bench = Bench::Plan;
    let given = bench.count(options.count)?;
    let mut checks = vec![];
    tokio::select! {
        () = measure(options, given, progress, &mut checks) => {} // owns all it needs; dropping it stops what computes
        () = stop => return Err(BenchError::Interrupted),         // as the caller says
    }
    let host = host::without_guests();
    Ok(Report {
        bench: bench.name(),
        version: env!("CARGO_PKG_VERSION"),
        host,
        checks,
        plots: Vec::new(),
    })
}

async fn measure(
    options: &PlanOptions,
    count: u32,
    progress: Progress<'_>,
    checks: &mut Vec<Check>,
) {
    let mut add = |spec: Spec, sample: Result<Vec<f64>, BenchError>| {
        checks.push(spec.check(sample.map(|sample| (sample, None)), progress));
    };
    progress("plan: simulating");
    let mmc = samples(count, |watch| rate(|| work::mmc(MMC_SECS, watch))).await;
    add(Spec("plan.mmc", "events/s", MMC, Goal::AtLeast(10e6)), mmc);
    let fifteen = samples(count, |watch| rate(|| work::fifteen(20_000.0, watch))).await;
    add(Spec("plan.fifteen", "events/s", FIFTEEN, Goal::AtLeast(3e6)), fifteen);
    let large = samples(count.min(3), |watch| simulated_per_second(10_000, 600.0, watch)).await;
    add(Spec("plan.large", "times real time", LARGE, Goal::AtLeast(100.0)), large);
    progress("plan: solving chains");
    let chain_2d = samples(count, |watch| certified(|| work::chain_2d(watch))).await;
    add(Spec("plan.chain2d", "s", CHAIN_2D, Goal::AtMost(2.0)), chain_2d);
    let chain = samples(count.min(3), |watch| certified(|| work::cluster(128, watch))).await;
    add(Spec("plan.chain", "s", CHAIN, Goal::AtMost(5.0)), chain);
    progress("plan: a chain of five million states");
    let peak = samples(1, |watch| {
        let before = Peak::begin();
        certified(|| work::chain_of_millions(watch))?;
        Ok(before.grown_mib() / 1024.0)
    });
    add(Spec("plan.chain_memory", "GiB", CHAIN_MEMORY, Goal::AtMost(4.0)), peak.await);
    progress("plan: memory and threads");
    let spec = Spec("plan.memory", "MiB", MEMORY, Goal::AboveBaselineAtMost(1.0));
    checks.push(spec.check(memory().await, progress));
    let spec = Spec("plan.parallel", "times", PARALLEL, Goal::AtLeast(1.8));
    checks.push(spec.check(parallel(count).await, progress));
    beside_peers(options, count, progress, checks).await;
}

/// A check before it is made: id, unit, what it is about, and its goal.
#[derive(Clone, Copy)]
struct Spec(&'static str, &'static str, &'static str, Goal);

/// Measurements of ours and, for some checks, those of a baseline with its name.
type Measured = (Vec<f64>, Option<(&'static str, Vec<f64>)>);

impl Spec {
    /// The check with its figure, or with why there is none.
    fn check(self, measured: Result<Measured, BenchError>, progress: Progress<'_>) -> Check {
        let Self(id, unit, about, goal) = self;
        let check = match measured {
            Ok((ours, baseline)) => {
                let check = Check::new(id, unit, Sample::new(ours), about);
                match baseline {
                    None => check,
                    Some((name, sample)) => {
                        check.beside(Baseline { name, sample: Sample::new(sample) })
                    }
                }
            }
            Err(error) => {
                let why = format!("{}: {}", error.code(), skein_shell::report::chain(&error));
                progress(&format!("plan: {id} has no figure: {why}"));
                Check::without_figure(id, unit, about, why)
            }
        };
        check.with_goal(goal)
    }

    /// The check of something that cannot be had here: it fails nothing.
    fn left_out(self, why: &str, progress: Progress<'_>) -> Check {
        let Self(id, unit, about, _) = self;
        progress(&format!("plan: {id} is left out: {why}"));
        Check::without_figure(id, unit, about, why)
    }
}

/// Ends what computes when nobody waits for it any more.
struct Watch(Arc<skein_planner::Progress>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Computes on a thread of its own, [`CHECK_MAX`] long at most.
async fn bounded<T: Send + 'static>(
    work: impl FnOnce(&skein_planner::Progress) -> Result<T, BenchError> + Send + 'static,
) -> Result<T, BenchError> {
    let watch = Watch(Arc::default());
    let shared = Arc::clone(&watch.0);
    let mut done = tokio::task::spawn_blocking(move || work(&shared));
    match tokio::time::timeout(CHECK_MAX, &mut done).await {
        Ok(result) => result.map_err(|_| BenchError::Bug)?,
        Err(_) => {
            // Not beside the next check: it sees the wish within a sweep or a cell of the statistics.
            drop(watch);
            let _ = done.await;
            Err(BenchError::Deadline { what: "the check's work".to_owned(), waited: CHECK_MAX })
        }
    }
}

/// So many measurements.
async fn samples(
    count: u32,
    one: impl Fn(&skein_planner::Progress) -> Result<f64, BenchError> + Send + 'static,
) -> Result<Vec<f64>, BenchError> {
    bounded(move |watch| (0..count).map(|_| one(watch)).collect()).await
}

/// Work per second.
fn rate(work: impl Fn() -> u64) -> Result<f64, BenchError> {
    let begun = Instant::now();
    let done = black_box(work());
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

/// Seconds that a chain takes.
fn certified<T, E: std::error::Error>(solve: impl Fn() -> Result<T, E>) -> Result<f64, BenchError> {
    let begun = Instant::now();
    match solve() {
        Ok(answer) => {
            black_box(answer);
            Ok(begun.elapsed().as_secs_f64())
        }
        Err(error) => Err(BenchError::unexpected(format!("a chain of the bench: {error}"))),
    }
}

fn simulated_per_second(
    nodes: u32,
    secs: f64,
    watch: &skein_planner::Progress,
) -> Result<f64, BenchError> {
    let begun = Instant::now();
    black_box(work::large(nodes, secs, watch));
    Ok(secs / begun.elapsed().as_secs_f64())
}

async fn memory() -> Result<Measured, BenchError> {
    let grown = |secs: f64| {
        samples(1, move |watch| {
            let before = Peak::begin();
            black_box(work::mmc(secs, watch));
            Ok(before.grown_mib())
        })
    };
    // Once, so that what is made once in a process is not counted.
    grown(20_000.0).await?;
    let (short, long) = (grown(20_000.0).await?, grown(2_000_000.0).await?);
    Ok((long, Some(("a hundredth of the time", short))))
}

async fn parallel(count: u32) -> Result<Measured, BenchError> {
    let (mut ours, mut theirs) = (vec![], vec![]);
    // A neighbour that takes a core for a second spoils a quotient: many short ones.
    for _ in 0..3 * count {
        let rate = |threads: usize| {
            let begun = Instant::now();
            let events = work::parallel(threads, PARALLEL_REPLICATIONS, PARALLEL_SECS);
            let events = events.map_err(BenchError::unexpected)?;
            Ok(events as f64 / begun.elapsed().as_secs_f64())
        };
        ours.push(quotient(rate).await?);
        theirs.push(quotient(|threads| Ok(spin_rate(threads))).await?);
    }
    Ok((ours, Some(("a loop that shares nothing", theirs))))
}

/// How many times the rate of one thread two have. A host that grows slower or faster meanwhile does not change it: one, two, two, one.
async fn quotient(
    rate: impl Fn(usize) -> Result<f64, BenchError> + Send + Copy + 'static,
) -> Result<f64, BenchError> {
    let turn = samples(1, move |_| {
        let (first, two, again, last) = (rate(1)?, rate(2)?, rate(2)?, rate(1)?);
        // Times of equal work add up, not rates.
        Ok((1.0 / first + 1.0 / last) / (1.0 / two + 1.0 / again))
    });
    turn.await?.first().copied().ok_or(BenchError::Bug)
}

/// Loops a second, of as many threads at once.
fn spin_rate(threads: usize) -> f64 {
    fn spin() {
        let mut sum = 1u64;
        for step in 0..200_000_000u64 {
            sum = black_box(sum.wrapping_mul(3).wrapping_add(step));
        }
    }
    let begun = Instant::now();
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(spin)));
    });
    threads as f64 / begun.elapsed().as_secs_f64()
}

/// Beside SimPy, Ciw and Storm, as far as they can be had.
async fn beside_peers(
    options: &PlanOptions,
    count: u32,
    progress: Progress<'_>,
    checks: &mut Vec<Check>,
) {
    let simpy = Spec("plan.simpy", "events/s", PEERS, Goal::RatioAtLeast(50.0));
    let ciw = Spec("plan.ciw", "events/s", PEERS, Goal::RatioAtLeast(100.0));
    let storm = Spec("plan.storm", "s", STORM, Goal::RatioAtMost(1.0));
    let python = match Python::open(&options.cache).await {
        Ok(python) => python,
        Err(why) => {
            checks.extend([simpy, ciw, storm].map(|spec| spec.left_out(&why, progress)));
            return;
        }
    };
    let simulators =
        [(Peer::SimPy, simpy, "SimPy 4.1.2", 20_000.0), (Peer::Ciw, ciw, "Ciw 3.2.7", 5_000.0)];
    for (peer, spec, name, secs) in simulators {
        progress(&format!("plan: beside {name}"));
        checks.push(match python.install(peer).await {
            Err(why) => spec.left_out(&why, progress),
            Ok(()) => {
                let measured = simulator(&python, peer, (name, secs), count.min(3)).await;
                spec.check(measured, progress)
            }
        });
    }
    progress("plan: beside Storm");
    checks.push(match python.install(Peer::Storm).await {
        Err(why) => storm.left_out(&why, progress),
        Ok(()) => storm.check(beside_storm(&python, options, count.min(3)).await, progress),
    });
}

/// Events per second of ours and of a peer, in turn.
async fn simulator(
    python: &Python,
    peer: Peer,
    (name, secs): (&'static str, f64),
    count: u32,
) -> Result<Measured, BenchError> {
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..count {
        ours.extend(samples(1, |watch| rate(|| work::mmc(MMC_SECS, watch))).await?);
        let printed = python.run(peer, &secs.to_string()).await.map_err(BenchError::unexpected)?;
        // M/M/5 at load 0.8: 1 + C(5, 4) = 1.554 s; a run so short may be a few per cent off.
        if !(1.3..1.85).contains(&printed.mean) {
            let what = format!("{peer:?} simulated something else: {} s in system", printed.mean);
            return Err(BenchError::unexpected(what));
        }
        theirs.push(printed.work / printed.seconds);
    }
    Ok((ours, Some((name, theirs))))
}

/// Seconds of ours and of Storm, in turn.
async fn beside_storm(
    python: &Python,
    options: &PlanOptions,
    count: u32,
) -> Result<Measured, BenchError> {
    let file = options.cache.join("bench-chain.prism");
    std::fs::write(&file, work::exported_model())
        .map_err(BenchError::io(format!("writing {}", file.display())))?;
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..count {
        let (secs, states, share) = bounded(|watch| {
            let begun = Instant::now();
            let solved = work::exported_chain(watch);
            let (states, share) =
                solved.map_err(|error| BenchError::unexpected(error.to_string()))?;
            Ok((begun.elapsed().as_secs_f64(), states, share))
        })
        .await?;
        ours.push(secs);
        let printed = python.run(Peer::Storm, &file.to_string_lossy()).await;
        let printed = printed.map_err(BenchError::unexpected)?;
        // Storm's default precision is 1e-6.
        let same = (printed.mean - share).abs() <= 1e-5 && printed.work == states as f64;
        if !same {
            return Err(BenchError::unexpected(format!(
                "Storm says {} of {} states are full in the long run, ours {share} of {states}",
                printed.mean, printed.work
            )));
        }
        theirs.push(printed.seconds);
    }
    Ok((ours, Some(("Storm 2.0.0", theirs))))
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
    async fn what_nobody_waits_for_any_more_ends() {
        let (told, ended) = tokio::sync::oneshot::channel();
        let computing = bounded(move |watch| {
            while !watch.is_stopped() {
                std::thread::yield_now();
            }
            let _ = told.send(());
            Ok(())
        });
        let given_up = tokio::time::timeout(Duration::from_millis(10), computing).await;
        assert!(given_up.is_err());
        let deadline = Duration::from_secs(10);
        assert!(tokio::time::timeout(deadline, ended).await.is_ok(), "it computes still");
    }

    #[test]
    fn a_check_that_fails_says_why_and_fails_alone() {
        let spec = Spec("plan.mmc", "events/s", MMC, Goal::AtLeast(1.0));
        let failed = spec.check(Err(BenchError::unexpected("no digits")), &|_| {});
        assert_eq!(failed.holds, Some(false));
        assert!(failed.problem.is_some_and(|why| why.contains("BENCH_UNEXPECTED: no digits")));
        assert_eq!(spec.left_out("not here", &|_| {}).holds, None);
        let made = spec.check(Ok((vec![2.0], Some(("other", vec![1.0])))), &|_| {});
        assert_eq!((made.holds, made.ratio), (Some(true), Some(2.0)));
    }

    #[tokio::test]
    async fn what_cannot_run_is_said() {
        let most = std::time::Duration::from_secs(10);
        let why = peers::output(std::path::Path::new("/no/such/python"), &["-V"], most).await;
        assert!(why.unwrap_err().contains("/no/such/python -V"));
    }
}
