//! Machines: lists, logs, consoles, and the end.

use crate::agents::ask;
use crate::app::App;
use crate::error::{Answer, Failure};
use crate::extract::{Path, Query, parse};
use crate::scope::Scope;
use axum::Json;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message as Frame, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use skein_api::{Code, ErrorBody, Machine};
use skein_fabric::{Compare, Message, Op, Subscribe, Subscription, Txn};
use skein_model::{MachineGoal, MachineId, MachineRecord, PhaseName, ProjectName};
use skein_registry::{
    AgentReply, AgentRequest, MachineFigures, RecordKey, Stored, View, console_input_subject,
    console_output_subject,
};
use skein_shell::random_u128;
use std::time::Duration;

/// How often a console session tells its agent that somebody still watches.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Largest message from a console's client, bytes: a paste, not a file.
const INPUT_MAX: usize = 64 * 1024;

fn machine(view: &View, record: &MachineRecord, figures: Option<&MachineFigures>) -> Machine {
    let status = view.statuses.get(&record.id).map(|status| &*status.value);
    let mut machine = Machine::new(record, status);
    if machine.state == PhaseName::Gone {
        return machine;
    }
    if let Some(figures) = figures {
        const MIB: f64 = 1024.0 * 1024.0;
        machine.cpu_seconds = Some(figures.cpu_seconds);
        machine.cpu_used = Some(figures.cpu_used);
        machine.memory_resident_mib = Some(figures.memory_resident_bytes as f64 / MIB);
        machine.memory_guest_mib = figures.memory_guest_bytes.map(|b| b as f64 / MIB);
        machine.requests = figures.requests;
        machine.in_service = figures.in_service;
    }
    machine
}

fn unknown(id: &str) -> Failure {
    let shown: String = id.chars().take(80).collect();
    Failure::new(Code::MachineUnknown, format!("machine {shown} does not exist"))
}

/// A machine of the project; another's does not exist.
fn found(app: &App, project: &ProjectName, id: &str) -> Answer<Stored<MachineRecord>> {
    let key: MachineId = parse(id, Code::MachineUnknown)?;
    let found = app.mirror.read(|view| view.machines.get(&key).cloned());
    found.filter(|stored| stored.value.project == *project).ok_or_else(|| unknown(id))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    /// Also those that ended lately
    #[serde(default)]
    all: bool,
}

/// List machines
#[utoipa::path(get, path = "/v1/machines", tag = "machines", params(Which),
    responses((status = 200, body = [Machine]), (status = 401, body = ErrorBody)))]
pub(crate) async fn list(
    State(app): State<App>,
    scope: Scope,
    Query(which): Query<Which>,
) -> Answer<Json<Vec<Machine>>> {
    let figures = app.reports.machines();
    let machines = app.mirror.read(|view| {
        let own = view.machines.values().filter(|s| s.value.project == scope.project);
        let all = own.map(|s| machine(view, &s.value, figures.get(&s.value.id)));
        all.filter(|m| which.all || m.state != PhaseName::Gone).collect()
    });
    Ok(Json(machines))
}

/// Show one machine
#[utoipa::path(get, path = "/v1/machines/{machine}", tag = "machines",
    params(("machine" = String, Path, description = "Id")),
    responses((status = 200, body = Machine), (status = 404, description = "MACHINE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<App>,
    scope: Scope,
    Path(id): Path<String>,
) -> Answer<Json<Machine>> {
    let stored = found(&app, &scope.project, &id)?;
    let figures = app.reports.machines();
    let shown = app.mirror.read(|view| machine(view, &stored.value, figures.get(&stored.value.id)));
    Ok(Json(shown))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct How {
    /// Hard at once; orderly unless given
    #[serde(default)]
    now: bool,
}

/// Stop a machine: orderly it finishes what it serves first; then it is ended, hard if need be. Repeating it is harmless
#[utoipa::path(post, path = "/v1/machines/{machine}/stop", tag = "machines",
    params(("machine" = String, Path, description = "Id"), How),
    responses((status = 200, description = "It is on its way", body = Machine),
        (status = 404, description = "MACHINE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn stop(
    State(app): State<App>,
    scope: Scope,
    Path(id): Path<String>,
    Query(how): Query<How>,
) -> Answer<Json<Machine>> {
    loop {
        let stored = found(&app, &scope.project, &id)?;
        let mut record = (*stored.value).clone();
        let goal = if how.now { MachineGoal::Stop } else { MachineGoal::Drain };
        if record.goal == goal || record.goal == MachineGoal::Stop {
            return show(State(app), scope, Path(id)).await;
        }
        record.goal = goal;
        record.generation = record.generation.next();
        record.reason = "stopped by hand".to_owned();
        let key = RecordKey::Machine(record.id.clone());
        let txn = Txn::new()
            .when(Compare::unchanged(key.key(), stored.revision))
            .then(key.put(&record)?)
            .otherwise(Op::get(key.key()));
        let reply = app.state.txn(txn).await?;
        if reply.succeeded {
            app.mirror.reach(reply.revision).await;
            return show(State(app), scope, Path(id)).await;
        }
        let there = reply.ranges().next().and_then(|range| range.entries.into_iter().next());
        let there = there.ok_or_else(|| unknown(record.id.as_str()))?;
        app.mirror.reach(there.mod_revision).await;
    }
}

/// What a machine has written to its console, as far as it is kept; also of one that ended lately
#[utoipa::path(get, path = "/v1/machines/{machine}/log", tag = "machines",
    params(("machine" = String, Path, description = "Id")),
    responses((status = 200, description = "The text", content_type = "text/plain"),
        (status = 404, description = "MACHINE_UNKNOWN", body = ErrorBody),
        (status = 503, description = "NODE_UNREACHABLE", body = ErrorBody)))]
pub(crate) async fn log(
    State(app): State<App>,
    scope: Scope,
    Path(id): Path<String>,
) -> Answer<String> {
    let record = found(&app, &scope.project, &id)?.value;
    match ask(&app, &record.node, &AgentRequest::Log { machine: record.id.clone() }).await? {
        AgentReply::Log { text } => Ok(text),
        _ => Ok(String::new()),
    }
}

/// A machine's console, both ways, over a WebSocket: binary messages are bytes; the first ones replay what is kept
#[utoipa::path(get, path = "/v1/machines/{machine}/console", tag = "machines",
    params(("machine" = String, Path, description = "Id")),
    responses((status = 101, description = "The console follows"),
        (status = 404, description = "MACHINE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn console(
    State(app): State<App>,
    scope: Scope,
    Path(id): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let upgrade = upgrade.map_err(|refused| Failure::new(Code::Malformed, refused.body_text()))?;
    let record = found(&app, &scope.project, &id)?.value;
    let session = format!("{:032x}", random_u128());
    let pattern = console_output_subject(&session).as_str().parse();
    let pattern = pattern.map_err(|_| Failure::new(Code::Internal, "a console subject"))?;
    // Subscribed before it is opened: nothing of the replay is missed.
    let output = app.bus.subscribe(Subscribe::to(pattern)).await?;
    let request =
        AgentRequest::OpenConsole { machine: record.id.clone(), session: session.clone() };
    ask(&app, &record.node, &request).await?;
    let upgrade = upgrade.max_message_size(INPUT_MAX);
    Ok(upgrade.on_upgrade(move |socket| pump(app, session, output, socket)))
}

/// Carries bytes both ways until one side ends. The agent ends a session that is not kept alive.
async fn pump(app: App, session: String, mut output: Subscription, mut socket: WebSocket) {
    let input = console_input_subject(&session);
    let mut alive = tokio::time::interval(KEEP_ALIVE);
    loop {
        let typed = tokio::select! {
            () = app.tasks.stop_token().cancelled() => break,       // cancel-safe: token
            _ = alive.tick() => Bytes::new(),                       // cancel-safe: timer
            message = output.next() => match message {              // cancel-safe: as documented
                Some(message) if !message.payload.is_empty() => {
                    if socket.send(Frame::Binary(message.payload)).await.is_err() {
                        break;
                    }
                    continue;
                }
                Some(_) | None => break,
            },
            frame = socket.recv() => match frame {                  // cancel-safe: frames are whole
                Some(Ok(Frame::Binary(bytes))) if !bytes.is_empty() => bytes,
                Some(Ok(Frame::Text(text))) if !text.is_empty() => Bytes::from(text),
                Some(Ok(Frame::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => continue,
            },
        };
        if app.bus.publish(Message::new(input.clone(), typed)).await.is_err() {
            break;
        }
    }
    let _ = socket.send(Frame::Close(None)).await;
}
