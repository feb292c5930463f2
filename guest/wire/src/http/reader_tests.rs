use super::*;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use proptest::prelude::*;

/// Everything a connection that sends `bytes` in `pieces` amounts to: requests, and the refusal if
/// any.
fn read(pieces: &[&[u8]], limits: Limits) -> (Vec<Request>, Option<Refusal>) {
    let mut reader = RequestReader::new(limits);
    let mut requests = vec![];
    for piece in pieces {
        let mut rest = *piece;
        loop {
            match reader.feed(rest) {
                Ok((used, step)) => {
                    let idle = matches!(step, Step::More);
                    if let Step::Request(request) = step {
                        requests.push(request);
                    }
                    assert!(!idle || used == rest.len(), "bytes left although more were asked for");
                    rest = &rest[used..];
                    if idle {
                        break;
                    }
                }
                Err(refusal) => {
                    assert_eq!(reader.feed(b"x"), Err(refusal), "a refusal is final");
                    return (requests, Some(refusal));
                }
            }
        }
    }
    (requests, None)
}

const SMALL: Limits = Limits { head: 256, fields: 4, body: 16 };

fn one(text: &str) -> Request {
    let (mut requests, refusal) = read(&[text.as_bytes()], SMALL);
    assert_eq!((requests.len(), refusal), (1, None), "{text}");
    requests.remove(0)
}

fn refused(text: &str, status: u16) {
    let (_, refusal) = read(&[text.as_bytes()], SMALL);
    assert_eq!(refusal.map(Refusal::status), Some(status), "{text:?}");
}

#[test]
fn a_simple_request() {
    let request = one("GET /a%20b?x=1&y=a+b%21 HTTP/1.1\r\nHost: h\r\nX-A:  v \r\n\r\n");
    assert_eq!((request.method(), request.path()), ("GET", "/a%20b"));
    assert_eq!(request.query(), Some("x=1&y=a+b%21"));
    assert_eq!(request.query_param("y").as_deref(), Some("a b!"));
    assert_eq!(request.query_param("z"), None);
    assert_eq!(request.header("x-a"), Some("v"));
    assert_eq!(request.headers().count(), 2);
    assert!(request.keep_alive() && request.body().is_empty());
}

#[test]
fn targets() {
    let path = |target: &str| {
        let request = one(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
        (request.path().to_string(), request.query().map(String::from))
    };
    assert_eq!(path("http://h:80/x?y"), ("/x".into(), Some("y".into())));
    assert_eq!(path("HTTP://h"), ("/".into(), None));
    assert_eq!(path("/?"), ("/".into(), Some("".into())));
    assert_eq!(path("/a?b?c"), ("/a".into(), Some("b?c".into())));
    assert_eq!(one("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").path(), "*");
    for target in ["*", "x", "ftp://h/", "/a#b", "http://h?x"] {
        refused(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"), 400);
    }
}

#[test]
fn bodies() {
    let request = one("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(request.body(), b"abc");
    let request = one(
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
    );
    assert_eq!(request.text(), Some("abc"));
    assert_eq!(request.content_length(), None);
    refused("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 17\r\n\r\n", 413);
    refused("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413);
    refused("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n", 413);
}

#[test]
fn keep_alive_and_pipelining() {
    let text = "\r\nGET /1 HTTP/1.1\r\nHost: h\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nxGET /3 HTTP/1.0\r\n\r\n";
    let (requests, refusal) = read(&[text.as_bytes()], SMALL);
    assert_eq!(refusal, None);
    let paths: Vec<_> = requests.iter().map(|request| request.path()).collect();
    assert_eq!(paths, ["/1", "/2", "/3"]);
    assert!(!requests[2].keep_alive());
    let keep = |version, connection: &str| {
        one(&format!("GET / HTTP/{version}\r\nHost: h\r\nConnection: {connection}\r\n\r\n"))
            .keep_alive()
    };
    assert!(keep("1.0", "Keep-Alive") && keep("1.1", "x, y"));
    assert!(!keep("1.1", "foo, CLOSE") && !keep("1.0", "x"));
}

#[test]
fn expectations() {
    let mut reader = RequestReader::new(SMALL);
    let text = b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n";
    let (used, step) = reader.feed(text).unwrap();
    assert_eq!(used, text.len());
    assert!(matches!(step, Step::Head(head) if head.expects_continue()));
    assert!(matches!(reader.feed(b"x").unwrap().1, Step::Request(_)));
    refused("POST / HTTP/1.1\r\nHost: h\r\nExpect: tea\r\n\r\n", 417);
}

#[test]
fn malformed() {
    for text in [
        "GET\r\n\r\n",
        "G@T / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n",
        "GET / http/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/11\r\nHost: h\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        refused(text, 400);
    }
    refused("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505);
    refused("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501);
    refused("GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\n\r\n", 431);
}

#[test]
fn the_head_is_bounded() {
    let of_length = |length: usize| {
        let frame = "GET / HTTP/1.1\r\nHost: h\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "y".repeat(length - frame))
    };
    one(&of_length(256));
    refused(&of_length(257), 431);
    refused(&"G".repeat(257), 431);
    assert_eq!(read(&["G".repeat(256).as_bytes()], SMALL), (vec![], None));
}

#[test]
fn requests_for_tests() {
    let request = Request::new("POST", "/x?y=1", b"body".to_vec()).unwrap();
    assert_eq!((request.path(), request.body()), ("/x", &b"body"[..]));
    assert_eq!(Request::new("GET", "nowhere", vec![]), Err(Refusal::Malformed));
    assert_eq!(
        Request::new("GET", "/ HTTP/1.1\r\nhost: a\r\n\r\nGET /", vec![]),
        Err(Refusal::Malformed)
    );
}

prop_compose! {
    fn any_stream()(parts in proptest::collection::vec(prop_oneof![
        Just("GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_string()),
        Just("GET /a HTTP/1.1\nHost: h\n\n".to_string()),
        Just("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nabcde".to_string()),
        Just("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_string()),
        "[ -~\r\n]{0,30}",
    ], 0..5)) -> String {
        parts.concat()
    }
}

proptest! {
    #[test]
    fn cutting_does_not_matter(stream in any_stream(), at in any::<prop::sample::Index>()) {
        let bytes = stream.as_bytes();
        let cut = at.index(bytes.len() + 1);
        let whole = read(&[bytes], SMALL);
        prop_assert_eq!(&whole, &read(&[&bytes[..cut], &bytes[cut..]], SMALL));
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&whole, &read(&single, SMALL));
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let (requests, _) = read(&[&bytes], SMALL);
        for request in requests {
            prop_assert!(request.body().len() <= SMALL.body);
        }
    }
}
