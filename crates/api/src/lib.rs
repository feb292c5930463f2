//! What crosses the wire between a Skein server and its clients: types, error codes, a typed client.
//!
//! The OpenAPI document is generated from the server's routes and these types, committed as
//! `docs/openapi.json`, and compared with the running server by a test. Times are RFC 3339 in UTC, durations
//! whole milliseconds, sizes bytes unless the name says MiB. Arrays are always arrays.

mod client;
mod error;
mod link;
mod network;
mod network_client;
mod types;

pub use client::{CallReply, Client, ClientError, Console, EventStream, JobOptions, Target};
pub use error::{ApiError, Code, ErrorBody, ErrorDetail};
pub use link::{Link, LinkList};
pub use network::{
    Group, GroupCounters, GroupPut, Network, NetworkField, NetworkPatch, Port, PortField,
    PortPatch, Project, ProjectField, ProjectNew, ProjectPatch, ProjectToken, Publication, Rule,
    RuleCount, TokenNew, Trace, TraceHop, TraceRequest,
};
pub use network_client::Capture;
pub use types::{
    BatchItem, BatchReply, BatchResult, BlobReply, Decision, EventLine, EventPage, Hold, Image,
    ImageModule, ImagePut, Job, JobPage, Machine, Node, ScaleRequest, Service, ServiceCounters,
    ServicePatch, Version, time_text,
};
