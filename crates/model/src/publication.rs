//! A publication: a port of the nodes that leads to a machine or to a service's ready replicas.

use crate::machine::MachineId;
use crate::name::{ProjectName, ServiceName};
use crate::service::SpecError;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A protocol that can be published.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// As written in the API, the CLI and keys.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A text is not a transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be tcp or udp")]
pub struct TransportError;

impl std::str::FromStr for Transport {
    type Err = TransportError;
    fn from_str(text: &str) -> Result<Self, TransportError> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(TransportError),
        }
    }
}

/// Where a publication leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum PublishTarget {
    /// To one machine, as long as it is there.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    Machine(MachineId),
    /// To the ready replicas of a service. With none ready the first connection starts one, and waits for it.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    Service(ServiceName),
}

impl fmt::Display for PublishTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(id) => write!(f, "machine {id}"),
            Self::Service(name) => write!(f, "service {name}"),
        }
    }
}

/// Which of several machines takes a connection.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Affinity {
    /// The next one, in turn.
    #[default]
    None,
    /// For one client's address the same one, at whichever node it arrives, as long as that one is ready. A machine more or
    /// less among n moves about one client in n.
    Client,
}

impl Affinity {
    /// As written in the API and the CLI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Client => "client",
        }
    }
}

/// A text is not an affinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be none or client")]
pub struct AffinityError;

impl std::str::FromStr for Affinity {
    type Err = AffinityError;
    fn from_str(text: &str) -> Result<Self, AffinityError> {
        match text {
            "none" => Ok(Self::None),
            "client" => Ok(Self::Client),
            _ => Err(AffinityError),
        }
    }
}

/// What a publication is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PublicationSpec {
    /// Which protocol.
    #[serde(default)]
    pub protocol: Transport,
    /// The port of every node, 1 to 65,535; one publication may have it in the whole cloud.
    pub port: u16,
    /// Where it leads.
    pub target: PublishTarget,
    /// The port of the machines, 1 to 65,535.
    pub target_port: u16,
    /// Which of several machines takes a connection.
    #[serde(default)]
    pub affinity: Affinity,
}

impl PublicationSpec {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// Port 0.
    pub fn check(&self) -> Result<(), SpecError> {
        let wrong = |field| Err(SpecError { field, problem: "must be 1 to 65535".to_owned() });
        match (self.port, self.target_port) {
            (0, _) => wrong("port"),
            (_, 0) => wrong("target_port"),
            _ => Ok(()),
        }
    }
}

/// A publication as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationRecord {
    /// Owner.
    pub project: ProjectName,
    /// What it is.
    pub spec: PublicationSpec,
    /// When it was made.
    pub created_at: Timestamp,
}
