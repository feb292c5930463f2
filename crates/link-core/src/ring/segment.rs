//! A segment: the memory that the two ends of a connection share.
//!
//! ```text
//!  0        Header
//!  4096     Direction of the low end's bytes, then of the high end's
//!  8192     ring of the low end, `capacity` bytes
//!  + cap    ring of the high end
//! ```

#![expect(
    unsafe_code,
    reason = "the one place that turns shared memory into references and copies bytes"
)]

use super::Direction;
use super::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use core::ptr::NonNull;

/// Ring capacity of one direction unless told, bytes. 256 KiB: two of them stay in a second-level cache, and a receiver
/// that is away for 100 µs does not stop a sender of 2 GB/s.
pub const CAPACITY_DEFAULT: usize = 256 << 10;
/// The least capacity, bytes.
pub const CAPACITY_MIN: usize = 4 << 10;
/// The greatest capacity, bytes.
pub const CAPACITY_MAX: usize = 64 << 20;

const MAGIC: u64 = u64::from_le_bytes(*b"skeinlk4");
const DIRECTIONS_AT: usize = 4096;
const DATA_AT: usize = 8192;

const _: () = assert!(2 * size_of::<Direction>() <= DATA_AT - DIRECTIONS_AT);
const _: () = assert!(size_of::<Header>() <= DIRECTIONS_AT);

/// Bytes of a segment whose rings have this capacity.
pub const fn segment_len(capacity: usize) -> usize {
    DATA_AT + 2 * capacity
}

/// Which end of the connection one is: the low end has the smaller address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The smaller address.
    Low,
    /// The greater address.
    High,
}

impl Role {
    /// The other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }

    /// Its place in a pair, low end first.
    pub const fn index(self) -> usize {
        match self {
            Self::Low => 0,
            Self::High => 1,
        }
    }
}

/// Where the other end of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// On this host: it shares the segment.
    Near,
    /// On another host: this host's node shares the segment in its place ([`super::far`]).
    Far,
}

/// How far an end is with the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hello {
    /// Not there.
    None,
    /// Has mapped it.
    Mapped,
    /// Has seen the other there, and counts its TCP bytes from now on. When both have confirmed, phases may change.
    Confirmed,
    /// Has closed the connection.
    Gone,
    /// Has never come, and nobody waits for it any more: the connection stays on TCP.
    Absent,
}

impl Hello {
    /// Whether that end does not count bytes, and never will.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Gone | Self::Absent)
    }
}

/// Why a connection, or one that might have been accelerated, is on TCP. The number is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// It is not, or not yet tried.
    None = 0,
    /// A program that cannot be accelerated was started with the socket.
    Exec = 1,
    /// The socket was passed to another process.
    Passed = 2,
    /// Out-of-band data.
    OutOfBand = 3,
    /// The process put itself in a sandbox.
    Sandbox = 4,
    /// The process uses io_uring.
    IoUring = 5,
    /// The socket became a stream of the C library.
    Stdio = 6,
    /// A socket option that the ring cannot honour.
    Option = 7,
    /// A call that the ring cannot serve.
    Call = 8,
    /// The rules of the ring were broken; the connection was aborted.
    Broken = 9,
    /// Something wrote to the socket past the library; the connection was aborted.
    Foreign = 10,
    /// The peer is not there to take back what it had sent; the connection was aborted.
    Stuck = 11,
    /// The operator said so.
    Operator = 12,
    /// The way to the other host broke with bytes on it; the connection was aborted.
    Lost = 13,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::None,
        Self::Exec,
        Self::Passed,
        Self::OutOfBand,
        Self::Sandbox,
        Self::IoUring,
        Self::Stdio,
        Self::Option,
        Self::Call,
        Self::Broken,
        Self::Foreign,
        Self::Stuck,
        Self::Operator,
        Self::Lost,
    ];

    /// Its word, as in metrics and `skein link ls`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Exec => "exec",
            Self::Passed => "descriptor-passed",
            Self::OutOfBand => "out-of-band",
            Self::Sandbox => "sandbox",
            Self::IoUring => "io-uring",
            Self::Stdio => "stdio",
            Self::Option => "socket-option",
            Self::Call => "call",
            Self::Broken => "broken",
            Self::Foreign => "foreign-write",
            Self::Stuck => "peer-stuck",
            Self::Operator => "operator",
            Self::Lost => "light-lost",
        }
    }

    /// Whether the connection was aborted for it, because bytes may be missing.
    pub const fn is_cut(self) -> bool {
        matches!(self, Self::Broken | Self::Foreign | Self::Stuck | Self::Lost)
    }

    /// The reason of a number; [`Reason::Broken`] if there is none.
    pub fn of(number: u32) -> Self {
        Self::ALL.get(number as usize).copied().unwrap_or(Self::Broken)
    }
}

/// The segment's first words.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Header {
    magic: AtomicU64,
    capacity: AtomicU64,
    /// 1: the other end is on another host.
    far: AtomicU32,
    hello: [AtomicU32; 2],
    left: [AtomicU32; 2],
    /// 1: this end, when it is closed, resets the connection (`SO_LINGER` of zero seconds).
    resets: [AtomicU32; 2],
    /// 1: the node has let go of the connection; 2: and bytes may be missing.
    let_go: AtomicU32,
    /// When this end mapped the segment, nanoseconds of its host's clock. Of use to itself only.
    mapped_at: [AtomicU64; 2],
    /// 1: this end has shut its sending down, and ends no otherwise for its peer.
    shut: [AtomicU32; 2],
    node: NodeLine,
}

/// The words by which a program wakes its host's node.
#[derive(Debug)]
#[repr(C, align(128))]
struct NodeLine {
    /// 1 while the node wants to be called when something changes.
    asleep: AtomicU32,
    /// How often it was called; a futex.
    calls: AtomicU32,
    /// Counted up while the node lives.
    beats: AtomicU32,
}

/// What has become of the node behind a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// It carries the connection.
    Node,
    /// Both directions have ended; nothing more comes.
    Nobody,
    /// The way broke, and bytes may be missing.
    Wreck,
}

impl Header {
    /// How far an end is.
    pub fn hello(&self, role: Role) -> Hello {
        match self.hello[role.index()].load(Ordering::Acquire) {
            0 => Hello::None,
            1 => Hello::Mapped,
            2 => Hello::Confirmed,
            4 => Hello::Absent,
            _ => Hello::Gone,
        }
    }

    /// Says how far this end is.
    pub fn set_hello(&self, role: Role, hello: Hello) {
        let word = match hello {
            Hello::None => 0,
            Hello::Mapped => 1,
            Hello::Confirmed => 2,
            Hello::Gone => 3,
            Hello::Absent => 4,
        };
        self.hello[role.index()].store(word, Ordering::SeqCst);
    }

    /// Whether phases may change.
    pub fn is_live(&self) -> bool {
        self.hello(Role::Low) == Hello::Confirmed && self.hello(Role::High) == Hello::Confirmed
    }

    /// Why an end went back to TCP for good, or aborted.
    pub fn left(&self, role: Role) -> Reason {
        Reason::of(self.left[role.index()].load(Ordering::Relaxed))
    }

    /// What closing this end would do: a reset, or the end of its bytes.
    pub fn set_resets(&self, role: Role, resets: bool) {
        self.resets[role.index()].store(u32::from(resets), Ordering::Relaxed);
    }

    /// Whether closing an end resets the connection.
    pub fn resets(&self, role: Role) -> bool {
        self.resets[role.index()].load(Ordering::Relaxed) != 0
    }

    /// An end has shut its sending down: its peer is told that, whatever becomes of it afterwards.
    pub fn set_shut(&self, role: Role) {
        self.shut[role.index()].store(1, Ordering::Release);
    }

    /// Whether an end has shut its sending down.
    pub fn has_shut(&self, role: Role) -> bool {
        self.shut[role.index()].load(Ordering::Acquire) != 0
    }

    /// Notes when this end mapped the segment, nanoseconds.
    pub fn set_mapped_at(&self, role: Role, now: u64) {
        self.mapped_at[role.index()].store(now, Ordering::Relaxed);
    }

    /// When the latter of the two ends mapped it: where the other end is far, the one that is here.
    pub fn mapped_at(&self) -> u64 {
        let [low, high] = self.mapped_at.each_ref().map(|word| word.load(Ordering::Relaxed));
        low.max(high)
    }

    /// Whether the node carries the connection still. Only of use where the other end is far.
    pub fn behind(&self) -> Behind {
        match self.let_go.load(Ordering::Acquire) {
            0 => Behind::Node,
            1 => Behind::Nobody,
            _ => Behind::Wreck,
        }
    }

    /// The node lets go.
    pub fn let_go(&self, behind: Behind) {
        let word = match behind {
            Behind::Node => 0,
            Behind::Nobody => 1,
            Behind::Wreck => 2,
        };
        self.let_go.fetch_max(word, Ordering::SeqCst);
    }

    /// The node is about to sleep: from here on whoever changes something calls it.
    pub fn fall_asleep(&self) {
        self.node.asleep.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The node is awake and looks by itself.
    pub fn wake_up(&self) {
        self.node.asleep.store(0, Ordering::Relaxed);
    }

    /// A program has changed something: whether the node sleeps and the futex [`Header::calls`] is to be woken.
    pub fn call_node(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.node.asleep.load(Ordering::Relaxed) == 0
            || self.node.asleep.swap(0, Ordering::Relaxed) == 0
        {
            return false;
        }
        self.node.calls.fetch_add(1, Ordering::Release);
        true
    }

    /// The futex on which the node sleeps.
    pub const fn calls(&self) -> &AtomicU32 {
        &self.node.calls
    }

    /// The node lives: called some times a second while it carries the connection.
    pub fn beat(&self) {
        let next = self.node.beats.load(Ordering::Relaxed).wrapping_add(1);
        self.node.beats.store(next.max(1), Ordering::Relaxed);
    }

    /// Changes while the node lives; zero if there is none, or one that does not tell.
    pub fn beats(&self) -> u32 {
        self.node.beats.load(Ordering::Relaxed)
    }

    /// Says why this end goes back to TCP for good. The first reason stays.
    pub fn leave(&self, role: Role, reason: Reason) {
        let word = &self.left[role.index()];
        let _ = word.compare_exchange(0, reason as u32, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Why memory is not a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentError {
    /// Too small, or not aligned to a page.
    Shape,
    /// Another program's, or another version's.
    Magic,
    /// A capacity that is no power of two, out of range, or not the memory's.
    Capacity,
}

impl core::fmt::Display for SegmentError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Shape => "the shared memory is too small or not aligned",
            Self::Magic => "the shared memory is not a segment of this version",
            Self::Capacity => "the shared memory does not fit its rings",
        })
    }
}

impl core::error::Error for SegmentError {}

/// Mapped memory of a segment.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    base: NonNull<u8>,
    /// These are this side's copies: the shared ones may change.
    capacity: usize,
    reach: Reach,
}

// SAFETY: all words of a segment are atomics, and ring bytes are copied by `Pipe` under the callers' locks.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Makes a segment of zeroed memory.
    ///
    /// # Errors
    /// [`SegmentError`] if the memory's size or alignment does not fit.
    ///
    /// # Safety
    /// `base` points at `len` bytes that stay mapped, readable and writable, while the segment and its copies are used.
    pub unsafe fn create(
        base: NonNull<u8>,
        len: usize,
        capacity: usize,
        reach: Reach,
    ) -> Result<Self, SegmentError> {
        if !capacity.is_power_of_two() || !(CAPACITY_MIN..=CAPACITY_MAX).contains(&capacity) {
            return Err(SegmentError::Capacity);
        }
        if len < segment_len(capacity) || !base.addr().get().is_multiple_of(4096) {
            return Err(SegmentError::Shape);
        }
        let segment = Self { base, capacity, reach };
        segment.header().capacity.store(capacity as u64, Ordering::Relaxed);
        segment.header().far.store(u32::from(reach == Reach::Far), Ordering::Relaxed);
        segment.header().magic.store(MAGIC, Ordering::Release);
        Ok(segment)
    }

    /// A segment that another process made.
    ///
    /// # Errors
    /// [`SegmentError`].
    ///
    /// # Safety
    /// As [`Segment::create`].
    pub unsafe fn open(base: NonNull<u8>, len: usize) -> Result<Self, SegmentError> {
        if len < segment_len(CAPACITY_MIN) || !base.addr().get().is_multiple_of(4096) {
            return Err(SegmentError::Shape);
        }
        let mut segment = Self { base, capacity: CAPACITY_MIN, reach: Reach::Near };
        if segment.header().magic.load(Ordering::Acquire) != MAGIC {
            return Err(SegmentError::Magic);
        }
        // Copied once, then checked; the copy is what counts.
        let capacity = segment.header().capacity.load(Ordering::Relaxed);
        let capacity = usize::try_from(capacity).map_err(|_| SegmentError::Capacity)?;
        let range = CAPACITY_MIN..=CAPACITY_MAX;
        if !capacity.is_power_of_two() || !range.contains(&capacity) || segment_len(capacity) != len
        {
            return Err(SegmentError::Capacity);
        }
        segment.capacity = capacity;
        if segment.header().far.load(Ordering::Relaxed) != 0 {
            segment.reach = Reach::Far;
        }
        Ok(segment)
    }

    /// A segment that this process has opened before, by its place, length and reach.
    ///
    /// # Safety
    /// `base` and `len` are those of a segment that [`Segment::create`] or [`Segment::open`] accepted and that is still
    /// mapped.
    pub unsafe fn known(base: NonNull<u8>, len: usize, reach: Reach) -> Self {
        Self { base, capacity: (len - DATA_AT) / 2, reach }
    }

    /// Where the other end is.
    pub const fn reach(&self) -> Reach {
        self.reach
    }

    /// Where the memory begins.
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes of the memory.
    pub const fn len(&self) -> usize {
        segment_len(self.capacity)
    }

    /// Never.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The first words.
    pub fn header(&self) -> &Header {
        // SAFETY: `base` is aligned to a page and points at more than a header's bytes, which stay mapped (`create`, `open`).
        // All fields are atomics, so that the peer's writes are no data race.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    /// The direction of the bytes that `from` sends.
    pub fn pipe(&self, from: Role) -> Pipe<'_> {
        let index = from.index();
        // SAFETY: within the segment's first pages (the assertion on `DATA_AT` above).
        let direction = unsafe { self.base.add(DIRECTIONS_AT + index * size_of::<Direction>()) };
        // SAFETY: aligned to 128, since 4096 and the type's size are multiples of it; mapped; all fields are atomics.
        let direction = unsafe { direction.cast::<Direction>().as_ref() };
        // SAFETY: the segment's length was checked against its capacity.
        let data = unsafe { self.base.add(DATA_AT + index * self.capacity) };
        Pipe { direction, data, capacity: self.capacity, reach: self.reach }
    }
}

/// One direction with its ring.
#[derive(Debug, Clone, Copy)]
pub struct Pipe<'a> {
    direction: &'a Direction,
    data: NonNull<u8>,
    capacity: usize,
    reach: Reach,
}

impl<'a> Pipe<'a> {
    /// A direction over memory of one's own, for tests and for memory that is laid out otherwise.
    ///
    /// # Safety
    /// `data` points at `capacity` bytes, a power of two, that stay valid while the pipe is used.
    pub unsafe fn from_parts(
        direction: &'a Direction,
        data: NonNull<u8>,
        capacity: usize,
        reach: Reach,
    ) -> Self {
        debug_assert!(capacity.is_power_of_two());
        Self { direction, data, capacity, reach }
    }

    /// Whether the other end is on another host.
    pub const fn is_far(&self) -> bool {
        matches!(self.reach, Reach::Far)
    }

    /// Its words.
    pub const fn direction(&self) -> &'a Direction {
        self.direction
    }

    /// Bytes of the ring.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    fn split(&self, at: u64, len: usize) -> (usize, usize) {
        debug_assert!(len <= self.capacity);
        let start = (at as usize) & (self.capacity - 1);
        (start, len.min(self.capacity - start))
    }

    /// Copies `bytes` into the ring at a position. At most the capacity.
    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        assert!(bytes.len() <= self.capacity);
        let (start, first) = self.split(at, bytes.len());
        // SAFETY: `start + first <= capacity`, all of it mapped; `bytes` is this process's own and cannot overlap the
        // segment, which no safe reference covers. A peer that reads meanwhile gets bytes of no meaning: it sees them
        // published only after this.
        unsafe {
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.data.as_ptr().add(start), first);
        }
        // SAFETY: the rest fits from the ring's beginning on, for `bytes.len() <= capacity`.
        unsafe {
            let rest = &bytes[first..];
            core::ptr::copy_nonoverlapping(rest.as_ptr(), self.data.as_ptr(), rest.len());
        }
    }

    /// Copies bytes that were written into the ring before out of it again, for a sender that takes them back. At most the
    /// capacity.
    pub fn copy(&self, at: u64, into: &mut [u8]) {
        self.get(at, into);
    }

    /// Copies bytes out of the ring from a position on. At most the capacity.
    pub(crate) fn get(&self, at: u64, into: &mut [u8]) {
        assert!(into.len() <= self.capacity);
        let (start, first) = self.split(at, into.len());
        // SAFETY: `start + first <= capacity`, all of it mapped. A hostile peer may write meanwhile and then changes what
        // it sent; the bytes are copied once and not looked at here.
        unsafe {
            let data = self.data.as_ptr().add(start);
            core::ptr::copy_nonoverlapping(data, into.as_mut_ptr(), first);
        }
        // SAFETY: as above, from the ring's beginning on.
        unsafe {
            let rest = into.len() - first;
            let data = self.data.as_ptr();
            core::ptr::copy_nonoverlapping(data, into.as_mut_ptr().add(first), rest);
        }
    }
}
