//! Whether this host can carry networks of machines, found out by trying.

use crate::error::NetError;
use crate::names::InterfaceName;
use crate::{netlink::Netlink, tap};
use futures_util::future::LocalBoxFuture;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;

/// Bits of `CapEff` in `/proc/PID/status` (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Why this host cannot carry networks of machines.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The process may not make namespaces and interfaces.
    #[error(
        "networks of machines need the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN: \
         run as root (sudo)"
    )]
    NotRoot,
    /// There is no tun/tap device.
    #[error(
        "/dev/net/tun is missing: load the module (modprobe tun), \
         or give the container the device (--device /dev/net/tun)"
    )]
    TunMissing,
    /// The device is there but must not be opened.
    #[error("/dev/net/tun cannot be opened: allow this user or container to read and write it")]
    TunDenied {
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel makes no network namespace.
    #[error(
        "the kernel makes no network namespace: it needs CONFIG_NET_NS, and a higher limit if \
         many exist (sysctl user.max_net_namespaces)"
    )]
    NamespaceMissing {
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel makes no bridge.
    #[error("the kernel makes no bridge: load the module (modprobe bridge)")]
    BridgeMissing {
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel does not show bridged packets to the rules of IP.
    #[error(
        "bridged packets pass no rules: load the module (modprobe br_netfilter); if the host has \
         bridges of its own, keep them out of it (sysctl net.bridge.bridge-nf-call-iptables=0)"
    )]
    BridgeFilterMissing,
    /// The kernel has one table of routes for all packets.
    #[error(
        "the kernel cannot choose between tables of routes: it needs CONFIG_IP_MULTIPLE_TABLES, which the kernels of \
         distributions have"
    )]
    RoutingRulesMissing,
    /// Nobody here encrypts.
    #[error(
        "traffic between nodes cannot be encrypted: the kernel has no WireGuard and wireguard-go is not \
         installed; load the module (modprobe wireguard) or install it (apt install wireguard-go)"
    )]
    WireguardMissing,
    /// Nodes that share this host do not understand each other's connections.
    #[error(
        "machines on different nodes of this host cannot hold connections through rules: that needs Linux 6.5; use one \
         node, or encrypt what nodes send each other, which gives each a namespace of its own (--encrypt)"
    )]
    SharedHostLimited,
    /// The trial failed in another way.
    #[error("trying out a network failed")]
    Trial {
        /// What failed.
        source: Box<NetError>,
    },
}

impl HostError {
    /// Stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotRoot => "NOT_ROOT",
            Self::TunMissing => "TUN_MISSING",
            Self::TunDenied { .. } => "TUN_DENIED",
            Self::NamespaceMissing { .. } => "NAMESPACE_MISSING",
            Self::BridgeMissing { .. } => "BRIDGE_MISSING",
            Self::BridgeFilterMissing => "BRIDGE_FILTER_MISSING",
            Self::RoutingRulesMissing => "ROUTING_RULES_MISSING",
            Self::WireguardMissing => "WIREGUARD_MISSING",
            Self::SharedHostLimited => "SHARED_HOST_LIMITED",
            Self::Trial { .. } => "HOST_TRIAL_FAILED",
        }
    }
}

/// Finds out whether networks of machines can be made here, by making one: a nameless namespace
/// with a bridge and a tap, which go at once. Leaves nothing behind. Blocks for some tens of
/// milliseconds.
///
/// # Errors
/// [`HostError`] with one sentence that says what to do.
pub fn check_host() -> Result<(), HostError> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    // Where /proc tells nothing, the trial does.
    if parse_capabilities(&status).is_some_and(|set| !may_make_networks(set)) {
        return Err(HostError::NotRoot);
    }
    open_tun()?;
    trial()
}

/// Finds out whether several nodes can share this host's network namespace without encrypting what they send each other.
/// Leaves nothing behind.
///
/// # Errors
/// [`HostError::SharedHostLimited`] if the kernel is too old, else those of [`check_host`].
pub fn check_shared_host() -> Result<(), HostError> {
    let tried = in_trial_namespace(|netlink| Box::pin(netlink.spares_local()))?;
    match tried {
        Ok(true) => Ok(()),
        Ok(false) => Err(HostError::SharedHostLimited),
        Err(source) => {
            let subject = "a tunnel".to_owned();
            let source = NetError::Netlink { action: "trying", subject, source };
            Err(HostError::Trial { source: Box::new(source) })
        }
    }
}

fn open_tun() -> Result<File, HostError> {
    let file = OpenOptions::new().read(true).write(true).open(tap::TUN_DEVICE);
    let file = file.map_err(|source| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV | Errno::ENXIO) => {
            HostError::TunMissing
        }
        _ => HostError::TunDenied { source },
    })?;
    // Containers put other things there.
    match file.metadata() {
        Ok(metadata) if metadata.rdev() == rustix::fs::makedev(10, 200) => Ok(file),
        Ok(_) | Err(_) => Err(HostError::TunMissing),
    }
}

/// Runs `work` in a nameless namespace, on a thread of its own, which takes the namespace along when it ends.
pub(crate) fn in_trial_namespace<T: Send>(
    work: impl for<'a> FnOnce(&'a Netlink) -> LocalBoxFuture<'a, io::Result<T>> + Send,
) -> Result<io::Result<T>, HostError> {
    let inside = || {
        enter_trial()?;
        let failed = |source| {
            let subject = "a runtime".to_owned();
            let source = NetError::Netlink { action: "starting", subject, source };
            HostError::Trial { source: Box::new(source) }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(failed).map(|runtime| {
            runtime.block_on(async {
                let netlink = Netlink::open()?;
                work(&netlink).await
            })
        })
    };
    let failed = |_| Err(HostError::Trial { source: Box::new(NetError::Closed) });
    std::thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(failed)
}

/// Leaves the calling thread in a nameless namespace.
fn enter_trial() -> Result<(), HostError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        Errno::EPERM => HostError::NotRoot,
        errno => HostError::NamespaceMissing { source: errno.into() },
    })
}

fn trial() -> Result<(), HostError> {
    let bridge = InterfaceName::bridge();
    let made = in_trial_namespace(move |netlink| {
        Box::pin(async move {
            netlink.create_bridge(&bridge, [2, 0, 0, 0, 0, 1]).await?;
            Ok(netlink.backs().await)
        })
    })?;
    let rules = made.map_err(|source| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => HostError::NotRoot,
        _ => HostError::BridgeMissing { source },
    })?;
    rules.map_err(without_rules)?;
    std::thread::scope(|scope| scope.spawn(try_tap).join())
        .unwrap_or_else(|_| Err(HostError::Trial { source: Box::new(NetError::Closed) }))
}

/// Why rules of routing cannot be listed. A kernel without them knows no such request, or none for IPv4.
fn without_rules(source: io::Error) -> HostError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => HostError::RoutingRulesMissing,
        _ => {
            let subject = "rules of routing".to_owned();
            let source = NetError::Netlink { action: "listing", subject, source };
            HostError::Trial { source: Box::new(source) }
        }
    }
}

/// On a thread of its own, which takes the namespace along when it ends.
fn try_tap() -> Result<(), HostError> {
    enter_trial()?;
    let failed = |source| HostError::Trial { source: Box::new(source) };
    let probe = InterfaceName::tap(
        &"trial".parse().map_err(|_| failed(NetError::Closed))?,
        [192, 0, 2, 1].into(),
    );
    match tap::create(&probe) {
        Ok(_) => Ok(()),
        Err(NetError::Host(error)) => Err(error),
        Err(error) => Err(failed(error)),
    }
}

/// The effective capabilities in the text of `/proc/PID/status`.
fn parse_capabilities(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

fn may_make_networks(set: u64) -> bool {
    [CAP_NET_ADMIN, CAP_SYS_ADMIN].iter().all(|bit| set >> bit & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(status: &str, expect: Option<bool>) {
        assert_eq!(parse_capabilities(status).map(may_make_networks), expect, "{status}");
    }

    #[test]
    fn reads_capabilities() {
        check("Name:\tx\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n", Some(true));
        check("CapEff:\t0000000000000000\n", Some(false));
        check("CapEff:\t0000000000001000\n", Some(false));
        check("CapEff:\t0000000000201000\n", Some(true));
        check("CapPrm:\t000001ffffffffff\n", None);
        check("CapEff:\tnone\n", None);
    }

    #[test]
    fn a_kernel_without_rules_of_routing_is_told_from_a_failure() {
        let code = |errno: Errno| without_rules(errno.into()).code();
        assert_eq!(code(Errno::EOPNOTSUPP), "ROUTING_RULES_MISSING");
        assert_eq!(code(Errno::EAFNOSUPPORT), "ROUTING_RULES_MISSING");
        assert_eq!(code(Errno::ENOBUFS), "HOST_TRIAL_FAILED");
    }

    proptest! {
        #[test]
        fn any_status_is_answered(text in "(CapEff:|[0-9a-f]|\\PC|\n|\t){0,60}") {
            let _ = parse_capabilities(&text);
        }
    }
}
