//! A lease that keeps itself alive, and knows when it can no longer be sure.
//!
//! The deadline is counted from *before* each renewal was sent. So the holder stops at the latest when the store lets
//! the lease run out, never after: it fails closed. A renewal that does not come back changes nothing; one that is
//! refused ends the lease at once.

use crate::state::{LeaseId, State, StateError};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Renewals within one time to live: two may get lost.
const RENEWALS: u32 = 3;

/// A granted lease that is renewed in the background until it is lost, released or dropped. A dropped one runs out by
/// itself after its time to live.
#[derive(Debug)]
pub struct HeldLease {
    state: Arc<dyn State>,
    id: LeaseId,
    lost: CancellationToken,
    /// The renewing task; ends with this value.
    _renewal: JoinSet<()>,
}

impl HeldLease {
    /// Takes a new lease. Bounds of `ttl` as for [`State::grant`]. Needs a Tokio runtime.
    ///
    /// # Errors
    /// As [`State::grant`].
    pub async fn take(state: Arc<dyn State>, ttl: Duration) -> Result<Self, StateError> {
        let sent = Instant::now();
        let id = state.grant(ttl).await?;
        let lost = CancellationToken::new();
        let mut renewal = JoinSet::new();
        renewal.spawn(renew(state.clone(), id, ttl, sent + ttl, lost.clone()));
        Ok(Self { state, id, lost, _renewal: renewal })
    }

    /// Which lease, for [`Op::put_leased`](crate::Op::put_leased).
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Cancelled when the lease is, or may be, lost: stop at once what depends on it.
    pub fn lost(&self) -> Lost {
        Lost(self.lost.clone())
    }

    /// Ends the lease now; its keys are deleted.
    ///
    /// # Errors
    /// As [`State::revoke`], but a lease that had ended is no error.
    pub async fn release(self) -> Result<(), StateError> {
        self.lost.cancel();
        match self.state.revoke(self.id).await {
            Ok(()) | Err(StateError::LeaseNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        // Nobody renews it from here on, so nobody may rely on it.
        self.lost.cancel();
    }
}

/// Tells when a lease is lost. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lost(CancellationToken);

impl Lost {
    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until it is lost.
    ///
    /// # Cancel safety
    /// It only looks.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }
}

async fn renew(
    state: Arc<dyn State>,
    id: LeaseId,
    ttl: Duration,
    mut deadline: Instant,
    lost: CancellationToken,
) {
    let pause = ttl / RENEWALS;
    loop {
        tokio::time::sleep_until((Instant::now() + pause).min(deadline)).await;
        let sent = Instant::now();
        match tokio::time::timeout_at(deadline, state.keep_alive(id)).await {
            Ok(Ok(ttl)) => deadline = sent + ttl,
            Ok(Err(StateError::LeaseNotFound { .. } | StateError::Closed)) => break,
            Ok(Err(error)) if Instant::now() < deadline => {
                tracing::debug!(lease = %id, %error, "a renewal failed");
            }
            Ok(Err(_)) | Err(_) => break,
        }
    }
    tracing::warn!(lease = %id, "lease lost");
    lost.cancel();
}
