//! `skein link`.

use crate::Context;
use crate::commands::up::Stop;
use crate::output::{self, column, wide};
use anyhow::{Context as _, Result, bail};
use rustix::fs::Access;
use skein_api::Link as ApiLink;
use skein_bench::{LinkOptions, LinkPart, Traffic};
use skein_link::broker::{self, Broker as Server, BrokerConfig, Connection, Project};
use skein_link::node::{Ethernet, Node, NodeConfig, PORT, PeerConfig, shared_key};
use skein_link::place;
use skein_link::remote::Remote;
use skein_link::run;
use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a broker that `run` has started may take to answer.
const BROKER_START: Duration = Duration::from_secs(5);
/// A broker that `run` has started ends after so many looks, one a second, at no connection at all.
const UNUSED_LOOKS_MAX: u32 = 60;

/// The link: sockets between programs that skip TCP/IP where they can
#[derive(clap::Subcommand)]
pub(crate) enum Link {
    /// Start a program whose sockets take the link
    ///
    /// Its TCP connections to other programs of this host that were started so move onto shared memory by themselves, those to
    /// programs on the broker's peers onto the light protocol; all others stay as they are. Starts a broker if none listens. The program must be linked dynamically, and not set-user-ID.
    Run(Run),
    /// Run the broker, until Ctrl-C
    Broker(Broker),
    /// List connections: their path, why it is TCP if it is, bytes, wake-ups
    Ls(Ls),
    /// Measure, beside plain TCP
    Bench(Bench),
    /// One side of the bench
    #[command(hide = true)]
    Peer(Peer),
}

#[derive(clap::Args)]
pub(crate) struct Run {
    /// Socket of the broker: that of this host (or network namespace) and project unless given, /run/skein/link.sock
    #[arg(long, value_name = "PATH", env = "SKEIN_LINK_BROKER")]
    broker: Option<PathBuf>,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

#[derive(clap::Args)]
pub(crate) struct Broker {
    /// A project: its name, and the socket on which its programs ask. File permissions of the socket say who may. Programs of
    /// different projects never share memory
    #[arg(long = "serve", value_name = "NAME=PATH", value_parser = project)]
    projects: Vec<Project>,
    /// Ring capacity of a direction, KiB: a power of two, 4 to 65536
    #[arg(long, value_name = "KIB", default_value = "256")]
    ring_kib: usize,
    /// Connections at a time; more stay on TCP
    #[arg(long, value_name = "COUNT", default_value_t = broker::CONNECTIONS_MAX_DEFAULT)]
    connections_max: usize,
    /// This host's name among the peers
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
    /// Address on which this host's light protocol listens; needed with --peer. Port 4077 unless given
    #[arg(long, value_name = "IP[:PORT]", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Another host whose broker runs with the light protocol: its name, where it listens, and addresses of programs on it beside
    /// that one. Connections to these addresses take the light protocol where both programs run under the link
    #[arg(long = "peer", value_name = "NAME=IP[:PORT][,IP...]", value_parser = peer)]
    peers: Vec<PeerConfig>,
    /// File with the secret that all peers share: any bytes, at least 16. Needed with --peer
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Never use the carrier straight on Ethernet, UDP only
    #[arg(long)]
    no_ethernet: bool,
    /// End after a minute without a connection
    #[arg(long, hide = true)]
    until_unused: bool,
}

#[derive(clap::Args)]
pub(crate) struct Ls {
    /// Socket of the broker: that of this host (or network namespace) and project unless given, /run/skein/link.sock
    #[arg(long, value_name = "PATH", env = "SKEIN_LINK_BROKER")]
    broker: Option<PathBuf>,
    /// Those of all nodes of the cloud, as its server knows them
    #[arg(long, conflicts_with = "broker")]
    cloud: bool,
}

#[derive(clap::Args)]
pub(crate) struct Bench {
    /// Print JSON (as -o json does)
    #[arg(long)]
    json: bool,
    /// How often each pair of programs runs; 7 unless given
    #[arg(short = 'n', value_name = "COUNT")]
    count: Option<u32>,
    /// Measure only this part (may be given several times): local, programs, sweep, mpi, wire, unlimited
    #[arg(long = "part", value_name = "NAME", value_parser = part)]
    parts: Vec<LinkPart>,
    /// Folder for a report: report.md, link.json, and a plot for each check and sweep
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Peer {
    /// Port to connect to; listens unless given
    #[arg(long)]
    port: Option<u16>,
    /// Address to connect to, or to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// What goes between the two
    words: Vec<String>,
}

fn project(text: &str) -> Result<Project, String> {
    let (name, path) = text.split_once('=').ok_or("a project is NAME=PATH")?;
    Ok(Project { name: name.to_owned(), socket: path.into() })
}

/// `IP` or `IP:PORT`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
    plain.or_else(|_| text.parse()).map_err(|_| format!("{text} is neither IP nor IP:PORT"))
}

fn peer(text: &str) -> Result<PeerConfig, String> {
    let (name, places) = text.split_once('=').ok_or("a peer is NAME=IP[:PORT][,IP...]")?;
    let mut places = places.split(',');
    let socket = address(places.next().unwrap_or_default())?;
    let more = places.map(|ip| ip.parse().map_err(|_| format!("{ip} is no IP address")));
    Ok(PeerConfig { name: name.to_owned(), socket, addresses: more.collect::<Result<_, _>>()? })
}

fn part(text: &str) -> Result<LinkPart, String> {
    LinkPart::parse(text).ok_or_else(|| {
        let names = LinkPart::ALL.map(LinkPart::name).join(", ");
        format!("the parts are {names}")
    })
}

impl Link {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Run(run) => run.run(context),
            Self::Broker(broker) => broker.run().await,
            Self::Ls(ls) => ls.run(context).await,
            Self::Bench(bench) => bench.run(context).await,
            Self::Peer(peer) => {
                let traffic = Traffic::parse(&peer.words).context("no such traffic")?;
                skein_bench::peer(traffic, peer.address, peer.port)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

impl Run {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let is_found = self.broker.is_none();
        let found = socket(self.broker, context);
        let (broker, started) = started(found, is_found, context);
        let folder = broker.parent().unwrap_or(Path::new("/"));
        let library = run::library(&folder.join(run::FOLDER)).or_else(|error| {
            // A user who may ask a broker of root's, and has another release of the library.
            let own = own_folder().map(|own| run::library(&own.join(run::FOLDER)));
            own.unwrap_or(Err(error))
        })?;
        if let Err(error) = started {
            // The program matters more than its speed.
            eprintln!("warning: without a broker all stays on TCP: {error:#}");
        }
        let loaded = std::env::var_os("LD_PRELOAD");
        let variables = run::environment(&library, &broker, loaded.as_deref());
        let error = command(&self.program[0]).args(&self.program[1..]).envs(variables).exec();
        Err(error).with_context(|| format!("starting {}", self.program[0].display()))
    }
}

/// The project that programs belong to.
fn project_of(context: &Context) -> &str {
    context.project.as_deref().unwrap_or(place::PROJECT)
}

/// The broker's socket.
fn socket(given: Option<PathBuf>, context: &Context) -> PathBuf {
    let find = |folder: &Path| place::find_socket(folder, project_of(context));
    given.unwrap_or_else(|| {
        let of_host = find(Path::new(place::FOLDER));
        if rustix::fs::access(&of_host, Access::WRITE_OK).is_ok() {
            return of_host;
        }
        // One's own, which `run` starts.
        own_folder().map_or(of_host, |own| find(&own))
    })
}

/// Where a user who is not root has brokers of his own.
fn own_folder() -> Option<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !is_root)?;
    Some(PathBuf::from(folder).join("skein"))
}

/// Starts a broker if none answers on a socket: where it is now, and whether there is one. A project's broker is its cloud's: none
/// is started in its stead.
fn started(found: PathBuf, is_found: bool, context: &Context) -> (PathBuf, Result<()>) {
    let Err(error) = broker::connections(&found) else { return (found, Ok(())) };
    let project = project_of(context);
    if is_found && project != place::PROJECT {
        let error =
            anyhow::Error::new(error).context(format!("project {project} is not served here"));
        return (found, Err(error));
    }
    let socket = if is_found { place::socket_to_start(&found, project) } else { found };
    let result = start(&socket);
    (socket, result)
}

/// Starts a broker on a socket, and waits until it answers.
fn start(socket: &Path) -> Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let project = format!("--serve=default={}", socket.display());
    let mut child = command(program)
        .args(["link", "broker", "--until-unused", &project])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .context("starting a broker")?;
    let looks = BROKER_START.as_millis() / 10;
    for _ in 0..looks {
        if broker::connections(socket).is_ok() {
            return Ok(());
        }
        if let Some(status) = child.try_wait().context("waiting for the broker")? {
            // Another start was faster, or it cannot listen there.
            broker::connections(socket).with_context(|| format!("the broker ended: {status}"))?;
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("the broker that was started does not answer on {}", socket.display())
}

/// The least secret: 128 bits.
const KEY_BYTES_MIN: usize = 16;

impl Broker {
    /// The way to other hosts, if there are any.
    fn node(&self) -> Result<Option<Arc<Node>>> {
        if self.peers.is_empty() {
            return Ok(None);
        }
        let listen = self.listen.context("--peer needs --listen, this host's address")?;
        let file = self.key_file.as_ref().context("--peer needs --key-file")?;
        let secret = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        if secret.len() < KEY_BYTES_MIN {
            bail!("{} holds {} bytes; {KEY_BYTES_MIN} are the least", file.display(), secret.len());
        }
        if self.name.is_empty() {
            bail!("--peer needs --name, this host's name among the peers");
        }
        let config = NodeConfig {
            peers: self.peers.clone(),
            ethernet: if self.no_ethernet { Ethernet::Never } else { Ethernet::Probe },
            ..NodeConfig::new(&self.name, listen, shared_key(&secret))
        };
        Ok(Some(Arc::new(Node::start(&config)?)))
    }

    async fn run(self) -> Result<ExitCode> {
        let node = self.node()?;
        let mut projects = self.projects;
        if projects.is_empty() {
            let (folder, own) = (Path::new(place::FOLDER), place::own_namespace());
            let sockets = place::sockets_to_serve(folder, None, own, place::PROJECT);
            let project = |socket| Project { name: place::PROJECT.to_owned(), socket };
            projects.extend(sockets.into_iter().map(project));
        }
        for project in &projects {
            if let Some(folder) = project.socket.parent() {
                std::fs::create_dir_all(folder)
                    .with_context(|| format!("making {}", folder.display()))?;
            }
        }
        let server = Server::start(BrokerConfig {
            projects,
            capacity: self.ring_kib << 10,
            connections_max: self.connections_max,
            remote: node.map(|node| node as Arc<dyn Remote>),
            guard: None,
            yields: self.until_unused,
            tables_ignored: None,
        })?;
        let mut stop = Stop::new()?;
        let mut unused = 0;
        loop {
            tokio::select! {
                () = stop.wait() => break,                                  // cancel-safe: signals are kept
                () = tokio::time::sleep(Duration::from_secs(1)) => {}       // cancel-safe: only time
            }
            unused = if server.connections().is_empty() { unused + 1 } else { 0 };
            if self.until_unused && unused >= UNUSED_LOOKS_MAX {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Ls {
    async fn run(self, context: &Context) -> Result<ExitCode> {
        if self.cloud {
            return of_cloud(context).await;
        }
        output::list(
            context.output,
            &broker::connections(&socket(self.broker, context))?,
            &[
                column("LOW", |c: &Connection| c.low.clone()),
                column("HIGH", |c| c.high.clone()),
                column("PATH", |c| format!("{:?}", c.path).to_lowercase()),
                column("REASON", |c| c.reason.clone()),
                column("RING BYTES", |c| both(c.ring_bytes)),
                column("TCP BYTES", |c| c.tcp_bytes.map_or_else(|| "-".to_owned(), both)),
                column("WAKE-UPS", |c| both(c.wakeups)),
                wide("PROCESSES", |c| format!("{}/{}", c.pids[0], c.pids[1])),
                wide("PROJECT", |c| c.project.clone()),
            ],
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What the server knows, node by node.
async fn of_cloud(context: &Context) -> Result<ExitCode> {
    let list = context.client()?.links().await?;
    if !list.silent.is_empty() {
        eprintln!("warning: nodes that do not answer: {}", list.silent.join(", "));
    }
    output::list(
        context.output,
        &list.links,
        &[
            column("NODE", |l: &ApiLink| l.node.clone()),
            column("LOW", |l| l.low.clone()),
            column("HIGH", |l| l.high.clone()),
            column("PATH", |l| l.path.clone()),
            column("REASON", |l| l.reason.clone()),
            column("RING BYTES", |l| both(l.ring_bytes)),
            column("TCP BYTES", |l| l.tcp_bytes.map_or_else(|| "-".to_owned(), both)),
            column("WAKE-UPS", |l| both(l.wakeups)),
            wide("PROCESSES", |l| format!("{}/{}", l.pids[0], l.pids[1])),
        ],
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Two figures: from the low end to the high one, and back.
fn both(values: [u64; 2]) -> String {
    format!("{}/{}", values[0], values[1])
}

impl Bench {
    async fn run(self, context: &Context) -> Result<ExitCode> {
        let report = bench(self.count, self.parts, &mut Stop::new()?).await?;
        let json = self.json || context.output == output::Format::Json;
        let text =
            if json { serde_json::to_string_pretty(&report)? } else { skein_bench::table(&report) };
        writeln!(std::io::stdout(), "{text}")?;
        let good = report.holds();
        if let Some(folder) = &self.report {
            skein_bench::write_folder(folder, &[report])?;
            eprintln!("report in {}", folder.join("report.md").display());
        }
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Measures the link, all of it or some parts, until told to stop. Used by `skein bench` too.
pub(crate) async fn bench(
    count: Option<u32>,
    parts: Vec<LinkPart>,
    stop: &mut Stop,
) -> Result<skein_bench::Report> {
    let ends = Arc::new(AtomicBool::new(false));
    let options = LinkOptions {
        count,
        parts: if parts.is_empty() { LinkPart::ALL.to_vec() } else { parts },
        program: std::env::current_exe().context("finding this program")?,
        peer_words: vec!["link".into(), "peer".into()],
        stop: Arc::clone(&ends),
    };
    let work = move || skein_bench::run_link(&options, &|line| eprintln!("{line}"));
    let mut work = tokio::task::spawn_blocking(work);
    let report = tokio::select! {
        report = &mut work => report, // cancel-safe: a task's end is kept
        () = stop.wait() => {         // cancel-safe: signals are kept
            ends.store(true, Ordering::Relaxed);
            // It ends its programs and takes its hosts away.
            work.await
        }
    };
    Ok(report??)
}
