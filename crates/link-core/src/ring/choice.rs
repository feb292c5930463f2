//! Which path the bulk of a direction takes to another host: both are measured with the program's own bytes, and chosen.
//!
//! ```text
//!          10 MB in a second or more                 TCP brings a tenth more
//!  few bytes ────────────▶ light: measured ─▶ TCP: measured ──────────▶ TCP, for a while ─┐
//!   ▲ light                      ▲                  │ no                      ▲           │ measured again
//!   │ whenever bytes are few     │                  ▼                         │ still     ▼
//!   └────────────────────────────└───── light, for a while ◀───── no ──── light: measured
//! ```
//! The light protocol takes two copies more than TCP on each host. Where a wire is the limit, or bytes are few, that costs nothing;
//! where the processor is, TCP with its offloads may bring more, and then the bulk goes there. What is measured is what
//! arrives on both paths together while one of them is preferred: bytes that a full ring sends on TCP count as what they are. The best
//! of some short parts counts, because what others do on the host only ever makes a part slower.
//!
//! Time is nanoseconds of the caller's clock; there is no clock in here.

/// The clock is read, and what has arrived, once in so many bytes sent.
const STEP: u64 = 256 << 10;
/// A step takes at most so long where bytes are many: 10 MB/s.
const STEP_NS_MAX: u64 = 25_000_000;
/// And at most so long on TCP once that was chosen: a program that gets no processor for some time slices has not become quiet, and
/// each change of path waits for programs that get none either.
const STEP_ON_TCP_NS_MAX: u64 = 250_000_000;
/// The beginning of a measurement that does not count: what the other path has queued drains, and windows open. Time, and bytes
/// that arrive: a whole ring, and as much again.
const WARM: (u64, u64) = (10_000_000, 2 << 20);
/// What counts is the best of so many parts: a processor given to somebody else for some time slices spoils one or two.
const PARTS: u32 = 3;
/// A part: so long, and so many bytes that a ring's steps, an eighth of a MiB each, are a tenth of it at most.
const PART: (u64, u64) = (10_000_000, 5 << 18);
/// The other path is left at once if its first part brought less than the chosen path by so many times.
const LOSES: u64 = 2;
/// And while it is still warming up, if after so long it has brought less by twice that: on a wire that loses frames TCP takes long for
/// the bytes of a part.
const PATIENCE_NS: u64 = 50_000_000;
/// How much more TCP must bring, in tenths: a near tie is the wire's limit, and there the shorter header brings more than a short
/// measurement can see.
const TCP_ADVANTAGE_TENTHS: u128 = 11;
/// How long a choice holds, and how long at most after it was confirmed again and again: a measurement of the slower path costs
/// its bytes 20 to 40 ms.
const HOLD_NS: (u64, u64) = (4_000_000_000, 64_000_000_000);
/// How long TCP holds first where the other path lost clearly: a stream of some seconds should not pay for a second look.
const HOLD_CLEAR_NS: u64 = 16_000_000_000;
/// How long the light path holds first. Measuring TCP costs little where a wire is the limit; and where the processor is, the wrong
/// choice, for which others that took the processor meanwhile are enough, costs most.
const HOLD_LIGHT_NS: u64 = 500_000_000;

/// A path to another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum Path {
    /// The ring, and the light protocol behind it.
    #[default]
    Light,
    /// TCP.
    Tcp,
}

impl Path {
    const fn other(self) -> Self {
        match self {
            Self::Light => Self::Tcp,
            Self::Tcp => Self::Light,
        }
    }
}

/// What is measured now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
enum Trial {
    #[default]
    None,
    /// The path that is chosen.
    Chosen,
    /// The other one.
    Other,
}

/// The choice of one direction's path. It lives where [`super::Tx`] does, and under the same lock.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Choice {
    chosen: Path,
    trial: Trial,
    is_bulk: bool,
    is_warm: bool,
    /// Bytes sent since the last look, and when that was.
    bytes: u64,
    looked_at: u64,
    /// Where the part of the trial that is under way began: when, and what had arrived.
    from: (u64, u64),
    /// Parts of this path that were measured, and the best: bytes per second.
    parts: u32,
    best: u64,
    /// The best of the trial's first path.
    first: u64,
    /// How long the choice holds, and until when.
    hold: u64,
    until: u64,
}

impl Choice {
    /// The path to send on.
    pub fn path(&self) -> Path {
        match self.trial {
            _ if !self.is_bulk => Path::Light,
            Trial::Other => self.chosen.other(),
            Trial::None | Trial::Chosen => self.chosen,
        }
    }

    /// Whether bytes go to TCP because it has brought more.
    pub fn prefers_tcp(&self) -> bool {
        self.is_bulk && self.chosen == Path::Tcp
    }

    /// That many bytes were sent, on either path.
    pub fn sent(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether [`Choice::look`] is due: after each step, and before each send that would go to TCP, for bytes may have become few.
    pub fn wants_look(&self) -> bool {
        self.bytes >= STEP || self.path() == Path::Tcp
    }

    /// Looks at the clock, and at what has arrived on both paths together if that is of interest. `None` of it: the kernel does not
    /// tell any more, and nothing is chosen.
    pub fn look(&mut self, now: u64, arrived: impl FnOnce() -> Option<u64>) {
        let took = now.saturating_sub(self.looked_at);
        let most = if self.prefers_tcp() { STEP_ON_TCP_NS_MAX } else { STEP_NS_MAX };
        if self.bytes < STEP {
            self.is_bulk &= took <= most;
            return;
        }
        self.bytes = 0;
        self.looked_at = now;
        self.is_bulk = took <= most;
        if !self.is_bulk {
            // On the path that was tried: it is too slow for bulk, or there is a pause. Not again at once.
            if self.trial == Trial::Other {
                self.settle(self.chosen, now);
            }
            self.trial = Trial::None;
        } else if self.trial != Trial::None || now >= self.until {
            match arrived() {
                Some(arrived) => self.measure(now, arrived),
                None => *self = Self::default(),
            }
        }
    }

    fn measure(&mut self, now: u64, arrived: u64) {
        if self.trial == Trial::None {
            return self.begin(Trial::Chosen, now, arrived);
        }
        let span = now.saturating_sub(self.from.0);
        let bytes = arrived.saturating_sub(self.from.1);
        let rate = u128::from(bytes) * 1_000_000_000 / u128::from(span.max(1));
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let is_other = self.trial == Trial::Other;
        if is_other && span >= PATIENCE_NS && rate < self.first / LOSES / 2 {
            return self.settle(self.chosen, now);
        }
        let enough = if self.is_warm { PART } else { WARM };
        if span < enough.0 || bytes < enough.1 {
            return;
        }
        self.from = (now, arrived);
        if !self.is_warm {
            self.is_warm = true;
            return;
        }
        self.best = self.best.max(rate);
        self.parts += 1;
        let is_lost = is_other && self.best < self.first / LOSES;
        if self.parts < PARTS && !is_lost {
            return;
        }
        if !is_other {
            self.first = self.best;
            return self.begin(Trial::Other, now, arrived);
        }
        let (light, tcp) = match self.chosen {
            Path::Light => (self.first, self.best),
            Path::Tcp => (self.best, self.first),
        };
        let is_faster = u128::from(tcp) * 10 > u128::from(light) * TCP_ADVANTAGE_TENTHS;
        self.settle(if is_faster { Path::Tcp } else { Path::Light }, now);
        if is_faster && tcp / LOSES > light && self.hold < HOLD_CLEAR_NS {
            self.hold = HOLD_CLEAR_NS;
            self.until = now.saturating_add(self.hold);
        }
    }

    fn begin(&mut self, trial: Trial, now: u64, arrived: u64) {
        self.trial = trial;
        self.is_warm = false;
        self.from = (now, arrived);
        (self.parts, self.best) = (0, 0);
    }

    fn settle(&mut self, path: Path, now: u64) {
        let is_confirmed = path == self.chosen && self.hold > 0;
        let first = if path == Path::Light { HOLD_LIGHT_NS } else { HOLD_NS.0 };
        self.hold = if is_confirmed { (self.hold * 2).min(HOLD_NS.1) } else { first };
        self.chosen = path;
        self.until = now.saturating_add(self.hold);
        self.trial = Trial::None;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    /// A sender whose bytes arrive at once, at the rate of the path.
    struct World {
        choice: Choice,
        now: u64,
        arrived: u64,
        on: [u64; 2],
    }

    impl World {
        fn new() -> Self {
            Self { choice: Choice::default(), now: 5 * SECOND, arrived: 0, on: [0; 2] }
        }

        /// Writes of 64 KiB for so many nanoseconds, at these bytes per second on the light path and on TCP.
        fn run(&mut self, span: u64, light: u64, tcp: u64) {
            const WRITE: u64 = 64 << 10;
            let end = self.now + span;
            self.on = [0; 2];
            while self.now < end {
                let (now, arrived) = (self.now, self.arrived);
                if self.choice.wants_look() {
                    self.choice.look(now, || Some(arrived));
                }
                let (rate, place) = match self.choice.path() {
                    Path::Light => (light, 0),
                    Path::Tcp => (tcp, 1),
                };
                self.choice.sent(WRITE);
                self.arrived += WRITE;
                self.now += WRITE * SECOND / rate;
                self.on[place] += WRITE;
            }
        }

        /// Of a hundred bytes, so many on TCP.
        fn on_tcp(&self) -> u64 {
            100 * self.on[1] / (self.on[0] + self.on[1]).max(1)
        }
    }

    #[test]
    fn the_faster_path_has_the_bulk() {
        for (light, tcp, least, most) in [
            // No wire: TCP brings three times as much.
            (1_000_000_000, 3_000_000_000, 99, 100),
            // A full wire of 1 Gbit/s; a wire on which TCP suffers.
            (122_000_000, 119_000_000, 0, 3),
            (110_000_000, 20_000_000, 0, 3),
            // A near tie, and a slow wire, on which nothing is tried.
            (1_000_000_000, 1_090_000_000, 0, 3),
            (5_000_000, 50_000_000, 0, 0),
        ] {
            let mut world = World::new();
            world.run(SECOND, light, tcp);
            world.run(20 * SECOND, light, tcp);
            let found = world.on_tcp();
            assert!((least..=most).contains(&found), "{light} beside {tcp}: {found} of 100");
            assert_eq!(world.choice.prefers_tcp(), least > 0);
        }
    }

    #[test]
    fn what_others_take_of_the_processor_does_not_choose() {
        // TCP brings three times as much; for 20 ms of each 37 the sender does not run.
        let mut world = World::new();
        let begun = world.now;
        while !world.choice.prefers_tcp() {
            assert!(world.now < begun + SECOND, "a second, and still the light path");
            world.run(17_000_000, 1_000_000_000, 3_000_000_000);
            world.now += 20_000_000;
        }
    }

    #[test]
    fn a_path_that_loses_clearly_is_left_soon() {
        let mut world = World::new();
        world.run(SECOND, 300_000_000, 3_000_000_000);
        assert!(world.choice.prefers_tcp());
        // The light path, a tenth as fast, is tried once more: to warm up, and for one part.
        world.run(16 * SECOND, 300_000_000, 3_000_000_000);
        let most = 300_000 * 30;
        assert!((1..most).contains(&world.on[0]), "{} bytes", world.on[0]);
        // On a wire that loses frames TCP is left before it has brought the bytes of a part.
        let mut world = World::new();
        world.run(SECOND / 2, 110_000_000, 5_000_000);
        assert!((1..5_000 * 80).contains(&world.on[1]), "{} bytes", world.on[1]);
    }

    #[test]
    fn few_bytes_take_the_light_path_again_and_many_the_chosen_one() {
        let mut world = World::new();
        world.run(SECOND, 1_000_000_000, 3_000_000_000);
        assert!(world.choice.prefers_tcp());
        // A write each 100 ms, after a while without any.
        world.now += SECOND / 4;
        for _ in 0..5 {
            world.now += SECOND / 10;
            let now = world.now;
            assert!(
                !world.choice.wants_look() || {
                    world.choice.look(now, || None);
                    true
                }
            );
            assert_eq!(world.choice.path(), Path::Light);
            world.choice.sent(1000);
        }
        // Bulk again: nothing is measured anew.
        world.run(SECOND / 10, 1_000_000_000, 3_000_000_000);
        assert!(world.on_tcp() > 95, "{}", world.on_tcp());
    }

    #[test]
    fn a_path_that_changes_is_found() {
        let mut world = World::new();
        world.run(10 * SECOND, 1_000_000_000, 3_000_000_000);
        assert!(world.choice.prefers_tcp());
        // Somebody limits the wire.
        world.run(70 * SECOND, 120_000_000, 117_000_000);
        assert!(!world.choice.prefers_tcp());
        assert_eq!(world.choice.path(), Path::Light);
    }

    #[test]
    fn without_the_kernels_word_nothing_is_chosen() {
        let mut choice = Choice::default();
        for now in 1..1000 {
            choice.sent(STEP);
            choice.look(now * 1_000_000, || None);
            assert_eq!(choice.path(), Path::Light);
        }
    }

    proptest! {
        #[test]
        fn any_clock_and_any_figures_are_borne(
            steps in prop::collection::vec((any::<u64>(), any::<Option<u64>>(), any::<u64>()), 1..200),
        ) {
            let mut choice = Choice::default();
            for (now, arrived, bytes) in steps {
                choice.sent(bytes);
                choice.look(now, || arrived);
                let _ = choice.path();
            }
        }
    }
}
