//! What can go wrong with a broker.

use std::io;
use std::path::PathBuf;

/// A broker could not be started or asked. [`BrokerError::code`] is stable.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Its socket's path is too long, or has no file name.
    #[error("{path} cannot be the path of a socket")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// Another broker answers on the socket.
    #[error("a broker already listens on {path}")]
    Running {
        /// The path.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("listening on {path}")]
    Listen {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No broker answers.
    #[error("asking the broker on {path}")]
    Ask {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The broker answered something else.
    #[error("what listens on {path} is no broker of this version")]
    Answer {
        /// The path.
        path: PathBuf,
    },
    /// The broker's thread could not be started.
    #[error("starting the broker's thread")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

impl BrokerError {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Path { .. } => "LINK_BROKER_PATH",
            Self::Running { .. } => "LINK_BROKER_RUNNING",
            Self::Listen { .. } => "LINK_BROKER_LISTEN",
            Self::Ask { .. } => "LINK_BROKER_ABSENT",
            Self::Answer { .. } => "LINK_BROKER_ANSWER",
            Self::Thread { .. } => "LINK_BROKER_THREAD",
        }
    }
}
