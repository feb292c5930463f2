//! The protocol without its socket: bytes in; bytes, replies and events out.

use crate::lines::LineDecoder;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Longest line QEMU may send, bytes. Its longest reply to the commands in use (`query-migrate`) is
/// about 2 KiB; a bound of 256 KiB leaves room for introspection.
const LINE_BYTES_MAX: usize = 256 * 1024;
/// Id of the `qmp_capabilities` command; those of others follow.
const NEGOTIATION: u64 = 0;

/// An event QEMU reports. Any name is passed on, known or not.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// Its name, for example `SHUTDOWN`.
    pub name: String,
    /// Its data; empty when it has none.
    pub data: Map<String, Value>,
}

/// What a line meant.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    /// The answer to a command; `Err` carries QEMU's words.
    Reply { id: u64, result: Result<Value, String> },
    /// Something happened.
    Event(QmpEvent),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Greeting,
    Negotiating,
    Open,
}

/// One line as QEMU writes it. Fields it does not have stay empty.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
    id: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Map<String, Value>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

#[derive(Debug)]
pub(super) struct Session {
    phase: Phase,
    lines: LineDecoder,
    next_id: u64,
    malformed: u64,
}

impl Session {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Greeting,
            lines: LineDecoder::new(LINE_BYTES_MAX),
            next_id: NEGOTIATION + 1,
            malformed: 0,
        }
    }

    /// Whether commands may be sent.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Lines that were no QMP, or too long.
    pub(super) fn rubbish(&self) -> u64 {
        self.malformed + self.lines.oversized()
    }

    /// Appends a command to `out` and returns its id.
    pub(super) fn command(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        out: &mut Vec<u8>,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        write(id, command, arguments, out);
        id
    }

    /// Takes what the peer sent; what is to be sent in answer is appended to `out`.
    pub(super) fn on_bytes(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Vec<Incoming> {
        let mut heard = Vec::new();
        let (phase, malformed) = (&mut self.phase, &mut self.malformed);
        self.lines.push(bytes, |line| {
            let understood = match serde_json::from_slice::<Line>(line) {
                Ok(line) => on_line(line, phase, out, &mut heard),
                Err(_) => false,
            };
            *malformed += u64::from(!understood);
        });
        heard
    }
}

/// Whether the line made sense.
fn on_line(line: Line, phase: &mut Phase, out: &mut Vec<u8>, heard: &mut Vec<Incoming>) -> bool {
    let id = line.id.as_ref().and_then(Value::as_u64);
    match (*phase, line) {
        (Phase::Greeting, Line { greeting: Some(_), .. }) => {
            *phase = Phase::Negotiating;
            write(NEGOTIATION, "qmp_capabilities", None, out);
        }
        (_, Line { event: Some(name), data, .. }) => {
            heard.push(Incoming::Event(QmpEvent { name, data }));
        }
        (Phase::Negotiating, Line { returned: Some(_), .. }) if id == Some(NEGOTIATION) => {
            *phase = Phase::Open;
        }
        (Phase::Open, Line { returned, error, .. }) => {
            let result = match (returned, error) {
                (_, Some(Refusal { desc })) => Err(desc),
                (Some(value), None) => Ok(value),
                (None, None) => return false,
            };
            let Some(id) = id else { return false };
            heard.push(Incoming::Reply { id, result });
        }
        (Phase::Greeting | Phase::Negotiating, _) => return false,
    }
    true
}

fn write(id: u64, command: &str, arguments: Option<Value>, out: &mut Vec<u8>) {
    let mut line = json!({ "execute": command, "id": id });
    if let Some(arguments) = arguments {
        line["arguments"] = arguments;
    }
    out.extend_from_slice(line.to_string().as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GREETING: &[u8] = br#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;

    fn open() -> Session {
        let mut session = Session::new();
        let mut out = Vec::new();
        session.on_bytes(GREETING, &mut out);
        session.on_bytes(b"\n{\"return\": {}, \"id\": 0}\n", &mut out);
        assert!(session.is_open());
        assert_eq!(out, b"{\"execute\":\"qmp_capabilities\",\"id\":0}\n");
        session
    }

    fn check(line: &str, expect: &[Incoming], rubbish: u64) {
        let mut session = open();
        let heard = session.on_bytes(format!("{line}\n").as_bytes(), &mut Vec::new());
        assert_eq!(heard, expect, "{line}");
        assert_eq!(session.rubbish(), rubbish, "{line}");
    }

    #[test]
    fn lines_of_an_open_session() {
        let reply = |id, result| Incoming::Reply { id, result };
        check(r#"{"return": {"a": 1}, "id": 7}"#, &[reply(7, Ok(json!({"a": 1})))], 0);
        let refusal = r#"{"id": 7, "error": {"class": "GenericError", "desc": "no"}}"#;
        check(refusal, &[reply(7, Err("no".into()))], 0);
        let event = |name: &str, data: Value| {
            Incoming::Event(QmpEvent {
                name: name.into(),
                data: data.as_object().cloned().unwrap_or_default(),
            })
        };
        let shutdown = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN",
            "data": {"guest": true}}"#;
        check(&shutdown.replace('\n', " "), &[event("SHUTDOWN", json!({"guest": true}))], 0);
        check(r#"{"event": "NEVER_HEARD_OF"}"#, &[event("NEVER_HEARD_OF", json!({}))], 0);
        check("", &[], 1);
        check("{}", &[], 1);
        check("[1]", &[], 1);
        check("\u{1}garbage", &[], 1);
        check(r#"{"return": {}}"#, &[], 1);
        check(r#"{"return": {}, "id": "x"}"#, &[], 1);
        check(&"[".repeat(100_000), &[], 1);
        check(&"x".repeat(LINE_BYTES_MAX + 1), &[], 1);
    }

    #[test]
    fn nothing_is_answered_before_the_greeting() {
        let mut session = Session::new();
        assert_eq!(session.on_bytes(b"{\"return\": {}, \"id\": 0}\n", &mut Vec::new()), []);
        assert!(!session.is_open());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600), cut in 1usize..64) {
            let mut session = open();
            for piece in bytes.chunks(cut) {
                session.on_bytes(piece, &mut Vec::new());
            }
            session.on_bytes(b"\n", &mut Vec::new());
            let heard = session.on_bytes(b"{\"return\": 1, \"id\": 9}\n", &mut Vec::new());
            prop_assert_eq!(heard, vec![Incoming::Reply { id: 9, result: Ok(json!(1)) }]);
        }
    }
}
