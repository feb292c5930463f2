//! What many idle machines cost: memory in proportion, processor time, and how fast they start.
//! `cargo run --release -p skein-vmm --example density -- [MACHINES]`, as root.

#[path = "../tests/host/mod.rs"]
mod host;

use anyhow::Context;
use host::echo::{self, Network};
use host::{Guard, Host, PATIENCE};
use skein_vmm::RunAs;
use std::time::{Duration, Instant};

/// How long idle machines are watched.
const WATCH: Duration = Duration::from_secs(5);
/// Starts under way at once.
const AT_ONCE: usize = 4;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let count =
        std::env::args().nth(1).map_or(Ok(40), |count| count.parse()).context("MACHINES")?;
    let mut networks = Vec::new();
    for _ in 0..count {
        networks.push(Network::new().context("needs root and /dev/net/tun")?);
    }
    let host = Host::start().await;
    let (mut machines, mut keep) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for (index, (network, tap)) in (700_200..).zip(networks) {
        let mut spec = echo::spec(&host, &format!("echo-{index}"), tap);
        spec.run_as = Some(RunAs { uid: index, gid: index });
        machines.push(host.launch(spec).await);
        keep.push(network);
        if let Some(earlier) = machines.len().checked_sub(AT_ONCE) {
            machines[earlier].ready(PATIENCE).await?;
        }
    }
    for machine in &machines {
        machine.ready(PATIENCE).await?;
    }
    let rate = machines.len() as f64 / began.elapsed().as_secs_f64();
    println!("started and ready: {rate:.1} machines/s");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = cpu(&machines)?;
    tokio::time::sleep(WATCH).await;
    let used = cpu(&machines)? - before;
    println!("idle: {:.2} % of a core together", 100.0 * used.as_secs_f64() / WATCH.as_secs_f64());
    let mut bytes = 0;
    for machine in &machines {
        bytes += machine.proportional_bytes()?;
    }
    let mib = bytes as f64 / f64::from(1 << 20) / machines.len() as f64;
    println!("memory: {mib:.1} MiB each in proportion");
    for machine in &machines {
        machine.kill().await?;
    }
    Ok(())
}

fn cpu(machines: &[Guard]) -> anyhow::Result<Duration> {
    machines.iter().map(|machine| Ok(machine.usage()?.cpu)).sum()
}
