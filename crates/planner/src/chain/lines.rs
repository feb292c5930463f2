//! Chains of lines: ranges of states in which transitions lead to neighbours, whatever leads to other lines. The built-in families
//! are of this kind, a line being a queue of every length.
//!
//! ```text
//!   lines                       join fours ─┐                     ┌─ scale ── solve each
//!   of fours           solve each ── join fours ─┐        ┌─ scale ── solve each
//!   of sixteens                                   GTH
//! ```
//! A line is solved exactly for what flows into it, without subtraction, so that rare failures, on which other iterations fail, are
//! the fast case: what is left is how lines agree with each other. A queue that fills or empties while nodes fail and are repaired
//! takes many rounds over all lines to do so, each of which moves it a little; joined along the lines it moves in few. The coarsest
//! chain, when lines are short enough, is solved by GTH (after Koury, McAllister and Stewart, who aggregate whole lines, and Horton
//! and Leutenegger, who aggregate in levels).

use super::graph::Chain;
use super::gth::Matrix;
use super::joined::Joined;

/// Neighbours that are joined to one.
const JOINED: usize = 4;

/// Multiplications that GTH may take on the coarsest chain each time, for each transition of the finest: about as many as the rest of
/// a cycle.
const DIRECT_MAX: f64 = 10.0;

/// The least probability of a state. What is below it is nothing to any figure, but as zero, or as a number with few digits, it
/// would take the rates of the joined states with it, and is slow to compute with.
const LEAST: f64 = 1e-290;

/// A chain and how it is joined to the next.
#[derive(Debug)]
struct Level {
    /// What flows into each state: first from the one before it in its line, and from the one after it, where there are; then from
    /// elsewhere.
    sources: Chain,
    /// First state of each line, and the number of states at the end.
    bounds: Vec<usize>,
    /// Rates to the next state of the line.
    up: Vec<f64>,
    /// Rates to where no neighbour is.
    out: Vec<f64>,
    /// Elimination from the end of a line: the share of what flows into a state that goes down rather than out, and the time that
    /// a visit takes.
    share_down: Vec<f64>,
    visit: Vec<f64>,
    x: Vec<f64>,
    joined: Option<Joined>,
}

/// Levels of a chain of lines.
#[derive(Debug)]
pub(super) struct Lines {
    levels: Vec<Level>,
    /// How far transitions of the last level lead.
    reach: usize,
    /// Room for one line: what flows in.
    inflow: Vec<f64>,
}

impl Lines {
    /// Levels of a chain, given what flows into each state and where lines begin; with a first answer.
    pub(super) fn new(back: &Chain, lines: &[u32]) -> Self {
        let first = Level::first(back, lines);
        let longest = first.bounds.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let direct_max = DIRECT_MAX * first.sources.transitions() as f64;
        let mut all = Self { levels: vec![first], reach: 0, inflow: vec![0.0; longest] };
        while let Some(level) = all.levels.last_mut() {
            all.reach = level.reach();
            let n = level.x.len();
            let work = n as f64 * (all.reach as f64).powi(2);
            if work <= direct_max || n + 1 == level.bounds.len() {
                break;
            }
            let next = level.next();
            all.levels.push(next);
        }
        all.begin();
        all
    }

    /// The answer of now.
    pub(super) fn x(&self) -> &[f64] {
        self.levels.first().map_or(&[], |level| &level.x)
    }

    /// One cycle over all levels, from the probabilities `x`.
    pub(super) fn cycle(&mut self, x: &mut [f64]) {
        self.levels[0].x.copy_from_slice(x);
        self.descend(0);
        x.copy_from_slice(&self.levels[0].x);
    }

    /// A first answer: the coarsest chain solved, and each finer one begun from it.
    fn begin(&mut self) {
        for at in 1..self.levels.len() {
            self.weigh(at);
        }
        for at in (0..self.levels.len()).rev() {
            let before = self.levels[at].x.clone();
            self.descend(at);
            if at > 0 {
                let (upper, lower) = self.levels.split_at_mut(at);
                upper[at - 1].take(&before, &lower[0].x);
            }
        }
    }

    /// Weighs a level by what is known on the one above it.
    fn weigh(&mut self, at: usize) {
        let (upper, lower) = self.levels.split_at_mut(at);
        let (level, next) = (&upper[at - 1], &mut lower[0]);
        if let Some(joined) = &level.joined {
            let (sources, y) = (&mut next.sources, &mut next.x);
            joined.weigh((&level.sources, &level.x), (sources, y), |_, _| {});
        }
        next.eliminate();
    }

    fn descend(&mut self, at: usize) {
        if at + 1 == self.levels.len() {
            return self.levels[at].solve(self.reach);
        }
        let count = self.levels[at].bounds.len() - 1;
        // The finest level, which is most of the work, is swept once a cycle: that takes a fifth more cycles of two thirds the time.
        for line in (0..count).filter(|_| at > 0) {
            self.levels[at].solve_line(line, &mut self.inflow);
        }
        self.weigh(at + 1);
        let before = self.levels[at + 1].x.clone();
        self.descend(at + 1);
        let (upper, lower) = self.levels.split_at_mut(at + 1);
        upper[at].take(&before, &lower[0].x);
        for line in (0..count).rev() {
            upper[at].solve_line(line, &mut self.inflow);
        }
    }
}

/// The neighbours of a state in its line, before and after it.
fn neighbours(state: usize, first: usize, end: usize) -> [Option<u32>; 2] {
    let number = |state: usize| state as u32;
    [(state > first).then(|| number(state - 1)), (state + 1 < end).then(|| number(state + 1))]
}

impl Level {
    fn of(sources: Chain, bounds: Vec<usize>) -> Self {
        let n = sources.len();
        let (up, out) = (vec![0.0; n], vec![0.0; n]);
        let (share_down, visit, x) = (vec![0.0; n], vec![0.0; n], vec![1.0 / n as f64; n]);
        Self { sources, bounds, up, out, share_down, visit, x, joined: None }
    }

    /// The finest level.
    fn first(back: &Chain, lines: &[u32]) -> Self {
        let n = back.len();
        let bounds: Vec<usize> = lines.iter().map(|begin| *begin as usize).chain([n]).collect();
        let most = back.transitions() + 2 * n;
        let mut starts = Vec::with_capacity(n + 1);
        let (mut targets, mut rates) = (Vec::with_capacity(most), Vec::with_capacity(most));
        starts.push(0);
        for pair in bounds.windows(2) {
            for state in pair[0]..pair[1] {
                let near = neighbours(state, pair[0], pair[1]);
                for neighbour in near.into_iter().flatten() {
                    let same = |(from, _): &(usize, f64)| *from == neighbour as usize;
                    targets.push(neighbour);
                    rates.push(back.row(state).find(same).map_or(0.0, |(_, rate)| rate));
                }
                for (from, rate) in back.row(state) {
                    if !near.contains(&Some(from as u32)) {
                        targets.push(from as u32);
                        rates.push(rate);
                    }
                }
                starts.push(targets.len() as u32);
            }
        }
        let mut level = Self::of(Chain::of_parts(starts, targets, rates), bounds);
        level.eliminate();
        level
    }

    /// The next level, of joined neighbours. Its rates come with each cycle.
    fn next(&mut self) -> Self {
        let (mut group, mut bounds) = (Vec::with_capacity(self.x.len()), vec![0usize]);
        let mut line_of = vec![];
        for (line, pair) in self.bounds.windows(2).enumerate() {
            let first = line_of.len() as u32;
            let count = (pair[1] - pair[0]).div_ceil(JOINED);
            group.extend((0..pair[1] - pair[0]).map(|at| first + (at / JOINED) as u32));
            line_of.extend(std::iter::repeat_n(line, count));
            bounds.push(line_of.len());
        }
        let near = |state: u32| {
            let line = line_of[state as usize];
            neighbours(state as usize, bounds[line], bounds[line + 1])
        };
        let (joined, sources) = Joined::new(&self.sources, group, line_of.len(), near);
        self.joined = Some(joined);
        Self::of(sources, bounds)
    }

    /// How far a transition leads at most.
    fn reach(&self) -> usize {
        let far = |state: usize| self.sources.row(state).map(move |(from, _)| from.abs_diff(state));
        (0..self.x.len()).flat_map(far).max().unwrap_or(0)
    }

    /// Takes over what became of the weights of the joined states.
    fn take(&mut self, before: &[f64], now: &[f64]) {
        if let Some(joined) = &self.joined {
            joined.spread(before, now, &mut self.x);
        }
    }

    /// Eliminates the states of each line from its end: where a state is left to, once those above it are passed through in no
    /// time.
    fn eliminate(&mut self) {
        let Self { sources, bounds, up, out, share_down, visit, .. } = self;
        let rates = |state: usize| sources.rates_of(state);
        out.fill(0.0);
        for pair in bounds.windows(2) {
            for state in pair[0]..pair[1] {
                let near = neighbours(state, pair[0], pair[1]).into_iter().flatten().count();
                for (from, rate) in sources.row(state).skip(near) {
                    out[from] += rate;
                }
            }
        }
        for pair in bounds.windows(2) {
            // Share of what goes up that leaves the line before it comes down again.
            let mut lost_above = 0.0;
            for state in (pair[0]..pair[1]).rev() {
                up[state] = if state + 1 < pair[1] { rates(state + 1)[0] } else { 0.0 };
                let down = match state.checked_sub(1).filter(|below| *below >= pair[0]) {
                    Some(below) => rates(below)[usize::from(below > pair[0])],
                    None => 0.0,
                };
                let exit = out[state] + up[state] * lost_above;
                let leaves = down + exit;
                (share_down[state], lost_above) = (down / leaves, exit / leaves);
                visit[state] = 1.0 / leaves;
            }
        }
    }

    /// The coarsest level.
    fn solve(&mut self, reach: usize) {
        let found = Matrix::of_sources(&self.sources, reach).solve();
        if found.iter().all(|value| value.is_finite()) {
            self.x = found.into_iter().map(|value| value.max(LEAST)).collect();
        }
    }

    /// Solves a line exactly for what flows into it now.
    fn solve_line(&mut self, line: usize, inflow: &mut [f64]) {
        let (first, end) = (self.bounds[line], self.bounds[line + 1]);
        let x = &mut self.x;
        let mut from_above = 0.0;
        for state in (first..end).rev() {
            let near = usize::from(state > first) + usize::from(state + 1 < end);
            let outside = self.sources.inflow(state, near, x);
            let all = outside + from_above;
            inflow[state - first] = all;
            from_above = all * self.share_down[state];
        }
        let mut from_below = 0.0;
        for (state, value) in x.iter_mut().enumerate().take(end).skip(first) {
            // A line that nothing leaves is the whole chain: any weight will do.
            if self.visit[state].is_finite() {
                let all = inflow[state - first] + from_below;
                *value = (all * self.visit[state]).max(LEAST);
            }
            from_below = *value * self.up[state];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Bound, Family, Replicas};
    use crate::scenario::{FailureLoses, QueueCounts, Repair};

    /// A replica on each of so many nodes, which fail rarely, at two thirds of their load.
    fn chain(nodes: u32, queue: u32, replicas: Replicas) -> (Chain, Vec<u32>) {
        let family = Family {
            nodes,
            queue,
            bound: Bound::Each,
            counts: QueueCounts::Waiting,
            capacity: 1,
            arrival: 0.67 * f64::from(nodes),
            service: 1.0,
            failure: 0.001,
            repair: 0.1,
            crew: Repair::PerNode,
            loses: FailureLoses::Held,
            replicas,
        };
        let (chain, _, lines) = family.chain().unwrap();
        (chain, lines)
    }

    #[test]
    fn cycles_come_to_what_elimination_finds() {
        for replicas in [Replicas::EveryNode, Replicas::WhenFull] {
            let (chain, lines) = chain(8, 60, replicas);
            let mut levels = Lines::new(&chain.transposed(), &lines);
            assert!(levels.levels.len() > 1);
            let mut x = levels.x().to_vec();
            for _ in 0..40 {
                levels.cycle(&mut x);
            }
            let sum: f64 = x.iter().sum();
            let exact = crate::chain::gth::gth(&chain);
            for (is, exact) in x.iter().zip(&exact) {
                assert!((is / sum / exact - 1.0).abs() < 1e-9, "{} {exact}", is / sum);
            }
        }
    }

    #[test]
    fn what_no_number_holds_does_no_harm() {
        // All of 320 nodes are down with probability 1e-640, and long queues are as improbable.
        let (chain, lines) = chain(320, 3, Replicas::EveryNode);
        let mut levels = Lines::new(&chain.transposed(), &lines);
        let mut x = levels.x().to_vec();
        for _ in 0..40 {
            levels.cycle(&mut x);
        }
        assert!(x.iter().all(|value| *value >= LEAST && value.is_finite()));
        assert!(chain.residual(&x) < 1e-14, "{}", chain.residual(&x));
    }
}
