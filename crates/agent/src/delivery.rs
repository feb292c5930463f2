//! A job's way into a machine and its answer's way back: HTTP/1.1 over connections that are kept.
//!
//! A guest is hostile: its answer's head is bounded by the client's buffer, its body by [`PAYLOAD_MAX`], and its time
//! by the caller.

use bytes::{Bytes, BytesMut};
use http::{Request, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use skein_fabric::{BlobStore, Body, QueueError, StoredBody};
use skein_model::{INLINE_BODY_MAX, JobRecord, PAYLOAD_MAX};
use skein_net::Connector;
use skein_shell::{Tasks, report};
use std::fmt;
use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::io::ReaderStream;
use tracing::debug;

/// Head of an answer, bytes: status line and fields.
const HEAD_MAX: usize = 64 * 1024;
/// Fields of an answer.
const FIELDS_MAX: usize = 64;
/// Beginning of a refusal's body that is kept as its message, bytes.
const MESSAGE_MAX: usize = 400;
/// What every unikernel answers without its service knowing (`docs/guest-abi.md`); other guests answer 404, which
/// is as good.
const HEALTH: &str = "/_skein/health";
/// Requests of one rehearsal: the emulator translates code when it runs first, and joins the pieces when it runs again.
const REHEARSALS: u32 = 3;

type Outgoing = BoxBody<Bytes, io::Error>;

/// A machine's answer to a job.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A status of 2xx.
    Served {
        /// HTTP status.
        status: u16,
        /// The result.
        body: Body,
        /// Its media type.
        content_type: Option<String>,
    },
    /// Any other status.
    Refused {
        /// HTTP status.
        status: u16,
        /// Beginning of the body.
        message: String,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliveryError {
    /// The machine cannot be reached.
    #[error("connecting to {to}")]
    Connect {
        /// Its address.
        to: SocketAddrV4,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("the exchange with {to} broke")]
    Exchange {
        /// Its address.
        to: SocketAddrV4,
        /// Why.
        source: hyper::Error,
    },
    /// The request cannot be made.
    #[error("the request cannot be made")]
    Request {
        /// Why.
        source: http::Error,
    },
    /// The payload could not be read or the answer not kept: our fault, not the machine's.
    #[error("keeping or reading a body")]
    Store {
        /// Why.
        source: QueueError,
    },
    /// The answer is longer than a result may be.
    #[error("the answer is longer than {PAYLOAD_MAX} bytes")]
    TooLong,
}

/// Connections to one machine.
pub(crate) struct Delivery {
    connector: Connector,
    to: SocketAddrV4,
    tasks: Tasks,
    /// Connections that wait for the next request. Never more than jobs were in service at once.
    /// `None` when the agent stops, so that connections end with what is under way on them.
    idle: Mutex<Option<Vec<SendRequest<Outgoing>>>>,
    /// Whether anything was ever sent.
    used: AtomicBool,
    /// Connections that are open.
    open: Arc<AtomicU32>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("to", &self.to).finish_non_exhaustive()
    }
}

impl Delivery {
    /// Connections to the machine at `to`, made when first used. Their tasks belong to `tasks`.
    pub(crate) fn new(connector: Connector, to: SocketAddrV4, tasks: Tasks) -> Self {
        Self {
            connector,
            to,
            tasks,
            idle: Mutex::new(Some(Vec::new())),
            used: AtomicBool::new(false),
            open: Arc::default(),
        }
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether anything was ever sent.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Has the machine answer requests that mean nothing, in the form of a job, and keeps the connection. The caller bounds the time.
    ///
    /// # Errors
    /// [`DeliveryError`].
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(crate) async fn rehearse(&self) -> Result<(), DeliveryError> {
        let mut connection = self.connection().await?;
        for attempt in 1..=REHEARSALS {
            let body = Full::new(Bytes::from_static(b"rehearsal"));
            let request = Request::post(HEALTH)
                .header(header::HOST, self.to.to_string())
                .header("skein-job", "0")
                .header("skein-attempt", attempt)
                .body(body.map_err(|never| match never {}).boxed())
                .map_err(|source| DeliveryError::Request { source })?;
            let exchange = |source| DeliveryError::Exchange { to: self.to, source };
            connection.ready().await.map_err(exchange)?;
            let answer = connection.send_request(request).await.map_err(exchange)?;
            self.beginning(&mut answer.into_body()).await?;
        }
        self.keep(connection);
        Ok(())
    }

    fn keep(&self, connection: SendRequest<Outgoing>) {
        if let Some(idle) = &mut *self.idle()
            && !connection.is_closed()
        {
            idle.push(connection);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Option<Vec<SendRequest<Outgoing>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps no connection from now on: each ends with what is under way on it.
    pub(crate) fn close(&self) {
        self.idle().take();
    }

    /// Sends a job and reads the answer. The caller bounds the time.
    ///
    /// # Errors
    /// [`DeliveryError`].
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection; the machine may go on with the job.
    pub(crate) async fn send(
        &self,
        job: &JobRecord,
        payload: StoredBody,
        blobs: &BlobStore,
    ) -> Result<Reply, DeliveryError> {
        let mut connection = self.connection().await?;
        let request = self.request(job, payload)?;
        let exchange = |source| DeliveryError::Exchange { to: self.to, source };
        let answer = connection.send_request(request).await.map_err(exchange)?;
        let reply = self.read(answer, blobs).await?;
        self.keep(connection);
        Ok(reply)
    }

    /// A connection on which nothing is under way. One that the machine closed meanwhile is passed over.
    async fn connection(&self) -> Result<SendRequest<Outgoing>, DeliveryError> {
        self.used.store(true, Ordering::Relaxed);
        loop {
            let kept = self.idle().as_mut().and_then(Vec::pop);
            let Some(mut kept) = kept else { break };
            if kept.ready().await.is_ok() {
                return Ok(kept);
            }
        }
        let connect = |source| DeliveryError::Connect { to: self.to, source };
        let stream = self.connector.connect(self.to).await.map_err(connect)?;
        let mut client = http1::Builder::new();
        client.max_buf_size(HEAD_MAX).max_headers(FIELDS_MAX);
        let exchange = |source| DeliveryError::Exchange { to: self.to, source };
        let (sender, connection) =
            client.handshake(TokioIo::new(stream)).await.map_err(exchange)?;
        // Ends when nothing is under way and nobody keeps the sender: see `close`.
        let open = self.open.clone();
        open.fetch_add(1, Ordering::Relaxed);
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                debug!(error = %report::chain(&error), "a connection to a machine ended");
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(sender)
    }

    fn request(
        &self,
        job: &JobRecord,
        payload: StoredBody,
    ) -> Result<Request<Outgoing>, DeliveryError> {
        let body: Outgoing = match payload {
            StoredBody::Inline(bytes) => Full::new(bytes).map_err(|never| match never {}).boxed(),
            StoredBody::Blob(reader) => {
                let stream = ReaderStream::with_capacity(reader, 64 * 1024);
                let frames = futures_util::StreamExt::map(stream, |piece| piece.map(Frame::data));
                BodyExt::boxed(StreamBody::new(frames))
            }
        };
        let mut request = Request::post(job.path.as_str())
            .header(header::HOST, self.to.to_string())
            .header(header::CONTENT_LENGTH, job.payload.bytes)
            .header("skein-job", job.id.to_string())
            .header("skein-attempt", job.attempts);
        if let Some(kind) = &job.payload.content_type {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        request.body(body).map_err(|source| DeliveryError::Request { source })
    }

    async fn read(
        &self,
        answer: http::Response<Incoming>,
        blobs: &BlobStore,
    ) -> Result<Reply, DeliveryError> {
        let (head, mut body) = answer.into_parts();
        let status = head.status.as_u16();
        if !head.status.is_success() {
            let message = self.beginning(&mut body).await?;
            return Ok(Reply::Refused { status, message });
        }
        let content_type = head.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = self.collect(&mut body, blobs).await?;
        Ok(Reply::Served { status, body, content_type })
    }

    async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, DeliveryError> {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| DeliveryError::Exchange { to: self.to, source })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The first bytes of a refusal's body as text. The rest is read too, up to a bound, so that the connection can be
    /// used again.
    async fn beginning(&self, body: &mut Incoming) -> Result<String, DeliveryError> {
        let (mut kept, mut read) = (BytesMut::new(), 0);
        while let Some(data) = self.next(body).await? {
            read += data.len();
            if read > INLINE_BODY_MAX {
                break;
            }
            let room = MESSAGE_MAX - kept.len();
            kept.extend_from_slice(&data[..data.len().min(room)]);
        }
        let text = String::from_utf8_lossy(&kept);
        Ok(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    }

    /// The body of an answer: in memory while it is short, else as a blob.
    async fn collect(&self, body: &mut Incoming, blobs: &BlobStore) -> Result<Body, DeliveryError> {
        let store = |source: skein_fabric::BlobError| match source {
            skein_fabric::BlobError::TooLarge { .. } => DeliveryError::TooLong,
            source => DeliveryError::Store { source: source.into() },
        };
        let mut short = BytesMut::new();
        while let Some(data) = self.next(body).await? {
            if short.is_empty() && data.len() <= INLINE_BODY_MAX && body_ended(body) {
                return Ok(Body::Inline(data));
            }
            if short.len() + data.len() <= INLINE_BODY_MAX {
                short.extend_from_slice(&data);
                continue;
            }
            let mut writer = blobs.writer(PAYLOAD_MAX).await.map_err(store)?;
            writer.write(&short).await.map_err(store)?;
            writer.write(&data).await.map_err(store)?;
            while let Some(data) = self.next(body).await? {
                writer.write(&data).await.map_err(store)?;
            }
            return writer.finish().await.map(Body::Blob).map_err(store);
        }
        Ok(Body::Inline(short.freeze()))
    }
}

fn body_ended(body: &Incoming) -> bool {
    hyper::body::Body::is_end_stream(body)
}
