//! Programs as they are used: Redis and PostgreSQL with their own benches, over loopback, before and after.

use super::ground::{Ground, Link, Running, find, free_port, listening};
use super::{Head, Outcome, chain};
use crate::error::BenchError;
use crate::options::Progress;
use crate::report::{Baseline, Check};
use crate::stats::Sample;
use rustix::process::Signal;
use std::path::PathBuf;
use std::time::Duration;

/// How long one run of a bench may take, and how long a server may take to listen.
const LIMIT: Duration = Duration::from_secs(60);
/// Runs of each, at most: one takes some seconds.
const RUNS_MAX: u32 = 5;
/// Requests of one run of redis-benchmark.
const REQUESTS: &str = "50000";
/// Seconds of one run of pgbench.
const SECONDS: &str = "2";
const TCP: &str = "TCP over loopback";

const fn head(id: &'static str, unit: &'static str, about: &'static str) -> Head {
    Head { id, unit, goal: None, about }
}

const REDIS: [Head; 4] = [
    head("link.redis_get", "1/s", ABOUT_REDIS),
    head("link.redis_get_p99", "ms", ABOUT_REDIS),
    head("link.redis_set", "1/s", ABOUT_REDIS),
    head("link.redis_set_p99", "ms", ABOUT_REDIS),
];
const POSTGRES: [Head; 2] =
    [head("link.pgbench", "1/s", ABOUT_POSTGRES), head("link.pgbench_p99", "ms", ABOUT_POSTGRES)];

pub(super) fn measure(
    ground: &Ground<'_>,
    progress: Progress<'_>,
    outcome: &mut Outcome,
) -> Result<(), BenchError> {
    progress("link: one host, Redis");
    trial(ground, outcome, REDIS, redis)?;
    progress("link: one host, PostgreSQL");
    trial(ground, outcome, POSTGRES, postgres)
}

/// Runs with the link and without, in turn; each gives a figure for each check.
type Run<const N: usize> = fn(&Ground<'_>, Link) -> Result<[f64; N], BenchError>;

fn trial<const N: usize>(
    ground: &Ground<'_>,
    outcome: &mut Outcome,
    heads: [Head; N],
    run: Run<N>,
) -> Result<(), BenchError> {
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..ground.count.min(RUNS_MAX) {
        for (figures, link) in figures.iter_mut().zip([Link::Ring, Link::Tcp]) {
            match run(ground, link) {
                Ok(found) => figures.push(found),
                Err(error) => {
                    ground.check_stop()?;
                    let problem = chain(&error);
                    outcome.checks.extend(heads.iter().map(|head| head.failed(problem.clone())));
                    return Ok(());
                }
            }
        }
    }
    for (at, head) in heads.into_iter().enumerate() {
        let [ours, tcp] =
            figures.each_ref().map(|runs| Sample::new(runs.iter().map(|found| found[at])));
        let check = Check::new(head.id, head.unit, ours, head.about);
        outcome.checks.push(check.beside(Baseline { name: TCP, sample: tcp }));
    }
    Ok(())
}

fn redis(ground: &Ground<'_>, link: Link) -> Result<[f64; 4], BenchError> {
    let (server, bench) = (find("redis-server", &[])?, find("redis-benchmark", &[])?);
    let port = free_port()?;
    let mut command = ground.command(&server, link);
    command.args(["--port", &port.to_string(), "--save", "", "--bind", "127.0.0.1"]);
    let _server = ground.start(command)?;
    listening(port, LIMIT)?;
    let mut command = ground.command(&bench, link);
    command.args(["-p", &port.to_string(), "-t", "get,set", "-n", REQUESTS, "-c", "20"]);
    command.args(["-d", "100", "--csv"]);
    let text = ground.output(command, LIMIT)?;
    let line = |test| redis_line(&text, test);
    let ((get, get_p99), (set, set_p99)) = (line("GET")?, line("SET")?);
    Ok([get, get_p99, set, set_p99])
}

/// Requests per second and the 99th percentile in milliseconds, of the line of a test:
/// `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"`.
fn redis_line(text: &str, test: &str) -> Result<(f64, f64), BenchError> {
    let found = text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(',').map(|field| field.trim_matches('"')).collect();
        let number = |at: usize| fields.get(at)?.parse().ok();
        (fields.first() == Some(&test)).then_some((number(1)?, number(6)?))
    });
    found.ok_or_else(|| BenchError::unexpected(format!("redis-benchmark has no figures of {test}")))
}

/// A server of PostgreSQL with the tables of pgbench, and where its programs are.
struct Postgres {
    folder: PathBuf,
    port: String,
    server: Running,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its processes have sessions of their own, and the next server waits for the last of them: a fast shutdown.
        self.server.stop(Signal::INT, LIMIT);
    }
}

fn postgres(ground: &Ground<'_>, link: Link) -> Result<[f64; 2], BenchError> {
    let server = start_postgres(ground, link)?;
    let mut command = server.command(ground, "pgbench", link)?;
    command.args(["-S", "-c", "4", "-T", SECONDS, "-l", "--log-prefix", "times", "postgres"]);
    let text = ground.output(command, LIMIT)?;
    let rate = pgbench_rate(&text)?;
    Ok([rate, late(ground)?])
}

impl Postgres {
    fn command(
        &self,
        ground: &Ground<'_>,
        name: &str,
        link: Link,
    ) -> Result<std::process::Command, BenchError> {
        let mut command = ground.command(&find(name, std::slice::from_ref(&self.folder))?, link);
        command.args(["-h", "127.0.0.1", "-p", &self.port, "-U", "postgres"]);
        Ok(command)
    }
}

fn start_postgres(ground: &Ground<'_>, link: Link) -> Result<Postgres, BenchError> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folder = versions.map(|entry| entry.path().join("bin")).max();
    let folder = folder.ok_or_else(|| BenchError::unexpected("PostgreSQL is not installed"))?;
    // It does not run as root.
    let setpriv = find("setpriv", &[])?;
    let as_user = |name: &str, link: Link| {
        let mut command = ground.command(&setpriv, link);
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
        command.arg(folder.join(name)).args(["-D", "base"]);
        command
    };
    let is_new = !ground.path("base").exists();
    if is_new {
        let mut command = as_user("initdb", Link::Tcp);
        command.args(["-A", "trust", "--no-sync"]);
        ground.output(command, LIMIT)?;
    }
    let port = free_port()?;
    let mut command = as_user("postgres", link);
    command.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
    // One that is killed leaves nothing in /dev/shm.
    command.args(["-c", "dynamic_shared_memory_type=mmap"]);
    command.arg("-c").arg(format!("unix_socket_directories={}", ground.path("").display()));
    let (running, _) = ground.start(command)?;
    listening(port, LIMIT)?;
    let server = Postgres { folder, port: port.to_string(), server: running };
    for _ in 0..200 {
        let mut command = server.command(ground, "pg_isready", Link::Tcp)?;
        command.arg("-q");
        if ground.output(command, LIMIT).is_ok() {
            break;
        }
        ground.check_stop()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    if is_new {
        let mut command = server.command(ground, "pgbench", Link::Tcp)?;
        command.args(["-i", "-q", "postgres"]);
        ground.output(command, LIMIT)?;
    }
    Ok(server)
}

/// `tps = 12345.678 (without initial connection time)`
fn pgbench_rate(text: &str) -> Result<f64, BenchError> {
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok());
    rate.ok_or_else(|| BenchError::unexpected("pgbench told no rate"))
}

/// The 99th percentile of the transactions that pgbench has written down, milliseconds; their files are removed. A line is
/// `CLIENT TRANSACTION MICROSECONDS ...`.
fn late(ground: &Ground<'_>) -> Result<f64, BenchError> {
    let failed = || BenchError::io("reading the times of pgbench");
    let mut micros = Vec::new();
    for entry in std::fs::read_dir(ground.path("")).map_err(failed())?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("times.") {
            let text = std::fs::read_to_string(entry.path()).map_err(failed())?;
            micros.extend(text.lines().filter_map(micros_of));
            std::fs::remove_file(entry.path()).map_err(failed())?;
        }
    }
    Ok(Sample::new(micros).quantile(0.99) / 1e3)
}

fn micros_of(line: &str) -> Option<f64> {
    line.split_whitespace().nth(2)?.parse().ok()
}

const ABOUT_REDIS: &str = "redis-benchmark: 50,000 requests with values of 100 bytes from 20 connections, to a server on this host \
    that keeps nothing on disk; both under the library, or neither.";
const ABOUT_POSTGRES: &str = "pgbench: 4 clients for 2 seconds, each transaction a SELECT by primary key, to a server on this host; \
    both under the library, or neither.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
            \"SET\",\"50000.00\",\"0.1\",\"0.2\",\"0.3\",\"0.4\",\"0.5\",\"0.6\"\n";
        assert_eq!(redis_line(text, "SET").ok(), Some((50_000.0, 0.5)));
        assert!(redis_line(text, "GET").is_err());
        let text = "pgbench (15)\ntps = 9876.5 (without initial connection time)\n";
        assert_eq!(pgbench_rate(text).ok(), Some(9876.5));
        assert_eq!(micros_of("0 199 2241 0 1175850568 995598"), Some(2241.0));
    }
}
