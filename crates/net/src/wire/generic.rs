//! The same for an interface of the kernel's: messages of generic netlink, family `wireguard`
//! (`include/uapi/linux/wireguard.h`).

use super::config::{KEEPALIVE_SECONDS, Shown, WireChange};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use skein_model::WireKey;
use std::fmt::Debug;
use std::io;

/// Nodes in one message, which holds 64 KiB: one takes some 120 bytes.
const PEERS_AT_ONCE: usize = 200;
/// One piece of an answer; the kernel makes them no longer than 32 KiB.
const PIECE_BYTES: usize = 64 << 10;
/// Flag of `recv`: an empty queue is an answer (`MSG_DONTWAIT`).
const DONT_WAIT: i32 = 0x40;

/// The kernel's WireGuard, in the namespace of the thread that opened it. Blocks, for as long as the kernel works.
#[derive(Debug)]
pub(super) struct KernelWire {
    socket: Socket,
    family: u16,
}

impl KernelWire {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let ask = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
        };
        let mut family = None;
        exchange(&socket, GenlMessage::from_payload(ask), NLM_F_ACK, |answer: GenlCtrl| {
            family = answer.nlas.iter().find_map(|attribute| match attribute {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            });
        })?;
        Ok(Self { socket, family: family.ok_or(io::ErrorKind::InvalidData)? })
    }

    /// What the interface `name` is.
    pub(super) fn get(&self, name: &str) -> io::Result<Shown> {
        let mut shown = Shown::default();
        let attributes = vec![WireguardAttribute::IfName(name.to_owned())];
        let ask = WireguardMessage { cmd: WireguardCmd::GetDevice, attributes };
        // Long lists of peers come in several messages.
        self.ask(ask, NLM_F_DUMP, |answer| read(&answer, &mut shown))?;
        Ok(shown)
    }

    /// Makes a change of the interface `name`.
    pub(super) fn set(&self, name: &str, change: &WireChange) -> io::Result<()> {
        requests(name, change).into_iter().try_for_each(|ask| self.ask(ask, NLM_F_ACK, |_| {}))
    }

    fn ask(
        &self,
        ask: WireguardMessage,
        flags: u16,
        each: impl FnMut(WireguardMessage),
    ) -> io::Result<()> {
        let mut message = GenlMessage::from_payload(ask);
        message.set_resolved_family_id(self.family);
        exchange(&self.socket, message, flags, each)
    }
}

/// Sends one request, and hands over what is answered until the end of it.
fn exchange<T: Debug>(
    socket: &Socket,
    ask: GenlMessage<T>,
    flags: u16,
    mut each: impl FnMut(T),
) -> io::Result<()>
where
    GenlMessage<T>: NetlinkSerializable + NetlinkDeserializable + Debug,
{
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(ask));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let count = socket.recv(&mut &mut buffer[..], DONT_WAIT)?;
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let answer = NetlinkMessage::<GenlMessage<T>>::deserialize(rest);
            let answer = answer.map_err(|_| io::ErrorKind::InvalidData)?;
            let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX);
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => {
                    return error.code.map_or(Ok(()), |_| Err(error.to_io()));
                }
                NetlinkPayload::InnerMessage(inner) => each(inner.payload),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
    }
}

/// A change as the requests that make it.
fn requests(name: &str, change: &WireChange) -> Vec<WireguardMessage> {
    use WireguardPeerAttribute::{
        AllowedIps, Endpoint, Flags, PersistentKeepalive, PublicKey as Key,
    };
    let gone = change
        .gone
        .iter()
        .map(|key| WireguardPeer(vec![Key(key.bytes()), Flags(WireguardPeerFlags::RemoveMe)]));
    let set = change.set.iter().map(|(key, peer)| {
        let allowed = WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
            WireguardAllowedIpAttr::IpAddr(peer.address.into()),
            WireguardAllowedIpAttr::Cidr(32),
        ]);
        WireguardPeer(vec![
            Key(key.bytes()),
            Flags(WireguardPeerFlags::ReplaceAllowedIps),
            Endpoint(peer.endpoint),
            PersistentKeepalive(KEEPALIVE_SECONDS),
            AllowedIps(vec![allowed]),
        ])
    });
    let mut device = vec![WireguardAttribute::IfName(name.to_owned())];
    device.extend(change.key.as_ref().map(|key| WireguardAttribute::PrivateKey(key.bytes())));
    device.extend(change.port.map(WireguardAttribute::ListenPort));
    let mut requests = vec![device];
    let peers: Vec<WireguardPeer> = gone.chain(set).collect();
    for (at, some) in peers.chunks(PEERS_AT_ONCE).enumerate() {
        if at > 0 {
            requests.push(vec![WireguardAttribute::IfName(name.to_owned())]);
        }
        let last = requests.last_mut();
        last.into_iter().for_each(|request| request.push(WireguardAttribute::Peers(some.to_vec())));
    }
    let cmd = WireguardCmd::SetDevice;
    requests.into_iter().map(|attributes| WireguardMessage { cmd, attributes }).collect()
}

/// Takes down what a message tells of an interface.
fn read(message: &WireguardMessage, shown: &mut Shown) {
    for attribute in &message.attributes {
        match attribute {
            WireguardAttribute::PublicKey(key) if *key != [0; 32] => {
                shown.key = Some(WireKey::new(*key));
            }
            WireguardAttribute::ListenPort(port) => shown.port = *port,
            WireguardAttribute::Peers(peers) => peers.iter().for_each(|peer| add(peer, shown)),
            _ => {}
        }
    }
}

fn add(peer: &WireguardPeer, shown: &mut Shown) {
    let key = peer.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(WireKey::new(*key)),
        _ => None,
    });
    let Some(key) = key else { return };
    let allowed = shown.peers.entry(key).or_default();
    for attribute in peer.iter() {
        let WireguardPeerAttribute::AllowedIps(ranges) = attribute else { continue };
        allowed.extend(ranges.iter().filter_map(|range| {
            let address = range.iter().find_map(|part| match part {
                WireguardAllowedIpAttr::IpAddr(address) => Some(*address),
                _ => None,
            });
            let length = range.iter().find_map(|part| match part {
                WireguardAllowedIpAttr::Cidr(length) => Some(*length),
                _ => None,
            });
            address.zip(length)
        }));
    }
}

/// Whether an answer says that the kernel has no WireGuard.
pub(super) fn is_missing(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(Errno::EOPNOTSUPP | Errno::ENOENT | Errno::EPROTONOSUPPORT))
}

#[cfg(test)]
mod tests {
    use super::super::config::WirePeer;
    use super::super::key::SecretKey;
    use super::*;
    use netlink_packet_core::{Emitable, ParseableParametrized};
    use netlink_packet_generic::GenlHeader;
    use std::net::{IpAddr, Ipv4Addr};

    fn key(byte: u8) -> WireKey {
        WireKey::new([byte; 32])
    }

    fn change(count: u8) -> WireChange {
        let peer = |last: u8| WirePeer {
            endpoint: ([192, 0, 2, last], 4789).into(),
            address: Ipv4Addr::new(100, 126, 0, last),
        };
        let set = (0..count).map(|last| (key(last), peer(last))).collect();
        let key = Some(SecretKey::new([0x77; 32]));
        WireChange { key, port: Some(4789), gone: vec![WireKey::new([0xee; 32])], set }
    }

    /// Offsets and numbers by hand from `wireguard.h`: each attribute is length, type, value.
    #[test]
    fn a_request_is_what_the_kernel_reads() {
        let requests = requests("skwg", &WireChange { key: None, ..change(1) });
        let [message] = &requests[..] else { panic!("{requests:?}") };
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let mut expect = Vec::new();
        let mut put =
            |parts: &[&[u8]]| parts.iter().for_each(|part| expect.extend_from_slice(part));
        // IFNAME, LISTEN_PORT.
        put(&[&[9, 0, 2, 0], b"skwg\0\0\0\0", &[6, 0, 6, 0, 0xb5, 0x12, 0, 0]]);
        // PEERS: one to remove (PUBLIC_KEY, FLAGS = REMOVE_ME).
        put(&[&[160, 0, 8, 0x80], &[48, 0, 0, 0x80], &[36, 0, 1, 0], &[0xee; 32]]);
        put(&[&[8, 0, 3, 0, 1, 0, 0, 0]]);
        // One to have: PUBLIC_KEY, FLAGS = REPLACE_ALLOWEDIPS, ENDPOINT (sockaddr_in).
        put(&[&[108, 0, 0, 0x80], &[36, 0, 1, 0], &[0; 32], &[8, 0, 3, 0, 2, 0, 0, 0]]);
        put(&[&[20, 0, 4, 0, 2, 0, 0x12, 0xb5, 192, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]]);
        // PERSISTENT_KEEPALIVE_INTERVAL, ALLOWEDIPS: FAMILY, IPADDR, CIDR_MASK.
        put(&[&[6, 0, 5, 0, 25, 0, 0, 0], &[32, 0, 9, 0x80], &[28, 0, 0, 0x80]]);
        put(&[
            &[6, 0, 1, 0, 2, 0, 0, 0],
            &[8, 0, 2, 0, 100, 126, 0, 0],
            &[5, 0, 3, 0, 32, 0, 0, 0],
        ]);
        assert_eq!(bytes, expect);
    }

    #[test]
    fn what_is_asked_for_is_what_would_be_shown() {
        let requests = requests("skwg", &change(3));
        let mut shown = Shown::default();
        for request in &requests {
            let mut bytes = vec![0; request.buffer_len()];
            request.emit(&mut bytes);
            let header = GenlHeader { cmd: 1, version: 1 };
            let back = WireguardMessage::parse_with_param(&bytes, header).unwrap();
            assert_eq!(back, *request);
            read(&back, &mut shown);
        }
        assert_eq!(shown.port, 4789);
        assert_eq!(shown.peers[&key(2)], [(IpAddr::from([100, 126, 0, 2]), 32)]);
    }

    #[test]
    fn many_nodes_are_told_in_pieces() {
        let requests = requests("skwg", &change(250));
        assert_eq!(requests.len(), 2);
        assert!(requests.iter().all(|request| request.buffer_len() < 65_536));
        assert!(matches!(requests[1].attributes[0], WireguardAttribute::IfName(_)));
    }
}
