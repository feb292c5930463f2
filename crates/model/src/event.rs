//! History: one line for each thing that happened, written alike by the live system and the simulator.

use crate::job::JobId;
use crate::machine::MachineId;
use crate::name::{NodeName, ProjectName, ServiceName};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// One line of history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened.
    pub at: Timestamp,
    /// Whom it concerns.
    #[serde(flatten)]
    pub subject: EventSubject,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Whom an event concerns: as much of it as is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventSubject {
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// Node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    /// Job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum EventKind {
    /// A node's agent joined.
    NodeJoined,
    /// A node's agent left in order.
    NodeLeft,
    /// A node's lease ended.
    NodeLost,
    /// A node that is gone for good was taken out of the records.
    NodeRemoved,
    /// A project was created.
    ProjectCreated,
    /// What a project is was changed.
    ProjectChanged,
    /// A project was removed.
    ProjectRemoved,
    /// A network was created.
    NetworkCreated {
        /// Its name.
        network: String,
    },
    /// What a network is was changed.
    NetworkChanged {
        /// Which.
        network: String,
    },
    /// A network was removed.
    NetworkRemoved {
        /// Its name.
        network: String,
    },
    /// A network came to be on a node, for its first machine there.
    NetworkOpened {
        /// Its name.
        network: String,
    },
    /// A network went from a node, after its last machine there.
    NetworkClosed {
        /// Its name.
        network: String,
    },
    /// A group of firewall rules was created, changed or removed.
    FirewallChanged {
        /// The group's name.
        group: String,
        /// Rules it has now.
        rules: u32,
    },
    /// A connection was let through by a rule that is logged; of many, a few a second are told.
    ConnectionLogged {
        /// The rule's group.
        group: String,
        /// The rule.
        rule: String,
        /// Who opened it.
        source: String,
        /// To whom.
        destination: String,
        /// Number of the transport protocol: 6 is TCP, 17 UDP.
        protocol: u8,
        /// Destination port; 0 without.
        port: u16,
    },
    /// The groups or bounds of a machine's port were changed.
    PortChanged,
    /// A port of the nodes leads to a machine or service from now on.
    Published {
        /// Protocol and port, such as `tcp/8080`.
        port: String,
    },
    /// It leads there no more.
    Unpublished {
        /// Protocol and port.
        port: String,
    },
    /// A service was created.
    ServiceCreated,
    /// A service's specification changed.
    ServiceChanged {
        /// Its new version.
        generation: u64,
    },
    /// A service was removed.
    ServiceRemoved,
    /// The policy added a replica.
    Replicated {
        /// Why.
        reason: String,
    },
    /// The policy removed a replica.
    Dereplicated {
        /// Why.
        reason: String,
    },
    /// The policy moves a replica to another node: its copy starts there. The subject is the copy and its node.
    Migrating {
        /// The machine whose place the copy takes. In text it has a name of its own: `machine` is the subject's.
        #[serde(rename = "replaces")]
        machine: String,
        /// Where that one is.
        from: String,
        /// Why.
        reason: String,
    },
    /// A replica's copy serves, and the replica goes. The subject is the one that goes, and its node.
    Migrated {
        /// The copy. In text it has a name of its own: `machine` is the subject's.
        #[serde(rename = "copy")]
        machine: String,
        /// Why.
        reason: String,
    },
    /// The policy wanted a replica and could not have it.
    Unplaceable {
        /// Why.
        reason: String,
    },
    /// Something is sent over the network. Only simulated histories tell this: a live cloud does not see into its links.
    TransferBegan {
        /// Its number in the history.
        transfer: u64,
        /// `input` or `output` of a job, `code` or `state` of a replica.
        what: String,
        /// The nodes that it passes, both ends among them.
        route: Vec<String>,
        /// How much, KiB.
        kib: u64,
    },
    /// It is there.
    TransferEnded {
        /// Its number in the history.
        transfer: u64,
    },
    /// A machine's process was started.
    MachineLaunched,
    /// A machine listens.
    MachineReady {
        /// From launch to ready, microseconds, as its agent measured.
        start_us: u64,
        /// From kernel entry to listening, microseconds, as the guest measured.
        boot_us: u64,
    },
    /// A running machine was found again by a restarted agent.
    MachineAdopted,
    /// A machine takes no more work.
    MachineDraining,
    /// A machine ended.
    MachineGone {
        /// Stable code of the cause.
        code: String,
        /// The cause in words.
        message: String,
    },
    /// A job was accepted.
    JobAccepted,
    /// A job was refused because the queue was full.
    JobRefused {
        /// Length of the queue.
        depth: u32,
    },
    /// An attempt at a job began.
    JobStarted {
        /// Its number, from 1.
        attempt: u32,
    },
    /// A job's result was recorded.
    JobDone {
        /// Time in the queue, microseconds.
        queue_us: u64,
        /// Time in service, microseconds.
        service_us: u64,
    },
    /// An attempt failed and the job went back to the queue.
    JobReturned {
        /// Number of the attempt.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// A job was given up.
    JobDeadLettered {
        /// Stable code of the reason.
        code: String,
        /// The reason in words.
        message: String,
    },
    /// A job was withdrawn.
    JobCancelled,
}

impl EventKind {
    /// Whether it changes what runs or what there is to do: nodes, replicas, machines and jobs. The others tell of what people set
    /// up, and change nothing that a run is measured by or shown with.
    pub const fn changes_what_runs(&self) -> bool {
        match self {
            Self::NodeJoined
            | Self::NodeLeft
            | Self::NodeLost
            | Self::Replicated { .. }
            | Self::Dereplicated { .. }
            | Self::Migrating { .. }
            | Self::Migrated { .. }
            | Self::TransferBegan { .. }
            | Self::TransferEnded { .. }
            | Self::MachineLaunched
            | Self::MachineReady { .. }
            | Self::MachineAdopted
            | Self::MachineDraining
            | Self::MachineGone { .. }
            | Self::JobAccepted
            | Self::JobRefused { .. }
            | Self::JobStarted { .. }
            | Self::JobDone { .. }
            | Self::JobReturned { .. }
            | Self::JobDeadLettered { .. }
            | Self::JobCancelled => true,
            Self::NodeRemoved
            | Self::ProjectCreated
            | Self::ProjectChanged
            | Self::ProjectRemoved
            | Self::NetworkCreated { .. }
            | Self::NetworkRemoved { .. }
            | Self::NetworkChanged { .. }
            | Self::NetworkOpened { .. }
            | Self::NetworkClosed { .. }
            | Self::FirewallChanged { .. }
            | Self::ConnectionLogged { .. }
            | Self::PortChanged
            | Self::Published { .. }
            | Self::Unpublished { .. }
            | Self::ServiceCreated
            | Self::ServiceChanged { .. }
            | Self::ServiceRemoved
            | Self::Unplaceable { .. } => false,
        }
    }

    /// The word that stands for it in files and filters.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NodeJoined => "node_joined",
            Self::NodeLeft => "node_left",
            Self::NodeLost => "node_lost",
            Self::NodeRemoved => "node_removed",
            Self::ProjectCreated => "project_created",
            Self::ProjectChanged => "project_changed",
            Self::ProjectRemoved => "project_removed",
            Self::NetworkCreated { .. } => "network_created",
            Self::NetworkChanged { .. } => "network_changed",
            Self::NetworkRemoved { .. } => "network_removed",
            Self::NetworkOpened { .. } => "network_opened",
            Self::NetworkClosed { .. } => "network_closed",
            Self::FirewallChanged { .. } => "firewall_changed",
            Self::ConnectionLogged { .. } => "connection_logged",
            Self::PortChanged => "port_changed",
            Self::Published { .. } => "published",
            Self::Unpublished { .. } => "unpublished",
            Self::ServiceCreated => "service_created",
            Self::ServiceChanged { .. } => "service_changed",
            Self::ServiceRemoved => "service_removed",
            Self::Replicated { .. } => "replicated",
            Self::Dereplicated { .. } => "dereplicated",
            Self::Migrating { .. } => "migrating",
            Self::Migrated { .. } => "migrated",
            Self::Unplaceable { .. } => "unplaceable",
            Self::TransferBegan { .. } => "transfer_began",
            Self::TransferEnded { .. } => "transfer_ended",
            Self::MachineLaunched => "machine_launched",
            Self::MachineReady { .. } => "machine_ready",
            Self::MachineAdopted => "machine_adopted",
            Self::MachineDraining => "machine_draining",
            Self::MachineGone { .. } => "machine_gone",
            Self::JobAccepted => "job_accepted",
            Self::JobRefused { .. } => "job_refused",
            Self::JobStarted { .. } => "job_started",
            Self::JobDone { .. } => "job_done",
            Self::JobReturned { .. } => "job_returned",
            Self::JobDeadLettered { .. } => "job_dead_lettered",
            Self::JobCancelled => "job_cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_set_up_changes_nothing_that_runs() {
        assert!(EventKind::JobAccepted.changes_what_runs());
        assert!(EventKind::NodeLost.changes_what_runs());
        assert!(!EventKind::ServiceCreated.changes_what_runs());
        assert!(!EventKind::Unplaceable { reason: String::new() }.changes_what_runs());
    }

    #[test]
    fn a_move_names_two_machines_in_one_flat_object() {
        let (machine, reason) = ("search-2".to_owned(), "n1 is cordoned".to_owned());
        for kind in [
            EventKind::Migrating {
                machine: machine.clone(),
                from: "n1".to_owned(),
                reason: reason.clone(),
            },
            EventKind::Migrated { machine: machine.clone(), reason: reason.clone() },
        ] {
            let subject =
                EventSubject { machine: Some("search-1".parse().unwrap()), ..Default::default() };
            let event = Event { at: Timestamp::from_micros(7), subject, kind };
            // As text: there a second field of one name would not be seen before it is read.
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(text.matches("\"machine\"").count(), 1, "{text}");
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        }
    }

    #[test]
    fn an_event_is_one_flat_object_and_its_name_is_its_tag() {
        let event = Event {
            at: Timestamp::from_micros(7),
            subject: EventSubject { node: Some("n1".parse().unwrap()), ..Default::default() },
            kind: EventKind::JobDone { queue_us: 1, service_us: 2 },
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"at": 7, "node": "n1", "kind": "job_done", "queue_us": 1, "service_us": 2})
        );
        assert_eq!(json["kind"], event.kind.name());
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
    }
}
