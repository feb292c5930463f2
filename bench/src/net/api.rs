//! What a user waits for a port: from a request to the API to the first answer its machine has. All of a cloud is in it but the
//! emulator, whose time the bench of starts measures: machines are played, their taps are real.

use super::arp::{Question, first_answer};
use crate::error::BenchError;
use crate::options::Progress;
use crate::rig::{FOLDERS, LOOK_EVERY, utf8};
use crate::stats::Sample;
use skein_api::{Client, ImagePut};
use skein_cloud::{Cloud, CloudConfig};
use skein_model::{MachineId, ServiceSpec};
use skein_vmm::TinyGuest;
use skein_vmm::testing::FakeHost;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a machine may take to be launched, answered or gone.
const PATIENCE: Duration = Duration::from_secs(20);
/// The image of all machines.
const IMAGE: &str = "played";

/// The taps of machines, as they are launched.
type Taps = Arc<Mutex<Receiver<(MachineId, OwnedFd)>>>;

/// A cloud whose machines are played.
#[derive(Debug)]
pub(super) struct Played {
    folder: tempfile::TempDir,
    cloud: Cloud,
    client: Client,
    taps: Taps,
}

impl Played {
    pub(super) async fn start() -> Result<Self, BenchError> {
        let folder = tempfile::Builder::new().prefix("skein-bench-").tempdir_in(FOLDERS);
        let folder = folder.map_err(BenchError::io(format!("making a folder in {FOLDERS}")))?;
        let host = FakeHost::new();
        let taps = host.take_taps();
        let cloud = Cloud::start(CloudConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            drivers: Some(Arc::new(host)),
            ..CloudConfig::new(utf8(folder.path())?)
        });
        let cloud = cloud.await?;
        let client = Client::new(cloud.target());
        Ok(Self { folder, cloud, client, taps: Arc::new(Mutex::new(taps)) })
    }

    /// Ports of one network that stays, one after the other.
    pub(super) async fn plugs(
        &self,
        count: u32,
        progress: Progress<'_>,
    ) -> Result<Sample, BenchError> {
        let kernel = self.client.put_blob(TinyGuest::new().elf().into()).await?.id;
        let image = ImagePut {
            kernel,
            modules: Vec::new(),
            memory_mib: Some(16),
            capacity: None,
            port: None,
        };
        self.client.put_image(IMAGE, &image).await?;
        let gateway = self.client.network("default").await?.gateway;
        let gateway = gateway.parse().map_err(|_| unreadable("a gateway"))?;
        // A network goes with its last machine; this one keeps it.
        self.plug("resident", gateway).await?;
        let mut times = Vec::new();
        for turn in 0..count {
            progress(&format!("net.plug: {} of {count}", turn + 1));
            let name = format!("newcomer-{turn}");
            times.push(self.plug(&name, gateway).await?.as_secs_f64() * 1e3);
            self.client.remove_service(&name).await?;
            self.gone(&name).await?;
        }
        Ok(Sample::new(times))
    }

    /// From the request for a service of one machine to the first answer that the machine has, without what is asked
    /// meanwhile to learn the port's addresses.
    async fn plug(&self, service: &str, gateway: Ipv4Addr) -> Result<Duration, BenchError> {
        let spec = serde_json::json!({
            "name": service, "image": IMAGE, "scaling": { "replicas_min": 1, "replicas_max": 1 }
        });
        let spec: ServiceSpec = serde_json::from_value(spec).map_err(|_| BenchError::Bug)?;
        let asked = Instant::now();
        self.client.create_service(&spec).await?;
        let (machine, tap, launched) = self.launched().await?;
        let port = self.client.port(machine.as_str()).await?;
        let mac = port.mac.parse().map_err(|_| unreadable("a MAC address"))?;
        let address = port.ipv4.parse().map_err(|_| unreadable("a port's address"))?;
        let learnt = launched.elapsed();
        first_answer(tap, Question { mac, address, gateway }, PATIENCE).await?;
        Ok(asked.elapsed() - learnt)
    }

    /// The next machine that is launched, its tap, and when.
    async fn launched(&self) -> Result<(MachineId, OwnedFd, Instant), BenchError> {
        let taps = self.taps.clone();
        let next = move || {
            let taken = taps.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(PATIENCE);
            taken.map(|(machine, tap)| (machine, tap, Instant::now()))
        };
        let next = tokio::task::spawn_blocking(next).await.map_err(|_| BenchError::Bug)?;
        next.map_err(|error| match error {
            RecvTimeoutError::Timeout => late("the launch of a machine"),
            RecvTimeoutError::Disconnected => BenchError::Bug,
        })
    }

    /// Waits until a service has no machine.
    async fn gone(&self, service: &str) -> Result<(), BenchError> {
        let begun = Instant::now();
        while self.client.machines(false).await?.iter().any(|machine| machine.service == service) {
            if begun.elapsed() > PATIENCE {
                return Err(late("the end of a machine"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    pub(super) async fn end(self) -> Result<(), BenchError> {
        self.cloud.stop_all().await;
        self.folder.close().map_err(BenchError::io("removing the folder of the bench"))
    }
}

fn late(what: &str) -> BenchError {
    BenchError::Deadline { what: what.to_owned(), waited: PATIENCE }
}

fn unreadable(what: &str) -> BenchError {
    BenchError::unexpected(format!("{what} that cannot be read"))
}
