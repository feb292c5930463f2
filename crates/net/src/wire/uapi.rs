//! The protocol between whoever configures WireGuard and a program that does it in user space: lines of text over a Unix
//! socket (<https://www.wireguard.com/xplatform/>). Pure.

use super::config::{KEEPALIVE_SECONDS, Shown, WireChange};
use super::key::SecretKey;
use skein_model::WireKey;
use std::fmt::Write as _;
use std::net::IpAddr;

/// Asks for what an interface is.
pub(super) const GET: &str = "get=1\n\n";

/// The request that makes a change.
pub(super) fn set(change: &WireChange) -> String {
    let mut text = "set=1\n".to_owned();
    // Writing into a string cannot fail.
    if let Some(key) = &change.key {
        let _ = writeln!(text, "private_key={}", hex(&key.bytes()));
    }
    if let Some(port) = change.port {
        let _ = writeln!(text, "listen_port={port}");
    }
    for key in &change.gone {
        let _ = writeln!(text, "public_key={}\nremove=true", hex(&key.bytes()));
    }
    for (key, peer) in &change.set {
        let _ = writeln!(text, "public_key={}\nendpoint={}", hex(&key.bytes()), peer.endpoint);
        let _ = writeln!(text, "persistent_keepalive_interval={KEEPALIVE_SECONDS}");
        let _ = writeln!(text, "replace_allowed_ips=true\nallowed_ip={}/32", peer.address);
    }
    text.push('\n');
    text
}

/// Reads an answer to [`GET`]; the number of the failure if it is one. `None` if the text is neither.
pub(super) fn parse(text: &str) -> Option<Result<Shown, i32>> {
    let mut shown = Shown::default();
    let mut peer = None;
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else { continue };
        match name {
            "private_key" => shown.key = Some(SecretKey::new(unhex(value)?).public()),
            "listen_port" => shown.port = value.parse().ok()?,
            "public_key" => {
                let key = WireKey::new(unhex(value)?);
                shown.peers.insert(key, Vec::new());
                peer = Some(key);
            }
            "allowed_ip" => {
                let (address, length) = value.split_once('/')?;
                let range: (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
                shown.peers.get_mut(&peer?)?.push(range);
            }
            "errno" => {
                return match value.parse().ok()? {
                    0 => Some(Ok(shown)),
                    number => Some(Err(number)),
                };
            }
            // Times, counts and what else is not ours to say.
            _ => {}
        }
    }
    None
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::config::WirePeer;
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, SocketAddr};

    #[test]
    fn says_what_is_to_change() {
        let peer = WirePeer {
            endpoint: SocketAddr::from(([192, 0, 2, 1], 4789)),
            address: Ipv4Addr::new(100, 126, 0, 1),
        };
        let change = WireChange {
            key: Some(SecretKey::new([8; 32])),
            port: Some(4789),
            gone: vec![WireKey::new([2; 32])],
            set: [(WireKey::new([1; 32]), peer)].into(),
        };
        let of = |byte: &str| byte.repeat(32);
        let expect = format!(
            "set=1\nprivate_key={}\nlisten_port=4789\npublic_key={}\nremove=true\npublic_key={}\n\
             endpoint=192.0.2.1:4789\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
             allowed_ip=100.126.0.1/32\n\n",
            of("08"),
            of("02"),
            of("01")
        );
        assert_eq!(set(&change), expect);
    }

    #[test]
    fn reads_what_an_interface_is() {
        let secret = SecretKey::new([8; 32]);
        let of = |byte: &str| byte.repeat(32);
        let text = format!(
            "private_key={}\nlisten_port=4789\nfwmark=0\npublic_key={}\npreshared_key={}\n\
             protocol_version=1\nendpoint=192.0.2.1:4789\nlast_handshake_time_sec=0\ntx_bytes=148\n\
             rx_bytes=0\nallowed_ip=100.126.0.1/32\nallowed_ip=fd00::/8\nerrno=0\n\n",
            of("08"),
            of("01"),
            of("00")
        );
        let allowed = vec![([100, 126, 0, 1].into(), 32), ("fd00::".parse().unwrap(), 8)];
        let peers = [(WireKey::new([1; 32]), allowed)].into();
        let expect = Shown { key: Some(secret.public()), port: 4789, peers };
        assert_eq!(parse(&text), Some(Ok(expect)));
        assert_eq!(parse("errno=-22\n\n"), Some(Err(-22)));
        assert_eq!(parse(""), None);
        assert_eq!(parse("allowed_ip=10.0.0.0/8\nerrno=0\n\n"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "((private_key|public_key|allowed_ip|errno)=|[0-9a-f./=]|\n|é){0,80}") {
            let _ = parse(&text);
        }
    }
}
