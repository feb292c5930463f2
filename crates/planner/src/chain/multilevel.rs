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
use super::gth::Matrix;
use super::joined::Joined;
use super::steady::{gauss_seidel, normalise};

/// States of the coarsest level, which GTH solves: 9 ms each time.
const COARSEST: usize = 300;

/// Sweeps before and after the correction of a level.
const SMOOTHINGS: usize = 2;

/// Of no group yet.
const FREE: u32 = u32::MAX;

/// A level: a chain by what flows into its states, and how it is joined.
#[derive(Debug)]
struct Level {
    /// What flows into each state.
    sources: Chain,
    exits: Vec<f64>,
    /// How its states are joined to those of the next level.
    joined: Option<Joined>,
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
        let mut levels = Self { levels: vec![Level { sources, exits, joined: None, x: vec![] }] };
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
            let (group, count) = level.join();
            // A chain of which hardly anything can be joined is left to the sweeps.
            if count * 10 > level.sources.len() * 9 {
                break;
            }
            let next = level.next(group, count);
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
            if let Some(joined) = &level.joined {
                joined.spread(&before, &next.x, &mut level.x);
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
        let found = Matrix::of_sources(&self.sources, n).solve();
        if found.iter().all(|value| value.is_finite()) {
            self.x = found;
        }
    }

    /// Joins each state with the free one that most flow comes from; one that has none joins the group of its strongest source.
    /// The group of each state, and how many there are.
    fn join(&self) -> (Vec<u32>, usize) {
        let n = self.sources.len();
        let mut group = vec![FREE; n];
        let mut sizes: Vec<u8> = vec![];
        for state in 0..n {
            if group[state] != FREE {
                continue;
            }
            let (mut free, mut taken) = ((0.0, None), (0.0, None));
            for (from, rate) in self.sources.row(state) {
                let flow = self.x[from] * rate;
                let best = if group[from] == FREE { &mut free } else { &mut taken };
                let fits = group[from] == FREE || sizes[group[from] as usize] < 3;
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
        (group, sizes.len())
    }

    /// The next level, of so many groups.
    fn next(&mut self, group: Vec<u32>, count: usize) -> Self {
        let (joined, sources) = Joined::new(&self.sources, group, count, |_| [None; 0]);
        self.joined = Some(joined);
        let (exits, x) = (vec![0.0; count], vec![0.0; count]);
        let mut next = Self { sources, exits, joined: None, x };
        self.aggregate(&mut next);
        next
    }

    /// Gives the next level the weights and rates that follow from the values of this one.
    fn aggregate(&self, next: &mut Self) {
        let Some(joined) = &self.joined else { return };
        let Self { sources, exits, x, .. } = next;
        exits.fill(0.0);
        joined.weigh((&self.sources, &self.x), (sources, x), |from, rate| exits[from] += rate);
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
