//! A copy of all records in memory, kept by a watch.

use crate::keys::{RECORDS, RecordKey};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skein_fabric::{
    Batch, Entry, Event, Key, KeySpan, LeaseId, Query, Revision, State, StateError, WatchFrom,
};
use skein_model::{
    AddressRecord, GroupName, GroupRecord, ImageManifest, ImageName, MachineId, MachineRecord,
    MachineStatus, NetworkName, NetworkRecord, NodeName, NodeRecord, NodeState, PortRecord,
    ProjectName, ProjectRecord, PublicationRecord, ServiceName, ServiceRecord, Timestamp,
    TokenDigest, TokenRecord, Transport, Vni,
};
use skein_shell::Tasks;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tracing::{error, warn};

/// Why records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The store failed.
    #[error("reading or writing the records")]
    State {
        /// How.
        #[from]
        source: StateError,
    },
    /// A record is not what this release writes.
    #[error("the record {key} cannot be read")]
    Record {
        /// Which.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// A record and the revision at which it was written: the condition of its next change.
#[derive(Debug, Clone)]
pub struct Stored<T> {
    /// The record.
    pub value: Arc<T>,
    /// When it was written last.
    pub revision: Revision,
}

/// That a node's agent lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// The agent's lease; jobs it claims hang on it.
    pub lease: LeaseId,
    /// Since when.
    pub since: Timestamp,
}

/// All records at one moment.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Projects.
    pub projects: BTreeMap<ProjectName, Stored<ProjectRecord>>,
    /// Tokens that open a project, by the digest of their secret.
    pub tokens: BTreeMap<TokenDigest, Stored<TokenRecord>>,
    /// Networks by owner and name.
    pub networks: BTreeMap<(ProjectName, NetworkName), Stored<NetworkRecord>>,
    /// Ports by machine.
    pub ports: BTreeMap<MachineId, Stored<PortRecord>>,
    /// Addresses that are held or rest.
    pub addresses: BTreeMap<(Vni, Ipv4Addr), Stored<AddressRecord>>,
    /// Groups of firewall rules by owner and name.
    pub groups: BTreeMap<(ProjectName, GroupName), Stored<GroupRecord>>,
    /// Published ports.
    pub publications: BTreeMap<(Transport, u16), Stored<PublicationRecord>>,
    /// Services by owner and name.
    pub services: BTreeMap<(ProjectName, ServiceName), Stored<ServiceRecord>>,
    /// Images by owner and name.
    pub images: BTreeMap<(ProjectName, ImageName), Stored<ImageManifest>>,
    /// What machines shall be.
    pub machines: BTreeMap<MachineId, Stored<MachineRecord>>,
    /// What machines are.
    pub statuses: BTreeMap<MachineId, Stored<MachineStatus>>,
    /// Nodes.
    pub nodes: BTreeMap<NodeName, Stored<NodeRecord>>,
    /// Nodes whose agent lives.
    pub alive: BTreeMap<NodeName, Stored<Alive>>,
    /// Nodes on which nothing new is placed.
    pub cordons: BTreeSet<NodeName>,
}

impl View {
    /// Whether machines may be placed on a node.
    pub fn node_state(&self, node: &NodeName) -> NodeState {
        match (self.alive.contains_key(node), self.cordons.contains(node)) {
            (false, _) => NodeState::Lost,
            (true, true) => NodeState::Cordoned,
            (true, false) => NodeState::Ready,
        }
    }

    fn put(&mut self, entry: &Entry) {
        fn set<K: Ord, T: DeserializeOwned>(
            map: &mut BTreeMap<K, Stored<T>>,
            key: K,
            entry: &Entry,
        ) -> Result<(), serde_json::Error> {
            if map.get(&key).is_some_and(|old| old.revision >= entry.mod_revision) {
                return Ok(());
            }
            let value = Arc::new(serde_json::from_slice(&entry.value)?);
            map.insert(key, Stored { value, revision: entry.mod_revision });
            Ok(())
        }
        let Some(record) = RecordKey::parse(entry.key.as_str()) else {
            return;
        };
        let result = match record {
            RecordKey::Project(name) => set(&mut self.projects, name, entry),
            RecordKey::Token(digest) => set(&mut self.tokens, digest, entry),
            RecordKey::Network(project, name) => set(&mut self.networks, (project, name), entry),
            RecordKey::Port(id) => set(&mut self.ports, id, entry),
            RecordKey::Address(vni, address) => set(&mut self.addresses, (vni, address), entry),
            RecordKey::Group(project, name) => set(&mut self.groups, (project, name), entry),
            RecordKey::Publication(transport, port) => {
                set(&mut self.publications, (transport, port), entry)
            }
            RecordKey::Service(project, name) => set(&mut self.services, (project, name), entry),
            RecordKey::Image(project, name) => set(&mut self.images, (project, name), entry),
            RecordKey::Machine(id) => set(&mut self.machines, id, entry),
            RecordKey::Status(id) => set(&mut self.statuses, id, entry),
            RecordKey::Node(name) => set(&mut self.nodes, name, entry),
            RecordKey::Alive(name) => set(&mut self.alive, name, entry),
            RecordKey::Cordon(name) => {
                self.cordons.insert(name);
                Ok(())
            }
        };
        if let Err(error) = result {
            error!(key = %entry.key, %error, "a record cannot be read and is passed over");
        }
    }

    fn remove(&mut self, key: &Key) {
        match RecordKey::parse(key.as_str()) {
            None => {}
            Some(RecordKey::Project(name)) => drop(self.projects.remove(&name)),
            Some(RecordKey::Token(digest)) => drop(self.tokens.remove(&digest)),
            Some(RecordKey::Network(project, name)) => drop(self.networks.remove(&(project, name))),
            Some(RecordKey::Port(id)) => drop(self.ports.remove(&id)),
            Some(RecordKey::Address(vni, at)) => drop(self.addresses.remove(&(vni, at))),
            Some(RecordKey::Group(project, name)) => drop(self.groups.remove(&(project, name))),
            Some(RecordKey::Publication(transport, port)) => {
                drop(self.publications.remove(&(transport, port)));
            }
            Some(RecordKey::Service(project, name)) => drop(self.services.remove(&(project, name))),
            Some(RecordKey::Image(project, name)) => drop(self.images.remove(&(project, name))),
            Some(RecordKey::Machine(id)) => drop(self.machines.remove(&id)),
            Some(RecordKey::Status(id)) => drop(self.statuses.remove(&id)),
            Some(RecordKey::Node(name)) => drop(self.nodes.remove(&name)),
            Some(RecordKey::Alive(name)) => drop(self.alive.remove(&name)),
            Some(RecordKey::Cordon(name)) => {
                self.cordons.remove(&name);
            }
        }
    }

    fn apply(&mut self, batch: &Batch) {
        for event in &batch.events {
            match event {
                Event::Put(entry) => self.put(entry),
                Event::Deleted(key) => self.remove(key),
            }
        }
    }
}

/// A copy of all records, kept by a watch. Cheap to clone. It trails the store by the time a change takes to arrive;
/// writes are guarded by revisions, so an old view costs a retry and never a wrong write.
#[derive(Debug, Clone)]
pub struct Mirror {
    view: Arc<RwLock<View>>,
    seen: watch::Receiver<Revision>,
}

impl Mirror {
    /// Lists all records and follows their changes in a task of `tasks`.
    ///
    /// # Errors
    /// [`RegistryError::State`] when the first list fails.
    pub async fn start(state: Arc<dyn State>, tasks: &Tasks) -> Result<Self, RegistryError> {
        let (view, revision) = list(&state).await?;
        let view = Arc::new(RwLock::new(view));
        let (announce, seen) = watch::channel(revision);
        let stop = tasks.stop_token().clone();
        let copy = view.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}               // cancel-safe: token
                () = follow(state, copy, announce) => {}  // owns all it needs; nothing is half done outside
            }
        });
        Ok(Self { view, seen })
    }

    /// Looks at the records. `look` must not wait: the mirror stands still meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes whenever a record has.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.seen.clone()
    }

    /// Waits until the mirror has seen `revision`, at most two seconds: so a client reads its own write. Whether it has.
    ///
    /// It sees only changes of records: a revision at which none was changed is not seen before the next change of one.
    pub async fn reach(&self, revision: Revision) -> bool {
        let mut seen = self.seen.clone();
        let reached = seen.wait_for(|seen| *seen >= revision);
        matches!(tokio::time::timeout(Duration::from_secs(2), reached).await, Ok(Ok(_)))
    }
}

async fn list(state: &Arc<dyn State>) -> Result<(View, Revision), StateError> {
    let mut view = View::default();
    let mut span = KeySpan::prefix(RECORDS)?;
    let mut first = None;
    loop {
        let page = state.range(Query::span(span.clone())).await?;
        // The watch begins after the first page: what changed while later pages were read comes again.
        first.get_or_insert(page.revision);
        page.entries.iter().for_each(|entry| view.put(entry));
        match page.entries.last() {
            Some(last) if page.more => span = span.after(&last.key),
            Some(_) | None => return Ok((view, first.unwrap_or(page.revision))),
        }
    }
}

async fn follow(state: Arc<dyn State>, view: Arc<RwLock<View>>, seen: watch::Sender<Revision>) {
    let replace = |fresh: View| *view.write().unwrap_or_else(PoisonError::into_inner) = fresh;
    loop {
        let from = WatchFrom::Revision(seen.borrow().next());
        let error = match KeySpan::prefix(RECORDS) {
            Err(error) => error,
            Ok(span) => match state.watch(span, from).await {
                Err(error) => error,
                Ok(mut watch) => loop {
                    match watch.next().await {
                        Err(error) => break error,
                        Ok(batch) => {
                            view.write().unwrap_or_else(PoisonError::into_inner).apply(&batch);
                            seen.send_replace(batch.revision);
                        }
                    }
                },
            },
        };
        if matches!(error, StateError::Closed) {
            return;
        }
        warn!(%error, "the watch of the records ended; listing them again");
        loop {
            match list(&state).await {
                Ok((fresh, revision)) => {
                    replace(fresh);
                    seen.send_replace(revision);
                    break;
                }
                Err(StateError::Closed) => return,
                Err(error) => {
                    warn!(%error, "listing the records failed");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }
}

/// A record as it is stored.
///
/// # Errors
/// None in practice: records are plain data. Kept so that a caller never panics on one.
pub(crate) fn encode(record: &impl Serialize) -> Result<Bytes, serde_json::Error> {
    serde_json::to_vec(record).map(Bytes::from)
}

impl RecordKey {
    /// The operation that writes a record under this key.
    ///
    /// # Errors
    /// [`RegistryError::Record`] when it cannot be encoded.
    pub fn put(&self, record: &impl Serialize) -> Result<skein_fabric::Op, RegistryError> {
        let key = self.key();
        match encode(record) {
            Ok(value) => Ok(skein_fabric::Op::put(key, value)),
            Err(source) => Err(RegistryError::Record { key: key.to_string(), source }),
        }
    }

    /// The operation that writes a record whose life hangs on a lease.
    ///
    /// # Errors
    /// [`RegistryError::Record`] when it cannot be encoded.
    pub fn put_leased(
        &self,
        record: &impl Serialize,
        lease: LeaseId,
    ) -> Result<skein_fabric::Op, RegistryError> {
        let key = self.key();
        match encode(record) {
            Ok(value) => Ok(skein_fabric::Op::put_leased(key, value, lease)),
            Err(source) => Err(RegistryError::Record { key: key.to_string(), source }),
        }
    }
}
