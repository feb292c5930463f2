//! What others may see of a node.

use super::hub::PeerIndex;
use crate::carrier::CarrierKind;
use skein_link_core::light::Counters;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is known of a peer, at most a fifth of a second old.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeerStatus {
    /// Whether there is a session.
    pub is_up: bool,
    /// What carries the datagrams that we send.
    pub carrier: CarrierKind,
    /// The largest datagram.
    pub datagram_bytes: usize,
    /// Smoothed round trip.
    pub round_trip: Duration,
    /// What the session has counted.
    pub counters: Counters,
    /// Bytes per second as last raced: in UDP, on Ethernet. `None` if there was nothing to choose.
    pub rates: Option<(u64, u64)>,
    /// Connections of programs.
    pub connections: usize,
}

/// Shared between the node's thread and who asks.
#[derive(Debug, Default)]
pub(super) struct Shared {
    up: Mutex<BTreeSet<PeerIndex>>,
    peers: Mutex<BTreeMap<PeerIndex, PeerStatus>>,
    aborts: AtomicU64,
    unmet: AtomicU64,
}

impl Shared {
    pub(super) fn set_up(&self, peer: PeerIndex, is_up: bool) {
        let mut up = lock(&self.up);
        if is_up {
            up.insert(peer);
        } else {
            up.remove(&peer);
        }
    }

    pub(super) fn is_up(&self, peer: PeerIndex) -> bool {
        lock(&self.up).contains(&peer)
    }

    pub(super) fn set_peers(&self, peers: BTreeMap<PeerIndex, PeerStatus>) {
        *lock(&self.peers) = peers;
    }

    pub(super) fn peers(&self) -> BTreeMap<PeerIndex, PeerStatus> {
        lock(&self.peers).clone()
    }

    pub(super) fn count_abort(&self) {
        self.aborts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn aborts(&self) -> u64 {
        self.aborts.load(Ordering::Relaxed)
    }

    pub(super) fn count_unmet(&self) {
        self.unmet.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn unmet(&self) -> u64 {
        self.unmet.load(Ordering::Relaxed)
    }
}

/// What is guarded is replaced as a whole, so a panic of another thread leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
