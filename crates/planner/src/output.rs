//! Statistics of simulation output: where the beginning ends, and how sure a mean is.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Observations of a batch.
const BATCH: usize = 5;

/// How many values at the beginning to cut off (MSER-5, White 1997): batches of five, cut where the standard error of the
/// mean of the rest is least, at most half.
pub fn mser5(series: &[f64]) -> usize {
    let batches: Vec<f64> =
        series.chunks_exact(BATCH).map(|batch| batch.iter().sum::<f64>() / BATCH as f64).collect();
    let n = batches.len();
    let (mut sum, mut squares) = (0.0, 0.0);
    let mut best = (f64::INFINITY, 0);
    // From the end, so that the sums of each rest are the sums of the one before and one more. The shift keeps digits.
    let shift = batches.last().copied().unwrap_or(0.0);
    for cut in (0..n).rev() {
        let value = batches[cut] - shift;
        sum += value;
        squares += value * value;
        let rest = (n - cut) as f64;
        if cut <= n / 2 && rest >= 2.0 {
            let error = (squares - sum * sum / rest).max(0.0) / (rest * rest);
            if error <= best.0 {
                best = (error, cut);
            }
        }
    }
    best.1 * BATCH
}

/// A mean over independent replications with its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half the width of the interval; infinite for one replication.
    pub half_width: f64,
    /// Replications.
    pub n: usize,
}

impl Estimate {
    /// The mean of `values` and its interval (Student's t); values that are not finite are left out.
    pub fn of(values: impl Iterator<Item = f64>, confidence: f64) -> Self {
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let n = values.len();
        if n == 0 {
            return Self { mean: f64::NAN, half_width: f64::INFINITY, n };
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        if n == 1 {
            return Self { mean, half_width: f64::INFINITY, n };
        }
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let error = (squares / (n - 1) as f64 / n as f64).sqrt();
        Self { mean, half_width: student_t(n - 1, confidence) * error, n }
    }

    /// Whether the interval holds a value.
    pub fn covers(&self, value: f64) -> bool {
        (self.mean - value).abs() <= self.half_width
    }
}

/// How much of something there may be in each of so many trials when none of them saw it: the share that would leave all of them
/// without it with probability 1 - `confidence`. At 95 % that is 3 / `trials`, the rule of three (Hanley and Lippman-Hand, JAMA 249,
/// 1983). None without a trial.
pub fn rule_of_three(trials: f64, confidence: f64) -> Option<f64> {
    (trials > 0.0).then(|| -(-confidence).ln_1p() / trials)
}

/// The quantile of Student's t distribution for a two-sided interval.
pub fn student_t(freedom: usize, confidence: f64) -> f64 {
    match StudentsT::new(0.0, 1.0, freedom as f64) {
        Ok(t) => t.inverse_cdf(0.5 + confidence / 2.0),
        Err(_) => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};

    #[test]
    fn mser5_cuts_what_is_still_rising() {
        let mut stream = Stream::new(3, 0, 0, Purpose::Request);
        let mut noise = || stream.unit() - 0.5;
        let flat: Vec<f64> = (0..1000).map(|_| 10.0 + noise()).collect();
        assert!(mser5(&flat) <= 250, "{}", mser5(&flat));
        let rising: Vec<f64> =
            (0..1000).map(|at| 10.0 * (1.0 - (-f64::from(at) / 40.0).exp()) + noise()).collect();
        assert!((80..=400).contains(&mser5(&rising)), "{}", mser5(&rising));
        assert_eq!(mser5(&[]), 0);
        assert_eq!(mser5(&[1.0; 100]), 0, "nothing is cut from what does not vary");
        assert!(mser5(&(0..1000).map(f64::from).collect::<Vec<_>>()) <= 500, "at most half");
    }

    #[test]
    fn what_was_not_seen_may_still_be() {
        let bound = rule_of_three(1000.0, 0.95).unwrap();
        assert!((bound - 2.9957e-3).abs() < 1e-6);
        assert!((f64::powi(1.0 - bound, 1000) - 0.05).abs() < 1e-3);
        assert_eq!(rule_of_three(0.0, 0.95), None);
    }

    #[test]
    fn student_t_has_the_published_quantiles() {
        for (freedom, confidence, expect) in
            [(1, 0.95, 12.706), (9, 0.95, 2.262), (29, 0.95, 2.045), (9, 0.99, 3.250)]
        {
            assert!((student_t(freedom, confidence) - expect).abs() < 5e-4, "{freedom}");
        }
        let estimate = Estimate::of([1.0, 2.0, 3.0, f64::NAN].into_iter(), 0.95);
        assert_eq!((estimate.mean, estimate.n), (2.0, 3));
        assert!((estimate.half_width - 4.303 / 3.0f64.sqrt()).abs() < 1e-3);
        assert!(estimate.covers(4.0) && !estimate.covers(5.0));
    }
}
