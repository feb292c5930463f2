//! Whether a direction between two programs of one host is better off on the ring: where nearly every small write has to ring,
//! it is not.
//!
//! A receiver that waits in the kernel is woken by a bell, one byte on TCP. To send it, to wake for it and to take it out
//! again is all the work that TCP has with a small message, so the ring only adds its own. Whether receivers wait cannot be
//! known beforehand; it is counted.
//!
//! ```text
//!   ring: 16 writes counted ── three of four small and rung ──▶ TCP: 256 writes, then four times as many
//!     ▲           │ fewer                                         │ or one that is large
//!     └───────────┴───────────────────────────────────────────────┘
//! ```

/// Writes that are counted before it is judged: each costs a bell beside its bytes if it rings. Of writes of which every other
/// one rings, a window in 26 says that the ring does not pay, for some writes.
const WINDOW: u32 = 16;
/// Of so many, so many that ring are too many.
const TOO_MANY: u32 = WINDOW / 4 * 3;
/// Up to so many bytes a bell costs as much as the bytes themselves would: copying them is a tenth of a microsecond per KiB.
const SMALL: usize = 4096;
/// Writes that go to TCP until the ring is tried again: first, and at most. Trying costs a window's bells: a twentieth of the writes
/// in the beginning, a thousandth in the end.
const REST: (u32, u32) = (256, 1 << 14);
/// How many times as many they are after a trial that found nothing new.
const GROWTH: u32 = 4;

/// What is counted. It lives where [`super::Tx`] does, and under the same lock.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Bells {
    writes: u32,
    rung: u32,
    /// Writes that still go to TCP.
    rests: u32,
    /// How many did the last time.
    rested: u32,
}

impl Bells {
    /// Whether a write of so many bytes goes to TCP. Each write asks once.
    pub fn rests(&mut self, bytes: usize) -> bool {
        if bytes > SMALL {
            self.rests = 0;
        }
        self.rests = self.rests.saturating_sub(1);
        self.rests > 0
    }

    /// So many bytes were written to the ring, and the receiver had to be rung for or not.
    pub fn wrote(&mut self, bytes: usize, rang: bool) {
        self.writes += 1;
        self.rung += u32::from(rang && bytes <= SMALL);
        let is_worse = self.rung >= TOO_MANY;
        if self.writes < WINDOW && !is_worse {
            return;
        }
        (self.writes, self.rung) = (0, 0);
        self.rested = match is_worse {
            true => (self.rested * GROWTH).clamp(REST.0, REST.1),
            false => 0,
        };
        self.rests = self.rested;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many writes, each of which rings or not: how many went to TCP.
    fn write(bells: &mut Bells, count: u32, bytes: usize, rang: bool) -> u32 {
        let mut on_tcp = 0;
        for _ in 0..count {
            if bells.rests(bytes) {
                on_tcp += 1;
            } else {
                bells.wrote(bytes, rang);
            }
        }
        on_tcp
    }

    #[test]
    fn small_writes_that_ring_rest_longer_and_longer() {
        let mut bells = Bells::default();
        // That so many of a window ring is known before its end.
        assert_eq!(write(&mut bells, TOO_MANY, 100, true), 0);
        assert_eq!(write(&mut bells, REST.0 - 1, 100, true), REST.0 - 1);
        assert_eq!(write(&mut bells, TOO_MANY, 100, true), 0);
        assert_eq!(write(&mut bells, GROWTH * REST.0 - 1, 100, true), GROWTH * REST.0 - 1);
        let most = write(&mut bells, 1 << 20, 100, true);
        assert!(most > (1 << 20) / 1000 * 998, "{most}");
    }

    #[test]
    fn the_ring_is_kept_where_it_pays() {
        let mut bells = Bells::default();
        assert_eq!(write(&mut bells, 10_000, 100, false), 0);
        assert_eq!(write(&mut bells, 10_000, SMALL + 1, true), 0);
        // After a rest that was wrong it begins anew.
        write(&mut bells, TOO_MANY + REST.0, 100, true);
        write(&mut bells, WINDOW, 100, false);
        assert_eq!(write(&mut bells, 1000, 100, false), 0);
    }

    #[test]
    fn a_large_write_ends_a_rest() {
        let mut bells = Bells::default();
        write(&mut bells, TOO_MANY, 100, true);
        assert_eq!(write(&mut bells, 10, 100, true), 10);
        assert_eq!(write(&mut bells, 1, 2 * SMALL, false), 0);
        assert_eq!(write(&mut bells, 1, 100, false), 0);
    }
}
