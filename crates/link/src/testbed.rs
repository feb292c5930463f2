//! Two hosts on one machine, for tests and benches: network namespaces joined by a pair of virtual interfaces.
//!
//! ```text
//!  namespace a: sk0, 10.77.0.1 ═══ veth (limit, loss, MTU) ═══ namespace b: sk0, 10.77.0.2
//!               skv, 10.78.0.1 ---------- VXLAN ------------              skv, 10.78.0.2
//! ```
//!
//! Needs root and the programs `ip`, `tc` and `nft`. Everything goes when the value is dropped, and is named after this
//! process, so that what a killed one left can be told and removed.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

/// The interface of each host.
pub const INTERFACE: &str = "sk0";

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The first.
    A,
    /// The second.
    B,
}

impl Host {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// Its address on the wire.
    pub const fn address(self) -> Ipv4Addr {
        match self {
            Self::A => Ipv4Addr::new(10, 77, 0, 1),
            Self::B => Ipv4Addr::new(10, 77, 0, 2),
        }
    }

    /// Its address within VXLAN.
    pub const fn overlay_address(self) -> Ipv4Addr {
        match self {
            Self::A => Ipv4Addr::new(10, 78, 0, 1),
            Self::B => Ipv4Addr::new(10, 78, 0, 2),
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    const fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }
}

/// Two hosts and the wire between them.
#[derive(Debug)]
pub struct Testbed {
    name: String,
}

/// Numbers the testbeds of this process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Testbed {
    /// Makes the hosts, joined by an unlimited wire with an MTU of 1500.
    ///
    /// # Errors
    /// Not root, or a program is missing.
    pub fn new() -> io::Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let bed = Self { name: format!("skl{}-{number}", std::process::id()) };
        let [a, b] = [bed.namespace(Host::A), bed.namespace(Host::B)];
        run(&format!("ip netns add {a}"))?;
        run(&format!("ip netns add {b}"))?;
        run(&format!(
            "ip link add {INTERFACE} netns {a} type veth peer name {INTERFACE} netns {b}"
        ))?;
        for host in Host::BOTH {
            bed.run(host, "ip link set lo up")?;
            // Router solicitations would be traffic that nobody asked for.
            bed.run(host, &format!("ip link set {INTERFACE} addrgenmode none"))?;
            let address = host.address();
            bed.run(host, &format!("ip address add {address}/24 dev {INTERFACE}"))?;
            bed.run(host, &format!("ip link set {INTERFACE} up"))?;
        }
        Ok(bed)
    }

    /// The name of a host's namespace, for `ip netns exec`.
    pub fn namespace(&self, host: Host) -> String {
        format!("{}{}", self.name, host.letter())
    }

    /// Runs a program on a host.
    ///
    /// # Errors
    /// It cannot be started, or fails; the error holds what it said.
    pub fn run(&self, host: Host, command: &str) -> io::Result<()> {
        run(&format!("ip netns exec {} {command}", self.namespace(host)))
    }

    /// Limits both directions to `megabits` per second, counted from the Ethernet header to the end of the payload. The
    /// bucket holds `burst` bytes, the queue 256 KiB.
    ///
    /// # Errors
    /// `tc` fails.
    pub fn limit(&self, megabits: u32, burst: u32) -> io::Result<()> {
        for host in Host::BOTH {
            let command = format!(
                "tc qdisc replace dev {INTERFACE} root tbf rate {megabits}mbit burst {burst} limit 262144"
            );
            self.run(host, &command)?;
        }
        Ok(())
    }

    /// Takes the limit away.
    ///
    /// # Errors
    /// `tc` fails.
    pub fn unlimit(&self) -> io::Result<()> {
        Host::BOTH
            .into_iter()
            .try_for_each(|host| self.run(host, &format!("tc qdisc del dev {INTERFACE} root")))
    }

    /// Drops one frame in `one_in` at random, in both directions, where it arrives.
    ///
    /// # Errors
    /// `nft` fails.
    pub fn lose(&self, one_in: u32) -> io::Result<()> {
        for host in Host::BOTH {
            for command in [
                "nft add table netdev wire".to_owned(),
                format!(
                    "nft add chain netdev wire in {{ type filter hook ingress device {INTERFACE} priority 0; }}"
                ),
                format!("nft add rule netdev wire in numgen random mod {one_in} == 0 drop"),
            ] {
                self.run(host, &command)?;
            }
        }
        Ok(())
    }

    /// Stops losing.
    ///
    /// # Errors
    /// `nft` fails.
    pub fn heal(&self) -> io::Result<()> {
        Host::BOTH.into_iter().try_for_each(|host| self.run(host, "nft delete table netdev wire"))
    }

    /// What the frames of both hosts' interfaces hold from now on, bytes.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn set_mtu(&self, bytes: u32) -> io::Result<()> {
        let set = |host| self.run(host, &format!("ip link set {INTERFACE} mtu {bytes}"));
        Host::BOTH.into_iter().try_for_each(set)
    }

    /// Plugs the wire in or out.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn plug(&self, is_in: bool) -> io::Result<()> {
        let state = if is_in { "up" } else { "down" };
        self.run(Host::B, &format!("ip link set {INTERFACE} {state}"))
    }

    /// Puts a VXLAN between the hosts, over the same wire.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn overlay(&self) -> io::Result<()> {
        for host in Host::BOTH {
            let (local, remote) = (host.address(), host.other().address());
            let command = format!(
                "ip link add skv type vxlan id 77 local {local} remote {remote} dstport 4789 dev {INTERFACE}"
            );
            self.run(host, &command)?;
            let address = host.overlay_address();
            self.run(host, &format!("ip address add {address}/24 dev skv"))?;
            self.run(host, "ip link set skv up")?;
        }
        Ok(())
    }

    /// Runs `body` on a thread of its own that lives on a host: its sockets are the host's.
    ///
    /// # Errors
    /// The namespace cannot be opened or the thread not started.
    pub fn spawn<T: Send + 'static>(
        &self,
        host: Host,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<io::Result<T>>> {
        let namespace = File::open(format!("/run/netns/{}", self.namespace(host)))?;
        std::thread::Builder::new().name(format!("host-{}", host.letter())).spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(body())
        })
    }

    /// The same, waiting for its end.
    ///
    /// # Errors
    /// As [`Testbed::spawn`], or `body` panicked.
    pub fn on<T: Send + 'static>(
        &self,
        host: Host,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        self.spawn(host, body)?.join().map_err(|_| io::Error::other("a host's thread panicked"))?
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        for host in Host::BOTH {
            // There is nobody to tell, and what was never made cannot be removed.
            let _ = run(&format!("ip netns del {}", self.namespace(host)));
        }
    }
}

fn run(command: &str) -> io::Result<()> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command}: {}", said.trim())))
}
