//! One leader at a time, of those who campaign for a name.
//!
//! The leader's key hangs on a lease. Its creation revision is the *epoch* of the leadership: every later leader has a
//! larger one. A leader guards its writes with [`Leadership::guard`], a comparison in the same transaction, and so a
//! leader that does not know yet that it was deposed changes nothing. This is what makes an election safe; the
//! lease only makes it quick.

use crate::lease::{HeldLease, Lost};
use crate::state::{
    Compare, Event, Key, KeySpan, Op, OpReply, Revision, State, StateError, Txn, WatchFrom,
};
use std::sync::Arc;
use std::time::Duration;

/// Elections by name, among everyone who uses the same state.
#[derive(Debug, Clone)]
pub struct Election {
    state: Arc<dyn State>,
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// As it called itself.
    pub id: String,
    /// Its epoch.
    pub epoch: Revision,
}

/// A leadership, until it is lost, resigned or dropped.
#[derive(Debug)]
pub struct Leadership {
    state: Arc<dyn State>,
    key: Key,
    epoch: Revision,
    lease: HeldLease,
    ttl: Duration,
}

impl Election {
    /// The elections in `state`.
    pub fn new(state: Arc<dyn State>) -> Self {
        Self { state }
    }

    /// Waits until this candidate leads `name`, a path of at most 400 bytes. `candidate` is for the others to read;
    /// `ttl` is how long they wait at most after this process has died.
    ///
    /// # Errors
    /// [`StateError::Invalid`] for a name that does not fit a key, and whatever stops the state from answering: then
    /// this candidate does not lead, and campaigns again.
    ///
    /// # Cancel safety
    /// A dropped campaign may have won; its lease then runs out.
    pub async fn campaign(
        &self,
        name: &str,
        candidate: &str,
        ttl: Duration,
    ) -> Result<Leadership, StateError> {
        let key = key(name)?;
        let lease = HeldLease::take(self.state.clone(), ttl).await?;
        loop {
            let txn = Txn::new()
                .when(Compare::missing(key.clone()))
                .then(Op::put_leased(key.clone(), candidate.to_owned(), lease.id()))
                .otherwise(Op::get(key.clone()));
            let reply = self.state.txn(txn).await?;
            if reply.succeeded {
                return Ok(self.won(key, reply.revision, lease, ttl));
            }
            if let Some(OpReply::Range(found)) = reply.replies.first()
                && let Some(entry) = found.entries.first()
                && entry.lease == Some(lease.id())
            {
                // Won by a transaction whose answer got lost.
                return Ok(self.won(key, entry.create_revision, lease, ttl));
            }
            self.vacancy(&key, reply.revision, &lease.lost()).await?;
        }
    }

    fn won(&self, key: Key, epoch: Revision, lease: HeldLease, ttl: Duration) -> Leadership {
        Leadership { state: self.state.clone(), key, epoch, lease, ttl }
    }

    /// Waits until the key may be free, or the candidate's lease is lost.
    async fn vacancy(&self, key: &Key, seen: Revision, lost: &Lost) -> Result<(), StateError> {
        let span = KeySpan::one(key);
        let mut watch = match self.state.watch(span, WatchFrom::Revision(seen.next())).await {
            Ok(watch) => watch,
            // What happened since is forgotten: look at once.
            Err(StateError::Compacted { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        loop {
            tokio::select! {
                // cancel-safe: a watch keeps what was not taken
                batch = watch.next() => match batch {
                    Ok(batch) => {
                        if batch.events.iter().any(|e| matches!(e, Event::Deleted(_))) {
                            return Ok(());
                        }
                    }
                    Err(StateError::Lagged { .. } | StateError::Compacted { .. }) => return Ok(()),
                    Err(error) => return Err(error),
                },
                // cancel-safe: it only looks
                () = lost.wait() => {
                    let why = "the candidate's lease was lost".to_owned();
                    return Err(StateError::Unavailable { why });
                }
            }
        }
    }

    /// Who leads `name` now, if anyone.
    ///
    /// # Errors
    /// As [`State::range`].
    pub async fn leader(&self, name: &str) -> Result<Option<Leader>, StateError> {
        let entry = self.state.get(&key(name)?).await?;
        Ok(entry.map(|entry| Leader {
            id: String::from_utf8_lossy(&entry.value).into_owned(),
            epoch: entry.create_revision,
        }))
    }
}

impl Leadership {
    /// The fencing token: larger than that of every leader before.
    pub fn epoch(&self) -> Revision {
        self.epoch
    }

    /// The comparison that makes a transaction fail once this is no longer the leader.
    pub fn guard(&self) -> Compare {
        Compare::created_at(self.key.clone(), self.epoch)
    }

    /// How long the leader may be silent.
    pub fn lease(&self) -> Duration {
        self.ttl
    }

    /// Returns when the leadership is, or may be, lost.
    ///
    /// # Cancel safety
    /// It only looks.
    pub async fn lost(&self) {
        self.lease.lost().wait().await;
    }

    /// Hands over now.
    ///
    /// # Errors
    /// Whatever stops the state from answering: then the lease runs out by itself.
    pub async fn resign(self) -> Result<(), StateError> {
        let txn = Txn::new().when(self.guard()).then(Op::delete(&self.key));
        self.state.txn(txn).await?;
        self.lease.release().await
    }
}

fn key(name: &str) -> Result<Key, StateError> {
    Key::new(format!("election/{name}"))
}
