//! What the node measures and tells: its own figures and those of its machines.

use crate::link::Link;
use crate::machine::Live;
use crate::node::Node;
use skein_fabric::Message;
use skein_model::{MachineId, NodeStatus};
use skein_registry::{MachineFigures, NodeReport, report_subject};
use skein_shell::now;
use skein_vmm::GuestStats;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Between two reports.
const EVERY: Duration = Duration::from_secs(2);
/// A guest is asked for its own figures each time so many reports have passed: each question wakes it from its sleep,
/// and 200 idle machines shall cost next to nothing.
const ASK_GUEST_EVERY: u32 = 5;
/// A guest that computes answers late; its figures can wait.
const GUEST_DEADLINE: Duration = Duration::from_millis(500);

/// What was measured of a machine the last time.
struct Last {
    at: Instant,
    cpu: Duration,
    memory_guest_bytes: Option<u64>,
    requests: Option<u64>,
}

/// Reports until the agent stops.
pub(crate) async fn run(node: Arc<Node>) {
    let stop = node.tasks.stop_token().clone();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut lasts: BTreeMap<MachineId, Last> = BTreeMap::new();
    let mut host = HostCpu::read();
    for round in 0_u32.. {
        tokio::select! {
            () = stop.cancelled() => return,     // cancel-safe: token
            _ = every.tick() => {}               // cancel-safe: timer
        }
        let live = node.all_live();
        lasts.retain(|id, _| live.iter().any(|l| l.record().id == *id));
        // Spread over the rounds, so that not all guests wake at once; those of one round together, so that one that is
        // silent delays the report once.
        let asked = live.iter().enumerate().map(async |(place, live)| {
            let turn = (round + place as u32).is_multiple_of(ASK_GUEST_EVERY);
            let first = !lasts.contains_key(&live.record().id);
            let ask = (turn || first) && live.in_service() == 0;
            if ask { live.machine.stats(GUEST_DEADLINE).await.ok() } else { None }
        });
        let said = futures_util::future::join_all(asked).await;
        let figures =
            live.iter().zip(said).filter_map(|(live, said)| measure(live, &mut lasts, said));
        let machines: Vec<MachineFigures> = figures.collect();
        let before = std::mem::replace(&mut host, HostCpu::read());
        let report = NodeReport {
            node: NodeStatus {
                name: node.config.name.clone(),
                at: now(),
                cpu_used: host.used_since(&before),
                memory_used_mib: memory_used_mib(),
                machines: live.len() as u32,
                in_service: live.iter().map(|l| l.in_service()).sum(),
            },
            machines,
            link: node.link.as_ref().and_then(Link::figures),
        };
        match serde_json::to_vec(&report) {
            Ok(json) => {
                let message = Message::new(report_subject(&node.config.name), json);
                if let Err(error) = node.bus.publish(message).await {
                    debug!(%error, "a report was not sent");
                }
            }
            Err(error) => warn!(%error, "a report could not be encoded"),
        }
    }
}

fn measure(
    live: &Live,
    lasts: &mut BTreeMap<MachineId, Last>,
    said: Option<GuestStats>,
) -> Option<MachineFigures> {
    let id = live.record().id.clone();
    let usage = live.machine.usage().ok()?;
    let at = Instant::now();
    let last = lasts.entry(id.clone()).or_insert(Last {
        at,
        cpu: usage.cpu,
        memory_guest_bytes: None,
        requests: None,
    });
    if let Some(stats) = said {
        last.memory_guest_bytes = Some(stats.memory_used);
        last.requests = Some(stats.requests);
    }
    let spent = usage.cpu.saturating_sub(last.cpu).as_secs_f64();
    let passed = at.saturating_duration_since(last.at).as_secs_f64();
    let cpu_used = if passed > 0.0 { spent / passed } else { 0.0 };
    (last.at, last.cpu) = (at, usage.cpu);
    Some(MachineFigures {
        id,
        cpu_seconds: usage.cpu.as_secs_f64(),
        cpu_used,
        memory_resident_bytes: usage.resident_bytes,
        memory_guest_bytes: last.memory_guest_bytes,
        requests: last.requests,
        in_service: live.in_service(),
    })
}

/// Processor time of the host, in ticks: all of it, and the idle part.
struct HostCpu {
    all: u64,
    idle: u64,
}

impl HostCpu {
    fn read() -> Self {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        Self::parse(&text)
    }

    /// The first line: `cpu user nice system idle iowait irq softirq steal ...`.
    fn parse(text: &str) -> Self {
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).take(8).filter_map(|t| t.parse().ok()).collect();
        let idle = ticks.get(3).unwrap_or(&0) + ticks.get(4).unwrap_or(&0);
        Self { all: ticks.iter().sum(), idle }
    }

    fn used_since(&self, before: &Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        let idle = self.idle.saturating_sub(before.idle);
        if all == 0 { 0.0 } else { (1.0 - idle as f64 / all as f64).clamp(0.0, 1.0) }
    }
}

/// Memory of the host in use, MiB; 0 where `/proc/meminfo` does not tell.
fn memory_used_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let (total, available) = (kib("MemTotal:"), kib("MemAvailable:"));
    total.zip(available).map_or(0, |(total, available)| total.saturating_sub(available) / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_the_processor_is_what_was_not_idle() {
        let before = HostCpu::parse("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3");
        let after = HostCpu::parse("cpu  150 0 150 900 0 0 0 0 0 0");
        assert!((after.used_since(&before) - 0.5).abs() < 1e-9);
        assert!(before.used_since(&before).abs() < 1e-9);
        assert!(HostCpu::parse("").used_since(&after).abs() < 1e-9);
    }
}
