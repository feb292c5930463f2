//! Nodes.

use crate::agents;
use crate::app::App;
use crate::error::{Answer, Failure};
use crate::extract::{Path, parse};
use crate::reserved::reserved;
use crate::scope::Admin;
use crate::usage::Used;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use skein_api::{Code, ErrorBody, Node};
use skein_fabric::{Compare, KeySpan, Op, OpReply, Txn};
use skein_model::{EventKind, EventSubject, NetworkRecord, NodeName, ProjectRecord};
use skein_policy::Room;
use skein_registry::{AgentReply, AgentRequest, RecordKey, View};
use std::collections::BTreeMap;

fn node(app: &App, view: &View, name: &NodeName, used: &BTreeMap<NodeName, Room>) -> Option<Node> {
    let record = &view.nodes.get(name)?.value;
    let used = used.get(name).copied().unwrap_or_default();
    let cpu = u32::try_from(used.cpu_milli).unwrap_or(u32::MAX);
    let reserved = (used.memory_mib, cpu, used.machines);
    Some(Node::new(record, view.node_state(name), app.reports.node(name).as_ref(), reserved))
}

/// List nodes
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes",
    responses((status = 200, description = "All nodes", body = [Node]), (status = 401, body = ErrorBody),
        (status = 403, description = "FORBIDDEN", body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, _: Admin) -> Json<Vec<Node>> {
    let nodes = app.mirror.read(|view| {
        let used = reserved(view);
        view.nodes.keys().filter_map(|name| node(&app, view, name, &used)).collect()
    });
    Json(nodes)
}

/// Show one node
#[utoipa::path(get, path = "/v1/nodes/{node}", tag = "nodes", params(("node" = String, Path, description = "Name")),
    responses((status = 200, body = Node), (status = 404, description = "NODE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<App>,
    _: Admin,
    Path(name): Path<String>,
) -> Answer<Json<Node>> {
    let name: NodeName = parse(&name, Code::NodeUnknown)?;
    let found = app.mirror.read(|view| node(&app, view, &name, &reserved(view)));
    found.map(Json).ok_or_else(|| unknown(&name))
}

/// The node of this name, which must exist.
fn known(app: &App, name: &str) -> Answer<NodeName> {
    let name: NodeName = parse(name, Code::NodeUnknown)?;
    let exists = app.mirror.read(|view| view.nodes.contains_key(&name));
    if exists { Ok(name) } else { Err(unknown(&name)) }
}

fn unknown(name: &NodeName) -> Failure {
    Failure::new(Code::NodeUnknown, format!("node {name} does not exist"))
}

/// Place nothing new on a node. Repeating it changes nothing.
#[utoipa::path(post, path = "/v1/nodes/{node}/cordon", tag = "nodes", params(("node" = String, Path, description = "Name")),
    responses((status = 200, body = Node), (status = 404, description = "NODE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn cordon(
    State(app): State<App>,
    admin: Admin,
    Path(name): Path<String>,
) -> Answer<Json<Node>> {
    let name = known(&app, &name)?;
    let key = RecordKey::Cordon(name.clone()).key();
    let revision = app.state.put(key, bytes::Bytes::from_static(b"{}")).await?;
    app.mirror.reach(revision).await;
    show(State(app), admin, Path(name.to_string())).await
}

/// What keeps a node in the cloud, in words.
fn user(view: &View, name: &NodeName) -> Option<String> {
    if view.alive.contains_key(name) {
        return Some("its agent lives".to_owned());
    }
    let machine = view.machines.values().find(|machine| machine.value.node == *name);
    if let Some(machine) = machine {
        return Some(format!("machine {} is on it", machine.value.id));
    }
    let leaves =
        |network: &NetworkRecord| network.spec.exit.as_ref().is_some_and(|exit| exit.node == *name);
    if let Some(network) = view.networks.values().find(|network| leaves(&network.value)) {
        let (project, network) = (&network.value.project, &network.value.spec.name);
        return Some(format!("network {network} of project {project} leaves by it"));
    }
    let leaves =
        |project: &ProjectRecord| project.exit.as_ref().is_some_and(|exit| exit.node == *name);
    let project = view.projects.values().find(|project| leaves(&project.value))?;
    Some(format!("project {} leaves by it", project.value.name))
}

/// Take a node that is gone for good out of the cloud
///
/// Its agent must have ended, and no machine may be on it: cordon a node to empty it, or remove its machines when it is lost. Other nodes
/// forget it at once. An agent that starts again under this name joins again.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "nodes", params(("node" = String, Path, description = "Name")),
    responses((status = 204, description = "Removed"), (status = 404, description = "NODE_UNKNOWN", body = ErrorBody),
        (status = 409, description = "NODE_IN_USE", body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<App>,
    _: Admin,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    let name = known(&app, &name)?;
    let in_use = |why: &str| Failure::new(Code::NodeInUse, format!("node {name} stays: {why}"));
    let unused = Used::Node(&name).look(&app).await?;
    if let Some(why) = app.mirror.read(|view| user(view, &name)) {
        return Err(in_use(&why));
    }
    // Nothing is placed on a node whose agent is gone: none but the agent, or an exit, can come in between.
    let (node, cordon) =
        (RecordKey::Node(name.clone()).key(), RecordKey::Cordon(name.clone()).key());
    let alive = RecordKey::Alive(name.clone()).key();
    let still = Txn::new().when(Compare::missing(alive)).when(Compare::exists(node.clone()));
    let gone = [Op::delete(&node), Op::delete(&cordon), Used::Node(&name).forget()];
    let txn = gone.into_iter().fold(still.when(unused.compare()), Txn::then);
    let reply = app.state.txn(txn).await?;
    if !reply.succeeded {
        let is_known = app.state.get(&node).await?.is_some();
        return Err(if is_known {
            in_use("it was taken into use at the same time")
        } else {
            unknown(&name)
        });
    }
    app.mirror.reach(reply.revision).await;
    let subject = EventSubject { node: Some(name), ..EventSubject::default() };
    app.events.emit(subject, EventKind::NodeRemoved);
    Ok(StatusCode::NO_CONTENT)
}

/// Give a node another key for what it sends to other nodes. Connections live on
#[utoipa::path(post, path = "/v1/nodes/{node}/renew-key", tag = "nodes", params(("node" = String, Path, description = "Name")),
    responses((status = 200, body = Node), (status = 404, description = "NODE_UNKNOWN", body = ErrorBody),
        (status = 409, description = "NOT_ENCRYPTED", body = ErrorBody),
        (status = 503, description = "NODE_UNREACHABLE", body = ErrorBody)))]
pub(crate) async fn renew_key(
    State(app): State<App>,
    admin: Admin,
    Path(name): Path<String>,
) -> Answer<Json<Node>> {
    let name = known(&app, &name)?;
    let reply = agents::ask(&app, &name, &AgentRequest::RenewKey).await?;
    let Json(mut node) = show(State(app), admin, Path(name.to_string())).await?;
    if let AgentReply::Renewed { key } = reply {
        // The mirror may be a moment behind.
        node.wire_key = Some(key.to_string());
    }
    Ok(Json(node))
}

/// Place machines on a node again. Repeating it changes nothing.
#[utoipa::path(post, path = "/v1/nodes/{node}/uncordon", tag = "nodes", params(("node" = String, Path, description = "Name")),
    responses((status = 200, body = Node), (status = 404, description = "NODE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn uncordon(
    State(app): State<App>,
    admin: Admin,
    Path(name): Path<String>,
) -> Answer<Json<Node>> {
    let name = known(&app, &name)?;
    let key = RecordKey::Cordon(name.clone()).key();
    let txn = skein_fabric::Txn::new().then(Op::Delete(KeySpan::one(&key)));
    let reply = app.state.txn(txn).await?;
    if reply.replies.iter().any(|reply| *reply != OpReply::Deleted(0)) {
        app.mirror.reach(reply.revision).await;
    }
    show(State(app), admin, Path(name.to_string())).await
}
