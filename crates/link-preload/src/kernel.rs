//! What the kernel knows of a connection.

use crate::{real, sys};
use core::sync::atomic::{AtomicU32, Ordering};
use libc::c_int;

/// Established, in the kernel's numbering.
pub(crate) const ESTABLISHED: u8 = 1;

/// Parts of `struct tcp_info` (linux/tcp.h; fields are only ever appended to it).
#[derive(Clone, Copy)]
pub(crate) struct TcpInfo {
    pub(crate) state: u8,
    options: u8,
    /// Bytes that the peer has acknowledged; its answer to our SYN counts as one.
    pub(crate) acknowledged: u64,
    received: u64,
    unsent: u64,
}

/// What is read of the structure. `tcpi_bytes_sent` behind that is no position: what the interface's own queue drops
/// counts twice.
const LEN: usize = 148;
/// `TCPI_OPT_SYN_DATA`: there were bytes in the SYN, and the counters do not tell how many were taken.
const OPTION_SYN_DATA: u8 = 32;

/// Asks the kernel. `None`: no TCP socket, or an older kernel.
pub(crate) fn tcp_info(fd: c_int) -> Option<TcpInfo> {
    #[derive(Clone, Copy)]
    #[repr(C, align(4))]
    struct Raw([u8; LEN]);
    let mut raw = Raw([0; LEN]);
    if sys::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut raw) < 0 {
        return None;
    }
    let word32 = |at: usize| {
        u64::from(u32::from_ne_bytes([raw.0[at], raw.0[at + 1], raw.0[at + 2], raw.0[at + 3]]))
    };
    let word64 = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&raw.0[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    Some(TcpInfo {
        state: raw.0[0],
        options: raw.0[5],
        acknowledged: word64(120),
        received: word64(128),
        unsent: word32(144),
    })
}

impl TcpInfo {
    /// Whether all that was written has gone out at least once.
    pub(crate) const fn is_sent(&self) -> bool {
        self.unsent == 0
    }

    /// Whether the counters can be trusted as positions.
    pub(crate) const fn counts(&self) -> bool {
        self.state == ESTABLISHED && self.options & OPTION_SYN_DATA == 0
    }
}

/// Which end made a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opener {
    /// This one, by `connect`.
    Us,
    /// The peer.
    Peer,
}

/// States after our FIN: FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING.
const AFTER_OUR_FIN: [u8; 5] = [4, 5, 6, 9, 11];

/// What the kernel knows, and the position of the next byte that is written, counted from the connection's first: what has been
/// acknowledged and what waits for that. The caller holds the sender's lock; acknowledgements may come meanwhile.
pub(crate) fn write_position(fd: c_int, opener: Opener) -> Option<(TcpInfo, u64)> {
    for _ in 0..16 {
        let before = tcp_info(fd)?;
        let waiting = u64::try_from(sys::unacknowledged(fd)).ok()?;
        let after = tcp_info(fd)?;
        if before.acknowledged == after.acknowledged {
            // SYN and FIN are counted like bytes.
            let syn = u64::from(opener == Opener::Us);
            let fin = u64::from(AFTER_OUR_FIN.contains(&after.state));
            return Some((after, (after.acknowledged + waiting).checked_sub(syn + fin)?));
        }
    }
    None
}

/// Positions of the next byte to be written and to be read, counted from the connection's first. The caller holds both
/// locks, so that nobody of ours reads or writes; the peer may send meanwhile.
pub(crate) fn positions(fd: c_int, opener: Opener) -> Option<(u64, u64)> {
    let (_, written) = write_position(fd, opener)?;
    for _ in 0..16 {
        let before = tcp_info(fd)?;
        let queued = u64::try_from(sys::queued(fd)).ok()?;
        let after = tcp_info(fd)?;
        if !after.counts() {
            return None;
        }
        if before.received == after.received {
            return Some((written, after.received.checked_sub(queued)?));
        }
    }
    None
}

/// States after the peer's FIN, which is counted like a byte: TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING.
const AFTER_FIN: [u8; 4] = [6, 8, 9, 11];
const CLOSED: u8 = 7;

/// Whether the peer has ended its direction, or the connection is no more.
pub(crate) fn has_ended(fd: c_int) -> bool {
    tcp_info(fd).is_none_or(|info| info.state == CLOSED || AFTER_FIN.contains(&info.state))
}

/// Position of the next byte to be read, whatever the connection's state. `None`: the kernel does not know any more.
pub(crate) fn read_position(fd: c_int) -> Option<u64> {
    for _ in 0..16 {
        let before = tcp_info(fd)?;
        let queued = u64::try_from(sys::queued(fd)).ok()?;
        let after = tcp_info(fd)?;
        if after.state == CLOSED {
            return None;
        }
        if before.received == after.received && before.state == after.state {
            let end = u64::from(AFTER_FIN.contains(&after.state));
            return after.received.checked_sub(queued + end);
        }
    }
    None
}

/// Whether a call on it may block now.
pub(crate) fn blocks(fd: c_int, flags: c_int) -> bool {
    if flags & libc::MSG_DONTWAIT != 0 {
        return false;
    }
    let status = sys::fcntl(fd, libc::F_GETFL, 0);
    status < 0 || status as c_int & libc::O_NONBLOCK == 0
}

/// What the process's handlers of signals want of the calls that they interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Handlers {
    /// That they go on; or there are none.
    GoOn = 1,
    /// That they end with EINTR.
    End = 2,
    /// Some this, some that.
    Mixed = 3,
}

/// What was found last, in the lowest two bits (0: not known), and above them how often handlers have changed.
static HANDLERS: AtomicU32 = AtomicU32::new(0);
const FOUND: u32 = 3;

/// Some handler may have changed.
pub(crate) fn forget_handlers() {
    let _ = HANDLERS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
        Some((word & !FOUND).wrapping_add(FOUND + 1))
    });
}

/// Looks up what the handlers want; from memory while none has changed.
pub(crate) fn handlers() -> Handlers {
    let word = HANDLERS.load(Ordering::Acquire);
    match word & FOUND {
        1 => Handlers::GoOn,
        2 => Handlers::End,
        3 => Handlers::Mixed,
        _ => look_up_handlers(word),
    }
}

#[cold]
fn look_up_handlers(word: u32) -> Handlers {
    let (mut go_on, mut end) = (false, false);
    for signal in 1..=64 {
        // SAFETY: all-zero is a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        // SAFETY: only reads the disposition.
        let known = unsafe { real::sigaction(signal, core::ptr::null(), &raw mut action) } == 0;
        if known && action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN {
            *if action.sa_flags & libc::SA_RESTART == 0 { &mut end } else { &mut go_on } = true;
        }
    }
    let found = match (go_on, end) {
        (true, true) => Handlers::Mixed,
        (false, true) => Handlers::End,
        (_, false) => Handlers::GoOn,
    };
    // Not if one has changed meanwhile.
    let known = word | found as u32;
    let _ = HANDLERS.compare_exchange(word, known, Ordering::SeqCst, Ordering::Relaxed);
    found
}

/// Whether some signal's handler wants calls to end with EINTR rather than go on: of use when a call of ours that the
/// kernel would restart was interrupted. Which signal it was, nobody tells.
pub(crate) fn wants_eintr() -> bool {
    handlers() != Handlers::GoOn
}

/// A timeout of a socket (`SO_RCVTIMEO` or `SO_SNDTIMEO`), milliseconds; `None`: none.
pub(crate) fn timeout_ms(fd: c_int, name: c_int) -> Option<u64> {
    let mut time = [0i64; 2];
    if sys::get_option(fd, libc::SOL_SOCKET, name, &mut time) < 0 || time == [0, 0] {
        return None;
    }
    u64::try_from(time[0].saturating_mul(1000) + time[1] / 1000).ok()
}

/// Cuts the connection: the peer gets a reset, every further call here an error.
pub(crate) fn cut(fd: c_int) {
    // SAFETY: all-zero is a valid address of family AF_UNSPEC, which dissolves the connection.
    let address: libc::sockaddr = unsafe { core::mem::zeroed() };
    // SAFETY: points at 16 bytes.
    unsafe { sys::connect(fd, &raw const address, 16) };
}
