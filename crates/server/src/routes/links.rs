//! Connections of programs that take the link, or could.

use crate::agents::ask;
use crate::app::App;
use crate::error::Answer;
use crate::scope::Scope;
use axum::Json;
use axum::extract::State;
use skein_api::{ErrorBody, Link, LinkList};
use skein_model::NodeState;
use skein_registry::{AgentReply, AgentRequest};

/// List connections of the project's programs that have asked for the link, on all nodes
///
/// A connection between two nodes is told by both. What the programs write themselves - bytes, wake-ups - is for looking at.
#[utoipa::path(get, path = "/v1/links", tag = "links",
    responses((status = 200, body = LinkList), (status = 401, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, scope: Scope) -> Answer<Json<LinkList>> {
    let (asked, lost): (Vec<_>, Vec<_>) = app.mirror.read(|view| {
        let nodes = view.nodes.keys().cloned();
        nodes.partition(|node| view.node_state(node) != NodeState::Lost)
    });
    let request = AgentRequest::Link { project: scope.project.clone() };
    let answers = asked.iter().map(async |node| (node, ask(&app, node, &request).await));
    let mut links = Vec::new();
    let mut silent: Vec<String> = lost.iter().map(ToString::to_string).collect();
    for (node, answer) in futures_util::future::join_all(answers).await {
        let Ok(AgentReply::Link { connections }) = answer else {
            silent.push(node.to_string());
            continue;
        };
        links.extend(connections.into_iter().map(|one| Link {
            node: node.to_string(),
            low: one.low,
            high: one.high,
            pids: one.pids,
            path: one.path,
            reason: one.reason,
            ring_bytes: one.ring_bytes,
            tcp_bytes: one.tcp_bytes,
            wakeups: one.wakeups,
        }));
    }
    Ok(Json(LinkList { links, silent }))
}
