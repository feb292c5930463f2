//! Runs futures on the one CPU.
//!
//! Each task has a number and is polled only when its waker was called. Tasks are polled in the
//! order in which they were woken.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

use crate::sync::Mutex;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Numbers of the tasks that were woken.
type ReadyQueue = Arc<Mutex<VecDeque<usize>>>;

/// Wakes one task. Many wake-ups before it is polled count as one.
struct TaskWaker {
    number: usize,
    queued: AtomicBool,
    ready: ReadyQueue,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().push_back(self.number);
        }
    }
}

struct Entry {
    task: Task,
    waker: Arc<TaskWaker>,
}

/// The tasks of a machine.
#[derive(Default)]
pub(crate) struct Executor {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    ready: ReadyQueue,
}

impl Executor {
    /// Adds a task, to be polled in the next round.
    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        let number = self.free.pop().unwrap_or(self.entries.len());
        let waker = Arc::new(TaskWaker {
            number,
            queued: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
        });
        waker.wake_by_ref();
        let entry = Some(Entry { task: Box::pin(task), waker });
        match self.entries.get_mut(number) {
            Some(place) => *place = entry,
            None => self.entries.push(entry),
        }
    }

    /// Polls every task that is ready now, once. Returns whether there are ready tasks again.
    pub(crate) fn run_round(&mut self) -> bool {
        let count = self.ready.lock().len();
        for _ in 0..count {
            let Some(number) = self.ready.lock().pop_front() else { break };
            self.poll(number);
        }
        !self.ready.lock().is_empty()
    }

    fn poll(&mut self, number: usize) {
        let Some(place) = self.entries.get_mut(number) else { return };
        // A waker may outlive its task.
        let Some(entry) = place else { return };
        entry.waker.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&entry.waker));
        if entry.task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            // The waker of an ended task must not wake its successor.
            entry.waker.queued.store(true, Ordering::Relaxed);
            *place = None;
            self.free.push(number);
        }
    }

    /// Wakes every task, so that each looks at what has changed.
    pub(crate) fn wake_all(&self) {
        self.entries.iter().flatten().for_each(|entry| entry.waker.wake_by_ref());
    }

    /// Number of tasks.
    pub(crate) fn len(&self) -> usize {
        self.entries.iter().flatten().count()
    }
}

/// Lets other requests and the network have their turn, then continues.
pub async fn yield_now() {
    let mut yielded = false;
    core::future::poll_fn(|context| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use core::cell::RefCell;

    #[test]
    fn tasks_take_turns() {
        let trace = Rc::new(RefCell::new(Vec::new()));
        let mut executor = Executor::default();
        for name in ["a", "b"] {
            let trace = Rc::clone(&trace);
            executor.spawn(async move {
                for step in 0..2 {
                    trace.borrow_mut().push((name, step));
                    yield_now().await;
                }
            });
        }
        while executor.run_round() {}
        assert_eq!(*trace.borrow(), [("a", 0), ("b", 0), ("a", 1), ("b", 1)]);
        assert_eq!(executor.len(), 0);
    }

    #[test]
    fn late_wakers_do_no_harm() {
        let kept = Rc::new(RefCell::new(None::<Waker>));
        let mut executor = Executor::default();
        let place = Rc::clone(&kept);
        executor.spawn(core::future::poll_fn(move |context| {
            *place.borrow_mut() = Some(context.waker().clone());
            Poll::Ready(())
        }));
        assert!(!executor.run_round());
        let polls = Rc::new(RefCell::new(0));
        let count = Rc::clone(&polls);
        executor.spawn(core::future::poll_fn(move |_| {
            *count.borrow_mut() += 1;
            Poll::<()>::Pending
        }));
        executor.run_round();
        kept.borrow_mut().take().unwrap().wake();
        assert!(!executor.run_round());
        assert_eq!(*polls.borrow(), 1, "the waker of an ended task woke the next one in its place");
        executor.wake_all();
        executor.run_round();
        assert_eq!((*polls.borrow(), executor.len()), (2, 1));
    }
}
