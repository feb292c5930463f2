//! A connection's bytes, whole and cut in two, must amount to the same requests.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_wire::http::{Limits, Refusal, Request, RequestReader, Step};

const LIMITS: Limits = Limits { head: 512, fields: 8, body: 64 };

fn read(pieces: &[&[u8]]) -> (Vec<Request>, Option<Refusal>) {
    let mut reader = RequestReader::new(LIMITS);
    let mut requests = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let (used, step) = match reader.feed(rest) {
                Ok(fed) => fed,
                Err(refusal) => return (requests, Some(refusal)),
            };
            let more = matches!(step, Step::More);
            if let Step::Request(request) = step {
                assert!(request.body().len() <= LIMITS.body);
                assert!(request.path().starts_with('/') || request.path() == "*");
                let _ = (request.query_param("a"), request.header("host"));
                requests.push(request);
            }
            rest = &rest[used..];
            if more {
                assert!(rest.is_empty());
                break;
            }
        }
    }
    (requests, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((cut, bytes)) = data.split_first() else { return };
    let cut = usize::from(*cut).min(bytes.len());
    assert_eq!(read(&[bytes]), read(&[&bytes[..cut], &bytes[cut..]]));
});
