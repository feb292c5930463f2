//! A message and what can go wrong with it.

use super::subject::Subject;
use bytes::Bytes;

/// Most bytes of headers and payload together: NATS's default. Larger things are blobs, and messages name them.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// Marks a reply as an error; its value is the stable code.
pub(super) const ERROR_HEADER: &str = "skein-error";

/// Names and values in the order given. A name is a token of letters, digits and `-`; a value has no control
/// characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value under `name`, compared without regard to case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn bytes(&self) -> usize {
        // As on NATS's wire: "name: value\r\n".
        self.0.iter().map(|(name, value)| name.len() + value.len() + 4).sum()
    }
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub subject: Subject,
    /// Beside the payload.
    pub headers: Headers,
    /// The bytes.
    pub payload: Bytes,
    /// Where a reply is awaited, if one is. Set by [`Bus::request`](super::Bus::request).
    pub reply: Option<Subject>,
}

impl Message {
    /// Without headers, asking for no reply.
    pub fn new(subject: Subject, payload: impl Into<Bytes>) -> Self {
        Self { subject, headers: Headers::default(), payload: payload.into(), reply: None }
    }

    /// One header more.
    ///
    /// # Errors
    /// [`BusError::BadHeader`] for a name or value with characters that are not allowed.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, BusError> {
        let good_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let good = !name.is_empty()
            && name.bytes().all(good_name)
            && !value.contains(|c: char| c.is_ascii_control());
        if !good {
            return Err(BusError::BadHeader { name: name.chars().take(40).collect() });
        }
        self.headers.0.push((name.to_owned(), value.to_owned()));
        Ok(self)
    }

    /// Bytes that count for the bound.
    pub fn bytes(&self) -> usize {
        self.headers.bytes() + self.payload.len()
    }

    /// Checks the bound. Every implementation calls this first.
    ///
    /// # Errors
    /// [`BusError::TooLarge`].
    pub fn check(&self) -> Result<(), BusError> {
        match self.bytes() {
            bytes if bytes > PAYLOAD_BYTES_MAX => Err(BusError::TooLarge { bytes }),
            _ => Ok(()),
        }
    }

    /// A reply as the asker gets it: an error reply becomes an error. Every implementation calls this.
    ///
    /// # Errors
    /// [`BusError::Remote`].
    pub fn into_reply(self) -> Result<Self, BusError> {
        match self.headers.get(ERROR_HEADER) {
            None => Ok(self),
            Some(code) => Err(BusError::Remote {
                code: code.to_owned(),
                text: String::from_utf8_lossy(&self.payload).into_owned(),
            }),
        }
    }
}

/// Why a message was not sent or not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Nobody subscribed to the subject of the request.
    #[error("nobody listens to {subject}")]
    NoResponders {
        /// Where it was sent.
        subject: Subject,
    },
    /// No reply came in time; the request may have been served.
    #[error("no reply from {subject} in time")]
    Timeout {
        /// Where it was sent.
        subject: Subject,
    },
    /// The replier answered with an error.
    #[error("{code}: {text}")]
    Remote {
        /// Its stable code.
        code: String,
        /// Its words.
        text: String,
    },
    /// Headers and payload are beyond [`PAYLOAD_BYTES_MAX`].
    #[error("a message of {bytes} bytes; at most {PAYLOAD_BYTES_MAX}")]
    TooLarge {
        /// How many they are.
        bytes: usize,
    },
    /// A header's name or value has characters that are not allowed.
    #[error("header {name:?} has a name or value that is not allowed")]
    BadHeader {
        /// Its name.
        name: String,
    },
    /// A bound of a subscription is out of range.
    #[error("a subscription with room for no message")]
    NoBuffer,
    /// The bus is closed or unreachable.
    #[error("the bus is closed")]
    Closed,
}

impl BusError {
    /// The stable code of this failure.
    pub fn code(&self) -> &str {
        match self {
            Self::NoResponders { .. } => "NO_RESPONDERS",
            Self::Timeout { .. } => "BUS_TIMEOUT",
            Self::Remote { code, .. } => code,
            Self::TooLarge { .. } => "MESSAGE_TOO_LARGE",
            Self::BadHeader { .. } => "BAD_HEADER",
            Self::NoBuffer => "NO_BUFFER",
            Self::Closed => "BUS_CLOSED",
        }
    }
}
