//! What the tests of networks share: names that cannot collide, removal even after a failure, and a
//! machine in this process at the other end of a tap.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod bed;
pub(crate) mod machine;

use anyhow::{Context, Result};
use skein_model::Subnet;
use skein_net::{NetworkName, NetworkSpec, NodeNetwork, Peers, PortSpec};
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Far beyond what any step takes, even on a loaded machine: reached only if it never happens.
const DEADLINE: Duration = Duration::from_secs(30);

/// The name and range of a network of one test; removes the network when dropped.
pub(crate) struct Scratch {
    pub(crate) name: NetworkName,
    pub(crate) cidr: Subnet,
}

impl Scratch {
    /// A name of this process and call, and the range that all tests use: networks do not see each
    /// other.
    pub(crate) fn new(what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        SWEPT.call_once(remove_those_of_dead_tests);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{what}-{}-{count}", std::process::id());
        Self { name: name.parse().expect("a name"), cidr: "10.77.0.0/16".parse().expect("a range") }
    }

    pub(crate) fn spec(&self) -> NetworkSpec {
        NetworkSpec::new(self.name.clone(), self.cidr)
    }

    pub(crate) async fn open(&self) -> Result<NodeNetwork> {
        Ok(NodeNetwork::open(self.spec()).await?)
    }

    /// As [`Scratch::open`], with the error as the product sees it.
    pub(crate) async fn open_raw(&self) -> Result<NodeNetwork, skein_net::NetError> {
        NodeNetwork::open(self.spec()).await
    }

    /// The address of machine number `index`, counted from 0.
    pub(crate) fn address(&self, index: u32) -> Ipv4Addr {
        self.cidr.machine(index).expect("an address in the range")
    }

    pub(crate) fn port(&self, index: u32) -> PortSpec {
        let address = self.address(index);
        PortSpec {
            address,
            mac: self.name.port_mac(address),
            label: format!("machine-{index}").parse().expect("a label"),
            peers: Peers::Reachable,
        }
    }

    pub(crate) fn file(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name.namespace())
    }

    /// Names of the interfaces in the namespace, read from a thread inside.
    pub(crate) fn interfaces(&self) -> Result<Vec<String>> {
        let text = self.inside("/proc/thread-self/net/dev")?;
        let names = text.lines().skip(2).filter_map(|line| line.split(':').next());
        Ok(names.map(|name| name.trim().to_owned()).collect())
    }

    /// The text of a file, as a thread in the namespace sees it.
    pub(crate) fn inside(&self, file: &'static str) -> Result<String> {
        let namespace = std::fs::File::open(self.file())?;
        let read = move || -> Result<String> {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(std::fs::read_to_string(file)?)
        };
        std::thread::spawn(read).join().expect("the reader does not panic")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let result = remove(self.name.clone());
        if !std::thread::panicking() {
            result.expect("removal does not panic").expect("the network is removed");
            assert!(!self.file().exists(), "{} was left behind", self.file().display());
        }
    }
}

/// Removes a network from a thread of its own: the test's runtime may be gone or may be unwinding.
fn remove(name: NetworkName) -> std::thread::Result<Result<()>> {
    let remove = move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { NodeNetwork::destroy(&name).await })?;
        Ok(())
    };
    std::thread::spawn(remove).join()
}

/// A test that was killed could not remove its networks; their names tell its process id.
fn remove_those_of_dead_tests() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = file.strip_prefix("skein-").filter(|n| n.starts_with("test-")) else {
            continue;
        };
        let pid = name.rsplit('-').nth(1).and_then(|pid| pid.parse::<u32>().ok());
        let dead = pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        if let (true, Ok(name)) = (dead, name.parse()) {
            // Another test may be doing the same.
            let _ = remove(name);
        }
    }
}

/// Waits until `condition` answers with a value; fails with `what` after the deadline.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if start.elapsed() > DEADLINE {
            return None.with_context(|| format!("never happened: {what}"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
