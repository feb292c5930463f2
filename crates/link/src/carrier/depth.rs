//! How much may wait in an interface's queue.
//!
//! A queue that runs dry while there is something to send is a wire that stands still, and that time is lost for good: whoever
//! fills it came later than the queue was long. TCP fills it in interrupts; a process fills it when it is given a processor. So
//! the queue gets longer where it ran dry, and shorter again where it has not for a while, as those of network cards
//! do in the kernel (`lib/dynamic_queue_limits.c`).

use std::ops::RangeInclusive;

/// What it is at least and at most, bytes as the kernel counts them (2304 for a full frame). At least 83 frames, a
/// millisecond at 1 Gbit/s: TCP keeps about as much there (`tcp_small_queue_check`), and who shares a queue gets in proportion to what he
/// puts into it; with a third more, three times what TCP got beside it was seen. At most four times that: a scheduler's
/// time slice, after which even a busy host has looked at everybody.
const LIMIT: RangeInclusive<usize> = 192 << 10..=768 << 10;
/// So many times in a row that it was filled before it had run dry make it an eighth shorter: at 1 Gbit/s about a second.
const CALM: u32 = 2048;

/// The limit of a queue, and what shows whether it is long enough. Whatever it is told harms nothing.
#[derive(Debug)]
pub(super) struct Depth {
    limit: usize,
    /// What the queue took since it was full; it was, unless `began_empty`.
    taken: usize,
    began_empty: bool,
    /// Times in a row that it was filled in time.
    calm: u32,
}

impl Depth {
    pub(super) const fn new() -> Self {
        Self { limit: *LIMIT.start(), taken: 0, began_empty: true, calm: 0 }
    }

    /// What may wait, as the kernel counts.
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// The queue took a frame of so many bytes.
    pub(super) fn took(&mut self, frame: usize) {
        self.taken += cost(frame);
    }

    /// There is nothing more to send: that the queue runs dry now is as it should be.
    pub(super) fn rest(&mut self) {
        self.taken = 0;
        self.began_empty = true;
    }

    /// The queue takes no more. Whether the limit has changed.
    pub(super) fn fill(&mut self) -> bool {
        let before = self.limit;
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
        self.taken = 0;
        self.limit != before
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

    /// Fills the queue after so many of its frames have gone.
    fn fill(depth: &mut Depth, frames: usize) -> bool {
        (0..frames).for_each(|_| depth.took(FRAME));
        depth.fill()
    }

    #[test]
    fn a_full_frame_costs_what_the_kernel_says() {
        assert_eq!(cost(FRAME), 2304);
    }

    #[test]
    fn a_queue_that_ran_dry_gets_longer_and_shorter_again() {
        let mut depth = Depth::new();
        // The first time it is empty anyway.
        assert!(!fill(&mut depth, 90));
        assert!(!fill(&mut depth, 50));
        let least = depth.limit();
        assert!(fill(&mut depth, 90));
        assert_eq!(depth.limit(), least / 2 * 3);
        for _ in 0..10 {
            fill(&mut depth, 400);
        }
        assert_eq!(depth.limit(), 4 * least);
        assert!(!fill(&mut depth, 400), "there is a most");
        for _ in 0..20 * CALM {
            fill(&mut depth, 40);
        }
        assert_eq!(depth.limit(), least);
    }

    #[test]
    fn a_sender_that_has_nothing_to_send_is_not_late() {
        let mut depth = Depth::new();
        for _ in 0..10 {
            assert!(!fill(&mut depth, 90));
            depth.rest();
        }
    }
}
