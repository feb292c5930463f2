//! The nouns of Skein: names, quantities, specifications, phases and events.
//!
//! This crate owns what the words of `docs/GLOSSARY.md` mean. It touches no clock, socket or file, starts no
//! task and depends on nothing but serde and the arithmetic of addresses: the live system, the planner and the tools all stand on it.
//! Types here are stored as they are (JSON); where the wire differs, `skein-api` has a type of its own.

mod address;
mod event;
mod image;
mod job;
mod machine;
mod name;
mod network;
mod node;
mod project;
mod publication;
mod rule;
mod scaling_rules;
mod service;
mod time;
mod units;
mod wire_key;

pub use address::{AddressError, AddressRange, MacAddr, Prefix6, Subnet};
pub use event::{Event, EventKind, EventSubject};
pub use image::{BlobId, BlobIdError, ImageManifest, ModuleRef};
pub use job::{
    BodyRef, Claim, DEADLINE_MAX, DeadLetterReason, INLINE_BODY_MAX, JobId, JobRecord, JobState,
    JobStateName, NewJob, PAYLOAD_MAX, RetryPolicy,
};
pub use machine::{
    ExitCause, Generation, MachineEvent, MachineGoal, MachineId, MachineIdError, MachinePhase,
    MachineRecord, MachineStatus, PhaseName, Refused,
};
pub use name::{GroupName, ImageName, NameError, NetworkName, NodeName, ProjectName, ServiceName};
pub use network::{
    ADDRESS_QUARANTINE, ADDRESSES_MAX, AddressRecord, Addressing, Attachment, Encryption, Exit,
    Limits, MTU_DEFAULT, MTU_MAX, MTU_MIN, NetworkKind, NetworkRecord, NetworkSpec,
    PORT_GROUPS_MAX, PortRecord, ROUTES_MAX, Route, VXLAN_OVERHEAD, Vni, VniError, WIRE_OVERHEAD,
    check_groups,
};
pub use node::{NodeRecord, NodeState, NodeStatus};
pub use project::{DESCRIPTION_MAX, HexIdError, ProjectRecord, TokenDigest, TokenId, TokenRecord};
pub use publication::{
    Affinity, AffinityError, PublicationRecord, PublicationSpec, PublishTarget, Transport,
    TransportError,
};
pub use rule::{
    Direction, GROUP_RULES_MAX, GroupRecord, Peer, PortRange, PortRangeError, Protocol, Rule,
    RuleId, RuleLog, RuleSpec, check_description,
};
pub use scaling_rules::{
    HpaBehaviour, HpaBy, HpaLimit, HpaMetric, HpaRule, HpaSelect, KpaRule, PredictiveRule,
};
pub use service::{
    Migration, Placement, QueuePolicy, Removal, ScalingPolicy, ScalingRule, ServiceRecord,
    ServiceSpec, SpecError, ThresholdScope,
};
pub use time::Timestamp;
pub use units::{CpuMilli, MemoryMib, UnitError};
pub use wire_key::{WireKey, WireKeyError};
