//! Connections to a service of which no machine is there: they are held until there is one.

use crate::connector::Connector;
use crate::desired::{DesiredNetwork, Publication, Transport, Vni, Wake};
use crate::events::{Events, NetworkEvent};
use crate::firewall::{Packet, Policy};
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
/// Number of the transport protocol.
const TCP: u8 = 6;
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
        let found = tokio::time::timeout(HELD_MAX, self.machine(from)).await;
        let Ok(Some((to, mut machine))) = found else {
            debug!(network.vni = %self.vni, port = self.port, %from, "a client was held in vain");
            return;
        };
        let _ = client.set_nodelay(true);
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut machine) => {} // both are ended below
            () = self.forbidden(from, to) => {}                                // cancel-safe: watch
        }
    }

    /// Until the rules forbid what they let through, or it is not published any more.
    async fn forbidden(&mut self, from: SocketAddr, to: SocketAddrV4) {
        loop {
            let network = self.network.borrow_and_update().clone();
            let may_stay = self.publication(&network).is_some() && lets_in(&network, from, to);
            if !may_stay || self.network.changed().await.is_err() {
                return;
            }
        }
    }

    fn publication(&self, network: &DesiredNetwork) -> Option<Publication> {
        let is_it = |p: &&Publication| {
            p.port == self.port && p.protocol == Transport::Tcp && p.wake.is_some()
        };
        network.publications.iter().find(is_it).cloned()
    }

    /// A connection to a machine that lets the client in, once one answers; `None` if nothing is published any more, or
    /// neither those that are there nor the one that would be woken let it in.
    async fn machine(&mut self, from: SocketAddr) -> Option<(SocketAddrV4, TcpStream)> {
        let mut asked = false;
        loop {
            let (publication, open, may_wait) = {
                let network = self.network.borrow_and_update().clone();
                let publication = self.publication(&network)?;
                let backends = publication.backends.iter();
                let open = backends.map(|at| SocketAddrV4::new(*at, publication.target_port));
                let open: Vec<_> = open.filter(|to| lets_in(&network, from, *to)).collect();
                let may_wait = match &publication.wake {
                    Some(wake) if publication.backends.is_empty() => {
                        will_let_in(&network, from, wake, publication.target_port)
                    }
                    Some(_) | None => !open.is_empty(),
                };
                (publication, open, may_wait)
            };
            if !may_wait {
                return None;
            }
            for to in open {
                if let Ok(machine) = self.inside.connect(to).await {
                    return Some((to, machine));
                }
            }
            match publication.wake {
                Some(wake) if publication.backends.is_empty() && !asked => {
                    asked = true;
                    let (vni, label, port) = (self.vni, wake.label, self.port);
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

/// Whether the rules let a client through to a machine: it is joined to it by sockets of this node, past the tables.
fn lets_in(network: &DesiredNetwork, from: SocketAddr, to: SocketAddrV4) -> bool {
    Policy::new(network).lets_in(&opening(from, to))
}

/// Whether the rules will let a client through to a port of the machine that it wakes.
fn will_let_in(network: &DesiredNetwork, from: SocketAddr, wake: &Wake, port: u16) -> bool {
    // The machine has no address yet, and no rule asks for a receiver's.
    let to = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    Policy::new(network).admits(&wake.groups, &opening(from, to))
}

fn opening(from: SocketAddr, to: SocketAddrV4) -> Packet {
    let (source, destination) = (from.ip(), (*to.ip()).into());
    Packet { source, destination, protocol: TCP, port: to.port() }
}
