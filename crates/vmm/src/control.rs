//! The control channel of one machine: lines of [`skein_wire`], as `docs/guest-abi.md` defines
//! them.
//!
//! The guest is hostile: at most 64 lines a second are believed, its longest line is 1,024 bytes,
//! and it is read no faster than that allows, so that a guest that floods the channel holds up
//! itself.

use crate::console::rested;
use crate::rate::Bucket;
use serde::{Deserialize, Serialize};
use skein_wire::{ControlError as WireError, GuestLine, HostLine, Identity, LineReader, Stats};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// Lines believed per second, and at once.
const LINES_PER_SECOND: u32 = 64;
/// Bytes read per second: every line the guest may send, at full length.
const BYTES_PER_SECOND: u32 = LINES_PER_SECOND * skein_wire::CONTROL_LINE_MAX as u32;
/// Requests of the host not yet written. 16: the agent asks for `stats` about once a second.
const REQUESTS_MAX: usize = 16;
/// Callers waiting for one `stats` line.
const WAITERS_MAX: usize = 64;
/// Bytes read at a time.
const READ_BYTES: usize = 2 * 1024;

/// What a guest said when it began to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// TCP port of its HTTP server.
    pub port: u16,
    /// Requests it serves at a time.
    pub capacity: u16,
    /// The guest's own figure: from kernel entry to listening.
    pub boot: Duration,
}

/// What a guest reports about itself. Counters begin at boot; the figures are the guest's word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestStats {
    /// Heap the machine has, bytes.
    pub memory_total: u64,
    /// Heap in use, bytes.
    pub memory_used: u64,
    /// Time the guest was not idle.
    pub busy: Duration,
    /// Requests answered.
    pub requests: u64,
    /// Requests inside the service now.
    pub in_service: u64,
    /// Requests answered with an error, and connections broken in mid-request.
    pub errors: u64,
    /// Time since kernel entry.
    pub uptime: Duration,
}

impl From<Stats> for GuestStats {
    fn from(stats: Stats) -> Self {
        Self {
            memory_total: stats.mem_total,
            memory_used: stats.mem_used,
            busy: Duration::from_micros(stats.busy_us),
            requests: stats.requests,
            in_service: stats.in_service,
            errors: stats.errors,
            uptime: Duration::from_micros(stats.uptime_us),
        }
    }
}

/// A request over the control channel failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The machine has ended.
    #[error("the machine has ended")]
    Closed,
    /// The guest did not answer in time.
    #[error("the guest did not answer in {waited:?}")]
    Deadline {
        /// How long was waited.
        waited: Duration,
    },
    /// Too many requests wait; the guest does not read them.
    #[error("the guest does not read its control channel")]
    Busy,
}

impl ControlError {
    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Closed => "CONTROL_CLOSED",
            Self::Deadline { .. } => "CONTROL_DEADLINE",
            Self::Busy => "CONTROL_BUSY",
        }
    }
}

enum Request {
    Stats(oneshot::Sender<GuestStats>),
    Stop,
    Greet { clock_ns: u64 },
}

/// What is known from the control channel so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Heard {
    pub(crate) ready: Option<Ready>,
    /// The exit code the guest announced.
    pub(crate) stopping: Option<u8>,
}

/// A handle on the control channel. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    requests: mpsc::Sender<Request>,
    heard: watch::Receiver<Heard>,
    dropped: Arc<AtomicU64>,
}

impl Control {
    /// A handle and the actor to be run; `ready` is what is known of an adopted machine.
    pub(crate) fn new(stream: UnixStream, ready: Option<Ready>) -> (Self, ControlActor) {
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        let (heard_out, heard) = watch::channel(Heard { ready, stopping: None });
        let dropped = Arc::new(AtomicU64::new(0));
        let actor = ControlActor {
            stream,
            inbox,
            guest: Guest {
                heard: heard_out,
                dropped: Arc::clone(&dropped),
                waiters: Vec::new(),
                bucket: Bucket::new(LINES_PER_SECOND, LINES_PER_SECOND, Duration::ZERO),
            },
        };
        (Self { requests, heard, dropped }, actor)
    }

    /// What the guest has said; ends when the channel does.
    pub(crate) fn heard(&self) -> watch::Receiver<Heard> {
        self.heard.clone()
    }

    /// Lines dropped so far: too many, too long or malformed.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) async fn stats(&self, deadline: Duration) -> Result<GuestStats, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.request(Request::Stats(reply))?;
        match timeout(deadline, answer).await {
            Ok(Ok(stats)) => Ok(stats),
            Ok(Err(_)) => Err(ControlError::Closed),
            Err(_) => Err(ControlError::Deadline { waited: deadline }),
        }
    }

    pub(crate) fn stop(&self) -> Result<(), ControlError> {
        self.request(Request::Stop)
    }

    /// Has the guest say `ready` again, by telling it the time and nothing else: nobody may have
    /// heard it the first time.
    pub(crate) fn greet(&self, clock_ns: u64) -> Result<(), ControlError> {
        self.request(Request::Greet { clock_ns })
    }

    fn request(&self, request: Request) -> Result<(), ControlError> {
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ControlError::Busy,
            mpsc::error::TrySendError::Closed(_) => ControlError::Closed,
        })
    }
}

/// The guest's side of the conversation.
struct Guest {
    heard: watch::Sender<Heard>,
    dropped: Arc<AtomicU64>,
    waiters: Vec<oneshot::Sender<GuestStats>>,
    bucket: Bucket,
}

impl Guest {
    fn on_line(&mut self, line: Result<&str, WireError>, now: Duration) {
        if !self.bucket.take(now) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match line.and_then(GuestLine::parse) {
            Ok(Some(GuestLine::Ready { port, capacity, boot_us })) => {
                let ready = Ready { port, capacity, boot: Duration::from_micros(boot_us) };
                self.heard.send_modify(|heard| heard.ready = Some(ready));
            }
            Ok(Some(GuestLine::Stats(stats))) => {
                for waiter in self.waiters.drain(..) {
                    // A waiter that is gone needs no answer.
                    let _ = waiter.send(stats.into());
                }
            }
            Ok(Some(GuestLine::Stopping { code })) => {
                self.heard.send_modify(|heard| heard.stopping = Some(code));
            }
            Ok(None) => {}
            Err(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Appends what is to be sent to `out`. One `stats` line answers all who wait for one.
    fn on_request(&mut self, request: Request, out: &mut Vec<u8>) {
        match request {
            Request::Stop => HostLine::Stop.encode(out),
            Request::Greet { clock_ns } => {
                let identity = Identity { clock: Some(clock_ns), ..Identity::default() };
                HostLine::Identity(Box::new(identity)).encode(out);
            }
            Request::Stats(waiter) => {
                self.waiters.retain(|waiter| !waiter.is_closed());
                if self.waiters.is_empty() {
                    HostLine::Stats.encode(out);
                }
                if self.waiters.len() < WAITERS_MAX {
                    self.waiters.push(waiter);
                }
            }
        }
    }
}

/// Owns the control channel's socket.
pub(crate) struct ControlActor {
    stream: UnixStream,
    inbox: mpsc::Receiver<Request>,
    guest: Guest,
}

impl ControlActor {
    /// Runs until the device is closed, which is when the machine ends.
    pub(crate) async fn run(mut self) {
        let started = Instant::now();
        let mut bytes_bucket = Bucket::new(BYTES_PER_SECOND, BYTES_PER_SECOND, Duration::ZERO);
        let mut lines = LineReader::new();
        let mut buffer = vec![0; READ_BYTES];
        let mut outgoing = Vec::new();
        let mut rest = None::<tokio::time::Instant>;
        let (mut reader, mut writer) = self.stream.split();
        loop {
            tokio::select! {
                // cancel-safe: `read` loses nothing when it is dropped.
                read = reader.read(&mut buffer), if rest.is_none() => match read {
                    Ok(0) | Err(_) => break,
                    Ok(bytes) => {
                        let now = started.elapsed();
                        lines.push(&buffer[..bytes], |line| self.guest.on_line(line, now));
                        let wait = bytes_bucket.charge(bytes, now);
                        rest = wait.map(|wait| tokio::time::Instant::now() + wait);
                    }
                },
                // cancel-safe: a timer; the end of the rest is kept in `rest`.
                () = rested(rest), if rest.is_some() => rest = None,
                // cancel-safe: `write` has written either nothing or what it returns.
                written = writer.write(&outgoing), if !outgoing.is_empty() => match written {
                    Ok(0) | Err(_) => break,
                    Ok(bytes) => drop(outgoing.drain(..bytes)),
                },
                // cancel-safe: mpsc recv.
                request = self.inbox.recv(), if outgoing.is_empty() => match request {
                    Some(request) => self.guest.on_request(request, &mut outgoing),
                    None => break,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};

    const PATIENCE: Duration = Duration::from_secs(20);
    const STATS: &str = "stats mem_total=9 mem_used=4 busy_us=1000 requests=7 in_service=1 errors=0 \
                         uptime_us=2000\n";

    fn start() -> (Control, BufReader<UnixStream>) {
        let (ours, guest) = UnixStream::pair().expect("socket pair");
        let (control, actor) = Control::new(ours, None);
        tokio::spawn(actor.run());
        (control, BufReader::new(guest))
    }

    async fn hear(guest: &mut BufReader<UnixStream>) -> String {
        let mut line = String::new();
        timeout(PATIENCE, guest.read_line(&mut line)).await.expect("in time").expect("line");
        line
    }

    #[tokio::test]
    async fn ready_stats_stopping() {
        let (control, mut guest) = start();
        let mut heard = control.heard();
        guest.write_all(b"hello x=1\nready port=80 capacity=4 boot_us=7300\n").await.expect("say");
        let ready = heard.wait_for(|heard| heard.ready.is_some()).await.expect("ready").ready;
        let boot = Duration::from_micros(7300);
        assert_eq!(ready, Some(Ready { port: 80, capacity: 4, boot }));

        let asks: Vec<_> = (0..3)
            .map(|_| {
                let control = control.clone();
                tokio::spawn(async move { control.stats(PATIENCE).await })
            })
            .collect();
        assert_eq!(hear(&mut guest).await, "stats\n");
        guest.write_all(STATS.as_bytes()).await.expect("say");
        for ask in asks {
            // An ask that came after the first answer is answered by a second one.
            guest.write_all(STATS.as_bytes()).await.expect("say");
            assert_eq!(ask.await.expect("joined").map(|stats| stats.requests), Ok(7));
        }

        guest.write_all(b"stopping code=16\n").await.expect("say");
        heard.wait_for(|heard| heard.stopping == Some(16)).await.expect("stopping");
        drop(guest);
        while heard.changed().await.is_ok() {}
        assert_eq!(control.stats(PATIENCE).await, Err(ControlError::Closed));
    }

    #[tokio::test]
    async fn a_deaf_guest_is_not_waited_for() {
        let (control, _guest) = start();
        let wait = Duration::from_millis(10);
        assert_eq!(control.stats(wait).await, Err(ControlError::Deadline { waited: wait }));
    }

    #[tokio::test]
    async fn a_flood_is_dropped_and_counted() {
        let (control, mut guest) = start();
        let flood = "nonsense\n".repeat(2_000) + &"x".repeat(5_000) + "\n\u{1}ready port=x\n";
        guest.write_all(flood.as_bytes()).await.expect("say");
        let deadline = Instant::now() + PATIENCE;
        while control.dropped() < 1_900 && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        assert!(control.dropped() >= 1_900, "{}", control.dropped());
        assert!(control.heard().borrow().ready.is_none());
    }
}
