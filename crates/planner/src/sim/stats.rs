//! What a replication measures: sums in cells of equal length, so that the beginning can be cut off afterwards, and memory
//! does not grow with the length of the run.

use super::events::{Nanos, secs};
use crate::output::mser5;
use crate::scenario::WarmUp;
use hdrhistogram::Histogram;

/// Cells of a replication: multiples of 5 and 8. 1,000 for few services, 200 for many.
const CELLS: usize = 1000;

/// One part in so many is cut off at least, whatever MSER-5 says. It cuts where the rest varies least, and that is too early whenever
/// the beginning happens to look like the rest: M/M/1 at load 0.9 came out 0.8 % too low on runs of 20,000 s, and 91.7 % of the 95 %
/// intervals held the exact value. Intervals are 5 % wider for it.
const CUT_LEAST: usize = 10;

/// Parts of a replication that have a histogram each.
const PARTS: usize = 8;

/// Longest time that is counted exactly, microseconds: 100 days. What takes longer counts as this.
const LONGEST_US: u64 = 100 * 24 * 3600 * 1_000_000;

/// Sums over a span of time, of one service.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Length of the span, seconds.
    pub secs: f64,
    /// Requests sent.
    pub generated: f64,
    /// Requests answered.
    pub served: f64,
    /// Requests refused because the queue was full.
    pub refused: f64,
    /// Requests lost with a node.
    pub lost: f64,
    /// Requests that went back to the queue because their machine went.
    pub returned: f64,
    /// Time from sending to answer of the answered ones, seconds.
    pub in_system: f64,
    /// Time in the queue of the answered ones, seconds.
    pub in_queue: f64,
    /// Time at a machine of the answered ones, seconds.
    pub in_service: f64,
    /// Waiting requests times seconds.
    pub area_waiting: f64,
    /// Requests in service times seconds.
    pub area_busy: f64,
    /// Ready replicas times seconds.
    pub area_ready: f64,
    /// Starting replicas times seconds.
    pub area_starting: f64,
    /// Working nodes times seconds.
    pub area_nodes: f64,
    /// Replicas added.
    pub replications: f64,
    /// Replicas removed.
    pub dereplications: f64,
    /// Changes from adding to removing and back.
    pub turns: f64,
    /// Replicas that came to serve on another node.
    pub migrations: f64,
    /// Time in which replicas on their way served nothing, seconds.
    pub paused: f64,
    /// Code and state sent to new replicas, MiB.
    pub transferred_mib: f64,
    /// Plans that could not place a machine.
    pub unplaceable: f64,
}

impl Sums {
    fn fields(&mut self) -> [&mut f64; 21] {
        [
            &mut self.secs,
            &mut self.generated,
            &mut self.served,
            &mut self.refused,
            &mut self.lost,
            &mut self.returned,
            &mut self.in_system,
            &mut self.in_queue,
            &mut self.in_service,
            &mut self.area_waiting,
            &mut self.area_busy,
            &mut self.area_ready,
            &mut self.area_starting,
            &mut self.area_nodes,
            &mut self.replications,
            &mut self.dereplications,
            &mut self.turns,
            &mut self.migrations,
            &mut self.paused,
            &mut self.transferred_mib,
            &mut self.unplaceable,
        ]
    }

    pub(super) fn add(&mut self, mut other: Self) {
        for (sum, more) in self.fields().into_iter().zip(other.fields()) {
            *sum += *more;
        }
    }
}

/// Machines of a service, and the nodes that it may use.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Machines {
    /// Ready replicas.
    pub(super) ready: u32,
    /// Starting replicas.
    pub(super) starting: u32,
    /// Working nodes.
    pub(super) nodes: u32,
}

/// How often each time came, in microseconds: in one step, and in the classes of [`histogram`], which takes them over at the end.
#[derive(Debug, Clone)]
struct Times(Vec<u32>);

impl Times {
    /// Each class of the times up to the longest.
    fn new() -> Self {
        Self(vec![0; Self::class(LONGEST_US) + 1])
    }

    /// Below 256 each time is a class; above, what has its eight highest bits in common.
    #[inline]
    fn class(micros: u64) -> usize {
        let beyond = (micros | 255).ilog2() - 7;
        (beyond as usize * 128) + (micros >> beyond) as usize
    }

    #[inline]
    fn count(&mut self, micros: u64) {
        let class = Self::class(micros.min(LONGEST_US));
        self.0[class] += 1;
    }

    fn add_to(&self, histogram: &mut Histogram<u32>) {
        for (class, count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            let beyond = (class / 128).saturating_sub(1);
            // Both have the same bounds.
            let _ = histogram.record_n(((class - beyond * 128) as u64) << beyond, *count);
        }
    }
}

/// What is counted of one service while a replication runs.
#[derive(Debug)]
pub(super) struct Meter {
    /// Sums of the current cell.
    pub(super) sums: Sums,
    since: Nanos,
    /// Requests waiting.
    pub(super) waiting: u32,
    /// Requests in service.
    pub(super) busy: u32,
    machines: Machines,
    machines_since: Nanos,
    cells: Vec<Sums>,
    times: Vec<Times>,
    cells_max: usize,
    /// The part of the cells that is in progress.
    part: usize,
}

impl Meter {
    pub(super) fn new(cells_max: usize) -> Self {
        Self {
            sums: Sums::default(),
            since: 0,
            waiting: 0,
            busy: 0,
            machines: Machines::default(),
            machines_since: 0,
            cells: Vec::with_capacity(cells_max),
            times: vec![],
            cells_max,
            part: 0,
        }
    }

    /// Brings the areas of requests up to date. To be called before any of their counts changes.
    #[inline]
    pub(super) fn touch(&mut self, now: Nanos) {
        let dt = secs(now - self.since);
        self.since = now;
        self.sums.area_waiting += dt * f64::from(self.waiting);
        self.sums.area_busy += dt * f64::from(self.busy);
    }

    /// Machines and nodes as they are now.
    #[inline]
    pub(super) fn machines(&self) -> Machines {
        self.machines
    }

    /// The same, to be changed: their areas are up to date.
    pub(super) fn machines_at(&mut self, now: Nanos) -> &mut Machines {
        let dt = secs(now - self.machines_since);
        self.machines_since = now;
        self.sums.area_ready += dt * f64::from(self.machines.ready);
        self.sums.area_starting += dt * f64::from(self.machines.starting);
        self.sums.area_nodes += dt * f64::from(self.machines.nodes);
        &mut self.machines
    }

    /// Counts an answered request: times from sending to answer, in the queue, and at a machine.
    #[inline]
    pub(super) fn answered(&mut self, system: Nanos, queue: Nanos, service: Nanos) {
        self.sums.served += 1.0;
        self.sums.in_system += secs(system);
        self.sums.in_queue += secs(queue);
        self.sums.in_service += secs(service);
        if self.times.len() <= self.part {
            self.times.resize_with(self.part + 1, Times::new);
        }
        self.times[self.part].count(system / 1000);
    }

    /// Ends a cell.
    pub(super) fn cell(&mut self, now: Nanos, length_secs: f64) {
        self.touch(now);
        self.machines_at(now);
        self.sums.secs = length_secs;
        self.cells.push(std::mem::take(&mut self.sums));
        self.part = (self.cells.len() * PARTS / self.cells_max).min(PARTS - 1);
    }

    /// All that was counted.
    pub(super) fn raw(self) -> Raw {
        Raw {
            cells: self.cells,
            times: self.times,
            cells_max: self.cells_max,
            left_waiting: self.waiting,
            left_in_service: self.busy,
        }
    }
}

/// What a replication counted of a service, before the beginning is cut off.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    cells: Vec<Sums>,
    times: Vec<Times>,
    cells_max: usize,
    left_waiting: u32,
    left_in_service: u32,
}

impl Raw {
    /// Whether it is of a whole replication.
    pub(super) fn is_whole(&self) -> bool {
        self.cells.len() == self.cells_max
    }

    /// Cells to cut off from replications of one service. MSER-5 looks at their mean: of a single one that varies slowly it
    /// would keep what happens to be calm, and be wrong by it.
    pub(crate) fn cut(all: &[&Self], warm_up: WarmUp) -> usize {
        let cells = all.iter().map(|it| it.cells.len()).min().unwrap_or(0);
        match warm_up {
            WarmUp::None => 0,
            WarmUp::Fixed { secs } => {
                let length: f64 =
                    all.first().map_or(0.0, |it| it.cells.iter().map(|cell| cell.secs).sum());
                ((secs / length) * cells as f64).ceil() as usize
            }
            WarmUp::Mser5 => {
                let in_system = |at: usize| {
                    let of = |it: &&Self| {
                        let cell = &it.cells[at];
                        (cell.area_waiting + cell.area_busy) / cell.secs.max(1e-12)
                    };
                    all.iter().map(of).sum::<f64>()
                };
                let calm = mser5(&(0..cells).map(in_system).collect::<Vec<f64>>());
                calm.max(cells / CUT_LEAST)
            }
        }
    }

    /// What is left after so many cells are cut off.
    pub(crate) fn measured(&self, cut: usize) -> Measured {
        let cut = cut.min(self.cells.len());
        let mut sums = Sums::default();
        for cell in &self.cells[cut..] {
            sums.add(*cell);
        }
        let mut times = histogram();
        let first = (cut * PARTS).div_ceil(self.cells_max);
        for part in self.times.iter().skip(first) {
            part.add_to(&mut times);
        }
        // A sum of nothing is -0.
        let cut_secs = self.cells[..cut].iter().fold(0.0, |sum, cell| sum + cell.secs);
        let (left_waiting, left_in_service) = (self.left_waiting, self.left_in_service);
        Measured { sums, times, cut_secs, left_waiting, left_in_service }
    }

    /// What is left of each of several replications of one service. Where MSER-5 looks for the cut, it looks at every second one, for
    /// those between them: a cut that is found in what it is made in cuts off what happens to be high as well.
    pub(crate) fn all_measured(all: &[&Self], warm_up: WarmUp) -> Vec<Measured> {
        let half = |from: usize| all.iter().copied().skip(from).step_by(2).collect::<Vec<_>>();
        let cuts = match warm_up {
            WarmUp::Mser5 if all.len() >= 4 => [1, 0].map(|other| Self::cut(&half(other), warm_up)),
            WarmUp::Mser5 | WarmUp::Fixed { .. } | WarmUp::None => [Self::cut(all, warm_up); 2],
        };
        all.iter().enumerate().map(|(at, it)| it.measured(cuts[at % 2])).collect()
    }
}

fn histogram() -> Histogram<u32> {
    let made = Histogram::new_with_bounds(1, LONGEST_US, 2);
    made.unwrap_or_else(|_| unreachable!("1 to LONGEST_US with two digits is a valid range"))
}

/// Cells for a run of so many services.
pub(super) const fn cells_for(services: usize) -> usize {
    if services <= 32 { CELLS } else { CELLS / 5 }
}

/// What a replication measured of one service.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Sums after the beginning was cut off.
    pub sums: Sums,
    /// Times from sending to answer, microseconds, to 1 %.
    times: Histogram<u32>,
    /// What was cut off, seconds.
    pub cut_secs: f64,
    /// Requests that wait at the end.
    pub left_waiting: u32,
    /// Requests in service at the end.
    pub left_in_service: u32,
}

impl Measured {
    /// A quantile of the time from sending to answer, seconds, to 1 %; none when nothing was answered.
    pub fn time_quantile(&self, quantile: f64) -> Option<f64> {
        (!self.times.is_empty()).then(|| self.times.value_at_quantile(quantile) as f64 * 1e-6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};

    #[test]
    fn times_are_in_the_classes_of_the_histogram() {
        let mut stream = Stream::new(1, 0, 0, Purpose::Request);
        let (mut times, mut expect) = (Times::new(), histogram());
        let edges = (0..44).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]);
        let drawn = (0..20_000)
            .map(|_| (stream.exponential() * 10_f64.powi(stream.below(12) as i32)) as u64);
        for micros in (0..1000).chain(edges).chain(drawn).map(|it: u64| it.min(LONGEST_US)) {
            times.count(micros);
            expect.saturating_record(micros);
        }
        let mut is = histogram();
        times.add_to(&mut is);
        let counts = |of: &Histogram<u32>| -> Vec<(u64, u32)> {
            of.iter_recorded().map(|it| (it.value_iterated_to(), it.count_at_value())).collect()
        };
        assert_eq!(counts(&is), counts(&expect));
        // Longer ones count as the longest.
        times.count(u64::MAX);
    }
}
