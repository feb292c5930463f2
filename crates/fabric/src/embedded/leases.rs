//! Leases: which live, and until when. In memory only, because the holders live in this process too.

use crate::state::{LeaseId, StateError};
use rand::RngExt as _;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// How long after a failed deletion of an expired lease's keys it is tried again.
const RETRY: Duration = Duration::from_millis(100);

struct Lease {
    granted: Duration,
    deadline: Instant,
    /// It has run out, or was revoked: nothing brings it back, only its keys are still there.
    over: bool,
}

/// The table of leases. Every change of a deadline goes through [`Leases::move_deadline`].
#[derive(Default)]
pub(super) struct Leases {
    table: HashMap<LeaseId, Lease>,
    order: BTreeSet<(Instant, LeaseId)>,
}

impl Leases {
    pub(super) fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        let id = loop {
            let number = rand::rng().random_range(1..=i64::MAX as u64);
            if let Some(id) = LeaseId::new(number).filter(|id| !self.table.contains_key(id)) {
                break id;
            }
        };
        let deadline = now + ttl;
        self.table.insert(id, Lease { granted: ttl, deadline, over: false });
        self.order.insert((deadline, id));
        id
    }

    /// The living lease of that id.
    fn living(&self, id: LeaseId, now: Instant) -> Result<&Lease, StateError> {
        let lease = self.table.get(&id).filter(|lease| !lease.over && lease.deadline > now);
        lease.ok_or(StateError::LeaseNotFound { lease: id })
    }

    pub(super) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Result<Duration, StateError> {
        let granted = self.living(id, now)?.granted;
        self.move_deadline(id, now + granted);
        Ok(granted)
    }

    /// Time granted, and what is left of it.
    pub(super) fn status(
        &self,
        id: LeaseId,
        now: Instant,
    ) -> Result<(Duration, Duration), StateError> {
        let lease = self.living(id, now)?;
        Ok((lease.granted, lease.deadline.saturating_duration_since(now)))
    }

    /// Whether keys may be put under it.
    pub(super) fn check(&self, id: LeaseId, now: Instant) -> Result<(), StateError> {
        self.living(id, now).map(|_| ())
    }

    /// The leases that have run out and whose keys must go. They stay until [`Leases::remove`].
    pub(super) fn expired(&mut self, now: Instant) -> Vec<LeaseId> {
        let due: Vec<LeaseId> =
            self.order.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        for id in &due {
            self.end(*id);
        }
        due
    }

    /// Marks a lease as over before its keys are deleted.
    pub(super) fn end(&mut self, id: LeaseId) {
        if let Some(lease) = self.table.get_mut(&id) {
            lease.over = true;
        }
    }

    /// Takes [`Leases::end`] back, because the deletion was refused.
    pub(super) fn spare(&mut self, id: LeaseId) {
        if let Some(lease) = self.table.get_mut(&id) {
            lease.over = false;
        }
    }

    /// Its keys could not be deleted: once more later.
    pub(super) fn retry(&mut self, id: LeaseId, now: Instant) {
        self.end(id);
        self.move_deadline(id, now + RETRY);
    }

    pub(super) fn remove(&mut self, id: LeaseId) {
        if let Some(lease) = self.table.remove(&id) {
            self.order.remove(&(lease.deadline, id));
        }
    }

    /// When the next one runs out.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    fn move_deadline(&mut self, id: LeaseId, deadline: Instant) {
        if let Some(lease) = self.table.get_mut(&id) {
            self.order.remove(&(lease.deadline, id));
            lease.deadline = deadline;
            self.order.insert((deadline, id));
        }
    }
}
