//! Starting and stopping the parts in their order.

use crate::host::{HostFigures, HostProblem, UID_BASE, UIDS_PER_NODE, may_change_users};
use crate::leftover;
use crate::tunnels::{NODES_MAX, TunnelPorts};
use camino::{Utf8Path, Utf8PathBuf};
use skein_agent::{Agent, AgentConfig, AgentError, LinkConfig, Parts};
use skein_api::Target;
use skein_fabric::{
    BlobError, BlobStore, Bus, EmbeddedOptions, EmbeddedState, LocalBus, Queue, QueueError, State,
    StateError,
};
use skein_model::{CpuMilli, Encryption, NodeName};
use skein_net::{NetworkName, NodeNetwork, NodeNumber, Underlay};
use skein_server::{Server, ServerConfig, ServerError, ServerParts, Token, TokenError};
use skein_shell::report;
use skein_vmm::{AccelChoice, Driver, ImageError, ImageStore, QemuConfig, QemuDriver, RunAs};
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Share of the host's memory that machines may reserve.
const MEMORY_SHARE: f64 = 0.8;
/// How often the host's processors are promised: machines wait for work most of their time.
const CPU_OVERCOMMIT: u32 = 20;

/// UDP port of the light protocol: that of `skein link broker`.
const LIGHT_PORT: u16 = 4077;

/// What a cloud is told.
#[derive(Debug, Clone)]
pub struct CloudConfig {
    /// Its state folder; made if absent, with mode 0700. An absolute path of at most 48 bytes, because sockets live below it.
    pub state: Utf8PathBuf,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// How many nodes, 1 to 100; as many as `places`, if there are any.
    pub nodes: u32,
    /// Where each node is; none: all are in this process's network namespace, and reach each other on its loopback.
    pub places: Vec<NodePlace>,
    /// Folder of the sockets on which programs of the host ask for the link; none: there is no link.
    pub link: Option<Utf8PathBuf>,
    /// Who runs the guests' instructions.
    pub accel: AccelChoice,
    /// QEMU's program; searched for unless given.
    pub qemu: Option<Utf8PathBuf>,
    /// Whether nodes encrypt what they send each other.
    pub encryption: Encryption,
    /// How long an agent or leader may be silent before it counts as lost.
    pub lease: Duration,
    /// A machine that is not ready after this long is ended.
    pub boot_timeout: Duration,
    /// Who runs machines; none: QEMU. For measurements and tests without an emulator.
    pub drivers: Option<Arc<dyn Drivers>>,
}

/// Gives each node of a cloud its driver of machines.
pub trait Drivers: fmt::Debug + Send + Sync {
    /// A driver for one node, and for what an earlier cloud left.
    fn open(&self) -> Arc<dyn Driver>;

    /// What node records say runs their machines.
    fn name(&self) -> &str;
}

/// Where a node of the cloud is: a network namespace of this host that plays a host of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlace {
    /// The namespace's file, such as `/run/netns/NAME`.
    pub namespace: PathBuf,
    /// Its address there, at which the other nodes reach it.
    pub address: Ipv4Addr,
}

impl CloudConfig {
    /// One node, listening on `127.0.0.1:7070`.
    pub fn new(state: impl Into<Utf8PathBuf>) -> Self {
        Self {
            state: state.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            nodes: 1,
            places: Vec::new(),
            link: None,
            accel: AccelChoice::Probe,
            qemu: None,
            encryption: Encryption::Off,
            lease: Duration::from_secs(10),
            boot_timeout: Duration::from_secs(30),
            drivers: None,
        }
    }
}

/// Why a cloud did not start.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// The host cannot run one.
    #[error(transparent)]
    Host(#[from] HostProblem),
    /// A value that cannot be.
    #[error("{0}")]
    Config(String),
    /// The state folder cannot be used.
    #[error("using the state folder {path}")]
    Folder {
        /// Which.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Every UDP port for tunnels between nodes is in use.
    #[error(
        "no UDP ports are free for the tunnels between nodes: other clouds or programs of this host have them"
    )]
    TunnelPorts,
    /// The state cannot be opened.
    #[error("opening the state (is another cloud running on it?)")]
    State(#[from] StateError),
    /// The blobs cannot be opened.
    #[error("opening the blobs")]
    Blobs(#[from] BlobError),
    /// The queue cannot be opened.
    #[error("opening the queue")]
    Queue(#[from] QueueError),
    /// The images cannot be opened.
    #[error("opening the images")]
    Images(#[from] ImageError),
    /// The token cannot be read or made.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The server did not start.
    #[error("starting the server")]
    Server(#[from] ServerError),
    /// An agent did not start.
    #[error("starting node {node}")]
    Agent {
        /// Which.
        node: NodeName,
        /// Why.
        source: AgentError,
    },
}

/// A running cloud. Dropping it ends its tasks where they stand, as a crash would; its machines go on, and the next cloud on
/// the same folder adopts them.
#[derive(Debug)]
pub struct Cloud {
    config: CloudConfig,
    id: String,
    token: Token,
    tunnels: TunnelPorts,
    parts: Parts,
    agents: Vec<(NodeName, Option<Agent>)>,
    server: Option<Server>,
}

impl Cloud {
    /// Starts a cloud on its folder, or goes on where one was ended.
    ///
    /// # Errors
    /// [`CloudError`]; what was started is stopped then.
    pub async fn start(config: CloudConfig) -> Result<Self, CloudError> {
        check(&config)?;
        crate::check_host()?;
        if config.encryption == Encryption::WireGuard {
            // Nothing shall be sent as it is because nobody could encrypt it.
            skein_net::check_encryption().map_err(HostProblem::from)?;
        }
        tell_limit_of_host(&config);
        let folder = |source| CloudError::Folder { path: config.state.clone(), source };
        private_folder(&config.state).map_err(folder)?;
        let id = cloud_id(&config.state).map_err(folder)?;
        let state = config.state.join("state");
        let state = EmbeddedState::open(state.as_std_path(), EmbeddedOptions::default())?;
        let tunnels = TunnelPorts::take(&config.state, &id, config.nodes).map_err(folder)?;
        let tunnels = tunnels.ok_or(CloudError::TunnelPorts)?;
        let state: Arc<dyn State> = Arc::new(state);
        let bus: Arc<dyn Bus> = Arc::new(LocalBus::new());
        let blobs = BlobStore::open(config.state.join("blobs").as_std_path())?;
        let queue = Queue::open(state.clone(), blobs).await?;
        let images = ImageStore::open(&config.state.join("images"))?;
        let (driver, _) = open_driver(&config).await?;
        let parts = Parts { state, bus, queue, images, driver };
        let token = Token::open(config.state.join("admin.token").as_std_path())?;
        let mut cloud =
            Self { config, id, token, tunnels, parts, agents: Vec::new(), server: None };
        // Before the server: its leader would wait for nodes that never come.
        leftover::remove_nodes(&cloud.config, &cloud.id, &cloud.parts).await;
        // The server records events from the first one on; it plans only when the agents have had time to join.
        cloud.start_server().await?;
        cloud.sweep_networks().await;
        for number in 1..=cloud.config.nodes {
            match cloud.start_agent(number).await {
                Ok(agent) => cloud.agents.push(agent),
                Err(error) => {
                    cloud.stop().await;
                    return Err(error);
                }
            }
        }
        Ok(cloud)
    }

    /// Starts the agent of node `number`, with a driver of its own: what an agent was connected to ends with it.
    async fn start_agent(&self, number: u32) -> Result<(NodeName, Option<Agent>), CloudError> {
        let (driver, vmm) = open_driver(&self.config).await?;
        let config = self.agent_config(number, vmm)?;
        let node = config.name.clone();
        let parts = Parts { driver, ..self.parts.clone() };
        match Agent::start(config, parts).await {
            Ok(agent) => Ok((node, Some(agent))),
            Err(source) => Err(CloudError::Agent { node, source }),
        }
    }

    async fn start_server(&mut self) -> Result<(), CloudError> {
        let config = ServerConfig {
            listen: self.config.listen,
            history: self.config.state.join("events.db"),
            cloud: self.id.clone(),
            token: self.token.clone(),
            lease: self.config.lease,
        };
        let parts = ServerParts {
            state: self.parts.state.clone(),
            bus: self.parts.bus.clone(),
            queue: self.parts.queue.clone(),
            images: self.parts.images.clone(),
        };
        self.server = Some(Server::start(config, parts).await?);
        Ok(())
    }

    /// Namespaces that an earlier cloud on this folder left, with more nodes than this one has.
    async fn sweep_networks(&self) {
        if let Ok(group) = self.id.parse::<NetworkName>()
            && let Err(error) = NodeNetwork::sweep(&group).await
        {
            warn!(error = %report::chain(&error), "sweeping networks failed");
        }
    }

    fn agent_config(&self, number: u32, vmm: String) -> Result<AgentConfig, CloudError> {
        let host = HostFigures::read();
        let nodes = self.config.nodes;
        let wrong = |what: &str| CloudError::Config(what.to_owned());
        let name: NodeName = format!("n{number}").parse().map_err(|_| wrong("a node's name"))?;
        let network: NetworkName =
            format!("{}-{name}", self.id).parse().map_err(|_| wrong("a node's network"))?;
        let uid = UID_BASE + UIDS_PER_NODE * (number - 1);
        let place = self.config.places.get(number as usize - 1);
        Ok(AgentConfig {
            dir: self.config.state.join(name.as_str()),
            name,
            memory_mib: (host.memory_mib as f64 * MEMORY_SHARE) as u64 / u64::from(nodes),
            cpu: CpuMilli(host.cores * 1000 * CPU_OVERCOMMIT / nodes),
            machines_max: 1000,
            performance: 1.0,
            vmm,
            network,
            encryption: self.config.encryption,
            underlay: underlay(&self.tunnels, number, place)
                .ok_or_else(|| wrong("a node's number"))?,
            namespace: place.map(|place| place.namespace.clone()),
            link: self.link_config(place),
            uid_base: may_change_users(nodes).then_some(uid),
            launches_max: host.cores as usize + 1,
            boot_timeout: self.config.boot_timeout,
            stop_grace: Duration::from_secs(5),
            lease: self.config.lease,
        })
    }

    /// The light protocol is for nodes that are elsewhere: on one host's loopback there is none.
    fn link_config(&self, place: Option<&NodePlace>) -> Option<LinkConfig> {
        let folder = self.config.link.clone()?;
        let light = place.map(|place| SocketAddr::from((place.address, LIGHT_PORT)));
        Some(LinkConfig { folder, light })
    }

    /// Where the API listens, and the token to show it.
    ///
    /// # Panics
    /// Never: a started cloud has a server.
    pub fn target(&self) -> Target {
        let address = self.server.as_ref().map_or(self.config.listen, Server::address);
        Target { url: format!("http://{address}"), token: self.token.secret().to_owned() }
    }

    /// Its id: 8 hexadecimal digits behind `c`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What server and agents stand on, for audits and benches.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Ends one agent where it stands, as a crash would. For tests of faults.
    pub async fn crash_agent(&mut self, node: &str) {
        for (name, agent) in &mut self.agents {
            if name.as_str() == node
                && let Some(agent) = agent.take()
            {
                agent.crash().await;
            }
        }
    }

    /// Starts an agent again that was crashed.
    ///
    /// # Errors
    /// [`CloudError::Agent`].
    pub async fn restart_agent(&mut self, node: &str) -> Result<(), CloudError> {
        let found = self.agents.iter().position(|(name, _)| name.as_str() == node);
        let Some(place) = found else { return Ok(()) };
        let number = u32::try_from(place + 1).unwrap_or(1);
        self.agents[place] = self.start_agent(number).await?;
        Ok(())
    }

    /// Ends the server where it stands and starts another. For tests of faults.
    ///
    /// # Errors
    /// [`CloudError::Server`].
    pub async fn crash_server(&mut self) -> Result<(), CloudError> {
        if let Some(server) = self.server.take() {
            self.config.listen = server.address();
            server.crash().await;
        }
        self.start_server().await
    }

    /// Ends the process's part of the cloud in order. Machines go on, for the next cloud on the same folder.
    pub async fn stop(mut self) {
        // The server first: it would replace the machines of agents that gave their leases back, and those go on.
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
        let agents = self.agents.drain(..).filter_map(|(_, agent)| agent);
        futures_util::future::join_all(agents.map(Agent::shutdown)).await;
    }

    /// Ends the cloud and all its machines; no process, tap or namespace is left. The state folder stays.
    pub async fn stop_all(mut self) {
        // The server first: it would replace the machines that go.
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
        let (running, crashed): (Vec<_>, Vec<_>) =
            self.agents.drain(..).partition(|(_, agent)| agent.is_some());
        let running = running.into_iter().filter_map(|(_, agent)| agent);
        futures_util::future::join_all(running.map(Agent::remove)).await;
        for (node, _) in crashed {
            let driver = self.parts.driver.as_ref();
            leftover::remove_node(&self.config.state, &node, &self.id, driver).await;
        }
    }
}

/// Whether some network namespace has several nodes.
fn is_shared(config: &CloudConfig) -> bool {
    let namespaces: BTreeSet<_> = config.places.iter().map(|place| &place.namespace).collect();
    match config.places.len() {
        0 => config.nodes > 1,
        places => namespaces.len() < places,
    }
}

/// Tells what several nodes on this host cannot do, if there is something: the cloud runs nevertheless.
fn tell_limit_of_host(config: &CloudConfig) {
    if is_shared(config)
        && config.encryption == Encryption::Off
        && let Err(problem) = skein_net::check_shared_host()
    {
        warn!(code = problem.code(), error = %report::chain(&problem), "nodes of one host are limited");
    }
}

/// Where the node `number` is reached by the others: at the address of its place, or on the loopback interface; and at a port of
/// its own, because all may be in one network namespace.
fn underlay(tunnels: &TunnelPorts, number: u32, place: Option<&NodePlace>) -> Option<Underlay> {
    Some(Underlay {
        number: NodeNumber::new(u16::try_from(number).ok()?)?,
        address: place.map_or(Ipv4Addr::LOCALHOST, |place| place.address),
        vxlan_port: tunnels.port(number)?,
        wire: None,
    })
}

fn check(config: &CloudConfig) -> Result<(), CloudError> {
    let wrong = |what: String| Err(CloudError::Config(what));
    let places = config.places.len();
    if places > 0 && places != config.nodes as usize {
        return wrong(format!("{} nodes at {places} places: must be as many", config.nodes));
    }
    if let Some(twice) = twice(&config.places) {
        return wrong(format!("two nodes at {twice}: each must have an address of its own"));
    }
    if config.nodes == 0 || config.nodes > NODES_MAX {
        return wrong(format!("{} nodes: must be 1 to {NODES_MAX}", config.nodes));
    }
    if !config.state.is_absolute() {
        return wrong(format!("the state folder {} must be an absolute path", config.state));
    }
    if config.state.as_str().len() > 48 {
        return wrong(format!(
            "the path of the state folder {} is too long: at most 48 bytes, because Unix sockets live below it",
            config.state
        ));
    }
    Ok(())
}

/// An address that two places have.
fn twice(places: &[NodePlace]) -> Option<Ipv4Addr> {
    let addresses = places.iter().map(|place| place.address).enumerate();
    let known = |at: usize, address| places[..at].iter().any(|other| other.address == address);
    addresses.filter(|(at, address)| known(*at, *address)).map(|(_, address)| address).next()
}

/// A driver, and what node records say that it runs machines with.
async fn open_driver(config: &CloudConfig) -> Result<(Arc<dyn Driver>, String), CloudError> {
    if let Some(drivers) = &config.drivers {
        return Ok((drivers.open(), drivers.name().to_owned()));
    }
    let driver = open_qemu(config).await?;
    let name = format!("QEMU {}", driver.version());
    Ok((Arc::new(driver), name))
}

pub(crate) async fn open_qemu(config: &CloudConfig) -> Result<QemuDriver, CloudError> {
    let probe_as = may_change_users(config.nodes).then_some(RunAs { uid: UID_BASE, gid: UID_BASE });
    let driver = QemuDriver::open(QemuConfig {
        program: config.qemu.clone(),
        accel: config.accel,
        state_dir: config.state.join("vmm"),
        probe_as,
    });
    Ok(driver.await.map_err(HostProblem::from)?)
}

fn private_folder(path: &Utf8Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

/// The cloud's id, made at its first start: it names what the cloud has on the host.
fn cloud_id(state: &Utf8Path) -> io::Result<String> {
    let path = state.join("cloud.id");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) | Err(_) => {
            let id = format!("c{:08x}", skein_shell::random_u64() as u32);
            let draft = state.join("cloud.id.draft");
            std::fs::write(&draft, &id)?;
            std::fs::rename(&draft, &path)?;
            Ok(id)
        }
    }
}
