//! Leaving the ring in the direction towards this side.

use super::call::Call;
use crate::conn::Conn;
use crate::sys;
use libc::c_int;
use skein_link_core::ring::{Broken, Next, Refusal};

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
    dir.refuse(if recall { Refusal::Recall } else { Refusal::NoMore });
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
