//! A continuous-time Markov chain: states found from a rule, transitions in compressed rows.

use foldhash::fast::FixedState;
use std::collections::HashMap;
use std::hash::Hash;

/// Most states of a chain: what a machine with 4 GiB to spare holds while it solves.
pub const STATES_MAX: usize = 5_000_000;

/// States and transitions. States are numbered in the order in which they were found, breadth first, unless a chain was
/// sorted.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// Where the transitions of each state begin in `targets` and `rates`; one more than states.
    starts: Vec<u32>,
    targets: Vec<u32>,
    rates: Vec<f64>,
}

/// Why a chain could not be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// More states than memory is there for.
    #[error(
        "the chain has {at_least} states or more, and {STATES_MAX} fit; a shorter queue, fewer nodes or replicas would, or simulate instead"
    )]
    TooLarge {
        /// States that there are for sure.
        at_least: u64,
    },
    /// From some states not all others can be reached, so that the steady state depends on the start.
    #[error("the chain falls apart: from state {state} the first state cannot be reached")]
    Reducible {
        /// One of those.
        state: usize,
    },
    /// A transient answer would take more than 10^8 steps.
    #[error("the time is too long for the rates of the chain")]
    TooLong,
    /// Somebody wished the end before there was an answer.
    #[error("stopped before there was a certified answer")]
    Stopped,
    /// The iteration came to no answer whose digits are sure.
    #[error("no certified answer after {sweeps} sweeps: flow residual 1e{residual_exponent}")]
    NotCertified {
        /// Sweeps over all states.
        sweeps: u32,
        /// Decimal exponent of the flow residual, rounded up.
        residual_exponent: i32,
    },
}

impl ChainError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "CHAIN_TOO_LARGE",
            Self::Reducible { .. } => "CHAIN_REDUCIBLE",
            Self::TooLong => "CHAIN_TOO_LONG",
            Self::Stopped => "CHAIN_STOPPED",
            Self::NotCertified { .. } => "CHAIN_NOT_CERTIFIED",
        }
    }
}

impl Chain {
    /// Finds all states that can be reached from `first`. `rule` calls its second argument with the target and rate of
    /// each transition of a state; rates are positive, and several transitions to one target add up.
    ///
    /// # Errors
    /// [`ChainError::TooLarge`].
    pub fn explore<S: Copy + Eq + Hash>(
        first: S,
        rule: impl Fn(S, &mut dyn FnMut(S, f64)),
    ) -> Result<(Self, Vec<S>), ChainError> {
        // Its order is never asked for; states are few words, and nobody chooses them to collide.
        let mut numbers = HashMap::with_hasher(FixedState::default());
        numbers.insert(first, 0u32);
        let mut states = vec![first];
        let mut chain = Self { starts: vec![0], ..Self::default() };
        let mut row: Vec<(u32, f64)> = vec![];
        let mut at = 0;
        while at < states.len() {
            row.clear();
            rule(states[at], &mut |target, rate| {
                let number = *numbers.entry(target).or_insert_with(|| {
                    states.push(target);
                    states.len() as u32 - 1
                });
                // Ways back to the same state change nothing.
                if number as usize != at && rate > 0.0 {
                    match row.iter_mut().find(|(known, _)| *known == number) {
                        Some((_, sum)) => *sum += rate,
                        None => row.push((number, rate)),
                    }
                }
            });
            if states.len() > STATES_MAX {
                return Err(ChainError::TooLarge { at_least: states.len() as u64 });
            }
            chain.push_row(&row);
            at += 1;
        }
        Ok((chain, states))
    }

    fn push_row(&mut self, row: &[(u32, f64)]) {
        self.targets.extend(row.iter().map(|(target, _)| target));
        self.rates.extend(row.iter().map(|(_, rate)| rate));
        self.starts.push(self.targets.len() as u32);
    }

    /// A chain of its parts: where the transitions of each state begin, and one more; their targets; their rates.
    pub(super) fn of_parts(starts: Vec<u32>, targets: Vec<u32>, rates: Vec<f64>) -> Self {
        Self { starts, targets, rates }
    }

    /// Where the transitions of a state begin among all.
    pub(super) fn begin(&self, state: usize) -> usize {
        self.starts[state] as usize
    }

    /// The rates of all transitions, in their order.
    pub(super) fn rates_mut(&mut self) -> &mut [f64] {
        &mut self.rates
    }

    /// What flows into a state, of a chain that says what flows into each; without its first `skip` transitions.
    #[expect(
        clippy::inline_always,
        reason = "a quarter of the time that chains of lines take was the call"
    )]
    #[inline(always)]
    pub(super) fn inflow(&self, state: usize, skip: usize, x: &[f64]) -> f64 {
        let range = self.starts[state] as usize + skip..self.starts[state + 1] as usize;
        let (from, rates) = (&self.targets[range.clone()], &self.rates[range]);
        from.iter().zip(rates).map(|(from, rate)| x[*from as usize] * rate).sum()
    }

    /// The rates of a state's transitions, in their order.
    pub(super) fn rates_of(&self, state: usize) -> &[f64] {
        &self.rates[self.starts[state] as usize..self.starts[state + 1] as usize]
    }

    /// The targets and rates of all transitions, in their order.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.targets.iter().map(|target| *target as usize).zip(self.rates.iter().copied())
    }

    /// Replaces each rate by what `of` says for its target and itself.
    pub(super) fn scale_rates(&mut self, mut of: impl FnMut(usize, f64) -> f64) {
        for (rate, target) in self.rates.iter_mut().zip(&self.targets) {
            *rate = of(*target as usize, *rate);
        }
    }

    /// States.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Transitions.
    pub fn transitions(&self) -> usize {
        self.targets.len()
    }

    /// Transitions of a state: targets and rates.
    pub fn row(&self, state: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        let range = self.starts[state] as usize..self.starts[state + 1] as usize;
        let targets = self.targets[range.clone()].iter().map(|target| *target as usize);
        targets.zip(self.rates[range].iter().copied())
    }

    /// Rate at which a state is left.
    pub fn exit(&self, state: usize) -> f64 {
        self.row(state).map(|(_, rate)| rate).sum()
    }

    /// The same chain with its states in the given order: `order[new] = old`.
    pub fn sorted(&self, order: &[u32]) -> Self {
        let mut new = vec![0u32; self.len()];
        for (at, old) in order.iter().enumerate() {
            new[*old as usize] = at as u32;
        }
        let mut chain = Self { starts: vec![0], ..Self::default() };
        let mut row = vec![];
        for old in order {
            row.clear();
            row.extend(self.row(*old as usize).map(|(target, rate)| (new[target], rate)));
            row.sort_unstable_by_key(|(target, _)| *target);
            chain.push_row(&row);
        }
        chain
    }

    /// Where transitions come from instead of where they go to.
    pub(crate) fn transposed(&self) -> Self {
        let mut starts = vec![0u32; self.len() + 1];
        for target in &self.targets {
            starts[*target as usize + 1] += 1;
        }
        for at in 0..self.len() {
            starts[at + 1] += starts[at];
        }
        let mut next = starts.clone();
        let mut targets = vec![0; self.targets.len()];
        let mut rates = vec![0.0; self.targets.len()];
        for state in 0..self.len() {
            for (target, rate) in self.row(state) {
                let at = next[target] as usize;
                next[target] += 1;
                targets[at] = state as u32;
                rates[at] = rate;
            }
        }
        Self { starts, targets, rates }
    }

    /// Whether the first state can be reached from all others (all can be reached from it).
    ///
    /// # Errors
    /// [`ChainError::Reducible`] with a state from which it cannot.
    pub fn check_irreducible(&self) -> Result<(), ChainError> {
        self.transposed().check_all_lead_to_first()
    }

    /// As [`Chain::check_irreducible`], of the chain that this is the transposed one of.
    ///
    /// # Errors
    /// As there.
    pub(super) fn check_all_lead_to_first(&self) -> Result<(), ChainError> {
        let mut reached = vec![false; self.len()];
        let mut todo = vec![0];
        if let Some(first) = reached.first_mut() {
            *first = true;
        }
        while let Some(at) = todo.pop().filter(|_| !self.is_empty()) {
            for (from, _) in self.row(at) {
                if !reached[from] {
                    reached[from] = true;
                    todo.push(from);
                }
            }
        }
        match reached.iter().position(|reached| !reached) {
            Some(state) => Err(ChainError::Reducible { state }),
            None => Ok(()),
        }
    }

    /// The flow that does not balance, as a share of all flow: how far `x` is from the steady state.
    pub fn residual(&self, x: &[f64]) -> f64 {
        let mut net = vec![0.0; self.len()];
        let mut all = 0.0;
        for state in 0..self.len() {
            for (target, rate) in self.row(state) {
                let flow = x[state] * rate;
                net[state] -= flow;
                net[target] += flow;
                all += flow;
            }
        }
        net.iter().map(|flow: &f64| flow.abs()).sum::<f64>() / all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_explored_sorted_and_transposed() {
        let rule = |state: i32, to: &mut dyn FnMut(i32, f64)| {
            if state < 2 {
                to(state + 1, 1.0);
                to(state + 1, 0.5);
            }
            if state > 0 {
                to(state - 1, 2.0);
            }
            to(state, 9.0);
        };
        let (chain, states) = Chain::explore(0, rule).unwrap();
        assert_eq!((chain.len(), chain.transitions(), states), (3, 4, vec![0, 1, 2]));
        assert_eq!(chain.row(1).collect::<Vec<_>>(), [(2, 1.5), (0, 2.0)]);
        assert_eq!(chain.exit(1), 3.5);
        let sorted = chain.sorted(&[2, 1, 0]);
        assert_eq!(sorted.row(2).collect::<Vec<_>>(), [(1, 1.5)]);
        assert_eq!(chain.transposed().row(1).collect::<Vec<_>>(), [(0, 1.5), (2, 2.0)]);
        assert_eq!(chain.check_irreducible(), Ok(()));
        let x = [16.0, 12.0, 9.0];
        assert!(chain.residual(&x) < 1e-15);
        let trap = |state: u8, to: &mut dyn FnMut(u8, f64)| {
            if state < 2 {
                to(state + 1, 1.0);
            }
        };
        let (chain, _) = Chain::explore(0, trap).unwrap();
        assert_eq!(chain.check_irreducible(), Err(ChainError::Reducible { state: 1 }));
        let endless = |state: u64, to: &mut dyn FnMut(u64, f64)| to(state + 1, 1.0);
        let error = Chain::explore(0, endless).unwrap_err();
        assert_eq!(error, ChainError::TooLarge { at_least: STATES_MAX as u64 + 1 });
    }
}
