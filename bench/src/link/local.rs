//! Two programs on one host.

use super::LinkOptions;
use super::peer::{Found, Traffic};
use crate::error::BenchError;
use crate::options::Progress;
use crate::report::{Baseline, Check, Goal};
use crate::stats::Sample;
use skein_link::broker::{Broker, BrokerConfig};
use skein_link::run;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Bytes of a stream in large writes: a second or so.
const LARGE_BYTES: u64 = 6 << 30;
/// Bytes of one in small writes.
const SMALL_BYTES: u64 = 768 << 20;
/// Round trips without waiting.
const SPIN_ROUNDS: u32 = 200_000;
/// Round trips with.
const SLEEP_ROUNDS: u32 = 10_000;

/// A pair of programs, ended and taken away when it is dropped.
struct Pair(Vec<Child>);

impl Drop for Pair {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the programs run on.
struct Ground<'a> {
    options: &'a LinkOptions,
    variables: Vec<(OsString, OsString)>,
}

impl Ground<'_> {
    fn start(
        &self,
        traffic: Traffic,
        port: Option<u16>,
        link: Link,
    ) -> Result<(Child, BufReader<ChildStdout>), BenchError> {
        let mut command = Command::new(&self.options.program);
        command.args(&self.options.peer_words);
        if let Some(port) = port {
            command.arg("--port").arg(port.to_string());
        }
        command.args(traffic.words()).stdin(Stdio::null()).stdout(Stdio::piped());
        command.env_remove("LD_PRELOAD");
        match link {
            Link::Tcp => {}
            Link::Ring => {
                command.envs(self.variables.iter().cloned());
            }
            Link::RingThatSleeps => {
                command.envs(self.variables.iter().cloned()).env("SKEIN_LINK_SPIN_US", "0");
            }
        }
        let mut child = command.spawn().map_err(BenchError::io("starting a peer"))?;
        let out = child.stdout.take().ok_or_else(|| BenchError::unexpected("a peer is mute"))?;
        Ok((child, BufReader::new(out)))
    }

    /// One run of a pair.
    fn run(&self, traffic: Traffic, link: Link) -> Result<Found, BenchError> {
        let (server, mut out) = self.start(traffic, None, link)?;
        let mut pair = Pair(vec![server]);
        let mut line = String::new();
        out.read_line(&mut line).map_err(BenchError::io("reading the peer's port"))?;
        let port = line.trim().parse();
        let port = port.map_err(|_| BenchError::unexpected("the peer has no port"))?;
        let (client, mut out) = self.start(traffic, Some(port), link)?;
        pair.0.push(client);
        let mut text = String::new();
        out.read_to_string(&mut text).map_err(BenchError::io("reading what the peer found"))?;
        serde_json::from_str(&text).map_err(|_| BenchError::unexpected("a peer found nothing"))
    }

    /// Runs in turn with and without, so that what disturbs the host disturbs both.
    fn turns(&self, traffic: Traffic, link: Link) -> Result<[Vec<Found>; 2], BenchError> {
        let mut found = [Vec::new(), Vec::new()];
        for _ in 0..self.options.count {
            found[0].push(self.run(traffic, link)?);
            found[1].push(self.run(traffic, Link::Tcp)?);
        }
        Ok(found)
    }
}

#[derive(Debug, Clone, Copy)]
enum Link {
    Tcp,
    Ring,
    RingThatSleeps,
}

const TCP: &str = "TCP over loopback, the same program";

fn check(
    id: &'static str,
    unit: &'static str,
    found: &[Vec<Found>; 2],
    figure: impl Fn(&Found) -> f64,
    goal: Goal,
    about: &'static str,
) -> Check {
    let [ours, tcp] = found.each_ref().map(|found| Sample::new(found.iter().map(&figure)));
    Check::new(id, unit, ours, about).beside(Baseline { name: TCP, sample: tcp }).with_goal(goal)
}

pub(super) fn measure(
    options: &LinkOptions,
    progress: Progress<'_>,
) -> Result<Vec<Check>, BenchError> {
    let folder = tempfile::Builder::new().prefix("skein-bench-link-").tempdir();
    let folder = folder.map_err(BenchError::io("making a folder for the broker"))?;
    let socket = folder.path().join("link.sock");
    let library = run::library(&folder.path().join("lib"));
    let library = library.map_err(|error| BenchError::unexpected(error.to_string()))?;
    let broker = Broker::start(BrokerConfig::new(socket.clone()));
    let _broker = broker.map_err(|error| BenchError::unexpected(error.to_string()))?;
    let ground = Ground { options, variables: run::environment(&library, &socket, None) };

    progress("link: one host, writes of 64 KiB");
    let large = Traffic::Stream { write: 64 << 10, bytes: LARGE_BYTES };
    let large = ground.turns(large, Link::Ring)?;
    progress("link: one host, writes of 1 KiB");
    let small = Traffic::Stream { write: 1 << 10, bytes: SMALL_BYTES };
    let small = ground.turns(small, Link::Ring)?;
    progress("link: one host, round trips without waiting");
    let spin = ground.turns(Traffic::Spin { rounds: SPIN_ROUNDS }, Link::Ring)?;
    progress("link: one host, round trips with waiting");
    let sleep = ground.turns(Traffic::Sleep { rounds: SLEEP_ROUNDS }, Link::RingThatSleeps)?;

    let rate = |bytes: u64| move |found: &Found| bytes as f64 / found.seconds / 1e9;
    let trip = |found: &Found| found.seconds * 1e6;
    Ok(vec![
        check(
            "link.local_64k",
            "GB/s",
            &large,
            rate(LARGE_BYTES),
            Goal::RatioAtLeast(2.0),
            ABOUT_LARGE,
        ),
        check(
            "link.local_1k",
            "GB/s",
            &small,
            rate(SMALL_BYTES),
            Goal::RatioAtLeast(4.0),
            ABOUT_SMALL,
        ),
        check("link.local_rtt_spin", "us", &spin, trip, Goal::RatioAtMost(0.1), ABOUT_SPIN),
        check("link.local_rtt_sleep", "us", &sleep, trip, Goal::RatioAtMost(1.0), ABOUT_SLEEP),
        check(
            "link.local_cpu",
            "CPU s/GB",
            &large,
            |found| found.cpu_seconds / (LARGE_BYTES as f64 / 1e9),
            Goal::RatioAtMost(1.0),
            ABOUT_CPU,
        ),
    ])
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
