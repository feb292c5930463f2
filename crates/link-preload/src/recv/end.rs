//! What the kernel and the other host have to say where the ring is empty: the end, perhaps, or that more is on its way.

use super::Part;
use super::call::Call;
use crate::{far, kernel, leave, sys};
use core::sync::atomic::Ordering;
use libc::c_int;
use skein_link_core::ring::{Behind, Broken, Hello, Reason};

impl Call<'_> {
    /// TCP has ended. Whether the other host may have bytes on the ring that were sent before that.
    pub(super) fn may_hold_more(&self) -> bool {
        self.pipe.is_far()
            && !self.dir().has_ended()
            && self.segment.header().behind() != Behind::Nobody
            && kernel::has_ended(self.fd)
    }

    /// Waits until the other host has said that no more comes, or something comes. `None`: look again.
    pub(super) fn hear_end(&mut self, error: c_int) -> Result<Option<Part>, Broken> {
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
    pub(super) fn hold(&mut self, otherwise: Reason, said: impl Fn() -> bool) -> Option<Part> {
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
    pub(super) fn quiet(&mut self) -> Result<Option<Part>, Broken> {
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
    pub(super) fn explain(&mut self, present: u64) -> Result<Option<Part>, Broken> {
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
    pub(super) fn end(&self) -> Part {
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
    pub(super) fn ended(&self, error: c_int) -> Part {
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
}
