//! The node's side of a segment whose other end is on another host.
//!
//! ```text
//!  program A ═ segment ═▶ Taker ── node ~~ light protocol ~~ node ── Giver ═ segment ═▶ program B
//!      └────────── TCP: bytes of TCP phases, bells that node A sends when node B asks ──────────┘
//! ```
//! Each program has a segment with its own host's node, which plays the other end: a [`Taker`] reads what the program sends,
//! a [`Giver`] writes what comes for it. What the two ends of a near connection read in each other's words, the nodes tell
//! one another. On one host an announcement is in shared memory before the byte that it announces is in the socket; here the
//! two take different ways, and four rules stand in for that:
//!
//! 1. *Bells only when asked.* A node rings on its program's socket when the other one, which has placed the beginning of the
//!    ring phase in its segment, asks for it. So no bell is taken for data of the phase before.
//! 2. *Bells are counted when they were sent.* The node that rang tells the position; the receiver drops bells up to it.
//!    A byte beyond is a bell whose count, or data whose phase, is still on its way: it waits for that.
//! 3. *Placed before left.* A sender goes from the ring to TCP only after the beginning of its ring phase was placed. So
//!    data of two TCP phases never meet without the ring bytes between them being known.
//! 4. *The last bell is the sender's.* See [`super::Tx::leave_far`].
//!
//! The tail that the sender sees is that of the receiver's program, told by its node: so a sender can take back all that
//! was not read ([`Refusal::Recall`]), wherever it is, and no node ever holds more than a ring has room for.
//!
//! Everything read here may be a hostile program's: checked against what the node knows by itself.

use super::atomic::{Ordering, fence};
use super::direction::{Bell, LOG, Phase, Record};
use super::segment::Pipe;
use super::{Broken, Direction, Refusal};

/// What a program has done next, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// So many bytes were copied out.
    Bytes(usize),
    /// It changes path.
    Switch(Phase, Record),
    /// Nothing now.
    Empty,
}

/// Reads what a program sends.
#[derive(Debug, Default)]
pub struct Taker {
    phase: Phase,
    /// Ring position of the next byte to pass on.
    next: u64,
    /// Where the other program's reading is, as told.
    tail: u64,
    recalled: bool,
}

/// A bell that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rang {
    /// It went out; this is the TCP position behind it.
    Yes(u64),
    /// The phase is over, or TCP is: the receiver learns of that otherwise.
    No,
    /// Not now; try again soon.
    Busy,
}

impl Taker {
    /// What comes next; bytes are copied into `into`, which is not empty.
    ///
    /// # Errors
    /// The program wrote what cannot be.
    pub fn take(&mut self, pipe: Pipe<'_>, into: &mut [u8]) -> Result<Taken, Broken> {
        let dir = pipe.direction();
        loop {
            let latest = dir.phase();
            let successor = match latest.since(self.phase) {
                0 => None,
                ahead if ahead < LOG => Some(dir.record(self.phase.next())),
                _ => return Err(Broken::Index),
            };
            let end = match successor {
                Some(record) => record.ring,
                None if self.phase.on_ring() => dir.head(),
                None => self.next,
            };
            // A phase that began after the head was read may have moved it: look again.
            if successor.is_none() && dir.phase() != latest {
                continue;
            }
            if self.recalled {
                // What was not read comes again on TCP.
                return self.change(successor, Phase::on_ring(self.phase));
            }
            let bytes = end.checked_sub(self.next).ok_or(Broken::Index)?;
            if bytes > 0 {
                let held = end - self.tail;
                if !self.phase.on_ring() || held > pipe.capacity() as u64 {
                    return Err(Broken::Index);
                }
                let count = into.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
                pipe.get(self.next, &mut into[..count]);
                self.next += count as u64;
                return Ok(Taken::Bytes(count));
            }
            return self.change(successor, false);
        }
    }

    fn change(&mut self, to: Option<Record>, takes_back: bool) -> Result<Taken, Broken> {
        let Some(record) = to else { return Ok(Taken::Empty) };
        if takes_back {
            if record.ring < self.tail {
                return Err(Broken::Index);
            }
            self.next = record.ring;
        }
        if record.ring != self.next {
            return Err(Broken::Index);
        }
        self.phase = self.phase.next();
        Ok(Taken::Switch(self.phase, record))
    }

    /// The other program has read up to `tail`, and is in `seen`. Wake who sleeps for room after this.
    ///
    /// # Errors
    /// The other node said what cannot be.
    pub fn told(&mut self, dir: &Direction, tail: u64, seen: Phase) -> Result<(), Broken> {
        if tail < self.tail || tail > self.next || self.phase.since(seen) >= LOG {
            return Err(Broken::Index);
        }
        self.tail = tail;
        dir.set_tail(tail);
        dir.set_seen(seen);
        Ok(())
    }

    /// The beginning of a phase lies in the other program's segment.
    pub fn placed(&self, dir: &Direction, phase: Phase) {
        dir.set_placed(phase);
    }

    /// The other program wants no more on the ring.
    pub fn refuse(&mut self, dir: &Direction, refusal: Refusal) {
        self.recalled |= refusal == Refusal::Recall;
        dir.refuse(refusal);
    }

    /// After a refusal, and when [`Taker::take`] says that there is nothing: whether nothing can come on the ring any more.
    pub fn is_calm(&self, pipe: Pipe<'_>) -> bool {
        let dir = pipe.direction();
        let stands = !dir.is_writing() && !dir.is_changing();
        stands && dir.phase() == self.phase && (!self.phase.on_ring() || dir.head() == self.next)
    }

    /// Whether [`Taker::take`] has something.
    pub fn has_news(&self, dir: &Direction) -> bool {
        let bytes = self.phase.on_ring() && !self.recalled && dir.head() != self.next;
        bytes || dir.phase() != self.phase
    }

    /// Rings in a phase, if the program is still in it: `send` sends one byte on its socket.
    pub fn ring(&self, dir: &Direction, phase: Phase, send: impl FnOnce() -> Option<bool>) -> Rang {
        if !dir.try_enter() {
            return Rang::Busy;
        }
        let rang = if dir.phase() != phase || !phase.on_ring() {
            Rang::No
        } else {
            match send() {
                Some(true) => {
                    let end = dir.bell().end.wrapping_add(1);
                    dir.reset_bell(Bell { end, rung: true });
                    dir.show_tcp(end);
                    Rang::Yes(end)
                }
                Some(false) => Rang::No,
                None => Rang::Busy,
            }
        };
        dir.leave();
        // A sender may wait for this to change its phase.
        dir.announce();
        rang
    }
}

/// Writes what comes for a program.
#[derive(Debug, Default)]
pub struct Giver {
    phase: Phase,
    head: u64,
}

impl Giver {
    /// The phase that was placed last.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Gives bytes; how many the ring had room for. After a recall they are dropped, for they come again.
    ///
    /// # Errors
    /// The program wrote what cannot be, or the other node sent bytes in a phase on TCP.
    pub fn write(&mut self, pipe: Pipe<'_>, bytes: &[u8]) -> Result<usize, Broken> {
        let dir = pipe.direction();
        if dir.refusal() == Refusal::Recall {
            return Ok(bytes.len());
        }
        let used = self.head.checked_sub(dir.tail()).ok_or(Broken::Index)?;
        let room = (pipe.capacity() as u64).checked_sub(used).ok_or(Broken::Index)?;
        if !self.phase.on_ring() {
            return Err(Broken::Index);
        }
        let count = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        pipe.put(self.head, &bytes[..count]);
        self.head += count as u64;
        dir.set_head(self.head);
        Ok(count)
    }

    /// The other program changes path.
    ///
    /// # Errors
    /// `Err(None)`: the program reads right now; try again soon. `Err(Some(_))`: the other node said what cannot be, or bytes
    /// are missing.
    pub fn switch(
        &mut self,
        dir: &Direction,
        phase: Phase,
        record: Record,
    ) -> Result<(), Option<Broken>> {
        let taken_back = dir.refusal() == Refusal::Recall && record.ring >= dir.tail();
        let fits = record.ring == self.head || (taken_back && record.ring < self.head);
        if phase != self.phase.next() || !fits || phase.since(dir.seen()) >= LOG {
            return Err(Some(Broken::Index));
        }
        // A plain end of a ring phase disturbs no reader: see `Direction::enter`.
        let excludes = phase.on_ring() || record.ring != self.head;
        if excludes && !dir.intend() {
            return Err(None);
        }
        if phase.on_ring() {
            dir.reset_bell(Bell { end: record.tcp, rung: false });
        }
        dir.publish(phase, record);
        dir.show_tcp(record.tcp);
        self.phase = phase;
        self.head = record.ring;
        dir.set_head(record.ring);
        if excludes {
            dir.intended();
        }
        // What was asked for in the phase before is answered by this.
        dir.set_asked(false);
        Ok(())
    }

    /// Whether the other host is to be asked for a bell now: the program has bytes, and waits. If so it counts as asked.
    pub fn wants_bell(&self, dir: &Direction) -> bool {
        fence(Ordering::SeqCst);
        let bell = dir.bell();
        if bell.rung || !self.phase.on_ring() || dir.tail() == self.head || dir.is_asked() {
            return false;
        }
        dir.set_asked(true);
        if dir.change_bell(bell, Bell { end: bell.end, rung: true }) {
            return true;
        }
        dir.set_asked(false);
        false
    }

    /// Whether [`Giver::wants_bell`] would answer yes.
    pub fn is_bell_due(&self, dir: &Direction) -> bool {
        let is_unread = self.phase.on_ring() && dir.tail() != self.head;
        is_unread && !dir.bell().rung && !dir.is_asked()
    }

    /// Asks for a bell although the program does not wait: it has something to do that is not in the ring.
    pub fn force_bell(&self, dir: &Direction) -> bool {
        if !self.phase.on_ring() || dir.is_asked() {
            return false;
        }
        dir.set_asked(true);
        let bell = dir.bell();
        // If the program changes it meanwhile it is awake.
        let _ = dir.change_bell(bell, Bell { end: bell.end, rung: true });
        true
    }

    /// The answer to what was asked in a phase. An answer that comes later than the phase says nothing.
    ///
    /// # Errors
    /// The other node said what cannot be.
    pub fn rung(&self, dir: &Direction, phase: Phase, end: Option<u64>) -> Result<(), Broken> {
        if phase != self.phase {
            return Ok(());
        }
        while let Some(end) = end {
            let bell = dir.bell();
            if end < bell.end {
                return Err(Broken::Index);
            }
            if dir.change_bell(bell, Bell { end, rung: bell.rung }) {
                break;
            }
        }
        dir.set_asked(false);
        Ok(())
    }

    /// Nothing more comes on the ring after the refusal.
    pub fn calm(&self, dir: &Direction) {
        dir.set_calm();
    }

    /// The other program has ended this direction; all its bytes are in the ring.
    pub fn end(&self, dir: &Direction) {
        dir.set_ended();
    }

    /// Ring position behind the last byte given.
    pub const fn head(&self) -> u64 {
        self.head
    }
}
