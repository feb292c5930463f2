//! The actor against a peer that misbehaves.

use super::*;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

const PATIENCE: Duration = Duration::from_secs(20);

struct Peer {
    stream: BufReader<UnixStream>,
}

impl Peer {
    fn connect() -> (Qmp, mpsc::Receiver<QmpEvent>, Self, tokio::task::JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let (qmp, mut actor) = Qmp::new(ours);
        let events = actor.events();
        let task = tokio::spawn(actor.run());
        (qmp, events, Self { stream: BufReader::new(theirs) }, task)
    }

    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.expect("peer writes");
    }

    /// The id and name of the next command.
    async fn hear(&mut self) -> (u64, String) {
        let mut line = String::new();
        timeout(PATIENCE, self.stream.read_line(&mut line)).await.expect("in time").expect("line");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        (line["id"].as_u64().expect("id"), line["execute"].as_str().expect("name").to_owned())
    }

    async fn greet(&mut self) {
        self.say("{\"QMP\": {}}\n").await;
        let (id, name) = self.hear().await;
        assert_eq!(name, "qmp_capabilities");
        self.say(&format!("{{\"return\": {{}}, \"id\": {id}}}\n")).await;
    }
}

#[tokio::test]
async fn a_dropped_reply_harms_nobody() {
    let (qmp, _events, mut peer, _task) = Peer::connect();
    peer.greet().await;
    let gone = qmp.execute("query-slow", None, Duration::from_millis(1)).await;
    assert_eq!(gone.expect_err("no reply").code(), "QMP_DEADLINE");
    let (slow, _) = peer.hear().await;
    let waiting = tokio::spawn(async move { qmp.execute("query-status", None, PATIENCE).await });
    let (id, name) = peer.hear().await;
    assert_eq!(name, "query-status");
    peer.say(&format!("{{\"return\": 1, \"id\": {slow}}}\n{{\"ret")).await;
    peer.say(&format!("urn\": 2, \"id\": {id}}}\n")).await;
    assert_eq!(waiting.await.expect("joined"), Ok(json!(2)));
}

#[tokio::test]
async fn unknown_events_and_rubbish_do_not_end_it() {
    let (qmp, mut events, mut peer, _task) = Peer::connect();
    peer.greet().await;
    peer.say("{\"event\": \"NEW_IN_QEMU_99\", \"data\": {\"x\": 1}}\nrubbish\n").await;
    peer.say(&format!("{}\n", "y".repeat(300 * 1024))).await;
    let waiting = tokio::spawn(async move { qmp.execute("stop", None, PATIENCE).await });
    let (id, _) = peer.hear().await;
    peer.say(&format!("{{\"error\": {{\"desc\": \"not now\"}}, \"id\": {id}}}\n")).await;
    let refused = waiting.await.expect("joined").expect_err("refused");
    assert_eq!(refused.to_string(), "QEMU refused stop: not now");
    let event = timeout(PATIENCE, events.recv()).await.expect("in time").expect("event");
    assert_eq!(event.name, "NEW_IN_QEMU_99");
}

#[tokio::test]
async fn a_peer_of_nothing_but_rubbish_loses_the_connection() {
    let (qmp, _events, mut peer, task) = Peer::connect();
    peer.greet().await;
    peer.say(&"?\n".repeat(RUBBISH_MAX as usize + 1)).await;
    timeout(PATIENCE, task).await.expect("in time").expect("ended");
    assert_eq!(qmp.execute("stop", None, PATIENCE).await, Err(QmpError::Closed));
}

#[tokio::test]
async fn a_closed_connection_ends_every_wait() {
    let (qmp, _events, mut peer, _task) = Peer::connect();
    let waiting = tokio::spawn(async move { qmp.execute("stop", None, PATIENCE).await });
    peer.greet().await;
    peer.hear().await;
    drop(peer);
    assert_eq!(waiting.await.expect("joined"), Err(QmpError::Closed));
}

#[tokio::test]
async fn a_peer_that_answers_nothing_is_not_flooded() {
    let (qmp, _events, _peer, _task) = Peer::connect();
    let waits: Vec<_> = (0..COMMANDS_MAX + PENDING_MAX + 1)
        .map(|_| {
            let qmp = qmp.clone();
            tokio::spawn(async move { qmp.execute("stop", None, Duration::from_millis(50)).await })
        })
        .collect();
    let mut codes = Vec::new();
    for wait in waits {
        codes.push(wait.await.expect("joined").expect_err("no answer").code());
    }
    assert!(codes.contains(&"QMP_BUSY"), "{codes:?}");
    assert!(codes.contains(&"QMP_DEADLINE"), "{codes:?}");
}

#[tokio::test]
async fn an_event_flood_is_bounded() {
    let (qmp, mut events, mut peer, _task) = Peer::connect();
    peer.greet().await;
    peer.say(&"{\"event\": \"E\"}\n".repeat(10_000)).await;
    let waiting = tokio::spawn(async move { qmp.execute("stop", None, PATIENCE).await });
    let (id, _) = peer.hear().await;
    peer.say(&format!("{{\"return\": {{}}, \"id\": {id}}}\n")).await;
    assert!(waiting.await.expect("joined").is_ok());
    let mut kept = 0;
    while events.try_recv().is_ok() {
        kept += 1;
    }
    assert_eq!(kept, EVENTS_MAX);
}
