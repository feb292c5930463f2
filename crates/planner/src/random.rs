//! Random streams and distributions, bit for bit the same on every platform.
//!
//! Each entity and purpose has a stream of its own, so that two scenarios that differ in one thing draw the same numbers
//! everywhere else (common random numbers). Logarithms come from `libm`, not from the platform.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::LazyLock;

/// What a stream is for. With the seed, the replication and the entity it names a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Times between the requests of a user.
    Interval = 1,
    /// Sizes and work of a user's requests.
    Request = 2,
    /// Times to failure of a node.
    Failure = 3,
    /// Times to repair of a node.
    Repair = 4,
    /// Background load of a node.
    Background = 5,
    /// Throughput and background load of links.
    Link = 6,
    /// Start-up times of a service's machines.
    Start = 7,
    /// The policy's own choices.
    Policy = 8,
    /// Which replica takes a request, where replicas have queues of their own.
    Dispatch = 9,
    /// How long a background load of a node lasts.
    BackgroundLasts = 10,
}

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Stream(Xoshiro256PlusPlus);

impl Stream {
    /// The stream of an entity for a purpose in a replication of a run.
    pub fn new(seed: u64, replication: u32, entity: u32, purpose: Purpose) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed_of(seed, replication, entity, purpose)))
    }

    /// A number in (0, 1): never 0, so that its logarithm is finite.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// An exponential variate of mean 1 (ziggurat, Marsaglia and Tsang 2000): nine of ten times a product and a comparison.
    #[inline]
    pub fn exponential(&mut self) -> f64 {
        let ziggurat = &*ZIGGURAT;
        loop {
            let bits = self.0.next_u64();
            // The layer from the lowest bits, the place in it from the highest.
            let layer = (bits & 0xff) as usize;
            let x = ((bits >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64) * ziggurat.x[layer];
            if x < ziggurat.x[layer + 1] {
                return x;
            }
            if let Some(x) = self.beside(ziggurat, layer, x) {
                return x;
            }
        }
    }

    /// A variate from the edge of a layer, if it lies under the curve; from the tail, for the lowest layer.
    #[cold]
    fn beside(&mut self, ziggurat: &Ziggurat, layer: usize, x: f64) -> Option<f64> {
        if layer == 0 {
            return Some(TAIL - libm::log(self.unit()));
        }
        let (low, high) = (ziggurat.f[layer], ziggurat.f[layer + 1]);
        (low + (high - low) * self.unit() < libm::exp(-x)).then_some(x)
    }

    /// A standard normal variate.
    fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(2.0 * self.exponential());
        radius * libm::cos(2.0 * std::f64::consts::PI * self.unit())
    }
}

/// Layers of equal area under exp(-x): where each ends, widest first, and the height of the curve there.
struct Ziggurat {
    x: [f64; 257],
    f: [f64; 257],
}

/// Where the tail of the exponential density begins, and the area of each of 256 layers.
const TAIL: f64 = 7.697_117_470_131_487;
const LAYER: f64 = 3.949_659_822_581_572e-3;

static ZIGGURAT: LazyLock<Ziggurat> = LazyLock::new(|| {
    let (mut x, mut f) = ([0.0; 257], [1.0; 257]);
    // The lowest layer is as wide as if it held its tail too.
    (x[0], x[1]) = (LAYER * libm::exp(TAIL), TAIL);
    for layer in 2..256 {
        let below = x[layer - 1];
        x[layer] = -libm::log(LAYER / below + libm::exp(-below));
    }
    for (f, x) in f.iter_mut().zip(&x) {
        *f = libm::exp(-x);
    }
    Ziggurat { x, f }
});

/// Seed of a stream: each part goes through a full avalanche, so that neighbours are unrelated.
pub(crate) fn seed_of(seed: u64, replication: u32, entity: u32, purpose: Purpose) -> u64 {
    let mix = |z: u64| {
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let parts = [u64::from(replication), u64::from(entity), purpose as u64];
    parts.iter().fold(mix(seed ^ 0x9e37_79b9_7f4a_7c15), |state, part| {
        mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93))
    })
}

/// A distribution of a quantity that is never negative: in a scenario a number (it is then always that) or a table with
/// its kind. Its unit is that of its key.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Distribution {
    /// Always the same.
    Constant(f64),
    /// One of the others.
    Random(RandomKind),
}

/// A distribution that is not constant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RandomKind {
    /// Evenly between two values.
    Uniform {
        /// Least value.
        low: f64,
        /// Greatest value.
        high: f64,
    },
    /// Memoryless.
    Exponential {
        /// Mean.
        mean: f64,
    },
    /// Normal; what would be negative is 0.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        deviation: f64,
    },
    /// Sum of exponential phases.
    Erlang {
        /// Mean of the sum.
        mean: f64,
        /// Number of phases, 1 to 1,000.
        phases: u32,
    },
    /// Weibull.
    Weibull {
        /// Scale.
        scale: f64,
        /// Shape; 1 is exponential.
        shape: f64,
    },
    /// Pareto.
    Pareto {
        /// Least value.
        least: f64,
        /// Shape; the mean is finite above 1, the variance above 2.
        shape: f64,
    },
    /// Any of the values, each as likely as the others.
    Empirical {
        /// The values.
        values: Vec<f64>,
    },
}

impl<'de> Deserialize<'de> for Distribution {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Distribution;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a number or a table with `kind`, like { kind = \"exponential\", mean = 2.0 }",
                )
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Distribution, E> {
                Ok(Distribution::Constant(value))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Distribution, E> {
                Ok(Distribution::Constant(value as f64))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Distribution, E> {
                Ok(Distribution::Constant(value as f64))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Distribution, A::Error> {
                RandomKind::deserialize(MapAccessDeserializer::new(map)).map(Distribution::Random)
            }
        }
        from.deserialize_any(Either)
    }
}

impl Distribution {
    /// An exponential distribution.
    pub const fn exponential(mean: f64) -> Self {
        Self::Random(RandomKind::Exponential { mean })
    }

    /// One value.
    #[inline]
    pub fn sample(&self, stream: &mut Stream) -> f64 {
        match self {
            Self::Constant(value) => *value,
            Self::Random(RandomKind::Exponential { mean }) => mean * stream.exponential(),
            Self::Random(kind) => kind.sample(stream),
        }
    }

    /// The same with each value multiplied by a factor above 0.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        match self {
            Self::Constant(value) => Self::Constant(value * factor),
            Self::Random(kind) => Self::Random(kind.scaled(factor)),
        }
    }

    /// The mean; infinite for a Pareto distribution of shape 1 and below.
    pub fn mean(&self) -> f64 {
        match self {
            Self::Constant(value) => *value,
            Self::Random(kind) => kind.mean(),
        }
    }

    /// The mean when the distribution is exponential: what a Markov chain needs.
    pub fn exponential_mean(&self) -> Option<f64> {
        match self {
            Self::Random(
                RandomKind::Exponential { mean } | RandomKind::Erlang { mean, phases: 1 },
            ) => Some(*mean),
            Self::Random(RandomKind::Weibull { scale, shape: 1.0 }) => Some(*scale),
            _ => None,
        }
    }

    /// What is wrong with its parameters, if anything is.
    pub fn problem(&self) -> Option<&'static str> {
        let positive = |value: &f64| value.is_finite() && *value > 0.0;
        let natural = |value: &f64| value.is_finite() && *value >= 0.0;
        match self {
            Self::Constant(value) if !natural(value) => Some("must not be negative"),
            Self::Constant(_) => None,
            Self::Random(kind) => match kind {
                RandomKind::Uniform { low, high }
                    if !natural(low) || !natural(high) || low > high =>
                {
                    Some("needs 0 <= low <= high")
                }
                RandomKind::Exponential { mean } if !positive(mean) => Some("needs a mean above 0"),
                RandomKind::Normal { mean, deviation } if !natural(mean) || !natural(deviation) => {
                    Some("needs a mean and a deviation of 0 or more")
                }
                RandomKind::Erlang { mean, phases }
                    if !positive(mean) || !(1..=1000).contains(phases) =>
                {
                    Some("needs a mean above 0 and 1 to 1000 phases")
                }
                RandomKind::Weibull { scale: a, shape: b }
                | RandomKind::Pareto { least: a, shape: b }
                    if !positive(a) || !positive(b) =>
                {
                    Some("needs parameters above 0")
                }
                RandomKind::Empirical { values }
                    if values.is_empty() || !values.iter().all(natural) =>
                {
                    Some("needs at least one value, none negative")
                }
                _ => None,
            },
        }
    }
}

impl RandomKind {
    fn scaled(&self, by: f64) -> Self {
        let mut kind = self.clone();
        match &mut kind {
            Self::Uniform { low, high } => (*low, *high) = (*low * by, *high * by),
            Self::Exponential { mean } | Self::Erlang { mean, .. } => *mean *= by,
            Self::Normal { mean, deviation } => (*mean, *deviation) = (*mean * by, *deviation * by),
            Self::Weibull { scale: size, .. } | Self::Pareto { least: size, .. } => *size *= by,
            Self::Empirical { values } => values.iter_mut().for_each(|value| *value *= by),
        }
        kind
    }

    fn sample(&self, stream: &mut Stream) -> f64 {
        match self {
            Self::Uniform { low, high } => low + (high - low) * stream.unit(),
            Self::Exponential { mean } => mean * stream.exponential(),
            Self::Normal { mean, deviation } => (mean + deviation * stream.normal()).max(0.0),
            Self::Erlang { mean, phases } => {
                let sum: f64 = (0..*phases).map(|_| stream.exponential()).sum();
                sum * mean / f64::from(*phases)
            }
            Self::Weibull { scale, shape } => scale * libm::pow(stream.exponential(), 1.0 / shape),
            Self::Pareto { least, shape } => least * libm::exp(stream.exponential() / shape),
            Self::Empirical { values } => values[stream.below(values.len())],
        }
    }

    fn mean(&self) -> f64 {
        match self {
            Self::Uniform { low, high } => (low + high) / 2.0,
            Self::Exponential { mean } | Self::Erlang { mean, .. } => *mean,
            Self::Normal { mean, deviation } => {
                if *deviation == 0.0 {
                    return *mean;
                }
                // Mean of max(0, X): the part below zero counts as zero.
                let z = mean / deviation;
                let density = libm::exp(-z * z / 2.0) / libm::sqrt(2.0 * std::f64::consts::PI);
                let below = 0.5 * libm::erfc(z / std::f64::consts::SQRT_2);
                mean * (1.0 - below) + deviation * density
            }
            Self::Weibull { scale, shape } => scale * libm::tgamma(1.0 + 1.0 / shape),
            Self::Pareto { least, shape } if *shape > 1.0 => least * shape / (shape - 1.0),
            Self::Pareto { .. } => f64::INFINITY,
            Self::Empirical { values } => values.iter().sum::<f64>() / values.len() as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_the_mean_that_is_said() {
        let all = [
            RandomKind::Uniform { low: 1.0, high: 4.0 },
            RandomKind::Exponential { mean: 2.0 },
            RandomKind::Normal { mean: 1.0, deviation: 2.0 },
            RandomKind::Erlang { mean: 3.0, phases: 4 },
            RandomKind::Weibull { scale: 2.0, shape: 0.8 },
            RandomKind::Pareto { least: 1.0, shape: 3.5 },
            RandomKind::Empirical { values: vec![1.0, 2.0, 6.0] },
        ];
        for (entity, kind) in all.into_iter().enumerate() {
            let distribution = Distribution::Random(kind);
            assert_eq!(distribution.problem(), None);
            let mut stream = Stream::new(1, 0, entity as u32, Purpose::Request);
            let n = 400_000;
            let samples: Vec<f64> = (0..n).map(|_| distribution.sample(&mut stream)).collect();
            let mean = samples.iter().sum::<f64>() / f64::from(n);
            let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
            let error = (squares / f64::from(n)).sqrt() / f64::from(n).sqrt();
            let off = (mean - distribution.mean()).abs();
            assert!(off < 4.0 * error, "{distribution:?}: {mean}, {} is said", distribution.mean());
            assert!(samples.iter().all(|x| *x >= 0.0 && x.is_finite()));
            let thrice = distribution.scaled(3.0).mean();
            assert!((thrice / distribution.mean() - 3.0).abs() < 1e-9);
        }
    }

    #[test]
    fn exponential_variates_have_the_exponential_tail() {
        let mut stream = Stream::new(5, 0, 0, Purpose::Interval);
        let n = 2_000_000;
        let samples: Vec<f64> = (0..n).map(|_| stream.exponential()).collect();
        // Within a layer, at its edges, in the tail.
        for beyond in [1e-3, 0.1, 0.5, 1.0, 2.0, 4.0, 7.0, 7.6, 8.0, 10.0] {
            let share = f64::exp(-beyond);
            let is = samples.iter().filter(|x| **x > beyond).count() as f64 / f64::from(n);
            let error = (share * (1.0 - share) / f64::from(n)).sqrt();
            assert!((is - share).abs() < 4.5 * error, "beyond {beyond}: {is}, not {share}");
        }
        assert!(samples.iter().all(|x| *x > 0.0 && x.is_finite()));
    }

    #[test]
    fn streams_are_named_for_ever_and_differ() {
        let first =
            |seed, replication, entity, purpose| seed_of(seed, replication, entity, purpose);
        // A changed number would change every recorded run.
        assert_eq!(first(1, 0, 0, Purpose::Interval), first(1, 0, 0, Purpose::Interval));
        let mut all = vec![];
        for seed in 0..5 {
            for replication in 0..5 {
                for entity in 0..5 {
                    all.push(first(seed, replication, entity, Purpose::Failure));
                    all.push(first(seed, replication, entity, Purpose::Repair));
                }
            }
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_number_or_a_table_is_a_distribution() {
        #[derive(Deserialize)]
        struct Key {
            key: Distribution,
        }
        let parse = |text: &str| toml::from_str::<Key>(text).map(|key| key.key);
        assert_eq!(parse("key = 3").unwrap(), Distribution::Constant(3.0));
        assert_eq!(parse("key = 0.5").unwrap(), Distribution::Constant(0.5));
        assert_eq!(
            parse("key = { kind = \"exponential\", mean = 2 }").unwrap(),
            Distribution::exponential(2.0)
        );
        assert!(parse("key = { kind = \"exponential\", rate = 2.0 }").is_err());
        assert!(parse("key = \"fast\"").is_err());
        assert!(Distribution::Constant(f64::NAN).problem().is_some());
    }
}
