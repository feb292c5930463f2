//! The receiver's side of a direction.

use super::atomic::{Ordering, fence};
use super::direction::{Bell, LOG, Phase, Record};
use super::segment::Pipe;
use super::{Broken, Direction};

/// Bells that may be under way at most. Two are: one for the bytes in the ring, one that a settling receiver has not drained yet;
/// a few more if it gave up waiting for a sender that was stopped between announcing and sending.
const BELLS_MAX: u64 = 64;

/// What the receiver is to do next. All of this within [`Direction::enter`] and [`Direction::leave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Read at most that many bytes of data from TCP.
    Tcp {
        /// `u64::MAX`: as many as there are.
        limit: u64,
    },
    /// That many bytes are in the ring.
    Ring {
        /// At least 1.
        bytes: usize,
    },
    /// Read exactly that many bytes from TCP and drop them; then ask again.
    Bells {
        /// At least 1.
        bytes: u64,
    },
    /// On the ring, and it is empty.
    Empty,
}

/// What [`Rx::settle`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The ring is empty: that many bells are to be read from TCP and dropped; the next byte in the ring brings a new one.
    Quiet {
        /// Bells to drop.
        drop: u64,
    },
    /// Bytes came meanwhile: that many bells are to be dropped, one stays.
    Bytes {
        /// Bells to drop.
        drop: u64,
    },
    /// The other host was asked for a bell, and it is not known whether it rang: try again after [`Direction::news`].
    Asked,
}

/// What the receiver of a direction knows; where it lives, see [`super::Tx`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Rx {
    phase: Phase,
    /// TCP position of the next byte to read.
    tcp: u64,
    /// Ring position of the next byte to read.
    tail: u64,
}

impl Rx {
    /// A receiver on TCP whose next TCP byte has this position.
    pub const fn new(tcp: u64) -> Self {
        Self { phase: Phase(0), tcp, tail: 0 }
    }

    /// Whether the next byte comes from the ring, as far as seen.
    pub const fn on_ring(&self) -> bool {
        self.phase.on_ring()
    }

    /// The phase it is in.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// TCP position of the next byte to read.
    pub const fn tcp(&self) -> u64 {
        self.tcp
    }

    /// Ring position of the next byte to read.
    pub const fn tail(&self) -> u64 {
        self.tail
    }

    /// Where the phase after the current one begins, if it is published. Checked.
    fn successor(&self, dir: &Direction) -> Result<Option<Record>, Broken> {
        let latest = dir.phase();
        match latest.since(self.phase) {
            0 => Ok(None),
            ahead if ahead < LOG => {
                let record = dir.record(self.phase.next());
                if record.tcp < self.tcp || record.ring < self.tail {
                    return Err(Broken::Index);
                }
                // On TCP the ring stands still.
                if !self.on_ring() && record.ring != self.tail {
                    return Err(Broken::Index);
                }
                Ok(Some(record))
            }
            _ => Err(Broken::Index),
        }
    }

    /// What to do next. Moves on to later phases by itself.
    ///
    /// # Errors
    /// The sender wrote what cannot be.
    pub fn next(&mut self, pipe: Pipe<'_>) -> Result<Next, Broken> {
        self.find(pipe, |phase| pipe.direction().set_seen(phase))
    }

    fn find(&mut self, pipe: Pipe<'_>, moved_on: impl Fn(Phase)) -> Result<Next, Broken> {
        let dir = pipe.direction();
        loop {
            let successor = self.successor(dir)?;
            if !self.on_ring() {
                match successor {
                    None => return Ok(Next::Tcp { limit: u64::MAX }),
                    Some(record) if record.tcp > self.tcp => {
                        return Ok(Next::Tcp { limit: record.tcp - self.tcp });
                    }
                    Some(_) => {
                        self.phase = self.phase.next();
                        moved_on(self.phase);
                    }
                }
                continue;
            }
            let end = successor.map_or_else(|| dir.head(), |record| record.ring);
            match self.unread(pipe, end)? {
                0 => {}
                bytes => return Ok(Next::Ring { bytes }),
            }
            match successor {
                None => return Ok(Next::Empty),
                Some(record) if record.tcp > self.tcp => {
                    let bytes = record.tcp - self.tcp;
                    return if bytes <= BELLS_MAX {
                        Ok(Next::Bells { bytes })
                    } else {
                        Err(Broken::Index)
                    };
                }
                Some(_) => {
                    self.phase = self.phase.next();
                    moved_on(self.phase);
                }
            }
        }
    }

    fn unread(&self, pipe: Pipe<'_>, end: u64) -> Result<usize, Broken> {
        let bytes = end.wrapping_sub(self.tail);
        usize::try_from(bytes).ok().filter(|bytes| *bytes <= pipe.capacity()).ok_or(Broken::Index)
    }

    /// As [`Rx::next`], for a copy that goes ahead of the receiver: its sender is told nothing.
    ///
    /// # Errors
    /// The sender wrote what cannot be.
    pub fn look(&mut self, pipe: Pipe<'_>) -> Result<Next, Broken> {
        self.find(pipe, |_| {})
    }

    /// A copy goes past that many bytes of the ring, which stay there.
    pub fn pass(&mut self, bytes: usize) {
        self.tail += bytes as u64;
    }

    /// Whether the ring has a byte that was not read, or the phase has changed: a quick look, without being in the
    /// critical section.
    pub fn stirs(&self, dir: &Direction) -> bool {
        dir.head() != self.tail || dir.phase() != self.phase
    }

    /// Copies bytes out of the ring without taking them, from `skip` bytes after the next one on. Only after
    /// [`Next::Ring`] said how many there are.
    pub fn peek(&self, pipe: Pipe<'_>, skip: usize, into: &mut [u8]) {
        pipe.get(self.tail + skip as u64, into);
    }

    /// Takes that many bytes, which were copied with [`Rx::peek`].
    pub fn take(&mut self, dir: &Direction, bytes: usize) {
        self.tail += bytes as u64;
        dir.set_tail(self.tail);
    }

    /// That many bytes were read from TCP: data after [`Next::Tcp`], bells after [`Next::Bells`] or [`Rx::settle`].
    pub fn took(&mut self, bytes: u64) {
        self.tcp += bytes;
    }

    /// Mends what a process left that died within a read of this side: `tcp` is the kernel's word for the position of the next
    /// TCP byte to read. What the dead process had taken is gone, as it would be on TCP.
    pub fn recover(&mut self, dir: &Direction, tcp: u64) {
        self.tcp = self.tcp.max(tcp);
        dir.set_tail(self.tail);
        dir.leave();
    }

    /// The ring is empty ([`Next::Empty`]) and the program is about to wait: makes its socket unreadable again.
    ///
    /// # Errors
    /// The sender wrote what cannot be.
    pub fn settle(&mut self, pipe: Pipe<'_>) -> Result<Settled, Broken> {
        debug_assert!(self.on_ring());
        let dir = pipe.direction();
        if pipe.is_far() && dir.is_asked() {
            return Ok(Settled::Asked);
        }
        let bell = dir.bell();
        let under_way = self.under_way(bell)?;
        let armed = Bell { end: bell.end, rung: false };
        if bell.rung && !dir.change_bell(bell, armed) {
            // A rung bell is the receiver's to change, but for the answer of another host.
            return if pipe.is_far() { Ok(Settled::Asked) } else { Err(Broken::Index) };
        }
        fence(Ordering::SeqCst);
        if dir.head() == self.tail {
            // The bells up to `bell.end` have nothing to tell any more. One that is rung from here on is beyond it.
            return Ok(Settled::Quiet { drop: under_way });
        }
        if under_way == 0 {
            // Armed before, bytes now: their bell is under way.
            return Ok(Settled::Bytes { drop: 0 });
        }
        if dir.change_bell(armed, Bell { end: bell.end, rung: true }) {
            return Ok(Settled::Bytes { drop: under_way - 1 });
        }
        // The sender rang again; the new bell stays.
        Ok(Settled::Bytes { drop: under_way })
    }

    /// Bells that were sent and not read.
    fn under_way(&self, bell: Bell) -> Result<u64, Broken> {
        bell.end.checked_sub(self.tcp).filter(|bells| *bells <= BELLS_MAX).ok_or(Broken::Index)
    }

    /// Bells that are known to have been sent and were not read; where the other end is far, more bytes may be in the queue
    /// than that, and their meaning is still to come.
    ///
    /// # Errors
    /// The sender wrote what cannot be.
    pub fn known_bells(&self, dir: &Direction) -> Result<u64, Broken> {
        self.under_way(dir.bell())
    }

    /// Whether the program's socket may be readable although the ring is empty: a bell was left in its queue.
    pub fn is_unsettled(&self, dir: &Direction) -> bool {
        self.on_ring() && dir.bell().rung
    }

    /// Of `present` bytes in the socket's queue, on the ring: whether they can all be bells.
    ///
    /// # Errors
    /// [`Broken::Foreign`] if they cannot, [`Broken::Index`] if the sender wrote what cannot be.
    pub fn check_bells(&self, dir: &Direction, present: u64) -> Result<(), Broken> {
        if present <= self.under_way(dir.bell())? { Ok(()) } else { Err(Broken::Foreign) }
    }
}
