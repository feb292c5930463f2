//! How much may wait in an interface's queue.
//!
//! A queue that runs dry while there is something to send is a wire that stands still, and that time is lost for good: whoever
//! fills it came later than the queue was long. TCP fills it in interrupts; a process fills it when it is given a processor. So
//! the queue gets longer where it ran dry, and shorter again where it has not for a while, as those of network cards
//! do in the kernel (`lib/dynamic_queue_limits.c`). That is for a wire that is ours alone: where others send too, it stands still
//! for nobody, and who shares a queue gets in proportion to what he puts into it.

use std::ops::RangeInclusive;

/// What it is at least and at most, bytes as the kernel counts them (2304 for a full frame). At least 83 frames, a
/// millisecond at 1 Gbit/s: TCP keeps about as much there (`tcp_small_queue_check`); with a third more, three times what TCP got beside it
/// was seen, and with four times as much, twenty-five times. At most four times that: a scheduler's time slice, after which even
/// a busy host has looked at everybody.
const LIMIT: RangeInclusive<usize> = 192 << 10..=768 << 10;
/// So many times in a row that it was filled before it had run dry make it an eighth shorter: at 1 Gbit/s about a second.
const CALM: u32 = 2048;
/// After so many times that it was filled it is seen who else sends: at 1 Gbit/s about every 50 ms, in which ten times
/// the longest queue goes through.
const LOOK: u32 = 256;
/// The wire is ours alone while others send less than this part of what we do.
const OTHERS: u64 = 8;

/// The limit of a queue, and what shows whether it is long enough. Whatever it is told harms nothing.
#[derive(Debug)]
pub(super) struct Depth {
    limit: usize,
    /// What the queue took since it was full; it was, unless `began_empty`.
    taken: usize,
    began_empty: bool,
    /// Times in a row that it was filled in time.
    calm: u32,
    /// Bytes of all frames that it took.
    ours: u64,
    /// Times that it was filled since it was seen who else sends.
    fills: u32,
    /// What we had sent then, and what all had.
    seen: Option<(u64, u64)>,
    /// Whether hardly anybody else sent.
    is_alone: bool,
}

impl Depth {
    pub(super) const fn new() -> Self {
        Self {
            limit: *LIMIT.start(),
            taken: 0,
            began_empty: true,
            calm: 0,
            ours: 0,
            fills: 0,
            seen: None,
            is_alone: false,
        }
    }

    /// What may wait, as the kernel counts.
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// The queue took a frame of so many bytes.
    pub(super) fn took(&mut self, frame: usize) {
        self.taken += cost(frame);
        self.ours += frame as u64;
    }

    /// There is nothing more to send: that the queue runs dry now is as it should be.
    pub(super) fn rest(&mut self) {
        self.taken = 0;
        self.began_empty = true;
    }

    /// The queue takes no more. Whether the limit has changed. `sent` says how many bytes the interface has sent for everybody, if
    /// that is known.
    pub(super) fn fill(&mut self, sent: impl FnOnce() -> Option<u64>) -> bool {
        let before = self.limit;
        self.fills += 1;
        if self.fills >= LOOK {
            self.fills = 0;
            self.look(sent());
        }
        if !std::mem::take(&mut self.began_empty) {
            // All that was in it had gone.
            if self.taken >= self.limit {
                self.limit = (self.limit / 2 * 3).min(*LIMIT.end());
                self.calm = 0;
            } else {
                self.calm += 1;
            }
            if self.calm >= CALM {
                self.limit = (self.limit / 8 * 7).max(*LIMIT.start());
                self.calm = 0;
            }
        }
        if !self.is_alone {
            self.limit = *LIMIT.start();
        }
        self.taken = 0;
        self.limit != before
    }

    /// Sees who else sent since it did so last.
    fn look(&mut self, sent: Option<u64>) {
        self.is_alone = match (self.seen, sent) {
            (Some((ours, all)), Some(sent)) => {
                let (ours, all) = (self.ours - ours, sent.saturating_sub(all));
                // Less than ours: the counter does not count, or began anew.
                (ours / 2..ours + ours / OTHERS).contains(&all)
            }
            _ => false,
        };
        self.seen = sent.map(|sent| (self.ours, sent));
    }
}

/// What a frame costs of a socket's send buffer (`SKB_TRUESIZE`): memory for it, with what the kernel keeps at its ends, in powers
/// of two; and the description.
const fn cost(frame: usize) -> usize {
    const ENDS: usize = 336;
    const DESCRIPTION: usize = 256;
    (frame + ENDS).next_power_of_two() + DESCRIPTION
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 1514;

    /// A queue on an interface that has sent so many bytes.
    struct Queue {
        depth: Depth,
        sent: u64,
    }

    impl Queue {
        /// One on which others send so many bytes for each frame of ours; long enough for that to be seen.
        fn beside(others: u64) -> Self {
            let mut queue = Self { depth: Depth::new(), sent: 1 << 40 };
            (0..2 * LOOK).for_each(|_| {
                queue.fill(20, others);
            });
            queue
        }

        /// Fills it after so many of its frames have gone.
        fn fill(&mut self, frames: usize, others: u64) -> bool {
            (0..frames).for_each(|_| self.depth.took(FRAME));
            self.sent += frames as u64 * (FRAME as u64 + others);
            self.depth.fill(|| Some(self.sent))
        }
    }

    #[test]
    fn a_full_frame_costs_what_the_kernel_says() {
        assert_eq!(cost(FRAME), 2304);
    }

    #[test]
    fn a_queue_that_ran_dry_gets_longer_and_shorter_again() {
        let mut queue = Queue::beside(100);
        let least = queue.depth.limit();
        assert_eq!(least, *LIMIT.start());
        assert!(!queue.fill(50, 0));
        assert!(queue.fill(90, 0));
        assert_eq!(queue.depth.limit(), least / 2 * 3);
        for _ in 0..10 {
            queue.fill(400, 0);
        }
        assert_eq!(queue.depth.limit(), 4 * least);
        assert!(!queue.fill(400, 0), "there is a most");
        for _ in 0..20 * CALM {
            queue.fill(40, 0);
        }
        assert_eq!(queue.depth.limit(), least);
    }

    #[test]
    fn who_shares_a_wire_takes_no_more_of_it() {
        let mut queue = Queue::beside(FRAME as u64);
        let least = queue.depth.limit();
        for _ in 0..2 * LOOK {
            assert!(!queue.fill(90, 1000));
        }
        // The others have gone, and come back.
        for _ in 0..2 * LOOK {
            queue.fill(90, 0);
        }
        assert!(queue.depth.limit() > least);
        for _ in 0..2 * LOOK {
            queue.fill(400, 1000);
        }
        assert_eq!(queue.depth.limit(), least);
        // Nobody knows; and a counter that stands still.
        for sent in [None, Some(7)] {
            let mut unknown = Depth::new();
            for _ in 0..3 * LOOK {
                (0..90).for_each(|_| unknown.took(FRAME));
                assert!(!unknown.fill(|| sent));
            }
        }
    }

    #[test]
    fn a_sender_that_has_nothing_to_send_is_not_late() {
        let mut queue = Queue::beside(0);
        queue.depth.rest();
        for _ in 0..10 {
            assert!(!queue.fill(90, 0));
            queue.depth.rest();
        }
    }
}
