//! DNS: any bytes are answered or not, and an answer over UDP is short.

#![no_main]

use libfuzzer_sys::fuzz_target;

mod network;

fuzz_target!(|data: &[u8]| {
    let way = skein_net::Way::Udp;
    if let skein_net::DnsAnswer::Bytes(answer) = skein_net::answer_dns(data, way, &network::DIRECTORY) {
        assert!(answer.len() <= 1_232);
    }
});
