//! Waking those who wait: for the end of a job, or for work. Nobody polls.
//!
//! Two watches of the state serve all waiters of this process, by the keys alone: an ended job wakes those who wait
//! for it; a job that becomes due wakes *one* of those who wait for work of its queue, so that a hundred idle machines
//! do not jump at one job. A wake-up is a hint: the woken look for themselves. If a watch falls behind, all are woken.

use super::keys::{self, QueueName};
use super::{Queue, QueueError};
use crate::state::{Event, Key, KeySpan, Revision, State, StateError, Watch, WatchFrom};
use skein_model::{JobId, JobRecord};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Pause before a watch that could not be made is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// Who waits for what. The waiters of one thing share a [`Notify`].
#[derive(Debug, Default)]
pub(super) struct Wakeups {
    /// Those who wait for the end of a job, and how many they are.
    ends: Mutex<HashMap<JobId, (usize, Arc<Notify>)>>,
    /// Those who wait for work; one entry for each queue that anyone has waited for.
    work: Mutex<HashMap<QueueName, Arc<Notify>>>,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Ends,
    Work,
}

impl Wakeups {
    /// Starts the two watches.
    pub(super) async fn follow(
        self: Arc<Self>,
        state: &Arc<dyn State>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), StateError> {
        for (what, root) in [(What::Ends, keys::ENDED), (What::Work, keys::WAITING)] {
            let span = keys::below(root);
            let watch = state.watch(span.clone(), WatchFrom::Now).await?;
            tasks.spawn(self.clone().pump(what, state.clone(), span, watch));
        }
        Ok(())
    }

    async fn pump(
        self: Arc<Self>,
        what: What,
        state: Arc<dyn State>,
        span: KeySpan,
        mut watch: Watch,
    ) {
        loop {
            let resume = match watch.next().await {
                Ok(batch) => {
                    for event in &batch.events {
                        if let Event::Put(entry) = event {
                            self.wake(what, &entry.key);
                        }
                    }
                    continue;
                }
                Err(StateError::Lagged { next }) => Some(next),
                Err(StateError::Closed) => return,
                Err(_) => None,
            };
            let Some(again) = self.watch_again(&state, &span, resume).await else { return };
            watch = again;
            self.wake_all(what);
        }
    }

    /// The watch, anew; `None` when the store is closed.
    async fn watch_again(
        &self,
        state: &Arc<dyn State>,
        span: &KeySpan,
        mut resume: Option<Revision>,
    ) -> Option<Watch> {
        loop {
            let from = resume.take().map_or(WatchFrom::Now, WatchFrom::Revision);
            match state.watch(span.clone(), from).await {
                Ok(watch) => return Some(watch),
                Err(StateError::Closed) => return None,
                Err(StateError::Compacted { .. }) => {}
                Err(error) => {
                    tracing::warn!(%error, "the queue's watch is down; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn wake(&self, what: What, key: &Key) {
        match what {
            What::Ends => {
                let Some((_, id)) = keys::queue_and_job(key) else { return };
                if let Some((_, notify)) = lock(&self.ends).get(&id) {
                    notify.notify_waiters();
                }
            }
            What::Work => {
                if let Some((queue, _)) = keys::queue_and_last(key) {
                    self.wake_one(&queue);
                }
            }
        }
    }

    /// Wakes one who waits for work of the queue.
    pub(super) fn wake_one(&self, queue: &QueueName) {
        if let Some(notify) = lock(&self.work).get(queue) {
            notify.notify_one();
        }
    }

    fn wake_all(&self, what: What) {
        match what {
            What::Ends => lock(&self.ends).values().for_each(|(_, n)| n.notify_waiters()),
            What::Work => lock(&self.work).values().for_each(|n| n.notify_waiters()),
        }
    }
}

/// A place among those who wait for the end of a job.
struct EndWaiter<'a> {
    wakeups: &'a Wakeups,
    id: JobId,
    notify: Arc<Notify>,
}

impl<'a> EndWaiter<'a> {
    fn new(wakeups: &'a Wakeups, id: JobId) -> Self {
        let mut ends = lock(&wakeups.ends);
        let (waiters, notify) = ends.entry(id).or_default();
        *waiters += 1;
        Self { wakeups, id, notify: notify.clone() }
    }
}

impl Drop for EndWaiter<'_> {
    fn drop(&mut self) {
        let mut ends = lock(&self.wakeups.ends);
        if let Some((waiters, _)) = ends.get_mut(&self.id) {
            *waiters -= 1;
            if *waiters == 0 {
                ends.remove(&self.id);
            }
        }
    }
}

impl Queue {
    /// Waits until a job has ended, at most `deadline`, and returns it as it stands then. Thousands may wait at once.
    ///
    /// # Errors
    /// [`QueueError::NotFound`], or the state's failure.
    ///
    /// # Cancel safety
    /// It only looks.
    pub async fn wait(&self, id: JobId, deadline: Duration) -> Result<JobRecord, QueueError> {
        let until = tokio::time::Instant::now() + deadline;
        let waiter = EndWaiter::new(&self.wakeups, id);
        loop {
            let woken = waiter.notify.notified();
            let mut woken = std::pin::pin!(woken);
            // In place before the look, so that an end between look and wait is not missed.
            woken.as_mut().enable();
            let job = self.get(id).await?;
            if job.state.ended_at().is_some() {
                return Ok(job);
            }
            if tokio::time::timeout_at(until, woken).await.is_err() {
                return Ok(job);
            }
        }
    }

    /// Waits until the queue has a due job, or had a moment ago: claim then, and wait again if others were faster.
    /// Of many who wait, each new job wakes one. Since wakers and woken can die in between, wait with a timeout
    /// of some seconds.
    ///
    /// # Errors
    /// The state's failure.
    ///
    /// # Cancel safety
    /// A wake-up that is not taken goes to the next waiter.
    pub async fn wait_work(&self, queue: &QueueName) -> Result<(), QueueError> {
        let notify = lock(&self.wakeups.work).entry(queue.clone()).or_default().clone();
        let woken = notify.notified();
        let mut woken = std::pin::pin!(woken);
        woken.as_mut().enable();
        if self.count(queue).await?.waiting == 0 {
            woken.await;
        }
        Ok(())
    }

    /// Waits until something was put off (a back-off or a deadline), so that the time of the next sweep may have come
    /// nearer. For one waiter.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn wait_put_off(&self) {
        self.put_off.notified().await;
    }
}

/// Nothing panics while these locks are held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
