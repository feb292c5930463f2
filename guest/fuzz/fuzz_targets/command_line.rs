//! Command lines: what is understood must mean the same when written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_wire::BootConfig;

fuzz_target!(|data: &[u8]| {
    let Ok(config) = BootConfig::parse(data) else { return };
    // Percent-encoding may make a line longer than a line may be.
    if let Ok(line) = config.encode() {
        assert_eq!(BootConfig::parse(line.as_bytes()), Ok(config));
    }
});
