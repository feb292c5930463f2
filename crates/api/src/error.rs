//! Errors as clients see them: a stable code, an HTTP status, an exit code, one sentence.

use http::StatusCode;
use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:ident, $exit:literal;)*) => {
        /// Stable codes: they never change their meaning, and clients may branch on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            /// All codes.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As written in the body of an error.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The HTTP status that goes with it.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            /// The exit status of the command line: 1 error, 2 cannot be placed.
            pub const fn exit(self) -> u8 {
                match self { $(Self::$variant => $exit,)* }
            }
        }
    };
}

codes! {
    /// The body or a parameter cannot be read: malformed JSON, a wrong type, an unknown field.
    Malformed = "MALFORMED", BAD_REQUEST, 1;
    /// A value is out of its range; the message names the field.
    Invalid = "INVALID", UNPROCESSABLE_ENTITY, 1;
    /// No token, or a wrong one.
    Unauthorized = "UNAUTHORIZED", UNAUTHORIZED, 1;
    /// The token opens a project, and the operation concerns the whole cloud.
    Forbidden = "FORBIDDEN", FORBIDDEN, 1;
    /// No such project, or the token does not open it.
    ProjectUnknown = "PROJECT_UNKNOWN", NOT_FOUND, 1;
    /// A project of this name exists with another description.
    ProjectExists = "PROJECT_EXISTS", CONFLICT, 1;
    /// The project owns something yet; the message names it.
    ProjectInUse = "PROJECT_IN_USE", CONFLICT, 1;
    /// No such token of the project.
    TokenUnknown = "TOKEN_UNKNOWN", NOT_FOUND, 1;
    /// No such network in the project.
    NetworkUnknown = "NETWORK_UNKNOWN", NOT_FOUND, 1;
    /// A network of this name exists in the project, and is another.
    NetworkExists = "NETWORK_EXISTS", CONFLICT, 1;
    /// The network is used by a machine or service; the message names it.
    NetworkInUse = "NETWORK_IN_USE", CONFLICT, 1;
    /// The network's addresses are those of another network of the project; the message names it.
    NetworkOverlaps = "NETWORK_OVERLAPS", CONFLICT, 1;
    /// Every number of the overlay is given to a network.
    VniExhausted = "VNI_EXHAUSTED", SERVICE_UNAVAILABLE, 2;
    /// Every address of the network is held or rests.
    AddressExhausted = "ADDRESS_EXHAUSTED", SERVICE_UNAVAILABLE, 2;
    /// The address is chosen by another service already; the message names it.
    AddressTaken = "ADDRESS_TAKEN", CONFLICT, 1;
    /// No such port: no machine of this id is plugged in.
    PortUnknown = "PORT_UNKNOWN", NOT_FOUND, 1;
    /// No such group of firewall rules in the project.
    GroupUnknown = "GROUP_UNKNOWN", NOT_FOUND, 1;
    /// A group of this name exists with other rules.
    GroupExists = "GROUP_EXISTS", CONFLICT, 1;
    /// The group is used by a service, a port or another group; the message names it.
    GroupInUse = "GROUP_IN_USE", CONFLICT, 1;
    /// No such rule in the group.
    RuleUnknown = "RULE_UNKNOWN", NOT_FOUND, 1;
    /// Nothing of the project is published at this port.
    PublicationUnknown = "PUBLICATION_UNKNOWN", NOT_FOUND, 1;
    /// The port of the nodes leads elsewhere already.
    PublicationConflict = "PUBLICATION_CONFLICT", CONFLICT, 1;
    /// The cloud itself listens at the port: its API, or the tunnel or the light protocol of a node.
    PortReserved = "PORT_RESERVED", CONFLICT, 1;
    /// The machine's network cannot be reached from outside.
    NotPublishable = "NOT_PUBLISHABLE", UNPROCESSABLE_ENTITY, 1;
    /// No such service.
    ServiceUnknown = "SERVICE_UNKNOWN", NOT_FOUND, 1;
    /// No such job, or it is no longer kept.
    JobUnknown = "JOB_UNKNOWN", NOT_FOUND, 1;
    /// No such machine.
    MachineUnknown = "MACHINE_UNKNOWN", NOT_FOUND, 1;
    /// No such node.
    NodeUnknown = "NODE_UNKNOWN", NOT_FOUND, 1;
    /// The node's agent lives, or something is on the node, or leaves by it; the message names it.
    NodeInUse = "NODE_IN_USE", CONFLICT, 1;
    /// The node does not encrypt what it sends to other nodes.
    NotEncrypted = "NOT_ENCRYPTED", CONFLICT, 1;
    /// No such image.
    ImageUnknown = "IMAGE_UNKNOWN", NOT_FOUND, 1;
    /// No such blob.
    BlobUnknown = "BLOB_UNKNOWN", NOT_FOUND, 1;
    /// No such path.
    RouteUnknown = "ROUTE_UNKNOWN", NOT_FOUND, 1;
    /// The path exists, and not with this method.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", METHOD_NOT_ALLOWED, 1;
    /// A service of this name exists with another specification.
    ServiceExists = "SERVICE_EXISTS", CONFLICT, 1;
    /// The image is used by a service.
    ImageInUse = "IMAGE_IN_USE", CONFLICT, 1;
    /// The file is not an image that a machine could boot; the message says why.
    ImageInvalid = "IMAGE_INVALID", UNPROCESSABLE_ENTITY, 1;
    /// The same token was used for another job.
    TokenReused = "TOKEN_REUSED", CONFLICT, 1;
    /// The job has not ended, or ended without a result.
    ResultMissing = "RESULT_MISSING", CONFLICT, 1;
    /// The job has ended and can no longer be changed.
    JobEnded = "JOB_ENDED", CONFLICT, 1;
    /// The queue is full; details name its length and bound.
    QueueFull = "QUEUE_FULL", TOO_MANY_REQUESTS, 1;
    /// The payload exceeds 64 MiB, or the document its bound.
    PayloadTooLarge = "PAYLOAD_TOO_LARGE", PAYLOAD_TOO_LARGE, 1;
    /// No node has room for the machine.
    CapacityExhausted = "CAPACITY_EXHAUSTED", SERVICE_UNAVAILABLE, 2;
    /// The disk of the server is full; nothing was accepted.
    DiskFull = "DISK_FULL", INSUFFICIENT_STORAGE, 1;
    /// The call did not end in its time.
    DeadlineExceeded = "DEADLINE_EXCEEDED", GATEWAY_TIMEOUT, 1;
    /// The job was given up: attempts used up, machine lost, rejected by the service.
    JobFailed = "JOB_FAILED", BAD_GATEWAY, 1;
    /// The job was cancelled.
    JobCancelled = "JOB_CANCELLED", CONFLICT, 1;
    /// The node's agent does not answer.
    NodeUnreachable = "NODE_UNREACHABLE", SERVICE_UNAVAILABLE, 1;
    /// The server is stopping or cannot reach its state; the outcome of a write may be unknown.
    Unavailable = "UNAVAILABLE", SERVICE_UNAVAILABLE, 1;
    /// A bug of the server.
    Internal = "INTERNAL", INTERNAL_SERVER_ERROR, 1;
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorDetail {
    /// Stable code.
    pub code: Code,
    /// One sentence for a person.
    pub message: String,
    /// Figures that belong to the code, such as `depth` and `bound` of a full queue.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub details: serde_json::Map<String, serde_json::Value>,
}

/// An error with its code: what a handler returns and a client receives.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message} ({})", code.as_str())]
pub struct ApiError {
    /// Stable code.
    pub code: Code,
    /// One sentence for a person.
    pub message: String,
    /// Figures that belong to the code.
    pub details: serde_json::Map<String, serde_json::Value>,
}

impl ApiError {
    /// An error without figures.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: serde_json::Map::new() }
    }

    /// Adds a figure.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    /// As it crosses the wire.
    pub fn into_body(self) -> ErrorBody {
        let Self { code, message, details } = self;
        ErrorBody { error: ErrorDetail { code, message, details } }
    }
}

impl From<ErrorBody> for ApiError {
    fn from(body: ErrorBody) -> Self {
        let ErrorDetail { code, message, details } = body.error;
        Self { code, message, details }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_on_the_wire_is_its_text() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert!(!code.status().is_success());
        }
    }
}
