//! From TCP towards the ring: asking the broker, and agreeing with the peer in the segment.
//!
//! ```text
//!  Candidate ──8 calls or 16 KiB, broker answers with a segment──▶ Pending ──the peer has mapped it too──▶ Counting
//!      └──────────────── broker says never ───────────────────────────┴──▶ Never
//! ```
//! Nothing here waits for the peer: each step is taken in some later call of the program, or never.

use crate::conn::{self, Conn};
use crate::kernel::{self, Opener};
use crate::side::{Side, Stage};
use crate::{far, leave, send, spin, sys};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use libc::{c_int, socklen_t};
use skein_link_core::negotiate::{Answer, Ask, MESSAGE_LEN};
use skein_link_core::ring::{
    CAPACITY_MAX, CAPACITY_MIN, Hello, Reason, Refusal, Rx, Segment, Tx, segment_len,
};

/// When a connection has shown that it is more than one question and one answer: calls, or bytes.
const ENOUGH: (u32, u64) = (8, 16 << 10);
/// How long the broker may take, milliseconds. It answers from memory; a process that waits longer than this for its
/// turn is on a host that has no time for links.
const BROKER_MS: u32 = 100;
/// After a failure, the whole process leaves the broker alone for that long, nanoseconds.
const BROKER_REST_NS: u64 = 1_000_000_000;
/// After "later", that long, nanoseconds.
const LATER_NS: u64 = 100_000_000;

/// The broker's address; empty: no broker, nothing is accelerated.
struct Address {
    address: UnsafeCell<libc::sockaddr_un>,
    len: AtomicU32,
}

// SAFETY: written once, before `len` is set; read only after `len` is seen set.
unsafe impl Sync for Address {}

static BROKER: Address = Address {
    // SAFETY: all-zero is a valid address.
    address: UnsafeCell::new(unsafe { core::mem::zeroed() }),
    len: AtomicU32::new(0),
};
static REST_UNTIL: AtomicU64 = AtomicU64::new(0);

/// Sets the broker's path. Called once, when the library is loaded.
pub(crate) fn set_broker(path: &[u8]) {
    // SAFETY: nobody reads before `len` is set.
    let address = unsafe { &mut *BROKER.address.get() };
    if path.is_empty() || path.len() >= address.sun_path.len() {
        return;
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (place, byte) in address.sun_path.iter_mut().zip(path) {
        *place = *byte as libc::c_char;
    }
    let len = core::mem::offset_of!(libc::sockaddr_un, sun_path) + path.len() + 1;
    BROKER.len.store(len as u32, Ordering::Release);
}

/// A socket is connected, or about to be: takes note of it if it is TCP.
pub(crate) fn track(fd: c_int, opener: Opener) {
    if BROKER.len.load(Ordering::Relaxed) == 0 || leave::is_frozen() || conn::is_ours(fd) {
        return;
    }
    let mut protocol: c_int = 0;
    let known = sys::get_option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL, &mut protocol) >= 0;
    if known && protocol == libc::IPPROTO_TCP && conn::add(fd, spin::START.load(Ordering::Relaxed))
    {
        let status = sys::fcntl(fd, libc::F_GETFL, 0);
        if let Some(held) = conn::get(fd) {
            held.side().set_opener(opener);
            if status >= 0 {
                held.set_nonblocking(status as c_int & libc::O_NONBLOCK != 0);
            }
        }
    }
}

/// The way onwards, at the beginning of each call.
#[inline]
pub(crate) fn advance(conn: &Conn, fd: c_int, bytes: usize) {
    match conn.side().stage() {
        Stage::Counting => {
            if let Some(segment) = conn.segment() {
                let (out, _) = conn.pipes(&segment);
                if out.direction().refusal() == Refusal::Recall {
                    send::onto_tcp(conn, fd);
                }
            }
        }
        Stage::Never => {}
        Stage::Candidate => {
            if conn.side().count(bytes, ENOUGH) {
                candidate(conn, fd);
            }
        }
        Stage::Pending => pending(conn, fd),
    }
}

#[cold]
fn candidate(conn: &Conn, fd: c_int) {
    let side = conn.side();
    let now = sys::nanos();
    // Processes that share the socket would need the segment too; once it is mapped, later ones inherit it.
    if side.processes.load(Ordering::Acquire) != 1
        || now < side.ask_at.load(Ordering::Relaxed)
        || now < REST_UNTIL.load(Ordering::Relaxed)
        || leave::is_frozen()
    {
        return;
    }
    let (Ok(_receiver), Ok(_sender)) = (side.try_receiver(), side.try_sender()) else {
        return;
    };
    if side.stage() != Stage::Candidate {
        return;
    }
    if !is_suitable(fd) {
        side.set_stage(Stage::Never);
        return;
    }
    match ask(fd) {
        Some((Answer::Segment(role), Some((base, len)))) => {
            // SAFETY: just mapped with this length, and unmapped with the connection.
            match unsafe { Segment::open(base, len) } {
                Ok(segment) => {
                    side.set_receive_timeout(kernel::timeout_ms(fd, libc::SO_RCVTIMEO));
                    conn.set_segment(segment, role);
                    segment.header().set_mapped_at(role, sys::nanos());
                    segment.header().set_hello(role, Hello::Mapped);
                    side.set_stage(Stage::Pending);
                }
                Err(_) => {
                    // SAFETY: just mapped, used by nobody.
                    unsafe { sys::unmap(base.as_ptr(), len) };
                    side.set_stage(Stage::Never);
                }
            }
        }
        Some((Answer::Never | Answer::Segment(_), _)) => side.set_stage(Stage::Never),
        Some((Answer::Later, _)) => side.ask_at.store(now + LATER_NS, Ordering::Relaxed),
        None => REST_UNTIL.store(now + BROKER_REST_NS, Ordering::Relaxed),
    }
}

/// Whether the socket is set up in a way that the ring can honour.
fn is_suitable(fd: c_int) -> bool {
    let is = |name: c_int, wanted: fn(c_int) -> bool| {
        let mut value: c_int = 0;
        sys::get_option(fd, libc::SOL_SOCKET, name, &mut value) < 0 || wanted(value)
    };
    is(libc::SO_RCVLOWAT, |value| value <= 1)
        && is(libc::SO_OOBINLINE, |value| value == 0)
        && is(libc::SO_ZEROCOPY, |value| value == 0)
}

/// The broker's answer, and the memory that came along, mapped.
type Answered = (Answer, Option<(NonNull<u8>, usize)>);

/// Sends the socket to the broker and takes its answer. `None`: no broker, or it does not answer.
fn ask(fd: c_int) -> Option<Answered> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    let sock = c_int::try_from(sys::socket(libc::AF_UNIX, kind)).ok().filter(|sock| *sock >= 0)?;
    sys::set_timeouts(sock, BROKER_MS);
    let address: *const libc::sockaddr = BROKER.address.get().cast();
    let len: socklen_t = BROKER.len.load(Ordering::Acquire);
    // SAFETY: a static address of that length.
    let connected = unsafe { sys::connect(sock, address, len) } == 0;
    let answer = if connected && send_ask(sock, fd) { receive_answer(sock) } else { None };
    sys::close(sock);
    answer
}

/// Room for the control message with one descriptor.
#[repr(C, align(8))]
struct Control([u8; 24]);

fn send_ask(sock: c_int, fd: c_int) -> bool {
    // SAFETY: no pointers.
    let pid = unsafe { libc::getpid() };
    let mut bytes = Ask { pid: pid as u32, fd: fd as u32 }.encode();
    let piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let pieces = [piece];
    let mut message = sys::header(&pieces);
    let mut control = Control([0; 24]);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = 24;
    // A header of 16 bytes (length, level, type) and an int, on every 64-bit Linux.
    control.0[..8].copy_from_slice(&20usize.to_ne_bytes());
    control.0[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.0[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    control.0[16..20].copy_from_slice(&fd.to_ne_bytes());
    sys::sendmsg(sock, &message, libc::MSG_NOSIGNAL) == MESSAGE_LEN as isize
}

fn receive_answer(sock: c_int) -> Option<Answered> {
    let mut bytes = [0u8; MESSAGE_LEN];
    let piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let pieces = [piece];
    let mut message = sys::header(&pieces);
    let mut control = Control([0; 24]);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = 24;
    let received = sys::recvmsg(sock, &mut message, libc::MSG_CMSG_CLOEXEC);
    if received <= 0 {
        return None;
    }
    let file = passed_file(&control, message.msg_controllen);
    let answer = Answer::decode(&bytes).ok();
    let mapped = file.and_then(|file| {
        let mapped = map(file);
        sys::close(file);
        mapped
    });
    Some((answer?, mapped))
}

fn passed_file(control: &Control, len: usize) -> Option<c_int> {
    let word = |at: usize| {
        c_int::from_ne_bytes([
            control.0[at],
            control.0[at + 1],
            control.0[at + 2],
            control.0[at + 3],
        ])
    };
    (len >= 20 && word(8) == libc::SOL_SOCKET && word(12) == libc::SCM_RIGHTS).then(|| word(16))
}

/// Maps a memory file that nobody can shrink under us.
fn map(file: c_int) -> Option<(NonNull<u8>, usize)> {
    let seals = c_int::try_from(sys::fcntl(file, libc::F_GET_SEALS, 0)).ok()?;
    let wanted = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    let len = usize::try_from(sys::size(file)).ok()?;
    let fits = (segment_len(CAPACITY_MIN)..=segment_len(CAPACITY_MAX)).contains(&len);
    if seals < 0 || seals & wanted != wanted || !fits {
        return None;
    }
    Some((NonNull::new(sys::map(file, len))?, len))
}

/// Counts from now on, if the peer is there.
fn pending(conn: &Conn, fd: c_int) {
    let Some(segment) = conn.segment() else { return };
    let peer = segment.header().hello(conn.role().other());
    match peer {
        Hello::None => {}
        Hello::Mapped | Hello::Confirmed => confirm(conn, fd, &segment),
        Hello::Gone | Hello::Absent => conn.side().set_stage(Stage::Never),
    }
}

/// Whether a socket with this `SO_LINGER` ends with a reset: on, for no time at all.
pub(crate) const fn resets(linger: [c_int; 2]) -> bool {
    linger[0] != 0 && linger[1] == 0
}

#[cold]
fn confirm(conn: &Conn, fd: c_int, segment: &Segment) {
    let side: &Side = conn.side();
    let (Ok(mut rx), Ok(mut sender)) = (side.try_receiver(), side.try_sender()) else {
        return;
    };
    if side.stage() != Stage::Pending {
        return;
    }
    if !is_suitable(fd) {
        side.set_stage(Stage::Never);
        segment.header().leave(conn.role(), Reason::Option);
        segment.header().set_hello(conn.role(), Hello::Gone);
        return;
    }
    let Some((written, read)) = kernel::positions(fd, side.opener()) else {
        return;
    };
    sender.tx = Tx::new(written);
    *rx = Rx::new(read);
    for (name, value, kernel) in
        [(libc::TCP_NODELAY, &side.nodelay, 1), (libc::TCP_CORK, &side.cork, 0)]
    {
        let mut wanted: c_int = 0;
        sys::get_option(fd, libc::IPPROTO_TCP, name, &mut wanted);
        value.store(wanted, Ordering::Relaxed);
        // A bell must go out at once.
        sys::set_option(fd, libc::IPPROTO_TCP, name, kernel);
    }
    let mut linger = [0; 2];
    let known = sys::get_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, &mut linger) >= 0;
    segment.header().set_resets(conn.role(), known && resets(linger));
    side.set_stage(Stage::Counting);
    segment.header().set_hello(conn.role(), Hello::Confirmed);
    far::call(segment);
}
