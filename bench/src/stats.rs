//! What a number of measurements says.

/// Measurements of one thing, in one unit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    sorted: Vec<f64>,
}

impl Sample {
    /// A sample of these values. Values that are no numbers are left out.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The values, smallest first.
    pub fn values(&self) -> &[f64] {
        &self.sorted
    }

    /// The value below which a `share` (0 to 1) of the values lie, interpolated between neighbours (type 7 of Hyndman and
    /// Fan, as in most tools); 0 for no values.
    pub fn quantile(&self, share: f64) -> f64 {
        let Some(last) = self.sorted.len().checked_sub(1) else { return 0.0 };
        let place = share.clamp(0.0, 1.0) * last as f64;
        let (below, part) = (place.floor(), place.fract());
        let low = self.sorted[below as usize];
        let high = self.sorted[(below as usize + 1).min(last)];
        low + (high - low) * part
    }

    /// The middle; 0 for no values.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The arithmetic mean; 0 for no values.
    pub fn mean(&self) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        self.sorted.iter().sum::<f64>() / self.sorted.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], share: f64, expect: f64) {
        let got = Sample::new(values.iter().copied()).quantile(share);
        assert!((got - expect).abs() < 1e-9, "{share} of {values:?} is {got}, not {expect}");
    }

    #[test]
    fn quantiles() {
        check(&[], 0.5, 0.0);
        check(&[7.0], 0.1, 7.0);
        check(&[3.0, 1.0, 2.0], 0.5, 2.0);
        check(&[4.0, 1.0, 3.0, 2.0], 0.5, 2.5);
        check(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0], 0.1, 2.0);
        check(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0], 0.9, 10.0);
        check(&[1.0, 2.0], 2.0, 2.0);
        check(&[1.0, 2.0], -1.0, 1.0);
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let sample = Sample::new([1.0, f64::NAN, 3.0, f64::INFINITY]);
        assert_eq!(sample.values(), [1.0, 3.0]);
        assert!((sample.mean() - 2.0).abs() < 1e-9);
        assert!((Sample::default().mean()).abs() < 1e-9 && Sample::default().is_empty());
    }
}
