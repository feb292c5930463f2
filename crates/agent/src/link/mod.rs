//! The link for programs of the node's host: broker, light protocol, and who is allowed what.
//!
//! ```text
//!   records (mirror) ──▶ peers    ──▶ light protocol ──▶ other nodes
//!                    ──▶ projects ──▶ broker ◀── programs under `skein link run`
//!                    ──▶ rules    ──▶ broker: what is not allowed any more goes back to TCP
//! ```
//! One task follows the records. When it ends, or its agent is killed, programs go on: rings are theirs, and connections over the
//! light protocol end with an error, as when a host dies. The next agent serves them again.
//!
//! Agents whose nodes share a network namespace share its sockets too: each project is served by whichever comes first, and
//! by another one when that ends.

mod peers;
mod rules;
mod sealed;
mod secret;

use crate::config::{AgentConfig, LinkConfig};
use crate::node::Node;
use rules::Rules;
use sealed::Sealed;
use skein_fabric::State;
use skein_link::broker::{Broker, BrokerConfig, BrokerError, Connection, Totals};
use skein_link::node::{Node as Light, NodeConfig, PeerConfig, shared_key};
use skein_link::place;
use skein_link::remote::Remote;
use skein_link::run;
use skein_model::Encryption;
use skein_registry::{LinkConnection, LinkFigures, Mirror};
use skein_shell::report;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::{info, warn};

/// A socket that another broker has is tried again after so long.
const RETRY: Duration = Duration::from_secs(5);

/// The running parts.
struct Running {
    broker: Broker,
    light: Option<Arc<Light>>,
}

/// The link of a node.
pub(crate) struct Link {
    /// `None` once it was stopped.
    running: Mutex<Option<Arc<Running>>>,
    folder: PathBuf,
    /// The namespace's number in the names of sockets, if the node has one of its own.
    named: Option<u64>,
    /// The number of the network namespace that the node is in.
    own: Option<u64>,
    /// Where the light protocol listens.
    light: Option<SocketAddr>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Link {
    /// Starts what the configuration asks for. What cannot be started is logged and left out: a node without the link is a
    /// node.
    pub(crate) async fn start(
        config: &AgentConfig,
        state: &Arc<dyn State>,
        mirror: &Mirror,
    ) -> Option<Self> {
        let link = config.link.as_ref()?;
        let light = light_of(link, config.encryption);
        if light != link.light {
            info!("the node encrypts what it sends to others: the link keeps within its host");
        }
        let key = match light {
            Some(_) => secret::secret(state).await.map_err(|error| {
                warn!(error = %report::chain(&error), "without the cloud's secret there is no link to other nodes");
            }),
            None => Err(()),
        };
        let folder = link.folder.as_std_path().to_owned();
        if let Err(error) = std::fs::create_dir_all(&folder) {
            warn!(folder = %link.folder, %error, "the link's folder cannot be made");
            return None;
        }
        // Programs of users who may ask, but not write here, find it.
        if let Err(error) = run::library(&folder.join(run::FOLDER)) {
            warn!(code = error.code(), error = %report::chain(&error), "the link's library cannot be kept beside its sockets");
        }
        let body = || open(config, light, key.ok().as_deref(), mirror);
        // A few system calls, none of which waits for anybody.
        let opened = match &config.namespace {
            Some(namespace) => place::within(namespace, body),
            None => Ok(body()),
        };
        match opened {
            Ok(Some((running, own))) => Some(Self {
                light: light.filter(|_| running.light.is_some()),
                running: Mutex::new(Some(Arc::new(running))),
                folder,
                named: own.filter(|_| config.namespace.is_some()),
                own,
            }),
            Ok(None) => None,
            Err(error) => {
                warn!(%error, "the node's network namespace cannot be entered: it has no link");
                None
            }
        }
    }

    /// UDP port of the light protocol; 0: there is none.
    pub(crate) fn light_port(&self) -> u16 {
        self.light.map_or(0, |light| light.port())
    }

    /// Where a project's programs ask.
    fn sockets(&self, project: &str) -> Vec<PathBuf> {
        place::sockets_to_serve(&self.folder, self.named, self.own, project)
    }

    fn running(&self) -> Option<Arc<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends broker and light protocol; programs go on.
    pub(crate) fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(running);
    }

    /// The connections of a project, those that were refused among them.
    pub(crate) fn connections(&self, project: &str) -> Vec<LinkConnection> {
        let Some(running) = self.running() else { return Vec::new() };
        let mut all = running.broker.connections();
        all.extend(running.broker.refused());
        all.retain(|one| one.project == project);
        all.sort_by_cached_key(Connection::ends);
        all.into_iter().map(told).collect()
    }

    /// What was counted since the agent began.
    pub(crate) fn figures(&self) -> Option<LinkFigures> {
        let running = self.running()?;
        let totals = running.broker.totals();
        let peers = running.light.as_ref().map(|light| light.peers()).unwrap_or_default();
        let Totals {
            ring_connections,
            light_connections,
            tcp_connections,
            ring_bytes,
            light_bytes,
            tcp_bytes,
            wakeups,
            steps_back,
        } = totals;
        Some(LinkFigures {
            connections: [ring_connections, light_connections, tcp_connections],
            bytes: [ring_bytes, light_bytes, tcp_bytes],
            wakeups,
            steps_back,
            peers: u32::try_from(peers.len()).unwrap_or(u32::MAX),
            peers_up: peers.iter().filter(|(_, peer)| peer.is_up).count() as u32,
        })
    }
}

/// Where the light protocol listens: nowhere if nodes seal what they send each other, for its datagrams are not sealed.
fn light_of(link: &LinkConfig, encryption: Encryption) -> Option<SocketAddr> {
    match encryption {
        Encryption::Off => link.light,
        Encryption::WireGuard => None,
    }
}

/// Starts broker and light protocol in the calling thread's namespace, whose number is told too.
fn open(
    config: &AgentConfig,
    light: Option<SocketAddr>,
    key: Option<&[u8]>,
    mirror: &Mirror,
) -> Option<(Running, Option<u64>)> {
    let own = place::own_namespace();
    let light = light.zip(key).and_then(|(listen, key)| {
        let name = config.name.to_string();
        let light = Light::start(&NodeConfig::new(name, listen, shared_key(key)));
        light.map(Arc::new).map_err(|error| {
            warn!(code = error.code(), error = %report::chain(&error), "this node has no link to other nodes");
        }).ok()
    });
    let remote = match (&light, config.encryption) {
        (Some(light), _) => Some(Arc::clone(light) as Arc<dyn Remote>),
        (None, Encryption::WireGuard) => {
            Some(Arc::new(Sealed { mirror: mirror.clone() }) as Arc<dyn Remote>)
        }
        (None, Encryption::Off) => None,
    };
    let broker = Broker::start(BrokerConfig {
        projects: Vec::new(),
        remote,
        guard: Some(Arc::new(Rules { mirror: mirror.clone(), namespace: own })),
        // Ours, of whatever cloud: they lead from outside into networks.
        tables_ignored: Some(skein_net::TABLE_PREFIX.to_owned()),
        ..BrokerConfig::new(PathBuf::new())
    });
    match broker {
        Ok(broker) => Some((Running { broker, light }, own)),
        Err(error) => {
            warn!(code = error.code(), error = %report::chain(&error), "the node has no link");
            None
        }
    }
}

fn told(one: Connection) -> LinkConnection {
    LinkConnection {
        low: one.low,
        high: one.high,
        pids: one.pids,
        path: format!("{:?}", one.path).to_lowercase(),
        reason: one.reason,
        ring_bytes: one.ring_bytes,
        tcp_bytes: one.tcp_bytes,
        wakeups: one.wakeups,
    }
}

/// Keeps the node's link in line with the records, until the agent stops.
pub(crate) async fn follow(node: Arc<Node>) {
    let Some(link) = node.link.as_ref() else { return };
    let stop = node.tasks.stop_token().clone();
    let mut changes = node.mirror.changes();
    let mut known: Option<Vec<PeerConfig>> = None;
    let mut was_taken = false;
    loop {
        changes.borrow_and_update();
        let (peers, projects) = node.mirror.read(|view| {
            let peers = link.light.map(|at| peers::peers(view, &node.config.name, at));
            (peers.unwrap_or_default(), peers::projects(view, |project| link.sockets(project)))
        });
        let Some(running) = link.running() else { return };
        let fresh = (known.as_ref() != Some(&peers)).then(|| peers.clone());
        // Answered by threads that wait for nobody.
        let done = tokio::task::spawn_blocking(move || {
            if let (Some(light), Some(peers)) = (&running.light, fresh)
                && let Err(error) = light.set_peers(peers)
            {
                warn!(code = error.code(), error = %report::chain(&error), "a node cannot be a peer of the link");
            }
            let served = running.broker.set_projects(projects);
            running.broker.enforce();
            served
        });
        known = Some(peers);
        let taken = match done.await {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                tell_taken(&error, was_taken);
                true
            }
            Err(_) => return,
        };
        was_taken = taken;
        tokio::select! {
            () = stop.cancelled() => break,                                 // cancel-safe: token
            changed = changes.changed() => if changed.is_err() { break },   // cancel-safe: watch; all is re-read
            () = tokio::time::sleep(RETRY), if taken => {}                  // cancel-safe: timer
        }
    }
    link.stop();
}

/// Once, not each time that it is tried again.
fn tell_taken(error: &BrokerError, was_taken: bool) {
    if was_taken {
        return;
    }
    let (code, chain) = (error.code(), report::chain(error));
    match error {
        BrokerError::Running { .. } => {
            info!(code, error = %chain, "another broker serves the host's programs");
        }
        _ => warn!(code, error = %chain, "programs cannot ask for the link"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_encrypts_sends_no_datagrams_of_the_link() {
        let light: SocketAddr = "10.0.0.1:4077".parse().unwrap();
        let link = LinkConfig { folder: "/run/skein".into(), light: Some(light) };
        assert_eq!(light_of(&link, Encryption::Off), Some(light));
        assert_eq!(light_of(&link, Encryption::WireGuard), None);
    }
}
