//! Answers with what it was sent, and misbehaves on request.
//!
//! `GET /` without parameters answers a small JSON about the machine; everything else is answered
//! with the request's body and its `content-type`. Parameters of the query change that, in this
//! order:
//!
//! | parameter | effect |
//! | --- | --- |
//! | `panic=1` | the handler panics: the machine ends with exit code 0x11 |
//! | `overflow=1` | the handler overflows its stack: exit code 0x14 |
//! | `oom=1` | the handler allocates until nothing is left: exit code 0x13 |
//! | `hang=1` | the handler computes for ever and never yields: the whole machine stands still |
//! | `sleep_ms=N` | waits, while others are served |
//! | `spin_ms=N` | computes for N milliseconds, while nobody else is served |
//! | `size=N` | answers with N bytes `x` instead of the body |
//! | `status=N` | answers with this status, 200..=599 |

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::hint::black_box;
use core::time::Duration;

use skein_unikernel::{Request, Response, host_name, now, sleep, stats};

/// Answers a request as the module's table says.
pub async fn handle(request: Request) -> Response {
    misbehave(&request);
    if let Some(ms) = number(&request, "sleep_ms") {
        sleep(Duration::from_millis(ms)).await;
    }
    if let Some(ms) = number(&request, "spin_ms") {
        let end = now() + Duration::from_millis(ms);
        while now() < end {
            core::hint::spin_loop();
        }
    }
    let status = number(&request, "status").map(|status| u16::try_from(status).unwrap_or(500));
    let response = answer(request);
    match status {
        Some(status) => response.with_status(status),
        None => response,
    }
}

fn answer(request: Request) -> Response {
    if let Some(size) = number(&request, "size") {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut body = Vec::new();
        if body.try_reserve_exact(size).is_err() {
            return Response::error(
                413,
                "SIZE_TOO_LARGE",
                "there is no memory for so large an answer",
            );
        }
        body.resize(size, b'x');
        return Response::bytes("application/octet-stream", body);
    }
    if request.method() == "GET" && request.path() == "/" && request.query().is_none() {
        return about();
    }
    let media_type =
        String::from(request.header("content-type").unwrap_or("application/octet-stream"));
    Response::bytes(media_type, request.into_body())
}

fn about() -> Response {
    let stats = stats();
    Response::json(format!(
        "{{\"host\":\"{}\",\"uptime_us\":{},\"requests\":{},\"mem_used\":{},\"mem_total\":{}}}\n",
        host_name(),
        stats.uptime_us,
        stats.requests,
        stats.mem_used,
        stats.mem_total
    ))
}

/// The ways to end or block a machine, for tests of whoever looks after it.
fn misbehave(request: &Request) {
    let asked = |name| request.query_param(name).is_some_and(|value| value == "1");
    assert!(!asked("panic"), "a request asked for a panic");
    if asked("overflow") {
        overflow(0);
    }
    if asked("oom") {
        exhaust();
    }
    if asked("hang") {
        loop {
            core::hint::spin_loop();
        }
    }
}

/// Recurses until the stack's guard page.
#[expect(unconditional_recursion, reason = "that is its purpose")]
fn overflow(depth: usize) -> usize {
    let frame = black_box([depth; 64]);
    overflow(depth + 1) + black_box(frame)[depth % 64]
}

/// Allocates until the machine ends.
fn exhaust() {
    let mut blocks = Vec::new();
    loop {
        blocks.push(black_box(Vec::<u8>::with_capacity(64 << 10)));
    }
}

fn number(request: &Request, name: &str) -> Option<u64> {
    request.query_param(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};

    fn ask(method: &str, target: &str, body: &[u8]) -> Response {
        let request = Request::new(method, target, body.to_vec()).unwrap();
        match pin!(handle(request)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) => response,
            Poll::Pending => panic!("nothing to wait for"),
        }
    }

    #[test]
    fn echoes() {
        let response = ask("POST", "/any?x=1", b"hello");
        assert_eq!((response.status(), response.body()), (200, &b"hello"[..]));
        assert_eq!(ask("GET", "/path", b"").body(), b"");
    }

    #[test]
    fn obeys() {
        let response = ask("GET", "/?status=503&size=3", b"");
        assert_eq!((response.status(), response.body()), (503, &b"xxx"[..]));
        assert_eq!(ask("GET", "/?status=9", b"").status(), 500);
        assert_eq!(ask("GET", "/?size=99999999999999999", b"").status(), 413);
        assert_eq!(ask("GET", "/?size=many", b"").status(), 200);
    }

    #[test]
    fn tells_about_the_machine() {
        let response = ask("GET", "/", b"");
        let text = core::str::from_utf8(response.body()).unwrap();
        assert!(text.starts_with("{\"host\":\"machine\",\"uptime_us\":"), "{text}");
    }
}
