//! One direction's words in shared memory: indices, phases, bell, flags.

use super::atomic::{AtomicU32, AtomicU64, Ordering, fence, spin_loop};

/// How many changes of phase may be unseen by the receiver. 32: a sender that overflows to TCP and back for each of a
/// slow receiver's reads gets that far ahead before it stays on TCP.
#[cfg(not(loom))]
pub const LOG: u32 = 32;
/// A model has few objects.
#[cfg(loom)]
pub const LOG: u32 = 4;

/// Turns of waiting for a sender that is between two stores of its change of phase; far more than it takes unless it was
/// preempted there. The caller's `relax` yields the processor.
const INTENT_TURNS: u32 = 1_000_000;

/// A phase's number: even on TCP, odd on the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Phase(pub u32);

impl Phase {
    /// Whether its bytes are on the ring.
    pub const fn on_ring(self) -> bool {
        self.0 % 2 == 1
    }

    /// The following one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// How far `self` is after `other`.
    pub const fn since(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }
}

/// Where a phase begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Position in the direction's TCP stream, bytes since the connection began.
    pub tcp: u64,
    /// Position in the ring, bytes since the segment was made.
    pub ring: u64,
}

#[derive(Debug)]
#[repr(C)]
struct SharedRecord {
    tcp: AtomicU64,
    ring: AtomicU64,
}

/// One direction's shared words. Cache lines are by writer; 128 bytes, because processors fetch lines in pairs.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Direction {
    sender: SenderLine,
    writer: WriterLine,
    receiver: ReceiverLine,
    both: BothLine,
    far: FarLine,
    records: [SharedRecord; LOG as usize],
}

#[derive(Debug)]
#[repr(C, align(128))]
struct SenderLine {
    /// Bytes published.
    head: AtomicU64,
    /// The latest phase published.
    phase: AtomicU32,
    /// 1 while the sender changes phase.
    intent: AtomicU32,
    /// Bytes sent on TCP, bells included; for display.
    tcp: AtomicU64,
}

/// Apart from the sender's other words, which the receiver looks at again and again: each message would take that line from
/// it twice more.
#[derive(Debug)]
#[repr(C, align(128))]
struct WriterLine {
    /// 1 while the sender may write to the ring.
    busy: AtomicU32,
}

#[derive(Debug)]
#[repr(C, align(128))]
struct ReceiverLine {
    /// Bytes taken.
    tail: AtomicU64,
    /// The phase the receiver is in.
    seen: AtomicU32,
    /// 1 while the receiver reads.
    busy: AtomicU32,
    /// How often it slept in the kernel; for display.
    sleeps: AtomicU64,
}

#[derive(Debug)]
#[repr(C, align(128))]
struct BothLine {
    /// What the receiver wants of the sender: see [`Refusal`]. Here, because the sender looks at this line anyway.
    refuse: AtomicU32,
    /// TCP position after the last bell, times two, plus one if rung.
    bell: AtomicU64,
    /// 1 while the sender sleeps for room; a futex.
    waiting: AtomicU32,
    /// 1 while the receiver dozes: it sleeps for bytes with its bell left in the queue; a futex.
    dozing: AtomicU32,
}

/// What is only used where the other end is on another host. Written by the node, but for the last three.
#[derive(Debug)]
#[repr(C, align(128))]
struct FarLine {
    /// The latest phase whose beginning lies in the segment of the receiver's host.
    placed: AtomicU32,
    /// 1 while the other host has been asked for a bell and has not answered.
    asked: AtomicU32,
    /// 1 when the sender has heard of the refusal, and nothing more comes on the ring.
    calm: AtomicU32,
    /// 1 when the sender has ended, and all its bytes are in the ring.
    ended: AtomicU32,
    /// Goes up with each change of the words above, or of phase or head; a futex.
    news: AtomicU32,
    /// 1 while the program sleeps on `news`.
    listening: AtomicU32,
    /// 1 when the receiver has seen the end of TCP and wants to know whether more comes on the ring.
    doubts: AtomicU32,
    /// Why the sender takes TCP by choice: see [`Preference`]; for display.
    preference: AtomicU32,
}

/// State of the bell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bell {
    /// TCP position after the last bell.
    pub(crate) end: u64,
    /// Whether the receiver need not be rung: a bell is in its queue or on its way.
    pub(crate) rung: bool,
}

impl Bell {
    const fn word(self) -> u64 {
        (self.end << 1) | self.rung as u64
    }

    const fn of(word: u64) -> Self {
        Self { end: word >> 1, rung: word & 1 == 1 }
    }
}

/// What a receiver that leaves the ring wants of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The ring is welcome.
    None,
    /// No more bytes on the ring.
    NoMore,
    /// Nor those that are there and unread: they shall come again on TCP.
    Recall,
}

/// Why a sender takes TCP by its own choice, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum Preference {
    /// It does not.
    #[default]
    None = 0,
    /// The bulk: TCP has brought more ([`super::Choice`]).
    Faster = 1,
    /// Small messages: their receiver sleeps for nearly each ([`super::Wakes`]).
    Wakes = 2,
}

impl Preference {
    /// Its word, as in `skein link ls`; `None` for none.
    pub const fn word(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Faster => Some("tcp-faster"),
            Self::Wakes => Some("wake-ups"),
        }
    }
}

impl Direction {
    /// A direction at its beginning, in a segment whose memory is zero: that is what all words begin with. For tests
    /// and devices that do not hand out zeroed memory.
    pub fn new() -> Self {
        let zero64 = || AtomicU64::new(0);
        let zero32 = || AtomicU32::new(0);
        Self {
            sender: SenderLine { head: zero64(), phase: zero32(), intent: zero32(), tcp: zero64() },
            writer: WriterLine { busy: zero32() },
            receiver: ReceiverLine {
                tail: zero64(),
                seen: zero32(),
                busy: zero32(),
                sleeps: zero64(),
            },
            both: BothLine {
                refuse: zero32(),
                bell: zero64(),
                waiting: zero32(),
                dozing: zero32(),
            },
            far: FarLine {
                placed: zero32(),
                asked: zero32(),
                calm: zero32(),
                ended: zero32(),
                news: zero32(),
                listening: zero32(),
                doubts: zero32(),
                preference: zero32(),
            },
            records: core::array::from_fn(|_| SharedRecord { tcp: zero64(), ring: zero64() }),
        }
    }

    // The sender's words.

    /// Bytes published so far.
    pub fn head(&self) -> u64 {
        self.sender.head.load(Ordering::Acquire)
    }

    pub(crate) fn set_head(&self, head: u64) {
        self.sender.head.store(head, Ordering::Release);
    }

    /// The latest phase published.
    pub fn phase(&self) -> Phase {
        Phase(self.sender.phase.load(Ordering::Acquire))
    }

    pub(crate) fn publish(&self, phase: Phase, record: Record) {
        let slot = &self.records[(phase.0 % LOG) as usize];
        slot.tcp.store(record.tcp, Ordering::Relaxed);
        slot.ring.store(record.ring, Ordering::Relaxed);
        self.sender.phase.store(phase.0, Ordering::Release);
    }

    /// Where a phase begins; only of use for phases that are published and at most [`LOG`] old.
    pub(crate) fn record(&self, phase: Phase) -> Record {
        let slot = &self.records[(phase.0 % LOG) as usize];
        Record { tcp: slot.tcp.load(Ordering::Relaxed), ring: slot.ring.load(Ordering::Relaxed) }
    }

    /// Excludes the receiver while a phase on the ring begins, or bytes are taken back. `false`: it is reading right now.
    pub(crate) fn intend(&self) -> bool {
        self.sender.intent.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.receiver.busy.load(Ordering::Acquire) == 0 {
            return true;
        }
        self.intended();
        false
    }

    pub(crate) fn intended(&self) {
        self.sender.intent.store(0, Ordering::Release);
    }

    /// The sender begins to write to the ring; the answer is what the receiver wants. Call [`Direction::wrote`] after.
    pub fn begin_write(&self) -> Refusal {
        self.writer.busy.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.refusal()
    }

    /// The sender has ended its write.
    pub fn wrote(&self) {
        self.writer.busy.store(0, Ordering::Release);
    }

    /// Whether the sender is within a write. Of use after [`Direction::refuse`].
    pub fn is_writing(&self) -> bool {
        self.writer.busy.load(Ordering::Acquire) != 0
    }

    /// Tells whoever looks how much went over TCP.
    pub fn show_tcp(&self, position: u64) {
        self.sender.tcp.store(position, Ordering::Relaxed);
    }

    /// Bytes on TCP, bells included, as the sender shows them. Not to be trusted.
    pub fn shown_tcp(&self) -> u64 {
        self.sender.tcp.load(Ordering::Relaxed)
    }

    // The receiver's words.

    /// Bytes taken so far.
    pub fn tail(&self) -> u64 {
        self.receiver.tail.load(Ordering::Acquire)
    }

    pub(crate) fn set_tail(&self, tail: u64) {
        self.receiver.tail.store(tail, Ordering::Release);
    }

    /// The phase the receiver is in.
    pub fn seen(&self) -> Phase {
        Phase(self.receiver.seen.load(Ordering::Acquire))
    }

    pub(crate) fn set_seen(&self, phase: Phase) {
        self.receiver.seen.store(phase.0, Ordering::Release);
    }

    /// The receiver begins to read: no phase on the ring begins until [`Direction::leave`]. `false`: the sender has stood between
    /// two stores for very long. `relax` is called between looks.
    pub fn enter(&self, mut relax: impl FnMut()) -> bool {
        self.receiver.busy.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut turns = 0;
        while self.sender.intent.load(Ordering::Acquire) != 0 {
            turns += 1;
            if turns > INTENT_TURNS {
                self.leave();
                return false;
            }
            if turns % 64 == 0 {
                relax();
            } else {
                spin_loop();
            }
        }
        true
    }

    /// The receiver begins to read although the sender stands in a change: it is no more.
    pub fn enter_after_death(&self) {
        self.receiver.busy.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The receiver has ended its read.
    pub fn leave(&self) {
        self.receiver.busy.store(0, Ordering::Release);
    }

    /// What the receiver wants.
    pub fn refusal(&self) -> Refusal {
        match self.both.refuse.load(Ordering::Acquire) {
            0 => Refusal::None,
            1 => Refusal::NoMore,
            _ => Refusal::Recall,
        }
    }

    /// The receiver wants no more bytes on the ring. After this, and once [`Direction::is_writing`] is `false`, the ring
    /// gets none.
    pub fn refuse(&self, refusal: Refusal) {
        let word = match refusal {
            Refusal::None => 0,
            Refusal::NoMore => 1,
            Refusal::Recall => 2,
        };
        self.both.refuse.store(word, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Counts a sleep in the kernel.
    pub fn count_sleep(&self) {
        let sleeps = self.receiver.sleeps.load(Ordering::Relaxed);
        self.receiver.sleeps.store(sleeps.wrapping_add(1), Ordering::Relaxed);
    }

    /// How often the receiver slept. Not to be trusted.
    pub fn sleeps(&self) -> u64 {
        self.receiver.sleeps.load(Ordering::Relaxed)
    }

    // Both.

    pub(crate) fn bell(&self) -> Bell {
        Bell::of(self.both.bell.load(Ordering::Acquire))
    }

    pub(crate) fn reset_bell(&self, bell: Bell) {
        self.both.bell.store(bell.word(), Ordering::Release);
    }

    /// Whether the receiver is on the ring and its bell is rung: a glance, without its lock.
    pub fn seems_unsettled(&self) -> bool {
        self.seen().on_ring() && self.bell().rung
    }

    /// Changes the bell if it still is `from`.
    pub(crate) fn change_bell(&self, from: Bell, to: Bell) -> bool {
        let (from, to) = (from.word(), to.word());
        self.both.bell.compare_exchange(from, to, Ordering::SeqCst, Ordering::Acquire).is_ok()
    }

    // The words of a direction whose other end is far.

    /// The latest phase whose beginning is known to the receiver's side.
    pub fn placed(&self) -> Phase {
        Phase(self.far.placed.load(Ordering::Acquire))
    }

    pub(crate) fn set_placed(&self, phase: Phase) {
        self.far.placed.store(phase.0, Ordering::Release);
        self.announce();
    }

    /// Whether a bell was asked of the other host and its answer is not here.
    pub fn is_asked(&self) -> bool {
        self.far.asked.load(Ordering::SeqCst) != 0
    }

    /// The receiver's side: whoever was asked for a bell is no more, and nobody will answer.
    pub fn give_up_asking(&self) {
        self.set_asked(false);
    }

    pub(crate) fn set_asked(&self, asked: bool) {
        self.far.asked.store(u32::from(asked), Ordering::SeqCst);
        self.announce();
    }

    /// After a refusal: whether what is in the ring is all that comes.
    pub fn is_calm(&self) -> bool {
        self.far.calm.load(Ordering::Acquire) != 0
    }

    pub(crate) fn set_calm(&self) {
        self.far.calm.store(1, Ordering::Release);
        self.announce();
    }

    /// Whether the sender has ended, and all its bytes are in the ring.
    pub fn has_ended(&self) -> bool {
        self.far.ended.load(Ordering::Acquire) != 0
    }

    pub(crate) fn set_ended(&self) {
        self.far.ended.store(1, Ordering::Release);
        self.announce();
    }

    /// The receiver has seen the end of TCP.
    pub fn doubt(&self) {
        self.far.doubts.store(1, Ordering::SeqCst);
    }

    /// Whether it has.
    pub fn doubts(&self) -> bool {
        self.far.doubts.load(Ordering::Acquire) != 0
    }

    /// Tells whoever looks what the sender has chosen.
    pub fn show_preference(&self, preference: Preference) {
        self.far.preference.store(preference as u32, Ordering::Relaxed);
    }

    /// What the sender has chosen, as it shows. Not to be trusted.
    pub fn preference(&self) -> Preference {
        match self.far.preference.load(Ordering::Relaxed) {
            1 => Preference::Faster,
            2 => Preference::Wakes,
            _ => Preference::None,
        }
    }

    /// TCP position behind the last bell of this ring phase.
    pub fn bell_end(&self) -> u64 {
        self.bell().end
    }

    pub(crate) fn announce(&self) {
        self.far.news.fetch_add(1, Ordering::SeqCst);
    }

    /// The futex that goes up with each change that the node makes.
    pub const fn news(&self) -> &AtomicU32 {
        &self.far.news
    }

    /// The program is about to sleep on [`Direction::news`].
    pub fn listen(&self) {
        self.far.listening.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// After a change: whether a program sleeps on [`Direction::news`] and is to be woken now.
    pub fn take_listening(&self) -> bool {
        fence(Ordering::SeqCst);
        self.far.listening.load(Ordering::Relaxed) != 0
            && self.far.listening.swap(0, Ordering::Relaxed) != 0
    }

    /// As [`Direction::enter`], without waiting for the sender.
    pub(crate) fn try_enter(&self) -> bool {
        self.receiver.busy.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let free = self.sender.intent.load(Ordering::Acquire) == 0;
        if !free {
            self.leave();
        }
        free
    }

    /// Whether the sender is within a change of phase.
    pub(crate) fn is_changing(&self) -> bool {
        self.sender.intent.load(Ordering::Acquire) != 0
    }

    /// The futex on which a sender sleeps for room: 1 while it does.
    pub fn waiting(&self) -> &AtomicU32 {
        &self.both.waiting
    }

    /// The futex on which a receiver sleeps whose bell lies in its queue: 1 while it does.
    pub fn dozing(&self) -> &AtomicU32 {
        &self.both.dozing
    }

    /// The receiver is about to sleep on [`Direction::dozing`]. It looks at [`super::Rx::stirs`] once more after this.
    pub fn doze(&self) {
        self.both.dozing.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Whether a receiver seems to doze: a glance, for which [`super::Tx::bell`] was asked before.
    pub fn seems_dozing(&self) -> bool {
        self.both.dozing.load(Ordering::Relaxed) != 0
    }

    /// Something has come or ended: whether a receiver dozes and is to be woken now.
    pub fn take_dozing(&self) -> bool {
        fence(Ordering::SeqCst);
        self.seems_dozing() && self.both.dozing.swap(0, Ordering::Relaxed) != 0
    }

    /// The receiver has made room: whether a sender sleeps and is to be woken now.
    pub fn take_waiting(&self) -> bool {
        fence(Ordering::SeqCst);
        self.both.waiting.load(Ordering::Relaxed) != 0
            && self.both.waiting.swap(0, Ordering::Relaxed) != 0
    }
}

impl Default for Direction {
    fn default() -> Self {
        Self::new()
    }
}
