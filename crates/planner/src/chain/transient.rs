//! Where a chain is after a given time, and what it has gathered by then, by uniformisation.

use super::graph::{Chain, ChainError};
use crate::progress::Progress;

/// Probability that is left out at each end of the Poisson weights.
const LEFT_OUT: f64 = 1e-15;

/// Most steps: a chain with rates of a million per second over some seconds.
const STEPS_MAX: f64 = 1e8;

/// The probability of each state after `secs`, from the probabilities `first` at the start.
///
/// # Errors
/// [`ChainError::TooLong`], [`ChainError::Stopped`].
pub fn transient(
    chain: &Chain,
    first: &[f64],
    secs: f64,
    progress: &Progress,
) -> Result<Vec<f64>, ChainError> {
    let mut sum = vec![0.0; first.len()];
    uniformise(chain, first, secs, progress, |x, step| {
        if step.weight > 0.0 {
            sum.iter_mut().zip(x).for_each(|(sum, value)| *sum += step.weight * value);
        }
    })?;
    Ok(sum)
}

/// The share of `secs` that is spent in each state, in the mean, from the probabilities `first` at the start; and the steps it took.
///
/// # Errors
/// [`ChainError::TooLong`], [`ChainError::Stopped`].
pub(crate) fn averaged(
    chain: &Chain,
    first: &[f64],
    secs: f64,
    progress: &Progress,
) -> Result<(Vec<f64>, u64), ChainError> {
    let mut shares = vec![0.0; first.len()];
    let mut steps = 0;
    uniformise(chain, first, secs, progress, |x, step| {
        steps += 1;
        let share = step.time / secs;
        shares.iter_mut().zip(x).for_each(|(sum, value)| *sum += share * value);
    })?;
    Ok((shares, steps))
}

/// What is gathered within `secs` when each state yields its reward for as long as it lasts, from the probabilities `first` at
/// the start: the integral of the mean reward.
///
/// # Errors
/// [`ChainError::TooLong`], [`ChainError::Stopped`].
pub(crate) fn accumulated(
    chain: &Chain,
    (first, rewards): (&[f64], &[f64]),
    secs: f64,
    progress: &Progress,
) -> Result<f64, ChainError> {
    let (shares, _) = averaged(chain, first, secs, progress)?;
    Ok(secs * shares.iter().zip(rewards).map(|(share, reward)| share * reward).sum::<f64>())
}

/// A step of uniformisation.
struct Step {
    /// Probability that it is the last one before the time is over.
    weight: f64,
    /// Mean time that is spent in it, seconds.
    time: f64,
}

/// Goes through the steps that matter for so many seconds, with the probabilities of the states at each.
fn uniformise(
    chain: &Chain,
    first: &[f64],
    secs: f64,
    progress: &Progress,
    mut each: impl FnMut(&[f64], Step),
) -> Result<(), ChainError> {
    let exits: Vec<f64> = (0..chain.len()).map(|state| chain.exit(state)).collect();
    // A little more than the greatest rate, so that no state is left for sure in each step.
    let rate = exits.iter().copied().fold(0.0, f64::max) * 1.02;
    let mean = rate * secs;
    if mean > STEPS_MAX {
        return Err(ChainError::TooLong);
    }
    if mean <= 0.0 {
        each(first, Step { weight: 1.0, time: secs });
        return Ok(());
    }
    let (skip, weights) = poisson(mean);
    let sources = chain.transposed();
    let stays: Vec<f64> = exits.iter().map(|exit| 1.0 - exit / rate).collect();
    let (mut x, mut next) = (first.to_vec(), vec![0.0; first.len()]);
    // Probability that there are more steps than this one.
    let mut more = 1.0;
    let steps = skip + weights.len();
    progress.expect(steps as u64);
    for step in 0..steps {
        if progress.is_stopped() {
            return Err(ChainError::Stopped);
        }
        progress.advance(1);
        if step > 0 {
            for (state, value) in next.iter_mut().enumerate() {
                let into: f64 = sources.row(state).map(|(from, by)| x[from] * by).sum();
                *value = x[state] * stays[state] + into / rate;
            }
            std::mem::swap(&mut x, &mut next);
        }
        let weight = step.checked_sub(skip).map_or(0.0, |at| weights[at]);
        more = (more - weight).max(0.0);
        each(&x, Step { weight, time: more / rate });
    }
    Ok(())
}

/// Poisson probabilities of a mean: how many at the beginning are nothing, and those that are something. Computed from the
/// greatest to both sides and scaled at the end, so that nothing under- or overflows (after Fox and Glynn).
fn poisson(mean: f64) -> (usize, Vec<f64>) {
    let mode = mean.floor();
    let mut right = vec![1.0];
    let mut at = mode + 1.0;
    while let Some(last) = right.last().copied().filter(|last| *last > LEFT_OUT * 1e-3) {
        right.push(last * mean / at);
        at += 1.0;
    }
    let mut left = vec![];
    let (mut value, mut at) = (1.0, mode);
    while at > 0.0 && value > LEFT_OUT * 1e-3 {
        value *= at / mean;
        at -= 1.0;
        left.push(value);
    }
    let skip = mode as usize - left.len();
    let mut weights: Vec<f64> = left.into_iter().rev().chain(right).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    (skip, weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean requests after 1: the Taylor series in 60 digits. (The figure that PRISM prints agrees to its precision.)
    const MEAN_AFTER_1: f64 = 0.592_937_406_419_790_8;

    /// One server, three places: arrivals 1.5, services 3; stops when full if it shall.
    fn queue(stops: bool) -> Chain {
        let rule = |j: u32, to: &mut dyn FnMut(u32, f64)| {
            if j == 3 && stops {
                return;
            }
            if j < 3 {
                to(j + 1, 1.5);
            }
            if j > 0 {
                to(j - 1, 3.0);
            }
        };
        Chain::explore(0, rule).unwrap().0
    }

    #[test]
    fn the_published_figures_come_out() {
        let first = [1.0, 0.0, 0.0, 0.0];
        let run = &Progress::default();
        let full = transient(&queue(true), &first, 7.5, run).unwrap()[3];
        assert!((full - 0.6404780884740766).abs() < 1e-12, "{full}");
        let x = transient(&queue(false), &first, 1.0, run).unwrap();
        let mean: f64 = x.iter().enumerate().map(|(j, x)| j as f64 * x).sum();
        assert!((mean - MEAN_AFTER_1).abs() < 1e-12, "{mean}");
        let long = transient(&queue(false), &first, 1000.0, run).unwrap();
        assert!((long[3] - 1.0 / 15.0).abs() < 1e-12);
        assert_eq!(transient(&queue(false), &first, 0.0, run).unwrap(), first);
        assert_eq!(transient(&queue(false), &first, 1e9, run), Err(ChainError::TooLong));
    }

    #[test]
    fn what_is_gathered_is_the_integral() {
        let first = [1.0, 0.0, 0.0, 0.0];
        let (chain, run) = (queue(false), &Progress::default());
        let rewards = [0.0, 1.0, 2.0, 3.0];
        let mean = |secs: f64| {
            let x = transient(&chain, &first, secs, run).unwrap();
            x.iter().zip(rewards).map(|(x, reward)| x * reward).sum::<f64>()
        };
        // Simpson's rule.
        let (parts, secs) = (200, 2.0);
        let h = secs / f64::from(parts);
        let inner = (1..parts).map(|at| mean(f64::from(at) * h) * f64::from(2 + 2 * (at % 2)));
        let exact = (mean(0.0) + mean(secs) + inner.sum::<f64>()) * h / 3.0;
        let is = accumulated(&chain, (&first, &rewards), secs, run).unwrap();
        assert!((is / exact - 1.0).abs() < 1e-8, "{is} {exact}");
        run.stop();
        assert_eq!(accumulated(&chain, (&first, &rewards), secs, run), Err(ChainError::Stopped));
    }

    #[test]
    fn poisson_weights_sum_to_one_and_have_their_mean() {
        for mean in [1e-6, 0.3, 7.0, 1000.5, 250_000.0] {
            let (skip, weights) = poisson(mean);
            let sum: f64 = weights.iter().sum();
            let is: f64 = weights.iter().enumerate().map(|(at, w)| (skip + at) as f64 * w).sum();
            assert!((sum - 1.0).abs() < 1e-12 && (is / mean - 1.0).abs() < 1e-9, "{mean}: {is}");
        }
    }
}
