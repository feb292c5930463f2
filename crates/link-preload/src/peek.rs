//! Looking at bytes of TCP that lie behind others.

use crate::buffers::Buffers;
use crate::sys;
use libc::c_int;

/// So much of a socket's queue is looked at, bytes, where not all of it is to be shown.
const PEEK_MOST: usize = 4096;

/// Shows at most `limit` bytes of the socket's queue that lie behind `skip` others; how many.
pub(crate) fn behind(fd: c_int, skip: u64, rest: &Buffers<'_>, flags: c_int, limit: u64) -> usize {
    let mut seen = [0u8; PEEK_MOST];
    let Ok(skip) = usize::try_from(skip) else { return 0 };
    let most = usize::try_from(limit).unwrap_or(usize::MAX).min(rest.left());
    let most = most.saturating_add(skip).min(PEEK_MOST);
    let count = sys::recv(fd, &mut seen[..most], libc::MSG_PEEK);
    let Some(mut shown) = usize::try_from(count).ok().and_then(|count| seen.get(skip..count))
    else {
        return 0;
    };
    let count = shown.len();
    if flags & libc::MSG_TRUNC == 0 {
        // SAFETY: the program's buffers, in the call that it made with them.
        unsafe {
            rest.each(|piece| {
                let (now, later) = shown.split_at(piece.len().min(shown.len()));
                piece[..now.len()].copy_from_slice(now);
                shown = later;
                now.len()
            });
        }
    }
    count
}
