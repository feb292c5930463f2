//! One kept connection of HTTP/1.1, that tells when the first byte of an answer came.
//!
//! The same client measures ours and the baseline, so that its own cost is in both.

use crate::error::BenchError;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A whole exchange; a cold start of an emulated machine takes a tenth of a second.
const DEADLINE: Duration = Duration::from_secs(30);

/// A connection.
pub(crate) struct Wire {
    to: String,
    token: Option<String>,
    sender: SendRequest<Full<Bytes>>,
    connection: Pin<Box<Connection<TokioIo<TcpStream>, Full<Bytes>>>>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// From the request to the head of the answer.
    pub(crate) first: Duration,
    /// From the request to the end of the answer.
    pub(crate) whole: Duration,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Wire {
    /// Connects to a server that wants this token.
    pub(crate) async fn connect(to: SocketAddr, token: &str) -> Result<Self, BenchError> {
        let stream =
            TcpStream::connect(to).await.map_err(BenchError::io(format!("connecting to {to}")))?;
        stream.set_nodelay(true).map_err(BenchError::io("setting up a socket"))?;
        Ok(Self { token: Some(token.to_owned()), ..Self::over(stream, &to.to_string()).await? })
    }

    /// Speaks over a stream that is connected.
    pub(crate) async fn over(stream: TcpStream, to: &str) -> Result<Self, BenchError> {
        let failed = |source| BenchError::Http { to: to.to_owned(), source };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        Ok(Self { to: to.to_owned(), token: None, sender, connection: Box::pin(connection) })
    }

    /// Sends `POST path` and reads the answer, whatever its status.
    ///
    /// # Cancel safety
    /// Not safe: the connection is of no use afterwards.
    pub(crate) async fn post(&mut self, path: &str, body: Bytes) -> Result<Answer, BenchError> {
        let mut request = Request::post(path).header("host", self.to.as_str());
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| BenchError::unexpected(format!("no request for {path}: {error}")))?;
        let begun = Instant::now();
        let reply = self.sender.send_request(request);
        let exchange = async {
            let reply = reply.await?;
            let first = begun.elapsed();
            let (head, body) = reply.into_parts();
            let body = body.collect().await?.to_bytes();
            let whole = begun.elapsed();
            Ok(Answer { first, whole, status: head.status, headers: head.headers, body })
        };
        let answer = drive(self.connection.as_mut(), exchange);
        match timeout(DEADLINE, answer).await {
            Ok(answer) => answer.map_err(|source| BenchError::Http { to: self.to.clone(), source }),
            Err(_) => Err(BenchError::Deadline {
                what: format!("an answer of {} to {path}", self.to),
                waited: DEADLINE,
            }),
        }
    }

    /// The same; any status but 2xx is an error.
    pub(crate) async fn post_ok(&mut self, path: &str, body: Bytes) -> Result<Answer, BenchError> {
        let answer = self.post(path, body).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let text: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
        Err(BenchError::unexpected(format!(
            "{} answered {} to {path}: {text}",
            self.to, answer.status
        )))
    }
}

/// Waits for `exchange` while the connection under it moves. It moves only then, and in the same task: so no time is
/// spent in waking another.
async fn drive<T>(
    mut connection: Pin<&mut Connection<TokioIo<TcpStream>, Full<Bytes>>>,
    exchange: impl Future<Output = Result<T, hyper::Error>>,
) -> Result<T, hyper::Error> {
    let mut exchange = std::pin::pin!(exchange);
    let mut open = true;
    std::future::poll_fn(|context| {
        if open {
            // Its end, good or bad, is told to the exchange by hyper.
            open = connection.as_mut().poll(context).is_pending();
        }
        exchange.as_mut().poll(context)
    })
    .await
}
