//! The nouns of Skein: names, quantities, specifications, phases and events.
//!
//! This crate owns what the words of `docs/GLOSSARY.md` mean. It touches no clock, socket or file, starts no
//! task and depends on nothing but serde: the live system, the planner and the tools all stand on it.
//! Types here are stored as they are (JSON); where the wire differs, `skein-api` has a type of its own.

mod event;
mod image;
mod job;
mod machine;
mod name;
mod node;
mod rules;
mod service;
mod time;
mod units;

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
pub use name::{ImageName, NameError, NodeName, ProjectName, ServiceName};
pub use node::{NodeRecord, NodeState, NodeStatus};
pub use rules::{
    HpaBehaviour, HpaBy, HpaLimit, HpaMetric, HpaRule, HpaSelect, KpaRule, PredictiveRule,
};
pub use service::{
    Placement, QueuePolicy, Removal, ScalingPolicy, ScalingRule, ServiceRecord, ServiceSpec,
    SpecError, ThresholdScope,
};
pub use time::Timestamp;
pub use units::{CpuMilli, MemoryMib, UnitError};
