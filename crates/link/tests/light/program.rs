//! A program and its rings, as the broker would give them to a node.

use rustix::event::{EventfdFlags, eventfd};
use skein_link::remote::{Local, Note, Outgoing};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Room in the ring towards the program.
const RING: usize = 128 * 1024;
const DEADLINE: Duration = Duration::from_secs(30);

enum Item {
    Bytes(VecDeque<u8>),
    Note(Note),
}

/// What a program has seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) joined: bool,
    pub(crate) bytes: Vec<u8>,
    pub(crate) notes: Vec<(Note, usize)>,
    pub(crate) ended: bool,
    pub(crate) aborted: Option<&'static str>,
    pub(crate) dropped: bool,
}

#[derive(Default)]
struct Rings {
    out: VecDeque<Item>,
    seen: Seen,
    /// Bytes in the ring towards the program.
    waiting: usize,
    /// It does not read.
    lazy: bool,
    armed: bool,
    /// It has said that it ends.
    ended: bool,
}

/// The program's side.
#[derive(Clone)]
pub(crate) struct Program {
    rings: Arc<(Mutex<Rings>, Condvar)>,
    wake: Arc<OwnedFd>,
}

/// The node's side.
pub(crate) struct Rope(Program);

impl Program {
    pub(crate) fn new() -> Self {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd");
        Self { rings: Arc::default(), wake: Arc::new(wake) }
    }

    pub(crate) fn local(&self) -> Box<dyn Local> {
        Box::new(Rope(self.clone()))
    }

    fn change(&self, change: impl FnOnce(&mut Rings)) {
        let mut rings = self.rings.0.lock().expect("no panic");
        change(&mut rings);
        if std::mem::take(&mut rings.armed) {
            rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()).expect("a wake-up");
        }
        self.rings.1.notify_all();
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        self.change(|rings| rings.out.push_back(Item::Bytes(bytes.iter().copied().collect())));
    }

    pub(crate) fn note(&self, note: Note) {
        self.change(|rings| rings.out.push_back(Item::Note(note)));
    }

    pub(crate) fn end(&self) {
        self.note(Note::End);
    }

    /// From now on it leaves what comes in the ring, or does not.
    pub(crate) fn lazy(&self, lazy: bool) {
        self.change(|rings| {
            rings.lazy = lazy;
            rings.waiting = 0;
        });
    }

    /// Waits until what it has seen is as wanted.
    pub(crate) fn wait<T>(&self, what: &str, mut done: impl FnMut(&Seen) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        let mut rings = self.rings.0.lock().expect("no panic");
        loop {
            if let Some(value) = done(&rings.seen) {
                return value;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what} did not happen: joined {}, {} bytes, ended {}, aborted {:?}",
                rings.seen.joined,
                rings.seen.bytes.len(),
                rings.seen.ended,
                rings.seen.aborted
            );
            rings = self.rings.1.wait_timeout(rings, left).expect("no panic").0;
        }
    }
}

impl Local for Rope {
    fn join(&mut self) -> io::Result<()> {
        self.0.change(|rings| rings.seen.joined = true);
        Ok(())
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<Outgoing> {
        let mut rings = self.0.rings.0.lock().expect("no panic");
        assert!(rings.seen.joined, "nothing is read before both are there");
        Ok(match rings.out.pop_front() {
            None => Outgoing::Empty,
            Some(Item::Note(note)) => {
                rings.ended |= note == Note::End;
                Outgoing::Note(note)
            }
            Some(Item::Bytes(mut bytes)) => {
                let length = bytes.len().min(into.len());
                for (place, byte) in into.iter_mut().zip(bytes.drain(..length)) {
                    *place = byte;
                }
                if !bytes.is_empty() {
                    rings.out.push_front(Item::Bytes(bytes));
                }
                Outgoing::Bytes(length)
            }
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = RING - self.0.rings.0.lock().expect("no panic").waiting;
        let taken = bytes.len().min(room);
        self.0.change(|rings| {
            rings.seen.bytes.extend_from_slice(&bytes[..taken]);
            if rings.lazy {
                rings.waiting += taken;
            }
        });
        Ok(taken)
    }

    fn tell(&mut self, note: Note) -> io::Result<()> {
        self.0.change(|rings| match note {
            Note::End => rings.seen.ended = true,
            note => {
                let place = rings.seen.bytes.len();
                rings.seen.notes.push((note, place));
            }
        });
        Ok(())
    }

    fn is_over(&self) -> bool {
        let rings = self.0.rings.0.lock().expect("no panic");
        rings.ended && rings.seen.ended
    }

    fn woken(&mut self) {
        let _ = rustix::io::read(&*self.0.wake, &mut [0; 8]);
    }

    fn wake(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }

    fn arm(&mut self) -> bool {
        let mut rings = self.0.rings.0.lock().expect("no panic");
        rings.armed = true;
        rings.out.is_empty()
    }

    fn abort(&mut self, reason: &'static str) {
        self.0.change(|rings| rings.seen.aborted = Some(reason));
    }
}

impl Drop for Rope {
    fn drop(&mut self) {
        self.0.change(|rings| rings.seen.dropped = true);
    }
}
