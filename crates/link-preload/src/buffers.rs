//! The program's buffers: a list of pieces and how far it is done.

use libc::iovec;

/// Pieces that one system call takes; a longer list goes in several.
const PIECES: usize = 64;

/// A list of buffers of the program.
#[derive(Clone, Copy)]
pub(crate) struct Buffers<'a> {
    list: &'a [iovec],
    total: usize,
    done: usize,
}

impl<'a> Buffers<'a> {
    /// # Safety
    /// Each piece is the program's and valid for the call in progress.
    pub(crate) unsafe fn new(list: &'a [iovec]) -> Self {
        let total = list.iter().fold(0, |sum: usize, piece| sum.saturating_add(piece.iov_len));
        Self { list, total, done: 0 }
    }

    pub(crate) const fn done(&self) -> usize {
        self.done
    }

    pub(crate) const fn left(&self) -> usize {
        self.total - self.done
    }

    pub(crate) const fn advance(&mut self, bytes: usize) {
        self.done += bytes;
    }

    /// What is left, at most `limit` bytes, if that is in a single piece as nearly always.
    #[inline]
    pub(crate) fn single(&self, limit: u64) -> Option<iovec> {
        let [piece] = self.list else { return None };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let base = piece.iov_base.cast::<u8>().wrapping_add(self.done);
        Some(iovec { iov_base: base.cast(), iov_len: self.left().min(limit) })
    }

    /// What is left, at most `limit` bytes, as pieces for a system call.
    pub(crate) fn pieces(&self, limit: u64, call: impl FnOnce(&[iovec]) -> isize) -> isize {
        let mut pieces = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; PIECES];
        let mut count = 0;
        let mut limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.walk(|base, len| {
            let len = len.min(limit);
            if count == PIECES || len == 0 {
                return false;
            }
            pieces[count] = iovec { iov_base: base.cast(), iov_len: len };
            count += 1;
            limit -= len;
            true
        });
        call(&pieces[..count])
    }

    fn walk(&self, mut each: impl FnMut(*mut u8, usize) -> bool) {
        let mut skip = self.done;
        for piece in self.list {
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let base = piece.iov_base.cast::<u8>().wrapping_add(skip);
            if !each(base, piece.iov_len - skip) {
                return;
            }
            skip = 0;
        }
    }

    /// Calls `each` with what is left, piece by piece, until it takes less than it is given.
    ///
    /// # Safety
    /// As [`Buffers::new`]; nobody writes to the pieces meanwhile but the program against its own interest.
    pub(crate) unsafe fn each(&self, mut each: impl FnMut(&mut [u8]) -> usize) -> usize {
        let mut sum = 0;
        self.walk(|base, len| {
            // SAFETY: a non-empty buffer of the program, valid by the contract of the call that it made. Senders only
            // read of it.
            let piece = unsafe { core::slice::from_raw_parts_mut(base, len) };
            let taken = each(piece);
            sum += taken;
            taken == len
        });
        sum
    }
}
