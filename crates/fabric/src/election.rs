//! One leader at a time, by a lease: who writes the election's key leads until the lease ends.
//!
//! The leader's *guard* is a condition that holds while its key is the one it wrote. Every write of a leader carries it, so a
//! leader that does not know yet that it has been replaced changes nothing: the fencing token is the key's creation
//! revision. Fails closed: without an answer from the store in time, the leadership counts as lost.

use crate::state::{Compare, Key, KeySpan, LeaseId, Op, Revision, State, StateError, Txn, WatchFrom};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// After a failure of the store.
const RETRY: Duration = Duration::from_millis(200);

/// Elects leaders by names.
#[derive(Debug, Clone)]
pub struct Election {
    state: Arc<dyn State>,
}

/// A won election. When it is dropped, the leadership ends with its lease.
#[derive(Debug)]
pub struct Leadership {
    key: Key,
    epoch: Revision,
    lease: Duration,
    lost: watch::Receiver<bool>,
    /// Keeps the lease; gives it back when it is aborted or done.
    _keeper: JoinSet<()>,
}

impl Election {
    /// Elections in this store.
    pub fn new(state: Arc<dyn State>) -> Self {
        Self { state }
    }

    /// Waits until `candidate` leads `name`. The leadership ends `lease` after the last time that the store heard of it.
    ///
    /// # Errors
    /// [`StateError::Invalid`] for a name that is no part of a key or a lease out of range, [`StateError::Closed`], and
    /// whatever else keeps the store from answering.
    ///
    /// # Cancel safety
    /// A candidacy that is dropped ends with its lease.
    pub async fn campaign(
        &self,
        name: &str,
        candidate: &str,
        lease: Duration,
    ) -> Result<Leadership, StateError> {
        let key = Key::new(format!("election/{name}"))?;
        loop {
            // Watched before the attempt: an end in between is not missed.
            let mut watch = self.state.watch(KeySpan::one(&key), WatchFrom::Now).await?;
            let asked = Instant::now();
            let id = self.state.grant(lease).await?;
            let put = Op::put_leased(key.clone(), candidate.as_bytes().to_vec(), id);
            let txn = Txn::new().when(Compare::missing(key.clone())).then(put);
            let reply = self.state.txn(txn).await?;
            if reply.succeeded {
                return Ok(self.lead(key, reply.revision, (id, lease, asked)));
            }
            self.state.revoke(id).await?;
            // Whatever happens to the key, or a second's silence: look again.
            let _ = tokio::time::timeout(Duration::from_secs(1), watch.next()).await;
        }
    }

    fn lead(
        &self,
        key: Key,
        epoch: Revision,
        (id, lease, asked): (LeaseId, Duration, Instant),
    ) -> Leadership {
        let (tell, lost) = watch::channel(false);
        let state = self.state.clone();
        let mut keeper = JoinSet::new();
        keeper.spawn(async move {
            keep(&state, id, lease, asked).await;
            tell.send_replace(true);
            let _ = state.revoke(id).await;
        });
        Leadership { key, epoch, lease, lost, _keeper: keeper }
    }
}

/// Keeps the lease alive; returns when it is lost, or may be.
async fn keep(state: &Arc<dyn State>, id: LeaseId, lease: Duration, asked: Instant) {
    let mut until = asked + lease;
    loop {
        tokio::time::sleep(lease / 3).await;
        loop {
            let asked = Instant::now();
            // Counted from before the question, and never waited for beyond the lease.
            match tokio::time::timeout_at(until, state.keep_alive(id)).await {
                Ok(Ok(ttl)) => {
                    until = asked + ttl;
                    break;
                }
                Ok(Err(StateError::LeaseNotFound { .. } | StateError::Closed)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the leader's lease was not kept alive");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

impl Leadership {
    /// Holds while this leadership lasts: a condition for each of the leader's writes.
    pub fn guard(&self) -> Compare {
        Compare::created_at(self.key.clone(), self.epoch)
    }

    /// The fencing token: grows with each leadership.
    pub fn epoch(&self) -> Revision {
        self.epoch
    }

    /// How long the leader may be silent.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Returns when the leadership is lost, or may be.
    ///
    /// # Cancel safety
    /// Safe: it only watches.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        // The keeper gone means the same.
        let _ = lost.wait_for(|lost| *lost).await;
    }
}
