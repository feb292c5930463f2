//! A program whose peer is on another host: the node's end of its segment.
//!
//! ```text
//!  program ═ segment ═ Program ── Local ──▶ node
//!      └ futex ─▶ Doorman ─ eventfd ─▶┘ └─ Holder: the program's socket, for a moment
//! ```
//! What both sides keep to is in [`skein_link_core::ring::far`].

mod doorman;
mod holder;

pub(crate) use doorman::Doorman;

use crate::remote::{Local, Note, Outgoing};
use doorman::Registration;
use holder::Holder;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::SendFlags;
use skein_link_core::ring::far::{Giver, Rang, Taken, Taker};
use skein_link_core::ring::host::{Memory, wake_all};
use skein_link_core::ring::{Behind, Broken, Direction, Hello, Phase, Pipe, Reason, Refusal, Role};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Ring capacity of a direction whose other end is far, bytes. The same on all hosts, for the tail of one is the tail of the
/// other. One mebibyte: 10 Gbit/s for 800 µs.
pub(crate) const CAPACITY: usize = 1 << 20;
/// What was read is told in steps of this, bytes.
const TOOK_STEP: u64 = CAPACITY as u64 / 8;
/// A bell's byte; its value has no meaning.
const BELL: [u8; 1] = [7];

/// The node's end.
pub(super) struct Program {
    memory: Arc<Memory>,
    role: Role,
    holder: Holder,
    taker: Taker,
    giver: Giver,
    /// Written by the doorman.
    called: Arc<OwnedFd>,
    /// Of `called` and the holding process's end.
    wake: OwnedFd,
    _registration: Registration,
    joined: bool,
    /// Its program counts, and the other one was told.
    counts_told: bool,
    told: (u64, Phase),
    tells_all: bool,
    refusal_told: Refusal,
    refusal_heard: Refusal,
    calm_told: bool,
    placed: Option<Phase>,
    bell_asked: Option<Phase>,
    forces_bell: bool,
    doubts_told: bool,
    /// The other end wants to know whether more comes.
    doubted: bool,
    dead: bool,
    resets_told: bool,
    gone_told: bool,
    ended_here: bool,
    ended_there: bool,
    aborted: bool,
}

/// A program as the broker knows it.
pub(super) struct Asker<'a> {
    pub(super) socket: BorrowedFd<'a>,
    pub(super) pid: u32,
    pub(super) fd: RawFd,
    pub(super) role: Role,
}

fn broken(broken: Broken) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, broken)
}

impl Program {
    /// The node's end of a fresh segment for the program that asks.
    ///
    /// # Errors
    /// Its socket cannot be taken from it when a bell is due, or the system has no more descriptors or threads.
    pub(super) fn new(
        memory: Arc<Memory>,
        asker: &Asker<'_>,
        doorman: &Doorman,
    ) -> io::Result<Self> {
        let holder = Holder::new(asker.socket, asker.pid, asker.fd)?;
        let called = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let wake = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&wake, &called, data, epoll::EventFlags::IN)?;
        epoll::add(&wake, holder.process(), data, epoll::EventFlags::IN)?;
        let registration = doorman.register(Arc::clone(&memory), Arc::clone(&called))?;
        // Before the program has the memory: it is told from nodes that never do.
        memory.segment().header().beat();
        Ok(Self {
            memory,
            role: asker.role,
            holder,
            taker: Taker::default(),
            giver: Giver::default(),
            called,
            wake,
            _registration: registration,
            joined: false,
            counts_told: false,
            told: (0, Phase(0)),
            tells_all: false,
            refusal_told: Refusal::None,
            refusal_heard: Refusal::None,
            calm_told: false,
            placed: None,
            bell_asked: None,
            forces_bell: false,
            doubts_told: false,
            doubted: false,
            dead: false,
            resets_told: false,
            gone_told: false,
            ended_here: false,
            ended_there: false,
            aborted: false,
        })
    }

    /// The program's direction, and the one towards it.
    fn pipes(&self) -> (Pipe<'_>, Pipe<'_>) {
        let segment = self.memory.segment();
        (segment.pipe(self.role), segment.pipe(self.role.other()))
    }

    fn inward(&self) -> &Direction {
        self.pipes().1.direction()
    }

    fn is_gone(&self) -> bool {
        self.dead || self.memory.segment().header().hello(self.role) == Hello::Gone
    }

    /// What there is to tell, apart from what comes in order with the bytes.
    fn note(&mut self) -> Option<Note> {
        if let Some(note) = self.answer() {
            return Some(note);
        }
        let header = self.memory.segment().header();
        if !self.counts_told && header.hello(self.role) == Hello::Confirmed {
            self.counts_told = true;
            return Some(Note::Counts);
        }
        let inward = self.memory.segment().pipe(self.role.other()).direction();
        let refusal = inward.refusal();
        let now = (inward.tail(), inward.seen());
        let is_worth = now.0.wrapping_sub(self.told.0) >= TOOK_STEP || now.1 != self.told.1;
        if now != self.told && (is_worth || self.tells_all || refusal != self.refusal_told) {
            self.told = now;
            return Some(Note::Took { tail: now.0, seen: now.1 });
        }
        self.tells_all = false;
        if refusal != self.refusal_told {
            self.refusal_told = refusal;
            return Some(Note::Refused(refusal));
        }
        if !self.doubts_told && !self.ended_there && inward.doubts() {
            self.doubts_told = true;
            return Some(Note::Doubts);
        }
        let wants =
            self.giver.wants_bell(inward) || (self.forces_bell && self.giver.force_bell(inward));
        if wants {
            self.forces_bell = false;
            return Some(Note::Bell(self.giver.phase()));
        }
        None
    }

    /// What the other end waits for.
    fn answer(&mut self) -> Option<Note> {
        if let Some(phase) = self.placed.take() {
            return Some(Note::Placed(phase));
        }
        let phase = self.bell_asked?;
        let holder = &mut self.holder;
        let dir = self.memory.segment().pipe(self.role).direction();
        let rang = self.taker.ring(dir, phase, || ring(holder));
        // Its library may wait for the end of that to leave the ring.
        Self::announce(dir);
        self.watch();
        let end = match rang {
            Rang::Yes(end) => Some(end),
            Rang::No => None,
            Rang::Busy => return None,
        };
        self.bell_asked = None;
        Some(Note::Rung { phase, end })
    }

    /// What comes after the last byte.
    fn last_word(&mut self, was_writing: bool) -> Option<Note> {
        let (out, _) = self.pipes();
        if self.refusal_heard != Refusal::None && !self.calm_told && self.taker.is_calm(out) {
            self.calm_told = true;
            return Some(Note::Calm);
        }
        let is_gone = self.is_gone();
        let may_write = was_writing && !self.dead;
        if (self.doubted || is_gone) && !self.ended_here && !may_write {
            if !self.tells_all && self.told.0 != self.inward().tail() {
                self.tells_all = true;
                return self.note();
            }
            return Some(self.end(is_gone));
        }
        if is_gone && self.ended_here && !self.gone_told {
            self.gone_told = true;
            return Some(Note::Gone);
        }
        None
    }

    /// The end of the program's direction, and before it, if its program is gone, how.
    fn end(&mut self, is_gone: bool) -> Note {
        let header = self.memory.segment().header();
        if is_gone && !self.resets_told && header.resets(self.role) {
            self.resets_told = true;
            return Note::Resets;
        }
        if is_gone && !self.gone_told && !header.has_shut(self.role) {
            self.gone_told = true;
            return Note::Gone;
        }
        self.ended_here = true;
        Note::End
    }

    /// The other end's program has seen the end of TCP: this one has shut it, or is no more. The kernel closes the descriptors of a
    /// process that ends before it tells anybody of that.
    fn doubted(&mut self) {
        self.doubted = true;
        if !self.is_gone() && self.holder.socket().is_none() {
            self.bury();
        }
        self.watch();
    }

    /// Nobody holds the socket any more.
    fn bury(&mut self) {
        self.dead = true;
        // It stays readable: nothing to wait for there any more.
        let _ = epoll::delete(&self.wake, self.holder.process());
    }

    /// Waits for the end of the process too that was found to hold the socket, if it is another one than before.
    fn watch(&mut self) {
        if self.holder.take_fresh() {
            let data = epoll::EventData::new_u64(0);
            let added = epoll::add(&self.wake, self.holder.process(), data, epoll::EventFlags::IN);
            self.dead |= added.is_err();
        }
    }

    /// Wakes a program that waits for news of the node in one direction.
    fn announce(dir: &Direction) {
        if dir.take_listening() {
            wake_all(dir.news());
        }
    }

    fn took(&mut self, tail: u64, seen: Phase) -> Result<(), Broken> {
        let dir = self.memory.segment().pipe(self.role).direction();
        self.taker.told(dir, tail, seen)?;
        if dir.take_waiting() {
            wake_all(dir.waiting());
        }
        Ok(())
    }

    fn refused(&mut self, refusal: Refusal) {
        let dir = self.memory.segment().pipe(self.role).direction();
        self.taker.refuse(dir, refusal);
        self.refusal_heard = refusal;
        // Its library takes its bytes back in its next call, for which it must be awake.
        self.forces_bell |= refusal == Refusal::Recall;
    }

    /// Tells the program that the node is no more behind the segment.
    fn let_go(&self, behind: Behind) {
        self.memory.segment().header().let_go(behind);
        for role in [Role::Low, Role::High] {
            let dir = self.memory.segment().pipe(role).direction();
            dir.news().fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Self::announce(dir);
            if dir.take_waiting() {
                wake_all(dir.waiting());
            }
        }
    }
}

/// Sends a bell: whether it went out; `None`: TCP takes nothing now.
fn ring(holder: &mut Holder) -> Option<bool> {
    let Some(socket) = holder.socket() else { return Some(false) };
    match rustix::net::send(&socket, &BELL, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) => Some(true),
        Err(Errno::AGAIN) => None,
        Err(_) => Some(false),
    }
}

impl Local for Program {
    fn join(&mut self) -> io::Result<()> {
        self.joined = true;
        self.memory.segment().header().set_hello(self.role.other(), Hello::Mapped);
        Ok(())
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<Outgoing> {
        if self.memory.segment().header().left(self.role).is_cut() {
            // Its library has found that bytes may be missing.
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if let Some(note) = self.note() {
            return Ok(Outgoing::Note(note));
        }
        let out = self.memory.segment().pipe(self.role);
        let was_writing = out.direction().is_writing();
        if !self.ended_here {
            match self.taker.take(out, into).map_err(broken)? {
                Taken::Bytes(count) => return Ok(Outgoing::Bytes(count)),
                Taken::Switch(phase, record) => {
                    return Ok(Outgoing::Note(Note::Switch { phase, record }));
                }
                Taken::Empty => {}
            }
        }
        Ok(self.last_word(was_writing).map_or(Outgoing::Empty, Outgoing::Note))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let inward = self.memory.segment().pipe(self.role.other());
        self.giver.write(inward, bytes).map_err(broken)
    }

    fn tell(&mut self, note: Note) -> io::Result<()> {
        let (out, inward) = {
            let segment = self.memory.segment();
            (segment.pipe(self.role).direction(), segment.pipe(self.role.other()).direction())
        };
        match note {
            Note::Counts => {
                self.memory.segment().header().set_hello(self.role.other(), Hello::Confirmed);
            }
            Note::Switch { phase, record } => match self.giver.switch(inward, phase, record) {
                Ok(()) => self.placed = Some(phase),
                Err(None) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(Some(why)) => return Err(broken(why)),
            },
            Note::Placed(phase) => self.taker.placed(out, phase),
            Note::Took { tail, seen } => return self.took(tail, seen).map_err(broken),
            Note::Bell(phase) => self.bell_asked = Some(phase),
            Note::Rung { phase, end } => self.giver.rung(inward, phase, end).map_err(broken)?,
            Note::Refused(refusal) => self.refused(refusal),
            Note::Calm => self.giver.calm(inward),
            Note::Doubts => self.doubted(),
            Note::End => {
                let (header, other) = (self.memory.segment().header(), self.role.other());
                if header.hello(other) != Hello::Gone {
                    header.set_shut(other);
                }
                self.giver.end(inward);
                self.ended_there = true;
            }
            Note::Gone => {
                self.memory.segment().header().set_hello(self.role.other(), Hello::Gone);
            }
            Note::Resets => {
                self.memory.segment().header().set_resets(self.role.other(), true);
            }
        }
        let (out, inward) = self.pipes();
        Self::announce(out.direction());
        Self::announce(inward.direction());
        Ok(())
    }

    fn is_over(&self) -> bool {
        if !self.joined {
            return self.is_gone() || self.holder.has_ended();
        }
        self.ended_here && self.ended_there && self.gone_told == self.is_gone()
    }

    fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn woken(&mut self) {
        let _ = rustix::io::read(&*self.called, &mut [0; 8]);
        if !self.dead && self.holder.has_ended() {
            if !self.holder.renew() {
                self.bury();
            }
            self.watch();
        }
    }

    fn arm(&mut self) -> bool {
        let header = self.memory.segment().header();
        header.fall_asleep();
        let (out, inward) = self.pipes();
        let (out, inward) = (out.direction(), inward.direction());
        let half = CAPACITY as u64 / 2;
        if self.giver.head().wrapping_sub(inward.tail()) > half {
            // Its sender may be waiting for room.
            inward.waiting().store(1, std::sync::atomic::Ordering::SeqCst);
        }
        let news = self.taker.has_news(out)
            || (inward.tail(), inward.seen()) != self.told
            || inward.refusal() != self.refusal_told
            || (!self.doubts_told && !self.ended_there && inward.doubts())
            || (!self.counts_told && header.hello(self.role) == Hello::Confirmed)
            || (self.is_gone() && !(self.gone_told && self.ended_here))
            || self.giver.is_bell_due(inward)
            || (self.doubted && !self.ended_here)
            || (self.refusal_heard == Refusal::NoMore && !self.calm_told);
        if news {
            header.wake_up();
            self.tells_all = true;
        }
        !news
    }

    fn stalls(&self) -> bool {
        // TCP takes no bell now, or its program changes path.
        self.bell_asked.is_some()
    }

    fn beat(&mut self) {
        self.memory.segment().header().beat();
    }

    fn abort(&mut self, reason: &'static str) {
        if self.aborted || self.is_over() {
            return;
        }
        self.aborted = true;
        if !self.counts_told {
            // The other one never took the ring for this one: both stay on TCP.
            self.memory.segment().header().set_hello(self.role.other(), Hello::Absent);
            return;
        }
        tracing::warn!(code = reason, "a connection over the light protocol was cut");
        self.memory.segment().header().leave(self.role, Reason::Lost);
        self.let_go(Behind::Wreck);
        if let Some(socket) = self.holder.socket() {
            // Dissolves the connection: a reset for the peer, an error for the program.
            let _ = rustix::net::connect_unspec(&socket);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.joined {
            self.memory.segment().header().set_hello(self.role.other(), Hello::Absent);
        } else if self.is_over() {
            self.let_go(Behind::Nobody);
        } else {
            self.abort("LINK_NODE_LEFT");
        }
    }
}
