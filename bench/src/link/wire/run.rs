//! Runs: one figure each, of two threads on two hosts.

use super::light::{By, End, Waits};
use super::{pages, tcp};
use skein_link::testbed::{Host, Testbed};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Told to both ends when a run is over.
pub(crate) type Stop = Arc<AtomicBool>;

/// After the first byte so long is not counted: windows open, caches fill, the bucket's first burst is gone.
const WARM: Duration = Duration::from_millis(300);

/// Counts bytes after a while.
pub(crate) struct Meter {
    warm: Duration,
    begun: Option<Instant>,
    from: Option<Instant>,
    until: Instant,
    bytes: u64,
}

impl Meter {
    pub(crate) fn new(warm: Duration) -> Self {
        Self { warm, begun: None, from: None, until: Instant::now(), bytes: 0 }
    }

    pub(crate) fn count(&mut self, bytes: u64) {
        let now = Instant::now();
        let begun = *self.begun.get_or_insert(now);
        if self.from.is_some() {
            self.bytes += bytes;
            self.until = now;
        } else if now.duration_since(begun) >= self.warm {
            self.from = Some(now);
        }
    }

    /// Bytes, and the time in which they came.
    pub(crate) fn result(&self) -> (u64, Duration) {
        let span = self.from.map_or(Duration::ZERO, |from| self.until.duration_since(from));
        (self.bytes, span)
    }
}

/// What a stream reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    /// Megabits per second of the program's bytes.
    pub(crate) megabits: f64,
    /// Processor time of both ends' threads and all they caused on the way, for each gigabyte, seconds. The whole
    /// machine is counted, so others' work is in it.
    pub(crate) cpu_per_gigabyte: f64,
}

/// Processor time the whole machine has used.
fn machine_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq: all but the two in which nothing is done.
    let busy = ticks.iter().enumerate().filter(|(place, _)| !matches!(place, 3 | 4)).take(5);
    Duration::from_millis(10 * busy.map(|(_, ticks)| ticks).sum::<u64>())
}

fn join<T>(thread: JoinHandle<io::Result<io::Result<T>>>) -> io::Result<T> {
    thread.join().map_err(|_| io::Error::other("a host's thread panicked"))??
}

/// Lets `receiver` and `sender` run for `span`, then stops them.
fn stream(
    receiver: JoinHandle<io::Result<io::Result<(u64, Duration)>>>,
    sender: JoinHandle<io::Result<io::Result<()>>>,
    stop: &Stop,
    span: Duration,
) -> io::Result<Stream> {
    let before = machine_cpu();
    let begun = Instant::now();
    std::thread::sleep(WARM + span);
    let (spent, took) = (machine_cpu().saturating_sub(before), begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    let (bytes, counted) = join(receiver)?;
    join(sender)?;
    if counted.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came"));
    }
    let per_second = bytes as f64 / counted.as_secs_f64();
    let gigabytes = per_second * took.as_secs_f64() / 1e9;
    Ok(Stream {
        megabits: per_second * 8.0 / 1e6,
        cpu_per_gigabyte: spent.as_secs_f64() / gigabytes,
    })
}

/// A stream over the light protocol from A to B.
pub(crate) fn light_stream(bed: &Testbed, by: By, span: Duration) -> io::Result<Stream> {
    let stop = Stop::default();
    let (at_b, at_a) = (stop.clone(), stop.clone());
    let receiver = bed.spawn(Host::B, move || {
        End::connect(Host::B, by, Waits::Sleeping)?.receive_until(WARM, &at_b)
    })?;
    let sender =
        bed.spawn(Host::A, move || End::connect(Host::A, by, Waits::Sleeping)?.send_until(&at_a))?;
    stream(receiver, sender, &stop, span)
}

/// A stream over TCP from A to B, whose address is `to`.
pub(crate) fn tcp_stream(bed: &Testbed, to: Ipv4Addr, span: Duration) -> io::Result<Stream> {
    let stop = Stop::default();
    let (at_b, at_a) = (stop.clone(), stop.clone());
    let listener = bed.on(Host::B, move || tcp::End::listen(to))??;
    let receiver = bed.spawn(Host::B, move || {
        tcp::End::accept(&listener, Waits::Sleeping)?.receive_until(WARM, &at_b)
    })?;
    let sender =
        bed.spawn(Host::A, move || tcp::End::connect(to, Waits::Sleeping)?.send_until(&at_a))?;
    stream(receiver, sender, &stop, span)
}

/// Pages from A to B, at most `window` of them under way.
pub(crate) fn page_stream(bed: &Testbed, window: usize, span: Duration) -> io::Result<Stream> {
    let stop = Stop::default();
    let (at_b, at_a) = (stop.clone(), stop.clone());
    let receiver =
        bed.spawn(Host::B, move || pages::End::connect(Host::B)?.receive_until(WARM, &at_b))?;
    let sender =
        bed.spawn(Host::A, move || pages::End::connect(Host::A)?.send_until(window, &at_a))?;
    stream(receiver, sender, &stop, span)
}

/// Round trips of 64 bytes over the light protocol, both ends spinning.
pub(crate) fn light_ping(
    bed: &Testbed,
    by: By,
    waits: Waits,
    rounds: usize,
) -> io::Result<Vec<Duration>> {
    let stop = Stop::default();
    let at_b = stop.clone();
    let echo = bed.spawn(Host::B, move || End::connect(Host::B, by, waits)?.echo_until(&at_b))?;
    let ping = bed.spawn(Host::A, move || End::connect(Host::A, by, waits)?.ping(64, rounds))?;
    let times = join(ping);
    stop.store(true, Ordering::Relaxed);
    join(echo)?;
    times
}

/// The same over TCP.
pub(crate) fn tcp_ping(bed: &Testbed, waits: Waits, rounds: usize) -> io::Result<Vec<Duration>> {
    let to = Host::B.address();
    let listener = bed.on(Host::B, move || tcp::End::listen(to))??;
    let echo = bed.spawn(Host::B, move || tcp::End::accept(&listener, waits)?.echo(64))?;
    let ping = bed.spawn(Host::A, move || tcp::End::connect(to, waits)?.ping(64, rounds))?;
    let times = join(ping)?;
    join(echo)?;
    Ok(times)
}

/// Bursts of `bytes` over fresh channels; how long each took.
pub(crate) fn light_bursts(
    bed: &Testbed,
    bytes: usize,
    rounds: usize,
) -> io::Result<Vec<Duration>> {
    let stop = Stop::default();
    let at_b = stop.clone();
    let (by, waits) = (By::Ethernet, Waits::Sleeping);
    let answers =
        bed.spawn(Host::B, move || End::connect(Host::B, by, waits)?.answer_bursts_until(&at_b))?;
    let bursts = bed.spawn(Host::A, move || {
        let mut end = End::connect(Host::A, by, waits)?;
        (0..rounds).map(|_| end.burst(bytes)).collect::<io::Result<Vec<_>>>()
    })?;
    let times = join(bursts);
    stop.store(true, Ordering::Relaxed);
    join(answers)?;
    times
}

/// Bursts over TCP, each on a fresh connection that is already set up.
pub(crate) fn tcp_bursts(bed: &Testbed, bytes: usize, rounds: usize) -> io::Result<Vec<Duration>> {
    let to = Host::B.address();
    let listener = bed.on(Host::B, move || tcp::End::listen(to))??;
    let waits = Waits::Sleeping;
    let answers = bed.spawn(Host::B, move || {
        (0..rounds).try_for_each(|_| tcp::End::accept(&listener, waits)?.answer_burst(bytes))
    })?;
    let bursts = bed.spawn(Host::A, move || {
        let one = |_| tcp::End::connect(to, waits)?.burst(bytes);
        (0..rounds).map(one).collect::<io::Result<Vec<_>>>()
    })?;
    let times = join(bursts)?;
    join(answers)?;
    Ok(times)
}

/// A light stream and a TCP stream at the same time over the same wire: what each reached.
pub(crate) fn together(bed: &Testbed, by: By, span: Duration) -> io::Result<(Stream, Stream)> {
    std::thread::scope(|scope| {
        let tcp = scope.spawn(|| tcp_stream(bed, Host::B.address(), span));
        let light = light_stream(bed, by, span)?;
        let tcp = tcp.join().map_err(|_| io::Error::other("a thread panicked"))??;
        Ok((light, tcp))
    })
}
