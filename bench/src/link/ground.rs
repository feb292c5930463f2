//! Where programs of one host run: a broker of the bench's own, and commands on plain TCP and under the library. Everything is
//! ended with its value.

use super::LinkOptions;
use super::peer::{Found, Traffic};
use crate::error::BenchError;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use skein_link::broker::{Broker, BrokerConfig};
use skein_link::node::{Node, NodeConfig, PORT, PeerConfig, shared_key};
use skein_link::remote::Remote;
use skein_link::run;
use skein_link::testbed::{Host, Testbed};
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a program's sockets take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Tcp,
    Ring,
    RingThatSleeps,
}

/// A program and all that it has started, ended when it is dropped.
pub(super) struct Running(Child);

impl Running {
    /// Asks it to end, and waits for that at most so long. For servers whose processes leave the group.
    pub(super) fn stop(&mut self, signal: Signal, limit: Duration) {
        if let Some(pid) = Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(0)) {
            let _ = kill_process(pid, signal);
        }
        let begun = Instant::now();
        while begun.elapsed() < limit && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(0)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// Where programs run.
pub(super) struct Ground<'a> {
    options: &'a LinkOptions,
    pub(super) count: u32,
    folder: TempDir,
    library: PathBuf,
    variables: Vec<(OsString, OsString)>,
    _broker: Broker,
}

/// Two hosts whose brokers and nodes run in this process, ended with the value.
pub(super) struct Hosts<'a> {
    bed: &'a Testbed,
    folder: TempDir,
    brokers: Vec<Broker>,
}

impl<'a> Hosts<'a> {
    /// Starts them on the hosts of a testbed and waits until they know each other.
    pub(super) fn new(bed: &'a Testbed) -> Result<Self, BenchError> {
        let folder = tempfile::Builder::new().prefix("skein-bench-hosts-").tempdir();
        let folder = folder.map_err(BenchError::io("making a folder for the brokers"))?;
        let mut hosts = Self { bed, folder, brokers: Vec::new() };
        let nodes: Vec<Arc<Node>> =
            Host::BOTH.into_iter().map(|host| node(bed, host)).collect::<Result<_, _>>()?;
        for (host, node) in Host::BOTH.into_iter().zip(&nodes) {
            let remote = Some(Arc::clone(node) as Arc<dyn Remote>);
            let config = BrokerConfig { remote, ..BrokerConfig::new(hosts.socket(host)) };
            let broker = Broker::start(config);
            hosts.brokers.push(broker.map_err(|e| BenchError::unexpected(super::chain(&e)))?);
        }
        let begun = Instant::now();
        // Once the paths have been raced, which each node tells a moment later.
        while !nodes.iter().all(|node| node.peers().iter().any(|(_, peer)| peer.rates.is_some())) {
            if begun.elapsed() > HOSTS_MEET {
                let what = "two nodes to know each other".to_owned();
                return Err(BenchError::Deadline { what, waited: HOSTS_MEET });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(hosts)
    }

    fn socket(&self, host: Host) -> PathBuf {
        self.folder.path().join(format!("{host:?}.sock"))
    }

    /// Bytes that a host's programs have moved over the light protocol.
    pub(super) fn light_bytes(&self) -> u64 {
        self.brokers.iter().map(|broker| broker.totals().light_bytes).sum()
    }
}

/// How long two nodes may take until they know each other, and their paths.
const HOSTS_MEET: Duration = Duration::from_secs(10);

fn node(bed: &Testbed, host: Host) -> Result<Arc<Node>, BenchError> {
    let socket = |host: Host| SocketAddr::new(host.address().into(), PORT);
    let other = host.other();
    let name = |host: Host| format!("{host:?}");
    let peer = PeerConfig { name: name(other), socket: socket(other), addresses: Vec::new() };
    let config = NodeConfig {
        peers: vec![peer],
        ..NodeConfig::new(name(host), socket(host), shared_key(b"of this bench alone"))
    };
    let node = bed.on(host, move || Node::start(&config));
    let node = node.map_err(BenchError::io("going to a host"))?;
    Ok(Arc::new(node.map_err(|error| BenchError::unexpected(super::chain(&error)))?))
}

impl<'a> Ground<'a> {
    pub(super) fn new(options: &'a LinkOptions, count: u32) -> Result<Self, BenchError> {
        let folder = tempfile::Builder::new().prefix("skein-bench-link-").tempdir();
        let folder = folder.map_err(BenchError::io("making a folder for the broker"))?;
        let socket = folder.path().join("link.sock");
        let library = run::library(&folder.path().join("lib"));
        let library = library.map_err(|error| BenchError::unexpected(super::chain(&error)))?;
        let broker = Broker::start(BrokerConfig::new(socket.clone()));
        let broker = broker.map_err(|error| BenchError::unexpected(super::chain(&error)))?;
        // Servers of databases give up being root.
        for path in [folder.path(), &socket] {
            let mode = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(path, mode).map_err(BenchError::io("opening the folder"))?;
        }
        let variables = run::environment(&library, &socket, None);
        Ok(Self { options, count, folder, library, variables, _broker: broker })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// # Errors
    /// [`BenchError::Interrupted`] once the bench was told to stop.
    pub(super) fn check_stop(&self) -> Result<(), BenchError> {
        if self.options.stop.load(Ordering::Relaxed) {
            Err(BenchError::Interrupted)
        } else {
            Ok(())
        }
    }

    /// A command in the folder, in a process group of its own.
    pub(super) fn command(&self, program: &Path, link: Link) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.env_remove("LD_PRELOAD").current_dir(self.folder.path()).process_group(0);
        if link != Link::Tcp {
            command.envs(self.variables.iter().cloned());
        }
        if link == Link::RingThatSleeps {
            command.env("SKEIN_LINK_SPIN_US", "0");
        }
        command
    }

    /// Starts it.
    pub(super) fn start(
        &self,
        mut command: Command,
    ) -> Result<(Running, BufReader<ChildStdout>), BenchError> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(BenchError::io(format!("starting {name}")))?;
        let out = child.stdout.take();
        let running = Running(child);
        let out = out.ok_or_else(|| BenchError::unexpected(format!("{name} is mute")))?;
        Ok((running, BufReader::new(out)))
    }

    /// Runs it to its end, at most for so long; what it printed.
    pub(super) fn output(&self, command: Command, limit: Duration) -> Result<String, BenchError> {
        self.check_stop()?;
        let name = command.get_program().to_string_lossy().into_owned();
        let (mut running, out) = self.start(command)?;
        let text = read_all(out, limit, &name)?;
        let status = running.0.wait().map_err(BenchError::io(format!("waiting for {name}")))?;
        if status.success() {
            return Ok(text);
        }
        let said = text.lines().last().unwrap_or_default();
        Err(BenchError::unexpected(format!("{name} ended with {status}: {said}")))
    }

    /// One run of a pair of peers on this host, at most for so long.
    pub(super) fn pair(
        &self,
        traffic: Traffic,
        link: Link,
        limit: Duration,
    ) -> Result<Found, BenchError> {
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        self.pair_at(traffic, address, limit, |_| self.command(&self.options.program, link))
    }

    /// The same on two hosts: the server is on the second.
    pub(super) fn far_pair(
        &self,
        hosts: &Hosts<'_>,
        traffic: Traffic,
        link: Link,
        limit: Duration,
    ) -> Result<Found, BenchError> {
        let address = IpAddr::from(Host::B.address());
        self.pair_at(traffic, address, limit, |port| {
            let host = if port.is_some() { Host::A } else { Host::B };
            let mut command = self.command(Path::new("ip"), Link::Tcp);
            command.args(["netns", "exec", &hosts.bed.namespace(host), "env"]);
            if link != Link::Tcp {
                // `ip` itself has no use for the library.
                let socket = hosts.socket(host);
                for (name, value) in run::environment(&self.library, &socket, None) {
                    command.arg([name, value].join(OsStr::new("=")));
                }
            }
            command.arg(&self.options.program);
            command
        })
    }

    fn pair_at(
        &self,
        traffic: Traffic,
        address: IpAddr,
        limit: Duration,
        command: impl Fn(Option<u16>) -> Command,
    ) -> Result<Found, BenchError> {
        self.check_stop()?;
        let peer = |port: Option<u16>| {
            let mut command = command(port);
            command.args(&self.options.peer_words).arg("--address").arg(address.to_string());
            if let Some(port) = port {
                command.arg("--port").arg(port.to_string());
            }
            command.args(traffic.words());
            self.start(command)
        };
        let (_server, mut out) = peer(None)?;
        let mut line = String::new();
        out.read_line(&mut line).map_err(BenchError::io("reading the peer's port"))?;
        let port = line.trim().parse();
        let port = port.map_err(|_| BenchError::unexpected("the peer has no port"))?;
        let (_client, out) = peer(Some(port))?;
        let text = read_all(out, limit, "a pair of programs")?;
        serde_json::from_str(&text).map_err(|_| BenchError::unexpected("a peer found nothing"))
    }

    /// Pairs in turn with the link and without, so that what disturbs the host disturbs both.
    pub(super) fn turns(
        &self,
        traffic: Traffic,
        link: Link,
        limit: Duration,
    ) -> Result<[Vec<Found>; 2], BenchError> {
        let mut found = [Vec::new(), Vec::new()];
        for _ in 0..self.count {
            found[0].push(self.pair(traffic, link, limit)?);
            found[1].push(self.pair(traffic, Link::Tcp, limit)?);
        }
        Ok(found)
    }
}

/// All of an output, if it ends in time. Whoever holds the program ends it otherwise, and with it the thread that reads.
fn read_all(
    mut out: BufReader<ChildStdout>,
    limit: Duration,
    name: &str,
) -> Result<String, BenchError> {
    // 1: one text is all that comes.
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = sender.send(out.read_to_string(&mut text).map(|_| text));
    });
    match receiver.recv_timeout(limit) {
        Ok(text) => text.map_err(BenchError::io(format!("reading what {name} printed"))),
        Err(_) => Err(BenchError::Deadline { what: format!("the end of {name}"), waited: limit }),
    }
}

/// A port of loopback that is free now.
pub(super) fn free_port() -> Result<u16, BenchError> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0));
    let port = listener.and_then(|listener| listener.local_addr());
    Ok(port.map_err(BenchError::io("looking for a free port"))?.port())
}

/// Waits until somebody listens on a port of loopback.
pub(super) fn listening(port: u16, limit: Duration) -> Result<(), BenchError> {
    let begun = Instant::now();
    let place = format!(":{port:04X} ");
    while begun.elapsed() < limit {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        // 0A: listens.
        if table.lines().any(|line| line.contains(&place) && line.contains(" 0A ")) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(BenchError::Deadline { what: format!("a server on port {port}"), waited: limit })
}

/// Where a program is, among the folders of the path and others.
pub(super) fn find(name: &str, folders: &[PathBuf]) -> Result<PathBuf, BenchError> {
    let path = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin"];
    let all = folders.iter().cloned().chain(path.iter().map(PathBuf::from));
    let found = all.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| BenchError::unexpected(format!("{name} is not installed")))
}
