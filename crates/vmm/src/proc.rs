//! What `/proc` says about a process.

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;

/// Ticks per second of the times in `/proc/PID/stat`: 100 on every Linux of this architecture
/// (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;
/// Bytes of a page on this architecture.
const PAGE_BYTES: u64 = 4096;

/// A process, told from a later one with the same number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessMark {
    pub(crate) pid: i32,
    /// Ticks after the host's boot.
    pub(crate) start_ticks: u64,
}

impl ProcessMark {
    /// The mark of a process that runs.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start_ticks: Stat::read(pid)?.start_ticks })
    }

    /// Whether this very process exists; true also when it is dead and not yet reaped.
    pub(crate) fn exists(self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.start_ticks == self.start_ticks)
    }

    pub(crate) fn rustix(self) -> Option<Pid> {
        Pid::from_raw(self.pid)
    }
}

/// What a machine's process uses of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostUsage {
    /// Processor time so far, of all its threads; to 10 ms.
    pub cpu: Duration,
    /// Memory resident, bytes; pages shared with other machines count in full.
    pub resident_bytes: u64,
}

impl HostUsage {
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        let cpu = Duration::from_millis(stat.cpu_ticks * (1000 / TICKS_PER_SECOND));
        Ok(Self { cpu, resident_bytes: stat.resident_pages * PAGE_BYTES })
    }
}

/// Memory of a process in proportion, bytes: pages shared by n processes count one n-th. The kernel
/// walks every page of the process for it (about a third of a millisecond), so it is not for each
/// look.
pub(crate) fn proportional_bytes(pid: i32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    pss_bytes(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn pss_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Fields of `/proc/PID/stat` in use.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
}

impl Stat {
    fn read(pid: i32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// The process's name is in brackets and may hold anything, brackets too: fields are counted
    /// after the last.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // proc(5) counts from 1 and the first field after the name is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)?.checked_add(field(15)?)?,
            start_ticks: field(22)?,
            resident_pages: field(24)?,
        })
    }
}

/// The processes whose command line holds `argument` as one of its words.
pub(crate) fn find_by_argument(argument: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // A process that ends meanwhile is no process.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.split(|&byte| byte == 0).any(|word| word == argument.as_bytes()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Identifies this boot of the host: process numbers and sockets of another boot mean nothing.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_confuse() {
        let stat = "9273 (a) b (c) S 9232 9187 4369 0 -1 138412416 3371 0 0 0 5 1 0 0 20 0 4 0 97255 \
                    312676352 9240 18446744073709551615 94256768204800";
        let expect = Stat { cpu_ticks: 6, start_ticks: 97255, resident_pages: 9240 };
        assert_eq!(Stat::parse(stat), Some(expect));
        assert_eq!(Stat::parse("1 (x) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn proportional_memory() {
        assert_eq!(
            pss_bytes("a\nRss: 38048 kB\nPss:   36354 kB\nPss_Dirty: 1 kB\n"),
            Some(36354 * 1024)
        );
        assert_eq!(pss_bytes("Pss: x kB"), None);
        assert!(proportional_bytes(std::process::id() as i32).is_ok_and(|bytes| bytes > 0));
    }

    #[test]
    fn this_process_is_itself_and_no_other() {
        let mark = ProcessMark::of(std::process::id() as i32).expect("own mark");
        assert!(mark.exists());
        assert!(!ProcessMark { start_ticks: mark.start_ticks + 1, ..mark }.exists());
        assert!(HostUsage::of(mark.pid).is_ok_and(|usage| usage.resident_bytes > 0));
    }
}
