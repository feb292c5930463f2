//! Which descriptors are connections of ours: a table without locks, and the connections of this process.
//!
//! A slot's memory never goes back, so that looking at one that ends meanwhile is harmless: the reference is counted first
//! and the table looked at again. Nothing here allocates, for calls come from signal handlers and between fork and exec.

use crate::idle::Idle;
use crate::recv::KNOWN_NONBLOCKING;
use crate::side::{Side, Stage};
use crate::watch::{self, Pulse};
use crate::{doze, far, sys};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use libc::c_int;
use skein_link_core::ring::{Hello, Pipe, Reach, Rest, Role, Segment};

/// Descriptors from here on are never accelerated. The usual hard limit is a million; 65,536 connections of one process
/// are far beyond what a ring each (half a megabyte) makes sense for.
const FDS: usize = 65_536;

/// A connection in this process.
pub(crate) struct Conn {
    /// One for being in the table, one for each call in progress.
    references: AtomicU32,
    /// Entries of the table.
    entries: AtomicU32,
    used: AtomicU32,
    side: AtomicPtr<Side>,
    segment: AtomicPtr<u8>,
    segment_len: AtomicUsize,
    role: AtomicU32,
    /// The other end is on another host.
    far: AtomicU8,
    /// Some call of `poll`'s family was given it.
    pub(crate) polled: AtomicU8,
    /// It is in an epoll set with edges.
    pub(crate) edges: AtomicU8,
    /// It was last seen not to block (1, a hint), or was set not to by a call of this process (`KNOWN_NONBLOCKING`).
    pub(crate) nonblocking: AtomicU8,
    /// 1: it was last set to block, and every call of this process that could change that was seen.
    pub(crate) blocking: AtomicU8,
    /// It is in the list of unsettled ones.
    pub(crate) listed: AtomicU8,
    /// The last read took few bytes of TCP and had to wait for them.
    pub(crate) awaits: AtomicU8,
    /// Calls without bytes.
    pub(crate) idle: Idle,
    /// Whether a reader rests; of use where the other end is far.
    pub(crate) rest: Rest,
    /// How long it pays to spin for the next byte on the ring, nanoseconds; and for room.
    pub(crate) spin_read: AtomicU32,
    pub(crate) spin_write: AtomicU32,
    /// Of the node behind it, if its other end is far.
    pulse: Pulse,
    /// A descriptor of it plus one, for calls that have none (settling); zero: none. So that an unused slot is all zero, and the
    /// table takes no room in the file.
    any_fd: AtomicI32,
    /// The descriptor of it that the program closed last, plus one.
    closed_fd: AtomicI32,
}

impl Conn {
    #[expect(
        clippy::declare_interior_mutable_const,
        reason = "what each slot of the table begins with"
    )]
    const EMPTY: Self = Self {
        references: AtomicU32::new(0),
        entries: AtomicU32::new(0),
        used: AtomicU32::new(0),
        side: AtomicPtr::new(null_mut()),
        segment: AtomicPtr::new(null_mut()),
        segment_len: AtomicUsize::new(0),
        role: AtomicU32::new(0),
        far: AtomicU8::new(0),
        polled: AtomicU8::new(0),
        edges: AtomicU8::new(0),
        nonblocking: AtomicU8::new(0),
        blocking: AtomicU8::new(0),
        listed: AtomicU8::new(0),
        awaits: AtomicU8::new(0),
        idle: Idle::new(),
        rest: Rest::new(),
        spin_read: AtomicU32::new(0),
        spin_write: AtomicU32::new(0),
        pulse: Pulse::new(),
        any_fd: AtomicI32::new(0),
        closed_fd: AtomicI32::new(0),
    };
}

/// Slot number plus one for each descriptor; zero: not ours.
static TABLE: [AtomicU32; FDS] = [const { AtomicU32::new(0) }; FDS];
static SLOTS: [Conn; FDS] = [const { Conn::EMPTY }; FDS];
/// One past the greatest descriptor that was ever ours.
static FDS_END: AtomicUsize = AtomicUsize::new(0);

/// A counted reference to a connection.
pub(crate) struct Held(&'static Conn);

impl core::ops::Deref for Held {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.release();
    }
}

fn entry(fd: c_int) -> Option<&'static AtomicU32> {
    TABLE.get(usize::try_from(fd).ok()?)
}

/// Whether any descriptor was ever ours.
pub(crate) fn are_any() -> bool {
    FDS_END.load(Ordering::Relaxed) != 0
}

/// Whether a descriptor is ours.
#[inline]
pub(crate) fn is_ours(fd: c_int) -> bool {
    (fd as usize) < FDS && TABLE[fd as usize].load(Ordering::Relaxed) != 0
}

/// The connection behind a descriptor.
#[inline]
pub(crate) fn get(fd: c_int) -> Option<Held> {
    if !is_ours(fd) {
        return None;
    }
    let entry = &TABLE[fd as usize];
    loop {
        let slot = entry.load(Ordering::Acquire);
        if slot == 0 {
            return None;
        }
        let conn = &SLOTS[slot as usize - 1];
        conn.references.fetch_add(1, Ordering::SeqCst);
        let held = Held(conn);
        if entry.load(Ordering::SeqCst) == slot {
            return Some(held);
        }
    }
}

/// The connection of a slot, if it is in the table.
pub(crate) fn by_slot(slot: u32) -> Option<Held> {
    let conn = SLOTS.get(slot as usize)?;
    conn.references.fetch_add(1, Ordering::SeqCst);
    let held = Held(conn);
    (conn.entries.load(Ordering::SeqCst) > 0).then_some(held)
}

/// A new connection behind a descriptor. `false`: no place or no memory; it stays with TCP.
pub(crate) fn add(fd: c_int, spin: u32) -> bool {
    forget(fd);
    let (Some(entry), Some(side)) = (entry(fd), Side::new()) else {
        return false;
    };
    let start = fd as usize;
    // A slot other than the descriptor's own is taken only while a duplicate outlives the original.
    for step in 0..64 {
        let slot = (start + step * 97) % FDS;
        let conn = &SLOTS[slot];
        if conn.used.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            continue;
        }
        conn.side.store(side.as_ptr(), Ordering::Relaxed);
        let modes = [&conn.polled, &conn.edges, &conn.nonblocking, &conn.blocking, &conn.listed];
        for flag in modes.into_iter().chain([&conn.awaits]) {
            flag.store(0, Ordering::Relaxed);
        }
        conn.rest.end();
        conn.spin_read.store(spin, Ordering::Relaxed);
        conn.spin_write.store(spin, Ordering::Relaxed);
        conn.any_fd.store(fd + 1, Ordering::Relaxed);
        conn.closed_fd.store(0, Ordering::Relaxed);
        conn.entries.store(1, Ordering::Relaxed);
        conn.references.fetch_add(1, Ordering::SeqCst);
        FDS_END.fetch_max(start + 1, Ordering::SeqCst);
        entry.store(slot as u32 + 1, Ordering::SeqCst);
        return true;
    }
    // SAFETY: just made, known to nobody.
    unsafe { Side::free(side) };
    false
}

/// `to` is now another descriptor of `from`'s connection, if that is ours.
pub(crate) fn copy(from: c_int, to: c_int) {
    forget(to);
    let (Some(conn), Some(target)) = (get(from), entry(to)) else {
        return;
    };
    let slot = conn.slot();
    conn.references.fetch_add(1, Ordering::SeqCst);
    conn.entries.fetch_add(1, Ordering::SeqCst);
    FDS_END.fetch_max(to as usize + 1, Ordering::SeqCst);
    target.store(slot + 1, Ordering::SeqCst);
}

/// The descriptor is not ours any more; the connection if it was the last.
pub(crate) fn forget(fd: c_int) {
    if !is_ours(fd) {
        return;
    }
    let Some(entry) = entry(fd) else { return };
    let slot = entry.swap(0, Ordering::SeqCst);
    if slot != 0 {
        let conn = &SLOTS[slot as usize - 1];
        if conn.any_fd() == Some(fd) {
            conn.any_fd.store(other_fd(slot, fd) + 1, Ordering::Relaxed);
        }
        conn.entries.fetch_sub(1, Ordering::SeqCst);
        conn.release();
    }
}

fn other_fd(slot: u32, except: c_int) -> c_int {
    let end = FDS_END.load(Ordering::SeqCst);
    (0..end)
        .find(|fd| *fd != except as usize && TABLE[*fd].load(Ordering::Relaxed) == slot)
        .map_or(-1, |fd| fd as c_int)
}

/// Calls `each` for every descriptor of ours in a range.
pub(crate) fn for_each(first: c_int, last: c_int, mut each: impl FnMut(c_int, &Held)) {
    let end = FDS_END.load(Ordering::SeqCst) as c_int;
    for fd in first.max(0)..end.min(last.saturating_add(1)) {
        if let Some(conn) = get(fd) {
            each(fd, &conn);
        }
    }
}

/// Calls `each` once for every connection.
pub(crate) fn for_each_connection(mut each: impl FnMut(&Held)) {
    let end = FDS_END.load(Ordering::SeqCst) as c_int;
    for fd in 0..end {
        // Of several descriptors the first counts.
        if let Some(conn) = get(fd)
            && (conn.entries() == 1 || first_fd(conn.slot() + 1) == Some(fd))
        {
            each(&conn);
        }
    }
}

fn first_fd(word: u32) -> Option<c_int> {
    let end = FDS_END.load(Ordering::SeqCst);
    (0..end).find(|fd| TABLE[*fd].load(Ordering::Relaxed) == word).map(|fd| fd as c_int)
}

impl Conn {
    /// Its slot's number.
    pub(crate) fn slot(&self) -> u32 {
        let offset = core::ptr::from_ref(self).addr() - SLOTS.as_ptr().addr();
        (offset / size_of::<Self>()) as u32
    }

    fn release(&'static self) {
        if self.references.fetch_sub(1, Ordering::SeqCst) != 1
            || self.entries.load(Ordering::SeqCst) != 0
            || self.used.compare_exchange(1, 2, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return;
        }
        // Nobody can reach it any more: no entry leads here, and nobody holds a reference. Late comers only count up and
        // down.
        let base = self.segment.swap(null_mut(), Ordering::AcqRel);
        if let Some(side) = NonNull::new(self.side.swap(null_mut(), Ordering::AcqRel)) {
            // SAFETY: mapped until `Side::free` below.
            unsafe { side.as_ref() }.processes.fetch_sub(1, Ordering::AcqRel);
            // SAFETY: see above.
            unsafe { Side::free(side) };
        }
        if !base.is_null() {
            if self.is_far() {
                watch::remove();
            }
            // SAFETY: see above.
            unsafe { sys::unmap(base, self.segment_len.load(Ordering::Relaxed)) };
        }
        self.used.store(0, Ordering::Release);
    }

    /// A descriptor of it.
    pub(crate) fn any_fd(&self) -> Option<c_int> {
        self.any_fd.load(Ordering::Relaxed).checked_sub(1).filter(|fd| *fd >= 0)
    }

    /// The program closes this descriptor of it.
    pub(crate) fn note_closing(&self, fd: c_int) {
        self.closed_fd.store(fd + 1, Ordering::Release);
    }

    /// Whether the program has closed this descriptor since the call began, in another thread.
    pub(crate) fn was_closed(&self, fd: c_int) -> bool {
        self.closed_fd.load(Ordering::Acquire) == fd + 1
            && entry(fd).is_none_or(|entry| entry.load(Ordering::Acquire) != self.slot() + 1)
    }

    /// Descriptors of it in this process.
    pub(crate) fn entries(&self) -> u32 {
        self.entries.load(Ordering::SeqCst)
    }

    /// What this side knows.
    #[inline]
    pub(crate) fn side(&self) -> &Side {
        // SAFETY: set before the connection can be reached, and freed after the last reference.
        unsafe { &*self.side.load(Ordering::Relaxed) }
    }

    /// This end's role in the segment.
    #[inline]
    pub(crate) fn role(&self) -> Role {
        if self.role.load(Ordering::Relaxed) == 0 { Role::Low } else { Role::High }
    }

    /// Gives it its segment, before the stage says so.
    pub(crate) fn set_segment(&self, segment: Segment, role: Role) {
        self.role.store(u32::from(role == Role::High), Ordering::Relaxed);
        self.far.store(u8::from(segment.reach() == Reach::Far), Ordering::Relaxed);
        self.segment_len.store(segment.len(), Ordering::Relaxed);
        if self.is_far() {
            watch::add(&self.pulse);
        }
        self.segment.store(segment.base().as_ptr(), Ordering::Release);
    }

    /// The segment, once there is one.
    #[inline]
    pub(crate) fn segment(&self) -> Option<Segment> {
        let base = NonNull::new(self.segment.load(Ordering::Acquire))?;
        let len = self.segment_len.load(Ordering::Relaxed);
        let reach = if self.is_far() { Reach::Far } else { Reach::Near };
        // SAFETY: mapped with this length until the last reference is gone; checked when it was mapped.
        Some(unsafe { Segment::known(base, len, reach) })
    }

    /// Whether the other end is on another host; of use once there is a segment.
    #[inline]
    pub(crate) fn is_far(&self) -> bool {
        self.far.load(Ordering::Relaxed) != 0
    }

    /// What was seen of the node behind it.
    pub(crate) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The segment's direction of our bytes, and of the peer's.
    #[inline]
    pub(crate) fn pipes<'a>(&self, segment: &'a Segment) -> (Pipe<'a>, Pipe<'a>) {
        let role = self.role();
        (segment.pipe(role), segment.pipe(role.other()))
    }

    /// Whether this is the last process and the last descriptor: closing it ends the connection.
    pub(crate) fn is_last(&self) -> bool {
        self.entries() <= 1 && self.side().processes.load(Ordering::Acquire) <= 1
    }

    /// The program has set it to wait, or not to, with a call that was seen.
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        let word = if nonblocking { KNOWN_NONBLOCKING } else { 0 };
        self.nonblocking.store(word, Ordering::Relaxed);
        self.blocking.store(u8::from(!nonblocking), Ordering::Relaxed);
    }

    /// Whether it waits is not known any more.
    pub(crate) fn doubt_blocking(&self) {
        self.nonblocking.store(0, Ordering::Relaxed);
        self.blocking.store(0, Ordering::Relaxed);
    }

    /// Tells the peer that the connection is closed now.
    pub(crate) fn say_gone(&self) {
        if self.side().stage() != Stage::Candidate
            && let Some(segment) = self.segment()
        {
            segment.header().set_hello(self.role(), Hello::Gone);
            far::call(&segment);
            doze::wake_both(self);
        }
    }
}
