//! The plan's random numbers: a named generator, so that the same seed gives the same plan on every platform
//! and with every later version.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// A stream of random numbers (xoshiro256++). Not for secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRng(Xoshiro256PlusPlus);

impl PlanRng {
    /// The stream of a seed; equal seeds give equal streams.
    pub fn from_seed(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`, or 0 when `bound` is 0. The bias is below `bound` in 2^64.
    pub fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.next_u64()) * bound as u128;
        (wide >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_a_stream_for_ever() {
        let mut rng = PlanRng::from_seed(1);
        // A changed first number would change every recorded plan and simulation.
        assert_eq!(rng.next_u64(), 14_971_601_782_005_023_387);
        assert_eq!(rng.below(0), 0);
        assert!((0..1000).all(|_| rng.below(3) < 3));
    }
}
