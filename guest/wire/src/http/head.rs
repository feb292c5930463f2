//! A parsed request head, and the request it becomes.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::percent::form_decode;

/// A place in the head block, which is at most 64 KiB long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    start: u16,
    end: u16,
}

impl Span {
    /// Where `part` lies in `whole`, of which it must be a piece.
    pub(super) fn of(whole: &[u8], part: &[u8]) -> Option<Self> {
        let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
        let end = start.checked_add(part.len()).filter(|end| *end <= whole.len())?;
        Some(Self { start: u16::try_from(start).ok()?, end: u16::try_from(end).ok()? })
    }

    fn range(self) -> Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }
}

/// Method, target and header fields of a request. The text stays where it arrived; this holds
/// places in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Head {
    pub(super) block: Vec<u8>,
    pub(super) method: Span,
    pub(super) path: Span,
    pub(super) query: Option<Span>,
    pub(super) minor: u8,
    pub(super) fields: Vec<(Span, Span)>,
    pub(super) length: Option<usize>,
    pub(super) chunked: bool,
    pub(super) expects_continue: bool,
    pub(super) keep_alive: bool,
}

impl Head {
    /// The method as sent, for example `GET`. Methods are case-sensitive.
    #[must_use]
    pub fn method(&self) -> &str {
        self.text(self.method)
    }

    /// The path of the target, still percent-encoded; begins with `/`, or is `*` for `OPTIONS *`.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text(self.path)
    }

    /// What follows the first `?` of the target, still encoded.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.map(|span| self.text(span))
    }

    /// The first value of parameter `name` in the query, decoded. `None` too when it cannot be
    /// decoded.
    #[must_use]
    pub fn query_param(&self, name: &str) -> Option<String> {
        self.query()?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (form_decode(key)? == name).then(|| form_decode(value))
        })?
    }

    /// The first header field of that name (in any case), without surrounding blanks. `None` too
    /// when its value is not UTF-8.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.raw_headers(name).next().and_then(|value| core::str::from_utf8(value).ok())
    }

    /// All header fields, in order: name as sent, value as bytes.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|(name, value)| (self.text(*name), &self.block[value.range()]))
    }

    /// Minor version: 0 or 1.
    #[must_use]
    pub fn minor_version(&self) -> u8 {
        self.minor
    }

    /// Declared length of the body in bytes; `None` when chunked, 0 when there is no body.
    #[must_use]
    pub fn content_length(&self) -> Option<usize> {
        if self.chunked { None } else { Some(self.length.unwrap_or(0)) }
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    #[must_use]
    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// Whether the client wants the connection kept open.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    pub(super) fn raw_headers(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.headers()
            .filter(move |(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    fn text(&self, span: Span) -> &str {
        // Spans of text come from `&str`s of the parser; an empty text is the total answer.
        core::str::from_utf8(&self.block[span.range()]).unwrap_or_default()
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("method", &self.method())
            .field("path", &self.path())
            .field("query", &self.query())
            .field("fields", &self.fields.len())
            .finish_non_exhaustive()
    }
}

/// A complete request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The body, with any transfer coding removed.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body as text, if it is UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        core::str::from_utf8(&self.body).ok()
    }

    /// Hands the body over without copying it.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// The head alone.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// A request as a test or another part of a service would write it: `GET`, `POST` and so on, a
    /// target such as `/path?a=b`, and a body.
    ///
    /// # Errors
    /// The refusal a client would get for it.
    pub fn new(method: &str, target: &str, body: Vec<u8>) -> Result<Self, super::Refusal> {
        let limits = super::Limits { body: body.len(), ..super::Limits::default() };
        let mut reader = super::RequestReader::new(limits);
        let length = body.len();
        let head = alloc::format!(
            "{method} {target} HTTP/1.1\r\nhost: local\r\ncontent-length: {length}\r\n\r\n"
        );
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&body);
        let mut rest = bytes.as_slice();
        loop {
            let (used, step) = reader.feed(rest)?;
            rest = &rest[used..];
            match step {
                super::Step::Request(request) if rest.is_empty() => return Ok(request),
                super::Step::Head(_) => {}
                super::Step::Request(_) | super::Step::More => {
                    return Err(super::Refusal::Malformed);
                }
            }
        }
    }
}

impl core::ops::Deref for Request {
    type Target = Head;

    fn deref(&self) -> &Head {
        &self.head
    }
}
