//! A scenario on a real cloud: started for it, with its users and its failures, and ended after it.

use crate::commands::demo::{Folder, parent, remove_abandoned};
use crate::commands::image::upload;
use crate::commands::up::Stop;
use crate::image_build::Bundle;
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use camino::Utf8PathBuf;
use http::Method;
use skein_api::{BatchItem, Client, Code, JobOptions};
use skein_cloud::{Cloud, CloudConfig};
use skein_model::{
    Attachment, Event, EventKind, QueuePolicy, ScalingPolicy, ScalingRule, ServiceSpec,
    ThresholdScope,
};
use skein_planner::{
    LiveService, NodeChange, NodeTurn, PlannedRequest, Scenario, UserScript, batch_scenario,
    measure_history, node_changes, replay,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// How long a node may be silent: short, because a scenario's failures are seen at once.
const LEASE: Duration = Duration::from_secs(3);

/// How long the cloud may take for one thing: to come up, to start replicas, to get through a batch.
const PATIENCE: Duration = Duration::from_secs(300);

/// Users of a live run: each is a task, and this host answers them too.
const USERS_MAX: u32 = 2000;

/// Requests of a user that may be on their way to the server at once; one more waits. 64: more only measure this process.
const IN_FLIGHT_MAX: usize = 64;

/// How a scenario runs live.
#[derive(clap::Args)]
pub(super) struct Live {
    /// Also run the scenario on this host: starts a cloud for it, sends what its users send, kills its nodes and brings them back.
    /// Takes as long as the scenario says; needs root and QEMU
    #[arg(long)]
    live: bool,
    /// Folder of the image, as `skein image build guest/services/echo --to` writes it; it must understand echo's parameters
    #[arg(long, value_name = "DIR", default_value = "target/images/echo")]
    image: PathBuf,
    /// Work computes instead of waiting: true of services that compute, and no faster than this host's processors
    #[arg(long)]
    spin: bool,
    /// Run for so long instead of what the scenario says; the simulation too
    #[arg(long, value_name = "TIME", value_parser = crate::commands::duration)]
    duration: Option<Duration>,
    /// Who runs the guests' instructions; KVM is tried unless given
    #[arg(long, value_parser = crate::commands::up::accel, value_name = "kvm|tcg")]
    accel: Option<skein_vmm::AccelChoice>,
    /// QEMU's program
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<Utf8PathBuf>,
}

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) services: Vec<LiveService>,
    /// Seconds for a batch on 1, 2, ... replicas.
    pub(super) batches: Vec<f64>,
    /// Mean time from launch to ready, seconds.
    pub(super) start_secs: Option<f64>,
    /// When the user ended it before its time, seconds after its beginning; 0 before anything was sent.
    pub(super) stopped_secs: Option<f64>,
    /// Whether the user ended it while it measured batches.
    pub(super) batches_stopped: bool,
}

/// Lines of the cloud's history so far.
type Lines = Arc<Mutex<Vec<String>>>;

impl Live {
    /// Whether it was asked for.
    pub(super) const fn wanted(&self) -> bool {
        self.live
    }

    /// Shortens a scenario as it was asked for.
    pub(super) fn shorten(&self, scenario: &mut Scenario) {
        if let Some(duration) = self.duration {
            scenario.run.duration_secs = duration.as_secs_f64();
        }
    }

    /// Runs a scenario, and a batch of requests on 1 to so many replicas of its first service.
    pub(super) async fn run(
        &self,
        scenario: &Scenario,
        batches: Option<(u32, u32)>,
    ) -> Result<Measured> {
        let users: u32 = scenario.users.iter().map(|user| user.count).sum();
        let nodes = u32::try_from(scenario.node_count()).unwrap_or(u32::MAX);
        if users > USERS_MAX || nodes > 100 {
            bail!(
                "{users} users on {nodes} nodes: a live run takes {USERS_MAX} users and 100 nodes at most"
            );
        }
        let bundle = Bundle::read(&self.image)?;
        let mut stop = Stop::new()?;
        let parent = parent()?;
        remove_abandoned(&parent).await;
        let folder = Folder::new(&parent)?;
        let mut cloud = Cloud::start(CloudConfig {
            nodes,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            accel: self.accel.unwrap_or_default(),
            qemu: self.qemu.clone(),
            lease: LEASE,
            ..CloudConfig::new(folder.path())
        })
        .await?;
        let with = (&bundle, batches, &mut stop);
        let measured = self.measure(&mut cloud, scenario, with).await;
        cloud.stop_all().await;
        folder.remove()?;
        measured
    }

    async fn measure(
        &self,
        cloud: &mut Cloud,
        scenario: &Scenario,
        (bundle, batches, stop): (&Bundle, Option<(u32, u32)>, &mut Stop),
    ) -> Result<Measured> {
        let client = Client::new(cloud.target());
        let prepared = tokio::select! {
            // Owns all it needs; what is half uploaded goes with the cloud.
            prepared = prepare(&client, bundle, scenario.node_count()) => prepared?,
            // Cancel-safe: as documented. Signals that came while the cloud was started are kept.
            () = stop.wait() => return Ok(Measured { stopped_secs: Some(0.0), ..Measured::default() }),
        };
        let (image, names) = prepared;
        let lines = Lines::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(collect(client.clone(), Arc::clone(&lines)));
        let begun_us = skein_shell::now().as_micros();
        for service in &scenario.services {
            client.create_service(&spec_of(service, &image)?).await?;
        }
        let begun = Instant::now();
        eprintln!("live: {:.0} s on {} nodes", scenario.run.duration_secs, names.len());
        self.users(&client, scenario, begun, &mut tasks);
        let end = begun + Duration::from_secs_f64(scenario.run.duration_secs);
        let mut down = BTreeMap::new();
        let changes = node_changes(scenario, 0);
        let stopped_secs = tokio::select! {
            // Owns all it needs; a node that is half ended or started is seen to when the cloud is ended.
            failed = fail_nodes((cloud, &client, &mut down), &changes, &names, (begun, end)) => {
                failed?;
                None
            }
            // Cancel-safe: as documented.
            () = stop.wait() => Some(begun.elapsed().as_secs_f64()),
        };
        tasks.shutdown().await;
        let history = history(&lines)?;
        let span = (begun_us, stopped_secs.unwrap_or(scenario.run.duration_secs));
        let confidence = scenario.run.confidence;
        let services = scenario.services.iter().map(|service| LiveService {
            service: service.name.to_string(),
            measures: measure_history(&history, service.name.as_str(), span, confidence),
        });
        let mut measured = Measured {
            services: services.collect(),
            batches: vec![],
            start_secs: start_secs(&history),
            stopped_secs,
            batches_stopped: false,
        };
        for service in &scenario.services {
            client.remove_service(service.name.as_str()).await?;
        }
        if let Some(batches) = batches.filter(|_| stopped_secs.is_none()) {
            for (node, turn) in down {
                bring_back((cloud, &client), &node, turn).await?;
            }
            let measuring = self.batches(&client, scenario, &image, batches, &mut measured.batches);
            measured.batches_stopped = tokio::select! {
                // Owns all it needs; a batch that is half done goes with the cloud.
                done = measuring => done.map(|()| false)?,
                // Cancel-safe: as documented.
                () = stop.wait() => true,
            };
        }
        Ok(measured)
    }

    /// Seconds that a batch takes on 1, 2, ... replicas, as they are known.
    async fn batches(
        &self,
        client: &Client,
        scenario: &Scenario,
        image: &str,
        (replicas_max, requests): (u32, u32),
        known: &mut Vec<f64>,
    ) -> Result<()> {
        for replicas in 1..=replicas_max {
            let secs = self.batch(client, scenario, image, (replicas, requests)).await?;
            eprintln!("live: {requests} requests on {replicas} replicas took {secs:.2} s");
            known.push(secs);
        }
        Ok(())
    }

    /// Starts the users.
    fn users(
        &self,
        client: &Client,
        scenario: &Scenario,
        begun: Instant,
        tasks: &mut JoinSet<Result<()>>,
    ) {
        let scenario = Arc::new(scenario.clone());
        for number in 0..UserScript::all(&scenario, 0).len() {
            let user = User { client: client.clone(), number, spins: self.spin, begun };
            tasks.spawn(user.run(Arc::clone(&scenario)));
        }
    }

    /// Seconds from sending a batch to its last answer.
    async fn batch(
        &self,
        client: &Client,
        scenario: &Scenario,
        image: &str,
        (replicas, requests): (u32, u32),
    ) -> Result<f64> {
        let plan = batch_scenario(scenario, 0, replicas, requests);
        let mut script =
            UserScript::all(&plan, 0).pop().context("nobody asks the first service")?;
        let items: Vec<BatchItem> = std::iter::from_fn(|| script.next(0.0))
            .map(|request| BatchItem {
                payload: serde_json::Value::String("x".repeat(input_bytes(&request))),
                token: None,
                path: Some(path_of(&request, self.spin)),
                deadline_ms: None,
            })
            .collect();
        let mut spec = spec_of(&plan.services[0], image)?;
        // No rule is asked: there are as many as there shall be.
        spec.scaling = ScalingPolicy {
            replicas_min: replicas,
            replicas_max: replicas,
            rule: ScalingRule::Thresholds {
                replicate_above: 1,
                dereplicate_at: 0,
                scope: ThresholdScope::Service,
            },
            ..ScalingPolicy::default()
        };
        spec.name = format!("batch-{replicas}").parse()?;
        let name = spec.name.to_string();
        client.create_service(&spec).await?;
        wait_for(&format!("{replicas} replicas"), async || {
            Ok(client.service(&name).await?.ready == replicas)
        })
        .await?;
        let sent = Instant::now();
        let reply = client.submit_batch(&name, &items).await?;
        if reply.refused > 0 {
            bail!("{} of {requests} requests of a batch were refused", reply.refused);
        }
        wait_for("a batch", async || {
            Ok(client.service(&name).await?.counters.done >= u64::from(requests))
        })
        .await?;
        let secs = sent.elapsed().as_secs_f64();
        client.remove_service(&name).await?;
        Ok(secs)
    }
}

/// One user of a live run.
struct User {
    client: Client,
    /// Among all users.
    number: usize,
    spins: bool,
    begun: Instant,
}

impl User {
    /// Sends its requests until it is ended.
    async fn run(self, scenario: Arc<Scenario>) -> Result<()> {
        let mut script = UserScript::all(&scenario, 0).swap_remove(self.number);
        let service = scenario.services[script.service()].name.to_string();
        let waits = script.waits_for_answer();
        let mut sending: JoinSet<()> = JoinSet::new();
        let mut now = 0.0;
        while let Some(request) = script.next(now) {
            sleep_until(self.begun + Duration::from_secs_f64(request.at_secs)).await;
            let payload = Bytes::from(vec![b'x'; input_bytes(&request)]);
            let path = Some(path_of(&request, self.spins));
            let options = JobOptions { path, ..JobOptions::default() };
            if waits {
                // A refusal is an answer too; it is counted from the history.
                let answer = self.client.call(&service, payload, &options).await;
                if answer.is_err_and(|error| error.code() == Some(Code::QueueFull)) {
                    sleep(Duration::from_millis(1)).await;
                }
                now = self.begun.elapsed().as_secs_f64();
            } else {
                now = request.at_secs;
                while sending.len() >= IN_FLIGHT_MAX {
                    sending.join_next().await;
                }
                let (client, service) = (self.client.clone(), service.clone());
                sending.spawn(async move {
                    // What became of it is in the history.
                    let _ = client.submit(&service, payload, &options).await;
                });
                while sending.try_join_next().is_some() {}
            }
        }
        while sending.join_next().await.is_some() {}
        Ok(())
    }
}

/// At most a payload that a call carries.
fn input_bytes(request: &PlannedRequest) -> usize {
    (request.input_kib * 1024.0).clamp(0.0, 16e6) as usize
}

/// The request as the echo service understands it.
fn path_of(request: &PlannedRequest, spins: bool) -> String {
    let work = (request.work_secs * 1e3).round();
    let size = (request.output_kib * 1024.0).round();
    let how = if spins { "spin_ms" } else { "sleep_ms" };
    format!("/?{how}={work}&size={size}")
}

fn spec_of(service: &skein_planner::Service, image: &str) -> Result<ServiceSpec> {
    Ok(ServiceSpec {
        name: service.name.clone(),
        image: image.parse()?,
        memory: None,
        capacity: Some(service.capacity),
        cpu_milli: u32::try_from(service.cpu_milli).unwrap_or(u32::MAX).max(1),
        parameters: BTreeMap::new(),
        network: Attachment::default(),
        scaling: service.scaling.clone(),
        // A live queue holds at least one.
        queue: QueuePolicy { bound: service.queue_bound.max(1), ..QueuePolicy::default() },
    })
}

/// The name of the image once it is there, and those of the nodes.
async fn prepare(client: &Client, bundle: &Bundle, nodes: usize) -> Result<(String, Vec<String>)> {
    let image = upload(client, bundle).await?;
    Ok((image.name.to_string(), node_names(client, nodes).await?))
}

/// The names of the nodes in the order in which the scenario counts its own, once all are there.
async fn node_names(client: &Client, count: usize) -> Result<Vec<String>> {
    wait_for("the nodes", async || {
        let nodes = client.nodes().await?;
        Ok(nodes.iter().filter(|it| it.state == skein_model::NodeState::Ready).count() == count)
    })
    .await?;
    let mut names: Vec<String> = client.nodes().await?.into_iter().map(|node| node.name).collect();
    // n2 before n10.
    names.sort_by_key(|name| (name.len(), name.clone()));
    Ok(names)
}

/// Cordons nodes that are known to fail, fails them and brings them back, as and when it is said, until the end; `down` are those that
/// are not back yet, and what became of them last.
async fn fail_nodes(
    (cloud, client, down): (&mut Cloud, &Client, &mut BTreeMap<String, NodeTurn>),
    changes: &[NodeChange],
    names: &[String],
    (begun, end): (Instant, Instant),
) -> Result<()> {
    for change in changes {
        let at = begun + Duration::from_secs_f64(change.at_secs);
        if at >= end {
            break;
        }
        sleep_until(at).await;
        let Some(node) = names.get(change.node) else { continue };
        let says = match change.turn {
            NodeTurn::Warned => "is known to fail soon: cordoned",
            NodeTurn::Fails => "fails",
            NodeTurn::Returns => "comes back",
        };
        eprintln!("live: {:.1} s: {node} {says}", change.at_secs);
        match change.turn {
            NodeTurn::Warned => mark_node(client, node, "cordon").await?,
            NodeTurn::Fails => cloud.crash_agent(node).await,
            NodeTurn::Returns => bring_back((cloud, client), node, NodeTurn::Fails).await?,
        }
        match change.turn {
            NodeTurn::Warned | NodeTurn::Fails => down.insert(node.clone(), change.turn),
            NodeTurn::Returns => down.remove(node),
        };
    }
    sleep_until(end).await;
    Ok(())
}

/// Makes a node ready that was cordoned or has failed.
async fn bring_back(
    (cloud, client): (&mut Cloud, &Client),
    node: &str,
    from: NodeTurn,
) -> Result<()> {
    if from == NodeTurn::Fails {
        cloud.restart_agent(node).await?;
    }
    mark_node(client, node, "uncordon").await
}

/// Cordons a node, or the opposite.
async fn mark_node(client: &Client, node: &str, how: &str) -> Result<()> {
    client.raw(Method::POST, &format!("/v1/nodes/{node}/{how}"), Bytes::new()).await?;
    Ok(())
}

/// Keeps the lines of the history as they come.
async fn collect(client: Client, lines: Lines) -> Result<()> {
    let mut events = client.follow_events(0).await?;
    while let Some(event) = events.next().await? {
        let line = serde_json::to_string(&event)?;
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
    Ok(())
}

fn history(lines: &Lines) -> Result<Vec<Event>> {
    let text = lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
    let mut events = replay::parse(&text)?;
    // Nodes and server write beside each other.
    events.sort_by_key(|event| event.at);
    Ok(events)
}

fn start_secs(history: &[Event]) -> Option<f64> {
    let starts: Vec<f64> = history
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::MachineReady { start_us, .. } => Some(start_us as f64 * 1e-6),
            _ => None,
        })
        .collect();
    (!starts.is_empty()).then(|| starts.iter().sum::<f64>() / starts.len() as f64)
}

/// Asks until it holds, at most [`PATIENCE`].
async fn wait_for(what: &str, holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !holds().await? {
        if Instant::now() > until {
            bail!("{what} took longer than {PATIENCE:?}");
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
