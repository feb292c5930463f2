//! What an agent is told about its node.

use camino::Utf8PathBuf;
use skein_model::{CpuMilli, Encryption, NodeName};
use skein_net::{NetworkName, Underlay};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What an agent is told about its node.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Name of the node.
    pub name: NodeName,
    /// Folder of its own, for the run directories of machines. Short: sockets live below it.
    pub dir: Utf8PathBuf,
    /// Memory that machines may reserve, MiB.
    pub memory_mib: u64,
    /// Processor that machines may reserve.
    pub cpu: CpuMilli,
    /// Machines it may hold, at most 1,000: a bridge has 1,023 ports.
    pub machines_max: u32,
    /// Relative speed of one core; 1.0 is the reference.
    pub performance: f64,
    /// Name and version of its VMM, for people.
    pub vmm: String,
    /// What the names of its networks on the host begin with: unlike those of any other node on it.
    pub network: NetworkName,
    /// Its number, and where other nodes send what is for its machines.
    pub underlay: Underlay,
    /// Whether it encrypts what it sends to other nodes. Its secret is in `wire.key` of its folder, made at its first start.
    pub encryption: Encryption,
    /// The network namespace of the host that its underlay address is in; none: this process's.
    pub namespace: Option<PathBuf>,
    /// The link for programs of the host; none: this node has none.
    pub link: Option<LinkConfig>,
    /// Machines run as this user id or one of the `machines_max` that follow; none: as the agent's own user.
    pub uid_base: Option<u32>,
    /// Machines started at the same time. More only take longer each: as many as cores, and one to wait for disks.
    pub launches_max: usize,
    /// A machine that is not ready after this long is ended.
    pub boot_timeout: Duration,
    /// How long a machine that is stopped may take to answer the jobs it serves, and then to end in order.
    pub stop_grace: Duration,
    /// How long the agent may be silent before its jobs fall back and its machines count as lost.
    pub lease: Duration,
}

/// What an agent is told about the link.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Folder of the sockets on which programs ask for it; made if absent. Several agents may be told the same one: each project of a
    /// network namespace is served by one of them.
    pub folder: Utf8PathBuf,
    /// Where its light protocol listens, for other nodes: the underlay address and a port; none: it reaches no other nodes.
    pub light: Option<SocketAddr>,
}

/// A value of the configuration that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct ConfigError {
    /// Which value.
    pub field: &'static str,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl AgentConfig {
    /// The file of its secret, if it encrypts.
    pub(crate) fn wire_key(&self) -> Option<PathBuf> {
        match self.encryption {
            Encryption::Off => None,
            Encryption::WireGuard => Some(self.dir.join("wire.key").into()),
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first value that cannot be.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, problem: String| Err(ConfigError { field, problem });
        if self.machines_max == 0 || self.machines_max > 1000 {
            return wrong("machines_max", format!("is {}: must be 1 to 1,000", self.machines_max));
        }
        if self.launches_max == 0 {
            return wrong("launches_max", "must be at least 1".into());
        }
        if self.lease < Duration::from_secs(1) {
            return wrong("lease", "must be at least a second".into());
        }
        Ok(())
    }
}
