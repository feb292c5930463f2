//! Published chains (the PRISM benchmark suite and the QComp set), to be solved as any other: what the solvers are checked and
//! measured with. Each function gives the number of states and the figure that was published.

mod embedded;
mod fms;
mod mainframe;
mod majority;
mod mapk;

pub(crate) use embedded::{Embedded, embedded};
pub(crate) use fms::fms;
pub(crate) use mainframe::{Mainframe, mainframe};
pub(crate) use majority::majority;
pub(crate) use mapk::mapk;

use crate::chain::{Chain, ChainError, accumulated, steady_state, transient};
use crate::progress::Progress;
use std::hash::Hash;

/// Explores a model and computes the long-run mean of a reward of its states.
fn long_run<S: Copy + Eq + Hash>(
    first: S,
    rule: impl Fn(S, &mut dyn FnMut(S, f64)),
    reward: impl Fn(&S) -> f64,
    progress: &Progress,
) -> Result<(usize, f64), ChainError> {
    let (chain, states) = Chain::explore(first, rule)?;
    let rewards: Vec<f64> = states.iter().map(reward).collect();
    drop(states);
    let mean = |x: &[f64]| rewards.iter().zip(x).map(|(reward, x)| reward * x).sum::<f64>();
    let steady = steady_state(&chain, &[], |x| vec![mean(x)], progress)?;
    Ok((chain.len(), mean(&steady.x)))
}

/// Explores a model whose states that are `reached` stay as they are, and computes the probability to be in one after so many
/// seconds.
fn reached_within<S: Copy + Eq + Hash>(
    first: S,
    rule: impl Fn(S, &mut dyn FnMut(S, f64)),
    reached: impl Fn(&S) -> bool,
    secs: f64,
    progress: &Progress,
) -> Result<(usize, f64), ChainError> {
    let goes_on = |state: S, to: &mut dyn FnMut(S, f64)| {
        if !reached(&state) {
            rule(state, to);
        }
    };
    let (chain, states) = Chain::explore(first, goes_on)?;
    let x = transient(&chain, &begin(chain.len()), secs, progress)?;
    let inside = states.iter().zip(x).filter(|(state, _)| reached(state)).map(|(_, x)| x);
    Ok((chain.len(), inside.sum()))
}

/// All probability in the first of so many states.
fn begin(states: usize) -> Vec<f64> {
    let mut first = vec![0.0; states];
    first[0] = 1.0;
    first
}

/// Mean customers of a tandem of an M/Cox2/1 and an M/M/1 queue, `c` places each (Hermanns, Meyer-Kayser and Siegle 1999).
///
/// # Errors
/// It could not be certified.
pub(crate) fn tandem(c: u32, progress: &Progress) -> Result<(usize, f64), ChainError> {
    let rule = |(n, phase, m): (u32, u32, u32), to: &mut dyn FnMut((u32, u32, u32), f64)| {
        if n < c {
            to((n + 1, phase, m), 4.0 * f64::from(c));
        }
        if n > 0 && phase == 1 {
            to((n, 2, m), 0.2);
        }
        if n > 0 && m < c {
            to((n - 1, 1, m + 1), if phase == 1 { 1.8 } else { 2.0 });
        }
        if m > 0 {
            to((n, phase, m - 1), 4.0);
        }
    };
    long_run((0, 1, 0), rule, |(n, _, m)| f64::from(n + m), progress)
}

/// What stands in a cell of the Kanban system: cards in use, being worked on, to be done again, done.
type Cell = [u8; 4];

/// Throughput of a Kanban system of four cells with `t` cards each (Ciardo and Tilgner 1996): cell 1 feeds 2 and 3 at once,
/// which feed 4 together.
///
/// # Errors
/// It could not be certified.
pub(crate) fn kanban(t: u8, progress: &Progress) -> Result<(usize, f64), ChainError> {
    const AGAIN: [f64; 4] = [0.36, 0.42, 0.39, 0.33];
    const GOOD: [f64; 4] = [0.84, 0.98, 0.91, 0.77];
    const BACK: f64 = 0.3;
    let takes = move |cell: &Cell| cell[0] < t && cell[1] < t;
    let gives = |cell: &Cell| cell[0] > 0 && cell[3] > 0;
    fn take(cell: &mut Cell) {
        cell[0] += 1;
        cell[1] += 1;
    }
    fn give(cell: &mut Cell) {
        cell[0] -= 1;
        cell[3] -= 1;
    }
    let rule = move |cells: [Cell; 4], to: &mut dyn FnMut([Cell; 4], f64)| {
        for at in 0..4 {
            for (from, target, rate) in [(1, 2, AGAIN[at]), (1, 3, GOOD[at]), (2, 1, BACK)] {
                if cells[at][from] > 0 && cells[at][target] < t {
                    let mut after = cells;
                    after[at][from] -= 1;
                    after[at][target] += 1;
                    to(after, rate);
                }
            }
        }
        let [one, two, three, four] = &cells;
        let mut after = cells;
        if takes(one) {
            take(&mut after[0]);
            to(after, 1.0);
        }
        if gives(one) && takes(two) && takes(three) {
            after = cells;
            give(&mut after[0]);
            take(&mut after[1]);
            take(&mut after[2]);
            to(after, 0.4);
        }
        if gives(two) && gives(three) && takes(four) {
            after = cells;
            give(&mut after[1]);
            give(&mut after[2]);
            take(&mut after[3]);
            to(after, 0.5);
        }
        if gives(four) {
            after = cells;
            give(&mut after[3]);
            to(after, 0.9);
        }
    };
    let first = [[0; 4]; 4];
    long_run(first, rule, move |cells| f64::from(u8::from(takes(&cells[0]))), progress)
}

/// Long-run share of time in which the first of `n` stations, which one server polls in turn, is full and not served (Ibe and Trivedi 1990).
///
/// # Errors
/// It could not be certified.
pub(crate) fn polling(n: u32, progress: &Progress) -> Result<(usize, f64), ChainError> {
    // Where the server is, whether it serves there, and which stations are full.
    let rule = move |(at, serves, full): (u32, bool, u32),
                     to: &mut dyn FnMut((u32, bool, u32), f64)| {
        for station in 0..n {
            if full >> station & 1 == 0 {
                to((at, serves, full | 1 << station), 1.0 / f64::from(n));
            }
        }
        let (next, here) = ((at + 1) % n, full >> at & 1 == 1);
        if serves && here {
            to((next, false, full & !(1 << at)), 1.0);
        } else if !serves && here {
            to((at, true, full), 200.0);
        } else if !serves {
            to((next, false, full), 200.0);
        }
    };
    let waits = |(at, serves, full): &(u32, bool, u32)| {
        f64::from(u8::from(full & 1 == 1 && !(*at == 0 && *serves)))
    };
    long_run((0, false, 0), rule, waits, progress)
}

/// A state of the cluster of workstations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Cluster {
    left: u16,
    right: u16,
    /// Whether the switches and the line work.
    works: [bool; 3],
    /// What the repairman is at: 0 nothing, 1 and 2 a workstation of the left and right, 3 to 5 switches and line.
    repairs: u8,
}

impl Cluster {
    /// All of two rows of `n` workstations at work.
    fn whole(n: u16) -> Self {
        Self { left: n, right: n, works: [true; 3], repairs: 0 }
    }

    /// Whether so many workstations that reach each other are at work.
    fn has(&self, count: u16) -> bool {
        let [left, right, line] = self.works;
        (self.left >= count && left)
            || (self.right >= count && right)
            || (self.left + self.right >= count && left && line && right)
    }
}

/// Long-run share of premium service of a cluster of two rows of `n` workstations (Haverkort, Hermanns and Katoen 2000).
///
/// # Errors
/// It could not be certified.
pub(crate) fn cluster(n: u16, progress: &Progress) -> Result<(usize, f64), ChainError> {
    let premium = move |state: &Cluster| f64::from(u8::from(state.has(n)));
    long_run(Cluster::whole(n), move |state, to| cluster_rule(n, state, to), premium, progress)
}

/// The probability that the service of a cluster falls below its minimum, three quarters of a row, within so many hours.
///
/// # Errors
/// It takes too many steps, or was stopped.
pub(crate) fn cluster_falls(
    n: u16,
    hours: f64,
    progress: &Progress,
) -> Result<(usize, f64), ChainError> {
    let below = |state: &Cluster| !state.has(n * 3 / 4);
    let rule = |state, to: &mut dyn FnMut(Cluster, f64)| cluster_rule(n, state, to);
    reached_within(Cluster::whole(n), rule, below, hours, progress)
}

/// The hours that a cluster's service is below its minimum, of so many.
///
/// # Errors
/// It takes too many steps, or was stopped.
pub(crate) fn cluster_below(
    n: u16,
    hours: f64,
    progress: &Progress,
) -> Result<(usize, f64), ChainError> {
    let rule = |state, to: &mut dyn FnMut(Cluster, f64)| cluster_rule(n, state, to);
    let (chain, states) = Chain::explore(Cluster::whole(n), rule)?;
    let below = |state: &Cluster| f64::from(u8::from(!state.has(n * 3 / 4)));
    let rewards: Vec<f64> = states.iter().map(below).collect();
    let first = begin(chain.len());
    Ok((chain.len(), accumulated(&chain, (&first, &rewards), hours, progress)?))
}

fn cluster_rule(n: u16, state: Cluster, to: &mut dyn FnMut(Cluster, f64)) {
    const WORKSTATION: f64 = 1.0 / 500.0;
    const SWITCH: f64 = 1.0 / 4000.0;
    const LINE: f64 = 1.0 / 5000.0;
    if state.left > 0 {
        to(Cluster { left: state.left - 1, ..state }, f64::from(state.left) * WORKSTATION);
    }
    if state.right > 0 {
        to(Cluster { right: state.right - 1, ..state }, f64::from(state.right) * WORKSTATION);
    }
    for (part, rate) in [SWITCH, SWITCH, LINE].into_iter().enumerate() {
        if state.works[part] {
            let mut after = state;
            after.works[part] = false;
            to(after, rate);
        }
    }
    let broken =
        [state.left < n, state.right < n, !state.works[0], !state.works[1], !state.works[2]];
    let mut repaired = Cluster { repairs: 0, ..state };
    match state.repairs {
        0 => {
            for (what, _) in broken.into_iter().enumerate().filter(|(_, broken)| *broken) {
                to(Cluster { repairs: what as u8 + 1, ..state }, 10.0);
            }
            return;
        }
        1 => repaired.left += 1,
        2 => repaired.right += 1,
        part => repaired.works[usize::from(part) - 3] = true,
    }
    let rate = [2.0, 2.0, 0.25, 0.25, 0.125][usize::from(state.repairs) - 1];
    to(repaired, rate);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_models_have_as_many_states_as_was_published() {
        let states = |answer: Result<(usize, f64), ChainError>| answer.unwrap().0;
        let run = &Progress::default();
        assert_eq!([5, 31].map(|c| states(tandem(c, run))), [66, 2016]);
        let clusters = [2, 4, 8, 16].map(|n| states(cluster(n, run)));
        assert_eq!(clusters, [276, 820, 2_772, 10_132]);
        assert_eq!([1, 2].map(|t| states(kanban(t, run))), [160, 4600]);
        assert_eq!([3, 8, 10].map(|n| states(polling(n, run))), [36, 3072, 15_360]);
        assert_eq!([1, 2, 3].map(|n| states(fms(n, run))), [54, 810, 6520]);
        assert_eq!(states(mainframe((10, 4), Mainframe::Available, run)), 13_530);
        assert_eq!(mapk::explore(1).unwrap().0.len(), 118);
    }
}
