//! A cloud of its own for one test.

use crate::artifacts::echo_elf;
use crate::leaks::Leaks;
use crate::ledger::Ledger;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use skein_api::{Client, EventLine, Image, ImagePut, Machine, Service};
use skein_cloud::{Cloud, CloudConfig};
use skein_model::{
    Attachment, Encryption, EventKind, PhaseName, QueuePolicy, ScalingPolicy, ScalingRule,
    ServiceSpec,
};
use skein_vmm::AccelChoice;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// What a test's cloud is like.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How many nodes.
    pub nodes: u32,
    /// How long an agent or leader may be silent.
    pub lease: Duration,
    /// A machine that is not ready after this long is ended.
    pub boot_timeout: Duration,
    /// Whether nodes encrypt what they send each other.
    pub encryption: Encryption,
    /// State folder: a temporary one unless given.
    pub folder: Option<Utf8PathBuf>,
}

impl Default for Setup {
    /// One node and patient times.
    fn default() -> Self {
        Self {
            nodes: 1,
            lease: Duration::from_secs(3),
            boot_timeout: Duration::from_secs(30),
            encryption: Encryption::Off,
            folder: None,
        }
    }
}

impl Setup {
    /// Several nodes.
    pub fn nodes(nodes: u32) -> Self {
        Self { nodes, ..Self::default() }
    }
}

/// A service on the echo image whose machines stay: tests say what they want otherwise.
///
/// # Panics
/// When `name` is not a name.
pub fn service(name: &str, change: impl FnOnce(&mut ServiceSpec)) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: name.parse().expect("a service's name"),
        image: "echo".parse().expect("an image's name"),
        memory: None,
        capacity: None,
        cpu_milli: 100,
        parameters: BTreeMap::new(),
        network: Attachment::default(),
        scaling: ScalingPolicy {
            replicas_max: 3,
            zero_grace: Duration::from_secs(120),
            cooldown: Duration::from_millis(300),
            rule: ScalingRule::Concurrency {
                target: 0.7,
                stable_window: Duration::from_millis(1500),
                panic_window: Duration::from_millis(300),
                panic_threshold: 2.0,
            },
            ..ScalingPolicy::default()
        },
        queue: QueuePolicy::default(),
    };
    spec.queue.retry.backoff_initial = Duration::from_millis(50);
    spec.queue.retry.backoff_max = Duration::from_millis(500);
    change(&mut spec);
    spec
}

/// A cloud of its own for one test.
#[derive(Debug)]
pub struct World {
    cloud: Option<Cloud>,
    config: CloudConfig,
    client: Client,
    id: String,
    /// Removed when the world is.
    _temporary: Option<tempfile::TempDir>,
    /// What was acknowledged to the test.
    pub ledger: Ledger,
}

impl World {
    /// Starts a cloud without images.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(setup: Setup) -> Result<Self> {
        let (folder, temporary) = match &setup.folder {
            Some(folder) => (folder.clone(), None),
            None => {
                // Short: sockets live below it.
                let made = tempfile::Builder::new().prefix("skein-").tempdir_in("/tmp")?;
                let path = Utf8PathBuf::from_path_buf(made.path().to_owned());
                (path.ok().context("a UTF-8 path")?, Some(made))
            }
        };
        let config = CloudConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            nodes: setup.nodes,
            accel: AccelChoice::Tcg,
            lease: setup.lease,
            boot_timeout: setup.boot_timeout,
            encryption: setup.encryption,
            ..CloudConfig::new(folder)
        };
        let cloud = Cloud::start(config.clone()).await?;
        let (client, id) = (Client::new(cloud.target()), cloud.id().to_owned());
        let ledger = Ledger::default();
        Ok(Self { cloud: Some(cloud), config, client, id, _temporary: temporary, ledger })
    }

    /// The cloud.
    ///
    /// # Panics
    /// While it is not running.
    pub fn cloud(&self) -> &Cloud {
        self.cloud.as_ref().expect("a running cloud")
    }

    /// The cloud, to be hurt.
    ///
    /// # Panics
    /// While it is not running.
    pub fn cloud_mut(&mut self) -> &mut Cloud {
        self.cloud.as_mut().expect("a running cloud")
    }

    /// The cloud, to be ended.
    pub fn take_cloud(&mut self) -> Option<Cloud> {
        self.cloud.take()
    }

    /// Starts the cloud again on its folder.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        let cloud = Cloud::start(self.config.clone()).await?;
        self.client = Client::new(cloud.target());
        self.cloud = Some(cloud);
        Ok(())
    }

    /// A client of it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its state folder.
    pub fn folder(&self) -> &Utf8Path {
        &self.config.state
    }

    /// Looks for what it has on the host.
    pub fn leaks(&self) -> Leaks {
        Leaks::of(&self.id, &self.config.state)
    }

    /// Name of a node's network, which is the scope of its fault points.
    pub fn network(&self, node: &str) -> String {
        format!("{}-{node}", self.id)
    }

    /// Imports a machine image.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn import(&self, name: &str, elf: Vec<u8>, memory_mib: u32) -> Result<Image> {
        let kernel = self.client.put_blob(Bytes::from(elf)).await?.id;
        let (modules, memory_mib) = (Vec::new(), Some(memory_mib));
        let put = ImagePut { kernel, modules, memory_mib, capacity: Some(4), port: None };
        Ok(self.client.put_image(name, &put).await?)
    }

    /// Imports the echo image under its own name.
    ///
    /// # Errors
    /// It does not build, or the server refuses it.
    pub async fn import_echo(&self) -> Result<()> {
        let elf = tokio::task::spawn_blocking(echo_elf).await??;
        self.import("echo", std::fs::read(elf)?, 16).await?;
        Ok(())
    }

    /// Imports the echo image and creates a service on it.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn serve(&self, spec: &ServiceSpec) -> Result<Service> {
        if !self.client.images().await?.iter().any(|image| image.name == "echo") {
            self.import_echo().await?;
        }
        Ok(self.client.create_service(spec).await?)
    }

    /// Submits a job whose result is its payload, and notes it.
    ///
    /// # Errors
    /// It was not acknowledged.
    pub async fn submit(&mut self, service: &str, payload: &str, path: &str) -> Result<String> {
        self.ledger.submit(&self.client, service, payload, path).await
    }

    /// Machines of a service that have not ended.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn machines(&self, service: &str) -> Result<Vec<Machine>> {
        let mut machines = self.client.machines(false).await?;
        machines.retain(|machine| machine.service == service);
        Ok(machines)
    }

    /// Waits until exactly `count` machines of a service are there and ready.
    ///
    /// # Errors
    /// They never are.
    pub async fn ready(&self, service: &str, count: usize) -> Result<Vec<Machine>> {
        until(&format!("{count} ready machines of {service}"), async || {
            let machines = self.machines(service).await?;
            let ready = machines.iter().all(|m| m.state == PhaseName::Ready);
            Ok((ready && machines.len() == count).then_some(machines))
        })
        .await
    }

    /// Waits until a job is in service; the machine that serves it.
    ///
    /// # Errors
    /// It never is.
    pub async fn served_by(&self, job: &str) -> Result<String> {
        until(&format!("job {job} in service"), async || {
            let job = self.client.job(job, Duration::ZERO).await?;
            ensure!(job.ended_at.is_none(), "job {} has ended already: {job:?}", job.id);
            Ok(job.machine)
        })
        .await
    }

    /// The process of a machine.
    ///
    /// # Errors
    /// There is none.
    pub fn process_of(&self, machine: &str) -> Result<i32> {
        self.leaks().process_of(machine).with_context(|| format!("no process of {machine}"))
    }

    /// All of history so far.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn events(&self) -> Result<Vec<EventLine>> {
        let (mut lines, mut since) = (Vec::new(), 0);
        loop {
            let page = self.client.events(since, 1000).await?;
            if page.events.is_empty() {
                return Ok(lines);
            }
            since = page.next;
            lines.extend(page.events);
        }
    }

    /// Waits until history has a line that `wanted` accepts.
    ///
    /// # Errors
    /// It never has.
    pub async fn event(
        &self,
        what: &str,
        wanted: impl Fn(&EventLine, &EventKind) -> bool,
    ) -> Result<EventLine> {
        until(&format!("the event {what}"), async || {
            Ok(self.events().await?.into_iter().find(|line| wanted(line, &line.event)))
        })
        .await
    }

    /// Waits until all acknowledged jobs have ended as done, and audits the queue.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn settle_done(&self) -> Result<()> {
        self.ledger.settle_done(&self.client).await?;
        self.audit().await
    }

    /// Audits queue and history, and that processes, taps and machines are the same ones.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn audit(&self) -> Result<()> {
        self.ledger.audit(&self.client, &self.cloud().parts().queue).await?;
        // Machines come and go: what differs now may be the same in a moment.
        until("as many processes and taps as machines", async || {
            let machines = self.client.machines(false).await?;
            let started = machines.iter().filter(|m| m.state != PhaseName::Scheduled);
            let ids: Vec<&str> = started.map(|m| m.id.as_str()).collect();
            let leaks = self.leaks();
            let known = ids.iter().all(|id| leaks.process_of(id).is_some());
            let nodes = (1..=self.config.nodes).map(|n| leaks.taps(&format!("n{n}")).len());
            let counts = [leaks.processes().len(), nodes.sum::<usize>(), machines.len()];
            Ok((known && counts.iter().all(|count| *count == ids.len())).then_some(()))
        })
        .await
    }

    /// Tells what the cloud looks like, for a test that failed.
    pub async fn describe(&self) {
        if self.cloud.is_none() {
            return eprintln!("the cloud is not running");
        }
        for service in self.client.services().await.unwrap_or_default() {
            eprintln!(
                "service {}: {} ready, {} booting, {} waiting, {} running, {:?}",
                service.spec.name,
                service.ready,
                service.booting,
                service.waiting,
                service.running,
                service.counters
            );
            for decision in service.decisions.iter().take(5) {
                eprintln!("  {} -> {} {}", decision.current, decision.wanted, decision.reason);
            }
        }
        for m in self.client.machines(true).await.unwrap_or_default() {
            eprintln!(
                "machine {} {:?} {:?} on {} {:?} {:?}",
                m.id, m.state, m.goal, m.node, m.ip, m.exit
            );
        }
        let events = self.events().await.unwrap_or_default();
        for line in events.iter().skip(events.len().saturating_sub(80)) {
            let whom = [&line.node, &line.machine, &line.job].into_iter().flatten();
            let whom: Vec<_> = whom.map(String::as_str).collect();
            eprintln!("{} {} {:?}", line.time, whom.join(" "), line.event);
        }
        eprintln!("on the host: {:?}", self.leaks().all());
    }
}
