//! The last bytes of a stream, addressed by their position in the whole stream.

use std::collections::VecDeque;

/// Keeps the last `bytes_max` bytes that were pushed. Grows as it fills, so an idle machine costs
/// little.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    bytes_max: usize,
    /// Position of the first byte kept.
    start: u64,
}

impl Ring {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes: VecDeque::new(), bytes_max, start: 0 }
    }

    /// Position after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(crate) fn push(&mut self, piece: &[u8]) {
        let keep = &piece[piece.len().saturating_sub(self.bytes_max)..];
        let surplus = (self.bytes.len() + keep.len()).saturating_sub(self.bytes_max);
        self.bytes.drain(..surplus);
        self.start += (surplus + piece.len() - keep.len()) as u64;
        self.bytes.extend(keep);
    }

    /// Up to `bytes_max` bytes from `position` on, and the position they really begin at: later
    /// than asked when what was asked for is gone.
    pub(crate) fn read(&self, position: u64, bytes_max: usize) -> (u64, Vec<u8>) {
        let from = position.clamp(self.start, self.end());
        let skip = usize::try_from(from - self.start).unwrap_or(usize::MAX);
        (from, self.bytes.iter().skip(skip).take(bytes_max).copied().collect())
    }

    /// The last `bytes_max` bytes.
    pub(crate) fn tail(&self, bytes_max: usize) -> Vec<u8> {
        self.read(self.end().saturating_sub(bytes_max as u64), bytes_max).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_the_end_of_the_stream(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
            position in 0u64..500, most in 0usize..50,
        ) {
            let mut ring = Ring::new(32);
            let mut all = Vec::new();
            for piece in &pieces {
                ring.push(piece);
                all.extend_from_slice(piece);
            }
            prop_assert_eq!(ring.end(), all.len() as u64);
            prop_assert_eq!(ring.tail(32), &all[all.len().saturating_sub(32)..]);
            let (from, bytes) = ring.read(position, most);
            let from = from as usize;
            prop_assert_eq!(&bytes[..], &all[from..(from + most).min(all.len())]);
            prop_assert!(from >= position.min(all.len() as u64) as usize);
        }
    }
}
