//! A stream's bytes between two places, in a ring that grows up to a bound.

use alloc::vec;
use alloc::vec::Vec;

/// The first allocation: a stream that only carries requests never takes more.
const CAPACITY_MIN: usize = 16 * 1024;

/// Bytes of a stream from place `base` on. Places below `base` are gone; writing ahead of what is there is allowed, and
/// who writes keeps the books on which places are filled.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    base: u64,
}

impl Buffer {
    /// An empty buffer whose first byte is at `base`. It uses the memory of `spare`, which a buffer gave back, or is
    /// empty.
    pub(crate) fn at(base: u64, spare: Vec<u8>) -> Self {
        Self { bytes: spare, base }
    }

    /// Its memory, for another one.
    pub(crate) fn into_spare(self) -> Vec<u8> {
        self.bytes
    }

    /// Makes room for places below `end`.
    fn reserve(&mut self, end: u64) {
        let wanted = (end - self.base) as usize;
        if wanted <= self.bytes.len() {
            return;
        }
        let mut larger = vec![0; wanted.next_power_of_two().max(CAPACITY_MIN)];
        let kept = self.bytes.len();
        if kept > 0 {
            // The new length is a multiple of the old one, so neither piece wraps in the new ring.
            let (first, second) = self.slices(self.base, kept);
            let start = self.base as usize & (larger.len() - 1);
            larger[start..start + first.len()].copy_from_slice(first);
            let after = (start + first.len()) & (larger.len() - 1);
            larger[after..after + second.len()].copy_from_slice(second);
        }
        self.bytes = larger;
    }

    /// Writes `bytes` at `place`, which is not below the base.
    pub(crate) fn put(&mut self, place: u64, bytes: &[u8]) {
        self.reserve(place + bytes.len() as u64);
        let start = place as usize & (self.bytes.len() - 1);
        let fits = (self.bytes.len() - start).min(bytes.len());
        self.bytes[start..start + fits].copy_from_slice(&bytes[..fits]);
        self.bytes[..bytes.len() - fits].copy_from_slice(&bytes[fits..]);
    }

    /// The `length` bytes at `place`, in two pieces. They were written before.
    pub(crate) fn slices(&self, place: u64, length: usize) -> (&[u8], &[u8]) {
        if length == 0 {
            return (&[], &[]);
        }
        let start = place as usize & (self.bytes.len() - 1);
        let fits = (self.bytes.len() - start).min(length);
        (&self.bytes[start..start + fits], &self.bytes[..length - fits])
    }

    /// Forgets what is below `base`.
    pub(crate) fn advance(&mut self, base: u64) {
        self.base = self.base.max(base);
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_what_was_put(
            base in 0_u64..1 << 40,
            pieces in proptest::collection::vec((1_usize..40_000, 0_usize..40_000), 1..30),
        ) {
            let mut buffer = Buffer::at(base, Vec::new());
            let (mut end, mut model) = (base, std::collections::VecDeque::<u8>::new());
            for (length, consumed) in pieces {
                let bytes: Vec<u8> = (0..length).map(|i| (end + i as u64).wrapping_mul(31) as u8).collect();
                buffer.put(end, &bytes);
                end += length as u64;
                model.extend(bytes);
                let consumed = consumed.min(model.len());
                let (first, second) = buffer.slices(buffer.base(), consumed);
                let expect: Vec<u8> = model.drain(..consumed).collect();
                prop_assert!([first, second].concat() == expect);
                buffer.advance(buffer.base() + consumed as u64);
            }
        }
    }
}
