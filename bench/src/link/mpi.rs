//! Open MPI over TCP: two processes that send messages to and fro, and four that each send to all.

use super::ground::{Ground, Link, find};
use super::{Head, Outcome, chain};
use crate::error::BenchError;
use crate::options::Progress;
use crate::report::{Baseline, Check, Curve, Plot};
use crate::stats::Sample;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The program, compiled when it is measured: what Open MPI's compiler makes of it fits the Open MPI that is there.
const SOURCE: &str = include_str!("mpi.c");
const LIMIT: Duration = Duration::from_secs(60);
/// Runs of each, at most: one takes some seconds.
const RUNS_MAX: u32 = 3;
/// The size whose figure is the check's, bytes.
const SIZE: u64 = 1024;

const PING: Head = Head { id: "link.mpi_ping_pong", unit: "us", goal: None, about: ABOUT_PING };
const ALL: Head = Head { id: "link.mpi_all_to_all", unit: "us", goal: None, about: ABOUT_ALL };

/// Microseconds over bytes, of each run.
type Times = BTreeMap<u64, Vec<f64>>;

pub(super) fn measure(
    ground: &Ground<'_>,
    progress: Progress<'_>,
    outcome: &mut Outcome,
) -> Result<(), BenchError> {
    progress("link: one host, Open MPI");
    let program = compile(ground);
    ground.check_stop()?;
    for (head, what, processes) in [(PING, "ping", "2"), (ALL, "all", "4")] {
        let times = match &program {
            Ok(()) => turns(ground, what, processes).map_err(|error| chain(&error)),
            Err(error) => Err(chain(error)),
        };
        ground.check_stop()?;
        match times {
            Ok([ours, tcp]) => {
                let sample =
                    |times: &Times| Sample::new(times.get(&SIZE).into_iter().flatten().copied());
                let check = Check::new(head.id, head.unit, sample(&ours), head.about);
                let baseline = Baseline { name: "TCP over loopback", sample: sample(&tcp) };
                outcome.checks.push(check.beside(baseline));
                outcome.plots.push(plot(head, &ours, &tcp));
            }
            Err(problem) => outcome.checks.push(head.failed(problem)),
        }
    }
    Ok(())
}

fn compile(ground: &Ground<'_>) -> Result<(), BenchError> {
    let compiler = find("mpicc", &[])?;
    find("mpirun", &[])?;
    let source = ground.path("mpi.c");
    std::fs::write(&source, SOURCE).map_err(BenchError::io("writing the MPI program"))?;
    let mut command = ground.command(&compiler, Link::Tcp);
    command.args(["-O2", "-o", "mpi"]).arg(&source);
    ground.output(command, LIMIT).map(drop)
}

fn turns(ground: &Ground<'_>, what: &str, processes: &str) -> Result<[Times; 2], BenchError> {
    let mut found = [Times::new(), Times::new()];
    for _ in 0..ground.count.min(RUNS_MAX) {
        for (times, link) in found.iter_mut().zip([Link::Ring, Link::Tcp]) {
            let mut command = ground.command(Path::new("mpirun"), link);
            command.args(["--allow-run-as-root", "--oversubscribe", "-np", processes]);
            command.args(["--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]);
            command.args([
                "--mca",
                "btl_tcp_if_include",
                "lo",
                "--mca",
                "mpi_yield_when_idle",
                "1",
            ]);
            command.arg(ground.path("mpi")).arg(what);
            for line in ground.output(command, LIMIT)?.lines() {
                let (bytes, micros) = parse(line)?;
                times.entry(bytes).or_default().push(micros);
            }
        }
    }
    Ok(found)
}

fn parse(line: &str) -> Result<(u64, f64), BenchError> {
    let numbers = line
        .split_once(' ')
        .and_then(|(bytes, micros)| Some((bytes.parse().ok()?, micros.trim().parse().ok()?)));
    numbers.ok_or_else(|| BenchError::unexpected(format!("the MPI program printed {line:?}")))
}

fn plot(head: Head, ours: &Times, tcp: &Times) -> Plot {
    let curve = |name: &str, times: &Times| {
        let points = times
            .iter()
            .map(|(bytes, micros)| (*bytes as f64, Sample::new(micros.iter().copied()).median()));
        Curve { name: name.to_owned(), points: points.collect() }
    };
    let id =
        if head.id == PING.id { "link.mpi_ping_pong_sizes" } else { "link.mpi_all_to_all_sizes" };
    let curves = vec![curve("link", ours), curve("TCP", tcp)];
    Plot { id, about: head.about, x: "bytes of a message", y: "us", curves }
}

const ABOUT_PING: &str = "Open MPI over its TCP transport: a message to another process of this host and back, half of that time; \
    the check is of 1 KiB. Processes that wait give way, with the link and without.";
const ABOUT_ALL: &str =
    "The same, four processes, each of which sends a message to each (MPI_Alltoall).";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        assert_eq!(parse("1024 3.25").ok(), Some((1024, 3.25)));
        assert!(parse("mpirun has no slots").is_err());
    }
}
