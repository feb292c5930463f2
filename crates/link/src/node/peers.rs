//! Peers that come and go while the node runs.

use super::config::{PeerConfig, agent_id, pair_key};
use super::connection::Phase;
use super::daemon::Daemon;
use super::hub::{CarrierIndex, PeerIndex, Way};
use super::path::Choice;
use crate::carrier::Address;
use skein_link_core::light::{AgentId, Check, Config, Key, Moment, ResetReason};

/// What the node is in all its sessions.
pub(super) struct Own {
    pub(super) id: AgentId,
    pub(super) key: Key,
    pub(super) incarnation: u64,
    pub(super) check: Check,
    pub(super) udp: CarrierIndex,
}

impl Daemon {
    /// Another peer, which is called from now on.
    pub(super) fn add_peer(&mut self, peer: &PeerConfig) -> PeerIndex {
        let (me, id) = (self.own.id, agent_id(&peer.name));
        let key = pair_key(&self.own.key, me, id);
        let session = Config::new(me, id, key, self.own.incarnation, rand::random());
        let session = Config { check: self.own.check, ..session };
        let way = Way { carrier: self.own.udp, address: Address::Socket(peer.socket) };
        let index = self.hub.add_peer(session, way);
        let now = self.hub.now();
        self.hub.session(index).call(now);
        self.smaller.insert(index, me < id);
        self.choices.insert(index, Choice::new(index, peer.socket.ip()));
        // Told in the next round: who has added it may ask for it.
        self.status_at = Moment::default();
        index
    }

    /// The peer is none any more. It is told, and so are the programs: connections whose bytes are on the way to it end with
    /// an error, as if it had died; those that were not agreed yet stay on TCP and notice nothing.
    pub(super) fn remove_peer(&mut self, peer: PeerIndex) {
        if !self.hub.has(peer) {
            return;
        }
        let of_peer = self.connections.iter().filter(|(_, connection)| connection.peer == peer);
        let ids: Vec<u64> = of_peer.map(|(id, _)| *id).collect();
        for id in ids {
            let Some(mut connection) = self.remove(id) else { continue };
            if matches!(connection.phase, Phase::Joined(_)) {
                connection.local().abort(ResetReason::PeerLeft.code());
                self.shared.count_abort();
            }
        }
        self.parked.retain(|_, parked| parked.peer != peer);
        self.races.retain(|(other, _)| *other != peer);
        self.choices.remove(&peer);
        self.smaller.remove(&peer);
        self.shared.set_up(peer, false);
        let now = self.hub.now();
        self.hub.session(peer).leave(now);
        // The goodbye; if it is lost, the peer notices the silence.
        self.hub.transmit();
        self.hub.remove_peer(peer);
        self.status_at = Moment::default();
    }
}
