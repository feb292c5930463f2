//! Questions to the nodes' agents.

use crate::app::App;
use crate::error::{Answer, Failure};
use skein_api::Code;
use skein_fabric::Message;
use skein_model::NodeName;
use skein_registry::{AgentError, AgentReply, AgentRequest, agent_subject};
use std::time::Duration;

/// An agent on a busy host answers within a second; this is far beyond.
const AGENT_DEADLINE: Duration = Duration::from_secs(10);

/// Asks the agent of a node, and waits for its answer.
pub(crate) async fn ask(app: &App, node: &NodeName, request: &AgentRequest) -> Answer<AgentReply> {
    let json = serde_json::to_vec(request)
        .map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    let message = Message::new(agent_subject(node), json);
    let reply = app.bus.request(message, AGENT_DEADLINE).await?;
    let reply = serde_json::from_slice(&reply.payload).map_err(|error| {
        Failure::new(Code::NodeUnreachable, format!("the agent's answer: {error}"))
    })?;
    match reply {
        AgentReply::Failed { error } => Err(refused(node, request, error)),
        AgentReply::Log { .. }
        | AgentReply::Opened
        | AgentReply::Trace { .. }
        | AgentReply::Renewed { .. }
        | AgentReply::Counters { .. }
        | AgentReply::Link { .. } => Ok(reply),
    }
}

fn refused(node: &NodeName, request: &AgentRequest, error: AgentError) -> Failure {
    let message = match request {
        AgentRequest::Log { machine }
        | AgentRequest::OpenConsole { machine, .. }
        | AgentRequest::Trace { machine, .. }
        | AgentRequest::OpenCapture { machine, .. } => {
            format!("machine {machine} on node {node}: {error}")
        }
        AgentRequest::Counters { group, .. } => format!("group {group} on node {node}: {error}"),
        AgentRequest::RenewKey => format!("node {node}: {error}"),
        AgentRequest::Link { .. } => format!("the link of node {node}: {error}"),
    };
    match error {
        AgentError::MachineUnknown | AgentError::NotRunning => {
            Failure::new(Code::MachineUnknown, message)
        }
        AgentError::NotEncrypted => Failure::new(Code::NotEncrypted, message),
        AgentError::Malformed => Failure::new(Code::Internal, message),
        AgentError::TooManySessions | AgentError::Network { .. } => {
            Failure::new(Code::Unavailable, message)
        }
    }
}
