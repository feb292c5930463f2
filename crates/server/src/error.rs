//! How failures become answers: a stable code, a status, one sentence.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use skein_api::{ApiError, Code};
use skein_fabric::{BlobError, BusError, QueueError, StateError};
use skein_registry::RegistryError;
use skein_shell::report;
use tracing::{error, warn};

/// An error on its way to a client.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) ApiError);

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self(ApiError::new(code, message))
    }
}

/// What a handler returns.
pub(crate) type Answer<T> = Result<T, Failure>;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = self.0.code;
        if code == Code::Internal {
            error!(message = %self.0.message, "a request failed by our fault");
        }
        (code.status(), Json(self.0.into_body())).into_response()
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        let message = report::chain(&error);
        match error {
            StateError::DiskFull => Self::new(Code::DiskFull, message),
            StateError::Unknown { .. } | StateError::Unavailable { .. } | StateError::Closed => {
                warn!(error = %message, "the state store did not answer");
                Self::new(Code::Unavailable, message)
            }
            StateError::Invalid { .. }
            | StateError::LeaseNotFound { .. }
            | StateError::Compacted { .. }
            | StateError::Lagged { .. }
            | StateError::Locked { .. }
            | StateError::Corrupt { .. }
            | StateError::Newer { .. }
            | StateError::Open { .. }
            | StateError::Protocol { .. } => Self::new(Code::Internal, message),
        }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::State { source } => source.into(),
            RegistryError::Record { .. } => Self::new(Code::Internal, report::chain(&error)),
        }
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        let message = report::chain(&error);
        match error {
            QueueError::Full { length, bound, .. } => Self(
                ApiError::new(Code::QueueFull, message).with("depth", length).with("bound", bound),
            ),
            QueueError::TokenConflict { job } => {
                Self(ApiError::new(Code::TokenReused, message).with("job", job.to_string()))
            }
            QueueError::IdConflict { .. } | QueueError::ClaimantGone => {
                Self::new(Code::Internal, message)
            }
            QueueError::NotFound { .. } => Self::new(Code::JobUnknown, message),
            QueueError::TooLarge { .. } => Self::new(Code::PayloadTooLarge, message),
            QueueError::Invalid { .. } => Self::new(Code::Invalid, message),
            QueueError::Damaged { .. } => Self::new(Code::Internal, message),
            QueueError::State { source } => source.into(),
            QueueError::Blob { source } => blob(&source, message),
            QueueError::Closed => Self::new(Code::Unavailable, message),
        }
    }
}

fn blob(error: &BlobError, message: String) -> Failure {
    match error {
        BlobError::DiskFull => Failure::new(Code::DiskFull, message),
        BlobError::TooLarge { .. } => Failure::new(Code::PayloadTooLarge, message),
        BlobError::NotFound { .. } => Failure::new(Code::BlobUnknown, message),
        // The sender's connection broke, or it sent less than it promised.
        BlobError::Source { .. } => Failure::new(Code::Malformed, message),
        _ => Failure::new(Code::Internal, message),
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        let message = report::chain(&error);
        blob(&error, message)
    }
}

impl From<BusError> for Failure {
    fn from(error: BusError) -> Self {
        Self::new(Code::NodeUnreachable, format!("the node's agent does not answer: {error}"))
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        let too_large = rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE;
        let code = if too_large { Code::PayloadTooLarge } else { Code::Malformed };
        Self::new(code, rejection.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Code::Malformed, rejection.body_text())
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self::new(Code::Malformed, rejection.body_text())
    }
}
