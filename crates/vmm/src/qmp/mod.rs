//! QMP, QEMU's management protocol: JSON lines over a Unix socket. One actor owns the connection.
//!
//! ```text
//!  Greeting ──greeting read, qmp_capabilities sent──▶ Negotiating ──reply──▶ Open
//!      └───────────────── end of file, error, too much rubbish ───────────────▶ Closed   (terminal)
//! ```
//!
//! Every command carries an id, so a reply nobody waits for any more is dropped and harms nothing,
//! and events of any name are passed on. The peer is a QEMU that a guest may have taken over: its
//! lines are bounded, a line that makes no sense is counted, and a peer that sends little else
//! loses the connection.

mod session;

use self::session::{Incoming, Session};
use serde_json::Value;
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub use self::session::QmpEvent;

/// Commands waiting to be sent. 16: a machine has a handful of users, and each sends one command at
/// a time.
const COMMANDS_MAX: usize = 16;
/// Commands sent and not answered. 32: beyond this the peer is not answering, and more would only
/// pile up.
const PENDING_MAX: usize = 32;
/// Events not yet taken. 64: a burst after a migration is about 40; what does not fit is dropped
/// and logged.
const EVENTS_MAX: usize = 64;
/// Malformed lines after which the peer is not QEMU.
const RUBBISH_MAX: u64 = 64;
/// Bytes read at a time.
const READ_BYTES: usize = 8 * 1024;

/// Why a QMP command has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// The connection is closed: QEMU ended, or its end of the connection is broken.
    #[error("the connection to QEMU is closed")]
    Closed,
    /// No reply in time. The command may still be carried out.
    #[error("QEMU did not answer {command} in {waited:?}")]
    Deadline {
        /// The command.
        command: String,
        /// How long was waited.
        waited: Duration,
    },
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// Too many commands wait for an answer.
    #[error("too many commands wait for an answer of QEMU")]
    Busy,
}

impl QmpError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Closed => "QMP_CLOSED",
            Self::Deadline { .. } => "QMP_DEADLINE",
            Self::Refused { .. } => "QMP_REFUSED",
            Self::Busy => "QMP_BUSY",
        }
    }
}

type Reply = oneshot::Sender<Result<Value, String>>;

struct Request {
    command: String,
    arguments: Option<Value>,
    reply: Reply,
}

/// A handle on the connection to one QEMU. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
}

impl Qmp {
    /// A handle, and the actor to be run. Capabilities are negotiated by the actor: commands may be
    /// sent at once.
    pub fn new(stream: UnixStream) -> (Self, QmpActor) {
        let (requests, inbox) = mpsc::channel(COMMANDS_MAX);
        let (events, events_out) = mpsc::channel(EVENTS_MAX);
        let actor = QmpActor {
            stream,
            inbox,
            events,
            events_out: Some(events_out),
            session: Session::new(),
            outgoing: Vec::new(),
            pending: HashMap::new(),
        };
        (Self { requests }, actor)
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`QmpError`]. After [`QmpError::Deadline`] the command may yet be carried out.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the reply; the command may be carried out, and the connection
    /// stays whole.
    pub async fn execute(
        &self,
        command: &str,
        arguments: Option<Value>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { command: command.to_owned(), arguments, reply };
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => QmpError::Busy,
            mpsc::error::TrySendError::Closed(_) => QmpError::Closed,
        })?;
        let command = || command.to_owned();
        match timeout(deadline, answer).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(reason))) => Err(QmpError::Refused { command: command(), reason }),
            Ok(Err(_)) => Err(QmpError::Closed),
            Err(_) => Err(QmpError::Deadline { command: command(), waited: deadline }),
        }
    }
}

/// Owns one QMP connection; [`QmpActor::run`] drives it until it ends.
#[derive(Debug)]
pub struct QmpActor {
    stream: UnixStream,
    inbox: mpsc::Receiver<Request>,
    events: mpsc::Sender<QmpEvent>,
    events_out: Option<mpsc::Receiver<QmpEvent>>,
    session: Session,
    outgoing: Vec<u8>,
    pending: HashMap<u64, Reply>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("command", &self.command).finish_non_exhaustive()
    }
}

impl QmpActor {
    /// The events of this connection, in order. To be called once, before [`Self::run`].
    pub fn events(&mut self) -> mpsc::Receiver<QmpEvent> {
        self.events_out.take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Drives the connection until the peer closes it, breaks it, or every handle is gone.
    /// Whoever still waits for a reply then sees [`QmpError::Closed`].
    pub async fn run(mut self) {
        let mut buffer = vec![0; READ_BYTES];
        let (mut reader, mut writer) = self.stream.split();
        loop {
            let room = self.session.is_open()
                && self.outgoing.is_empty()
                && self.pending.len() < PENDING_MAX;
            tokio::select! {
                // cancel-safe: `read` loses nothing when it is dropped.
                read = reader.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(bytes) => {
                        let heard = self.session.on_bytes(&buffer[..bytes], &mut self.outgoing);
                        deliver(heard, &mut self.pending, &self.events);
                        if self.session.rubbish() > RUBBISH_MAX {
                            tracing::warn!(lines = self.session.rubbish(), "QMP peer talks nonsense");
                            break;
                        }
                    }
                },
                // cancel-safe: `write` has written either nothing or what it returns.
                written = writer.write(&self.outgoing), if !self.outgoing.is_empty() => match written {
                    Ok(0) | Err(_) => break,
                    Ok(bytes) => drop(self.outgoing.drain(..bytes)),
                },
                // cancel-safe: mpsc recv.
                request = self.inbox.recv(), if room => match request {
                    None => break,
                    Some(request) => {
                        // Whoever gave up waiting long ago needs no slot any more.
                        self.pending.retain(|_, reply| !reply.is_closed());
                        let id = self.session.command(
                            &request.command, request.arguments, &mut self.outgoing);
                        self.pending.insert(id, request.reply);
                    }
                },
            }
        }
    }
}

fn deliver(
    heard: Vec<Incoming>,
    pending: &mut HashMap<u64, Reply>,
    events: &mpsc::Sender<QmpEvent>,
) {
    for incoming in heard {
        match incoming {
            Incoming::Reply { id, result } => {
                if let Some(reply) = pending.remove(&id) {
                    // A waiter that is gone needs no reply.
                    let _ = reply.send(result);
                }
            }
            Incoming::Event(event) => {
                if let Err(error) = events.try_send(event) {
                    tracing::debug!(%error, "QMP event dropped");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
