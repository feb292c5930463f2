//! DHCPv4: any bytes are answered or not, and never with another machine's address.

#![no_main]

use libfuzzer_sys::fuzz_target;

mod network;

fuzz_target!(|data: &[u8]| {
    if let Some(answer) = skein_net::answer4(data, &network::DIRECTORY) {
        assert!(answer.to.is_broadcast() || answer.to.octets() == [10, 20, 0, 9]);
    }
});
