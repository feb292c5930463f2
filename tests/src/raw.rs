//! Requests that the typed client would never make.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest answer, bytes.
const ANSWER_MAX: u64 = 16 * 1024 * 1024;

/// An answer.
#[derive(Debug, Clone)]
pub struct RawAnswer {
    /// HTTP status.
    pub status: u16,
    /// Headers by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// Body as it came, its chunks not put together.
    pub body: String,
}

impl RawAnswer {
    /// The stable code in the body of an error.
    pub fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        json["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends one request as it is, with `Connection: close`, and reads the answer to its end. A `Content-Length` among the
/// headers stands for a body that is announced and never sent.
///
/// # Errors
/// The connection broke, or the answer is not HTTP.
pub async fn raw(
    url: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<RawAnswer> {
    let authority = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(authority).await.context("connecting")?;
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !headers.iter().any(|(name, _)| *name == "Content-Length") {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.context("sending the head")?;
    // A server that refuses the head may not read the body.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await.context("reading the answer")?;
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(text: &str) -> Result<RawAnswer> {
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without a head")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("a status")?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(RawAnswer { status: status.parse()?, headers, body: body.to_owned() })
}
