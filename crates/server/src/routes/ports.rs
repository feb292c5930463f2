//! Ports: the machines' plugs.

use crate::agents::ask;
use crate::app::App;
use crate::error::{Answer, Failure};
use crate::extract::{Json as Body, Path, Query, field, parse};
use crate::scope::Scope;
use crate::usage::Used;
use axum::Json;
use axum::body::Body as Stream;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use skein_api::{Code, ErrorBody, Port, PortField, PortPatch};
use skein_fabric::{Compare, Message, Op, Subscribe, Subscription, Txn};
use skein_model::{
    EventKind, EventSubject, GroupName, MachineId, PortRecord, ProjectName, PublishTarget,
    check_groups,
};
use skein_registry::{
    AgentRequest, RecordKey, Stored, View, capture_input_subject, capture_subject,
};
use skein_shell::random_u128;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, Interval, sleep_until};

/// Longest capture, milliseconds: it ends by itself when its reader forgets it.
const CAPTURE_MS_MAX: u64 = 3_600_000;
/// Bytes of each packet that a capture keeps unless told otherwise, and at most: all of any packet.
const SNAP_MAX: u32 = 65_535;
/// How often a capture's agent is told that somebody still reads it.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How much later than it should a capture may end.
const GRACE: Duration = Duration::from_secs(5);

fn unknown(machine: &str) -> Failure {
    let shown: String = machine.chars().take(80).collect();
    Failure::new(Code::PortUnknown, format!("no machine {shown} is plugged in"))
}

/// The port of a machine of the project; another's does not exist.
pub(super) fn found(app: &App, project: &ProjectName, machine: &str) -> Answer<Stored<PortRecord>> {
    let key: MachineId = parse(machine, Code::PortUnknown)?;
    let found = app.mirror.read(|view| view.ports.get(&key).cloned());
    found.filter(|stored| stored.value.project == *project).ok_or_else(|| unknown(machine))
}

fn describe(view: &View, port: &PortRecord) -> Port {
    let service = view.services.get(&(port.project.clone(), port.service.clone()));
    let attachment = service.map(|s| s.value.spec.network.clone()).unwrap_or_default();
    let leads_here = |target: &PublishTarget| match target {
        PublishTarget::Machine(machine) => *machine == port.machine,
        PublishTarget::Service(service) => *service == port.service,
    };
    let publications = view.publications.iter().filter(|(_, publication)| {
        publication.value.project == port.project && leads_here(&publication.value.spec.target)
    });
    Port {
        machine: port.machine.to_string(),
        project: port.project.to_string(),
        service: port.service.to_string(),
        network: port.network.to_string(),
        node: port.node.to_string(),
        mac: port.mac.to_string(),
        ipv4: port.ipv4.to_string(),
        ipv6: port.ipv6.map(|address| address.to_string()),
        dns_name: format!("{}.{}.{}.internal", port.machine, port.network, port.project),
        groups: skein_registry::groups_of(view, port).iter().map(ToString::to_string).collect(),
        groups_own: port.groups.is_some(),
        limits: port.limits.unwrap_or(attachment.limits),
        limits_own: port.limits.is_some(),
        publications: publications
            .map(|((transport, number), _)| format!("{}/{number}", transport.as_str()))
            .collect(),
        generation: port.generation.0,
    }
}

/// List ports
#[utoipa::path(get, path = "/v1/ports", tag = "ports",
    responses((status = 200, body = [Port]), (status = 401, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, scope: Scope) -> Json<Vec<Port>> {
    Json(app.mirror.read(|view| {
        let all = view.ports.values().map(|stored| &stored.value);
        let own = all.filter(|port| port.project == scope.project);
        own.map(|port| describe(view, port)).collect()
    }))
}

/// Show the port of a machine
#[utoipa::path(get, path = "/v1/ports/{machine}", tag = "ports",
    params(("machine" = String, Path, description = "Id of the machine")),
    responses((status = 200, body = Port), (status = 404, description = "PORT_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<App>,
    scope: Scope,
    Path(machine): Path<String>,
) -> Answer<Json<Port>> {
    let port = found(&app, &scope.project, &machine)?.value;
    Ok(Json(app.mirror.read(|view| describe(view, &port))))
}

/// A port as the change wants it.
fn patched(port: &PortRecord, patch: &PortPatch) -> Answer<PortRecord> {
    let invalid = |error: skein_model::SpecError| Failure::new(Code::Invalid, error.to_string());
    let mut next = port.clone();
    for part in &patch.inherit {
        match part {
            PortField::Groups => next.groups = None,
            PortField::Limits => next.limits = None,
        }
    }
    if let Some(names) = &patch.groups {
        let groups: Result<Vec<GroupName>, _> =
            names.iter().map(|name| field("groups", name)).collect();
        let groups = groups?;
        check_groups("groups", &groups).map_err(invalid)?;
        next.groups = Some(groups);
    }
    if let Some(limits) = &patch.limits {
        limits.check().map_err(invalid)?;
        next.limits = Some(*limits);
    }
    Ok(next)
}

/// Change the groups or bounds of a machine's port, while it runs
#[utoipa::path(patch, path = "/v1/ports/{machine}", tag = "ports",
    params(("machine" = String, Path, description = "Id of the machine")), request_body = PortPatch,
    responses((status = 200, body = Port), (status = 404, description = "PORT_UNKNOWN, GROUP_UNKNOWN", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn change(
    State(app): State<App>,
    scope: Scope,
    Path(machine): Path<String>,
    Body(patch): Body<PortPatch>,
) -> Answer<Json<Port>> {
    loop {
        let Stored { value: port, revision } = found(&app, &scope.project, &machine)?;
        let mut next = patched(&port, &patch)?;
        if next == *port {
            return Ok(Json(app.mirror.read(|view| describe(view, &port))));
        }
        next.generation = next.generation.next();
        let key = RecordKey::Port(port.machine.clone());
        let mut txn = Txn::new()
            .when(Compare::unchanged(key.key(), revision))
            .then(key.put(&next)?)
            .otherwise(Op::get(key.key()));
        let groups = next.groups.as_deref().unwrap_or_default();
        for group in groups {
            let key = RecordKey::Group(scope.project.clone(), group.clone()).key();
            txn = txn
                .when(Compare::exists(key.clone()))
                .then(Used::Group(&scope.project, group).mark())
                .otherwise(Op::get(key));
        }
        let reply = app.state.txn(txn).await?;
        if reply.succeeded {
            app.mirror.reach(reply.revision).await;
            app.events.emit(subject(&next), EventKind::PortChanged);
            return Ok(Json(app.mirror.read(|view| describe(view, &next))));
        }
        let mut entries = reply.ranges().map(|range| range.entries.into_iter().next());
        let there = entries.next().flatten().ok_or_else(|| unknown(&machine))?;
        for group in groups {
            if entries.next().flatten().is_none() {
                let message = format!("group {group} does not exist");
                return Err(Failure::new(Code::GroupUnknown, message));
            }
        }
        app.mirror.reach(there.mod_revision).await;
    }
}

fn subject(port: &PortRecord) -> EventSubject {
    EventSubject {
        project: Some(port.project.clone()),
        service: Some(port.service.clone()),
        node: Some(port.node.clone()),
        machine: Some(port.machine.clone()),
        job: None,
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Capture {
    /// For how long, milliseconds, 1 to 3,600,000; a minute unless given
    time_ms: Option<u64>,
    /// Bytes of each packet, 64 to 65,535; all unless given
    snap: Option<u32>,
}

/// Record what a machine's port sends and receives, as a file of libpcap that grows until the time is over or the reader
/// leaves
#[utoipa::path(get, path = "/v1/ports/{machine}/capture", tag = "ports",
    params(("machine" = String, Path, description = "Id of the machine"), Capture),
    responses((status = 200, description = "The file", content_type = "application/vnd.tcpdump.pcap"),
        (status = 404, description = "PORT_UNKNOWN", body = ErrorBody), (status = 422, description = "INVALID", body = ErrorBody),
        (status = 503, description = "NODE_UNREACHABLE, UNAVAILABLE", body = ErrorBody)))]
pub(crate) async fn capture(
    State(app): State<App>,
    scope: Scope,
    Path(machine): Path<String>,
    Query(capture): Query<Capture>,
) -> Answer<Response> {
    let time_ms = capture.time_ms.unwrap_or(60_000);
    let snap = capture.snap.unwrap_or(SNAP_MAX);
    if !(1..=CAPTURE_MS_MAX).contains(&time_ms) {
        return Err(Failure::new(Code::Invalid, "time_ms: must be 1 to 3600000"));
    }
    if !(64..=SNAP_MAX).contains(&snap) {
        return Err(Failure::new(Code::Invalid, "snap: must be 64 to 65535"));
    }
    let port = found(&app, &scope.project, &machine)?.value;
    let session = format!("{:032x}", random_u128());
    let pattern = capture_subject(&session).as_str().parse();
    let pattern = pattern.map_err(|_| Failure::new(Code::Internal, "a capture's subject"))?;
    // Subscribed before it begins: its first bytes are the head of the file.
    let output = app.bus.subscribe(Subscribe::to(pattern)).await?;
    let request = AgentRequest::OpenCapture {
        machine: port.machine.clone(),
        session: session.clone(),
        snap,
        time_ms,
    };
    ask(&app, &port.node, &request).await?;
    // It ends by itself; this is for an agent that went away.
    let ends_at = Instant::now() + Duration::from_millis(time_ms) + GRACE;
    let reader = Reader { app, session, output, ends_at, alive: tokio::time::interval(KEEP_ALIVE) };
    let pieces = futures_util::stream::unfold(reader, |mut reader| async {
        Some((Ok::<_, Infallible>(reader.next().await?), reader))
    });
    let headers = [(header::CONTENT_TYPE, "application/vnd.tcpdump.pcap")];
    Ok((headers, Stream::from_stream(pieces)).into_response())
}

/// Who reads a capture. As long as it is there, its agent is told so.
struct Reader {
    app: App,
    session: String,
    output: Subscription,
    ends_at: Instant,
    alive: Interval,
}

impl Reader {
    /// The next piece of the file; none when it ended.
    async fn next(&mut self) -> Option<Bytes> {
        let stop = self.app.tasks.stop_token().clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,                       // cancel-safe: token
                () = sleep_until(self.ends_at) => return None,              // cancel-safe: timer
                _ = self.alive.tick() => {}                                 // cancel-safe: timer
                message = self.output.next() => {                           // cancel-safe: as documented
                    let bytes = message?.payload;
                    return (!bytes.is_empty()).then_some(bytes);
                }
            }
            let message = Message::new(capture_input_subject(&self.session), Bytes::new());
            self.app.bus.publish(message).await.ok()?;
        }
    }
}
