//! Elimination after Grassmann, Taksar and Heyman: no subtraction, so that the smallest probability has as many right digits as
//! the largest.

use super::graph::Chain;
use super::steady::normalise;

/// What a probability relative to that of the first state may be before all are scaled down: far from the largest number.
const SCALE_AT: f64 = 1e200;

/// The rates of a chain as a matrix by rows: whole, or where no transition leads far from its state, a band of it.
#[derive(Debug)]
pub(super) struct Matrix {
    n: usize,
    /// How far a transition leads at most, in states.
    reach: usize,
    rates: Vec<f64>,
}

impl Matrix {
    /// No rates yet, of `n` states whose transitions lead to states at most so far away.
    pub(super) fn new(n: usize, reach: usize) -> Self {
        let reach = reach.min(n.saturating_sub(1));
        let mut matrix = Self { n, reach, rates: vec![] };
        matrix.rates = vec![0.0; n * matrix.width()];
        matrix
    }

    /// The matrix of a chain, given what flows into each state.
    pub(super) fn of_sources(sources: &Chain, reach: usize) -> Self {
        let mut matrix = Self::new(sources.len(), reach);
        for state in 0..sources.len() {
            for (from, rate) in sources.row(state) {
                matrix.add(from, state, rate);
            }
        }
        matrix
    }

    fn is_band(&self) -> bool {
        2 * self.reach + 1 < self.n
    }

    /// Numbers in a row.
    fn width(&self) -> usize {
        if self.is_band() { 2 * self.reach + 1 } else { self.n }
    }

    fn place(&self, from: usize, to: usize) -> usize {
        let column = if self.is_band() { to + self.reach - from } else { to };
        from * self.width() + column
    }

    /// Adds to the rate between two states.
    pub(super) fn add(&mut self, from: usize, to: usize, rate: f64) {
        let place = self.place(from, to);
        self.rates[place] += rate;
    }

    /// Probabilities of the states. They are not finite when the chain falls apart.
    pub(super) fn solve(mut self) -> Vec<f64> {
        for last in (1..self.n).rev() {
            self.eliminate(last);
        }
        let mut x = vec![0.0; self.n];
        if let Some(first) = x.first_mut() {
            *first = 1.0;
        }
        for state in 1..self.n {
            let from = state.saturating_sub(self.reach)..state;
            x[state] = from.map(|from| x[from] * self.rates[self.place(from, state)]).sum();
            if x[state] > SCALE_AT {
                x[..=state].iter_mut().for_each(|value| *value /= SCALE_AT);
            }
        }
        normalise(&mut x);
        x
    }

    /// Passes through a state in no time: what goes there goes on to those before it.
    fn eliminate(&mut self, last: usize) {
        let first = last.saturating_sub(self.reach);
        let (split, count) = (last * self.width(), last - first);
        let begin = self.place(last, first) - split;
        let begins: Vec<usize> = (first..last).map(|state| self.place(state, first)).collect();
        let (above, row) = self.rates.split_at_mut(split);
        let row = &row[begin..begin + count];
        let exit: f64 = row.iter().sum();
        for begin in begins {
            let into = above[begin + count] / exit;
            above[begin + count] = into;
            if into > 0.0 {
                let from = &mut above[begin..begin + count];
                from.iter_mut().zip(row).for_each(|(rate, more)| *rate += into * more);
            }
        }
    }
}

/// The steady state of a small chain.
pub(super) fn gth(chain: &Chain) -> Vec<f64> {
    let mut matrix = Matrix::new(chain.len(), chain.len());
    for state in 0..chain.len() {
        for (target, rate) in chain.row(state) {
            matrix.add(state, target, rate);
        }
    }
    matrix.solve()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_gives_what_the_whole_gives() {
        // A walk that goes at most two steps, down more rarely than up: from 1e-330, which no number holds, to 1.
        let n = 1700usize;
        let rate = |from: usize, to: usize| match to as i64 - from as i64 {
            1 => 2.0 + (from % 7) as f64,
            2 => 1.0,
            -1 | -2 => 1.0 + (from % 3) as f64 / 10.0,
            _ => 0.0,
        };
        let fill = |reach: usize| {
            let mut matrix = Matrix::new(n, reach);
            for from in 0..n {
                for to in from.saturating_sub(2)..(from + 3).min(n) {
                    matrix.add(from, to, rate(from, to));
                }
            }
            matrix
        };
        assert!(fill(2).is_band() && !fill(n).is_band());
        let (band, whole) = (fill(2).solve(), fill(n).solve());
        assert_eq!(band, whole);
        assert!((band.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(band[0] < 1e-300 && band[n - 1] > 0.1, "{} {}", band[0], band[n - 1]);
    }
}
