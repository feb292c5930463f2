//! The link of a cloud's nodes: programs of the hosts find the broker in the agent, peers and projects follow the records.

use anyhow::{Context, Result, bail, ensure};
use camino::Utf8PathBuf;
use http::Method;
use skein_api::{Client, Code, Link};
use skein_cloud::{Cloud, CloudConfig, NodePlace};
use skein_fabric::{Op, Txn};
use skein_link::broker::{self, Connection};
use skein_link::testbed::{Host, Testbed};
use skein_link::{place, run};
use skein_model::{Affinity, Encryption, PublicationSpec, PublishTarget, Transport};
use skein_registry::RecordKey;
use skein_tests::Skein;
use skein_vmm::AccelChoice;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A cloud, and two hosts that its nodes may be in.
struct World {
    cloud: Option<Cloud>,
    client: Client,
    bed: Testbed,
    folder: TempDir,
}

/// A connection that rests after its traffic, and goes on for each line.
struct Resting {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for Resting {
    fn drop(&mut self) {
        // Its `timeout` ends what it has started.
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Resting {
    /// Some more traffic, and the end: whether it was a good one.
    fn goes_on(mut self) -> Result<bool> {
        let mut stdin = self.stdin.take().context("a standard input")?;
        let _ = stdin.write_all(b"more\n");
        drop(stdin);
        Ok(self.child.wait()?.success())
    }
}

/// Looks again and again until there is an answer.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..1500 {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("waited 30 s in vain: {what}")
}

impl World {
    /// A cloud of two nodes, each in a host of its own or both in this one.
    async fn start(apart: bool) -> Result<Self> {
        Self::start_with(apart, Encryption::Off).await
    }

    /// The same, of nodes that encrypt or do not.
    async fn start_with(apart: bool, encryption: Encryption) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("skein-").tempdir_in("/tmp")?;
        Self::start_on(Testbed::new()?, folder, apart, encryption).await
    }

    /// The same, on hosts where there is something already.
    async fn start_on(
        bed: Testbed,
        folder: TempDir,
        apart: bool,
        encryption: Encryption,
    ) -> Result<Self> {
        let path = Utf8PathBuf::from_path_buf(folder.path().join("state"));
        let path = path.ok().context("a UTF-8 path")?;
        let links = Utf8PathBuf::from_path_buf(folder.path().join("run"));
        let place = |host: Host| NodePlace {
            namespace: Path::new("/run/netns").join(bed.namespace(host)),
            address: host.address(),
        };
        let config = CloudConfig {
            nodes: 2,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            places: if apart { Host::BOTH.map(place).to_vec() } else { Vec::new() },
            link: Some(links.ok().context("a UTF-8 path")?),
            accel: AccelChoice::Tcg,
            encryption,
            ..CloudConfig::new(path)
        };
        let cloud = Cloud::start(config).await?;
        let client = Client::new(cloud.target());
        Ok(Self { cloud: Some(cloud), client, bed, folder })
    }

    fn cloud(&mut self) -> &mut Cloud {
        self.cloud.as_mut().expect("a running cloud")
    }

    /// The socket of a project, in a host or in this one.
    fn socket(&self, host: Option<Host>, project: &str) -> Result<PathBuf> {
        let own = match host {
            Some(host) => self.bed.on(host, place::own_namespace)?,
            None => None,
        };
        Ok(place::socket_path(&self.folder.path().join("run"), own, project))
    }

    /// Starts a connection between the two hosts, or within one.
    fn talk(&self, apart: bool, project: &str) -> Result<Resting> {
        self.talk_by(apart, project, Host::A.address())
    }

    /// The same, by another address of the host than its node's, perhaps.
    fn talk_by(&self, apart: bool, project: &str, address: Ipv4Addr) -> Result<Resting> {
        let here = self.folder.path().join(format!("{project}-a"));
        let there = self.folder.path().join(format!("{project}-b"));
        let hosts = [Host::A, Host::B].map(|host| apart.then_some(host));
        for (host, folder) in hosts.into_iter().zip([&here, &there]) {
            std::fs::create_dir_all(folder)?;
            let link = folder.join("link.sock");
            if link.symlink_metadata().is_err() {
                std::os::unix::fs::symlink(self.socket(host, project)?, link)?;
            }
        }
        let library = run::library(&self.folder.path().join("lib"))?;
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/link/tests/programs/resting.py");
        let mut command = Command::new("timeout");
        command.args(["--kill-after=2", "90"]);
        if apart {
            command.args(["ip", "netns", "exec", &self.bed.namespace(Host::A)]);
            let far = format!("/run/netns/{}:{}", self.bed.namespace(Host::B), there.display());
            command.env("FAR", far).env("HERE", address.to_string());
        }
        command.arg("python3").arg(script).arg("nothing").current_dir(&here);
        command.envs(run::environment(&library, Path::new("link.sock"), None));
        // Its messages are few and small: left to itself, the library would take TCP for them.
        command.env("SKEIN_LINK_PATH", "ring");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let resting = Resting { child, stdin };
        let mut line = String::new();
        BufReader::new(stdout.context("an output")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "it ended before it was ready");
        Ok(resting)
    }

    /// Waits until a figure of a node has a value that will do.
    async fn figure(&self, name: &str, does: impl Fn(u64) -> bool) -> Result<u64> {
        until(name, async || {
            let text = self.client.raw(Method::GET, "/metrics", Default::default()).await?;
            let text = String::from_utf8_lossy(&text).into_owned();
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let value = line.map(str::parse::<u64>).transpose()?;
            Ok(value.filter(|value| does(*value)))
        })
        .await
    }

    async fn met(&self) -> Result<()> {
        for node in ["n1", "n2"] {
            let name = format!("skein_link_peers_up{{node=\"{node}\"}}");
            self.figure(&name, |up| up == 1).await?;
        }
        Ok(())
    }

    /// Waits until the server tells such a connection of a node.
    async fn link(&self, node: &str, does: impl Fn(&Link) -> bool) -> Result<Link> {
        until("a connection", async || {
            let list = self.client.links().await?;
            Ok(list.links.into_iter().find(|link| link.node == node && does(link)))
        })
        .await
    }

    /// The light protocol's port is no project's to publish. What may be published is asked for its service, which is none.
    async fn keeps_its_ports(&self) -> Result<()> {
        for node in self.client.nodes().await? {
            for (protocol, code) in
                [(Transport::Udp, Code::PortReserved), (Transport::Tcp, Code::ServiceUnknown)]
            {
                let spec = PublicationSpec {
                    protocol,
                    port: node.light_port,
                    target: PublishTarget::Service("none".parse()?),
                    target_port: 80,
                    affinity: Affinity::None,
                };
                let refused = self.client.publish(&spec).await.err().and_then(|error| error.code());
                ensure!(refused == Some(code), "{protocol:?} {}: {refused:?}", node.light_port);
            }
        }
        Ok(())
    }

    async fn stop(mut self) -> Result<()> {
        let cloud = self.cloud.take().context("a running cloud")?;
        let sockets = self.folder.path().join("run");
        cloud.stop_all().await;
        let left = std::fs::read_dir(sockets)?.flatten();
        let left: Vec<_> =
            left.filter(|file| file.path().extension() == Some("sock".as_ref())).collect();
        ensure!(left.is_empty(), "sockets stay: {left:?}");
        Ok(())
    }
}

fn is_busy(link: &Link) -> bool {
    link.ring_bytes.iter().all(|bytes| *bytes > 1000)
}

fn is_light(link: &Link) -> bool {
    link.path == "light" && is_busy(link)
}

/// Whether a broker's connection carries bytes past TCP.
fn is_ring(connection: &Connection) -> bool {
    connection.ring_bytes.iter().all(|bytes| *bytes > 1000) && connection.reason == "none"
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_cloud_are_each_others_peers() -> Result<()> {
    let mut world = World::start(true).await?;
    world.met().await?;
    world.keeps_its_ports().await?;
    let first = world.talk(true, "default")?;
    for node in ["n1", "n2"] {
        world.link(node, is_light).await?;
    }
    ensure!(world.client.links().await?.silent.is_empty(), "both answer");
    let bytes = "skein_link_bytes_total{node=\"n1\",path=\"light\"}";
    world.figure(bytes, |bytes| bytes > 1000).await?;
    ensure!(first.goes_on()?, "a good end");

    // An agent that crashes: an error for who goes over it, TCP for the next, and its successor serves again.
    let second = world.talk(true, "default")?;
    world.link("n1", is_light).await?;
    world.cloud().crash_agent("n2").await;
    ensure!(!second.goes_on()?, "it sees that bytes may be missing");
    ensure!(world.talk(true, "default")?.goes_on()?, "TCP is as it was");
    world.cloud().restart_agent("n2").await?;
    world.met().await?;
    let third = world.talk(true, "default")?;
    world.link("n2", is_light).await?;
    ensure!(third.goes_on()?, "the successor serves");

    // A node that is none any more.
    let fourth = world.talk(true, "default")?;
    world.link("n1", is_light).await?;
    let gone = RecordKey::Node("n2".parse()?).key();
    world.cloud().parts().state.txn(Txn::new().then(Op::delete(&gone))).await?;
    world.figure("skein_link_peers{node=\"n1\"}", |peers| peers == 0).await?;
    ensure!(!fourth.goes_on()?, "it went there");
    ensure!(world.talk(true, "default")?.goes_on()?, "TCP is as it was");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_have_sockets_of_their_own_and_never_meet() -> Result<()> {
    let world = World::start(true).await?;
    world.met().await?;
    let blue = world.client.clone().in_project(Some("blue".to_owned()));
    let create = serde_json::json!({"name": "blue"}).to_string();
    world.client.raw(Method::POST, "/v1/projects", create.into()).await?;
    let sockets = [Host::A, Host::B].map(|host| world.socket(Some(host), "blue"));
    let sockets = [sockets[0].as_ref(), sockets[1].as_ref()].map(|s| s.expect("a path").clone());
    until("blue's sockets", async || Ok(sockets.iter().all(|s| s.exists()).then_some(()))).await?;
    let held = world.talk(true, "blue")?;
    until("blue's connection", async || {
        Ok(blue.links().await?.links.iter().any(is_light).then_some(()))
    })
    .await?;
    ensure!(world.client.links().await?.links.is_empty(), "no affair of another project");
    // It ends: so does its right to the link, and its connection goes on over TCP.
    world.client.raw(Method::DELETE, "/v1/projects/blue", Default::default()).await?;
    until("no socket", async || Ok((!sockets.iter().any(|s| s.exists())).then_some(()))).await?;
    ensure!(held.goes_on()?, "over TCP");
    let back = "skein_link_steps_back_total{node=\"n1\",reason=\"operator\"}";
    world.figure(back, |count| count > 0).await?;
    world.stop().await
}

/// A connection that was refused from its beginning is in every list, at both nodes, with the reason and its bytes.
async fn is_told_as_refused(world: &World, reason: &str) -> Result<()> {
    let is_it = |link: &Link| link.reason == reason && link.path == "tcp";
    for (node, host) in [("n1", Host::A), ("n2", Host::B)] {
        let link = world.link(node, is_it).await?;
        // 200 messages of 100 bytes, there and back; the last may not be acknowledged yet.
        let bytes = link.tcp_bytes.context("bytes on TCP")?;
        ensure!(bytes.iter().all(|bytes| *bytes >= 19_900), "{link:?}");
        ensure!((link.ring_bytes, link.wakeups) == ([0; 2], [0; 2]), "{link:?}");
        ensure!(
            link.pids.iter().filter(|pid| **pid != 0).count() == 1,
            "one end is here: {link:?}"
        );
        let told = broker::connections(&world.socket(Some(host), "default")?)?;
        let ends = (&link.low, &link.high);
        let same = |one: &&Connection| (&one.low, &one.high) == ends && one.reason == reason;
        ensure!(told.iter().filter(same).count() == 1, "{told:?}");
    }
    let skein = Skein::of(world.client.target());
    let json = skein.say(&["link", "ls", "--cloud", "-o", "json"]).await?.good()?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    let all = json.as_array().context("a list")?;
    let told = all.iter().filter(|one| one["reason"] == reason);
    let mut nodes: Vec<_> = told.filter_map(|one| one["node"].as_str()).collect();
    nodes.sort_unstable();
    ensure!(nodes == ["n1", "n2"], "{json}");
    let socket = world.socket(Some(Host::A), "default")?;
    let socket = socket.to_str().context("a UTF-8 path")?;
    let table = skein.say(&["link", "ls", "--broker", socket]).await?.good()?;
    ensure!(table.lines().any(|line| line.contains(&format!("tcp   {reason}"))), "{table}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_are_in_every_list() -> Result<()> {
    let world = World::start(true).await?;
    world.met().await?;
    // The hosts have addresses that are no node's.
    world.bed.overlay()?;
    let held = world.talk_by(true, "default", Host::A.overlay_address())?;
    is_told_as_refused(&world, "no-node").await?;
    ensure!(held.goes_on()?, "TCP is as it was");
    until("the end of the connection", async || {
        Ok(world.client.links().await?.links.is_empty().then_some(()))
    })
    .await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_encrypt_say_so_of_connections_between_them() -> Result<()> {
    let world = World::start_with(true, Encryption::WireGuard).await?;
    until("both nodes", async || Ok((world.client.nodes().await?.len() == 2).then_some(())))
        .await?;
    let sockets = [Host::A, Host::B].map(|host| world.socket(Some(host), "default"));
    for socket in sockets {
        let socket = socket?;
        until("a broker", async || Ok(broker::connections(&socket).ok())).await?;
    }
    let held = world.talk(true, "default")?;
    is_told_as_refused(&world, "encrypted").await?;
    ensure!(held.goes_on()?, "TCP is as it was");
    world.stop().await
}

/// Makes a connection within its host, and one more for each line, while the others go on.
const MORE: &str = "
import socket, sys
held = []
def talk(one, other):
    for _ in range(200):
        for here, there in ((one, other), (other, one)):
            here.sendall(b'x' * 100)
            there.recv(100, socket.MSG_WAITALL)
def meet():
    listener = socket.create_server(('127.0.0.1', 0))
    one = socket.create_connection(listener.getsockname())
    held.append((one, listener.accept()[0]))
    talk(*held[-1])
meet()
print('ready', flush=True)
for _ in sys.stdin:
    meet()
    for pair in held:
        talk(*pair)
";

/// The broker that `skein link run` started on a socket; ended with the test.
struct Makeshift(PathBuf);

impl Makeshift {
    fn pids(&self) -> Vec<i32> {
        let serves = format!("=/run/skein/{}", self.0.file_name().unwrap_or_default().display());
        let of = |entry: std::fs::DirEntry| {
            let words = std::fs::read(entry.path().join("cmdline")).ok()?;
            let is_it = String::from_utf8_lossy(&words).contains(&serves);
            entry.file_name().to_str()?.parse().ok().filter(|_| is_it)
        };
        std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of).collect()
    }
}

impl Drop for Makeshift {
    fn drop(&mut self) {
        for pid in self.pids().into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// A program is started where there is no node yet, and a broker for it. The node that comes serves the program too.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_the_place_of_a_broker_that_was_started_for_want_of_it() -> Result<()> {
    let bed = Testbed::new()?;
    let folder = tempfile::Builder::new().prefix("skein-").tempdir_in("/tmp")?;
    let run = folder.path().join("run");
    std::fs::create_dir(&run)?;
    let own = bed.on(Host::A, place::own_namespace)?;
    let makeshift = Makeshift(place::socket_path(&run, own, "default"));
    // What is `/run/skein` elsewhere is this test's folder for it.
    let words = "mkdir -p /run/skein && mount --bind \"$0\" /run/skein && exec \"$@\"";
    let mut command = Command::new("timeout");
    command.args(["--kill-after=2", "90", "unshare", "--mount", "sh", "-c", words]);
    command.arg(&run).args(["ip", "netns", "exec", &bed.namespace(Host::A)]);
    command.arg(skein_tests::skein_binary()?).args(["link", "run", "--", "python3", "-c", MORE]);
    command.env("SKEIN_LINK_PATH", "ring").env_remove("SKEIN_LINK_BROKER");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut held = Resting { child, stdin };
    let mut line = String::new();
    BufReader::new(stdout.context("an output")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "it ended before it was ready");
    ensure!(makeshift.pids().len() == 1, "a broker for want of another: {:?}", makeshift.pids());
    let first = broker::connections(&makeshift.0)?;
    ensure!(first.len() == 1 && is_ring(&first[0]), "{first:?}");

    let world = World::start_on(bed, folder, true, Encryption::Off).await?;
    world.met().await?;
    until("the node's broker", async || {
        Ok(broker::connections(&makeshift.0).is_ok_and(|all| all.is_empty()).then_some(()))
    })
    .await?;
    held.stdin.as_mut().context("an input")?.write_all(b"more\n")?;
    let link = world.link("n1", |link| link.path == "ring" && is_busy(link)).await?;
    ensure!((&link.low, &link.high) != (&first[0].low, &first[0].high), "the first one stays");
    ensure!(held.goes_on()?, "it noticed nothing");
    world.stop().await
}

/// Two nodes share a host: one agent serves its programs, and the other one takes over when that ends. Programs that have a ring
/// notice nothing.
#[tokio::test(flavor = "multi_thread")]
async fn agents_of_one_host_stand_in_for_each_other() -> Result<()> {
    let mut world = World::start(false).await?;
    let socket = world.socket(None, "default")?;
    let serves = async |socket: &Path| {
        until("a broker", async || Ok(broker::connections(socket).ok())).await
    };
    serves(&socket).await?;
    for node in ["n1", "n2"] {
        let held = world.talk(false, "default")?;
        until("a ring", async || {
            let connections = broker::connections(&socket)?;
            Ok(connections.iter().any(is_ring).then_some(()))
        })
        .await?;
        world.cloud().crash_agent(node).await;
        let connections = serves(&socket).await?;
        ensure!(held.goes_on()?, "its ring is its own");
        drop(connections);
        world.cloud().restart_agent(node).await?;
    }
    world.stop().await
}
