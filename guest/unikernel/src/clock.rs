//! Time.
//!
//! The time stamp counter gives the time; its rate is the one unknown. A hypervisor may tell it
//! (CPUID); else it is measured against the local APIC's timer, which counts at 1 GHz under QEMU
//! and KVM alike. Nothing waits for that measurement: it begins at boot, and every later reading
//! makes it more exact, until the window is a minute long.

use alloc::collections::BTreeMap;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use crate::arch::{cpu, interrupts};
use crate::sync::Mutex;

/// Before anything was measured: 1 tick per nanosecond. Only the first instructions see this.
const RATE_UNKNOWN: u64 = 1 << 32;
/// A window shorter than this, 100 us, would measure the cost of reading the timer.
const WINDOW_MIN_STEPS: u32 = 6_250;
/// A thousand parts per million: five times less than the contradiction that is looked for.
const EXACT_PPM: u64 = 1_000;
/// 20,000 ticks, 5 us and more: reading the timer takes less unless the virtual CPU was halted.
const SAMPLE_GOOD_TICKS: u64 = 20_000;
/// 4: a host that halts the CPU in all of them is too busy for an exact clock.
const SAMPLE_TRIES: u32 = 4;

struct Clock {
    /// Counter value and time since boot that belong together.
    base_tsc: u64,
    base_ns: u64,
    /// Nanoseconds per tick, times 2^32.
    rate: u64,
    /// Set when the hypervisor told the rate.
    rate_is_known: bool,
    /// How far off the rate may be, parts per million; `u64::MAX` before the first measurement.
    error_ppm: u64,
    /// Where the running window began.
    window: Option<Sample>,
    /// The counter at kernel entry.
    entry_tsc: u64,
    /// Unix time at boot, ns; `None` until someone tells.
    epoch_ns: Option<u64>,
}

static CLOCK: Mutex<Clock> = Mutex::new(Clock {
    base_tsc: 0,
    base_ns: 0,
    rate: RATE_UNKNOWN,
    rate_is_known: false,
    error_ppm: u64::MAX,
    window: None,
    entry_tsc: 0,
    epoch_ns: None,
});

impl Clock {
    fn ns_at(&self, tsc: u64) -> u64 {
        self.base_ns + scale(tsc.saturating_sub(self.base_tsc), self.rate)
    }

    /// Changes the rate from now on; time goes on from where it is.
    fn set_rate(&mut self, tsc: u64, rate: u64) {
        self.base_ns = self.ns_at(tsc);
        self.base_tsc = tsc;
        self.rate = rate.max(1);
    }
}

impl Clock {
    /// Takes a measured rate, if it is better than what is known.
    fn take(&mut self, tsc: u64, rate: u64, error_ppm: u64) {
        if self.error_ppm == u64::MAX {
            // What was shown before the first measurement was a guess; the counter since entry is not.
            self.rate = rate.max(1);
        } else if error_ppm < self.error_ppm || self.is_contradicted(rate, error_ppm) {
            self.set_rate(tsc, rate);
        } else {
            return;
        }
        self.error_ppm = error_ppm;
    }

    /// Whether an exact measurement shows that the rate is not what it was: off by half a percent.
    /// The machine moved to a host whose counter runs at another rate.
    fn is_contradicted(&self, rate: u64, error_ppm: u64) -> bool {
        error_ppm < EXACT_PPM && rate.abs_diff(self.rate) > self.rate / 200
    }
}

/// `ticks * rate / 2^32`.
fn scale(ticks: u64, rate: u64) -> u64 {
    ((u128::from(ticks) * u128::from(rate)) >> 32) as u64
}

/// Counter and timer read at the same time, give or take `error` ticks.
#[derive(Clone, Copy)]
struct Sample {
    tsc: u64,
    left: u32,
    error: u64,
}

/// Reads counter and timer together. On a busy host the virtual CPU may be halted between the two;
/// such a reading is repeated.
fn sample() -> Sample {
    let mut best = Sample { tsc: 0, left: 0, error: u64::MAX };
    for _ in 0..SAMPLE_TRIES {
        let before = cpu::rdtsc();
        let left = interrupts::timer_left();
        let error = cpu::rdtsc().saturating_sub(before);
        if error < best.error {
            best = Sample { tsc: before + error / 2, left, error };
        }
        if error < SAMPLE_GOOD_TICKS {
            break;
        }
    }
    best
}

/// Starts the clock at 0 for the counter value `entry_tsc`, and the APIC timer with it.
pub(crate) fn start(entry_tsc: u64) {
    interrupts::enable_apic();
    let mut clock = CLOCK.lock();
    (clock.entry_tsc, clock.base_tsc) = (entry_tsc, entry_tsc);
    clock.window = Some(sample());
    if let Some(khz) = told_frequency() {
        clock.rate = (1_000_000_u64 << 32) / u64::from(khz);
        clock.rate_is_known = true;
    }
}

/// Counter frequency as the hypervisor tells it: leaf 0x40000010, kHz.
fn told_frequency() -> Option<u32> {
    const HYPERVISOR_BIT: u32 = 1 << 31;
    if cpu::cpuid(1).ecx & HYPERVISOR_BIT == 0 || cpu::cpuid(0x4000_0000).eax < 0x4000_0010 {
        return None;
    }
    Some(cpu::cpuid(0x4000_0010).eax).filter(|khz| *khz > 0)
}

/// Measures the counter's rate over the window that is running, and takes it if that is the most
/// exact measurement yet, or contradicts the rate.
pub(crate) fn calibrate() {
    let mut clock = CLOCK.lock();
    let Some(start) = clock.window else { return };
    if clock.rate_is_known {
        return;
    }
    let end = sample();
    let steps = start.left.saturating_sub(end.left);
    // A timer that has run out says nothing about how long ago.
    if end.left == 0 || steps < WINDOW_MIN_STEPS {
        return;
    }
    let ticks = end.tsc.wrapping_sub(start.tsc).max(1);
    let ns = u128::from(steps) * u128::from(interrupts::TIMER_STEP_NS);
    let rate = u64::try_from((ns << 32) / u128::from(ticks)).unwrap_or(RATE_UNKNOWN);
    let error_ppm = (start.error + end.error).saturating_mul(1_000_000) / ticks;
    clock.take(end.tsc, rate, error_ppm);
}

/// Ends the clock's start: from here on time is counted from kernel entry at the best rate known,
/// unless that would turn it back.
pub(crate) fn settle() {
    calibrate();
    let mut clock = CLOCK.lock();
    let now = cpu::rdtsc();
    if scale(now.saturating_sub(clock.entry_tsc), clock.rate) >= clock.ns_at(now) {
        (clock.base_tsc, clock.base_ns) = (clock.entry_tsc, 0);
    }
}

/// Forgets what was measured: the machine may have moved to a host whose counter runs at another
/// rate.
pub(crate) fn distrust() {
    CLOCK.lock().error_ppm = u64::MAX - 1;
}

/// Lets the CPU be woken in `ns`; `None` for never. Called with interrupts disabled, right before
/// sleeping.
pub(crate) fn arm(ns: Option<u64>) {
    calibrate();
    let steps = match ns {
        // At least one step, or the timer would stop.
        Some(ns) => u32::try_from((ns / interrupts::TIMER_STEP_NS).max(1)).unwrap_or(u32::MAX),
        None => 0,
    };
    interrupts::start_timer(steps);
    CLOCK.lock().window = (steps > 0).then(sample);
}

/// Nanoseconds since kernel entry.
pub(crate) fn now_ns() -> u64 {
    CLOCK.lock().ns_at(cpu::rdtsc())
}

/// Sets the wall clock: it is `unix_ns` now; 0 means unknown and changes nothing.
pub(crate) fn set_unix_ns(unix_ns: u64) {
    if unix_ns > 0 {
        let mut clock = CLOCK.lock();
        let up = clock.ns_at(cpu::rdtsc());
        clock.epoch_ns = Some(unix_ns.saturating_sub(up));
    }
}

/// Time since the machine's kernel was entered. Never goes back; advances while the machine sleeps,
/// and stands while the host holds it stopped or saved, as far as the host's counter does.
#[must_use]
pub fn now() -> Duration {
    Duration::from_nanos(now_ns())
}

/// Time since the Unix epoch: what the host said at launch (or in a new identity), plus the time
/// since. `None` when the host said nothing.
#[must_use]
pub fn unix_time() -> Option<Duration> {
    let clock = CLOCK.lock();
    let epoch = clock.epoch_ns?;
    Some(Duration::from_nanos(epoch.saturating_add(clock.ns_at(cpu::rdtsc()))))
}

/// Who waits for which time. The number tells waits for the same time apart.
struct Timers {
    waiting: BTreeMap<(u64, u64), Waker>,
    next_number: u64,
}

static TIMERS: Mutex<Timers> = Mutex::new(Timers { waiting: BTreeMap::new(), next_number: 0 });

/// Wakes everyone whose time has come; returns the next time someone waits for.
pub(crate) fn wake_due(now: u64) -> Option<u64> {
    loop {
        let mut timers = TIMERS.lock();
        let entry = timers.waiting.first_entry()?;
        let deadline = entry.key().0;
        if deadline > now {
            return Some(deadline);
        }
        let waker = entry.remove();
        drop(timers);
        waker.wake();
    }
}

/// Completes at a time since boot.
pub(crate) struct Sleep {
    deadline: u64,
    number: Option<u64>,
}

impl Sleep {
    /// Completes `duration` from now.
    pub(crate) fn after(duration: Duration) -> Self {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self { deadline: now_ns().saturating_add(ns), number: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if now_ns() >= self.deadline {
            return Poll::Ready(());
        }
        let mut timers = TIMERS.lock();
        let number = *self.number.get_or_insert_with(|| {
            timers.next_number += 1;
            timers.next_number
        });
        timers.waiting.insert((self.deadline, number), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            TIMERS.lock().waiting.remove(&(self.deadline, number));
        }
    }
}

/// Waits. Other requests and the network go on meanwhile.
pub async fn sleep(duration: Duration) {
    Sleep::after(duration).await;
}

/// What `future` gives, or `None` if it takes longer than `limit`; then it is dropped.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = core::pin::pin!(future);
    let mut sleep = core::pin::pin!(Sleep::after(limit));
    core::future::poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        sleep.as_mut().poll(context).map(|()| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_when_the_rate_changes() {
        let mut clock = Clock {
            base_tsc: 1_000,
            base_ns: 0,
            rate: 1 << 31,
            rate_is_known: false,
            error_ppm: u64::MAX,
            window: None,
            entry_tsc: 0,
            epoch_ns: None,
        };
        assert_eq!(clock.ns_at(5_000), 2_000);
        clock.set_rate(5_000, 1 << 32);
        assert_eq!((clock.ns_at(5_000), clock.ns_at(5_100)), (2_000, 2_100));
        assert_eq!(clock.ns_at(0), 2_000, "never back");
        clock.error_ppm = 100;
        clock.take(6_000, (1 << 32) + 1000, 200);
        assert_eq!(clock.rate, 1 << 32, "a worse measurement that agrees changes nothing");
        clock.take(6_000, 1 << 31, 5_000);
        assert_eq!(clock.rate, 1 << 32, "an inexact one does not contradict");
        clock.take(6_000, 1 << 31, 900);
        assert_eq!((clock.rate, clock.error_ppm), (1 << 31, 900), "an exact one does");
        clock.take(6_000, (1 << 31) + 1, 10);
        assert_eq!(clock.rate, (1 << 31) + 1, "a more exact one is taken");
        // A year of a 4 GHz counter.
        assert_eq!(scale(4_000_000_000 * 31_557_600, 1 << 30), 31_557_600_000_000_000);
    }

    #[test]
    fn waits_end_in_order() {
        use core::pin::pin;
        let mut short = pin!(within(Duration::ZERO, core::future::pending::<()>()));
        let context = &mut Context::from_waker(Waker::noop());
        assert_eq!(short.as_mut().poll(context), Poll::Ready(None));
        let mut ready = pin!(within(Duration::ZERO, core::future::ready(7)));
        assert_eq!(ready.as_mut().poll(context), Poll::Ready(Some(7)));
    }
}
