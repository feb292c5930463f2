//! Waits for programs that have something for a node that sleeps.
//!
//! A program has no descriptor of ours to wake the node with: it would be in the way of those that it counts, closes or
//! passes on. It wakes a futex in the segment, which works in every sandbox. A thread of this process sleeps on the futexes
//! of up to 127 programs at once and turns their calls into readable descriptors.

use skein_link_core::ring::host::{Memory, WAIT_MAX, wait_any, wake_all};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

struct Guest {
    memory: Arc<Memory>,
    heard: AtomicU32,
    bell: Arc<OwnedFd>,
}

/// What one thread waits for.
#[derive(Default)]
struct Shift {
    /// Goes up when the guests change; a futex.
    changes: AtomicU32,
    is_over: AtomicBool,
    guests: Mutex<Vec<Arc<Guest>>>,
}

/// The threads.
#[derive(Default)]
pub(crate) struct Doorman {
    shifts: Mutex<Vec<Arc<Shift>>>,
}

/// A program that is waited for until this is dropped.
pub(super) struct Registration {
    shift: Weak<Shift>,
    guest: Arc<Guest>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Doorman {
    /// None has come yet.
    ///
    /// # Errors
    /// The kernel cannot wait for several futexes (Linux before 5.16).
    pub(crate) fn new() -> io::Result<Self> {
        // Another value than the word's: answered at once.
        wait_any(&[(&AtomicU32::new(0), 1)])?;
        Ok(Self::default())
    }

    /// Makes `bell` readable whenever the program of this memory calls.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn register(
        &self,
        memory: Arc<Memory>,
        bell: Arc<OwnedFd>,
    ) -> io::Result<Registration> {
        let heard = memory.segment().header().calls().load(Ordering::Acquire);
        let guest = Arc::new(Guest { memory, heard: AtomicU32::new(heard), bell });
        let mut shifts = lock(&self.shifts);
        let free = shifts.iter().find(|shift| lock(&shift.guests).len() < WAIT_MAX - 1);
        let shift = match free {
            Some(shift) => Arc::clone(shift),
            None => {
                let shift = Arc::new(Shift::default());
                let its = Arc::clone(&shift);
                let thread = std::thread::Builder::new().name("link-doorman".to_owned());
                thread.spawn(move || its.run())?;
                shifts.push(Arc::clone(&shift));
                shift
            }
        };
        lock(&shift.guests).push(Arc::clone(&guest));
        shift.change();
        Ok(Registration { shift: Arc::downgrade(&shift), guest })
    }
}

impl Drop for Doorman {
    fn drop(&mut self) {
        for shift in lock(&self.shifts).iter() {
            shift.is_over.store(true, Ordering::Release);
            shift.change();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(shift) = self.shift.upgrade() {
            lock(&shift.guests).retain(|guest| !Arc::ptr_eq(guest, &self.guest));
            shift.change();
        }
    }
}

impl Shift {
    fn change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        wake_all(&self.changes);
    }

    fn run(&self) {
        loop {
            let changes = self.changes.load(Ordering::Acquire);
            if self.is_over.load(Ordering::Acquire) {
                return;
            }
            let guests = lock(&self.guests).clone();
            for guest in &guests {
                guest.listen();
            }
            let theirs = guests.iter().map(|guest| {
                let word = guest.memory.segment().header().calls();
                (word, guest.heard.load(Ordering::Relaxed))
            });
            let words: Vec<_> = std::iter::once((&self.changes, changes)).chain(theirs).collect();
            if let Err(error) = wait_any(&words) {
                tracing::error!(%error, "programs cannot be waited for");
                return;
            }
        }
    }
}

impl Guest {
    fn listen(&self) {
        let calls = self.memory.segment().header().calls().load(Ordering::Acquire);
        if self.heard.swap(calls, Ordering::Relaxed) != calls {
            // Full means that it is readable.
            let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
    use skein_link_core::ring::{CAPACITY_MIN, Reach};

    /// More programs than one thread waits for.
    #[test]
    fn each_call_is_heard() {
        let doorman = Doorman::new().unwrap();
        let guests: Vec<_> = (0..300)
            .map(|_| {
                let memory = Arc::new(Memory::create(CAPACITY_MIN, Reach::Far).unwrap());
                let bell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
                let registration = doorman.register(memory.clone(), bell.clone()).unwrap();
                (memory, bell, registration)
            })
            .collect();
        for (memory, bell, _) in &guests {
            let header = memory.segment().header();
            assert!(!header.call_node(), "the node is awake");
            header.fall_asleep();
            assert!(header.call_node());
            wake_all(header.calls());
            let deadline = Timespec { tv_sec: 20, tv_nsec: 0 };
            let mut set = [PollFd::new(bell, PollFlags::IN)];
            assert_eq!(poll(&mut set, Some(&deadline)), Ok(1));
        }
    }
}
