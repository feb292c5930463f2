//! Published ports: from the nodes into the networks.

use crate::app::App;
use crate::error::{Answer, Failure};
use crate::extract::{Json as Body, Path, parse};
use crate::scope::Scope;
use crate::usage::Used;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use skein_api::{Code, ErrorBody, Publication};
use skein_fabric::{Compare, Key, Op, Txn};
use skein_model::{
    EventKind, EventSubject, NetworkKind, NetworkName, ProjectName, PublicationRecord,
    PublicationSpec, PublishTarget, Transport,
};
use skein_registry::{RecordKey, Stored, View, backends};
use skein_shell::now;

fn unknown(what: &str) -> Failure {
    let shown: String = what.chars().take(80).collect();
    Failure::new(Code::PublicationUnknown, format!("nothing is published at {shown}"))
}

fn label(transport: Transport, port: u16) -> String {
    format!("{}/{port}", transport.as_str())
}

fn describe(view: &View, record: &PublicationRecord) -> Publication {
    let behind = backends(view, record).map(|port| port.machine.to_string()).collect();
    Publication::new(record, behind)
}

/// List published ports
#[utoipa::path(get, path = "/v1/publications", tag = "ports",
    responses((status = 200, body = [Publication]), (status = 401, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, scope: Scope) -> Json<Vec<Publication>> {
    Json(app.mirror.read(|view| {
        let all = view.publications.values().map(|stored| &stored.value);
        let own = all.filter(|record| record.project == scope.project);
        own.map(|record| describe(view, record)).collect()
    }))
}

/// Refuses a port at which the cloud itself listens: on nodes that were its own it would lead away from there.
fn check_free(app: &App, transport: Transport, port: u16) -> Answer<()> {
    let is_own = match transport {
        Transport::Tcp => port == app.address.port(),
        Transport::Udp => app.mirror.read(|view| {
            let mut nodes = view.nodes.values().map(|stored| &stored.value);
            nodes.any(|node| [node.vxlan_port, node.light_port].contains(&port))
        }),
    };
    if !is_own {
        return Ok(());
    }
    let message = format!("the cloud itself listens at port {} of nodes", label(transport, port));
    Err(Failure::new(Code::PortReserved, message))
}

/// What a publication leads to: where that is stored, and its network.
fn target(app: &App, project: &ProjectName, to: &PublishTarget) -> Answer<(Key, NetworkName)> {
    match to {
        PublishTarget::Machine(machine) => {
            let port = super::ports::found(app, project, machine.as_str())?.value;
            Ok((RecordKey::Port(machine.clone()).key(), port.network.clone()))
        }
        PublishTarget::Service(name) => {
            let key = (project.clone(), name.clone());
            let service = app.mirror.read(|view| view.services.get(&key).map(|s| s.value.clone()));
            let missing =
                || Failure::new(Code::ServiceUnknown, format!("service {name} does not exist"));
            let network = service.ok_or_else(missing)?.spec.network.name.clone();
            Ok((RecordKey::Service(project.clone(), name.clone()).key(), network))
        }
    }
}

/// Publish a port: on every node it leads to the machine, or to the ready replicas of the service in turn. The rules of
/// their groups still decide. The same again is no error
#[utoipa::path(post, path = "/v1/publications", tag = "ports", request_body = PublicationSpec,
    responses((status = 201, description = "Published", body = Publication), (status = 200, description = "It was there", body = Publication),
        (status = 404, description = "PORT_UNKNOWN, SERVICE_UNKNOWN", body = ErrorBody),
        (status = 409, description = "PUBLICATION_CONFLICT, PORT_RESERVED", body = ErrorBody),
        (status = 422, description = "INVALID, NOT_PUBLISHABLE", body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    scope: Scope,
    Body(spec): Body<PublicationSpec>,
) -> Answer<(StatusCode, Json<Publication>)> {
    spec.check().map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
    check_free(&app, spec.protocol, spec.port)?;
    let project = scope.project;
    let (leads_to, network) = target(&app, &project, &spec.target)?;
    let kind = app.mirror.read(|view| {
        let network = view.networks.get(&(project.clone(), network.clone()));
        network.map(|network| network.value.spec.kind)
    });
    if kind != Some(NetworkKind::Nat) {
        let kind = kind.map_or("gone", NetworkKind::as_str);
        let message =
            format!("network {network} is {kind}: only ports of a nat network are published");
        return Err(Failure::new(Code::NotPublishable, message));
    }
    let (transport, port) = (spec.protocol, spec.port);
    let key = RecordKey::Publication(transport, port);
    let record = PublicationRecord { project: project.clone(), spec, created_at: now() };
    let txn = Txn::new()
        .when(Compare::missing(key.key()))
        .when(Compare::exists(leads_to))
        .then(key.put(&record)?)
        .then(Used::Project(&project).mark())
        .otherwise(Op::get(key.key()));
    let reply = app.state.txn(txn).await?;
    let subject = EventSubject { project: Some(project.clone()), ..EventSubject::default() };
    if reply.succeeded {
        app.mirror.reach(reply.revision).await;
        app.events.emit(subject, EventKind::Published { port: label(transport, port) });
        let publication = app.mirror.read(|view| describe(view, &record));
        return Ok((StatusCode::CREATED, Json(publication)));
    }
    let there = reply.ranges().next().and_then(|range| range.entries.into_iter().next());
    let Some(there) = there else {
        return Err(Failure::new(Code::Unavailable, format!("the {} is gone", record.spec.target)));
    };
    let there: PublicationRecord = crate::extract::from_json(&there.value)?;
    if there.project == project && there.spec == record.spec {
        let publication = app.mirror.read(|view| describe(view, &there));
        return Ok((StatusCode::OK, Json(publication)));
    }
    // Not whose it is: that is another project's.
    let message = format!("port {} of the nodes leads elsewhere already", label(transport, port));
    Err(Failure::new(Code::PublicationConflict, message))
}

/// Withdraw a published port. Connections through it are cut
#[utoipa::path(delete, path = "/v1/publications/{protocol}/{port}", tag = "ports",
    params(("protocol" = String, Path, description = "tcp or udp"), ("port" = u16, Path, description = "Port of the nodes")),
    responses((status = 204, description = "Withdrawn"), (status = 404, description = "PUBLICATION_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<App>,
    scope: Scope,
    Path((transport, port)): Path<(String, String)>,
) -> Answer<StatusCode> {
    let what = format!("{transport}/{port}");
    let transport: Transport = parse(&transport, Code::PublicationUnknown)?;
    let port: u16 = parse(&port, Code::PublicationUnknown)?;
    let stored = app.mirror.read(|view| view.publications.get(&(transport, port)).cloned());
    let own = stored.filter(|stored| stored.value.project == scope.project);
    let Stored { revision, .. } = own.ok_or_else(|| unknown(&what))?;
    let key = RecordKey::Publication(transport, port).key();
    let txn = Txn::new().when(Compare::unchanged(key.clone(), revision)).then(Op::delete(&key));
    let reply = app.state.txn(txn).await?;
    if !reply.succeeded {
        return Err(unknown(&what));
    }
    app.mirror.reach(reply.revision).await;
    let subject = EventSubject { project: Some(scope.project), ..EventSubject::default() };
    app.events.emit(subject, EventKind::Unpublished { port: label(transport, port) });
    Ok(StatusCode::NO_CONTENT)
}
