//! Checks that a recorded history of one register is linearizable: that there is an order of the operations, each at a
//! moment between its call and its return, in which every answer is right.
//!
//! The search is that of Wing and Gong with Lowe's memory of configurations seen. An operation of unknown outcome may
//! happen at any moment after its call, or never.

use std::collections::HashSet;

/// What a client did, with what it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Call {
    /// Read this value (0: nothing).
    Read(u64),
    /// Wrote this value.
    Write(u64),
    /// Wrote the second if the first was there; whether it was. `None`: not known.
    Swap(u64, u64, Option<bool>),
}

/// An operation with the moments of its call and return on one clock. An operation of unknown outcome never returns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation {
    pub(super) call: Call,
    pub(super) called: u64,
    pub(super) returned: Option<u64>,
}

/// The register after the call, if the answer can be right in that state.
fn apply(call: Call, value: u64) -> Option<u64> {
    match call {
        Call::Read(seen) => (seen == value).then_some(value),
        Call::Write(new) => Some(new),
        Call::Swap(from, new, Some(true)) => (from == value).then_some(new),
        Call::Swap(from, _, Some(false)) => (from != value).then_some(value),
        Call::Swap(from, new, None) => Some(if from == value { new } else { value }),
    }
}

/// Whether the history is linearizable, from an empty register.
pub(super) fn is_linearizable(history: &[Operation]) -> bool {
    let mut seen: HashSet<(Vec<u64>, u64)> = HashSet::new();
    let words = history.len().div_ceil(64);
    let mut stack = vec![(vec![0u64; words], 0u64)];
    let done = |set: &[u64], index: usize| set[index / 64] >> (index % 64) & 1 == 1;
    while let Some((set, value)) = stack.pop() {
        let open = || (0..history.len()).filter(|index| !done(&set, *index));
        // Nothing may happen after the return of an operation that has not happened yet.
        let Some(limit) = open().filter_map(|index| history[index].returned).min() else {
            // Only operations of unknown outcome are left, and they need not have happened.
            return true;
        };
        for index in open().filter(|index| history[*index].called <= limit) {
            if let Some(value) = apply(history[index].call, value) {
                let mut next = set.clone();
                next[index / 64] |= 1 << (index % 64);
                if seen.insert((next.clone(), value)) {
                    stack.push((next, value));
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(call: Call, called: u64, returned: u64) -> Operation {
        Operation { call, called, returned: Some(returned) }
    }

    fn check(history: &[Operation], expect: bool) {
        assert_eq!(is_linearizable(history), expect, "{history:?}");
    }

    #[test]
    fn right_and_wrong_histories_are_told_apart() {
        check(&[], true);
        check(&[at(Call::Write(1), 0, 1), at(Call::Read(1), 2, 3)], true);
        check(&[at(Call::Write(1), 0, 1), at(Call::Read(0), 2, 3)], false);
        // Overlapping: either order.
        check(&[at(Call::Write(1), 0, 3), at(Call::Read(0), 1, 2)], true);
        check(&[at(Call::Write(1), 0, 3), at(Call::Read(1), 1, 2)], true);
        // Once seen, it stays seen.
        let back = [at(Call::Write(1), 0, 9), at(Call::Read(1), 1, 2), at(Call::Read(0), 3, 4)];
        check(&back, false);
        // Two winners of one swap.
        let two = |second| {
            [at(Call::Swap(0, 1, Some(true)), 0, 5), at(Call::Swap(0, 2, Some(second)), 0, 5)]
        };
        check(&two(true), false);
        check(&two(false), true);
        // Unknown: it may have happened, late or never.
        let unknown = Operation { call: Call::Write(7), called: 0, returned: None };
        check(&[unknown, at(Call::Read(0), 1, 2), at(Call::Read(7), 3, 4)], true);
        check(&[unknown, at(Call::Read(0), 1, 2)], true);
        check(&[unknown, at(Call::Read(7), 1, 2), at(Call::Read(0), 3, 4)], false);
    }
}
