//! Connections to a service of which no machine is there: they are held until there is one.

use crate::connector::Connector;
use crate::desired::{DesiredNetwork, Publication, Transport, Vni};
use crate::events::{Events, NetworkEvent};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;

/// How long a client is held.
const HELD_MAX: Duration = Duration::from_secs(60);
/// Clients held per port: as many as the kernel holds for a busy server.
const CLIENTS_MAX: usize = 1_024;
/// Between two attempts to reach a machine that is there and does not answer yet.
const RETRY: Duration = Duration::from_millis(100);

/// Where connections wait, by what they came to.
pub(crate) type WaitingRoom = BTreeMap<(Transport, u16), u16>;

/// The listeners of a network.
#[derive(Debug)]
pub(crate) struct Waiting {
    vni: Vni,
    inside: Connector,
    network: watch::Receiver<Arc<DesiredNetwork>>,
    events: Events,
    room: WaitingRoom,
    tasks: BTreeMap<(Transport, u16), JoinSet<()>>,
}

impl Waiting {
    pub(crate) fn new(
        vni: Vni,
        inside: Connector,
        network: watch::Receiver<Arc<DesiredNetwork>>,
        events: Events,
    ) -> Self {
        let (room, tasks) = (WaitingRoom::new(), BTreeMap::new());
        Self { vni, inside, network, events, room, tasks }
    }

    /// Listens for every publication that can wake somebody, and for no other. Listeners stay while
    /// machines are there: who is held then goes on to them.
    pub(crate) async fn follow(&mut self, network: &DesiredNetwork) -> io::Result<WaitingRoom> {
        let wanted = |publication: &&Publication| {
            publication.wake.is_some() && publication.protocol == Transport::Tcp
        };
        let wanted = network.publications.iter().filter(wanted);
        let wanted: BTreeMap<_, _> = wanted.map(|p| ((p.protocol, p.port), p)).collect();
        self.room.retain(|key, _| wanted.contains_key(key));
        self.tasks.retain(|key, _| wanted.contains_key(key));
        for key in wanted.keys() {
            if self.room.contains_key(key) {
                continue;
            }
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
            let listener = self.inside.listen_tcp(any).await?;
            self.room.insert(*key, listener.local_addr()?.port());
            let clerk = Clerk {
                vni: self.vni,
                port: key.1,
                inside: self.inside.clone(),
                network: self.network.clone(),
                events: self.events.clone(),
            };
            let mut tasks = JoinSet::new();
            tasks.spawn(clerk.serve(listener));
            self.tasks.insert(*key, tasks);
        }
        Ok(self.room.clone())
    }
}

/// Serves one listener.
#[derive(Debug, Clone)]
struct Clerk {
    vni: Vni,
    port: u16,
    inside: Connector,
    network: watch::Receiver<Arc<DesiredNetwork>>,
    events: Events,
}

impl Clerk {
    async fn serve(self, listener: TcpListener) {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if clients.len() < CLIENTS_MAX => match accepted {  // cancel-safe
                    Ok((client, from)) => {
                        clients.spawn(self.clone().hold(client, from));
                    }
                    Err(_) => tokio::time::sleep(super::PAUSE_AFTER_ERROR).await,
                },
                Some(_) = clients.join_next() => {}                                            // cancel-safe: a set
            }
        }
    }

    /// Holds a client until a machine takes it.
    async fn hold(mut self, mut client: TcpStream, from: SocketAddr) {
        let found = tokio::time::timeout(HELD_MAX, self.machine()).await;
        let Ok(Some(mut machine)) = found else {
            debug!(network.vni = %self.vni, port = self.port, %from, "a client was held in vain");
            return;
        };
        let _ = client.set_nodelay(true);
        let _ = tokio::io::copy_bidirectional(&mut client, &mut machine).await;
    }

    /// A connection to a machine, once one answers; `None` if nothing is published any more.
    async fn machine(&mut self) -> Option<TcpStream> {
        let mut asked = false;
        loop {
            let publication = {
                let network = self.network.borrow_and_update();
                let is_it = |p: &&Publication| {
                    p.port == self.port && p.protocol == Transport::Tcp && p.wake.is_some()
                };
                network.publications.iter().find(is_it)?.clone()
            };
            for backend in &publication.backends {
                let to = SocketAddrV4::new(*backend, publication.target_port);
                if let Ok(machine) = self.inside.connect(to).await {
                    return Some(machine);
                }
            }
            match publication.wake {
                Some(label) if publication.backends.is_empty() && !asked => {
                    asked = true;
                    let (vni, port) = (self.vni, self.port);
                    self.events.tell(NetworkEvent::Wake { vni, label, port }).await;
                }
                _ => {}
            }
            tokio::select! {
                changed = self.network.changed() => changed.ok()?,       // cancel-safe: watch
                () = tokio::time::sleep(RETRY) => {}                     // cancel-safe: timer
            }
        }
    }
}
