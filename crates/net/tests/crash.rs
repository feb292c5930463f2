//! An owner killed at any moment leaves a network that the next one takes over or removes. Needs
//! root.

mod common;

use anyhow::{Result, ensure};
use common::{Scratch, eventually};
use skein_net::{NetworkName, NetworkSpec, NodeNetwork};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Names the network that a copy of this program works on until it is killed.
const VICTIM: &str = "SKEIN_NET_TEST_VICTIM";
/// Enough to hit the making of namespace, bridge and ports, and their removal, many times each.
const ROUNDS: u64 = 60;

/// Opens, plugs, unplugs and closes for ever, when started by the other test.
#[tokio::test]
async fn victim() -> Result<()> {
    let Ok(name) = std::env::var(VICTIM) else { return Ok(()) };
    let mut scratch = std::mem::ManuallyDrop::new(Scratch::new("victim"));
    scratch.name = name.parse()?;
    loop {
        let network = NodeNetwork::open(scratch.spec()).await?;
        let mut ports = Vec::new();
        for index in 0..3 {
            ports.push(network.plug(scratch.port(index)).await?);
        }
        network.unplug(scratch.address(0)).await?;
        network.close().await?;
    }
}

struct Victim(Child);

impl Victim {
    fn start(name: &NetworkName) -> Result<Self> {
        let program = std::env::current_exe()?;
        let child = Command::new(program)
            .args(["--exact", "victim"])
            .env(VICTIM, name.as_str())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    /// Ends with the process reaped, so that all it held is given back.
    fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        let status = self.0.wait()?;
        ensure!(status.code().is_none(), "the victim ended by itself: {status}");
        Ok(())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn an_owner_killed_at_any_moment_leaves_nothing_that_stays() -> Result<()> {
    let scratch = Scratch::new("crash");
    let mut adopted = 0;
    for round in 0..ROUNDS {
        let mut victim = Victim::start(&scratch.name)?;
        let seen = || async { scratch.file().exists().then_some(()) };
        eventually("the victim works", seen).await?;
        // Spread over one turn of its loop; not a wait for anything.
        tokio::time::sleep(Duration::from_micros(round * 7_919 % 120_000)).await;
        victim.kill()?;
        if round % 2 == 0 {
            let network =
                NodeNetwork::open(NetworkSpec::new(scratch.name.clone(), scratch.cidr)).await?;
            adopted += u64::from(network.opened() == skein_net::Opened::Adopted);
            ensure!(network.ports().await?.is_empty(), "round {round}");
            let _port = network.plug(scratch.port(0)).await?;
            network.close().await?;
        } else {
            NodeNetwork::sweep(&scratch.name).await?;
        }
        ensure!(!scratch.file().exists(), "round {round}");
    }
    ensure!(adopted > 0, "no round met a network in the making");
    Ok(())
}
