//! `skein service`.

use crate::Context;
use crate::output::{self, column, wide};
use anyhow::{Context as _, Result, bail};
use skein_api::{
    ApiError, Client, ClientError, Code, ScaleRequest, Service as ApiService, ServicePatch,
};
use skein_model::{
    Addressing, Affinity, Attachment, GroupName, MemoryMib, Migration, NetworkName, Placement,
    PublishTarget, QueuePolicy, RetryPolicy, ScalingPolicy, ScalingRule, ServiceSpec,
    ThresholdScope,
};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Services: an image, a scaling policy and a queue
#[derive(clap::Subcommand)]
pub(crate) enum Service {
    /// Create a service
    Create(Box<Create>),
    /// List services
    Ls,
    /// Show a service, its machines' numbers, and why the policy decided as it did
    Show {
        /// Name of the service
        service: String,
    },
    /// Change how a service is scaled
    Scale {
        /// Name of the service
        service: String,
        /// Never fewer machines than this
        #[arg(long)]
        min: Option<u32>,
        /// Never more machines than this
        #[arg(long)]
        max: Option<u32>,
        /// Idle machines kept ready
        #[arg(long)]
        warm: Option<u32>,
        /// Wait until so many machines are ready
        #[arg(long, value_name = "COUNT")]
        wait: Option<u32>,
    },
    /// Change the firewall groups or bounds of a service's ports, while its machines run
    Set(Set),
    /// Open ports of the nodes that lead to the service's ready machines
    Publish {
        /// Name of the service
        service: String,
        /// Port of the nodes and port of the machines, such as 80:80
        #[arg(short, long = "publish", required = true, value_name = "PORT:PORT[/udp]")]
        ports: Vec<super::port::PortMap>,
        /// Which machine takes a connection: the next one in turn (none), or the same one for all connections of one client's
        /// address while it is ready (client)
        #[arg(long, default_value = "none", value_name = "none|client")]
        affinity: Affinity,
    },
    /// Remove services, their machines and their waiting jobs
    Rm {
        /// Names of services
        #[arg(required = true)]
        services: Vec<String>,
    },
}

/// Change the firewall groups or bounds of a service's ports, while its machines run
#[derive(clap::Args)]
pub(crate) struct Set {
    /// Name of the service
    service: String,
    /// Group of firewall rules; instead of those that it has. May be given several times
    #[arg(long = "group", value_name = "NAME", conflicts_with = "no_groups")]
    groups: Vec<String>,
    /// No group: closed inwards, open outwards
    #[arg(long)]
    no_groups: bool,
    #[command(flatten)]
    limits: super::port::LimitArgs,
}

impl Set {
    async fn run(self, context: &Context) -> Result<()> {
        let groups = self.no_groups || !self.groups.is_empty();
        let limits = self.limits.limits();
        if !groups && limits.is_none() {
            bail!("nothing to change: give --group, --no-groups or a bound");
        }
        let patch = ServicePatch { groups: groups.then_some(self.groups), limits };
        let service = context.client()?.patch_service(&self.service, &patch).await?;
        writeln!(std::io::stdout(), "{}", service.spec.name)?;
        Ok(())
    }
}

/// Create a service
#[derive(clap::Args)]
pub(crate) struct Create {
    /// Name of the service
    name: String,
    /// What its machines boot; the service's name unless given
    #[arg(long)]
    image: Option<String>,
    /// Read the whole specification from a JSON or TOML file; other flags override it
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Replace the specification if the service exists
    #[arg(long)]
    replace: bool,
    /// Memory of a machine, such as 16M; the image's unless given
    #[arg(short, long)]
    memory: Option<MemoryMib>,
    /// Requests a machine serves at a time; the image's unless given
    #[arg(long)]
    capacity: Option<u32>,
    /// Parameter of the service
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Network of its machines; `default` unless given
    #[arg(long, value_name = "NAME")]
    network: Option<NetworkName>,
    /// Group of firewall rules for its machines; may be given several times
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<GroupName>,
    /// Address of its machines, one for each; may be given several times, and no other service's machines get it
    #[arg(long = "ip", value_name = "ADDRESS")]
    addresses: Vec<Ipv4Addr>,
    #[command(flatten)]
    limits: super::port::LimitArgs,
    /// Let machines learn their address by DHCP
    #[arg(long)]
    dhcp: bool,
    /// Never fewer machines than this
    #[arg(long)]
    min: Option<u32>,
    /// Never more machines than this
    #[arg(long)]
    max: Option<u32>,
    /// Idle machines kept ready
    #[arg(long)]
    warm: Option<u32>,
    /// How many machines a load asks for: concurrency, hpa, kpa, predictive, or the keys of a rule, such as
    /// 'kind = "predictive", wait_ms = 50'
    #[arg(long, value_parser = scaling_rule, conflicts_with_all = ["replicate_above", "dereplicate_at"])]
    rule: Option<ScalingRule>,
    /// Let machines leave cordoned nodes; with keys such as 'leave_above = 0.8, go_below = 0.5' crowded ones too
    #[arg(long, value_name = "KEYS", num_args = 0..=1, default_missing_value = "", value_parser = migration)]
    migration: Option<Migration>,
    /// Jobs per machine to aim at, as a share of its capacity
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["replicate_above", "dereplicate_at"])]
    target: Option<f64>,
    /// Add a machine when more jobs than this wait
    #[arg(long, value_name = "JOBS", requires = "dereplicate_at")]
    replicate_above: Option<u32>,
    /// Remove a machine when at most so many jobs wait
    #[arg(long, value_name = "JOBS", requires = "replicate_above")]
    dereplicate_at: Option<u32>,
    /// With nothing to do for this long the last machine goes, such as 30s
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    zero_grace: Option<Duration>,
    /// After a change no machine is removed for this long
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    cooldown: Option<Duration>,
    /// Which node a new machine is put on
    #[arg(long, value_parser = placement)]
    placement: Option<Placement>,
    /// Jobs that may wait; one more is refused
    #[arg(long, value_name = "JOBS")]
    queue: Option<u32>,
    /// Attempts a job may have
    #[arg(long)]
    attempts: Option<u32>,
    /// Longest time of one attempt
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    attempt_timeout: Option<Duration>,
    /// How long jobs and results are kept
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    retention: Option<Duration>,
}

/// A scaling rule: its kind, or the keys of its table.
pub(crate) fn scaling_rule(text: &str) -> Result<ScalingRule, String> {
    #[derive(serde::Deserialize)]
    struct Table {
        rule: ScalingRule,
    }
    if text.trim() == "concurrency" {
        return Ok(ScalingRule::default());
    }
    let keys = match text.contains('=') {
        true => text.trim().trim_start_matches('{').trim_end_matches('}').to_owned(),
        false => format!("kind = {:?}", text.trim()),
    };
    toml::from_str::<Table>(&format!("rule = {{ {keys} }}")).map(|table| table.rule).map_err(|error| {
        format!(
            "{}; a rule is hpa, kpa, predictive, concurrency, or its keys, like 'kind = \"hpa\", target = 0.5'",
            error.message()
        )
    })
}

/// When machines move, in words.
fn migration_words(migration: Option<&Migration>) -> String {
    let Some(it) = migration else { return "none: machines stay where they are".to_owned() };
    let mut from = vec![];
    if it.leave_cordoned {
        from.push("cordoned nodes".to_owned());
    }
    if let Some(above) = it.leave_above {
        from.push(format!("nodes used above {:.0} %", above * 100.0));
    }
    match from.is_empty() {
        true => "none: no node is left".to_owned(),
        false => format!("away from {}, {} at once", from.join(" and "), it.at_once),
    }
}

/// The keys of a migration; none for its defaults.
fn migration(keys: &str) -> Result<Migration, String> {
    #[derive(serde::Deserialize)]
    struct Table {
        migration: Migration,
    }
    let keys = keys.trim().trim_start_matches('{').trim_end_matches('}');
    toml::from_str::<Table>(&format!("migration = {{ {keys} }}"))
        .map(|table| table.migration)
        .map_err(|error| {
            format!("{}; such as 'leave_above = 0.8, go_below = 0.5'", error.message())
        })
}

fn placement(text: &str) -> Result<Placement, String> {
    let value = serde_json::Value::String(text.replace('-', "_"));
    serde_json::from_value(value).map_err(|_| {
        "one of least-loaded, most-free, fastest, spread, random, round-robin".to_owned()
    })
}

impl Create {
    fn spec(&self) -> Result<ServiceSpec> {
        let mut spec = match &self.file {
            Some(file) => self.read(file)?,
            None => ServiceSpec {
                name: self.name.parse()?,
                image: self.image.as_ref().unwrap_or(&self.name).parse()?,
                memory: None,
                capacity: None,
                cpu_milli: 100,
                parameters: BTreeMap::new(),
                network: Attachment::default(),
                scaling: ScalingPolicy::default(),
                queue: QueuePolicy::default(),
            },
        };
        if let Some(image) = &self.image {
            spec.image = image.parse()?;
        }
        spec.memory = self.memory.or(spec.memory);
        spec.capacity = self.capacity.or(spec.capacity);
        for pair in &self.env {
            let Some((key, value)) = pair.split_once('=') else {
                bail!("--env {pair}: must be KEY=VALUE");
            };
            spec.parameters.insert(key.to_owned(), value.to_owned());
        }
        self.attachment(&mut spec.network);
        self.scaling(&mut spec.scaling);
        set(&mut spec.queue.bound, self.queue);
        set(&mut spec.queue.retention, self.retention);
        let retry: &mut RetryPolicy = &mut spec.queue.retry;
        set(&mut retry.attempts_max, self.attempts);
        set(&mut retry.attempt_timeout, self.attempt_timeout);
        spec.check()?;
        Ok(spec)
    }

    fn attachment(&self, attachment: &mut Attachment) {
        set(&mut attachment.name, self.network.clone());
        set(&mut attachment.limits, self.limits.limits());
        if !self.groups.is_empty() {
            attachment.groups.clone_from(&self.groups);
        }
        if !self.addresses.is_empty() {
            attachment.addresses.clone_from(&self.addresses);
        }
        if self.dhcp {
            attachment.addressing = Addressing::Dhcp;
        }
    }

    fn scaling(&self, scaling: &mut ScalingPolicy) {
        set(&mut scaling.replicas_min, self.min);
        set(&mut scaling.replicas_max, self.max);
        // A minimum above the default maximum means at least that many, not an error.
        if self.max.is_none() {
            scaling.replicas_max = scaling.replicas_max.max(scaling.replicas_min);
            // No more machines than addresses that were chosen for them.
            if let Ok(count @ 1..) = u32::try_from(self.addresses.len()) {
                scaling.replicas_max = scaling.replicas_max.min(count).max(scaling.replicas_min);
            }
        }
        set(&mut scaling.warm, self.warm);
        set(&mut scaling.zero_grace, self.zero_grace);
        set(&mut scaling.cooldown, self.cooldown);
        set(&mut scaling.placement, self.placement);
        set(&mut scaling.rule, self.rule.clone());
        set(&mut scaling.migration, self.migration.map(Some));
        if let Some(share) = self.target {
            match &mut scaling.rule {
                ScalingRule::Concurrency { target, .. } => *target = share,
                ScalingRule::Hpa(rule) => rule.target = share,
                ScalingRule::Kpa(rule) => rule.target = share,
                ScalingRule::Thresholds { .. } | ScalingRule::Predictive(_) => {}
            }
        }
        if let (Some(replicate_above), Some(dereplicate_at)) =
            (self.replicate_above, self.dereplicate_at)
        {
            let scope = ThresholdScope::Service;
            scaling.rule = ScalingRule::Thresholds { replicate_above, dereplicate_at, scope };
        }
    }

    fn read(&self, file: &Path) -> Result<ServiceSpec> {
        let text = String::from_utf8(super::read_input(file)?).context("the file is not UTF-8")?;
        let mut document: serde_json::Value = if text.trim_start().starts_with('{') {
            serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?
        } else {
            toml::from_str(&text).with_context(|| format!("reading {}", file.display()))?
        };
        document["name"] = self.name.clone().into();
        if document.get("image").is_none() {
            document["image"] = self.name.clone().into();
        }
        serde_json::from_value(document).with_context(|| format!("reading {}", file.display()))
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

impl Service {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Create(create) => {
                let spec = create.spec()?;
                let client = context.client()?;
                let service = match client.create_service(&spec).await {
                    Err(e) if create.replace && e.code() == Some(Code::ServiceExists) => {
                        client.put_service(&spec).await?
                    }
                    other => other?,
                };
                writeln!(std::io::stdout(), "{}", service.spec.name)?;
            }
            Self::Ls => list(context, &context.client()?.services().await?)?,
            Self::Show { service } => {
                show(context, &context.client()?.service(&service).await?)?;
            }
            Self::Scale { service, min, max, warm, wait } => {
                let client = context.client()?;
                client.scale(&service, &ScaleRequest { min, max, warm }).await?;
                if let Some(count) = wait {
                    wait_ready(&client, &service, count).await?;
                }
            }
            Self::Set(set) => set.run(context).await?,
            Self::Publish { service, ports, affinity } => {
                let target = PublishTarget::Service(service.parse()?);
                super::port::publish(&context.client()?, &target, affinity, &ports).await?;
            }
            Self::Rm { services } => {
                let client = context.client()?;
                for service in services {
                    client.remove_service(&service).await?;
                    writeln!(std::io::stdout(), "{service}")?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Waits until `count` machines of a service are ready, at most two minutes.
async fn wait_ready(client: &Client, service: &str, count: u32) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let now = client.service(service).await?;
        if now.ready >= count {
            return Ok(());
        }
        if let Some(hold) = &now.hold
            && hold.code == Code::CapacityExhausted.as_str()
        {
            // No room is nothing that waiting mends by itself; its exit status is its own.
            let error = ApiError::new(Code::CapacityExhausted, hold.reason.clone());
            return Err(ClientError::from(error).into());
        }
        if Instant::now() > until {
            let why = now.decisions.first().map_or("no decision yet", |d| &d.reason);
            bail!(
                "{} of {count} machines are ready after two minutes; the policy says: {why}",
                now.ready
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn list(context: &Context, services: &[ApiService]) -> Result<()> {
    output::list(
        context.output,
        services,
        &[
            column("NAME", |s: &ApiService| s.spec.name.to_string()),
            column("IMAGE", |s| s.spec.image.to_string()),
            column("READY", |s| s.ready.to_string()),
            column("BOOTING", |s| s.booting.to_string()),
            column("WAITING", |s| s.waiting.to_string()),
            column("RUNNING", |s| s.running.to_string()),
            column("DONE", |s| s.counters.done.to_string()),
            wide("REFUSED", |s| s.counters.refused.to_string()),
            wide("DEAD", |s| s.counters.dead.to_string()),
            wide("MIN", |s| s.spec.scaling.replicas_min.to_string()),
            wide("MAX", |s| s.spec.scaling.replicas_max.to_string()),
            wide("WARM", |s| s.spec.scaling.warm.to_string()),
            wide("CREATED", |s| s.created_at.clone()),
        ],
    )
}

fn show(context: &Context, s: &ApiService) -> Result<()> {
    let scaling = &s.spec.scaling;
    let counters = &s.counters;
    let rule = match &scaling.rule {
        ScalingRule::Thresholds { replicate_above, dereplicate_at, .. } => {
            format!("add above {replicate_above} waiting, remove at {dereplicate_at}")
        }
        ScalingRule::Concurrency { target, .. } => {
            format!("{:.0} % of capacity in use", target * 100.0)
        }
        ScalingRule::Hpa(rule) => {
            format!("{:.0} % of capacity in use, as Kubernetes' HPA does it", rule.target * 100.0)
        }
        ScalingRule::Kpa(rule) => {
            format!("{:.0} % of capacity in use, as Knative's KPA does it", rule.target * 100.0)
        }
        ScalingRule::Predictive(rule) => format!(
            "{:.1} % of the jobs wait at most {} ms by the model",
            rule.share * 100.0,
            rule.wait.as_millis()
        ),
    };
    let mut lines = vec![
        ("name", s.spec.name.to_string()),
        ("image", s.spec.image.to_string()),
        ("network", s.spec.network.name.to_string()),
        ("replicas", format!("{} ready, {} booting", s.ready, s.booting)),
        (
            "bounds",
            format!("{} to {}, {} warm", scaling.replicas_min, scaling.replicas_max, scaling.warm),
        ),
        ("rule", rule),
        ("migration", migration_words(scaling.migration.as_ref())),
        (
            "queue",
            format!("{} waiting, {} running, bound {}", s.waiting, s.running, s.spec.queue.bound),
        ),
        (
            "jobs",
            format!(
                "{} accepted, {} done, {} refused, {} dead-letter ({} lost), {} cancelled, {} returned",
                counters.accepted,
                counters.done,
                counters.refused,
                counters.dead,
                counters.lost,
                counters.cancelled,
                counters.returned
            ),
        ),
        (
            "times",
            format!(
                "{:.1} ms in queue, {:.1} ms in service (means)",
                counters.queue_ms_mean, counters.service_ms_mean
            ),
        ),
        (
            "scaling",
            format!(
                "{} replications, {} dereplications",
                counters.replications, counters.dereplications
            ),
        ),
    ];
    if let Some(hold) = &s.hold {
        lines
            .push(("waits for", format!("{} more: {} ({})", hold.missing, hold.reason, hold.code)));
    }
    for decision in &s.decisions {
        let change = format!(
            "{}  {} -> {}  {}",
            decision.at.get(..19).unwrap_or(&decision.at),
            decision.current,
            decision.wanted,
            decision.reason
        );
        lines.push(("decision", change));
    }
    output::one(context.output, s, &lines)
}
