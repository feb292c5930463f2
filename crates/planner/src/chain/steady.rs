//! Steady states, with as many digits as double precision gives.
//!
//! | chain | method |
//! |---|---|
//! | small | GTH: elimination without subtraction, every probability to full relative precision however small |
//! | lines (the built-in families) | each line solved exactly, again without subtraction, and aggregated in levels ([`Lines`]); rare failures, on which iterations fail, are its fast case |
//! | other | Gauss-Seidel in the order of discovery, and where that would take too long, multilevel aggregation |
//!
//! An iteration ends when the flow balances to rounding *and* no measure has changed over a quarter more work. Balance alone says
//! little of a chain that falls into parts which hardly ever meet: there the flow of a wrong answer balances too. So what
//! Gauss-Seidel found must also survive a cycle of multilevel aggregation, which weighs such parts against each other.
//! What does not get there is an error, never a number.

use super::graph::{Chain, ChainError};
use super::gth::gth;
use super::lines::Lines;
use super::multilevel::Multilevel;
use crate::progress::Progress;

/// Largest chain for GTH: 2,000 states take a tenth of a second and 32 MB.
const DENSE_MAX: usize = 2000;

/// Most lines that are aggregated by GTH.
const LINES_MAX: usize = 2000;

/// The flow residual that double precision reaches.
const RESIDUAL: f64 = 3e-15;

/// Largest relative change of a measure over a quarter more sweeps.
const CHANGE: f64 = 1e-12;

/// Largest relative change of a measure by a cycle of multilevel aggregation after Gauss-Seidel: what rounding on the levels may do.
const CORRECTION: f64 = 1e-10;

/// Sweeps of an iteration at most.
const SWEEPS_MAX: u32 = 20_000;

/// Sweeps of Gauss-Seidel after which the chain is left to multilevel aggregation, when it would take more. The published chains
/// take 30 to 300.
const PATIENCE: u32 = 1000;

/// Cycles after which states are joined anew, as their probabilities are known better by then.
const REJOIN: u32 = 24;

/// How a steady state was found, and why it may be trusted.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Certificate {
    /// The method.
    pub method: Method,
    /// Sweeps over all states, cycles over all levels, or steps of uniformisation; 1 for a direct method.
    pub sweeps: u32,
    /// Flow that does not balance, as a share of all flow; of uniformisation, probability that is missing.
    pub residual: f64,
    /// Largest relative change of a measure over the last quarter of the work; 0 for a direct method.
    pub change: f64,
    /// Largest relative change of a measure by a cycle of multilevel aggregation after Gauss-Seidel; 0 for other methods.
    pub correction: f64,
}

/// A method for steady states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Elimination without subtraction.
    Gth,
    /// Exact lines and aggregation.
    Lines,
    /// Gauss-Seidel.
    GaussSeidel,
    /// Multilevel aggregation.
    Multilevel,
    /// Uniformisation: the first stretch of time instead of the long run.
    Uniformisation,
}

/// A steady state and its certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct Steady {
    /// Probability of each state.
    pub x: Vec<f64>,
    /// Why it may be trusted.
    pub certificate: Certificate,
}

/// The steady state of a chain. `lines` says where lines begin: ranges of states in which transitions lead only to
/// neighbours, whatever leads to other lines; empty when there are none. `measures` computes what will be reported, and
/// only what those are certified for may be. It ends when `progress` is stopped.
///
/// # Errors
/// The chain falls apart, no certified answer was found, or it was stopped.
pub fn steady_state(
    chain: &Chain,
    lines: &[u32],
    measures: impl Fn(&[f64]) -> Vec<f64>,
    progress: &Progress,
) -> Result<Steady, ChainError> {
    let back = chain.transposed();
    back.check_all_lead_to_first()?;
    if chain.len() <= DENSE_MAX && (lines.is_empty() || chain.len() <= DENSE_MAX / 4) {
        let x = gth(chain);
        let residual = chain.residual(&x);
        let certificate =
            Certificate { method: Method::Gth, sweeps: 1, residual, change: 0.0, correction: 0.0 };
        return if residual <= 1e-12 {
            Ok(Steady { x, certificate })
        } else {
            uncertified(1, residual)
        };
    }
    let mut work = Work::new(chain, &measures, progress);
    if !lines.is_empty() && lines.len() <= LINES_MAX {
        let mut solver = Lines::new(&back, lines);
        drop(back);
        work.x.copy_from_slice(solver.x());
        return match work.iterate(Method::Lines, SWEEPS_MAX / 10, |x| solver.cycle(x))? {
            Some(certificate) => Ok(Steady { x: work.x, certificate }),
            None => uncertified(work.sweeps, work.residual),
        };
    }
    work.general(back)
}

fn uncertified<T>(sweeps: u32, residual: f64) -> Result<T, ChainError> {
    let residual_exponent = residual.log10().ceil().clamp(-400.0, 400.0) as i32;
    Err(ChainError::NotCertified { sweeps, residual_exponent })
}

/// An iteration in progress.
struct Work<'a, M> {
    chain: &'a Chain,
    measures: &'a M,
    progress: &'a Progress,
    x: Vec<f64>,
    /// Of the method that is tried now.
    sweeps: u32,
    residual: f64,
}

impl<'a, M: Fn(&[f64]) -> Vec<f64>> Work<'a, M> {
    fn new(chain: &'a Chain, measures: &'a M, progress: &'a Progress) -> Self {
        let x = vec![1.0 / chain.len() as f64; chain.len()];
        Self { chain, measures, progress, x, sweeps: 0, residual: f64::INFINITY }
    }

    /// Gauss-Seidel and, where it does not get there or its answer does not stand, multilevel aggregation.
    fn general(mut self, sources: Chain) -> Result<Steady, ChainError> {
        let exits: Vec<f64> = (0..self.chain.len()).map(|state| self.chain.exit(state)).collect();
        let sweep = |x: &mut [f64]| gauss_seidel(&sources, &exits, x);
        let found = self.iterate(Method::GaussSeidel, PATIENCE, sweep)?;
        let mut levels = Multilevel::new(sources, exits, &self.x);
        if let Some(mut certificate) = found {
            let (before, answer) = ((self.measures)(&self.x), self.x.clone());
            levels.cycle(&mut self.x);
            certificate.correction = relative_change(&before, &(self.measures)(&self.x));
            if certificate.correction <= CORRECTION {
                return Ok(Steady { x: answer, certificate });
            }
        }
        let mut cycles = 0;
        let found = self.iterate(Method::Multilevel, SWEEPS_MAX / 10, |x| {
            cycles += 1;
            if cycles % REJOIN == 0 {
                levels.join(x);
            }
            levels.cycle(x);
        })?;
        match found {
            Some(certificate) => Ok(Steady { x: self.x, certificate }),
            None => uncertified(self.sweeps, self.residual),
        }
    }

    /// Sweeps until the answer is certain; none when it would take more sweeps than `most`.
    fn iterate(
        &mut self,
        method: Method,
        most: u32,
        mut sweep: impl FnMut(&mut [f64]),
    ) -> Result<Option<Certificate>, ChainError> {
        (self.sweeps, self.residual) = (0, f64::INFINITY);
        let mut goal = 2u32;
        let mut before = (self.measures)(&self.x);
        let mut slow = 0;
        while self.sweeps < most {
            let from = (self.sweeps, self.residual);
            while self.sweeps < goal {
                if self.progress.is_stopped() {
                    return Err(ChainError::Stopped);
                }
                sweep(&mut self.x);
                normalise(&mut self.x);
                self.sweeps += 1;
            }
            let residual = self.chain.residual(&self.x);
            let now = (self.measures)(&self.x);
            let change = relative_change(&before, &now);
            self.residual = residual;
            // A number that is none stays none.
            if residual.is_nan() {
                return Ok(None);
            }
            if residual <= RESIDUAL && change <= CHANGE {
                let sweeps = self.sweeps;
                let certificate = Certificate { method, sweeps, residual, change, correction: 0.0 };
                return Ok(Some(certificate));
            }
            // One slow stretch may be by chance.
            slow = if self.needs(from) > f64::from(most) { slow + 1 } else { 0 };
            if method == Method::GaussSeidel && self.sweeps >= 40 && slow >= 2 {
                return Ok(None);
            }
            before = now;
            // A quarter more, so that a quick answer is not waited for. A change over that much further work that is below
            // `CHANGE` leaves less than ten times as much to come.
            goal = (self.sweeps + (self.sweeps / 4).max(2)).min(most);
        }
        Ok(None)
    }

    /// Sweeps in all at the pace since `from` (sweeps and residual).
    fn needs(&self, from: (u32, f64)) -> f64 {
        let pace = (from.1 / self.residual).ln() / f64::from(self.sweeps - from.0);
        let left = (self.residual / RESIDUAL).max(1.0).ln();
        if pace > 0.0 { f64::from(self.sweeps) + left / pace } else { f64::INFINITY }
    }
}

fn relative_change(before: &[f64], now: &[f64]) -> f64 {
    let change = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { (a - b).abs() / b.abs() };
    before.iter().zip(now).map(change).fold(0.0, f64::max)
}

pub(super) fn normalise(x: &mut [f64]) {
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|value| *value /= sum);
}

pub(super) fn gauss_seidel(sources: &Chain, exits: &[f64], x: &mut [f64]) {
    for state in 0..x.len() {
        x[state] = sources.inflow(state, 0, x) / exits[state];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue of `n` places, arrival rate `a`, service rate `b`.
    fn queue(n: u32, a: f64, b: f64) -> Chain {
        let rule = |j: u32, to: &mut dyn FnMut(u32, f64)| {
            if j < n {
                to(j + 1, a);
            }
            if j > 0 {
                to(j - 1, b);
            }
        };
        Chain::explore(0, rule).unwrap().0
    }

    fn geometric(n: u32, ratio: f64) -> Vec<f64> {
        let mut x: Vec<f64> = (0..=n).map(|j| ratio.powi(j as i32)).collect();
        normalise(&mut x);
        x
    }

    fn check(chain: &Chain, lines: &[u32], method: Method, exact: &[f64]) {
        let steady = steady_state(chain, lines, |x| vec![x[0]], &Progress::default()).unwrap();
        assert_eq!(steady.certificate.method, method);
        for (is, exact) in steady.x.iter().zip(exact) {
            assert!((is / exact - 1.0).abs() < 1e-9, "{method:?}: {is} {exact}");
        }
    }

    #[test]
    fn every_method_finds_the_geometric_distribution() {
        check(&queue(30, 0.5, 1.0), &[], Method::Gth, &geometric(30, 0.5));
        // 1e-300 keeps its digits.
        check(&queue(100, 1e-3, 1.0), &[], Method::Gth, &geometric(100, 1e-3));
        check(&queue(3000, 1.0, 1.0), &[0], Method::Lines, &geometric(3000, 1.0));
        check(&queue(2500, 0.999, 1.0), &[0, 1000], Method::Lines, &geometric(2500, 0.999));
    }

    #[test]
    fn what_is_not_certain_is_an_error() {
        // On a square, probability must seep to one corner that is left a million times more rarely.
        let n = 60u32;
        let rule = |(a, b): (u32, u32), to: &mut dyn FnMut((u32, u32), f64)| {
            let rate = if (a, b) == (n, n) { 1e-6 } else { 1.0 };
            if a < n {
                to((a + 1, b), rate);
            }
            if b < n {
                to((a, b + 1), rate);
            }
            if a > 0 {
                to((a - 1, b), rate);
            }
            if b > 0 {
                to((a, b - 1), rate);
            }
        };
        let (chain, _) = Chain::explore((0, 0), rule).unwrap();
        // Sweeps that keep adding to it never come to rest.
        let measures = |x: &[f64]| vec![x[0] * x[7]];
        let progress = Progress::default();
        let mut work = Work::new(&chain, &measures, &progress);
        let early = |x: &mut [f64]| x[0] *= 1.0 + 1e-4;
        assert_eq!(work.iterate(Method::Lines, 300, early), Ok(None));
        assert!(uncertified::<()>(work.sweeps, work.residual).is_err());
        // Gauss-Seidel gets there in the end, and says how long it took.
        let steady = steady_state(&chain, &[], |x| vec![x[0]], &progress).unwrap();
        assert!(steady.certificate.sweeps > 10 && steady.certificate.residual <= RESIDUAL);
        assert!((steady.x[0] * (1e6 + 3720.0) - 1.0).abs() < 1e-9);
        progress.stop();
        let stopped = steady_state(&chain, &[], |x| vec![x[0]], &progress);
        assert_eq!(stopped, Err(ChainError::Stopped));
    }
}
