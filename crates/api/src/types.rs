//! Wire types, and how the stored ones become them.

use jiff::Timestamp as Time;
use serde::{Deserialize, Serialize};
use skein_model::{
    Event, EventKind, ImageManifest, JobRecord, JobState, Limits, MachineGoal, MachinePhase,
    MachineRecord, MachineStatus, NodeRecord, NodeState, NodeStatus, ServiceSpec, Timestamp,
};

/// RFC 3339 in UTC with microseconds.
pub fn time_text(at: Timestamp) -> String {
    let micros = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
    Time::from_microsecond(micros).unwrap_or(Time::MAX).to_string()
}

/// What answers at this address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Version {
    /// Version of the server.
    pub version: String,
    /// Id of the cloud.
    pub cloud: String,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Whether machines may be placed on it.
    pub state: NodeState,
    /// Memory that machines may reserve, MiB.
    pub memory_mib: u64,
    /// Memory that machines have reserved, MiB.
    pub memory_reserved_mib: u64,
    /// Processor that machines may reserve, thousandths of a core.
    pub cpu_milli: u32,
    /// Processor that machines have reserved, thousandths of a core.
    pub cpu_reserved_milli: u32,
    /// Machines it may hold.
    pub machines_max: u32,
    /// Machines it holds.
    pub machines: u32,
    /// Jobs in service on it.
    pub in_service: u32,
    /// Share of the host's processors in use, 0 to 1, as measured.
    pub cpu_used: f64,
    /// Memory of the host in use, MiB, as measured.
    pub memory_used_mib: u64,
    /// How it runs machines: `kvm` or `tcg`.
    pub accel: String,
    /// Version of its VMM.
    pub vmm: String,
    /// Number, unlike those of the other nodes.
    pub number: u16,
    /// Where other nodes send what is for its machines.
    pub underlay: String,
    /// Its public key if it encrypts what it sends to other nodes (WireGuard).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire_key: Option<String>,
    /// Its address on the encrypted way between nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire_address: Option<String>,
    /// UDP port of its light protocol, at the same address; 0: it has none.
    pub light_port: u16,
    /// When it joined, RFC 3339.
    pub joined_at: String,
}

impl Node {
    /// From what is stored, what was reported last, and what is reserved: (memory MiB, cpu, machines).
    pub fn new(
        record: &NodeRecord,
        state: NodeState,
        status: Option<&NodeStatus>,
        reserved: (u64, u32, u32),
    ) -> Self {
        Self {
            name: record.name.to_string(),
            state,
            memory_mib: record.memory_mib,
            memory_reserved_mib: reserved.0,
            cpu_milli: record.cpu.0,
            cpu_reserved_milli: reserved.1,
            machines_max: record.machines_max,
            machines: reserved.2,
            in_service: status.map_or(0, |s| s.in_service),
            cpu_used: status.map_or(0.0, |s| s.cpu_used),
            memory_used_mib: status.map_or(0, |s| s.memory_used_mib),
            accel: record.accel.clone(),
            vmm: record.vmm.clone(),
            number: record.number,
            underlay: format!("{}:{}", record.underlay, record.vxlan_port),
            wire_key: record.wire_key.map(|key| key.to_string()),
            wire_address: record.wire_key.map(|_| record.wire_address().to_string()),
            light_port: record.light_port,
            joined_at: time_text(record.joined_at),
        }
    }
}

/// Where a blob's bytes can be found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BlobReply {
    /// SHA-256 of the bytes, hexadecimal.
    pub id: String,
    /// How many there are.
    pub bytes: u64,
}

/// What an image is made of, as uploaded: blobs first, then this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagePut {
    /// Blob of the unikernel, an ELF file with a PVH note.
    pub kernel: String,
    /// Data modules.
    #[serde(default)]
    pub modules: Vec<ImageModule>,
    /// Memory of a machine, MiB; 16 unless given.
    #[serde(default)]
    pub memory_mib: Option<u32>,
    /// Requests a machine serves at a time, 1 to 1,024; 1 unless given.
    #[serde(default)]
    pub capacity: Option<u32>,
    /// TCP port of its HTTP server; 80 unless given.
    #[serde(default)]
    pub port: Option<u16>,
}

/// A data module of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ImageModule {
    /// Path inside the machine.
    pub path: String,
    /// Its blob.
    pub blob: String,
    /// Its length; ignored in a request.
    #[serde(default)]
    pub bytes: u64,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Image {
    /// Name.
    pub name: String,
    /// Blob of the unikernel.
    pub kernel: String,
    /// Length of the unikernel, bytes.
    pub kernel_bytes: u64,
    /// Data modules.
    pub modules: Vec<ImageModule>,
    /// Memory of a machine, MiB.
    pub memory_mib: u32,
    /// Requests a machine serves at a time.
    pub capacity: u32,
    /// TCP port of its HTTP server.
    pub port: u16,
    /// When it was imported, RFC 3339.
    pub created_at: String,
}

impl From<&ImageManifest> for Image {
    fn from(image: &ImageManifest) -> Self {
        let module = |m: &skein_model::ModuleRef| ImageModule {
            path: m.path.clone(),
            blob: m.blob.to_string(),
            bytes: m.bytes,
        };
        Self {
            name: image.name.to_string(),
            kernel: image.kernel.to_string(),
            kernel_bytes: image.kernel_bytes,
            modules: image.modules.iter().map(module).collect(),
            memory_mib: image.memory.get(),
            capacity: image.capacity,
            port: image.port,
            created_at: time_text(image.created_at),
        }
    }
}

/// A service: what it is, and how it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Service {
    /// Owner.
    pub project: String,
    /// What it is.
    pub spec: ServiceSpec,
    /// Version of the specification.
    pub generation: u64,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// Jobs waiting.
    pub waiting: u32,
    /// Jobs in service.
    pub running: u32,
    /// Machines that serve.
    pub ready: u32,
    /// Machines that start.
    pub booting: u32,
    /// The policy's last decisions, newest first, at most 20.
    pub decisions: Vec<Decision>,
    /// Machines that are wanted and cannot be had now.
    pub hold: Option<Hold>,
    /// Since the server started.
    pub counters: ServiceCounters,
}

/// Machines that are wanted and cannot be had now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Hold {
    /// Stable code: CAPACITY_EXHAUSTED, STARTS_FAIL or IMAGE_UNKNOWN.
    pub code: String,
    /// How many.
    pub missing: u32,
    /// Why.
    pub reason: String,
}

/// One decision of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Decision {
    /// When, RFC 3339.
    pub at: String,
    /// Replicas there were.
    pub current: u32,
    /// Replicas wanted.
    pub wanted: u32,
    /// Why.
    pub reason: String,
}

/// What became of a service's jobs since the server started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServiceCounters {
    /// Accepted.
    pub accepted: u64,
    /// Refused: the queue was full.
    pub refused: u64,
    /// Served.
    pub done: u64,
    /// Given up.
    pub dead: u64,
    /// Given up because each machine died with it.
    pub lost: u64,
    /// Withdrawn.
    pub cancelled: u64,
    /// Attempts that went back to the queue.
    pub returned: u64,
    /// Replicas added.
    pub replications: u64,
    /// Replicas removed.
    pub dereplications: u64,
    /// Mean time in the queue of served jobs, milliseconds.
    pub queue_ms_mean: f64,
    /// Mean time in service of served jobs, milliseconds.
    pub service_ms_mean: f64,
}

/// How a service is to be scaled; absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScaleRequest {
    /// Never fewer machines than this.
    pub min: Option<u32>,
    /// Never more machines than this.
    pub max: Option<u32>,
    /// Idle machines kept ready.
    pub warm: Option<u32>,
}

/// A change of a service's ports, while its machines run; absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServicePatch {
    /// The groups whose rules hold for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// Bounds on what each of them sends and receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Machine {
    /// Id.
    pub id: String,
    /// Owner.
    pub project: String,
    /// The service whose replica it is.
    pub service: String,
    /// Where it runs.
    pub node: String,
    /// Where it stands: scheduled, booting, ready, draining, stopping or gone.
    pub state: skein_model::PhaseName,
    /// What is wanted of it.
    pub goal: MachineGoal,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Requests it serves at a time.
    pub capacity: u32,
    /// The network it is plugged in.
    pub network: String,
    /// Its address in its network.
    pub ip: Option<String>,
    /// TCP port of its HTTP server.
    pub port: u16,
    /// Processor time of its process, seconds.
    pub cpu_seconds: Option<f64>,
    /// Share of one core its process used lately, 0 to 1.
    pub cpu_used: Option<f64>,
    /// Resident memory of its process, MiB.
    pub memory_resident_mib: Option<f64>,
    /// Memory in use as the guest reports it, MiB.
    pub memory_guest_mib: Option<f64>,
    /// Jobs in service on it.
    pub in_service: u32,
    /// Requests it has served, as the guest reports.
    pub requests: Option<u64>,
    /// From kernel entry to listening, microseconds, as the guest measured.
    pub boot_us: Option<u64>,
    /// From launch to ready, microseconds, as the agent measured.
    pub start_us: Option<u64>,
    /// Why it was made.
    pub reason: String,
    /// How it ended, when it has.
    pub exit: Option<String>,
    /// When it was made, RFC 3339.
    pub created_at: String,
}

impl Machine {
    /// From what is wanted and what its agent last wrote; live figures are filled in by the server.
    pub fn new(record: &MachineRecord, status: Option<&MachineStatus>) -> Self {
        let phase = status.map_or(&MachinePhase::Scheduled, |s| &s.phase);
        let start_us = status.and_then(|s| Some(s.ready_at?.since(s.launched_at?)));
        Self {
            id: record.id.to_string(),
            project: record.project.to_string(),
            service: record.service.to_string(),
            node: record.node.to_string(),
            state: phase.name(),
            goal: record.goal,
            memory_mib: record.memory.get(),
            capacity: record.capacity,
            network: record.network.to_string(),
            ip: status.and_then(|s| s.address).map(|ip| ip.to_string()),
            port: record.image.port,
            cpu_seconds: None,
            cpu_used: None,
            memory_resident_mib: None,
            memory_guest_mib: None,
            in_service: 0,
            requests: None,
            boot_us: status.and_then(|s| s.boot_us),
            start_us: start_us.map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX)),
            reason: record.reason.clone(),
            exit: match phase {
                MachinePhase::Gone { cause, .. } => Some(cause.to_string()),
                _ => None,
            },
            created_at: time_text(record.created_at),
        }
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Job {
    /// Id.
    pub id: String,
    /// Owner.
    pub project: String,
    /// Who serves it.
    pub service: String,
    /// Where it stands: waiting, running, done, dead_letter or cancelled.
    pub state: skein_model::JobStateName,
    /// Attempts begun so far.
    pub attempts: u32,
    /// Attempts it may have.
    pub attempts_max: u32,
    /// When it was accepted, RFC 3339.
    pub submitted_at: String,
    /// When the present or last attempt began, RFC 3339.
    pub started_at: Option<String>,
    /// When it ended, RFC 3339.
    pub ended_at: Option<String>,
    /// Time in the queue until the last attempt, milliseconds.
    pub queue_ms: Option<f64>,
    /// Time in service in the last attempt, milliseconds.
    pub service_ms: Option<f64>,
    /// The machine that serves or served it.
    pub machine: Option<String>,
    /// That machine's node.
    pub node: Option<String>,
    /// HTTP status of the service's answer.
    pub status: Option<u16>,
    /// Length of the payload, bytes.
    pub payload_bytes: u64,
    /// Length of the result, bytes.
    pub result_bytes: Option<u64>,
    /// Media type of the result.
    pub result_type: Option<String>,
    /// Stable code of the reason for which it was given up.
    pub failure_code: Option<String>,
    /// What went wrong last, if anything did.
    pub failure: Option<String>,
    /// Sender's idempotency token.
    pub token: Option<String>,
    /// Not served after this time, RFC 3339.
    pub deadline: Option<String>,
}

impl From<&JobRecord> for Job {
    fn from(record: &JobRecord) -> Self {
        let claim = match &record.state {
            JobState::Running { claim } | JobState::Done { claim, .. } => Some(claim),
            JobState::Waiting { .. } | JobState::DeadLetter { .. } | JobState::Cancelled { .. } => {
                None
            }
        };
        let (status, result) = match &record.state {
            JobState::Done { status, result, .. } => (Some(*status), Some(result)),
            _ => (None, None),
        };
        let (failure_code, failure) = match &record.state {
            JobState::DeadLetter { reason, .. } => {
                (Some(reason.code().to_owned()), Some(reason.to_string()))
            }
            _ => (None, record.last_failure.clone()),
        };
        let ended = record.state.ended_at();
        let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
        Self {
            id: record.id.to_string(),
            project: record.project.to_string(),
            service: record.service.to_string(),
            state: record.state.name(),
            attempts: record.attempts,
            attempts_max: record.retry.attempts_max,
            submitted_at: time_text(record.submitted_at),
            started_at: claim.map(|c| time_text(c.at)),
            ended_at: ended.map(time_text),
            queue_ms: claim.map(|c| ms(c.at.since(record.submitted_at))),
            service_ms: claim.zip(ended).map(|(c, at)| ms(at.since(c.at))),
            machine: claim.map(|c| c.machine.to_string()),
            node: claim.map(|c| c.node.to_string()),
            status,
            payload_bytes: record.payload.bytes,
            result_bytes: result.map(|r| r.bytes),
            result_type: result.and_then(|r| r.content_type.clone()),
            failure_code,
            failure,
            token: record.token.clone(),
            deadline: record.deadline.map(time_text),
        }
    }
}

/// A page of jobs, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// Give this as `cursor` for the next page; absent on the last one.
    pub next: Option<String>,
}

/// One job of a batch: a line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchItem {
    /// The payload: a JSON string is sent as its text, any other value as JSON.
    #[schema(value_type = Object)]
    pub payload: serde_json::Value,
    /// Idempotency token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Path of the request to the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Not served later than this many milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BatchReply {
    /// How many were accepted.
    pub accepted: u32,
    /// How many were refused.
    pub refused: u32,
    /// One result for each line, in order.
    pub results: Vec<BatchResult>,
}

/// What became of one job of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BatchResult {
    /// Its id, when it was accepted.
    pub id: Option<String>,
    /// Why it was refused, when it was.
    pub error: Option<crate::error::ErrorDetail>,
}

/// One line of history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventLine {
    /// Number of the line; grows.
    pub seq: u64,
    /// When, RFC 3339.
    pub time: String,
    /// Owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub event: EventKind,
}

impl EventLine {
    /// A stored event and its number.
    pub fn new(seq: u64, event: Event) -> Self {
        let subject = event.subject;
        Self {
            seq,
            time: time_text(event.at),
            project: subject.project.map(String::from),
            service: subject.service.map(String::from),
            node: subject.node.map(String::from),
            machine: subject.machine.map(String::from),
            job: subject.job.map(String::from),
            event: event.kind,
        }
    }
}

/// A page of history, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventPage {
    /// The lines.
    pub events: Vec<EventLine>,
    /// Give this as `since` to go on after the last line.
    pub next: u64,
    /// Number of the oldest line still kept.
    pub oldest: u64,
}
