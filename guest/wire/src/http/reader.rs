//! Bytes of a connection become requests.
//!
//! ```text
//!            blank line                complete
//! Head ----------------------> Body -------------> Head (next request)
//!  \___________ refused ________/ \____ refused ____> Failed (terminal)
//! ```

use alloc::vec::Vec;

use super::chunked::{Decoder, Fault};
use super::head::{Head, Request, Span};

/// What a reader accepts.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of request line and header fields with their line ends, at most 65,535.
    pub head: usize,
    /// Header fields, at most 64.
    pub fields: usize,
    /// Bytes of body.
    pub body: usize,
}

impl Default for Limits {
    /// 8 KiB and 64 fields, as `docs/guest-abi.md` says, and a body of 4 MiB.
    fn default() -> Self {
        Self { head: 8192, fields: FIELDS_MAX, body: crate::BODY_DEFAULT }
    }
}

/// 64: the parser's table of fields lives on the stack.
const FIELDS_MAX: usize = 64;

/// Why a request is not served. The connection is to be closed after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a request, or one that could be read in two ways.
    #[error("malformed request")]
    Malformed,
    /// The body is longer than allowed.
    #[error("request body is too large")]
    BodyTooLarge,
    /// An expectation other than `100-continue`.
    #[error("expectation cannot be met")]
    Expectation,
    /// Head block or trailer section too long, or too many fields.
    #[error("request header is too large")]
    HeadTooLarge,
    /// A transfer coding other than `chunked`.
    #[error("transfer coding is not implemented")]
    TransferCoding,
    /// Not HTTP/1.0 or HTTP/1.1.
    #[error("HTTP version is not supported")]
    Version,
}

impl Refusal {
    /// The status to answer with: 400, 413, 417, 431, 501 or 505.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::BodyTooLarge => 413,
            Self::Expectation => 417,
            Self::HeadTooLarge => 431,
            Self::TransferCoding => 501,
            Self::Version => 505,
        }
    }

    /// Stable name of the failure.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Malformed => "REQUEST_MALFORMED",
            Self::BodyTooLarge => "REQUEST_BODY_TOO_LARGE",
            Self::Expectation => "EXPECTATION_FAILED",
            Self::HeadTooLarge => "REQUEST_HEAD_TOO_LARGE",
            Self::TransferCoding => "TRANSFER_CODING_UNKNOWN",
            Self::Version => "HTTP_VERSION_UNSUPPORTED",
        }
    }
}

/// What the bytes fed so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// All bytes were consumed; more are needed.
    More,
    /// The head of a request is complete and acceptable. Feed on for the body (with no bytes, if
    /// need be).
    Head(&'a Head),
    /// A request is complete. The next byte belongs to the next one.
    Request(Request),
}

enum State {
    Head { block: Vec<u8> },
    Body { head: Head, body: Vec<u8>, framing: Framing },
    Failed(Refusal),
}

enum Framing {
    Length { left: usize },
    Chunked(Decoder),
}

/// Reads the requests of one connection.
pub struct RequestReader {
    limits: Limits,
    state: State,
}

impl RequestReader {
    /// A reader at the beginning of a connection.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let limits = Limits {
            head: limits.head.min(65_535),
            fields: limits.fields.min(FIELDS_MAX),
            ..limits
        };
        Self { limits, state: State::Head { block: Vec::new() } }
    }

    /// Whether nothing of a next request has arrived.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(&self.state, State::Head { block } if block.is_empty())
    }

    /// Bytes of body that are held now.
    #[must_use]
    pub fn body_held(&self) -> usize {
        match &self.state {
            State::Body { body, .. } => body.len(),
            State::Head { .. } | State::Failed(_) => 0,
        }
    }

    /// Takes bytes off the front of `bytes`; returns how many, and what they amount to. The rest
    /// must be fed again.
    ///
    /// # Errors
    /// [`Refusal`]; every later call returns the same one.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(usize, Step<'_>), Refusal> {
        let result = match &mut self.state {
            State::Head { .. } => self.feed_head(bytes),
            State::Body { .. } => self.feed_body(bytes),
            State::Failed(refusal) => Err(*refusal),
        };
        match result {
            Ok((used, Outcome::Request(request))) => Ok((used, Step::Request(request))),
            Ok((used, Outcome::More)) => Ok((used, Step::More)),
            Ok((used, Outcome::Head)) => match &self.state {
                State::Body { head, .. } => Ok((used, Step::Head(head))),
                State::Head { .. } | State::Failed(_) => Ok((used, Step::More)),
            },
            Err(refusal) => {
                self.state = State::Failed(refusal);
                Err(refusal)
            }
        }
    }

    fn feed_head(&mut self, bytes: &[u8]) -> Result<(usize, Outcome), Refusal> {
        let State::Head { block } = &mut self.state else { return Ok((0, Outcome::More)) };
        // Empty lines before a request line are tolerated (RFC 9112, section 2.2).
        let skipped = if block.is_empty() {
            bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
        } else {
            0
        };
        let before = block.len();
        let room = self.limits.head + 1 - before;
        let offered = &bytes[skipped..];
        let offered = &offered[..offered.len().min(room)];
        block.extend_from_slice(offered);
        match end_of_head(block, before) {
            Some(end) if end <= self.limits.head => {
                block.truncate(end);
                let block = core::mem::take(block);
                let head = parse_head(block, self.limits.fields)?;
                self.enter_body(head)?;
                Ok((skipped + end - before, Outcome::Head))
            }
            None if block.len() <= self.limits.head => Ok((skipped + offered.len(), Outcome::More)),
            _ => Err(Refusal::HeadTooLarge),
        }
    }

    fn enter_body(&mut self, head: Head) -> Result<(), Refusal> {
        let framing = if head.chunked {
            Framing::Chunked(Decoder::new(self.limits.head))
        } else {
            let left = head.length.unwrap_or(0);
            if left > self.limits.body {
                return Err(Refusal::BodyTooLarge);
            }
            Framing::Length { left }
        };
        self.state = State::Body { head, body: Vec::new(), framing };
        Ok(())
    }

    fn feed_body(&mut self, bytes: &[u8]) -> Result<(usize, Outcome), Refusal> {
        let State::Body { body, framing, .. } = &mut self.state else {
            return Ok((0, Outcome::More));
        };
        let (used, done) = match framing {
            Framing::Length { left } => {
                let take = bytes.len().min(*left);
                if body.capacity() == 0 && take > 0 {
                    body.reserve_exact(*left);
                }
                body.extend_from_slice(&bytes[..take]);
                *left -= take;
                (take, *left == 0)
            }
            Framing::Chunked(decoder) => {
                let used =
                    decoder.feed(bytes, body, self.limits.body).map_err(|fault| match fault {
                        Fault::Malformed => Refusal::Malformed,
                        Fault::BodyTooLarge => Refusal::BodyTooLarge,
                        Fault::TrailerTooLarge => Refusal::HeadTooLarge,
                    })?;
                (used, decoder.is_done())
            }
        };
        if !done {
            return Ok((used, Outcome::More));
        }
        let next = State::Head { block: Vec::new() };
        match core::mem::replace(&mut self.state, next) {
            State::Body { head, body, .. } => Ok((used, Outcome::Request(Request { head, body }))),
            State::Head { .. } | State::Failed(_) => Ok((used, Outcome::More)),
        }
    }
}

/// [`Step`] without the borrow.
enum Outcome {
    More,
    Head,
    Request(Request),
}

/// The offset after the blank line that ends a head block. Only bytes from `from` on are new. Line
/// ends may be bare LF, as the parser accepts them.
fn end_of_head(block: &[u8], from: usize) -> Option<usize> {
    let start = from.saturating_sub(2);
    let mut at = start;
    while let Some(found) = block[at..].iter().position(|byte| *byte == b'\n') {
        let after = at + found + 1;
        match block.get(after..) {
            Some([b'\n', ..]) => return Some(after + 1),
            Some([b'\r', b'\n', ..]) => return Some(after + 2),
            _ => at = after,
        }
    }
    None
}

fn parse_head(block: Vec<u8>, fields_max: usize) -> Result<Head, Refusal> {
    let mut table = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut table[..fields_max]);
    match parsed.parse(&block) {
        Ok(httparse::Status::Complete(used)) if used == block.len() => {}
        Ok(_) => return Err(Refusal::Malformed),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(version_fault(&block)),
        Err(_) => return Err(Refusal::Malformed),
    }
    let span = |part: &[u8]| Span::of(&block, part).ok_or(Refusal::Malformed);
    let method = parsed.method.ok_or(Refusal::Malformed)?;
    let (path, query) = split_target(method, parsed.path.ok_or(Refusal::Malformed)?)?;
    let mut fields = Vec::with_capacity(parsed.headers.len());
    for field in parsed.headers.iter() {
        fields.push((span(field.name.as_bytes())?, span(field.value)?));
    }
    let (method, path) = (span(method.as_bytes())?, span(path.as_bytes())?);
    let query = query.map(|query| span(query.as_bytes())).transpose()?;
    let minor = parsed.version.ok_or(Refusal::Malformed)?;
    let mut head = Head {
        method,
        path,
        query,
        minor,
        fields,
        length: None,
        chunked: false,
        expects_continue: false,
        keep_alive: false,
        block,
    };
    head.chunked = chunked(&head)?;
    head.length = content_length(&head)?;
    if head.chunked && (head.length.is_some() || minor == 0) {
        return Err(Refusal::Malformed);
    }
    let hosts = head.raw_headers("host").count();
    if hosts > 1 || (hosts == 0 && minor == 1) {
        return Err(Refusal::Malformed);
    }
    head.expects_continue = expects_continue(&head)?;
    head.keep_alive = keep_alive(&head);
    Ok(head)
}

/// A version that is well-formed but not ours is 505; anything else in its place is 400.
fn version_fault(block: &[u8]) -> Refusal {
    let line = block.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Refusal::Version
        }
        _ => Refusal::Malformed,
    }
}

/// Path and query of a target in origin form, absolute form or, for `OPTIONS`, asterisk form.
fn split_target<'a>(method: &str, target: &'a str) -> Result<(&'a str, Option<&'a str>), Refusal> {
    if target == "*" && method == "OPTIONS" {
        return Ok((target, None));
    }
    let local = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            // Without a path the target is `/`; the one of `://` serves, because places in the
            // block are kept.
            rest.find(['/', '?'])
                .map_or(&target[scheme.len() + 1..scheme.len() + 2], |at| &rest[at..])
        }
        _ => target,
    };
    let (path, query) = match local.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (local, None),
    };
    if !path.starts_with('/') || target.contains('#') {
        return Err(Refusal::Malformed);
    }
    Ok((path, query))
}

fn chunked(head: &Head) -> Result<bool, Refusal> {
    let mut codings = head.raw_headers("transfer-encoding");
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(value), None) if value.eq_ignore_ascii_case(b"chunked") => Ok(true),
        (Some([]), None) => Err(Refusal::Malformed),
        _ => Err(Refusal::TransferCoding),
    }
}

fn content_length(head: &Head) -> Result<Option<usize>, Refusal> {
    let mut length = None;
    for value in head.raw_headers("content-length") {
        let text = core::str::from_utf8(value).map_err(|_| Refusal::Malformed)?;
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Refusal::Malformed);
        }
        // More digits than a number can hold is only too large.
        let value = text.parse().unwrap_or(usize::MAX);
        if length.is_some_and(|known| known != value) {
            return Err(Refusal::Malformed);
        }
        length = Some(value);
    }
    Ok(length)
}

fn expects_continue(head: &Head) -> Result<bool, Refusal> {
    match head.raw_headers("expect").next() {
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(head.minor == 1),
        Some(_) => Err(Refusal::Expectation),
    }
}

fn keep_alive(head: &Head) -> bool {
    let (mut close, mut keep) = (false, false);
    for value in head.raw_headers("connection") {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            close |= option.eq_ignore_ascii_case(b"close");
            keep |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    !close && (keep || head.minor == 1)
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
