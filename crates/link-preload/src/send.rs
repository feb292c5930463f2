//! Sending: onto the ring while it is there and has room, onto TCP otherwise.
//!
//! A full ring never makes a program wait in a way that the kernel does not know: after a short spin (and, if the call may
//! block, a short sleep) the rest goes to TCP, whose buffer and readiness are the kernel's own. So `poll` for writing means
//! what it meant.

use crate::buffers::Buffers;
use crate::conn::Conn;
use crate::kernel;
use crate::side::{Guard, Sender, Side, Stage, Taken};
use crate::{attach, doze, far, leave, spin, sys, watch};
use core::sync::atomic::{AtomicBool, Ordering};
use libc::c_int;
use skein_link_core::ring::{
    Behind, Choice, Direction, Hello, Path, Pipe, Preference, Reason, Refusal, Segment, Tx, Wakes,
};

/// What a bell looks like on the wire; its value has no meaning.
const BELL: u8 = 0x07;
/// How long a blocking sender sleeps for room at a time and in all, milliseconds, before the rest goes to TCP. A receiver
/// that runs at all makes room within a time slice.
const ROOM_SLEEP_MS: u32 = 4;
const ROOM_SLEEPS: u32 = 2;
/// While writing to a ring without ringing: how often the kernel is asked whether the peer lives, nanoseconds.
const LOOK_EVERY_NS: u64 = 500_000;
/// The clock is read at every so many writes only.
const LOOK_EVERY_WRITES: u32 = 16;
/// Turns of waiting for the receiver's critical section between two times that the processor is given away.
const BUSY_TURNS: u32 = 16;
/// How long it is waited for to give bytes back, nanoseconds: so long the receiver waits for them ([`leave`]), and a little more.
const GIVE_BACK_NS: u64 = 500_000_000;
/// And to wake it, nanoseconds: some time slices.
const WAKE_NS: u64 = 20_000_000;

/// How a part of a call went.
enum Part {
    /// That many bytes went out.
    Sent(usize),
    /// The ring is full.
    Full(Segment),
    /// TCP takes nothing now.
    Blocked,
    /// An error number.
    Error(c_int),
}

/// Sends as `sendmsg` does, from the buffers. The answer is a count or a negative error number.
pub(crate) fn send(conn: &Conn, fd: c_int, mut buffers: Buffers<'_>, flags: c_int) -> isize {
    let side = conn.side();
    if side.error.load(Ordering::Relaxed) != 0 {
        let error = side.error.swap(0, Ordering::AcqRel);
        if error != 0 {
            side.end_told.store(1, Ordering::Release);
            return -(error as isize);
        }
    }
    if conn.is_far() {
        conn.rest.end();
    }
    attach::advance(conn, fd, buffers.left());
    let mut sleeps = 0;
    let mut blocks = None;
    let deadline = &mut None;
    while buffers.left() > 0 {
        if blocks == Some(true) && conn.was_closed(fd) {
            // By another thread, while this one slept. The number may be somebody else's by now.
            return if buffers.done() > 0 {
                buffers.done() as isize
            } else {
                -(libc::EBADF as isize)
            };
        }
        let onto_tcp = sleeps >= ROOM_SLEEPS || blocks == Some(false);
        let part = match side.sender() {
            Ok(sender) => part(conn, fd, sender, &buffers, flags, onto_tcp),
            Err(Taken::Self_ | Taken::Other) => Part::Error(libc::EAGAIN),
        };
        let end = match part {
            Part::Sent(bytes) => {
                buffers.advance(bytes);
                sleeps = 0;
                continue;
            }
            Part::Error(error) => error,
            Part::Full(segment) => {
                if *blocks.get_or_insert_with(|| kernel::blocks(fd, flags)) {
                    sleeps += 1;
                    sleep_for_room(conn, &segment)
                } else {
                    0
                }
            }
            Part::Blocked => {
                if *blocks.get_or_insert_with(|| kernel::blocks(fd, flags)) {
                    sleep_for_tcp(fd, deadline)
                } else {
                    libc::EAGAIN
                }
            }
        };
        if end != 0 && buffers.done() > 0 {
            // The kernel says what ended a connection once, and the program hears only of the bytes that went before: of the end
            // in its next call.
            if matches!(end, libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH) {
                side.error.store(end, Ordering::Release);
            }
            return buffers.done() as isize;
        }
        if end != 0 {
            if end == libc::ECONNRESET {
                side.end_told.store(1, Ordering::Release);
            }
            return -(end as isize);
        }
    }
    buffers.done() as isize
}

fn part(
    conn: &Conn,
    fd: c_int,
    mut sender: Guard<'_, Sender>,
    buffers: &Buffers<'_>,
    flags: c_int,
    onto_tcp: bool,
) -> Part {
    let side = conn.side();
    if let Some(error) = side.aborted() {
        return Part::Error(error);
    }
    let Some(segment) = (side.stage() == Stage::Counting).then(|| conn.segment()).flatten() else {
        return tcp(fd, buffers, flags);
    };
    let (out, _) = conn.pipes(&segment);
    if sender.orphaned
        && let Err(error) = mend(conn, fd, &mut sender.tx, out)
    {
        return Part::Error(error);
    }
    let is_chosen = chooses_tcp(fd, &mut sender, out, buffers.left());
    let part = match whether_ring(conn, fd, &segment, (&mut sender, is_chosen), buffers, onto_tcp) {
        Err(part) => part,
        Ok(()) => {
            let part = tcp(fd, buffers, flags);
            if let Part::Sent(bytes) = part {
                sender.tx.sent(out.direction(), bytes as u64);
                sender.wakes.on_tcp(bytes as u64);
            }
            part
        }
    };
    if let Part::Sent(bytes) = part {
        sender.choice.sent(bytes as u64);
    }
    part
}

/// The program's user wants the ring whatever it costs.
pub(crate) static STAYS: AtomicBool = AtomicBool::new(false);

/// Whether TCP is to have the next bytes, so many at most: because it brings more, or because their receiver sleeps.
fn chooses_tcp(fd: c_int, sender: &mut Sender, out: Pipe<'_>, bytes: usize) -> bool {
    if STAYS.load(Ordering::Relaxed) {
        return false;
    }
    let dir = out.direction();
    let preference = match out.is_far() {
        true => far_preference(fd, &mut sender.choice, &mut sender.wakes, dir),
        false if sender.bells.rests(bytes) => Preference::Wakes,
        false => Preference::None,
    };
    if dir.preference() != preference {
        dir.show_preference(preference);
    }
    preference != Preference::None || (out.is_far() && sender.choice.path() == Path::Tcp)
}

fn far_preference(
    fd: c_int,
    choice: &mut Choice,
    wakes: &mut Wakes,
    dir: &Direction,
) -> Preference {
    if wakes.prefers_tcp() || choice.wants_look() {
        let now = sys::nanos();
        wakes.look(now);
        choice.look(now, || {
            let info = kernel::tcp_info(fd).filter(|info| info.state == kernel::ESTABLISHED)?;
            Some(dir.tail().wrapping_add(info.acknowledged))
        });
    }
    match (choice.prefers_tcp(), wakes.prefers_tcp()) {
        (true, _) => Preference::Faster,
        (false, true) => Preference::Wakes,
        (false, false) => Preference::None,
    }
}

/// Sends on the ring if it is there and wanted. `Ok`: what is left is TCP's; the direction is there.
fn whether_ring(
    conn: &Conn,
    fd: c_int,
    segment: &Segment,
    (sender, is_chosen): (&mut Sender, bool),
    buffers: &Buffers<'_>,
    onto_tcp: bool,
) -> Result<(), Part> {
    let (out, _) = conn.pipes(segment);
    let Sender { tx, bells, wakes, .. } = sender;
    if !tx.on_ring() && !onto_tcp && !is_chosen {
        take_ring(conn, fd, segment, tx, out)
            .map_err(|reason| Part::Error(leave::abort(conn, fd, reason)))?;
    }
    if !tx.on_ring() || (is_chosen && leaves_at_once(fd, segment, tx, out)) {
        return Ok(());
    }
    match ring(conn, fd, segment, tx, out, buffers) {
        Ring::Sent { bytes, rang } => {
            if out.is_far() {
                wakes.on_ring(bytes as u64, out.direction().bell_end(), sys::nanos);
            } else {
                bells.wrote(bytes, rang);
            }
            return Err(Part::Sent(bytes));
        }
        Ring::Full if !onto_tcp => return Err(Part::Full(*segment)),
        Ring::Full | Ring::Leave => {}
        Ring::Broken(reason) => return Err(Part::Error(leave::abort(conn, fd, reason))),
    }
    to_tcp(conn, fd, segment, tx, out)
}

/// Goes to TCP by choice, if nothing has to be waited for.
fn leaves_at_once(fd: c_int, segment: &Segment, tx: &mut Tx, out: Pipe<'_>) -> bool {
    let dir = out.direction();
    if dir.refusal() == Refusal::Recall {
        return false;
    }
    if !out.is_far() {
        tx.to_tcp(dir);
    } else if tx.leave_far(dir, || ring_last_bell(fd, &mut false)).is_err() {
        return false;
    }
    far::call(segment);
    doze::wake(dir);
    true
}

/// Sends on TCP without waiting.
fn tcp(fd: c_int, buffers: &Buffers<'_>, flags: c_int) -> Part {
    // Bytes that went before make this an incomplete call, which gets no signal.
    let quiet = if buffers.done() > 0 { libc::MSG_NOSIGNAL } else { 0 };
    let flags = flags | libc::MSG_DONTWAIT | quiet;
    let result = match buffers.single(u64::MAX) {
        Some(piece) => sys::send(fd, piece, flags),
        None => buffers.pieces(u64::MAX, |list| sys::sendmsg(fd, &sys::header(list), flags)),
    };
    match usize::try_from(result) {
        Ok(bytes) => Part::Sent(bytes),
        Err(_) if result == -(libc::EAGAIN as isize) => Part::Blocked,
        Err(_) => Part::Error((-result) as c_int),
    }
}

/// How writing to the ring went.
enum Ring {
    /// So many bytes; whether the receiver had to be rung for.
    Sent {
        bytes: usize,
        rang: bool,
    },
    Full,
    /// The ring may not be used any more, or not now.
    Leave,
    Broken(Reason),
}

fn ring(
    conn: &Conn,
    fd: c_int,
    segment: &Segment,
    tx: &mut Tx,
    out: Pipe<'_>,
    buffers: &Buffers<'_>,
) -> Ring {
    let dir = out.direction();
    let refusal = dir.begin_write();
    let behind = if out.is_far() { segment.header().behind() } else { Behind::Node };
    let done = if behind == Behind::Wreck {
        Ring::Broken(Reason::Lost)
    } else if refusal != Refusal::None
        || behind == Behind::Nobody
        || conn.side().shut.load(Ordering::Relaxed) != 0
        || segment.header().hello(conn.role().other()).is_over()
    {
        Ring::Leave
    } else {
        copy_in(conn, tx, out, buffers)
    };
    let done = match done {
        Ring::Sent { bytes, .. } if out.is_far() => {
            // Its bells are the node's.
            far::call(segment);
            look(conn.side(), fd);
            Ring::Sent { bytes, rang: false }
        }
        Ring::Sent { bytes, .. } => {
            let rings = tx.bell(dir);
            if dir.seems_dozing() {
                doze::wake(dir);
            }
            match rings {
                Ok(true) => ring_bell(conn.side(), fd, bytes),
                Ok(false) => {
                    look(conn.side(), fd);
                    Ring::Sent { bytes, rang: false }
                }
                Err(_) => Ring::Broken(Reason::Broken),
            }
        }
        other => other,
    };
    dir.wrote();
    done
}

/// Copies as much as fits. If nothing does, spins for room a little: a quarter of the ring, so that the receiver is not
/// chased byte by byte.
fn copy_in(conn: &Conn, tx: &mut Tx, out: Pipe<'_>, buffers: &Buffers<'_>) -> Ring {
    let copy = |tx: &mut Tx| {
        let mut broken = false;
        let mut put = |piece: &mut [u8]| {
            tx.write(out, piece).unwrap_or_else(|_| {
                broken = true;
                0
            })
        };
        // SAFETY: the program's buffers, in the call that it made with them.
        let bytes = unsafe { buffers.each(&mut put) };
        (bytes, broken)
    };
    let (mut bytes, mut broken) = copy(tx);
    if bytes == 0 && !broken {
        let wanted = (out.capacity() / 4).min(buffers.left());
        if spin::until(&conn.spin_write, || tx.room(out).is_ok_and(|room| room >= wanted)) {
            (bytes, broken) = copy(tx);
        }
    }
    match (bytes, broken) {
        (_, true) => Ring::Broken(Reason::Broken),
        (0, false) => Ring::Full,
        (bytes, false) => Ring::Sent { bytes, rang: false },
    }
}

/// Sends the bell that was announced. An error means that the connection has ended: the next call learns of it, from TCP or, as
/// TCP tells of a reset once, from here.
fn ring_bell(side: &Side, fd: c_int, bytes: usize) -> Ring {
    for _ in 0..1000 {
        let result = sys::send_byte(fd, BELL);
        if result == -(libc::EAGAIN as isize) {
            // Bells are one byte at a time and data went out before: only acknowledgements are missing.
            sys::poll(fd, libc::POLLOUT, 10);
        } else if result != -(libc::EINTR as isize) {
            if result == -(libc::ECONNRESET as isize) {
                side.error.store(libc::ECONNRESET, Ordering::Release);
            }
            break;
        }
    }
    Ring::Sent { bytes, rang: true }
}

/// Looks now and then whether the peer's end is no more, for a bell that nobody reads does not tell. If so, what follows
/// goes to TCP, which tells.
fn look(side: &Side, fd: c_int) {
    let writes = side.writes.fetch_add(1, Ordering::Relaxed);
    if !writes.is_multiple_of(LOOK_EVERY_WRITES) {
        return;
    }
    let now = sys::nanos();
    if now.wrapping_sub(side.looked_at.load(Ordering::Relaxed)) < LOOK_EVERY_NS {
        return;
    }
    side.looked_at.store(now, Ordering::Relaxed);
    if kernel::tcp_info(fd).is_none_or(|info| info.state != kernel::ESTABLISHED) {
        side.shut.store(1, Ordering::Relaxed);
    }
}

/// Goes onto the ring if it is there and nothing speaks against it.
fn take_ring(
    conn: &Conn,
    fd: c_int,
    segment: &Segment,
    tx: &mut Tx,
    out: Pipe<'_>,
) -> Result<(), Reason> {
    let side = conn.side();
    if !segment.header().is_live()
        || side.forbidden.load(Ordering::Relaxed) != 0
        || side.shut.load(Ordering::Relaxed) != 0
        || tx.room(out).map_err(|_| Reason::Broken)? < out.capacity() / 2
    {
        return Ok(());
    }
    let Some((info, position)) = kernel::write_position(fd, side.opener()) else {
        return Ok(());
    };
    let is_carried = segment.header().behind() == Behind::Node;
    // A bell behind bytes that wait would come late. To another host it is asked for when those have been read.
    let is_free = out.is_far() || info.is_sent();
    if info.state != kernel::ESTABLISHED || !is_free || !is_carried {
        return Ok(());
    }
    if position != tx.tcp() {
        // Something else has written to the socket, or the kernel's counters are not what they seem. On TCP both is fine.
        side.forbidden.store(1, Ordering::Relaxed);
        return Ok(());
    }
    // Busy: the receiver reads right now; a later call will do.
    if tx.to_ring(out.direction()).is_ok() {
        far::call(segment);
    }
    Ok(())
}

/// Goes back to TCP. The error is what the call shall answer instead: [`Part::Blocked`] only if TCP takes nothing, for a program
/// that is told by edges hears of room only then.
fn to_tcp(
    conn: &Conn,
    fd: c_int,
    segment: &Segment,
    tx: &mut Tx,
    out: Pipe<'_>,
) -> Result<(), Part> {
    let dir = out.direction();
    let left = if dir.refusal() == Refusal::Recall {
        yields_until(GIVE_BACK_NS, || leave::give_back(conn, fd, tx, out).is_ok())
            .then_some(())
            .ok_or_else(|| Part::Error(leave::abort(conn, fd, Reason::Stuck)))
    } else if out.is_far() {
        leave_far(conn, fd, segment, tx, dir)
    } else {
        tx.to_tcp(dir);
        Ok(())
    };
    if left.is_ok() {
        far::call(segment);
        doze::wake(dir);
    }
    left
}

/// The same where the other end is far: once the beginning of the phase lies there, and the node does not ring right now.
fn leave_far(
    conn: &Conn,
    fd: c_int,
    segment: &Segment,
    tx: &mut Tx,
    dir: &Direction,
) -> Result<(), Part> {
    if segment.header().hello(conn.role().other()) == Hello::Gone {
        // Nobody is there to be rung, and a bell would be answered before the bytes behind it are sent.
        tx.to_tcp(dir);
        return Ok(());
    }
    let (mut left, mut is_blocked) = (false, false);
    far::wait(segment, dir, || {
        left = tx.leave_far(dir, || ring_last_bell(fd, &mut is_blocked)).is_ok();
        left || is_blocked
    });
    if left {
        return Ok(());
    }
    if is_blocked {
        return Err(Part::Blocked);
    }
    if segment.header().behind() == Behind::Nobody {
        // No node rings any more, and TCP alone is left.
        tx.to_tcp(dir);
        return Ok(());
    }
    Err(Part::Error(leave::abort(conn, fd, Reason::Lost)))
}

/// Tries until it succeeds, for so many nanoseconds at most: what it waits for is a short stretch of code of somebody who may have
/// lost the processor in it.
fn yields_until(patience: u64, mut succeeds: impl FnMut() -> bool) -> bool {
    let begun = sys::nanos();
    loop {
        for _ in 0..BUSY_TURNS {
            if succeeds() {
                return true;
            }
            core::hint::spin_loop();
        }
        if sys::nanos() - begun > patience {
            return false;
        }
        sys::yield_now();
    }
}

/// Sends the bell that ends a ring phase: `false` and `blocked` if TCP takes nothing now. An error means that the connection
/// has ended: what is sent next learns of it.
fn ring_last_bell(fd: c_int, blocked: &mut bool) -> bool {
    loop {
        let result = sys::send_byte(fd, BELL);
        if result != -(libc::EINTR as isize) {
            *blocked = result == -(libc::EAGAIN as isize);
            return !*blocked;
        }
    }
}

/// Takes the direction to TCP for something that the ring cannot do, or for good. `false`: not now.
pub(crate) fn onto_tcp(conn: &Conn, fd: c_int) -> bool {
    let Ok(mut sender) = conn.side().sender() else {
        return false;
    };
    let Some(segment) = conn.segment() else {
        return true;
    };
    let (out, _) = conn.pipes(&segment);
    if sender.orphaned && mend(conn, fd, &mut sender.tx, out).is_err() {
        return false;
    }
    !sender.tx.on_ring() || to_tcp(conn, fd, &segment, &mut sender.tx, out).is_ok()
}

/// Mends what a process left that died within a call of this side.
pub(crate) fn mend(conn: &Conn, fd: c_int, tx: &mut Tx, out: Pipe<'_>) -> Result<(), c_int> {
    let Some((_, position)) = kernel::write_position(fd, conn.side().opener()) else {
        return Ok(());
    };
    match tx.recover(out, position) {
        Ok(true) => {
            ring_bell(conn.side(), fd, 0);
            Ok(())
        }
        Ok(false) => Ok(()),
        Err(_) => Err(leave::abort(conn, fd, Reason::Broken)),
    }
}

/// Sleeps until the receiver has made room, or a little while. The answer is an error number or zero.
fn sleep_for_room(conn: &Conn, segment: &Segment) -> c_int {
    let (out, _) = conn.pipes(segment);
    let dir = out.direction();
    dir.waiting().store(1, Ordering::SeqCst);
    core::sync::atomic::fence(Ordering::SeqCst);
    let head = dir.head();
    if head.wrapping_sub(dir.tail()) >= out.capacity() as u64 / 4 * 3 {
        let result = sys::futex_wait(dir.waiting().as_ptr(), 1, ROOM_SLEEP_MS);
        if result == -(libc::EINTR as isize) && kernel::wants_eintr() {
            return libc::EINTR;
        }
    }
    0
}

/// Sleeps until TCP takes bytes again. The answer is an error number or zero.
fn sleep_for_tcp(fd: c_int, deadline: &mut Option<u64>) -> c_int {
    let timeout = match kernel::timeout_ms(fd, libc::SO_SNDTIMEO) {
        None => 1000,
        Some(ms) => {
            let now = sys::nanos();
            let end = *deadline.get_or_insert(now.saturating_add(ms.saturating_mul(1_000_000)));
            if now >= end {
                return libc::EAGAIN;
            }
            // Up to the deadline, or look again after a second.
            u32::try_from((end - now).div_ceil(1_000_000)).unwrap_or(1000).min(1000)
        }
    };
    let result = sys::poll(fd, libc::POLLOUT, timeout);
    watch::after(result != 0);
    if result == -(libc::EINTR as isize) && (deadline.is_some() || kernel::wants_eintr()) {
        return libc::EINTR;
    }
    0
}

/// Makes the peer's library look at its state: rings a bell, through the ring if need be. `false`: not now.
pub(crate) fn wake(conn: &Conn, fd: c_int) -> bool {
    let Ok(mut sender) = conn.side().sender() else {
        return false;
    };
    let tx = &mut sender.tx;
    let Some(segment) = conn.segment() else {
        return false;
    };
    let (out, _) = conn.pipes(&segment);
    let dir = out.direction();
    if !yields_until(WAKE_NS, || tx.on_ring() || tx.to_ring(dir).is_ok()) {
        return false;
    }
    if out.is_far() {
        // The other node rings when it hears what we want.
        far::call(&segment);
    } else if tx.bell(dir) == Ok(true) {
        ring_bell(conn.side(), fd, 0);
    }
    doze::wake(dir);
    true
}
