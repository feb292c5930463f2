//! DHCPv6: any bytes are answered or not.

#![no_main]

use libfuzzer_sys::fuzz_target;

mod network;

fuzz_target!(|data: &[u8]| {
    let mac = skein_model::MacAddr::new(network::MAC).expect("a MAC address");
    let _ = skein_net::answer6(data, mac, &network::DIRECTORY);
});
