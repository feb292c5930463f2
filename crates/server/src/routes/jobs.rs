//! Jobs and calls.

use crate::app::App;
use crate::error::{Answer, Failure};
use crate::extract::{Path, Query, field, parse};
use crate::scope::Scope;
use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;
use serde::Deserialize;
use skein_api::{ApiError, BatchItem, BatchReply, BatchResult, Code, ErrorBody, Job, JobPage};
use skein_fabric::{
    Body as Kept, Cancelled, Cursor, JobFilter, QueueError, StateError, StoredBody, Submission,
};
use skein_model::{
    DEADLINE_MAX, DeadLetterReason, EventKind, EventSubject, JobId, JobRecord, JobState,
    JobStateName, NewJob, PAYLOAD_MAX, ServiceName, ServiceRecord, Timestamp,
};
use skein_shell::{now, random_u128};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::oneshot;
use tokio_util::io::{ReaderStream, StreamReader};

/// Longest time that one request waits for a job, milliseconds.
const WAIT_MS_MAX: u64 = 60_000;
/// How long a call waits when its sender gives no deadline.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// How long the record of a call is kept: its answer has been given already.
const CALL_RETENTION: Duration = Duration::from_secs(60);
/// Largest batch, bytes, and most jobs of one.
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
const BATCH_JOBS_MAX: usize = 10_000;
/// How long what is left of a refused payload is read.
const DRAIN: Duration = Duration::from_secs(5);
/// After an unknown outcome the same submission is repeated under its id.
const SUBMITS_MAX: u32 = 5;

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Serving {
    /// Path and query of the request to the machine; `/` unless given
    path: Option<String>,
    /// Not served later than this many milliseconds from now
    deadline_ms: Option<u64>,
    /// Attempts it may have; the service's unless given
    attempts: Option<u32>,
    /// How long job and result are kept after the end, milliseconds; the service's unless given
    retention_ms: Option<u64>,
    /// Answer only when the job has ended, or after this many milliseconds (at most 60,000)
    wait_ms: Option<u64>,
}

fn service_of(app: &App, scope: &Scope, name: &str) -> Answer<Arc<ServiceRecord>> {
    let name: ServiceName = parse(name, Code::ServiceUnknown)?;
    let key = (scope.project.clone(), name);
    let found = app.mirror.read(|view| view.services.get(&key).map(|s| s.value.clone()));
    let unknown = || format!("service {} does not exist", key.1);
    found.ok_or_else(|| Failure::new(Code::ServiceUnknown, unknown()))
}

/// A job of the project; another's does not exist.
async fn own(app: &App, scope: &Scope, id: &str) -> Answer<JobRecord> {
    let id: JobId = parse(id, Code::JobUnknown)?;
    let job = app.queue.get(id).await?;
    if job.project == scope.project {
        return Ok(job);
    }
    Err(QueueError::NotFound { job: id }.into())
}

fn header_text(headers: &HeaderMap, name: &str) -> Answer<Option<String>> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(Failure::new(Code::Invalid, format!("{name}: must be visible ASCII"))),
    }
}

/// A job as its sender and its service want it.
fn new_job(
    service: &ServiceRecord,
    serving: &Serving,
    token: Option<String>,
    at: Timestamp,
) -> Answer<NewJob> {
    let policy = &service.spec.queue;
    let mut retry = policy.retry.clone();
    retry.attempts_max = serving.attempts.unwrap_or(retry.attempts_max);
    retry.check().map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
    let deadline = serving.deadline_ms.map(Duration::from_millis);
    if deadline.is_some_and(|deadline| deadline > DEADLINE_MAX) {
        return Err(Failure::new(Code::Invalid, "deadline_ms: must be at most 7 days"));
    }
    Ok(NewJob {
        id: JobId::new(at, random_u128()),
        project: service.project.clone(),
        service: service.spec.name.clone(),
        token,
        path: serving.path.clone().unwrap_or_else(|| "/".to_owned()),
        deadline: deadline.map(|deadline| at + deadline),
        retry,
        retention: serving.retention_ms.map_or(policy.retention, Duration::from_millis),
    })
}

/// The length that a request announces for its body.
fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a payload: in memory while it is short, else straight into a blob.
async fn payload(app: &App, headers: &HeaderMap, body: Body) -> Answer<Kept> {
    let length = announced(headers);
    if length.is_some_and(|length| length > PAYLOAD_MAX) {
        let message = format!("the payload has more than {PAYLOAD_MAX} bytes");
        return Err(Failure::new(Code::PayloadTooLarge, message));
    }
    if length.is_some_and(|length| length <= skein_model::INLINE_BODY_MAX as u64) {
        let bytes = to_bytes(body, skein_model::INLINE_BODY_MAX).await;
        let broken =
            |error| Failure::new(Code::Malformed, format!("the payload broke off: {error}"));
        return bytes.map(Kept::Inline).map_err(broken);
    }
    let mut source = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    match app.queue.body_from(&mut source).await {
        Ok(kept) => Ok(kept),
        Err(error) => {
            drain(source).await;
            Err(error.into())
        }
    }
}

/// Reads what a client still sends: one whose connection is closed while it sends may never see the answer.
async fn drain(source: impl AsyncRead) {
    let mut rest = pin!(source.take(PAYLOAD_MAX));
    let mut sink = tokio::io::sink();
    let _ = tokio::time::timeout(DRAIN, tokio::io::copy(&mut rest, &mut sink)).await;
}

fn subject(job: &NewJob, id: Option<JobId>) -> EventSubject {
    EventSubject {
        project: Some(job.project.clone()),
        service: Some(job.service.clone()),
        job: id,
        ..EventSubject::default()
    }
}

/// Which request brought a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    This,
    /// One before it, under the same token.
    Earlier,
}

/// A job that is accepted.
#[derive(Debug, Clone, Copy)]
struct Accepted {
    id: JobId,
    by: By,
}

/// Submits jobs and tells what became of each. An inline job whose outcome is not known is submitted again under its id.
async fn submit_all(app: &App, batch: Vec<Submission>) -> Vec<Result<Accepted, QueueError>> {
    let subjects: Vec<NewJob> = batch.iter().map(|s| s.job.clone()).collect();
    let outcomes = app.queue.submit(batch, now()).await;
    let mut answers = Vec::with_capacity(outcomes.len());
    let mut events = Vec::with_capacity(outcomes.len());
    for (job, outcome) in subjects.iter().zip(outcomes) {
        answers.push(match outcome {
            Ok(submitted) => {
                // Ids are random: under its own id it was accepted for this request, be it at the second try.
                let by = if submitted.id == job.id { By::This } else { By::Earlier };
                if by == By::This {
                    events.push((subject(job, Some(submitted.id)), EventKind::JobAccepted));
                }
                Ok(Accepted { id: submitted.id, by })
            }
            Err(error) => {
                if let QueueError::Full { length, .. } = &error {
                    let depth = u32::try_from(*length).unwrap_or(u32::MAX);
                    events.push((subject(job, None), EventKind::JobRefused { depth }));
                }
                Err(error)
            }
        });
    }
    tell(app, events).await;
    answers
}

/// Records events, and waits while there is no room for them.
async fn tell(app: &App, events: Vec<(EventSubject, EventKind)>) {
    if events.len() <= app.events.room() {
        return app.events.record(events).await;
    }
    // In a task of its own: a caller who leaves meanwhile takes no event with him.
    let (done, told) = oneshot::channel();
    let sink = app.events.clone();
    app.tasks.spawn(async move {
        sink.record(events).await;
        let _ = done.send(());
    });
    let _ = told.await;
}

async fn accept(
    app: &App,
    service: &ServiceRecord,
    serving: &Serving,
    headers: &HeaderMap,
    body: Body,
) -> Answer<Accepted> {
    let token = header_text(headers, "idempotency-key")?;
    let content_type = header_text(headers, "content-type")?;
    let job = new_job(service, serving, token, now())?;
    let payload = payload(app, headers, body).await?;
    let inline = match &payload {
        Kept::Inline(bytes) => Some(bytes.clone()),
        Kept::Blob(_) => None,
    };
    let bound = service.spec.queue.bound;
    let mut payload = Some(payload);
    for attempt in 1.. {
        let Some(body) = payload.take().or_else(|| inline.clone().map(Kept::Inline)) else { break };
        let content_type = content_type.clone();
        let submission = Submission { job: job.clone(), payload: body, content_type, bound };
        let outcome = submit_all(app, vec![submission]).await.pop();
        match outcome {
            Some(Err(QueueError::State { source: StateError::Unknown { .. } }))
                if attempt < SUBMITS_MAX && inline.is_some() => {}
            Some(outcome) => return Ok(outcome?),
            None => break,
        }
    }
    let message =
        "it is not known whether the job was accepted: submit it again with the same token";
    Err(Failure::new(Code::Unavailable, message))
}

/// Submit a job: the body is the payload, up to 64 MiB. Accepted means durable. The header `Idempotency-Key` makes a repeated
/// submission the same job
#[utoipa::path(post, path = "/v1/services/{service}/jobs", tag = "jobs",
    params(("service" = String, Path, description = "Name"), Serving),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 202, description = "Accepted", body = Job),
        (status = 404, description = "SERVICE_UNKNOWN", body = ErrorBody),
        (status = 409, description = "TOKEN_REUSED", body = ErrorBody),
        (status = 413, description = "PAYLOAD_TOO_LARGE", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody),
        (status = 429, description = "QUEUE_FULL, with depth and bound", body = ErrorBody),
        (status = 507, description = "DISK_FULL", body = ErrorBody)))]
pub(crate) async fn submit(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Query(serving): Query<Serving>,
    headers: HeaderMap,
    body: Body,
) -> Answer<(StatusCode, Json<Job>)> {
    let service = service_of(&app, &scope, &name)?;
    let Accepted { id, .. } = accept(&app, &service, &serving, &headers, body).await?;
    let job = look(&app, id, serving.wait_ms).await?;
    Ok((StatusCode::ACCEPTED, Json(Job::from(&job))))
}

/// The job now, or when it has ended, at most `wait_ms` later.
async fn look(app: &App, id: JobId, wait_ms: Option<u64>) -> Answer<JobRecord> {
    match wait_ms.unwrap_or(0).min(WAIT_MS_MAX) {
        0 => Ok(app.queue.get(id).await?),
        ms => Ok(app.queue.wait(id, Duration::from_millis(ms)).await?),
    }
}

/// Submit many jobs: each line of the body is a BatchItem. Each is accepted or refused by itself, in order
#[utoipa::path(post, path = "/v1/services/{service}/batch", tag = "jobs",
    params(("service" = String, Path, description = "Name")),
    request_body(content = BatchItem, content_type = "application/x-ndjson"),
    responses((status = 200, body = BatchReply),
        (status = 400, description = "MALFORMED: a line is not a BatchItem, and nothing was accepted", body = ErrorBody),
        (status = 404, description = "SERVICE_UNKNOWN", body = ErrorBody),
        (status = 413, description = "PAYLOAD_TOO_LARGE", body = ErrorBody)))]
pub(crate) async fn submit_batch(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<BatchReply>> {
    let service = service_of(&app, &scope, &name)?;
    let too_large = |what: String| Failure::new(Code::PayloadTooLarge, what);
    let too_long = || too_large(format!("a batch has at most {BATCH_BYTES_MAX} bytes"));
    if announced(&headers).is_some_and(|length| length > BATCH_BYTES_MAX as u64) {
        return Err(too_long());
    }
    let bytes = to_bytes(body, BATCH_BYTES_MAX).await.map_err(|_| too_long())?;
    let lines: Vec<&[u8]> =
        bytes.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect();
    if lines.len() > BATCH_JOBS_MAX {
        return Err(too_large(format!("a batch has at most {BATCH_JOBS_MAX} jobs")));
    }
    let at = now();
    let mut batch = Vec::with_capacity(lines.len());
    for (number, line) in lines.into_iter().enumerate() {
        batch.push(submission(&app, &service, line, at).await.map_err(|failure| {
            let message = format!("line {}: {}", number + 1, failure.0.message);
            Failure(ApiError { message, ..failure.0 })
        })?);
    }
    let mut reply =
        BatchReply { accepted: 0, refused: 0, results: Vec::with_capacity(batch.len()) };
    for outcome in submit_all(&app, batch).await {
        match outcome {
            Ok(Accepted { id, .. }) => {
                reply.accepted += 1;
                reply.results.push(BatchResult { id: Some(id.to_string()), error: None });
            }
            Err(error) => {
                reply.refused += 1;
                let detail = Failure::from(error).0.into_body().error;
                reply.results.push(BatchResult { id: None, error: Some(detail) });
            }
        }
    }
    Ok(Json(reply))
}

async fn submission(
    app: &App,
    service: &ServiceRecord,
    line: &[u8],
    at: Timestamp,
) -> Answer<Submission> {
    let item: BatchItem = crate::extract::from_json(line)?;
    let (payload, content_type) = match item.payload {
        serde_json::Value::String(text) => (text.into_bytes(), None),
        value => (value.to_string().into_bytes(), Some("application/json".to_owned())),
    };
    let serving = Serving { path: item.path, deadline_ms: item.deadline_ms, ..Serving::default() };
    Ok(Submission {
        job: new_job(service, &serving, item.token, at)?,
        payload: app.queue.body(payload.into()).await?,
        content_type,
        bound: service.spec.queue.bound,
    })
}

/// Withdraws the job of a call whose caller has gone.
struct Abandoned {
    app: App,
    id: Option<JobId>,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let app = self.app.clone();
            self.app.tasks.spawn(async move { drop(withdraw(&app, id).await) });
        }
    }
}

/// Call a service: the answer of the machine is the answer, with `skein-job` and `skein-machine` in its head. Starts a machine if
/// there is none. The call is a job: it is queued, retried and counted as one; it is withdrawn when the caller leaves, unless it has an
/// `Idempotency-Key`
#[utoipa::path(post, path = "/v1/services/{service}/call", tag = "jobs",
    params(("service" = String, Path, description = "Name"), Serving),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "The machine's answer, whatever its 2xx status", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "SERVICE_UNKNOWN", body = ErrorBody),
        (status = 413, description = "PAYLOAD_TOO_LARGE", body = ErrorBody),
        (status = 429, description = "QUEUE_FULL, with depth and bound", body = ErrorBody),
        (status = 502, description = "JOB_FAILED, with the reason's code and the machine's status", body = ErrorBody),
        (status = 504, description = "DEADLINE_EXCEEDED", body = ErrorBody)))]
pub(crate) async fn call(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Query(mut serving): Query<Serving>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    let service = service_of(&app, &scope, &name)?;
    let deadline = serving.deadline_ms.map_or(CALL_DEADLINE, Duration::from_millis);
    serving.deadline_ms = Some(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX));
    serving.retention_ms.get_or_insert(CALL_RETENTION.as_millis() as u64);
    let Accepted { id, by } = accept(&app, &service, &serving, &headers, body).await?;
    // Under a token others may wait for the same job, or come back for it.
    let own = by == By::This && !headers.contains_key("idempotency-key");
    let mut abandoned = Abandoned { app: app.clone(), id: own.then_some(id) };
    let job = app.queue.wait(id, deadline).await?;
    if job.state.ended_at().is_some() {
        abandoned.id = None;
    }
    answer(&app, job).await
}

async fn answer(app: &App, job: JobRecord) -> Answer<Response> {
    let id = job.id.to_string();
    match &job.state {
        JobState::Done { status, result, claim, .. } => {
            let body = stored(app.queue.result(&job).await?);
            let mut answer = Response::builder()
                .status(*status)
                .header("skein-job", id)
                .header("skein-machine", claim.machine.as_str())
                .header(header::CONTENT_LENGTH, result.bytes);
            if let Some(kind) = &result.content_type {
                answer = answer.header(header::CONTENT_TYPE, kind);
            }
            answer.body(body).map_err(|error| Failure::new(Code::Internal, error.to_string()))
        }
        JobState::DeadLetter { reason: DeadLetterReason::DeadlineExceeded, .. }
        | JobState::Waiting { .. }
        | JobState::Running { .. } => {
            let message = format!("the call did not end in its time (job {id})");
            Err(ApiError::new(Code::DeadlineExceeded, message).with("job", id).into())
        }
        JobState::DeadLetter { reason, .. } => {
            let mut error =
                ApiError::new(Code::JobFailed, reason.to_string()).with("reason", reason.code());
            if let DeadLetterReason::Rejected { status, .. } = reason {
                error = error.with("status", *status);
            }
            Err(error.with("job", id).into())
        }
        JobState::Cancelled { .. } => {
            Err(ApiError::new(Code::JobCancelled, "the job was cancelled").with("job", id).into())
        }
    }
}

fn stored(body: Option<StoredBody>) -> Body {
    match body {
        None => Body::empty(),
        Some(StoredBody::Inline(bytes)) => Body::from(bytes),
        Some(StoredBody::Blob(reader)) => Body::from_stream(ReaderStream::new(reader)),
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    /// Only those of a service
    service: Option<String>,
    /// Only those in this state: waiting, running, done, dead_letter or cancelled
    state: Option<String>,
    /// At most so many, 1 to 1,000; 100 unless given. A page may be shorter and yet not the last
    limit: Option<u32>,
    /// Where to go on: `next` of the page before
    cursor: Option<String>,
}

/// List jobs: by service, and the newest of each first
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", params(Filter),
    responses((status = 200, body = JobPage), (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn list(
    State(app): State<App>,
    scope: Scope,
    Query(filter): Query<Filter>,
) -> Answer<Json<JobPage>> {
    let service = filter.service.as_deref().map(|s| parse(s, Code::ServiceUnknown)).transpose()?;
    let state: Option<JobStateName> =
        filter.state.as_deref().map(|s| field("state", s)).transpose()?;
    let wanted = JobFilter { project: Some(scope.project), service, state };
    let limit = filter.limit.unwrap_or(100).clamp(1, 1000) as usize;
    let cursor = filter.cursor.map(Cursor::from_text);
    let page = app.queue.list(&wanted, cursor.as_ref(), limit).await?;
    let jobs = page.jobs.iter().map(Job::from).collect();
    Ok(Json(JobPage { jobs, next: page.next.map(|cursor| cursor.as_str().to_owned()) }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wait {
    /// Answer only when the job has ended, or after this many milliseconds (at most 60,000)
    wait_ms: Option<u64>,
}

/// Show one job
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "jobs",
    params(("job" = String, Path, description = "Id"), Wait),
    responses((status = 200, body = Job), (status = 404, description = "JOB_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<App>,
    scope: Scope,
    Path(id): Path<String>,
    Query(wait): Query<Wait>,
) -> Answer<Json<Job>> {
    let id = own(&app, &scope, &id).await?.id;
    let job = look(&app, id, wait.wait_ms).await?;
    Ok(Json(Job::from(&job)))
}

/// The payload of a job
#[utoipa::path(get, path = "/v1/jobs/{job}/payload", tag = "jobs",
    params(("job" = String, Path, description = "Id")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "JOB_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn payload_of(
    State(app): State<App>,
    scope: Scope,
    Path(id): Path<String>,
) -> Answer<Response> {
    let job = own(&app, &scope, &id).await?;
    let body = stored(Some(app.queue.payload(&job).await?));
    Ok(with_type(job.payload.content_type.as_deref(), body))
}

fn with_type(content_type: Option<&str>, body: Body) -> Response {
    let kind = content_type.unwrap_or("application/octet-stream").to_owned();
    // What a service answered is nobody's page: a browser shall not run it.
    let headers =
        [(header::CONTENT_TYPE, kind), (header::X_CONTENT_TYPE_OPTIONS, "nosniff".into())];
    (headers, body).into_response()
}

/// The result of a job that is done
#[utoipa::path(get, path = "/v1/jobs/{job}/result", tag = "jobs",
    params(("job" = String, Path, description = "Id")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "JOB_UNKNOWN", body = ErrorBody),
        (status = 409, description = "RESULT_MISSING", body = ErrorBody)))]
pub(crate) async fn result(
    State(app): State<App>,
    scope: Scope,
    Path(id): Path<String>,
) -> Answer<Response> {
    let job = own(&app, &scope, &id).await?;
    let JobState::Done { result, .. } = &job.state else {
        let message = format!("job {} is {}", job.id, job.state.name().as_str());
        return Err(Failure::new(Code::ResultMissing, message));
    };
    let body = stored(app.queue.result(&job).await?);
    Ok(with_type(result.content_type.as_deref(), body))
}

/// Withdraws a job; tells whether it was still to be withdrawn.
async fn withdraw(app: &App, id: JobId) -> Answer<bool> {
    match app.queue.cancel(id, now()).await? {
        Cancelled::Cancelled { .. } => Ok(true),
        Cancelled::AlreadyEnded { state } => Ok(state == JobStateName::Cancelled),
    }
}

/// Withdraw a job. A running one is let go: its result, should one come, is dropped. Repeating it is harmless
#[utoipa::path(post, path = "/v1/jobs/{job}/cancel", tag = "jobs",
    params(("job" = String, Path, description = "Id")),
    responses((status = 200, body = Job), (status = 404, description = "JOB_UNKNOWN", body = ErrorBody),
        (status = 409, description = "JOB_ENDED", body = ErrorBody)))]
pub(crate) async fn cancel(
    State(app): State<App>,
    scope: Scope,
    Path(id): Path<String>,
) -> Answer<Json<Job>> {
    let id = own(&app, &scope, &id).await?.id;
    let withdrawn = withdraw(&app, id).await?;
    let job = app.queue.get(id).await?;
    if withdrawn {
        return Ok(Json(Job::from(&job)));
    }
    let message = format!("job {id} has ended: {}", job.state.name().as_str());
    Err(Failure::new(Code::JobEnded, message))
}
