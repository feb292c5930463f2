//! HTTP as a client of a real machine sees it.

use machine_tests::{Machine, Options, image};

fn echo() -> Machine {
    Machine::start(&image("echo"), &Options::default())
}

#[test]
fn requests_of_every_shape() {
    let machine = echo();
    let mut client = machine.connect();
    let about = client.request("GET", "/", b"");
    assert_eq!(about.status, 200);
    assert!(about.text().contains("\"host\":\"machine\""), "{}", about.text());

    // The same connection goes on.
    let answer = client.request("POST", "/x", b"hello");
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"hello"[..]));
    assert_eq!(client.request("POST", "/?status=404", b"a").status, 404);

    let head = client.request("HEAD", "/?size=1000", b"");
    assert_eq!((head.field("content-length"), head.body.len()), (Some("1000"), 0));

    client.send(b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0005;x=y\r\ndefgh\r\n0\r\n\r\n");
    assert_eq!(client.answer("POST").body, b"abcdefgh");

    client.send(b"POST / HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");
    assert_eq!(client.answer("POST").status, 100);
    client.send(b"ok");
    assert_eq!(client.answer("POST").body, b"ok");

    client.send(b"GET /_skein/health HTTP/1.1\r\nhost: t\r\n\r\n");
    assert_eq!(client.answer("GET").body, b"ok\n");
    client.send(b"GET /_skein/other HTTP/1.1\r\nhost: t\r\n\r\n");
    assert_eq!(client.answer("GET").status, 404);

    client.send(b"GET /y HTTP/1.0\r\n\r\n");
    let last = client.answer("GET");
    assert_eq!((last.status, last.field("connection")), (200, Some("close")));
    assert!(client.is_closed());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let machine = echo();
    let mut client = machine.connect();
    for number in 0..20 {
        client.send_request("POST", "/", format!("body {number}").as_bytes());
    }
    for number in 0..20 {
        assert_eq!(client.answer("POST").text(), format!("body {number}"));
    }
}

#[test]
fn large_bodies_go_both_ways() {
    let machine = echo();
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let answer = machine.request("POST", "/", &body);
    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "the body came back changed");
}

#[test]
fn what_is_not_acceptable_is_refused() {
    let options = Options { extra_words: "body=1000".into(), ..Options::default() };
    let mut machine = Machine::start(&image("echo"), &options);
    let check = |bytes: &[u8], status: u16, code: &str| {
        let mut client = machine.connect();
        client.send(bytes);
        let answer = client.answer("GET");
        assert_eq!(answer.status, status, "{}", String::from_utf8_lossy(bytes));
        assert!(answer.text().contains(code), "{}", answer.text());
        assert!(client.is_closed());
    };
    check(b"NONSENSE\r\n\r\n", 400, "REQUEST_MALFORMED");
    check(b"GET / HTTP/1.1\r\n\r\n", 400, "REQUEST_MALFORMED");
    check(b"GET / HTTP/3.0\r\nhost: t\r\n\r\n", 505, "HTTP_VERSION_UNSUPPORTED");
    check(
        b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: gzip\r\n\r\n",
        501,
        "TRANSFER_CODING_UNKNOWN",
    );
    check(
        b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 1001\r\n\r\n",
        413,
        "REQUEST_BODY_TOO_LARGE",
    );
    check(
        b"POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n",
        413,
        "REQUEST_BODY_TOO_LARGE",
    );
    let long = format!("GET / HTTP/1.1\r\nhost: t\r\nx: {}\r\n\r\n", "y".repeat(8192));
    check(long.as_bytes(), 431, "REQUEST_HEAD_TOO_LARGE");
    let many = format!("GET / HTTP/1.1\r\nhost: t\r\n{}\r\n", "a: b\r\n".repeat(64));
    check(many.as_bytes(), 431, "REQUEST_HEAD_TOO_LARGE");

    assert_eq!(machine.request("GET", "/?size=1001", b"").status, 500);
    assert_eq!(machine.request("GET", "/?size=1000", b"").status, 200);
    assert_eq!(machine.stats().errors, 9);
}

#[test]
fn a_body_that_does_not_fit_into_memory_is_refused_and_the_machine_goes_on() {
    let options = Options { extra_words: "body=100000000".into(), ..Options::default() };
    let machine = Machine::start(&image("echo"), &options);
    let mut client = machine.connect();
    client.send(b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 50000000\r\n\r\n");
    let answer = client.answer("POST");
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("MEMORY_EXHAUSTED"));
    assert_eq!(machine.request("GET", "/?size=70000000", b"").status, 413);
    assert_eq!(machine.request("POST", "/", b"still here").body, b"still here");
}

#[test]
fn many_connections_one_after_the_other() {
    let machine = echo();
    for _ in 0..300 {
        let mut client = machine.connect();
        client.send(b"GET /x HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
        assert_eq!(client.answer("GET").status, 200);
        assert!(client.is_closed());
    }
}

#[test]
fn clients_that_say_nothing_do_not_keep_others_out() {
    let machine = echo();
    let mut silent: Vec<_> = (0..8).map(|_| machine.connect()).collect();
    for client in &mut silent {
        client.send(b"POST / HTTP/1.1\r\nhost: t\r\ncontent-le");
    }
    assert_eq!(machine.request("POST", "/", b"hello").body, b"hello");
    drop(silent);
    assert_eq!(machine.request("POST", "/", b"hello").body, b"hello");
}

#[test]
fn more_connections_than_sockets() {
    let machine = Machine::start(&image("echo"), &Options::default());
    // 10 sockets at capacity 1. Those who have asked once and idle now give way after a second.
    let idle: Vec<_> = (0..40).map(|_| machine.connect()).collect();
    let end = std::time::Instant::now() + machine_tests::DEADLINE;
    loop {
        let mut client = machine.connect();
        client.send_request("POST", "/", b"a newcomer");
        if client.try_answer("POST").is_some_and(|answer| answer.body == b"a newcomer") {
            break;
        }
        assert!(std::time::Instant::now() < end, "nobody gave way");
    }
    drop(idle);
}
