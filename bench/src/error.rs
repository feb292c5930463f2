//! Why a bench has no figures.

use skein_api::ClientError;
use skein_cloud::CloudError;
use skein_net::NetError;
use std::io;
use std::time::Duration;

/// Why a bench has no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The number of measurements cannot be.
    #[error("-n {given}: bench {bench} takes {least} to {most}")]
    Count {
        /// Which bench.
        bench: &'static str,
        /// What was asked for.
        given: u32,
        /// The least it takes.
        least: u32,
        /// The most it takes.
        most: u32,
    },
    /// The cloud did not start.
    #[error("starting the cloud of the bench")]
    Cloud(#[from] CloudError),
    /// The cloud answered with an error.
    #[error("asking the cloud")]
    Client(#[from] ClientError),
    /// The baseline's network.
    #[error("the network of the baseline")]
    Network(#[from] NetError),
    /// A file, process or socket.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
    /// An exchange of HTTP broke.
    #[error("a request to {to}")]
    Http {
        /// Whom.
        to: String,
        /// Why.
        source: hyper::Error,
    },
    /// An answer was not what it must be.
    #[error("{what}")]
    Unexpected {
        /// What came instead of what.
        what: String,
    },
    /// Something did not happen.
    #[error("{what} did not happen within {waited:?}")]
    Deadline {
        /// What.
        what: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The user ended it.
    #[error("interrupted")]
    Interrupted,
    /// The bench itself is wrong.
    #[error("the bench ended by a bug of its own; what it had made is removed")]
    Bug,
    /// A plot could not be drawn.
    #[error("drawing {path}: {problem}")]
    Plot {
        /// Which file.
        path: String,
        /// Why.
        problem: String,
    },
}

impl BenchError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Count { .. } => "BENCH_COUNT",
            Self::Cloud(_) => "BENCH_CLOUD",
            Self::Client(error) => error.code().map_or("BENCH_CLIENT", skein_api::Code::as_str),
            Self::Network(error) => error.code(),
            Self::Io { .. } => "BENCH_IO",
            Self::Http { .. } => "BENCH_HTTP",
            Self::Unexpected { .. } => "BENCH_UNEXPECTED",
            Self::Deadline { .. } => "BENCH_DEADLINE",
            Self::Interrupted => "BENCH_INTERRUPTED",
            Self::Bug => "BENCH_BUG",
            Self::Plot { .. } => "BENCH_PLOT",
        }
    }

    /// For `map_err`: what was tried when the system refused.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    pub(crate) fn unexpected(what: impl Into<String>) -> Self {
        Self::Unexpected { what: what.into() }
    }
}
