//! `skein demo`: the main job, shown.

use crate::commands::image::upload;
use crate::commands::up::{Shape, Stop};
use crate::image_build::Bundle;
use crate::{Context, access};
use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use skein_api::{BatchItem, Client, EventLine, EventStream, Machine};
use skein_cloud::Cloud;
use skein_model::{
    Attachment, EventKind, PhaseName, QueuePolicy, ScalingPolicy, ScalingRule, ServiceSpec,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two pictures.
const FRAME: Duration = Duration::from_millis(250);
/// The demonstration ends badly when its jobs are not done after this long.
const PATIENCE: Duration = Duration::from_secs(300);
/// Name of its service.
const SERVICE: &str = "search";

/// Show what Skein does: a cloud, a service, a batch of queries
///
/// Starts a cloud in a folder of its own, creates the search service, submits queries, shows how machines start, multiply, work
/// through the queue and go away, and prints what it took. Then it serves until Ctrl-C, and leaves nothing behind.
#[derive(clap::Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    shape: Shape,
    /// End after the summary: status 0 when every job was done
    #[arg(long)]
    once: bool,
    /// How many queries
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    jobs: u32,
    /// Folder of the service's image, as `skein image build --to` writes it
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// File of queries, one a line, instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
}

/// Queries that people could ask of a list of the world's cities; repeated as often as jobs are asked for.
const QUERIES: &[&str] = &[
    "london",
    "san",
    "münchen",
    "new york",
    "saint petersburg",
    "tokyo",
    "rio",
    "springfield",
    "country:FR saint",
    "москва",
    "北京",
    "zürich",
    "sao paulo",
    "los",
    "porto",
    "country:DE bad",
    "istanbul",
    "nairobi",
    "country:IN pur",
    "santa",
    "québec",
    "al",
    "mexico",
    "kyiv",
    "hanoi",
    "country:US port",
    "den haag",
    "athens",
    "cairo",
    "ulaanbaatar",
    "reykjavik",
    "wien",
];

impl Demo {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let mut stop = Stop::new()?;
        let parent = parent()?;
        remove_abandoned(&parent).await;
        let folder = Folder::new(&parent)?;
        let state = folder.path.clone();
        let cloud = Cloud::start(self.shape.config(&state)).await?;
        let shown = tokio::select! {
            shown = self.show(context, &cloud, &state) => shown,     // owns all it needs; the cloud is ended below
            () = stop.wait() => Err(anyhow::anyhow!("interrupted")), // cancel-safe: as documented
        };
        let good = match &shown {
            Ok(summary) => summary.lost == 0 && summary.done == summary.accepted,
            Err(_) => false,
        };
        if shown.is_ok() && !self.once {
            eprintln!("serving until Ctrl-C");
            stop.wait().await;
            eprintln!("stopping");
        }
        cloud.stop_all().await;
        folder.remove()?;
        shown?;
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn show(&self, _: &Context, cloud: &Cloud, state: &Utf8Path) -> Result<Summary> {
        let target = cloud.target();
        let file = access::write(state.as_std_path(), &target)?;
        let client = Client::new(target.clone());
        let bundle = Bundle::read(&self.image)?;
        let image = upload(&client, &bundle).await?;
        eprintln!(
            "image {}: kernel {} KiB, data {} KiB, {} MiB of memory for each machine",
            image.name,
            image.kernel_bytes / 1024,
            image.modules.iter().map(|m| m.bytes).sum::<u64>() / 1024,
            image.memory_mib
        );
        client.create_service(&spec(&image.name)?).await?;
        let items = self.items()?;
        let mut events = client.follow_events(0).await?;
        let begun = Instant::now();
        let reply = client.submit_batch(SERVICE, &items).await?;
        eprintln!("{} queries submitted, {} refused", reply.accepted, reply.refused);
        let mut summary =
            Summary { accepted: reply.accepted, refused: reply.refused, ..Summary::default() };
        let mut picture = Picture::new();
        let watched = watch(&client, &mut events, &mut summary, &mut picture, begun).await;
        picture.end();
        watched?;
        show_answer(&client, &reply).await?;
        summary.print()?;
        let mut out = std::io::stdout();
        writeln!(out, "{}", access::told(&target, &file, out.is_terminal()))?;
        writeln!(out, "in a shell     export SKEIN_ACCESS={}", file.display())?;
        Ok(summary)
    }

    fn items(&self) -> Result<Vec<BatchItem>> {
        let text = match &self.queries {
            Some(file) => std::fs::read_to_string(file)
                .with_context(|| format!("reading {}", file.display()))?,
            None => QUERIES.join("\n"),
        };
        let queries: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        if queries.is_empty() {
            bail!("there are no queries");
        }
        let item = |query: &&str| BatchItem {
            payload: serde_json::json!({ "q": query, "limit": 5 }),
            token: None,
            path: None,
            deadline_ms: None,
        };
        Ok(queries.iter().cycle().take(self.jobs as usize).map(item).collect())
    }
}

/// Where the folders of this user's demonstrations are: one known place, so that the next one finds what a killed one
/// left. Short, because Unix sockets live below it.
pub(crate) fn parent() -> Result<Utf8PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let path = Utf8PathBuf::from(format!("/tmp/skein-demo-{user}"));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
    if let Err(error) = made
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("making {path}"));
    }
    // Anybody may make names in /tmp.
    let found = path.symlink_metadata().with_context(|| format!("reading {path}"))?;
    if !found.is_dir() || found.uid() != user {
        bail!("{path} is not a folder of this user: remove it");
    }
    Ok(path)
}

/// Ends what demonstrations that were killed left. A demonstration that runs has its folder locked.
pub(crate) async fn remove_abandoned(parent: &Utf8Path) {
    let Ok(entries) = parent.read_dir_utf8() else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(lock) = File::open(path) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        match skein_cloud::remove_abandoned(path).await {
            Ok(true) => eprintln!("removed what a demonstration left that was killed: {path}"),
            Ok(false) => {}
            Err(error) => {
                eprintln!("warning: removing {path}: {}", skein_shell::report::chain(&error));
            }
        }
    }
}

/// The folder of a cloud that lives as long as its command, locked as long as it runs.
pub(crate) struct Folder {
    path: Utf8PathBuf,
    inner: tempfile::TempDir,
    _lock: File,
}

impl Folder {
    pub(crate) fn new(parent: &Utf8Path) -> Result<Self> {
        let inner = tempfile::Builder::new().prefix("").tempdir_in(parent)?;
        let path = Utf8PathBuf::from_path_buf(inner.path().to_owned())
            .map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))?;
        let lock = File::open(&path).with_context(|| format!("opening {path}"))?;
        lock.try_lock().with_context(|| format!("locking {path}"))?;
        Ok(Self { path, inner, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Utf8Path {
        &self.path
    }

    pub(crate) fn remove(self) -> Result<()> {
        self.inner.close().context("removing the folder of the demonstration")
    }
}

fn spec(image: &str) -> Result<ServiceSpec> {
    Ok(ServiceSpec {
        name: SERVICE.parse()?,
        image: image.parse()?,
        memory: None,
        capacity: None,
        cpu_milli: 100,
        parameters: BTreeMap::new(),
        network: Attachment::default(),
        scaling: ScalingPolicy {
            replicas_max: 6,
            zero_grace: Duration::from_secs(2),
            cooldown: Duration::from_secs(1),
            rule: ScalingRule::Concurrency {
                target: 0.7,
                stable_window: Duration::from_secs(3),
                panic_window: Duration::from_millis(500),
                panic_threshold: 2.0,
            },
            placement: skein_model::Placement::Spread,
            ..ScalingPolicy::default()
        },
        queue: QueuePolicy::default(),
    })
}

/// Follows the events until every job has ended and the last machine has gone.
async fn watch(
    client: &Client,
    events: &mut EventStream,
    summary: &mut Summary,
    picture: &mut Picture,
    begun: Instant,
) -> Result<()> {
    let mut frame = tokio::time::interval(FRAME);
    loop {
        tokio::select! {
            event = events.next() => match event? {                 // cancel-safe: as documented
                Some(event) => summary.count(&event, begun),
                None => bail!("the server ended the stream of events"),
            },
            _ = frame.tick() => {                                   // cancel-safe: timer
                let machines = client.machines(false).await?;
                picture.draw(&machines, summary, begun)?;
                if summary.ended() >= summary.accepted && machines.is_empty() {
                    return Ok(());
                }
                if begun.elapsed() > PATIENCE {
                    bail!("{} of {} jobs have ended after {PATIENCE:?}", summary.ended(), summary.accepted);
                }
            }
        }
    }
}

/// Prints one of the answers: real work was done.
async fn show_answer(client: &Client, reply: &skein_api::BatchReply) -> Result<()> {
    let Some(id) = reply.results.iter().find_map(|result| result.id.as_ref()) else {
        return Ok(());
    };
    let answer = client.result(id).await?;
    let text = String::from_utf8_lossy(&answer);
    let shown: String = text.chars().take(300).collect();
    let rest = if shown.len() < text.len() { "..." } else { "" };
    let mut out = std::io::stdout();
    writeln!(out, "\nanswer to the first query ({}):\n{shown}{rest}\n", QUERIES[0])?;
    Ok(())
}

/// What the events told.
#[derive(Debug, Default)]
struct Summary {
    accepted: u32,
    refused: u32,
    done: u32,
    dead: u32,
    lost: u32,
    returned: u32,
    queue_us: Vec<u64>,
    service_us: Vec<u64>,
    start_us: Vec<u64>,
    boot_us: Vec<u64>,
    first_done: Option<Duration>,
    all_done: Option<Duration>,
    machines_most: usize,
}

impl Summary {
    fn ended(&self) -> u32 {
        self.done + self.dead
    }

    fn count(&mut self, line: &EventLine, begun: Instant) {
        match &line.event {
            EventKind::JobDone { queue_us, service_us } => {
                self.done += 1;
                self.queue_us.push(*queue_us);
                self.service_us.push(*service_us);
                self.first_done.get_or_insert(begun.elapsed());
                if self.ended() == self.accepted {
                    self.all_done = Some(begun.elapsed());
                }
            }
            EventKind::JobDeadLettered { code, .. } => {
                self.dead += 1;
                self.lost += u32::from(code == "MACHINE_LOST");
            }
            EventKind::JobReturned { .. } => self.returned += 1,
            EventKind::MachineReady { start_us, boot_us } => {
                self.start_us.push(*start_us);
                self.boot_us.push(*boot_us);
            }
            _ => {}
        }
    }

    fn print(&mut self) -> Result<()> {
        let mut out = std::io::stdout();
        let ms = |us: Option<u64>| us.map_or(f64::NAN, |us| us as f64 / 1e3);
        let line = |name: &str, figures: &mut Vec<u64>| {
            let mut out = std::io::stdout();
            figures.sort_unstable();
            let at = |share: f64| {
                let place = (figures.len() as f64 * share) as usize;
                ms(figures.get(place.min(figures.len().saturating_sub(1))).copied())
            };
            let (median, p95, most) = (at(0.5), at(0.95), at(1.0));
            writeln!(out, "{name:15}{median:9.1} ms median {p95:9.1} ms p95 {most:9.1} ms most")
        };
        writeln!(
            out,
            "jobs           {} done, {} refused, {} dead-letter, {} lost; {} attempts returned",
            self.done, self.refused, self.dead, self.lost, self.returned
        )?;
        line("in queue", &mut self.queue_us)?;
        line("in service", &mut self.service_us)?;
        writeln!(
            out,
            "machines       {} started, {} at once at most, all gone again",
            self.start_us.len(),
            self.machines_most
        )?;
        line("machine start", &mut self.start_us)?;
        line("guest boot", &mut self.boot_us)?;
        let seconds = |at: Option<Duration>| at.map_or(f64::NAN, |at| at.as_secs_f64());
        writeln!(
            out,
            "cold start     {:.1} ms from submission to the first result; all results after {:.2} s",
            seconds(self.first_done) * 1e3,
            seconds(self.all_done)
        )?;
        Ok(())
    }
}

/// The picture on the terminal: redrawn in place, or a line at a time when nobody watches a terminal.
struct Picture {
    in_place: bool,
    lines: usize,
    last: String,
}

impl Picture {
    fn new() -> Self {
        Self { in_place: std::io::stderr().is_terminal(), lines: 0, last: String::new() }
    }

    fn draw(&mut self, machines: &[Machine], summary: &mut Summary, begun: Instant) -> Result<()> {
        summary.machines_most = summary.machines_most.max(machines.len());
        let mut nodes: BTreeMap<&str, String> = BTreeMap::new();
        for machine in machines {
            nodes.entry(&machine.node).or_default().push(match machine.state {
                PhaseName::Scheduled => '.',
                PhaseName::Booting => 'o',
                PhaseName::Ready => '#',
                PhaseName::Draining | PhaseName::Stopping => '-',
                PhaseName::Gone => ' ',
            });
        }
        let ended = summary.ended();
        let head = format!(
            "{:6.2} s  {:5} waiting or in service  {:5} done  {:2} machines",
            begun.elapsed().as_secs_f64(),
            summary.accepted.saturating_sub(ended),
            summary.done,
            machines.len()
        );
        let state: Vec<String> =
            nodes.iter().map(|(node, row)| format!("{node} [{row}]")).collect();
        let mut out = std::io::stderr().lock();
        if self.in_place {
            for _ in 0..self.lines {
                write!(out, "\x1b[1A\x1b[2K")?;
            }
            let width = 40;
            let filled =
                (ended as usize * width).checked_div(summary.accepted as usize).unwrap_or(0);
            writeln!(out, "{head}")?;
            writeln!(out, "[{}{}]", "=".repeat(filled), " ".repeat(width - filled.min(width)))?;
            writeln!(out, "{}   (. assigned, o booting, # ready, - leaving)", state.join("  "))?;
            self.lines = 3;
        } else {
            let now = format!("{} {}", summary.done, state.join(" "));
            if now != self.last {
                writeln!(out, "{head}  {}", state.join("  "))?;
                self.last = now;
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        self.lines = 0;
    }
}
