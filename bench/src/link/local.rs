//! Two programs on one host.

use super::ground::{Ground, Link};
use super::peer::{Found, Traffic};
use super::{Head, Outcome, chain};
use crate::error::BenchError;
use crate::options::Progress;
use crate::report::{Baseline, Check, Goal};
use crate::stats::Sample;
use std::time::Duration;

/// Bytes of a stream in large writes: a second or so.
const LARGE_BYTES: u64 = 4 << 30;
/// Bytes before those that count: the link takes its path.
const BYTES_BEFORE: u64 = 8 << 20;
/// Bytes of one in small writes.
const SMALL_BYTES: u64 = 768 << 20;
/// Round trips without waiting.
const SPIN_ROUNDS: u32 = 40_000;
/// Round trips with.
const SLEEP_ROUNDS: u32 = 10_000;
/// How long one run of a pair may take: some ten times what the slowest takes on a quiet host.
const LIMIT: Duration = Duration::from_secs(20);

const TCP: &str = "TCP over loopback, the same program";

/// What is compared of a run.
type Figure = fn(&Found) -> f64;

/// Traffic, what it runs on, and the checks that come of it.
struct Trial {
    name: &'static str,
    traffic: Traffic,
    link: Link,
    checks: Vec<(Head, Figure)>,
}

fn head(id: &'static str, unit: &'static str, goal: Goal, about: &'static str) -> Head {
    Head { id, unit, goal: Some(goal), about }
}

fn trials() -> Vec<Trial> {
    let rate: Figure = |found| found.bytes as f64 / found.seconds / 1e9;
    let trip: Figure = |found| found.seconds * 1e6;
    let cpu: Figure = |found| found.cpu_seconds / (found.bytes as f64 / 1e9);
    let (least, most) = (Goal::RatioAtLeast, Goal::RatioAtMost);
    let trial = |name, traffic, link, checks| Trial { name, traffic, link, checks };
    let large = Traffic::Stream { write: 64 << 10, before: BYTES_BEFORE, bytes: LARGE_BYTES };
    let small = Traffic::Stream { write: 1 << 10, before: BYTES_BEFORE, bytes: SMALL_BYTES };
    vec![
        trial(
            "writes of 64 KiB",
            large,
            Link::Ring,
            vec![
                (head("link.local_64k", "GB/s", least(2.0), ABOUT_LARGE), rate),
                (head("link.local_cpu", "CPU s/GB", most(1.0), ABOUT_CPU), cpu),
            ],
        ),
        trial(
            "writes of 1 KiB",
            small,
            Link::Ring,
            vec![(head("link.local_1k", "GB/s", least(4.0), ABOUT_SMALL), rate)],
        ),
        trial(
            "round trips without waiting",
            Traffic::Spin { rounds: SPIN_ROUNDS },
            Link::Ring,
            vec![(head("link.local_rtt_spin", "us", most(0.1), ABOUT_SPIN), trip)],
        ),
        trial(
            "round trips with waiting",
            Traffic::Sleep { rounds: SLEEP_ROUNDS },
            Link::RingThatSleeps,
            vec![(head("link.local_rtt_sleep", "us", most(1.0), ABOUT_SLEEP), trip)],
        ),
    ]
}

pub(super) fn measure(
    ground: &Ground<'_>,
    progress: Progress<'_>,
    outcome: &mut Outcome,
) -> Result<(), BenchError> {
    for trial in trials() {
        progress(&format!("link: one host, {}", trial.name));
        let found = ground.turns(trial.traffic, trial.link, LIMIT);
        ground.check_stop()?;
        let checks = trial.checks.into_iter().map(|(head, figure)| match &found {
            Ok(found) => check(head, found, figure),
            Err(error) => head.failed(chain(error)),
        });
        outcome.checks.extend(checks);
    }
    Ok(())
}

fn check(head: Head, found: &[Vec<Found>; 2], figure: Figure) -> Check {
    let [ours, tcp] = found.each_ref().map(|found| Sample::new(found.iter().map(figure)));
    let check = Check::new(head.id, head.unit, ours, head.about);
    head.goal(check.beside(Baseline { name: TCP, sample: tcp }))
}

const ABOUT_LARGE: &str =
    "A stream in writes of 64 KiB, read in pieces of as much, after 8 MiB that do not count.";
const ABOUT_SMALL: &str =
    "A stream in writes of 1 KiB, TCP_NODELAY, read in pieces of up to 64 KiB.";
const ABOUT_SPIN: &str =
    "64 bytes to and fro; both programs read without waiting, again and again, on TCP too.";
const ABOUT_SLEEP: &str = "64 bytes to and fro; both programs sleep in the kernel in each read: the library's spinning is off.";
const ABOUT_CPU: &str =
    "Processor time of both programs for a gigabyte of the stream in writes of 64 KiB.";
