//! Receiving: from TCP and ring in the order in which the bytes were sent.

use crate::buffers::Buffers;
use crate::conn::Conn;
use crate::doze::{self, Doze};
use crate::kernel;
use crate::side::{Guard, Stage, Taken};
use crate::sleep::{Waited, rest, sleep};
use crate::{attach, far, leave, peek, real, settle, spin, sys, watch};
use core::sync::atomic::Ordering;
use libc::c_int;
use skein_link_core::ring::{
    Behind, Broken, Direction, Hello, Next, Pipe, Reason, Rx, Segment, Settled,
};

/// How long a bell that was announced is waited for, milliseconds at a time, and how often. Its sender is between two
/// instructions; only one that is stopped or starved takes longer, and then a program may wake for nothing, once.
const BELL_WAIT_MS: u32 = 20;
const BELL_WAITS: u32 = 50;

/// What to do when there is nothing to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quiet {
    /// Answer so at once; the socket may stay readable.
    Leave,
    /// Make the socket unreadable first, and look for the end of the connection.
    Settle,
}

/// How a part of a call went.
enum Part {
    /// That many bytes came.
    Got(usize),
    /// Nothing now. On the ring: a copy of the receiver's state, to spin on.
    Nothing(Option<Rx>),
    /// The peer has ended.
    End,
    /// An error number.
    Error(c_int),
}

/// Receives as `recvmsg` does, into the buffers. The answer is a count or a negative error number.
pub(crate) fn recv(conn: &Conn, fd: c_int, mut buffers: Buffers<'_>, flags: c_int) -> isize {
    attach::advance(conn, fd, 0);
    let mut quiet = Quiet::Leave;
    let mut blocks = None;
    let mut has_slept = match wait_first(conn, fd, flags) {
        Ok(has_slept) => has_slept,
        Err(error) if error == 0 || is_shut(conn, fd, error) => return 0,
        Err(error) => return -(error as isize),
    };
    loop {
        let part = match conn.side().receiver() {
            Ok(guard) => part(conn, fd, guard, &buffers, flags, quiet),
            Err(Taken::Self_ | Taken::Other) => Part::Error(libc::EAGAIN),
        };
        let error = match part {
            Part::Got(bytes) => {
                conn.idle.end();
                note_read(conn, bytes, has_slept);
                if conn.is_far() && flags & libc::MSG_PEEK == 0 {
                    conn.rest.took(bytes);
                }
                if conn.side().stage() != Stage::Counting {
                    attach::advance(conn, fd, bytes);
                }
                if flags & libc::MSG_PEEK != 0 {
                    if flags & libc::MSG_WAITALL == 0 || bytes == buffers.left() {
                        return bytes as isize;
                    }
                    // The kernel waits for all of them too; there is no call for "more than these".
                    return wait_all(conn, fd, buffers, flags);
                }
                buffers.advance(bytes);
                if buffers.left() == 0 || flags & libc::MSG_WAITALL == 0 {
                    return buffers.done() as isize;
                }
                quiet = Quiet::Leave;
                continue;
            }
            Part::End => return buffers.done() as isize,
            Part::Error(error) => {
                if is_end(error) {
                    // What is written from here on is TCP's to answer.
                    conn.side().shut.store(1, Ordering::Relaxed);
                    conn.side().end_told.store(1, Ordering::Release);
                }
                error
            }
            Part::Nothing(Some(_)) if quiet == Quiet::Leave && may_say_empty(conn, flags) => {
                libc::EAGAIN
            }
            Part::Nothing(ring) if *blocks.get_or_insert_with(|| waits(conn, fd, flags)) => {
                has_slept |= ring.is_none();
                match wait(conn, fd, ring, &mut quiet) {
                    Waited::Look => {
                        // The peer may have woken us to have its bytes back.
                        attach::advance(conn, fd, 0);
                        continue;
                    }
                    Waited::End => return buffers.done() as isize,
                    Waited::Error(error) => error,
                }
            }
            Part::Nothing(ring) => {
                conn.nonblocking.fetch_max(1, Ordering::Relaxed);
                if quiet == Quiet::Leave && ring.is_some() {
                    quiet = Quiet::Settle;
                    continue;
                }
                watch::after(true);
                libc::EAGAIN
            }
        };
        let is_told = buffers.done() == 0 && !is_shut(conn, fd, error);
        return if is_told { -(error as isize) } else { buffers.done() as isize };
    }
}

/// Whether an error is only that another thread has closed the descriptor meanwhile, having shut receiving down before: then the call
/// is told the end.
fn is_shut(conn: &Conn, fd: c_int, error: c_int) -> bool {
    matches!(error, libc::EBADF | libc::ENOTSOCK)
        && conn.side().read_shut.load(Ordering::Acquire) != 0
        && conn.was_closed(fd)
}

/// A read of so many bytes is one of a stream.
const MANY: usize = 16 << 10;
/// A call that waits takes at least so long, nanoseconds: to sleep and to be woken. One that finds bytes takes a quarter of that.
const SLEPT_NS: u64 = 2000;

/// Notes whether bytes had to be waited for on TCP, a message at a time.
fn note_read(conn: &Conn, bytes: usize, has_slept: bool) {
    let awaits = u8::from(has_slept && bytes < MANY);
    if conn.awaits.load(Ordering::Relaxed) != awaits {
        conn.awaits.store(awaits, Ordering::Relaxed);
    }
}

/// Waits before looking, which saves a system call, where the last read had to wait: whether it slept, or the error number that the
/// call answers; zero for the end.
fn wait_first(conn: &Conn, fd: c_int, flags: c_int) -> Result<bool, c_int> {
    if !awaits(conn, flags) {
        return Ok(false);
    }
    let begun = sys::nanos();
    match sleep(conn, fd) {
        // The peer may have woken us to have its bytes back.
        Waited::Look => attach::advance(conn, fd, 0),
        Waited::End => return Err(0),
        Waited::Error(error) => return Err(error),
    }
    Ok(sys::nanos() - begun >= SLEPT_NS)
}

/// Whether a read is to wait in the kernel before it looks: the last one had to, on TCP, and this one may. If the bytes come on the
/// ring meanwhile, their bell wakes it.
fn awaits(conn: &Conn, flags: c_int) -> bool {
    let side = conn.side();
    conn.awaits.load(Ordering::Relaxed) != 0
        && flags & (libc::MSG_DONTWAIT | libc::MSG_PEEK) == 0
        && conn.blocking.load(Ordering::Relaxed) != 0
        && side.processes.load(Ordering::Relaxed) == 1
        && side.aborted().is_none()
        && side.error.load(Ordering::Relaxed) == 0
        && conn.segment().is_none_or(|segment| {
            let dir = conn.pipes(&segment).1.direction();
            let phase = dir.phase();
            !phase.on_ring() && dir.seen() == phase
        })
}

/// Waits for bytes: on the ring by spinning, then dozing; in the kernel once the socket is settled. Bytes of TCP are not looked for
/// again and again: each look is a system call, and takes from the sender what he needs to send them.
fn wait(conn: &Conn, fd: c_int, ring: Option<Rx>, quiet: &mut Quiet) -> Waited {
    let Some(rx) = ring.filter(|_| *quiet == Quiet::Leave) else {
        *quiet = Quiet::Leave;
        return rest(conn, fd).unwrap_or_else(|| sleep(conn, fd));
    };
    if spin_for(conn, &rx) {
        return Waited::Look;
    }
    match doze::doze(conn, fd, &rx) {
        Doze::Interrupted => return Waited::Error(libc::EINTR),
        Doze::Woken => {}
        Doze::Over => *quiet = Quiet::Settle,
    }
    // By another thread; the number may be somebody else's by now, or in a moment.
    let is_shut = conn.side().read_shut.load(Ordering::Acquire) != 0;
    match (conn.was_closed(fd), is_shut && !stirs(conn, &rx)) {
        (_, true) => Waited::End,
        (true, false) => Waited::Error(libc::EBADF),
        (false, false) => Waited::Look,
    }
}

/// Whether the call may wait. The kernel need not be asked if this process has said so and shares the socket with none.
fn waits(conn: &Conn, fd: c_int, flags: c_int) -> bool {
    if conn.side().processes.load(Ordering::Relaxed) == 1 {
        if conn.nonblocking.load(Ordering::Relaxed) == KNOWN_NONBLOCKING {
            return false;
        }
        if conn.blocking.load(Ordering::Relaxed) != 0 {
            return flags & libc::MSG_DONTWAIT == 0;
        }
    }
    kernel::blocks(fd, flags)
}

/// The program has set the socket not to block, with a call that the library saw.
pub(crate) const KNOWN_NONBLOCKING: u8 = 2;

/// Whether a call that does not wait may answer from the ring alone: the program does not let the kernel tell it when to
/// read, so that the end of the connection may be told by one of the next calls.
fn may_say_empty(conn: &Conn, flags: c_int) -> bool {
    let waits_not = flags & libc::MSG_DONTWAIT != 0
        || (conn.nonblocking.load(Ordering::Relaxed) == KNOWN_NONBLOCKING
            && conn.side().processes.load(Ordering::Relaxed) == 1);
    waits_not
        && conn.polled.load(Ordering::Relaxed) == 0
        && conn.edges.load(Ordering::Relaxed) == 0
        // Who has shut his reading is told the end at once.
        && conn.side().read_shut.load(Ordering::Relaxed) == 0
        && conn.idle.may_go_on()
}

fn stirs(conn: &Conn, rx: &Rx) -> bool {
    conn.segment().is_some_and(|segment| rx.stirs(conn.pipes(&segment).1.direction()))
}

/// Spins for bytes in the ring.
fn spin_for(conn: &Conn, rx: &Rx) -> bool {
    let Some(segment) = conn.segment() else {
        return false;
    };
    let (_, inward) = conn.pipes(&segment);
    spin::until(&conn.spin_read, || rx.stirs(inward.direction()))
}

/// `MSG_PEEK | MSG_WAITALL`: looks again until there is enough, the end, or an error.
fn wait_all(conn: &Conn, fd: c_int, buffers: Buffers<'_>, flags: c_int) -> isize {
    let flags = flags & !libc::MSG_WAITALL;
    let mut last = recv(conn, fd, buffers, flags);
    while last > 0 && (last as usize) < buffers.left() && kernel::blocks(fd, flags) {
        // Readable already, so that the kernel has no event for the next byte: look each millisecond.
        let mut none = [];
        // SAFETY: no descriptors; only the time.
        unsafe { real::poll(none.as_mut_ptr(), 0, 1) };
        let again = recv(conn, fd, buffers, flags);
        let ended = again == last
            && kernel::tcp_info(fd).is_none_or(|info| info.state != kernel::ESTABLISHED);
        // More are there than a look across changes of path can show.
        let hidden = again == last && available(conn, fd).is_some_and(|b| b >= buffers.left());
        if again <= 0 || ended || hidden {
            return last.max(again);
        }
        last = again;
    }
    last
}

fn part(
    conn: &Conn,
    fd: c_int,
    mut rx: Guard<'_, Rx>,
    buffers: &Buffers<'_>,
    flags: c_int,
    quiet: Quiet,
) -> Part {
    let side = conn.side();
    if let Some(error) = side.aborted() {
        return Part::Error(error);
    }
    let Some(segment) = (side.stage() == Stage::Counting).then(|| conn.segment()).flatten() else {
        return match side.error.swap(0, Ordering::AcqRel) {
            0 => tcp(fd, buffers, flags, u64::MAX),
            error => Part::Error(error),
        };
    };
    let (_, inward) = conn.pipes(&segment);
    let dir = inward.direction();
    if rx.orphaned {
        match kernel::read_position(fd) {
            Some(position) => rx.recover(dir, position),
            None => return Part::Error(leave::abort(conn, fd, Reason::Broken)),
        }
    }
    if !dir.enter(sys::yield_now) {
        if kernel::tcp_info(fd).is_some_and(|info| info.state == kernel::ESTABLISHED) {
            // The sender was stopped between two stores. Its bytes, if there are any, have rung: a wait ends at once.
            return Part::Nothing(None);
        }
        dir.enter_after_death();
    }
    let mut call = Call { conn, fd, segment: &segment, rx: &mut rx, pipe: inward };
    let part = if flags & libc::MSG_PEEK != 0 {
        call.peek(buffers, flags, quiet)
    } else {
        call.read(*buffers, flags, quiet)
    };
    dir.leave();
    part.unwrap_or_else(|broken| Part::Error(leave::abort(conn, fd, reason(broken))))
}

pub(crate) const fn reason(broken: Broken) -> Reason {
    match broken {
        Broken::Index => Reason::Broken,
        Broken::Foreign => Reason::Foreign,
    }
}

/// Whether an error says that the peer is no more.
const fn is_end(error: c_int) -> bool {
    matches!(error, libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT)
}

/// Receives from TCP without waiting.
fn tcp(fd: c_int, buffers: &Buffers<'_>, flags: c_int, limit: u64) -> Part {
    let flags = (flags | libc::MSG_DONTWAIT) & !libc::MSG_WAITALL;
    let result = match buffers.single(limit) {
        Some(piece) => sys::recv_piece(fd, piece, flags),
        None => buffers.pieces(limit, |list| {
            let mut message = sys::header(list);
            sys::recvmsg(fd, &mut message, flags)
        }),
    };
    match usize::try_from(result) {
        Ok(0) => Part::End,
        Ok(bytes) => Part::Got(bytes),
        Err(_) if result == -(libc::EAGAIN as isize) => Part::Nothing(None),
        Err(_) => Part::Error((-result) as c_int),
    }
}

/// A call within the receiver's critical section.
struct Call<'a> {
    conn: &'a Conn,
    fd: c_int,
    segment: &'a Segment,
    rx: &'a mut Rx,
    pipe: Pipe<'a>,
}

impl<'a> Call<'a> {
    fn dir(&self) -> &'a Direction {
        self.pipe.direction()
    }

    fn read(
        &mut self,
        mut buffers: Buffers<'_>,
        flags: c_int,
        quiet: Quiet,
    ) -> Result<Part, Broken> {
        let begun = buffers.done();
        loop {
            let got = buffers.done() - begun;
            match self.rx.next(self.pipe)? {
                Next::Ring { bytes } => {
                    if buffers.left() == 0 {
                        return Ok(Part::Got(got));
                    }
                    let count = bytes.min(buffers.left());
                    self.copy_out(self.rx, &buffers, flags, count);
                    self.rx.take(self.dir(), count);
                    buffers.advance(count);
                    // A sender that sleeps is not chased byte by byte.
                    if bytes - count <= self.pipe.capacity() / 4 * 3 && self.dir().take_waiting() {
                        if self.pipe.is_far() {
                            far::call(self.segment);
                        } else {
                            sys::futex_wake(self.dir().waiting().as_ptr());
                        }
                    }
                }
                Next::Tcp { limit } => {
                    if buffers.left() == 0 {
                        return Ok(Part::Got(got));
                    }
                    let Some(part) = self.tcp(&buffers, flags, limit)? else { continue };
                    if let Part::Got(bytes) = part {
                        self.rx.took(bytes as u64);
                        if self.pipe.is_far() {
                            // Its sender's own count is on the other host.
                            self.dir().show_tcp(self.rx.tcp());
                        }
                        buffers.advance(bytes);
                        if limit == u64::MAX {
                            return Ok(Part::Got(got + bytes));
                        }
                    } else if got == 0 {
                        return Ok(part);
                    } else {
                        if let Part::Error(error) = part {
                            // Told after the bytes that came before it.
                            self.conn.side().error.store(error, Ordering::Release);
                        }
                        return Ok(Part::Got(got));
                    }
                }
                Next::Bells { bytes } => {
                    if let Some(part) = self.drop_bells(bytes) {
                        return Ok(if got > 0 { Part::Got(got) } else { part });
                    }
                }
                Next::Empty if got > 0 => {
                    if self.may_stop()? {
                        return Ok(Part::Got(got));
                    }
                }
                Next::Empty => {
                    if quiet == Quiet::Leave {
                        return Ok(Part::Nothing(Some(*self.rx)));
                    }
                    if let Some(part) = self.quiet()? {
                        return Ok(part);
                    }
                }
            }
        }
    }

    /// Some bytes were read and the ring is empty: whether the call may end with fewer than it was asked for. A program may take
    /// that for the end of what there is, so the socket must become unreadable before.
    fn may_stop(&mut self) -> Result<bool, Broken> {
        if settle::is_lazy(self.conn) && settle::remember(self.conn) {
            return Ok(true);
        }
        let dir = self.dir();
        if self.pipe.is_far() && dir.is_asked() {
            // Its bell may be in the queue already, unsettled: with edges it would tell of nothing any more.
            return Ok(self.hold(Reason::Stuck, || !dir.is_asked()).is_some());
        }
        self.settle()?;
        Ok(self.rx.next(self.pipe)? == Next::Empty)
    }

    /// As `read`, but everything stays where it is.
    fn peek(&mut self, buffers: &Buffers<'_>, flags: c_int, quiet: Quiet) -> Result<Part, Broken> {
        loop {
            match self.rx.next(self.pipe)? {
                Next::Ring { bytes } => {
                    let count = bytes.min(buffers.left());
                    self.copy_out(self.rx, buffers, flags, count);
                    let mut ahead = *self.rx;
                    ahead.pass(count);
                    return self.peek_on(ahead, buffers, count, flags);
                }
                Next::Tcp { limit } => {
                    let Some(part) = self.tcp(buffers, flags, limit)? else { continue };
                    let Part::Got(bytes) = part else {
                        return Ok(part);
                    };
                    if bytes as u64 != limit {
                        return Ok(part);
                    }
                    let mut ahead = *self.rx;
                    ahead.took(bytes as u64);
                    return self.peek_on(ahead, buffers, bytes, flags);
                }
                Next::Bells { bytes } => {
                    if let Some(part) = self.drop_bells(bytes) {
                        return Ok(part);
                    }
                }
                Next::Empty => {
                    if quiet == Quiet::Leave {
                        return Ok(Part::Nothing(Some(*self.rx)));
                    }
                    if let Some(part) = self.quiet()? {
                        return Ok(part);
                    }
                }
            }
        }
    }

    /// What follows the `done` bytes that a peek has seen is visible too, whichever way it came. `ahead` has gone past them.
    fn peek_on(
        &self,
        mut ahead: Rx,
        buffers: &Buffers<'_>,
        done: usize,
        flags: c_int,
    ) -> Result<Part, Broken> {
        let mut rest = *buffers;
        rest.advance(done);
        while rest.left() > 0 {
            match ahead.look(self.pipe)? {
                Next::Ring { bytes } => {
                    let count = bytes.min(rest.left());
                    self.copy_out(&ahead, &rest, flags, count);
                    ahead.pass(count);
                    rest.advance(count);
                }
                Next::Bells { bytes } => ahead.took(bytes),
                Next::Tcp { limit } => {
                    let skip = ahead.tcp().saturating_sub(self.rx.tcp());
                    let count = peek::behind(self.fd, skip, &rest, flags, limit);
                    ahead.took(count as u64);
                    rest.advance(count);
                    if (count as u64) < limit {
                        break;
                    }
                }
                Next::Empty => break,
            }
        }
        Ok(Part::Got(rest.done() - buffers.done()))
    }

    fn copy_out(&self, rx: &Rx, buffers: &Buffers<'_>, flags: c_int, count: usize) {
        if flags & libc::MSG_TRUNC != 0 {
            // On TCP that means: drop them.
            return;
        }
        let mut at = 0;
        // SAFETY: the program's buffers, in the call that it made with them.
        unsafe {
            buffers.each(|piece| {
                let len = piece.len().min(count - at);
                rx.peek(self.pipe, at, &mut piece[..len]);
                at += len;
                len
            });
        }
    }

    /// Receives from TCP. `None`: look again at what is next.
    fn tcp(
        &mut self,
        buffers: &Buffers<'_>,
        flags: c_int,
        limit: u64,
    ) -> Result<Option<Part>, Broken> {
        let part = match self.conn.side().error.swap(0, Ordering::AcqRel) {
            0 => tcp(self.fd, buffers, flags, limit),
            error => Part::Error(error),
        };
        match part {
            Part::End if self.may_hold_more() => self.hear_end(0),
            Part::End => Ok(Some(self.end())),
            Part::Error(error) if is_end(error) && self.may_hold_more() => self.hear_end(error),
            part => Ok(Some(part)),
        }
    }

    /// TCP has ended. Whether the other host may have bytes on the ring that were sent before that.
    fn may_hold_more(&self) -> bool {
        self.pipe.is_far()
            && !self.dir().has_ended()
            && self.segment.header().behind() != Behind::Nobody
            && kernel::has_ended(self.fd)
    }

    /// Waits until the other host has said that no more comes, or something comes. `None`: look again.
    fn hear_end(&mut self, error: c_int) -> Result<Option<Part>, Broken> {
        if error != 0 {
            // Told after the bytes that came before it.
            self.conn.side().error.store(error, Ordering::Release);
        }
        self.dir().doubt();
        far::call(self.segment);
        let (dir, rx) = (self.dir(), *self.rx);
        Ok(self.hold(Reason::Stuck, || dir.has_ended() || rx.stirs(dir)))
    }

    /// Waits for what the node has to say, outside the critical section, for the node changes phases then. `None`: look
    /// again.
    fn hold(&mut self, otherwise: Reason, said: impl Fn() -> bool) -> Option<Part> {
        let dir = self.dir();
        dir.leave();
        let heard = match otherwise {
            // That nothing is said of such bytes says nothing of the node.
            Reason::Foreign => far::wait_for(far::PATIENCE_NS, self.segment, dir, &said),
            _ => far::wait(self.segment, dir, &said),
        };
        let heard = heard || said();
        if !dir.enter(sys::yield_now) {
            dir.enter_after_death();
        }
        let is_wreck = self.segment.header().behind() == Behind::Wreck;
        let is_left = self.segment.header().behind() == Behind::Nobody;
        if is_left && dir.is_asked() {
            // Or the answer would be waited for again and again.
            dir.give_up_asking();
        }
        (is_wreck || !(heard || is_left)).then(|| {
            let reason = if is_wreck { Reason::Lost } else { otherwise };
            Part::Error(leave::abort(self.conn, self.fd, reason))
        })
    }

    /// The ring is empty and the program shall wait: makes its socket unreadable, and looks at what the kernel has to say.
    /// `None`: bytes came meanwhile.
    fn quiet(&mut self) -> Result<Option<Part>, Broken> {
        let (empty, dropped) = self.settle()?;
        if !empty {
            let dir = self.dir();
            let asked = dir.is_asked();
            return Ok(if asked { self.hold(Reason::Stuck, || !dir.is_asked()) } else { None });
        }
        let is_shut = self.conn.side().read_shut.load(Ordering::Acquire) != 0;
        if dropped && !is_shut && self.conn.edges.load(Ordering::Relaxed) == 0 {
            // What else the kernel has to say makes the socket readable again, and is asked for then. With edges it does not.
            let stirs = self.rx.stirs(self.dir());
            return Ok((!stirs).then_some(Part::Nothing(Some(*self.rx))));
        }
        let error = self.conn.side().error.swap(0, Ordering::AcqRel);
        let seen = if error == 0 {
            sys::recv(self.fd, &mut [0; 8], libc::MSG_PEEK)
        } else {
            -(error as isize)
        };
        if self.rx.stirs(self.dir()) {
            if error != 0 {
                self.conn.side().error.store(error, Ordering::Release);
            }
            return Ok(None);
        }
        match seen {
            0 if self.may_hold_more() => self.hear_end(0),
            0 => Ok(Some(self.end())),
            present if present > 0 && self.pipe.is_far() => self.explain(present as u64),
            present if present > 0 => {
                self.rx.check_bells(self.dir(), present as u64)?;
                Ok(None)
            }
            none if none == -(libc::EAGAIN as isize) => Ok(Some(Part::Nothing(Some(*self.rx)))),
            failed => {
                let error = (-failed) as c_int;
                if self.may_hold_more() {
                    return self.hear_end(error);
                }
                Ok(Some(self.ended(error)))
            }
        }
    }

    /// Bytes lie in the socket. Those that are no known bells are bells whose count, or data whose phase, is on its way.
    fn explain(&mut self, present: u64) -> Result<Option<Part>, Broken> {
        if present <= self.rx.known_bells(self.dir())? {
            return Ok(None);
        }
        let (dir, rx) = (self.dir(), *self.rx);
        let known = rx.known_bells(dir);
        Ok(self.hold(Reason::Foreign, || rx.stirs(dir) || rx.known_bells(dir) != known))
    }

    /// The peer has ended. Its kernel, were all bytes on TCP, would have sent a reset for those that it had not read; it may know of
    /// none, for the bell of what lies in the ring comes over TCP from here. Or it has sent one, and our node has heard of that as it
    /// rang.
    fn end(&self) -> Part {
        let side = self.conn.side();
        let (header, role) = (self.segment.header(), self.conn.role());
        let has_gone = header.hello(role.other()) == Hello::Gone && !header.has_shut(role.other());
        if !self.pipe.is_far() || !has_gone || side.end_told.swap(1, Ordering::AcqRel) != 0 {
            return Part::End;
        }
        let (out, _) = self.conn.pipes(self.segment);
        match side.sender() {
            Ok(sender) if sender.tx.has_unread(out.direction()) || header.resets(role.other()) => {}
            _ => return Part::End,
        }
        // What a reset leaves: reads find the end, writes fail.
        side.shut.store(1, Ordering::Release);
        sys::shutdown(self.fd, libc::SHUT_RDWR);
        Part::Error(libc::ECONNRESET)
    }

    /// The kernel reports an error. A peer that was killed while a bell lay in its queue sends a reset where on TCP it
    /// would have sent a FIN, for it had read all that we had sent.
    fn ended(&self, error: c_int) -> Part {
        let Ok(sender) = self.conn.side().sender() else {
            return Part::Error(error);
        };
        let (out, _) = self.conn.pipes(self.segment);
        let (header, other) = (self.segment.header(), self.conn.role().other());
        let is_meant = header.left(other).is_cut() || header.resets(other);
        if error == libc::ECONNRESET && sender.tx.all_taken(out.direction()) && !is_meant {
            return Part::End;
        }
        Part::Error(error)
    }

    /// Makes the socket unreadable if the ring is empty: whether it is, and whether there were bells to drop and they are
    /// dropped.
    fn settle(&mut self) -> Result<(bool, bool), Broken> {
        let (quiet, drop) = match self.rx.settle(self.pipe)? {
            Settled::Quiet { drop } => (true, drop),
            Settled::Bytes { drop } => {
                // The node may have seen the bell unarmed, and ask for none.
                far::call(self.segment);
                (false, drop)
            }
            // A bell is on its way: the socket is readable soon, if it is not yet.
            Settled::Asked => return Ok((false, false)),
        };
        let dropped = drop > 0
            && self.drop_bells(drop).is_none()
            && self.conn.side().error.load(Ordering::Relaxed) == 0;
        Ok((quiet, dropped))
    }

    /// Reads bells and drops them. Answers what else came instead.
    fn drop_bells(&mut self, bells: u64) -> Option<Part> {
        let mut left = bells as usize;
        let mut waits = 0;
        let mut buffer = [0u8; 8];
        while left > 0 {
            let len = left.min(buffer.len());
            let result = sys::recv(self.fd, &mut buffer[..len], 0);
            match usize::try_from(result) {
                Ok(0) => break,
                Ok(bytes) => {
                    left -= bytes;
                    self.rx.took(bytes as u64);
                    continue;
                }
                Err(_) if result == -(libc::EAGAIN as isize) => {
                    if self.pipe.is_far() && self.dir().phase() != self.rx.phase() {
                        // Announced by another way: they make the socket readable when they come.
                        return Some(Part::Nothing(None));
                    }
                }
                Err(_) if result == -(libc::EINTR as isize) => continue,
                Err(_) => {
                    // The sender died between announcing and sending, or the connection broke; told when it is due.
                    self.conn.side().error.store((-result) as c_int, Ordering::Release);
                    break;
                }
            }
            if waits == BELL_WAITS {
                return Some(Part::Nothing(None));
            }
            waits += 1;
            sys::poll(self.fd, libc::POLLIN, BELL_WAIT_MS);
        }
        self.rx.took(left as u64);
        None
    }
}

/// How long a bell that is on its way is waited for before its socket is closed, nanoseconds: one that comes later makes the
/// kernel answer with a reset.
const LAST_BELL_NS: u64 = 20_000_000;

/// Before the last descriptor is closed: a settled socket ends with a FIN.
pub(crate) fn settle_last(conn: &Conn, fd: c_int) {
    if let Some(segment) = conn.segment()
        && conn.pipes(&segment).1.is_far()
    {
        let dir = conn.pipes(&segment).1.direction();
        far::wait_for(LAST_BELL_NS, &segment, dir, || !dir.is_asked());
    }
    settle_now(conn, fd);
}

/// Whether a bell may lie in the socket's queue although the ring is empty: a glance without a lock. Who reads right now in
/// another thread settles by himself.
pub(crate) fn seems_unsettled(conn: &Conn) -> bool {
    conn.side().stage() == Stage::Counting
        && conn
            .segment()
            .is_some_and(|segment| conn.pipes(&segment).1.direction().seems_unsettled())
}

/// Makes a connection's socket unreadable if there is nothing to read: before the program waits in the kernel, or closes.
pub(crate) fn settle_now(conn: &Conn, fd: c_int) {
    let Some(segment) = (conn.side().stage() == Stage::Counting).then(|| conn.segment()).flatten()
    else {
        return;
    };
    // Somebody else in there settles by himself.
    let Ok(mut rx) = conn.side().try_receiver() else {
        return;
    };
    let (_, inward) = conn.pipes(&segment);
    let dir = inward.direction();
    if !rx.is_unsettled(dir) || !dir.enter(sys::yield_now) {
        return;
    }
    let mut call = Call { conn, fd, segment: &segment, rx: &mut rx, pipe: inward };
    if matches!(call.rx.next(inward), Ok(Next::Empty)) {
        // An error shows when the program reads.
        let _ = call.settle();
    }
    dir.leave();
}

/// Parts of what is unread that are counted: more than there can be phases that were not seen, of three parts each.
const LOOKS: usize = 128;

/// Bytes that a `recv` would find now: for FIONREAD.
pub(crate) fn available(conn: &Conn, fd: c_int) -> Option<usize> {
    let segment = (conn.side().stage() == Stage::Counting).then(|| conn.segment()).flatten()?;
    let mut rx = conn.side().receiver().ok()?;
    let (_, inward) = conn.pipes(&segment);
    let dir = inward.direction();
    if !dir.enter(sys::yield_now) {
        return None;
    }
    // As far as the receiver is, it has told its sender.
    let _ = rx.next(inward);
    let mut ahead = *rx;
    let mut queued = u64::try_from(sys::queued(fd)).unwrap_or(0);
    let mut sum = 0;
    for _ in 0..LOOKS {
        match ahead.look(inward) {
            Ok(Next::Ring { bytes }) => {
                ahead.pass(bytes);
                sum += bytes;
            }
            Ok(Next::Bells { bytes }) if bytes <= queued => {
                ahead.took(bytes);
                queued -= bytes;
            }
            Ok(Next::Tcp { limit }) => {
                let bytes = queued.min(limit);
                ahead.took(bytes);
                (queued, sum) = (queued - bytes, sum + bytes as usize);
                if bytes < limit {
                    break;
                }
            }
            _ => break,
        }
    }
    dir.leave();
    Some(sum)
}

/// Bytes in the ring towards us, at a glance.
pub(crate) fn in_ring(conn: &Conn) -> u64 {
    let Some(segment) = conn.segment() else { return 0 };
    let (_, inward) = conn.pipes(&segment);
    let dir = inward.direction();
    dir.head().wrapping_sub(dir.tail())
}

/// Leaves the ring in this direction, as far as this side can: see [`leave`].
pub(crate) fn refuse(conn: &Conn, fd: c_int, recall: bool) -> Result<bool, Broken> {
    let Some(segment) = conn.segment() else {
        return Ok(true);
    };
    let Ok(mut rx) = conn.side().receiver() else {
        return Ok(false);
    };
    let (_, inward) = conn.pipes(&segment);
    let dir = inward.direction();
    dir.refuse(if recall {
        skein_link_core::ring::Refusal::Recall
    } else {
        skein_link_core::ring::Refusal::NoMore
    });
    for _ in 0..100_000 {
        if !dir.is_writing() {
            break;
        }
        sys::yield_now();
    }
    if !dir.enter(sys::yield_now) {
        return Ok(false);
    }
    let mut call = Call { conn, fd, segment: &segment, rx: &mut rx, pipe: inward };
    let clean = loop {
        match call.rx.next(inward) {
            Ok(Next::Empty) => break call.settle().map(|(empty, _)| empty),
            // Plain bytes on TCP and none on a ring behind them.
            Ok(Next::Tcp { limit: u64::MAX }) => break Ok(true),
            Ok(Next::Bells { bytes }) => {
                if call.drop_bells(bytes).is_some() {
                    break Ok(false);
                }
            }
            Ok(Next::Ring { .. } | Next::Tcp { .. }) => break Ok(false),
            Err(broken) => break Err(broken),
        }
    };
    dir.leave();
    clean
}
