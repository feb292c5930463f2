//! Where a chain is after a given time, by uniformisation.

use super::graph::Chain;

/// Probability that is left out at each end of the Poisson weights.
const LEFT_OUT: f64 = 1e-15;

/// Most steps: a chain with rates of a million per second over some seconds.
const STEPS_MAX: f64 = 1e8;

/// The time is too long for the rates of the chain: more than 10^8 steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time is too long for the rates of the chain")]
pub struct TooLong;

/// The probability of each state after `secs`, from the probabilities `first` at the start.
///
/// # Errors
/// [`TooLong`].
pub fn transient(chain: &Chain, first: &[f64], secs: f64) -> Result<Vec<f64>, TooLong> {
    let exits: Vec<f64> = (0..chain.len()).map(|state| chain.exit(state)).collect();
    // A little more than the greatest rate, so that no state is left for sure in each step.
    let rate = exits.iter().copied().fold(0.0, f64::max) * 1.02;
    let mean = rate * secs;
    if mean > STEPS_MAX {
        return Err(TooLong);
    }
    if mean <= 0.0 {
        return Ok(first.to_vec());
    }
    let (skip, weights) = poisson(mean);
    let sources = chain.transposed();
    let stays: Vec<f64> = exits.iter().map(|exit| 1.0 - exit / rate).collect();
    let (mut x, mut next) = (first.to_vec(), vec![0.0; first.len()]);
    let mut sum = vec![0.0; first.len()];
    for step in 0..skip + weights.len() {
        if step > 0 {
            for (state, value) in next.iter_mut().enumerate() {
                let into: f64 = sources.row(state).map(|(from, by)| x[from] * by).sum();
                *value = x[state] * stays[state] + into / rate;
            }
            std::mem::swap(&mut x, &mut next);
        }
        if let Some(weight) = step.checked_sub(skip).map(|at| weights[at]) {
            sum.iter_mut().zip(&x).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    Ok(sum)
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
        let full = transient(&queue(true), &first, 7.5).unwrap()[3];
        assert!((full - 0.6404780884740766).abs() < 1e-12, "{full}");
        let x = transient(&queue(false), &first, 1.0).unwrap();
        let mean: f64 = x.iter().enumerate().map(|(j, x)| j as f64 * x).sum();
        assert!((mean - MEAN_AFTER_1).abs() < 1e-12, "{mean}");
        let long = transient(&queue(false), &first, 1000.0).unwrap();
        assert!((long[3] - 1.0 / 15.0).abs() < 1e-12);
        assert_eq!(transient(&queue(false), &first, 0.0).unwrap(), first);
        assert_eq!(transient(&queue(false), &first, 1e9), Err(TooLong));
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
