//! What a server asks of this agent: logs, consoles, captures, traces and counters.

use crate::networks;
use crate::node::Node;
use bytes::Bytes;
use skein_fabric::{Compare, Message, Subscribe, Txn};
use skein_model::{MachineId, NodeRecord, WireKey};
use skein_net::renew_wire_key;
use skein_registry::{
    AgentError, AgentReply, AgentRequest, RecordKey, agent_subject, console_input_subject,
    console_output_subject,
};
use skein_shell::report;
use skein_vmm::{Console, ConsoleStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Longest log in one answer, bytes: below the bus's bound of 1 MiB even if each byte becomes a replacement character.
const LOG_MAX: usize = 320 * 1024;
/// Sessions of consoles and captures at a time: each holds a task and two subscriptions.
const SESSIONS_MAX: u32 = 64;
/// A session whose server has been silent for so long is over. The server speaks every five seconds.
const SESSION_SILENCE: Duration = Duration::from_secs(20);

/// Answers requests in a task of the node, until it stops.
pub(crate) async fn start(node: Arc<Node>) {
    let subject = agent_subject(&node.config.name);
    let Ok(pattern) = subject.as_str().parse() else { return };
    let mut requests = match node.bus.subscribe(Subscribe::to(pattern)).await {
        Ok(requests) => requests,
        Err(error) => return warn!(%error, "the agent cannot be asked for logs and consoles"),
    };
    let stop = node.tasks.stop_token().clone();
    let sessions = Arc::new(AtomicU32::new(0));
    let tasks = node.tasks.clone();
    tasks.spawn(async move {
        loop {
            let request = tokio::select! {
                () = stop.cancelled() => return,          // cancel-safe: token
                request = requests.next() => request,     // cancel-safe: as documented
            };
            let Some(message) = request else { return };
            let reply = match serde_json::from_slice(&message.payload) {
                Ok(request) => answer(&node, &sessions, request).await,
                Err(_) => AgentReply::Failed { error: AgentError::Malformed },
            };
            if let Ok(json) = serde_json::to_vec(&reply)
                && let Err(error) = node.bus.reply(&message, json.into()).await
            {
                debug!(%error, "a request could not be answered");
            }
        }
    });
}

async fn answer(node: &Arc<Node>, sessions: &Arc<AtomicU32>, request: AgentRequest) -> AgentReply {
    let result = match request {
        AgentRequest::Log { machine } => log(node, &machine).map(|text| AgentReply::Log { text }),
        AgentRequest::OpenConsole { machine, session } => {
            open_console(node, sessions, &machine, &session).await.map(|()| AgentReply::Opened)
        }
        AgentRequest::Trace { machine, destination, protocol, port } => {
            networks::trace(node, &machine, destination, (protocol, port))
                .map(|trace| AgentReply::Trace { trace })
        }
        AgentRequest::RenewKey => renew_key(node).await.map(|key| AgentReply::Renewed { key }),
        AgentRequest::Counters { project, group } => {
            let rules = networks::counters(node, &project, &group).await;
            rules.map(|rules| AgentReply::Counters { rules })
        }
        AgentRequest::Link { project } => {
            let connections = node.link.as_ref().map(|link| link.connections(project.as_str()));
            Ok(AgentReply::Link { connections: connections.unwrap_or_default() })
        }
        AgentRequest::OpenCapture { machine, session, snap, time_ms } => {
            let how = (snap, Duration::from_millis(time_ms));
            open_capture(node, sessions, &machine, &session, how).await.map(|()| AgentReply::Opened)
        }
    };
    result.unwrap_or_else(|error| AgentReply::Failed { error })
}

/// Gives the node another key: in its file, on its interface, and in its record, by which other nodes hear of it. What
/// fails half-way is finished by the next attempt or the agent's next start, which writes the record from the file.
async fn renew_key(node: &Arc<Node>) -> Result<WireKey, AgentError> {
    let path = node.config.wire_key().ok_or(AgentError::NotEncrypted)?;
    let key = tokio::task::spawn_blocking(move || renew_wire_key(&path)).await;
    let key = key.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
    node.underlay.send_modify(|underlay| underlay.wire = Some(key));
    let record = RecordKey::Node(node.config.name.clone());
    let known = node.mirror.read(|view| view.nodes.get(&node.config.name).cloned());
    let Some(known) = known else { return Err(AgentError::NotEncrypted) };
    let next = NodeRecord { wire_key: Some(key), ..(*known.value).clone() };
    let put = record.put(&next).map_err(|e| failed(&e))?;
    let txn = Txn::new().when(Compare::exists(record.key())).then(put);
    node.state.txn(txn).await.map_err(|e| failed(&e))?;
    Ok(key)
}

fn failed(error: &(dyn std::error::Error + 'static)) -> AgentError {
    AgentError::Network { message: report::chain(error) }
}

/// What a machine wrote: from its ring while it runs, from its folder afterwards.
fn log(node: &Node, id: &MachineId) -> Result<String, AgentError> {
    let bytes = match node.live(id) {
        Some(live) => {
            let mut bytes = live.machine.serial().tail(LOG_MAX / 2);
            bytes.extend(live.machine.console().tail(LOG_MAX / 2));
            bytes
        }
        None => {
            let dir = node.machine_dir(id);
            if !dir.exists() {
                return Err(AgentError::MachineUnknown);
            }
            let read = |name: &str| skein_vmm::read_log(&dir.join(name), LOG_MAX / 2);
            let mut bytes = read("serial.log").unwrap_or_default();
            bytes.extend(read("console.log").unwrap_or_default());
            bytes
        }
    };
    Ok(readable(&bytes))
}

/// A guest's bytes as text that steers no terminal and grows to three times its length at most.
fn readable(bytes: &[u8]) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => Some(c),
        '\r' => None,
        c if c.is_control() => Some(char::REPLACEMENT_CHARACTER),
        c => Some(c),
    };
    String::from_utf8_lossy(bytes).chars().filter_map(shown).collect()
}

async fn open_console(
    node: &Arc<Node>,
    sessions: &Arc<AtomicU32>,
    machine: &MachineId,
    session: &str,
) -> Result<(), AgentError> {
    check_session(session)?;
    let live = node.live(machine).ok_or(AgentError::NotRunning)?;
    let held = Session::begin(sessions).ok_or(AgentError::TooManySessions)?;
    let pattern =
        console_input_subject(session).as_str().parse().map_err(|_| AgentError::Malformed)?;
    let input =
        node.bus.subscribe(Subscribe::to(pattern)).await.map_err(|_| AgentError::NotRunning)?;
    let console = live.machine.console().clone();
    let output = console.attach();
    let (node, session) = (node.clone(), session.to_owned());
    node.tasks.clone().spawn(async move {
        let _held = held;
        pump(&node, &session, console, output, input).await;
    });
    Ok(())
}

/// A session's name becomes part of a subject.
fn check_session(session: &str) -> Result<(), AgentError> {
    let hexadecimal = session.len() == 32 && session.bytes().all(|b| b.is_ascii_hexdigit());
    if hexadecimal { Ok(()) } else { Err(AgentError::Malformed) }
}

async fn open_capture(
    node: &Arc<Node>,
    sessions: &Arc<AtomicU32>,
    machine: &MachineId,
    session: &str,
    how: (u32, Duration),
) -> Result<(), AgentError> {
    check_session(session)?;
    let held = Session::begin(sessions).ok_or(AgentError::TooManySessions)?;
    networks::capture(node, machine, session, how, held).await
}

/// A place among the sessions; given back when dropped.
struct Session(Arc<AtomicU32>);

impl Session {
    fn begin(sessions: &Arc<AtomicU32>) -> Option<Self> {
        let more = |count: u32| (count < SESSIONS_MAX).then_some(count + 1);
        sessions.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Self(sessions.clone()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn pump(
    node: &Node,
    session: &str,
    console: Console,
    mut output: ConsoleStream,
    mut input: skein_fabric::Subscription,
) {
    let to = console_output_subject(session);
    let stop = node.tasks.stop_token();
    let mut silent_at = Instant::now() + SESSION_SILENCE;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,                                   // cancel-safe: token
            () = tokio::time::sleep_until(silent_at) => return,                // cancel-safe: timer
            piece = output.read() => {                                         // cancel-safe: as documented
                // An empty message says that the console ended.
                let bytes = piece.map(|piece| piece.bytes).unwrap_or_default();
                let ended = bytes.is_empty();
                node.notify(to.clone(), Bytes::from(bytes)).await;
                if ended {
                    return;
                }
            }
            typed = input.next() => {                                          // cancel-safe: as documented
                let Some(Message { payload, .. }) = typed else { return };
                silent_at = Instant::now() + SESSION_SILENCE;
                if let Err(error) = console.send(&payload) {
                    debug!(%error, "input of a console session was dropped");
                }
            }
        }
    }
}
