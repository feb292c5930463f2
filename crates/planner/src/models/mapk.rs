//! The cascade of mitogen-activated protein kinases (Huang and Ferrell 1996): ten reactions through complexes, each enzyme once.

use crate::chain::{Chain, ChainError, accumulated};
use crate::progress::Progress;

/// Amounts of the substances, in the order of [`Substance`].
type State = [u8; SUBSTANCES];

const SUBSTANCES: usize = 22;

/// Indices of substances; `P` is a phosphate. Enzymes of the first stage are E1 and E2, phosphatases those of the others.
#[derive(Clone, Copy)]
enum Substance {
    E1,
    E2,
    Ptase2,
    Ptase3,
    K1,
    K1P,
    K2,
    K2P,
    K2PP,
    K3,
    K3P,
    K3PP,
    /// The first of the complexes, one for each reaction.
    Complexes,
}

use Substance::{Complexes, E1, E2, K1, K1P, K2, K2P, K2PP, K3, K3P, K3PP, Ptase2, Ptase3};

/// What is changed, by whom, and into what; whether it is a reaction between the second and the third stage.
const REACTIONS: [(Substance, Substance, Substance, bool); 10] = [
    (K1, E1, K1P, false),
    (K1P, E2, K1, false),
    (K2, K1P, K2P, false),
    (K2P, Ptase2, K2, false),
    (K2P, K1P, K2PP, false),
    (K2PP, Ptase2, K2P, false),
    (K3, K2PP, K3P, true),
    (K3P, Ptase3, K3, false),
    (K3P, K2PP, K3PP, true),
    (K3PP, Ptase3, K3P, false),
];

/// Rates of joining (divided by the amount, as volume grows with it), parting and changing.
const JOINS: f64 = 1.0;
const PARTS: f64 = 150.0;
const CHANGES: f64 = 150.0;

/// Calls `to` with each reaction of a state: what comes after, its rate, and whether it is between the second and the third stage.
fn reactions(n: u8, state: &State, mut to: impl FnMut(State, f64, bool)) {
    for (at, (from, by, into, counted)) in REACTIONS.into_iter().enumerate() {
        let (from, by, into, complex) =
            (from as usize, by as usize, into as usize, Complexes as usize + at);
        if state[from] > 0 && state[by] > 0 {
            let mut after = *state;
            after[from] -= 1;
            after[by] -= 1;
            after[complex] += 1;
            let rate = f64::from(state[from]) * f64::from(state[by]) * JOINS / f64::from(n);
            to(after, rate, counted);
        }
        if state[complex] > 0 {
            for (result, each) in [(from, PARTS), (into, CHANGES)] {
                let mut after = *state;
                after[complex] -= 1;
                after[by] += 1;
                after[result] += 1;
                to(after, f64::from(state[complex]) * each, counted);
            }
        }
    }
}

/// The chain with `n` of each kinase.
///
/// # Errors
/// It is too large.
pub(super) fn explore(n: u8) -> Result<(Chain, Vec<State>), ChainError> {
    let mut first = [0; SUBSTANCES];
    for enzyme in [E1, E2, Ptase2, Ptase3] {
        first[enzyme as usize] = 1;
    }
    for kinase in [K1, K2, K3] {
        first[kinase as usize] = n;
    }
    Chain::explore(first, |state, to| reactions(n, &state, |after, rate, _| to(after, rate)))
}

/// Reactions between the second and the third stage that are expected within so many seconds, with `n` of each kinase.
///
/// # Errors
/// It takes too many steps, or was stopped.
pub(crate) fn mapk(n: u8, secs: f64, progress: &Progress) -> Result<(usize, f64), ChainError> {
    let (chain, states) = explore(n)?;
    let counted = |state: &State| {
        let mut sum = 0.0;
        reactions(n, state, |_, rate, counted| sum += if counted { rate } else { 0.0 });
        sum
    };
    let rewards: Vec<f64> = states.iter().map(counted).collect();
    let first = super::begin(chain.len());
    Ok((chain.len(), accumulated(&chain, (&first, &rewards), secs, progress)?))
}
