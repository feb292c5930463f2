//! Frames as they pass: a packet socket of the whole namespace behind a filter in the kernel.

use super::mac_at;
use skein_model::MacAddr;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io::{self, Read};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// Every protocol, in network order (`ETH_P_ALL`, linux/if_ether.h).
const ALL: u16 = 0x0003_u16.to_be();
/// IPv6 only (`ETH_P_IPV6`).
const IPV6: u16 = 0x86dd_u16.to_be();
/// Frames that wait to be read; what exceeds them is lost.
const QUEUE_BYTES: usize = 8 << 20;
/// Offset of what the kernel knows of a frame besides its bytes (`SKF_AD_OFF`), its interface and
/// its VLAN tag (linux/filter.h).
const ANCILLARY: u32 = 0xffff_f000;
const INTERFACE: u32 = ANCILLARY + 8;

/// Instructions of the classic filter machine (linux/bpf_common.h).
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// As much of a frame as there is.
const WHOLE: u32 = 0x4_0000;

/// A socket that reads frames, with the Ethernet header.
#[derive(Debug)]
pub(crate) struct PacketSocket(Socket);

/// What a socket lets through.
pub(crate) struct Filter {
    protocol: u16,
    program: Vec<SockFilter>,
}

/// Messages to DHCPv6 servers that arrive at an interface.
pub(crate) fn dhcp6_filter(interface: u32) -> Filter {
    let checks = [(LOAD_WORD, INTERFACE, interface), (LOAD_BYTE, 20, 17), (LOAD_HALF, 56, 547)];
    Filter { protocol: IPV6, program: all_of(&checks, WHOLE) }
}

/// All frames of an interface, in both directions, cut to `bytes`.
pub(crate) fn interface_filter(interface: u32, bytes: u32) -> Filter {
    Filter { protocol: ALL, program: all_of(&[(LOAD_WORD, INTERFACE, interface)], bytes) }
}

/// Loads and compares in turn; the first that differs ends it.
fn all_of(checks: &[(u16, u32, u32)], bytes: u32) -> Vec<SockFilter> {
    let mut program = Vec::new();
    for (at, (load, offset, value)) in checks.iter().enumerate() {
        // To the last instruction: over the rest of the checks, two each, and the acceptance.
        let rest = u8::try_from((checks.len() - at - 1) * 2 + 1).unwrap_or(u8::MAX);
        program.push(SockFilter::new(*load, 0, 0, *offset));
        program.push(SockFilter::new(JUMP_EQUAL, 0, rest, *value));
    }
    program.push(SockFilter::new(RETURN, 0, 0, bytes));
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}

impl PacketSocket {
    /// Opens one in the namespace of the calling thread.
    pub(crate) fn open(filter: &Filter) -> io::Result<Self> {
        // Without a protocol nothing arrives before the filter is there.
        let protocol = Protocol::from(i32::from(filter.protocol));
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(protocol))?;
        socket.attach_filter(&filter.program)?;
        socket.set_recv_buffer_size(QUEUE_BYTES)?;
        // What came in before the filter did.
        let mut rest = [0; 2048];
        while (&socket).read(&mut rest).is_ok() {}
        Ok(Self(socket))
    }

    /// The next frame, cut to the buffer.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Sender and message of a frame to a DHCPv6 server: Ethernet, IPv6 without further headers, UDP.
pub(super) fn parse_dhcp6(frame: &[u8]) -> Option<(MacAddr, Ipv6Addr, &[u8])> {
    let mac = mac_at(frame, 6)?;
    let source: [u8; 16] = frame.get(22..38)?.try_into().ok()?;
    let length = usize::from(u16::from_be_bytes(frame.get(58..60)?.try_into().ok()?));
    let message = frame.get(62..54 + length)?;
    let sane = frame.get(12..14)? == [0x86, 0xdd] && frame[20] == 17 && frame[56..58] == [2, 35];
    sane.then(|| (mac, Ipv6Addr::from(source), message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_frame_is_answered(frame: Vec<u8>) {
            let _ = parse_dhcp6(&frame);
        }
    }
}
