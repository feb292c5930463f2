//! A call within the receiver's critical section: what it reads, and from where.

use super::{Part, Quiet, is_end};
use crate::buffers::Buffers;
use crate::conn::Conn;
use crate::{far, settle, sys};
use core::sync::atomic::Ordering;
use libc::c_int;
use skein_link_core::ring::{Broken, Direction, Next, Pipe, Reason, Rx, Segment};

/// A call within the receiver's critical section.
pub(super) struct Call<'a> {
    pub(super) conn: &'a Conn,
    pub(super) fd: c_int,
    pub(super) segment: &'a Segment,
    pub(super) rx: &'a mut Rx,
    pub(super) pipe: Pipe<'a>,
}

impl<'a> Call<'a> {
    pub(super) fn dir(&self) -> &'a Direction {
        self.pipe.direction()
    }

    pub(super) fn read(
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
    pub(super) fn may_stop(&mut self) -> Result<bool, Broken> {
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

    pub(super) fn copy_out(&self, rx: &Rx, buffers: &Buffers<'_>, flags: c_int, count: usize) {
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
    pub(super) fn tcp(
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
}

/// Receives from TCP without waiting.
pub(super) fn tcp(fd: c_int, buffers: &Buffers<'_>, flags: c_int, limit: u64) -> Part {
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
