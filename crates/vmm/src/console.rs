//! A machine's console: the end of what it printed, kept in memory and in a file, and a way to type
//! into it.
//!
//! Everything here is bounded whatever the guest does: the ring, the file (rotated once), and the
//! rate at which the console is read. A guest that prints faster is held back by QEMU, whose socket
//! buffer is then full.

use crate::rate::Bucket;
use crate::ring::Ring;
use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What a console keeps in memory, bytes.
pub const CONSOLE_RING_BYTES: usize = 256 * 1024;
/// Size at which the log file is moved aside to `NAME.1`, bytes; twice this is the most a machine's
/// log takes.
pub const CONSOLE_FILE_BYTES: u64 = 1024 * 1024;
/// Bytes read per second in the long run, and at once: more than a person reads, less than hurts
/// the host.
const READ_PER_SECOND: u32 = 256 * 1024;
const READ_BURST: u32 = 512 * 1024;
/// Bytes read at a time.
const READ_BYTES: usize = 8 * 1024;
/// Pieces of input not yet taken by the guest. 16: a person types one, a paste is cut into 4 KiB
/// pieces.
const INPUT_MAX: usize = 16;
/// Longest piece of input, bytes.
const INPUT_BYTES: usize = 4 * 1024;

/// A handle on a machine's console. Clones share it; any number may watch.
#[derive(Debug, Clone)]
pub struct Console {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    /// Position after the last byte; its sender, the pump, goes when no more will come.
    end: watch::Receiver<u64>,
    input: mpsc::Sender<Bytes>,
}

impl Shared {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // The ring is whole after every statement, so a panic elsewhere while it was held harms
        // nothing.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Typing into a console failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConsoleError {
    /// The machine has ended.
    #[error("the machine has ended")]
    Closed,
    /// The guest does not read what was typed.
    #[error("the guest does not read its console")]
    Full,
}

impl ConsoleError {
    /// Stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Closed => "CONSOLE_CLOSED",
            Self::Full => "CONSOLE_FULL",
        }
    }
}

/// What a watcher of a console reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsolePiece {
    /// Bytes as the guest wrote them.
    pub bytes: Vec<u8>,
    /// Bytes before these that were overwritten before this watcher read them.
    pub missed: u64,
}

impl Console {
    /// The last bytes the machine printed: at most `bytes_max`, and at most [`CONSOLE_RING_BYTES`].
    pub fn tail(&self, bytes_max: usize) -> Vec<u8> {
        self.shared.ring().tail(bytes_max)
    }

    /// Attaches to the console: first what the ring holds, then what comes.
    pub fn attach(&self) -> ConsoleStream {
        ConsoleStream { position: 0, end: self.shared.end.clone(), console: self.clone() }
    }

    /// Types into the console. Pieces longer than 4 KiB are cut.
    ///
    /// # Errors
    /// [`ConsoleError`]; the part of the input before the failure has been taken.
    pub fn send(&self, bytes: &[u8]) -> Result<(), ConsoleError> {
        for piece in bytes.chunks(INPUT_BYTES) {
            self.shared.input.try_send(Bytes::copy_from_slice(piece)).map_err(
                |error| match error {
                    mpsc::error::TrySendError::Full(_) => ConsoleError::Full,
                    mpsc::error::TrySendError::Closed(_) => ConsoleError::Closed,
                },
            )?;
        }
        Ok(())
    }
}

/// One watcher of a console.
#[derive(Debug)]
pub struct ConsoleStream {
    console: Console,
    position: u64,
    end: watch::Receiver<u64>,
}

impl ConsoleStream {
    /// The next piece, at most 8 KiB; `None` after the last one, when the machine has ended.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when the future is dropped.
    pub async fn read(&mut self) -> Option<ConsolePiece> {
        loop {
            let seen = *self.end.borrow_and_update();
            if seen > self.position {
                let (from, bytes) = self.console.shared.ring().read(self.position, READ_BYTES);
                let missed = from - self.position;
                self.position = from + bytes.len() as u64;
                return Some(ConsolePiece { bytes, missed });
            }
            self.end.changed().await.ok()?;
        }
    }

    /// Types into the console; see [`Console::send`].
    ///
    /// # Errors
    /// [`ConsoleError`]
    pub fn send(&self, bytes: &[u8]) -> Result<(), ConsoleError> {
        self.console.send(bytes)
    }
}

/// Where a pump keeps a console besides memory.
#[derive(Debug)]
pub(crate) enum Keep {
    /// In this file, rotated once.
    File(Utf8PathBuf),
    /// Nowhere else.
    Memory,
}

/// Reads one character device of a machine into a ring and a file.
#[derive(Debug)]
pub(crate) struct ConsolePump {
    stream: UnixStream,
    shared: Arc<Shared>,
    end: watch::Sender<u64>,
    input: mpsc::Receiver<Bytes>,
    log: Option<LogFile>,
    ended: CancellationToken,
}

impl ConsolePump {
    /// A console fed from `stream`, and the pump to be run. `ring_bytes` is the most it keeps in
    /// memory. Once `ended` is cancelled, what is left in the socket is read at once: the machine
    /// prints no more.
    pub(crate) fn new(
        stream: UnixStream,
        ring_bytes: usize,
        keep: Keep,
        ended: CancellationToken,
    ) -> (Console, Self) {
        let (input, typed) = mpsc::channel(INPUT_MAX);
        let (end_out, end) = watch::channel(0);
        let shared = Arc::new(Shared { ring: Mutex::new(Ring::new(ring_bytes)), end, input });
        let log = match keep {
            Keep::File(path) => Some(LogFile::new(path)),
            Keep::Memory => None,
        };
        let console = Console { shared: Arc::clone(&shared) };
        (console, Self { stream, shared, end: end_out, input: typed, log, ended })
    }

    /// Pumps until the device is closed, which is when the machine ends.
    ///
    /// # Cancel safety
    /// Dropping the future closes the console; what the guest printed and was not read stays in the
    /// socket.
    pub(crate) async fn run(mut self) {
        let started = Instant::now();
        let mut bucket = Bucket::new(READ_PER_SECOND, READ_BURST, Duration::ZERO);
        let mut buffer = vec![0; READ_BYTES];
        let mut typing = Bytes::new();
        let (mut reader, mut writer) = self.stream.split();
        let mut rest = None::<tokio::time::Instant>;
        loop {
            tokio::select! {
                // cancel-safe: `read` loses nothing when it is dropped.
                read = reader.read(&mut buffer), if rest.is_none() => match read {
                    Ok(0) | Err(_) => break,
                    Ok(bytes) => {
                        keep(&self.shared, &self.end, self.log.as_mut(), &buffer[..bytes]).await;
                        if !self.ended.is_cancelled() {
                            let wait = bucket.charge(bytes, started.elapsed());
                            rest = wait.map(|wait| tokio::time::Instant::now() + wait);
                        }
                    }
                },
                // cancel-safe: token.
                () = self.ended.cancelled(), if rest.is_some() => rest = None,
                // cancel-safe: a timer; the end of the rest is kept in `rest`.
                () = rested(rest), if rest.is_some() => rest = None,
                // cancel-safe: `write` has written either nothing or what it returns.
                written = writer.write(&typing), if !typing.is_empty() => match written {
                    Ok(0) | Err(_) => break,
                    Ok(bytes) => drop(typing.split_to(bytes)),
                },
                // cancel-safe: mpsc recv. `None` cannot come: `shared` holds a sender.
                Some(piece) = self.input.recv(), if typing.is_empty() => typing = piece,
            }
        }
    }
}

/// Waits until then.
pub(crate) async fn rested(until: Option<tokio::time::Instant>) {
    if let Some(until) = until {
        tokio::time::sleep_until(until).await;
    }
}

async fn keep(shared: &Shared, end: &watch::Sender<u64>, log: Option<&mut LogFile>, bytes: &[u8]) {
    let position = {
        let mut ring = shared.ring();
        ring.push(bytes);
        ring.end()
    };
    end.send_replace(position);
    if let Some(log) = log {
        log.append(bytes).await;
    }
}

/// A file of bounded size: `path`, and `path.1` for what came before it.
#[derive(Debug)]
struct LogFile {
    path: Utf8PathBuf,
    file: Option<(File, u64)>,
    /// A failure is logged once, not at each line a guest prints on a full disk.
    failed: bool,
}

impl LogFile {
    fn new(path: Utf8PathBuf) -> Self {
        Self { path, file: None, failed: false }
    }

    async fn append(&mut self, bytes: &[u8]) {
        if let Err(error) = self.write(bytes).await {
            self.file = None;
            if !self.failed {
                tracing::warn!(path = %self.path, %error, "console log not written");
            }
            self.failed = true;
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|(_, length)| *length >= CONSOLE_FILE_BYTES) {
            self.file = None;
            fs::rename(&self.path, older(&self.path)).await?;
        }
        let (file, length) = match &mut self.file {
            Some(open) => open,
            None => {
                let file = File::options().append(true).create(true).open(&self.path).await?;
                let length = file.metadata().await?.len();
                self.file.insert((file, length))
            }
        };
        file.write_all(bytes).await?;
        file.flush().await?;
        *length += bytes.len() as u64;
        Ok(())
    }
}

fn older(path: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{path}.1"))
}

/// What a console log file holds, newest last: at most the last `bytes_max` bytes. Works without a
/// machine.
///
/// # Errors
/// Those of reading the files; a log that was never written is empty.
pub fn read_log(path: &Utf8Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut ring = Ring::new(bytes_max);
    for path in [older(path), path.to_owned()] {
        match std::fs::read(&path) {
            Ok(bytes) => ring.push(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ring.tail(bytes_max))
}

#[cfg(test)]
mod tests;
