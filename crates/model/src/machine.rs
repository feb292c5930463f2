//! A machine: what it shall be (written by the leader), and what it is (written by its node's agent).
//!
//! ```text
//!  Scheduled ──launched──▶ Booting ──ready──▶ Ready ──drain──▶ Draining
//!      │                      │                 │                 │ drained
//!      │ stop                 │ stop, deadline  │ stop            ▼
//!      │                      └─────────────────┴──────────▶ Stopping
//!      │                                                          │
//!      └──────────────── exited, from every phase ───────────▶ Gone   (terminal)
//! ```

use crate::image::ImageManifest;
use crate::name::{NetworkName, NodeName, ProjectName, ServiceName};
use crate::network::Addressing;
use crate::time::Timestamp;
use crate::units::MemoryMib;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A machine's id: 1 to 32 characters of a-z, 0-9 and '-'; a process name, host name and file name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(Box<str>);

impl MachineId {
    /// `SERVICE-xxxxxxxx`: the beginning of the service's name and 40 bits of `random` in base 32.
    pub fn new(service: &ServiceName, random: u64) -> Self {
        const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let stem = &service.as_str()[..service.as_str().len().min(23)];
        let digits = (0..8).map(|i| char::from(DIGITS[(random >> (5 * i)) as usize & 31]));
        let id: String = stem.chars().chain(['-']).chain(digits).collect();
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text is not a machine id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a machine id: 1 to 32 characters of a-z, 0-9 and '-', beginning with a letter")]
pub struct MachineIdError;

impl FromStr for MachineId {
    type Err = MachineIdError;
    fn from_str(text: &str) -> Result<Self, MachineIdError> {
        if text.len() <= 32 && crate::name::is_label(text) {
            Ok(Self(text.into()))
        } else {
            Err(MachineIdError)
        }
    }
}

impl TryFrom<String> for MachineId {
    type Error = MachineIdError;
    fn try_from(text: String) -> Result<Self, MachineIdError> {
        text.parse()
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> String {
        id.0.into()
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Version of what is wanted; grows with each change. A receiver refuses an older one than it has seen.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// What a machine shall be. Written by the leader only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Its id; never used again.
    pub id: MachineId,
    /// Owner.
    pub project: ProjectName,
    /// The service whose replica it is.
    pub service: ServiceName,
    /// Where it runs.
    pub node: NodeName,
    /// Version of this record.
    pub generation: Generation,
    /// What it boots: a copy, so that a changed image does not change a machine.
    pub image: ImageManifest,
    /// Its memory.
    pub memory: MemoryMib,
    /// Processor reserved for it, thousandths of a core.
    pub cpu_milli: u32,
    /// Requests it serves at a time, 1 to 1,024.
    pub capacity: u32,
    /// Parameters the service reads (`env.KEY=VALUE` of the guest ABI).
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// The network it is plugged in; its port has the addresses.
    #[serde(default)]
    pub network: NetworkName,
    /// How it learns its address.
    #[serde(default)]
    pub addressing: Addressing,
    /// What is wanted of it.
    pub goal: MachineGoal,
    /// Why it was made, in the policy's words.
    pub reason: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What is wanted of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum MachineGoal {
    /// Run and serve.
    Run,
    /// Take no more work, finish what is in service, then go.
    Drain,
    /// Go now: it may answer what it serves within the grace of a stop, then it ends in order, then hard.
    Stop,
}

/// What a machine is. Written by its node's agent only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Which machine.
    pub id: MachineId,
    /// Version of the record that the agent last acted on.
    pub generation: Generation,
    /// Where it stands.
    pub phase: MachinePhase,
    /// Its address in its network, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// TCP port of its HTTP server.
    pub port: u16,
    /// When its process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launched_at: Option<Timestamp>,
    /// When it first served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Timestamp>,
    /// The guest's own figure: microseconds from kernel entry to listening.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_us: Option<u64>,
}

/// Where a machine stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum MachinePhase {
    /// Assigned; its agent has not started it yet.
    Scheduled,
    /// Its process runs; it must be ready before the deadline.
    Booting {
        /// Ready by then, or stopped.
        deadline: Timestamp,
    },
    /// Listening: takes work.
    Ready {
        /// Since when.
        since: Timestamp,
    },
    /// Takes no more work, finishes what it has.
    Draining {
        /// Since when.
        since: Timestamp,
    },
    /// Asked to go; killed after the deadline.
    Stopping {
        /// Killed then.
        deadline: Timestamp,
    },
    /// Ended.
    Gone {
        /// How it ended.
        cause: ExitCause,
        /// When.
        at: Timestamp,
    },
}

/// A [`MachinePhase`] without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum PhaseName {
    /// Assigned.
    Scheduled,
    /// Starting.
    Booting,
    /// Serving.
    Ready,
    /// Finishing.
    Draining,
    /// Ending.
    Stopping,
    /// Ended.
    Gone,
}

impl PhaseName {
    /// As written in the API, the CLI and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Gone => "gone",
        }
    }
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ExitCause {
    /// Orderly, as asked.
    Stopped,
    /// The guest panicked.
    Panicked {
        /// Place and message, from its log.
        message: String,
    },
    /// The guest could not start (no address, no device, module malformed).
    CannotStart {
        /// Reason, from its log.
        message: String,
    },
    /// The guest ran out of memory.
    OutOfMemory,
    /// The guest met a processor exception.
    Exception {
        /// Registers, from its log.
        message: String,
    },
    /// Its process was killed by a signal that the agent did not send.
    Killed {
        /// Signal number; 0 when unknown, as of a process adopted after a restart.
        signal: i32,
    },
    /// It was not ready in time.
    BootTimeout,
    /// It did not finish a job in time, and was killed.
    Hung,
    /// The VMM could not run it.
    VmmFailed {
        /// What it said.
        message: String,
    },
    /// The node was lost, or the process was gone when the agent came back: nobody saw how it ended.
    Lost,
}

impl ExitCause {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Panicked { .. } => "GUEST_PANIC",
            Self::CannotStart { .. } => "GUEST_CANNOT_START",
            Self::OutOfMemory => "GUEST_OUT_OF_MEMORY",
            Self::Exception { .. } => "GUEST_EXCEPTION",
            Self::Killed { .. } => "MACHINE_KILLED",
            Self::BootTimeout => "BOOT_TIMEOUT",
            Self::Hung => "MACHINE_HUNG",
            Self::VmmFailed { .. } => "VMM_FAILED",
            Self::Lost => "MACHINE_LOST",
        }
    }

    /// Whether it ended as it was asked to.
    pub const fn is_orderly(&self) -> bool {
        matches!(self, Self::Stopped)
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped"),
            Self::Panicked { message } => write!(f, "guest panic: {message}"),
            Self::CannotStart { message } => write!(f, "guest cannot start: {message}"),
            Self::OutOfMemory => f.write_str("guest out of memory"),
            Self::Exception { message } => write!(f, "processor exception: {message}"),
            Self::Killed { signal: 0 } => f.write_str("killed"),
            Self::Killed { signal } => write!(f, "killed by signal {signal}"),
            Self::BootTimeout => f.write_str("not ready in time"),
            Self::Hung => f.write_str("did not finish a job in time"),
            Self::VmmFailed { message } => write!(f, "the VMM failed: {message}"),
            Self::Lost => f.write_str("lost"),
        }
    }
}

/// What happens to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// Its process was started.
    Launched {
        /// Ready by then, or stopped.
        ready_by: Timestamp,
    },
    /// It listens.
    BecameReady,
    /// It shall take no more work.
    DrainAsked,
    /// Nothing is in service any more, or it shall go at once.
    StopAsked {
        /// Killed then.
        kill_at: Timestamp,
    },
    /// Its process ended, or never came to be.
    Exited {
        /// How.
        cause: ExitCause,
    },
}

/// An event that has no meaning in a phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a machine that is {} cannot take {event:?}", phase.as_str())]
pub struct Refused {
    /// The phase it is in.
    pub phase: PhaseName,
    /// What was refused.
    pub event: MachineEvent,
}

impl MachinePhase {
    /// Its name.
    pub const fn name(&self) -> PhaseName {
        match self {
            Self::Scheduled => PhaseName::Scheduled,
            Self::Booting { .. } => PhaseName::Booting,
            Self::Ready { .. } => PhaseName::Ready,
            Self::Draining { .. } => PhaseName::Draining,
            Self::Stopping { .. } => PhaseName::Stopping,
            Self::Gone { .. } => PhaseName::Gone,
        }
    }

    /// Total: every (phase, event) pair has an answer, and a refusal is a value.
    ///
    /// # Errors
    /// [`Refused`] when the event has no meaning in this phase; the phase then stays as it was.
    pub fn on(&self, event: MachineEvent, now: Timestamp) -> Result<Self, Refused> {
        use MachineEvent as E;
        let refused = |event| Err(Refused { phase: self.name(), event });
        match (self, event) {
            (Self::Gone { .. }, event) => refused(event),
            (
                Self::Scheduled
                | Self::Booting { .. }
                | Self::Ready { .. }
                | Self::Draining { .. }
                | Self::Stopping { .. },
                E::Exited { cause },
            ) => Ok(Self::Gone { cause, at: now }),
            (Self::Scheduled, E::Launched { ready_by }) => Ok(Self::Booting { deadline: ready_by }),
            (Self::Booting { .. }, E::BecameReady) => Ok(Self::Ready { since: now }),
            (Self::Ready { .. }, E::DrainAsked) => Ok(Self::Draining { since: now }),
            (Self::Draining { since }, E::DrainAsked) => Ok(Self::Draining { since: *since }),
            (
                Self::Booting { .. } | Self::Ready { .. } | Self::Draining { .. },
                E::StopAsked { kill_at },
            ) => Ok(Self::Stopping { deadline: kill_at }),
            (Self::Stopping { deadline }, E::StopAsked { kill_at }) => {
                Ok(Self::Stopping { deadline: (*deadline).min(kill_at) })
            }
            (
                Self::Booting { .. }
                | Self::Ready { .. }
                | Self::Draining { .. }
                | Self::Stopping { .. },
                event @ E::Launched { .. },
            ) => refused(event),
            (Self::Scheduled, event @ (E::BecameReady | E::DrainAsked | E::StopAsked { .. })) => {
                refused(event)
            }
            (Self::Booting { .. }, event @ E::DrainAsked) => refused(event),
            (
                Self::Ready { .. } | Self::Draining { .. } | Self::Stopping { .. },
                event @ E::BecameReady,
            ) => refused(event),
            (Self::Stopping { .. }, event @ E::DrainAsked) => refused(event),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_event() -> impl Strategy<Value = MachineEvent> {
        prop_oneof![
            Just(MachineEvent::Launched { ready_by: Timestamp::from_micros(9) }),
            Just(MachineEvent::BecameReady),
            Just(MachineEvent::DrainAsked),
            (0u64..100)
                .prop_map(|at| MachineEvent::StopAsked { kill_at: Timestamp::from_micros(at) }),
            Just(MachineEvent::Exited { cause: ExitCause::Stopped }),
        ]
    }

    proptest! {
        #[test]
        fn gone_is_terminal_and_ready_comes_once(events in proptest::collection::vec(any_event(), 0..20)) {
            let mut phase = MachinePhase::Scheduled;
            let mut ready = 0;
            for event in events {
                let before = phase.clone();
                match phase.on(event, Timestamp::from_micros(1)) {
                    Ok(next) => {
                        prop_assert!(before.name() <= next.name(), "phases only move forward");
                        if next.name() == PhaseName::Ready && before.name() != PhaseName::Ready {
                            ready += 1;
                        }
                        phase = next;
                    }
                    Err(refused) => prop_assert_eq!(refused.phase, before.name()),
                }
            }
            prop_assert!(ready <= 1);
        }
    }

    #[test]
    fn ids_are_labels_of_at_most_32_bytes() {
        let long: ServiceName = "a".repeat(63).parse().unwrap();
        for service in [long, "x".parse().unwrap()] {
            let id = MachineId::new(&service, u64::MAX);
            assert_eq!(id.as_str().parse(), Ok(id.clone()));
        }
        assert!("Search-1".parse::<MachineId>().is_err());
        assert!("a/b".parse::<MachineId>().is_err());
    }

    #[test]
    fn a_later_stop_never_postpones_the_kill() {
        let at = |micros| Timestamp::from_micros(micros);
        let stopping = MachinePhase::Stopping { deadline: at(5) };
        let event = MachineEvent::StopAsked { kill_at: at(9) };
        assert_eq!(stopping.on(event, at(1)), Ok(stopping.clone()));
    }
}
