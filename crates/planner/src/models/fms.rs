//! A flexible manufacturing system (Ciardo and Trivedi 1993): three kinds of parts on three machines; parts of the first two kinds
//! are joined into a fourth.

use super::long_run;
use crate::chain::ChainError;
use crate::progress::Progress;

/// Parts that wait for a pallet, for their machine, are on it, and are shipped. Machines are free where no part is on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    here: u8,
    waits: u8,
    on: u8,
    shipped: u8,
    /// Parts that wait for their counterpart (the first two kinds).
    mate: u8,
}

/// Parts of kinds 1, 2, 3 and the joined one.
type State = [Kind; 4];

/// Places on the machines of the kinds; the third kind shares the second one's machine while that is free.
const PLACES: [u8; 4] = [3, 1, 0, 2];

/// Worth of a part that goes to its machine.
const WORTH: [f64; 4] = [400.0, 600.0, 100.0, 1100.0];

const SHIPPING: f64 = 1.0 / 60.0;

/// Productivity of the system with `n` pallets of each kind.
///
/// # Errors
/// It could not be certified.
pub(crate) fn fms(n: u8, progress: &Progress) -> Result<(usize, f64), ChainError> {
    let empty = Kind { here: 0, waits: 0, on: 0, shipped: 0, mate: 0 };
    let full = Kind { here: n, ..empty };
    let worth = move |state: &State| {
        let of = |kind: usize| WORTH[kind] * to_machine(n, state, kind);
        (0..4).map(of).sum()
    };
    long_run([full, full, full, empty], move |state, to| rule(n, state, to), worth, progress)
}

/// Rate at which parts of a kind go to their machine: each at 1, slower when the transporters are shared by more parts than they carry.
fn to_machine(n: u8, state: &State, kind: usize) -> f64 {
    let all: u32 = state.iter().map(|kind| u32::from(kind.here)).sum();
    let part = state[kind];
    let goes = part.here > 0 && (part.on < PLACES[kind] || part.waits < n);
    if !goes {
        return 0.0;
    }
    let carried = f64::from(3 * u32::from(n) / 2);
    f64::from(part.here) * (carried / f64::from(all)).min(1.0)
}

fn rule(n: u8, state: State, to: &mut dyn FnMut(State, f64)) {
    for kind in 0..4 {
        let rate = to_machine(n, &state, kind);
        if rate > 0.0 {
            let mut after = state;
            after[kind].here -= 1;
            let on = after[kind].on < PLACES[kind];
            *(if on { &mut after[kind].on } else { &mut after[kind].waits }) += 1;
            to(after, rate);
        }
    }
    // Done on a machine: shipped as it is.
    let each = |kind: usize| f64::from(state[kind].on);
    for (kind, rate) in [(0, 0.2 * each(0)), (1, 0.1), (3, each(3))] {
        if state[kind].on > 0 && state[kind].shipped < n {
            let mut after = state;
            leave(&mut after[kind]);
            after[kind].shipped += 1;
            to(after, rate);
        }
    }
    join(n, state, (0.05 * each(0), 1.0 / 15.0), to);
    // The third kind, while the second one's machine is free.
    if state[1].on == 0 && state[2].waits > 0 && state[2].shipped < n {
        let mut after = state;
        after[2].waits -= 1;
        after[2].shipped += 1;
        to(after, 0.5);
    }
    ship(n, state, to);
}

/// A part leaves its machine, and the next one that waits takes its place.
fn leave(kind: &mut Kind) {
    *(if kind.waits > 0 { &mut kind.waits } else { &mut kind.on }) -= 1;
}

/// Done on a machine: joined with a counterpart that waits, or waiting for one.
fn join(n: u8, state: State, (first, second): (f64, f64), to: &mut dyn FnMut(State, f64)) {
    for (kind, other, rate) in [(0, 1, first), (1, 0, second)] {
        if state[kind].on == 0 {
            continue;
        }
        let mut after = state;
        leave(&mut after[kind]);
        if state[other].mate == 0 && state[kind].mate < n {
            after[kind].mate += 1;
            to(after, rate);
        } else if state[other].mate > 0 && state[3].here < n {
            after[other].mate -= 1;
            after[3].here += 1;
            to(after, rate);
        }
    }
}

/// Shipped parts give their pallets back, all of a kind at once.
fn ship(n: u8, state: State, to: &mut dyn FnMut(State, f64)) {
    for kind in 0..3 {
        if state[kind].shipped > 0 && state[kind].here + state[kind].shipped <= n {
            let mut after = state;
            after[kind].here += state[kind].shipped;
            after[kind].shipped = 0;
            to(after, SHIPPING);
        }
    }
    let joined = state[3].shipped;
    if joined > 0 && state[..2].iter().all(|kind| kind.here + joined <= n) {
        let mut after = state;
        after[3].shipped = 0;
        after[0].here += joined;
        after[1].here += joined;
        to(after, SHIPPING);
    }
}
