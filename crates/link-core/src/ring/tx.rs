//! The sender's side of a direction: what it knows by itself, and its moves.

use super::atomic::{Ordering, fence};
use super::direction::{Bell, LOG, Phase, Record, Refusal};
use super::segment::Pipe;
use super::{Broken, Direction};

/// Turns of waiting for a node that rings.
const RECOVER_TURNS: u32 = 1_000_000;

/// The receiver is reading right now, or too far behind: the phase cannot change at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// What the sender of a direction knows. It lives in memory that only the sender's side can write, under a lock of that
/// side: forked processes that share the socket share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Tx {
    phase: Phase,
    /// TCP position of the next byte.
    tcp: u64,
    /// Ring position of the next byte.
    head: u64,
    /// Ring position up to which the receiver had taken bytes when it was last looked: the line it writes to is touched
    /// only when there seems to be no room.
    taken: u64,
}

impl Tx {
    /// A sender on TCP whose next TCP byte has this position.
    pub const fn new(tcp: u64) -> Self {
        Self { phase: Phase(0), tcp, head: 0, taken: 0 }
    }

    /// Whether bytes go to the ring now.
    pub const fn on_ring(&self) -> bool {
        self.phase.on_ring()
    }

    /// TCP position of the next byte.
    pub const fn tcp(&self) -> u64 {
        self.tcp
    }

    /// Ring position of the next byte.
    pub const fn head(&self) -> u64 {
        self.head
    }

    /// That many bytes were sent on TCP, in a TCP phase.
    pub fn sent(&mut self, dir: &Direction, bytes: u64) {
        debug_assert!(!self.on_ring());
        self.tcp += bytes;
        dir.show_tcp(self.tcp);
    }

    /// Room in the ring, bytes.
    ///
    /// # Errors
    /// The receiver's index cannot be.
    pub fn room(&self, pipe: Pipe<'_>) -> Result<usize, Broken> {
        let used = self.head.wrapping_sub(pipe.direction().tail());
        let capacity = pipe.capacity();
        usize::try_from(used).ok().and_then(|used| capacity.checked_sub(used)).ok_or(Broken::Index)
    }

    /// Whether the receiver is in the phase that the sender is in.
    pub fn is_seen(&self, dir: &Direction) -> bool {
        dir.seen() == self.phase
    }

    /// Whether the receiver has taken all that was sent, on both paths.
    pub fn all_taken(&self, dir: &Direction) -> bool {
        self.on_ring() && self.is_seen(dir) && dir.tail() == self.head
    }

    /// Whether something of what went into the ring was not taken, as far as known here.
    pub fn has_unread(&self, dir: &Direction) -> bool {
        dir.tail() != self.head
    }

    /// From TCP to the ring; the next byte of the direction is the next byte of the ring.
    ///
    /// # Errors
    /// [`Busy`]: stay on TCP, and try with a later byte.
    pub fn to_ring(&mut self, dir: &Direction) -> Result<(), Busy> {
        debug_assert!(!self.on_ring());
        // Two places are kept free: this phase's, and the one that leads back to TCP, which must never have to wait.
        if self.phase.since(dir.seen()) > LOG - 3 || !dir.intend() {
            return Err(Busy);
        }
        // After the fence in `intend`: a receiver that has refused and then entered sees this phase, or we see its refusal.
        if dir.refusal() != Refusal::None {
            dir.intended();
            return Err(Busy);
        }
        let next = self.phase.next();
        dir.reset_bell(Bell { end: self.tcp, rung: false });
        dir.publish(next, Record { tcp: self.tcp, ring: self.head });
        self.phase = next;
        dir.intended();
        Ok(())
    }

    /// From the ring to TCP; the next byte of the direction is the next byte of TCP. Not where the other end is far: see
    /// [`Tx::leave_far`]. Nobody is waited for, not even a receiver that was stopped while it reads: see
    /// [`Direction::enter`].
    pub fn to_tcp(&mut self, dir: &Direction) {
        debug_assert!(self.on_ring());
        // More than this side knows of only where there was a node that rang.
        self.tcp = self.tcp.max(dir.bell().end);
        self.change(dir, self.head);
    }

    /// Whether the beginning of this phase is known at the other host. Before that, TCP must carry nothing: its bytes could be
    /// taken for those of the phase before.
    pub fn is_placed(&self, dir: &Direction) -> bool {
        dir.placed() == self.phase
    }

    /// From the ring to TCP where the other end is far. The last bell of a ring phase is this side's: `bell` sends one byte
    /// on TCP and says whether it went out. Without it a receiver that sleeps would not learn of bytes whose bell the node
    /// cannot send any more.
    ///
    /// # Errors
    /// [`Busy`]: the node rings right now, the beginning of the phase is not placed ([`Tx::is_placed`]), or `bell` failed.
    pub fn leave_far(&mut self, dir: &Direction, bell: impl FnOnce() -> bool) -> Result<(), Busy> {
        debug_assert!(self.on_ring());
        if !self.is_placed(dir) || !dir.intend() {
            return Err(Busy);
        }
        // A receiver that has refused does not sleep for the ring, and may not know bells any more.
        let rings = dir.refusal() == Refusal::None;
        if rings && !bell() {
            dir.intended();
            return Err(Busy);
        }
        // The node has counted its bells here; none can come while we intend.
        self.tcp = self.tcp.max(dir.bell().end) + u64::from(rings);
        self.change(dir, self.head);
        dir.show_tcp(self.tcp);
        dir.intended();
        Ok(())
    }

    fn change(&mut self, dir: &Direction, ring: u64) {
        let next = self.phase.next();
        dir.publish(next, Record { tcp: self.tcp, ring });
        self.phase = next;
        self.head = ring;
        dir.set_head(ring);
    }

    /// From the ring to TCP, taking back what the receiver has not read: the ring's bytes from `ring` on are to be sent
    /// again on TCP. Only when the receiver asked for it ([`Refusal::Recall`]), for then it reads no more, and when it is in
    /// this phase ([`Tx::is_seen`]), for bytes of earlier ones would come twice.
    ///
    /// # Errors
    /// [`Busy`]: the receiver is in its critical section, which is short; or, where the other end is far, the node rings.
    pub fn back_to_tcp(&mut self, dir: &Direction, ring: u64) -> Result<(), Busy> {
        debug_assert!(self.on_ring());
        if !dir.intend() {
            return Err(Busy);
        }
        // Where the other end is far, bells are the node's.
        self.tcp = self.tcp.max(dir.bell().end);
        self.change(dir, ring);
        dir.intended();
        Ok(())
    }

    /// Copies bytes into the ring and publishes them: how many fitted. Ask [`Tx::bell`] after.
    ///
    /// # Errors
    /// [`Broken::Index`].
    pub fn write(&mut self, pipe: Pipe<'_>, bytes: &[u8]) -> Result<usize, Broken> {
        debug_assert!(self.on_ring());
        let known = pipe.capacity() as u64 - self.head.wrapping_sub(self.taken);
        let room =
            if known >= bytes.len() as u64 { bytes.len() } else { self.look_for_room(pipe)? };
        let count = bytes.len().min(room);
        if count > 0 {
            pipe.put(self.head, &bytes[..count]);
            self.head += count as u64;
            pipe.direction().set_head(self.head);
        }
        Ok(count)
    }

    fn look_for_room(&mut self, pipe: Pipe<'_>) -> Result<usize, Broken> {
        let room = self.room(pipe)?;
        self.taken = self.head.wrapping_sub((pipe.capacity() - room) as u64);
        Ok(room)
    }

    /// One more byte, without copying any: models have indices only.
    #[cfg(loom)]
    pub(crate) fn publish_for_model(&mut self, dir: &Direction) {
        self.head += 1;
        dir.set_head(self.head);
    }

    /// Whether a bell must be sent now, one byte on TCP. If so it counts as sent.
    ///
    /// # Errors
    /// The receiver wrote a bell that cannot be.
    pub fn bell(&mut self, dir: &Direction) -> Result<bool, Broken> {
        debug_assert!(self.on_ring());
        fence(Ordering::SeqCst);
        let bell = dir.bell();
        if bell.end != self.tcp {
            return Err(Broken::Index);
        }
        if bell.rung || !dir.change_bell(bell, Bell { end: self.tcp + 1, rung: true }) {
            // Only the receiver could have changed it meanwhile, from armed to rung: it has seen the bytes.
            return Ok(false);
        }
        self.tcp += 1;
        dir.show_tcp(self.tcp);
        Ok(true)
    }

    /// Mends what a process left that died within a move: `tcp` is the kernel's word for the position of the next TCP
    /// byte. Answers whether a bell must be sent (it was announced and did not go out).
    ///
    /// # Errors
    /// [`Broken::Foreign`] if the kernel's word fits neither the state before nor that after the move.
    pub fn recover(&mut self, pipe: Pipe<'_>, tcp: u64) -> Result<bool, Broken> {
        let dir = pipe.direction();
        dir.intended();
        dir.wrote();
        self.phase = dir.phase();
        self.head = dir.head();
        self.look_for_room(pipe)?;
        if !self.on_ring() {
            self.tcp = tcp;
            return Ok(false);
        }
        let end = dir.bell().end;
        if pipe.is_far() {
            return self.recover_far(dir, tcp);
        }
        let missing = end.checked_sub(tcp).filter(|missing| *missing <= 1);
        self.tcp = end;
        missing.map(|missing| missing == 1).ok_or(Broken::Foreign)
    }

    /// The last bell of the phase may have gone out without its change of phase. Others are the node's.
    fn recover_far(&mut self, dir: &Direction, tcp: u64) -> Result<bool, Broken> {
        // The node rings within a few microseconds; if it is no more, neither is the connection.
        if !(0..RECOVER_TURNS).any(|_| dir.intend()) {
            return Err(Broken::Foreign);
        }
        let end = dir.bell().end;
        let answer = match tcp.checked_sub(end) {
            Some(0) => Ok(false),
            Some(1) => {
                dir.reset_bell(Bell { end: tcp, rung: true });
                Ok(false)
            }
            _ => Err(Broken::Foreign),
        };
        self.tcp = tcp;
        dir.intended();
        answer
    }
}
