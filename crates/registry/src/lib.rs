//! The records that server and agents share, and what they say to each other.
//!
//! Owns the keys under which projects, networks, services, images, machines, their statuses and nodes are stored, the mirror that each
//! component keeps of them, the sink of events, and the messages on the bus. One writer per record: the
//! leader writes machines, an agent writes the status of its machines and its own node.
//!
//! | key | value | writer |
//! | --- | --- | --- |
//! | `r/project/NAME` | `ProjectRecord` | server |
//! | `r/token/DIGEST` | `TokenRecord` | server |
//! | `r/network/PROJECT/NAME` | `NetworkRecord` | server |
//! | `r/group/PROJECT/NAME` | `GroupRecord` | server |
//! | `r/publication/PROTOCOL/PORT` | `PublicationRecord` | server |
//! | `r/port/MACHINE` | `PortRecord` | leader; groups and limits: server |
//! | `r/address/VNI/ADDRESS` | `AddressRecord` | leader |
//! | `r/service/PROJECT/NAME` | `ServiceRecord` | server |
//! | `r/image/PROJECT/NAME` | `ImageManifest` | server |
//! | `r/machine/ID` | `MachineRecord` | leader |
//! | `r/status/ID` | `MachineStatus` | the node's agent |
//! | `r/node/NAME` | `NodeRecord` | the node's agent |
//! | `r/alive/NAME` | `Alive`, under the agent's lease | the node's agent |
//! | `r/cordon/NAME` | empty | server |

mod events;
mod keys;
mod messages;
mod mirror;
mod network;

pub use events::{EVENT_SUBJECT, EventSink};
pub use keys::{RECORDS, RecordKey};
pub use messages::{
    AgentError, AgentReply, AgentRequest, Demand, LinkConnection, LinkFigures, MachineFigures,
    NodeReport, RuleFigures, ServiceDemand, TraceAnswer, TraceStep, agent_subject,
    capture_input_subject, capture_subject, console_input_subject, console_output_subject,
    demand_pattern, demand_subject, report_pattern, report_subject,
};
pub use mirror::{Alive, Mirror, RegistryError, Stored, View};
pub use network::{backends, exit_of, groups_of, is_ready, network_of, network_with};
