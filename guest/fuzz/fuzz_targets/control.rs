//! Control lines from either side: what is understood must mean the same when written and read
//! again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_wire::{GuestLine, HostLine, LineReader};

fuzz_target!(|data: &[u8]| {
    let mut reader = LineReader::new();
    reader.push(data, |line| {
        let Ok(line) = line else { return };
        if let Ok(Some(host)) = HostLine::parse(line) {
            assert_eq!(HostLine::parse(&host.to_string()), Ok(Some(host)));
        }
        if let Ok(Some(guest)) = GuestLine::parse(line) {
            assert_eq!(GuestLine::parse(&guest.to_string()), Ok(Some(guest)));
        }
    });
});
