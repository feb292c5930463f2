//! What this host offers, and whether it can run a cloud at all.

use std::fs;

/// Machines run as user ids from here on: far above those of people and distributions (61,184 to 65,519 belong to
/// systemd's dynamic users), below the 2^31 that some tools cannot print.
pub(crate) const UID_BASE: u32 = 700_000;
/// User ids of one node: as many as a /22 has addresses.
pub(crate) const UIDS_PER_NODE: u32 = 1024;

/// Why no cloud can run here: one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HostProblem {
    /// Namespaces or taps are not to be had.
    #[error("{source}")]
    Network {
        /// What is missing.
        #[from]
        source: skein_net::HostError,
    },
    /// QEMU is not to be had.
    #[error("{source}")]
    Vmm {
        /// What is missing.
        #[from]
        source: skein_vmm::OpenError,
    },
}

/// What this host offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFigures {
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Cores this process may use.
    pub cores: u32,
}

impl HostFigures {
    /// Reads them. A limit of a control group counts, where one is set.
    pub fn read() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = text.lines().find_map(|line| {
            let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
            kib.trim().parse::<u64>().ok()
        });
        let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
            .iter()
            .find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
        let total = total.unwrap_or(1024 * 1024) / 1024;
        let memory_mib = limit.map_or(total, |bytes| total.min(bytes / (1024 * 1024)));
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Self { memory_mib, cores }
    }
}

/// Checks that namespaces and taps can be made.
///
/// # Errors
/// [`HostProblem`]: root, `/dev/net/tun`, or the kernel's support is missing.
pub fn check_host() -> Result<(), HostProblem> {
    skein_net::check_host()?;
    Ok(())
}

/// Whether this process may run others as the user ids of `nodes` nodes: in a container with few ids it may not.
pub(crate) fn may_change_users(nodes: u32) -> bool {
    let last = u64::from(UID_BASE) + u64::from(UIDS_PER_NODE) * u64::from(nodes);
    let covers = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| {
            let fields: Vec<u64> = line.split_whitespace().filter_map(|f| f.parse().ok()).collect();
            matches!(fields[..], [inside, _, count]
                if inside <= u64::from(UID_BASE) && last <= inside + count)
        })
    };
    rustix::process::geteuid().is_root()
        && covers("/proc/self/uid_map")
        && covers("/proc/self/gid_map")
}
