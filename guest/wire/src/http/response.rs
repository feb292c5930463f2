//! What a service answers.

use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;

use super::date::HttpDate;

/// An answer: status, header fields, body. `content-length`, `connection` and `date` are the
/// server's to write and are ignored when a service sets them; so is `transfer-encoding`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    status: u16,
    fields: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    body: Cow<'static, [u8]>,
}

impl Response {
    /// An empty answer. A status outside 200..=599 becomes 500.
    #[must_use]
    pub fn new(status: u16) -> Self {
        let status = if (200..=599).contains(&status) { status } else { 500 };
        Self { status, fields: Vec::new(), body: Cow::Borrowed(&[]) }
    }

    /// 200 with text.
    #[must_use]
    pub fn text(text: impl Into<Cow<'static, str>>) -> Self {
        let body = match text.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Self::new(200).with_body("text/plain; charset=utf-8", body)
    }

    /// 200 with JSON that is already text.
    #[must_use]
    pub fn json(json: String) -> Self {
        Self::new(200).with_body("application/json", json.into_bytes())
    }

    /// 200 with bytes of the given media type.
    #[must_use]
    pub fn bytes(
        media_type: impl Into<Cow<'static, str>>,
        body: impl Into<Cow<'static, [u8]>>,
    ) -> Self {
        Self::new(200).with_body(media_type, body)
    }

    /// An error with a stable code and a sentence, as JSON: `{"code": "...", "message": "..."}`.
    #[must_use]
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let mut json = String::from("{\"code\":");
        push_json_string(&mut json, code);
        json.push_str(",\"message\":");
        push_json_string(&mut json, message);
        json.push_str("}\n");
        Self::new(status).with_body("application/json", json.into_bytes())
    }

    /// The same answer with another body.
    #[must_use]
    pub fn with_body(
        self,
        media_type: impl Into<Cow<'static, str>>,
        body: impl Into<Cow<'static, [u8]>>,
    ) -> Self {
        Self { body: body.into(), ..self }.with_header("content-type", media_type)
    }

    /// The same answer with another status, see [`Response::new`].
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status: Self::new(status).status, ..self }
    }

    /// The same answer with one more header field; a field of that name is replaced. A name that is
    /// not a token is ignored; control characters in the value become blanks.
    #[must_use]
    pub fn with_header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, str>>,
    ) -> Self {
        let (name, mut value) = (name.into(), value.into());
        if !is_token(&name) || is_reserved(&name) {
            return self;
        }
        if value.chars().any(char::is_control) {
            value = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        }
        match self.fields.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(&name)) {
            Some(field) => field.1 = value,
            None => self.fields.push((name, value)),
        }
        self
    }

    /// The status, 200..=599.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The value of a header field that the service set.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.as_ref())
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Appends status line and header block to `out`. `date` is left out when the clock is not
    /// known.
    pub fn encode_head(&self, keep_alive: bool, date: Option<HttpDate>, out: &mut Vec<u8>) {
        let mut put = |part: &str| out.extend_from_slice(part.as_bytes());
        put("HTTP/1.1 ");
        put(&self.status.to_string());
        put(" ");
        put(reason(self.status));
        for (name, value) in &self.fields {
            put("\r\n");
            put(name);
            put(": ");
            put(value);
        }
        if self.may_have_body() {
            put("\r\ncontent-length: ");
            put(&self.body.len().to_string());
        }
        if let Some(date) = date {
            put("\r\ndate: ");
            put(&date.to_string());
        }
        put(if keep_alive { "\r\n\r\n" } else { "\r\nconnection: close\r\n\r\n" });
    }

    /// Whether an answer of this status carries a body at all (not 204 and 304).
    #[must_use]
    pub fn may_have_body(&self) -> bool {
        !matches!(self.status, 204 | 304)
    }
}

impl From<&'static str> for Response {
    fn from(text: &'static str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Response {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl From<Vec<u8>> for Response {
    fn from(body: Vec<u8>) -> Self {
        Self::bytes("application/octet-stream", body)
    }
}

impl<R: Into<Response>, E: Into<Response>> From<Result<R, E>> for Response {
    fn from(result: Result<R, E>) -> Self {
        match result {
            Ok(good) => good.into(),
            Err(bad) => bad.into(),
        }
    }
}

fn is_token(name: &str) -> bool {
    let extra = b"!#$%&'*+-.^_`|~";
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
}

fn is_reserved(name: &str) -> bool {
    ["content-length", "connection", "date", "transfer-encoding"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(name))
}

/// Appends `text` as a JSON string.
fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The reason phrase of a status; empty when it has none that is well known.
#[must_use]
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn head(response: &Response, keep_alive: bool) -> String {
        let mut out = vec![];
        response.encode_head(keep_alive, None, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn encodes() {
        assert_eq!(
            head(&Response::text("hello").with_header("x-a", "b"), true),
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\nx-a: b\r\ncontent-length: 5\r\n\r\n"
        );
        assert_eq!(
            head(&Response::new(204), false),
            "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"
        );
        let mut out = vec![];
        Response::new(404).encode_head(true, Some(HttpDate(0)), &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"), "{text}");
    }

    #[test]
    fn a_service_cannot_break_the_framing() {
        let response = Response::new(99)
            .with_header("x", "a\r\nset-cookie: b")
            .with_header("bad name", "v")
            .with_header("Content-Length", "7")
            .with_header("X", "2\r\n");
        assert_eq!(
            head(&response, true),
            "HTTP/1.1 500 Internal Server Error\r\nx: 2  \r\ncontent-length: 0\r\n\r\n"
        );
    }

    #[test]
    fn errors_are_json() {
        let response = Response::error(400, "A_CODE", "say \"no\"\n");
        assert_eq!(
            response.body(),
            b"{\"code\":\"A_CODE\",\"message\":\"say \\\"no\\\"\\u000a\"}\n"
        );
        assert_eq!(response.header("Content-Type"), Some("application/json"));
    }

    #[test]
    fn conversions() {
        let check = |response: Response, body: &[u8]| assert_eq!(response.body(), body);
        check("a".into(), b"a");
        check(String::from("b").into(), b"b");
        check(vec![1u8].into(), &[1]);
        check(Ok::<_, &'static str>("c").into(), b"c");
    }
}
