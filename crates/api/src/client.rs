//! A typed client of the API, over HTTP/1.1 with keep-alive.

use crate::error::{ApiError, Code, ErrorBody};
use crate::link::LinkList;
use crate::types::{
    BatchItem, BatchReply, BlobReply, EventLine, EventPage, Image, ImagePut, Job, JobPage, Machine,
    Node, ScaleRequest, Service, ServicePatch, Version,
};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skein_model::ServiceSpec;
use std::fmt::Write;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

/// Largest JSON document a client accepts, bytes: a page of 1,000 machines is about 600 KiB.
const DOCUMENT_MAX: usize = 16 * 1024 * 1024;
/// Largest line of an event stream, bytes.
const EVENT_MAX: usize = 256 * 1024;

/// A server's address and the token to show it.
#[derive(Clone)]
pub struct Target {
    /// `http://HOST:PORT`.
    pub url: String,
    /// Bearer token.
    pub token: String,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("url", &self.url).field("token", &"(secret)").finish()
    }
}

/// Why a request did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with an error.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The address is no URL, or a header value is not valid.
    #[error("the request to {url} cannot be made")]
    Request {
        /// Where to.
        url: String,
        /// Why.
        source: http::Error,
    },
    /// No connection, or it broke.
    #[error("no answer from {url}")]
    Transport {
        /// Where to.
        url: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer that this version does not understand.
    #[error("an answer from {url} that is not what the API promises: {problem}")]
    Answer {
        /// Where from.
        url: String,
        /// What was wrong with it.
        problem: String,
    },
}

impl ClientError {
    /// The server's stable code, when it answered with one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Api(error) => Some(error.code),
            Self::Request { .. } | Self::Transport { .. } | Self::Answer { .. } => None,
        }
    }
}

/// How a job is to be submitted or a call made; the default leaves all to the service.
#[derive(Debug, Clone, Default)]
pub struct JobOptions {
    /// Idempotency token.
    pub token: Option<String>,
    /// Path of the request to the machine; `/` unless given.
    pub path: Option<String>,
    /// Not served later than this from now.
    pub deadline: Option<Duration>,
    /// Attempts it may have; the service's unless given.
    pub attempts: Option<u32>,
    /// How long job and result are kept after the end; the service's unless given.
    pub retention: Option<Duration>,
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// Answer only when the job has ended, or after this time.
    pub wait: Option<Duration>,
}

impl JobOptions {
    fn query(&self) -> String {
        let mut query = Query::default();
        query.add("path", self.path.as_deref());
        query.add("deadline_ms", self.deadline.map(|d| d.as_millis().to_string()).as_deref());
        query.add("attempts", self.attempts.map(|n| n.to_string()).as_deref());
        query.add("retention_ms", self.retention.map(|d| d.as_millis().to_string()).as_deref());
        query.add("wait_ms", self.wait.map(|d| d.as_millis().to_string()).as_deref());
        query.text
    }

    fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        headers.extend(self.token.clone().map(|token| ("idempotency-key", token)));
        headers.extend(self.content_type.clone().map(|kind| ("content-type", kind)));
        headers
    }
}

/// The answer of a service to a call.
#[derive(Debug, Clone)]
pub struct CallReply {
    /// HTTP status of the service.
    pub status: StatusCode,
    /// Headers: content type, `skein-job`, `skein-machine`.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// The query of an address.
#[derive(Default)]
pub(crate) struct Query {
    text: String,
}

impl Query {
    /// As it stands behind a path.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// One parameter more, if it has a value.
    pub(crate) fn add(&mut self, key: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.text.push(if self.text.is_empty() { '?' } else { '&' });
        self.text.push_str(key);
        self.text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    self.text.push(char::from(byte));
                }
                _ => {
                    let _ = write!(self.text, "%{byte:02X}");
                }
            }
        }
    }
}

/// A client: cheap to clone, keeps its connections.
#[derive(Debug, Clone)]
pub struct Client {
    target: Target,
    /// The project that requests are about; that of the token, or `default`, unless set.
    pub(crate) project: Option<String>,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

impl Client {
    /// A client of the server at `target`. Connects when first used.
    pub fn new(target: Target) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        let http = HttpClient::builder(TokioExecutor::new()).build(connector);
        Self { target, project: None, http }
    }

    /// Where it talks to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn transport(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ClientError {
        ClientError::Transport { url: self.target.url.clone(), source: source.into() }
    }

    fn answer(&self, problem: impl ToString) -> ClientError {
        ClientError::Answer { url: self.target.url.clone(), problem: problem.to_string() }
    }

    /// Sends one request and gives the answer as it comes, whatever its status.
    ///
    /// # Errors
    /// [`ClientError::Request`] and [`ClientError::Transport`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{}", self.target.url, self.path(path)))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.target.token));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|source| ClientError::Request { url: self.target.url.clone(), source })?;
        self.http.request(request).await.map_err(|source| self.transport(source))
    }

    /// A path with the client's project.
    fn path(&self, path: &str) -> String {
        let Some(project) = &self.project else { return path.to_owned() };
        let mut query = Query::default();
        query.add("project", Some(project));
        // After a query it is one parameter more.
        let mark = if path.contains('?') { "&" } else { "?" };
        format!("{path}{mark}{}", query.text.trim_start_matches('?'))
    }

    async fn collect(&self, body: Incoming, max: usize) -> Result<Bytes, ClientError> {
        let collected = Limited::new(body, max).collect().await;
        Ok(collected.map_err(|source| self.transport(source))?.to_bytes())
    }

    pub(crate) async fn checked(
        &self,
        reply: Response<Incoming>,
    ) -> Result<Response<Incoming>, ClientError> {
        if reply.status().is_success() {
            return Ok(reply);
        }
        let status = reply.status();
        let body = self.collect(reply.into_body(), DOCUMENT_MAX).await?;
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Err(ApiError::from(body).into()),
            Err(_) => Err(self.answer(format!("status {status} without an error body"))),
        }
    }

    async fn bytes(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let reply = self.send(method, path, headers, body).await?;
        let max = usize::try_from(skein_model::PAYLOAD_MAX).unwrap_or(usize::MAX);
        let reply = self.checked(reply).await?.into_body();
        self.collect(reply, max.max(DOCUMENT_MAX)).await
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.answer(error))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.bytes(Method::GET, path, &[], Bytes::new()).await?;
        self.parse(&body)
    }

    pub(crate) async fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        document: &impl Serialize,
    ) -> Result<T, ClientError> {
        let document = serde_json::to_vec(document).map_err(|error| self.answer(error))?;
        let headers = [("content-type", "application/json".to_owned())];
        let body = self.bytes(method, path, &headers, document.into()).await?;
        self.parse(&body)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.bytes(Method::DELETE, path, &[], Bytes::new()).await?;
        Ok(())
    }

    /// Any request, as `skein api` makes it: the body of a success.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn raw(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let headers = match body.is_empty() {
            true => vec![],
            false => vec![("content-type", "application/json".to_owned())],
        };
        self.bytes(method, path, &headers, body).await
    }

    /// What answers at this address.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get("/v1/version").await
    }

    /// All nodes.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn nodes(&self) -> Result<Vec<Node>, ClientError> {
        self.get("/v1/nodes").await
    }

    /// Takes a node that is gone for good out of the cloud.
    ///
    /// # Errors
    /// Any [`ClientError`]; `NODE_IN_USE` while its agent lives or a machine is on it.
    pub async fn remove_node(&self, node: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/nodes/{node}")).await
    }

    /// Gives a node another key for what it sends to other nodes.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn renew_node_key(&self, node: &str) -> Result<Node, ClientError> {
        let path = format!("/v1/nodes/{node}/renew-key");
        let body = self.bytes(Method::POST, &path, &[], Bytes::new()).await?;
        self.parse(&body)
    }

    /// The project's connections that take the link, or could, on all nodes.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn links(&self) -> Result<LinkList, ClientError> {
        self.get("/v1/links").await
    }

    /// All images.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn images(&self) -> Result<Vec<Image>, ClientError> {
        self.get("/v1/images").await
    }

    /// Stores bytes under their SHA-256.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn put_blob(&self, bytes: Bytes) -> Result<BlobReply, ClientError> {
        let body = self.bytes(Method::POST, "/v1/blobs", &[], bytes).await?;
        self.parse(&body)
    }

    /// Makes an image of blobs, or replaces it.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn put_image(&self, name: &str, image: &ImagePut) -> Result<Image, ClientError> {
        self.write(Method::PUT, &format!("/v1/images/{name}"), image).await
    }

    /// Removes an image.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn remove_image(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/images/{name}")).await
    }

    /// All services.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn services(&self) -> Result<Vec<Service>, ClientError> {
        self.get("/v1/services").await
    }

    /// One service.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn service(&self, name: &str) -> Result<Service, ClientError> {
        self.get(&format!("/v1/services/{name}")).await
    }

    /// Creates a service. The same specification again is no error.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn create_service(&self, spec: &ServiceSpec) -> Result<Service, ClientError> {
        self.write(Method::POST, "/v1/services", spec).await
    }

    /// Replaces a service's specification.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn put_service(&self, spec: &ServiceSpec) -> Result<Service, ClientError> {
        self.write(Method::PUT, &format!("/v1/services/{}", spec.name), spec).await
    }

    /// Changes the groups or bounds of a service's ports; its machines run on.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn patch_service(
        &self,
        name: &str,
        patch: &ServicePatch,
    ) -> Result<Service, ClientError> {
        self.write(Method::PATCH, &format!("/v1/services/{name}"), patch).await
    }

    /// Changes how a service is scaled.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn scale(&self, name: &str, scale: &ScaleRequest) -> Result<Service, ClientError> {
        self.write(Method::POST, &format!("/v1/services/{name}/scale"), scale).await
    }

    /// Removes a service, its machines and its waiting jobs.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn remove_service(&self, name: &str) -> Result<(), ClientError> {
        self.delete(&format!("/v1/services/{name}")).await
    }

    /// Submits one job.
    ///
    /// # Errors
    /// Any [`ClientError`]; [`Code::QueueFull`] carries `depth` and `bound`.
    pub async fn submit(
        &self,
        service: &str,
        payload: Bytes,
        options: &JobOptions,
    ) -> Result<Job, ClientError> {
        check_payload(&payload)?;
        let path = format!("/v1/services/{service}/jobs{}", options.query());
        let body = self.bytes(Method::POST, &path, &options.headers(), payload).await?;
        self.parse(&body)
    }

    /// Submits many jobs; each is accepted or refused by itself.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn submit_batch(
        &self,
        service: &str,
        items: &[BatchItem],
    ) -> Result<BatchReply, ClientError> {
        let mut lines = Vec::new();
        for item in items {
            serde_json::to_writer(&mut lines, item).map_err(|error| self.answer(error))?;
            lines.push(b'\n');
        }
        let headers = [("content-type", "application/x-ndjson".to_owned())];
        let path = format!("/v1/services/{service}/batch");
        let body = self.bytes(Method::POST, &path, &headers, lines.into()).await?;
        self.parse(&body)
    }

    /// Calls a service: holds the connection until the answer is there.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn call(
        &self,
        service: &str,
        payload: Bytes,
        options: &JobOptions,
    ) -> Result<CallReply, ClientError> {
        check_payload(&payload)?;
        let path = format!("/v1/services/{service}/call{}", options.query());
        let reply = self.send(Method::POST, &path, &options.headers(), payload).await?;
        let (head, body) = self.checked(reply).await?.into_parts();
        let max = usize::try_from(skein_model::PAYLOAD_MAX).unwrap_or(usize::MAX);
        let body = self.collect(body, max).await?;
        Ok(CallReply { status: head.status, headers: head.headers, body })
    }

    /// A page of jobs, newest first.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn jobs(
        &self,
        service: Option<&str>,
        state: Option<&str>,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<JobPage, ClientError> {
        let mut query = Query::default();
        query.add("service", service);
        query.add("state", state);
        query.add("limit", Some(&limit.to_string()));
        query.add("cursor", cursor);
        self.get(&format!("/v1/jobs{}", query.text)).await
    }

    /// One job; answers when it has ended, or after `wait`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn job(&self, id: &str, wait: Duration) -> Result<Job, ClientError> {
        self.get(&format!("/v1/jobs/{id}?wait_ms={}", wait.as_millis())).await
    }

    /// The result of a job that is done.
    ///
    /// # Errors
    /// Any [`ClientError`]; [`Code::ResultMissing`] when there is none.
    pub async fn result(&self, id: &str) -> Result<Bytes, ClientError> {
        self.bytes(Method::GET, &format!("/v1/jobs/{id}/result"), &[], Bytes::new()).await
    }

    /// Withdraws a job.
    ///
    /// # Errors
    /// Any [`ClientError`]; [`Code::JobEnded`] when it is too late.
    pub async fn cancel(&self, id: &str) -> Result<Job, ClientError> {
        let path = format!("/v1/jobs/{id}/cancel");
        let body = self.bytes(Method::POST, &path, &[], Bytes::new()).await?;
        self.parse(&body)
    }

    /// All machines; with those that ended lately when `all`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn machines(&self, all: bool) -> Result<Vec<Machine>, ClientError> {
        self.get(&format!("/v1/machines?all={all}")).await
    }

    /// One machine.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn machine(&self, id: &str) -> Result<Machine, ClientError> {
        self.get(&format!("/v1/machines/{id}")).await
    }

    /// What a machine has written to its console, as far as it is kept.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn machine_log(&self, id: &str) -> Result<Bytes, ClientError> {
        self.bytes(Method::GET, &format!("/v1/machines/{id}/log"), &[], Bytes::new()).await
    }

    /// Stops a machine: orderly unless `now`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn stop_machine(&self, id: &str, now: bool) -> Result<Machine, ClientError> {
        let path = format!("/v1/machines/{id}/stop?now={now}");
        let body = self.bytes(Method::POST, &path, &[], Bytes::new()).await?;
        self.parse(&body)
    }

    /// A page of history after line `since`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn events(&self, since: u64, limit: u32) -> Result<EventPage, ClientError> {
        self.get(&format!("/v1/events?since={since}&limit={limit}")).await
    }

    /// History as it happens, after line `since`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn follow_events(&self, since: u64) -> Result<EventStream, ClientError> {
        let path = format!("/v1/events/stream?since={since}");
        let reply = self.send(Method::GET, &path, &[], Bytes::new()).await?;
        let body = self.checked(reply).await?.into_body();
        Ok(EventStream { client: self.clone(), body, buffer: BytesMut::new() })
    }

    /// The console of a machine, both ways.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn console(&self, id: &str) -> Result<Console, ClientError> {
        let authority = self.target.url.trim_start_matches("http://").to_owned();
        let path = self.path(&format!("/v1/machines/{id}/console"));
        let url = format!("ws://{authority}{path}");
        let mut request = url.into_client_request().map_err(|e| self.transport(e))?;
        let bearer = format!("Bearer {}", self.target.token);
        let bearer =
            bearer.parse().map_err(|e: http::header::InvalidHeaderValue| self.answer(e))?;
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
        let tcp = TcpStream::connect(&authority).await.map_err(|e| self.transport(e))?;
        match tokio_tungstenite::client_async(request, tcp).await {
            Ok((socket, _)) => Ok(Console { socket }),
            Err(tokio_tungstenite::tungstenite::Error::Http(reply)) => {
                let body = reply.body().clone().unwrap_or_default();
                match serde_json::from_slice::<ErrorBody>(&body) {
                    Ok(body) => Err(ApiError::from(body).into()),
                    Err(_) => Err(self.answer(format!("status {}", reply.status()))),
                }
            }
            Err(error) => Err(self.transport(error)),
        }
    }
}

/// Refuses what the server would: it closes the connection while the payload is sent, and its answer may not be seen.
fn check_payload(payload: &Bytes) -> Result<(), ClientError> {
    if payload.len() as u64 <= skein_model::PAYLOAD_MAX {
        return Ok(());
    }
    let message = format!("the payload has more than {} bytes", skein_model::PAYLOAD_MAX);
    Err(ApiError::new(Code::PayloadTooLarge, message).into())
}

/// History as it happens.
#[derive(Debug)]
pub struct EventStream {
    client: Client,
    body: Incoming,
    buffer: BytesMut,
}

impl EventStream {
    /// The next line; none when the server ended the stream.
    ///
    /// # Errors
    /// [`ClientError::Transport`] and [`ClientError::Answer`].
    ///
    /// # Cancel safety
    /// Safe: what was read stays in the buffer.
    pub async fn next(&mut self) -> Result<Option<EventLine>, ClientError> {
        loop {
            while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if let Some(data) = line.strip_prefix(b"data:") {
                    return self.client.parse(data.trim_ascii()).map(Some);
                }
            }
            if self.buffer.len() > EVENT_MAX {
                return Err(self.client.answer("a line of more than 256 KiB"));
            }
            if self.body.is_end_stream() {
                return Ok(None);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.client.transport(error)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

/// A console, both ways.
#[derive(Debug)]
pub struct Console {
    socket: WebSocketStream<TcpStream>,
}

impl Console {
    /// The next bytes from the machine; none when it ended.
    ///
    /// # Errors
    /// The connection broke.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read(&mut self) -> std::io::Result<Option<Bytes>> {
        loop {
            match self.socket.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Text(text))) => return Ok(Some(Bytes::from(text))),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(std::io::Error::other(error)),
            }
        }
    }

    /// Sends what was typed.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn write(&mut self, bytes: Bytes) -> std::io::Result<()> {
        self.socket.send(Message::Binary(bytes)).await.map_err(std::io::Error::other)
    }
}
