//! Multilevel aggregation (Horton and Leutenegger 1994) for general chains.
//!
//! ```text
//!   states        smooth ── aggregate ─┐            ┌─ scale ── smooth
//!   pairs                 smooth ── aggregate ─┐  ┌─ scale ── smooth
//!   ...                                        GTH
//! ```
//! Each level joins states between which most of the flow goes; the chain of the joined ones, with rates weighed by what is known
//! of the states, says how much weight each of them has. What one sweep over the states carries one step far, a cycle carries across
//! the whole chain: it finds at once the slow movements between parts that a sweep never sees.

use super::graph::Chain;
use super::steady::{gauss_seidel, gth_dense, normalise};

/// States of the coarsest level, which GTH solves: 9 ms each time.
const COARSEST: usize = 300;

/// Sweeps before and after the correction of a level.
const SMOOTHINGS: usize = 2;

/// A transition between two states that were joined.
const WITHIN: u32 = u32::MAX;

/// A level: a chain by what flows into its states, and how it is joined.
#[derive(Debug)]
struct Level {
    /// What flows into each state.
    sources: Chain,
    exits: Vec<f64>,
    /// The state of the next level that each state belongs to.
    group: Vec<u32>,
    /// Where in the rates of the next level the rate of each transition counts, in the order of `sources`.
    into: Vec<u32>,
    x: Vec<f64>,
}

/// Chains that grow smaller from level to level.
#[derive(Debug)]
pub(super) struct Multilevel {
    levels: Vec<Level>,
}

impl Multilevel {
    /// Levels of a chain, given what flows into each state, the rates at which they are left, and about how probable they are.
    pub(super) fn new(sources: Chain, exits: Vec<f64>, x: &[f64]) -> Self {
        let (group, into) = (vec![], vec![]);
        let mut levels = Self { levels: vec![Level { sources, exits, group, into, x: vec![] }] };
        levels.join(x);
        levels
    }

    /// Joins states anew, as their probabilities are known better by now.
    pub(super) fn join(&mut self, x: &[f64]) {
        self.levels.truncate(1);
        self.levels[0].x = x.to_vec();
        while let Some(level) = self.levels.last_mut()
            && level.sources.len() > COARSEST
        {
            let count = level.join();
            // A chain of which hardly anything can be joined is left to the sweeps.
            if count * 10 > level.sources.len() * 9 {
                break;
            }
            let next = level.next(count);
            self.levels.push(next);
        }
    }

    /// One cycle over all levels.
    pub(super) fn cycle(&mut self, x: &mut [f64]) {
        self.levels[0].x.copy_from_slice(x);
        self.descend(0);
        x.copy_from_slice(&self.levels[0].x);
        normalise(x);
    }

    fn descend(&mut self, at: usize) {
        let (upper, lower) = self.levels.split_at_mut(at + 1);
        let (Some(level), next) = (upper.last_mut(), lower.first_mut()) else { return };
        let Some(next) = next else { return level.solve() };
        level.smooth();
        level.aggregate(next);
        let before = next.x.clone();
        self.descend(at + 1);
        let (upper, lower) = self.levels.split_at_mut(at + 1);
        if let (Some(level), Some(next)) = (upper.last_mut(), lower.first()) {
            for (value, group) in level.x.iter_mut().zip(&level.group) {
                let (was, is) = (before[*group as usize], next.x[*group as usize]);
                if was > 0.0 && is.is_finite() {
                    *value *= is / was;
                }
            }
            level.smooth();
        }
    }
}

impl Level {
    fn smooth(&mut self) {
        for _ in 0..SMOOTHINGS {
            gauss_seidel(&self.sources, &self.exits, &mut self.x);
        }
    }

    /// The coarsest level.
    fn solve(&mut self) {
        let n = self.sources.len();
        if n > 2 * COARSEST {
            return self.smooth();
        }
        let mut rates = vec![0.0; n * n];
        for state in 0..n {
            for (from, rate) in self.sources.row(state) {
                rates[from * n + state] += rate;
            }
        }
        let found = gth_dense(&mut rates, n);
        if found.iter().all(|value| value.is_finite()) {
            self.x = found;
        }
    }

    /// Joins each state with the free one that most flow comes from; one that has none joins the group of its strongest source.
    /// How many groups there are.
    fn join(&mut self) -> usize {
        let n = self.sources.len();
        let mut group = vec![WITHIN; n];
        let mut sizes: Vec<u8> = vec![];
        for state in 0..n {
            if group[state] != WITHIN {
                continue;
            }
            let (mut free, mut taken) = ((0.0, None), (0.0, None));
            for (from, rate) in self.sources.row(state) {
                let flow = self.x[from] * rate;
                let best = if group[from] == WITHIN { &mut free } else { &mut taken };
                let fits = group[from] == WITHIN || sizes[group[from] as usize] < 3;
                if fits && flow > best.0 {
                    *best = (flow, Some(from));
                }
            }
            // Ten times as much flow is worth a group of three.
            let joins = match (free.1, taken.1) {
                (Some(from), _) if taken.0 <= 10.0 * free.0 => Err(from),
                (_, Some(from)) => Ok(from),
                (Some(from), None) => Err(from),
                (None, None) => Err(state),
            };
            match joins {
                Ok(from) => {
                    group[state] = group[from];
                    sizes[group[from] as usize] += 1;
                }
                Err(from) => {
                    let number = sizes.len() as u32;
                    (group[state], group[from]) = (number, number);
                    sizes.push(1 + u8::from(from != state));
                }
            }
        }
        self.group = group;
        sizes.len()
    }

    /// The next level, of so many states: which transitions it has. Their rates come with each cycle.
    fn next(&mut self, count: usize) -> Self {
        let mut members = vec![0u32; count + 1];
        for group in &self.group {
            members[*group as usize + 1] += 1;
        }
        for at in 0..count {
            members[at + 1] += members[at];
        }
        let mut order = vec![0u32; self.group.len()];
        let mut place = members.clone();
        for (state, group) in self.group.iter().enumerate() {
            order[place[*group as usize] as usize] = state as u32;
            place[*group as usize] += 1;
        }
        let mut into = vec![WITHIN; self.sources.transitions()];
        // Where the transition from a group into the current one stands, if it is there yet.
        let mut known = vec![(WITHIN, 0u32); count];
        let (mut starts, mut targets) = (vec![0u32], vec![]);
        for to in 0..count {
            for state in &order[members[to] as usize..members[to + 1] as usize] {
                let first = self.sources.begin(*state as usize);
                for (at, (from, _)) in self.sources.row(*state as usize).enumerate() {
                    let from = self.group[from];
                    if from as usize == to {
                        continue;
                    }
                    let entry = &mut known[from as usize];
                    if entry.0 != to as u32 {
                        *entry = (to as u32, targets.len() as u32);
                        targets.push(from);
                    }
                    into[first + at] = entry.1;
                }
            }
            starts.push(targets.len() as u32);
        }
        self.into = into;
        let rates = vec![0.0; targets.len()];
        let mut next = Self {
            sources: Chain::of_parts(starts, targets, rates),
            exits: vec![0.0; count],
            group: vec![],
            into: vec![],
            x: vec![0.0; count],
        };
        self.aggregate(&mut next);
        next
    }

    /// Gives the next level the weights and rates that follow from the values of this one.
    fn aggregate(&self, next: &mut Self) {
        next.x.fill(0.0);
        for (value, group) in self.x.iter().zip(&self.group) {
            next.x[*group as usize] += value;
        }
        let rates = next.sources.rates_mut();
        rates.fill(0.0);
        let mut at = 0;
        for state in 0..self.sources.len() {
            for (from, rate) in self.sources.row(state) {
                if self.into[at] != WITHIN {
                    rates[self.into[at] as usize] += self.x[from] * rate;
                }
                at += 1;
            }
        }
        next.exits.fill(0.0);
        let (weights, exits) = (&next.x, &mut next.exits);
        next.sources.scale_rates(|from, flow| {
            let weight = weights[from];
            let rate = if weight > 0.0 { flow / weight } else { 0.0 };
            exits[from] += rate;
            rate
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two squares of `n` by `n` states that hardly ever reach each other.
    fn two_squares(n: u32, between: f64) -> Chain {
        type State = (u32, u32, bool);
        let rule = |(a, b, right): State, to: &mut dyn FnMut(State, f64)| {
            if a + 1 < n {
                to((a + 1, b, right), 1.0);
            }
            if b + 1 < n {
                to((a, b + 1, right), 1.5);
            }
            if a > 0 {
                to((a - 1, b, right), 1.0);
            }
            if b > 0 {
                to((a, b - 1, right), 1.5);
            }
            if (a, b) == (0, 0) {
                to((0, 0, !right), if right { between } else { 3.0 * between });
            }
        };
        Chain::explore((0, 0, false), rule).unwrap().0
    }

    #[test]
    fn cycles_find_what_sweeps_do_not() {
        let chain = two_squares(40, 1e-9);
        let sources = chain.transposed();
        let exits: Vec<f64> = (0..chain.len()).map(|state| chain.exit(state)).collect();
        let mut x = vec![1.0 / chain.len() as f64; chain.len()];
        for _ in 0..50 {
            gauss_seidel(&sources, &exits, &mut x);
            normalise(&mut x);
        }
        let first = x[0];
        let mut levels = Multilevel::new(sources, exits, &x);
        for _ in 0..60 {
            levels.cycle(&mut x);
        }
        // Within a square all states are alike; the second has three times the weight of the first.
        let exact = 0.25 / (chain.len() / 2) as f64;
        assert!((first / exact - 1.0).abs() > 0.1, "sweeps alone do not get there: {first}");
        assert!((x[0] / exact - 1.0).abs() < 1e-9, "{} instead of {exact}", x[0]);
        assert!(chain.residual(&x) < 1e-13);
    }
}
