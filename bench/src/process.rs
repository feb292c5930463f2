//! What processes cost, as `/proc` tells it.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// The kernel's unit of processor time, on every Linux of x86-64: `sysconf(_SC_CLK_TCK)`.
const TICK: Duration = Duration::from_millis(10);

/// The processes this one has started and that still run.
pub(crate) fn children() -> BTreeSet<u32> {
    let me = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == me && stat.alive)).collect()
}

/// Processor time a process has used, all threads; zero when it has gone. In steps of 10 ms.
pub(crate) fn cpu(pid: u32) -> Duration {
    stat(pid).map_or(Duration::ZERO, |stat| stat.cpu)
}

/// Memory of a process in bytes; pages shared by n processes count one n-th.
pub(crate) fn proportional_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    pss(&text)
}

fn pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

struct Stat {
    parent: u32,
    alive: bool,
    cpu: Duration,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `PID (NAME) STATE PARENT ...`; the name may hold anything, also `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |place: usize| fields.get(place)?.parse::<u32>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        alive: !matches!(*fields.first()?, "Z" | "X"),
        cpu: TICK * (ticks(11)? + ticks(12)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read() {
        let text = "42 (a) b) S 7 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 9 1 1";
        let stat = parse_stat(text).expect("fields");
        assert_eq!((stat.parent, stat.alive, stat.cpu), (7, true, Duration::from_secs(2)));
        assert!(parse_stat("42 (a").is_none());
        assert!(!parse_stat("42 (a) Z 7 1 1 0 -1 1 1 0 0 0 1 1").expect("fields").alive);
    }

    #[test]
    fn proportional_memory_is_read() {
        assert_eq!(
            pss("00400000-7ff [rollup]\nRss:  9 kB\nPss:    12 kB\nPss_Dirty: 1 kB"),
            Some(12 * 1024)
        );
        assert_eq!(pss(""), None);
        assert!(proportional_bytes(std::process::id()).is_some_and(|bytes| bytes > 0));
    }
}
