//! Which places of a stream have come although earlier ones have not.

use alloc::vec::Vec;
use core::ops::Range;

/// 64: a burst of losses leaves about as many holes as frames were lost in one window; beyond that a datagram that would
/// make another hole is dropped and sent again.
const RANGES_MAX: usize = 64;

/// Disjoint ranges in ascending order, none touching another.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ranges {
    sorted: Vec<Range<u64>>,
}

/// What adding a range changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// Some of it was not there.
    New,
    /// All of it was.
    Known,
    /// It would make one range more than are kept.
    Full,
}

impl Ranges {
    /// Adds `range`, which is not empty.
    pub(crate) fn add(&mut self, range: Range<u64>) -> Added {
        // The ranges that `range` overlaps or touches.
        let first = self.sorted.partition_point(|have| have.end < range.start);
        let last = self.sorted.partition_point(|have| have.start <= range.end);
        let touched = &self.sorted[first..last];
        match touched {
            [] if self.sorted.len() >= RANGES_MAX => return Added::Full,
            [] => self.sorted.insert(first, range),
            [one] if one.start <= range.start && range.end <= one.end => return Added::Known,
            [from, ..] => {
                let end = touched.last().map_or(range.end, |have| have.end.max(range.end));
                let joined = from.start.min(range.start)..end;
                self.sorted.splice(first..last, [joined]);
            }
        }
        Added::New
    }

    /// Takes the first range if it begins at or before `place`; where it ends.
    pub(crate) fn take_at(&mut self, place: u64) -> Option<u64> {
        let first = self.sorted.first()?;
        (first.start <= place).then(|| self.sorted.remove(0).end)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The ranges, lowest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.sorted.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn like_a_set(adds in proptest::collection::vec((0_u64..120, 1_u64..12), 0..80)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (start, length) in adds {
                let range = start..start + length;
                let new = range.clone().any(|place| !set.contains(&place));
                let added = ranges.add(range.clone());
                prop_assert_eq!(added == Added::New, new);
                set.extend(range);
            }
            let have: Vec<u64> = ranges.iter().flat_map(Clone::clone).collect();
            prop_assert_eq!(have, set.into_iter().collect::<Vec<_>>());
            for pair in ranges.sorted.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
        }
    }

    #[test]
    fn bounded() {
        let mut ranges = Ranges::default();
        for place in 0..RANGES_MAX as u64 {
            assert_eq!(ranges.add(place * 2..place * 2 + 1), Added::New);
        }
        assert_eq!(ranges.add(1000..1001), Added::Full);
        assert_eq!(ranges.add(1..2), Added::New);
        assert_eq!(ranges.take_at(0), Some(3));
        assert_eq!(ranges.take_at(3), None);
    }
}
