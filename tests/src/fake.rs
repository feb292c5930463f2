//! A server and an agent whose machines are played: the test answers for them, as badly as it likes.

use crate::leaks::Leaks;
use crate::runner::{Remover, runtime, words};
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use camino::Utf8PathBuf;
use futures_util::FutureExt;
use skein_agent::{Agent, AgentConfig, Parts};
use skein_api::{Client, ImagePut, Machine, Target};
use skein_fabric::{BlobStore, Bus, EmbeddedOptions, EmbeddedState, LocalBus, Queue, State};
use skein_model::{CpuMilli, Encryption, PhaseName, ServiceSpec};
use skein_net::{NodeNumber, Underlay};
use skein_server::{Server, ServerConfig, ServerParts, Token};
use skein_vmm::testing::{FakeDriver, FakeHost};
use skein_vmm::{ImageStore, TinyGuest};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// The one node.
const NODE: &str = "n1";
/// A test that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(170);

/// A server and an agent whose machines are played.
#[derive(Debug)]
pub struct FakeWorld {
    server: Server,
    agent: Agent,
    client: Client,
    host: FakeHost,
    remover: Remover,
}

impl FakeWorld {
    async fn start(folder: &Utf8PathBuf) -> Result<Self> {
        let id = format!("c{:08x}", rand::random::<u32>());
        let lease = Duration::from_secs(5);
        let state =
            EmbeddedState::open(folder.join("state").as_std_path(), EmbeddedOptions::default())?;
        let state: Arc<dyn State> = Arc::new(state);
        let bus: Arc<dyn Bus> = Arc::new(LocalBus::new());
        let blobs = BlobStore::open(folder.join("blobs").as_std_path())?;
        let queue = Queue::open(state.clone(), blobs).await?;
        let images = ImageStore::open(&folder.join("images"))?;
        let token = Token::open(folder.join("token").as_std_path())?;
        let parts = ServerParts {
            state: state.clone(),
            bus: bus.clone(),
            queue: queue.clone(),
            images: images.clone(),
        };
        let config = ServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            history: folder.join("events.db"),
            cloud: id.clone(),
            token: token.clone(),
            lease,
        };
        let remover = Remover { leaks: Leaks::of(&id, folder), keep: false };
        let server = Server::start(config, parts).await?;
        let driver = FakeDriver::new();
        let host = driver.host().clone();
        let config = AgentConfig {
            name: NODE.parse()?,
            dir: folder.join(NODE),
            memory_mib: 4096,
            cpu: CpuMilli(100_000),
            machines_max: 100,
            performance: 1.0,
            vmm: "played".to_owned(),
            network: format!("{id}-{NODE}").parse()?,
            underlay: Underlay {
                number: NodeNumber::new(1).context("a node's number")?,
                address: Ipv4Addr::LOCALHOST,
                vxlan_port: 40_000 + rand::random_range(0..8000_u16),
                wire: None,
            },
            encryption: Encryption::Off,
            namespace: None,
            link: None,
            uid_base: None,
            launches_max: 4,
            boot_timeout: Duration::from_secs(20),
            stop_grace: Duration::from_secs(2),
            lease,
        };
        let agent =
            Agent::start(config, Parts { state, bus, queue, images, driver: Arc::new(driver) });
        let agent = agent.await?;
        let url = format!("http://{}", server.address());
        let client = Client::new(Target { url, token: token.secret().to_owned() });
        Ok(Self { server, agent, client, host, remover })
    }

    /// A client of the server.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The played machines.
    pub fn host(&self) -> &FakeHost {
        &self.host
    }

    /// Creates a service on an image whose machines take `capacity` requests at a time.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn serve(&self, spec: &ServiceSpec, capacity: u32) -> Result<()> {
        let kernel = self.client.put_blob(Bytes::from(TinyGuest::new().elf())).await?.id;
        let (modules, memory_mib, port) = (Vec::new(), Some(16), None);
        let put = ImagePut { kernel, modules, memory_mib, capacity: Some(capacity), port };
        self.client.put_image(spec.image.as_str(), &put).await?;
        self.client.create_service(spec).await?;
        Ok(())
    }

    /// A machine that is ready.
    ///
    /// # Errors
    /// There never is one.
    pub async fn ready(&self) -> Result<Machine> {
        until("a ready machine", async || {
            let machines = self.client.machines(false).await?;
            Ok(machines.into_iter().find(|m| m.state == PhaseName::Ready))
        })
        .await
    }

    /// Listens where the agent will look for a machine's HTTP server.
    ///
    /// # Errors
    /// The address cannot be had in the node's namespace.
    pub fn listen(&self, machine: &Machine) -> Result<tokio::net::TcpListener> {
        let ip: Ipv4Addr = machine.ip.as_deref().context("an address")?.parse()?;
        let namespace = self.remover.leaks.namespaces().pop().context("a namespace")?;
        let mut command = Command::new("ip");
        command.args(["-n", &namespace, "addr", "add", &format!("{ip}/32"), "dev", "lo"]);
        let output = command.output().context("running ip")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let address = SocketAddrV4::new(ip, machine.port);
        // A thread of its own: a namespace belongs to a thread.
        let bind = move || -> Result<TcpListener> {
            let file = std::fs::File::open(format!("/run/netns/{namespace}"))?;
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = std::thread::spawn(bind).join().expect("the bind")?;
        Ok(tokio::net::TcpListener::from_std(listener)?)
    }
}

/// Runs a test on a server and an agent whose machines are played, and ends both.
///
/// # Panics
/// When the test fails, or something was left.
pub fn run_fake(test: impl AsyncFnOnce(&mut FakeWorld) -> Result<()>) {
    let runtime = runtime();
    let (_guard, folder) = crate::process::state_folder().expect("a folder");
    let (failure, left) = runtime.block_on(async {
        let mut world = FakeWorld::start(&folder).await.expect("server and agent start");
        let tested = AssertUnwindSafe(tokio::time::timeout(LIMIT, test(&mut world)));
        let failure = match tested.catch_unwind().await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(format!("{error:#}")),
            Ok(Err(_)) => Some(format!("not done after {LIMIT:?}")),
            Err(panic) => Some(words(panic.as_ref())),
        };
        let FakeWorld { server, agent, remover, .. } = world;
        server.shutdown().await;
        agent.remove().await;
        (failure, remover.leaks.all())
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    if let Some(failure) = failure {
        panic!("{failure}\nleft on the host: {left:?}");
    }
    assert!(left.is_empty(), "left on the host: {left:?}");
}
