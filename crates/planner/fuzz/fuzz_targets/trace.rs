//! Traces: requests in order, at times that a run can have.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_planner::parse_trace;

fuzz_target!(|text: &str| {
    let Ok(requests) = parse_trace(text) else { return };
    assert!(!requests.is_empty());
    assert!(requests.windows(2).all(|pair| pair[0].at_secs <= pair[1].at_secs));
});
