//! A server and an agent whose machines are played: the test answers for them, as badly as it likes.

use crate::leaks::Leaks;
use crate::runner::{Remover, runtime, words};
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use camino::Utf8PathBuf;
use futures_util::FutureExt;
use skein_api::{Client, ImagePut, Machine};
use skein_cloud::{Cloud, CloudConfig};
use skein_model::{PhaseName, ServiceSpec};
use skein_vmm::TinyGuest;
use skein_vmm::testing::FakeHost;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// A test that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(170);

/// A server and an agent whose machines are played.
#[derive(Debug)]
pub struct FakeWorld {
    cloud: Cloud,
    client: Client,
    host: FakeHost,
    remover: Remover,
}

impl FakeWorld {
    async fn start(folder: &Utf8PathBuf) -> Result<Self> {
        let host = FakeHost::new();
        let cloud = Cloud::start(CloudConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            lease: Duration::from_secs(5),
            boot_timeout: Duration::from_secs(20),
            drivers: Some(Arc::new(host.clone())),
            ..CloudConfig::new(folder.clone())
        });
        let cloud = cloud.await?;
        let remover = Remover { leaks: Leaks::of(cloud.id(), folder), keep: false };
        let client = Client::new(cloud.target());
        Ok(Self { cloud, client, host, remover })
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
        let FakeWorld { cloud, remover, .. } = world;
        cloud.stop_all().await;
        (failure, remover.leaks.all())
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    if let Some(failure) = failure {
        panic!("{failure}\nleft on the host: {left:?}");
    }
    assert!(left.is_empty(), "left on the host: {left:?}");
}
