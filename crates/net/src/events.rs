//! What networks tell whoever runs them.

use crate::desired::Vni;
use crate::names::PortLabel;
use std::net::IpAddr;
use tokio::sync::mpsc;

/// 1,024: a burst of log lines of all networks (ten a second each); what is lost is only told, but
/// [`NetworkEvent::Wake`] waits for room.
pub const EVENTS_WAITING_MAX: usize = 1_024;

/// Something that happened in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkEvent {
    /// A connection came for a service of which no machine is there, and waits.
    Wake {
        /// The network.
        vni: Vni,
        /// Whom to wake: [`crate::Wake::label`].
        label: PortLabel,
        /// The port it came to.
        port: u16,
    },
    /// A connection was let in by a rule that is logged.
    RuleMatched {
        /// The network.
        vni: Vni,
        /// `GROUP in ID` or `GROUP out ID`.
        rule: String,
        /// Who opened it.
        source: IpAddr,
        /// To whom.
        destination: IpAddr,
        /// Number of the transport protocol.
        protocol: u8,
        /// Destination port, or 0.
        port: u16,
    },
    /// Something of ours was changed or removed by somebody else, and put back.
    Healed {
        /// The network; `None` for the node's own table.
        vni: Option<Vni>,
        /// How many steps it took.
        steps: usize,
    },
}

/// Where events go; a cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Events(Option<mpsc::Sender<NetworkEvent>>);

impl Events {
    pub(crate) fn new(sender: Option<mpsc::Sender<NetworkEvent>>) -> Self {
        Self(sender)
    }

    /// Waits for room.
    pub(crate) async fn tell(&self, event: NetworkEvent) {
        if let Some(sender) = &self.0 {
            // Nobody listens any more: then nobody needs to know.
            let _ = sender.send(event).await;
        }
    }

    /// Lost if there is no room.
    pub(crate) fn mention(&self, event: NetworkEvent) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(event);
        }
    }
}
