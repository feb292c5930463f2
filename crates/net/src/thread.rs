//! A thread that lives in a network namespace.
//!
//! A socket belongs to the namespace of the thread that opens it, for ever; using it needs no
//! thread. So whatever must be *opened* inside - netlink sockets, taps, sockets to machines - is
//! opened here, and threads of the runtime never change their namespace.

use crate::error::NetError;
use crate::netlink::Netlink;
use futures_util::future::LocalBoxFuture;
use nix::sched::{CloneFlags, setns};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// 64: callers wait their turn beyond this; the kernel takes one change of interfaces at a time
/// anyway.
const JOBS_WAITING_MAX: usize = 64;

type Job = Box<dyn for<'a> FnOnce(&'a Netlink) -> LocalBoxFuture<'a, ()> + Send>;

/// Runs jobs one after the other in a namespace, with a netlink socket of that namespace. Ends when
/// dropped, after the job at hand.
#[derive(Debug, Clone)]
pub(crate) struct NamespaceThread {
    jobs: mpsc::Sender<Job>,
}

impl NamespaceThread {
    /// Starts the thread and waits until it is inside.
    pub(crate) async fn start(namespace: OwnedFd) -> Result<Self, NetError> {
        let (jobs, inbox) = mpsc::channel(JOBS_WAITING_MAX);
        let (ready, started) = oneshot::channel();
        spawn("skein-net", move || serve(&namespace, inbox, ready))?;
        started.await.map_err(|_| NetError::Closed)??;
        Ok(Self { jobs })
    }

    /// Runs `job` in the namespace and waits for its answer.
    ///
    /// # Cancel safety
    /// A job that was taken runs to its end even if nobody waits; its answer is then dropped.
    pub(crate) async fn run<T, F>(&self, job: F) -> Result<T, NetError>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a Netlink) -> LocalBoxFuture<'a, Result<T, NetError>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |netlink| {
            let result = job(netlink);
            Box::pin(async move {
                // A caller that left takes no answer; dropping it gives back what the job made.
                let _ = reply.send(result.await);
            })
        });
        self.jobs.send(job).await.map_err(|_| NetError::Closed)?;
        answer.await.map_err(|_| NetError::Closed)?
    }
}

/// Moves the calling thread into `namespace`.
pub(crate) fn enter(namespace: impl AsFd) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Registers a descriptor with the runtime of the caller.
pub(crate) fn ready<T: AsRawFd>(descriptor: T) -> io::Result<AsyncFd<T>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe; all our types own their descriptor and never change it"
    )]
    AsyncFd::new(descriptor)
}

/// Starts a thread of ours; the name is at most 15 bytes.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), NetError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map(drop).map_err(|source| NetError::Netlink {
        action: "starting thread",
        subject: name.to_owned(),
        source,
    })
}

fn serve(
    namespace: &OwnedFd,
    mut inbox: mpsc::Receiver<Job>,
    ready: oneshot::Sender<Result<(), NetError>>,
) {
    let failed = |source| NetError::Netlink {
        action: "entering",
        subject: "the network's namespace".to_owned(),
        source,
    };
    let runtime = enter(namespace)
        .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(source) => return drop(ready.send(Err(failed(source)))),
    };
    runtime.block_on(async move {
        let netlink = match Netlink::open() {
            Ok(netlink) => netlink,
            Err(source) => return drop(ready.send(Err(failed(source)))),
        };
        let _ = ready.send(Ok(()));
        while let Some(job) = inbox.recv().await {
            job(&netlink).await;
        }
    });
}
