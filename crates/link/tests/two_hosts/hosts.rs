//! Two hosts, each with its broker and node, and programs on them.

use super::common::site::{self, End, Site};
use super::common::{On, PATIENCE_SECS, STAY, program, wait};
use skein_link::broker::{Broker, BrokerConfig, Connection, Path as Way, Totals};
use skein_link::node::{Ethernet, Node, NodeConfig, PORT, PeerConfig, shared_key};
use skein_link::place;
use skein_link::remote::Remote;
use skein_link::run;
use skein_link::testbed::{Host, Testbed};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) struct Hosts {
    pub(crate) bed: Testbed,
    pub(crate) folders: [TempDir; 2],
    pub(crate) brokers: [Option<Broker>; 2],
    pub(crate) nodes: [Option<Arc<Node>>; 2],
    library: PathBuf,
    port_next: AtomicU16,
}

pub(crate) fn script(name: &str) -> String {
    program(name).to_str().unwrap().to_owned()
}

pub(crate) const fn index(host: Host) -> usize {
    match host {
        Host::A => 0,
        Host::B => 1,
    }
}

const fn name(host: Host) -> &'static str {
    match host {
        Host::A => "a",
        Host::B => "b",
    }
}

/// Starts broker and node of a host, which is this network namespace.
pub(crate) fn agent(
    host: Host,
    namespace: &str,
    path: &Path,
    ethernet: Ethernet,
) -> (Broker, Arc<Node>) {
    agent_with(host, namespace, path, |config| NodeConfig { ethernet, ..config })
}

/// The same, with a node of one's own making.
fn agent_with(
    host: Host,
    namespace: &str,
    path: &Path,
    make: impl FnOnce(NodeConfig) -> NodeConfig,
) -> (Broker, Arc<Node>) {
    let socket = |host: Host| SocketAddr::new(host.address().into(), PORT);
    let other = host.other();
    let addresses = vec![other.overlay_address().into()];
    let peer = PeerConfig { name: name(other).into(), socket: socket(other), addresses };
    let config = make(NodeConfig {
        peers: vec![peer],
        ..NodeConfig::new(name(host), socket(host), shared_key(b"a secret of the two hosts"))
    });
    let namespace = Path::new("/run/netns").join(namespace);
    let node = place::within(&namespace, || Node::start(&config)).unwrap().unwrap();
    let node = Arc::new(node);
    let remote = Some(Arc::clone(&node) as Arc<dyn Remote>);
    let config = BrokerConfig { remote, ..BrokerConfig::new(path.to_owned()) };
    (Broker::start(config).unwrap(), node)
}

impl Hosts {
    pub(crate) fn new(ethernet: Ethernet) -> Self {
        let mut hosts = Self::without_agents();
        for host in Host::BOTH {
            hosts.start_agent(host, ethernet);
        }
        hosts.meet();
        hosts
    }

    /// Hosts whose nodes wait only so long for the other end of a connection.
    #[allow(dead_code, reason = "only the tests of agents use it")]
    pub(crate) fn that_meet_within(meet_within: Duration) -> Self {
        let mut hosts = Self::without_agents();
        for host in Host::BOTH {
            hosts.start_agent_with(host, |config| NodeConfig {
                ethernet: Ethernet::Never,
                meet_within,
                ..config
            });
        }
        hosts.meet();
        hosts
    }

    /// Hosts whose brokers and nodes are somebody else's.
    pub(crate) fn without_agents() -> Self {
        let bed = Testbed::new().expect("two hosts");
        let folder = || tempfile::Builder::new().prefix("skein-link-test-").tempdir().unwrap();
        let folders = [folder(), folder()];
        let library = run::library(&folders[0].path().join("lib")).unwrap();
        let (brokers, nodes) = ([None, None], [None, None]);
        let port_next = AtomicU16::new(5000);
        Self { bed, folders, brokers, nodes, library, port_next }
    }

    pub(crate) fn start_agent(&mut self, host: Host, ethernet: Ethernet) {
        self.start_agent_with(host, |config| NodeConfig { ethernet, ..config });
    }

    fn start_agent_with(&mut self, host: Host, make: impl FnOnce(NodeConfig) -> NodeConfig) {
        let (namespace, path) = (self.bed.namespace(host), self.path(host, "link.sock"));
        let (broker, node) = agent_with(host, &namespace, &path, make);
        self.brokers[index(host)] = Some(broker);
        self.nodes[index(host)] = Some(node);
    }

    /// Ends a host's broker and node; its programs stay.
    pub(crate) fn stop_agent(&mut self, host: Host) {
        self.brokers[index(host)] = None;
        self.nodes[index(host)] = None;
    }

    /// Waits until the nodes know each other.
    pub(crate) fn meet(&self) {
        for host in Host::BOTH {
            let peer = SocketAddr::new(host.other().address().into(), 1);
            let node = self.nodes[index(host)].as_ref().unwrap();
            wait("a session", || node.reaches(peer).then_some(()));
        }
    }

    pub(crate) fn path(&self, host: Host, name: &str) -> PathBuf {
        self.folders[index(host)].path().join(name)
    }

    /// A command on a host, in its folder; `timeout` ends it and what it has started if it hangs.
    pub(crate) fn command(&self, host: Host, on: On, words: &[&str]) -> Command {
        // By a relative path: a process that goes to the other host goes to its folder, and asks the broker there.
        self.command_of(host, on, words, &PathBuf::from("link.sock"))
    }

    fn command_of(&self, host: Host, on: On, words: &[&str], broker: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.bed.namespace(host), "env"]);
        if on == On::Link {
            command.arg(format!("{}={}", STAY.0, STAY.1));
            for (name, value) in run::environment(&self.library, broker, None) {
                let mut word = name;
                word.push("=");
                word.push(value);
                command.arg(word);
            }
        }
        command.args(["timeout", "--kill-after=2", &PATIENCE_SECS.to_string()]).args(words);
        command.stdin(Stdio::null()).env_remove("LD_PRELOAD");
        let far = format!(
            "/run/netns/{}:{}",
            self.bed.namespace(host.other()),
            self.folders[index(host.other())].path().display()
        );
        command.env("HERE", host.address().to_string()).env("FAR", far);
        command.current_dir(self.folders[index(host)].path());
        command
    }

    /// Runs it to its end: what it printed on both outputs, and its status.
    pub(crate) fn output(&self, host: Host, on: On, words: &[&str]) -> (String, Option<i32>) {
        site::output(self.command(host, on, words))
    }

    pub(crate) fn connections(&self, host: Host) -> Vec<Connection> {
        self.brokers[index(host)].as_ref().map_or(Vec::new(), Broker::connections)
    }

    pub(crate) fn totals(&self, host: Host) -> Totals {
        self.brokers[index(host)].as_ref().map_or(Totals::default(), Broker::totals)
    }

    /// Waits until a connection of a host is on the light protocol and the condition holds.
    pub(crate) fn until_light(
        &self,
        host: Host,
        holds: impl Fn(&Connection) -> bool,
    ) -> Connection {
        self.until("the light protocol", host, |c| c.path == Way::Light && holds(c))
    }

    /// Waits until the condition holds for a connection of a host.
    pub(crate) fn until(
        &self,
        what: &str,
        host: Host,
        holds: impl Fn(&Connection) -> bool,
    ) -> Connection {
        let mut latest = Vec::new();
        for _ in 0..3000 {
            latest = self.connections(host);
            if let Some(at) = latest.iter().position(&holds) {
                return latest.remove(at);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let others = self.connections(host.other());
        panic!("waited 30 s in vain for {what}: {latest:#?}, on the other host {others:#?}")
    }
}

const fn host_of(end: End) -> Host {
    match end {
        End::Server => Host::A,
        End::Client => Host::B,
    }
}

impl Site for Hosts {
    fn address(&self) -> &'static str {
        "10.77.0.1"
    }

    fn port(&self) -> u16 {
        // These hosts are this test's alone; each server gets the next.
        self.port_next.fetch_add(1, Ordering::Relaxed)
    }

    fn folder(&self, end: End) -> &Path {
        self.folders[index(host_of(end))].path()
    }

    fn command(&self, end: End, on: On, words: &[&str]) -> Command {
        // A server may change its folder.
        let broker = self.folder(end).join("link.sock");
        self.command_of(host_of(end), on, words, &broker)
    }
}
