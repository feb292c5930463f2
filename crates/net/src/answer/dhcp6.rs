//! DHCPv6 (RFC 8415): the one address that belongs to a port.

use super::Directory;
use crate::desired::LocalPort;
use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, OptionCode, Status, StatusCode,
};
use dhcproto::{Decodable, Encodable, Name};
use skein_model::MacAddr;
use std::net::Ipv6Addr;

/// Longest message that is read: what fits into the frames of the largest network.
const MESSAGE_BYTES_MAX: usize = 9_216;

/// The answer to a message to port 547 that came from `mac`; `None` if it deserves none.
pub fn answer6(bytes: &[u8], mac: MacAddr, directory: &Directory) -> Option<Vec<u8>> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return None;
    }
    let question = Message::from_bytes(&understood(bytes)?).ok()?;
    let port = directory.port(mac)?;
    directory.network().ipv6?;
    let rapid = question.opts().get(OptionCode::RapidCommit).is_some();
    let kind = match question.msg_type() {
        MessageType::Solicit if rapid => MessageType::Reply,
        MessageType::Solicit => MessageType::Advertise,
        MessageType::Request
        | MessageType::Confirm
        | MessageType::Renew
        | MessageType::Rebind
        | MessageType::InformationRequest
        | MessageType::Release
        | MessageType::Decline => MessageType::Reply,
        _ => return None,
    };
    let own = server_id(directory);
    match question.opts().get(OptionCode::ServerId) {
        Some(DhcpOption::ServerId(other)) if *other != own => return None,
        _ => {}
    }
    let mut options = DhcpOptions::new();
    match question.opts().get(OptionCode::ClientId) {
        Some(DhcpOption::ClientId(id)) => options.insert(DhcpOption::ClientId(id.clone())),
        // Only who asks for nothing of its own may stay unnamed.
        _ if question.msg_type() != MessageType::InformationRequest => return None,
        _ => {}
    }
    options.insert(DhcpOption::ServerId(own));
    if kind == MessageType::Reply && question.msg_type() == MessageType::Solicit {
        options.insert(DhcpOption::RapidCommit);
    }
    addresses(&question, port, directory, &mut options);
    settings(directory, &mut options);
    let mut answer = Message::new_with_id(kind, question.xid());
    answer.set_opts(options);
    answer.to_vec().ok()
}

/// Message type and transaction.
const HEADER_BYTES: usize = 4;
/// Kinds of messages from clients that are answered (RFC 8415, section 7.3); those of relays have another header.
const KINDS: [u8; 8] = [1, 3, 4, 5, 6, 8, 9, 11];
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
const RAPID_COMMIT: u16 = 14;
/// Longest name of a client or server, with its type (RFC 8415, section 11.1).
const DUID_BYTES_MAX: usize = 130;
/// Bytes of an association before its options, and of an address before its own.
const IA_NA_BYTES: usize = 12;
const IA_ADDRESS_BYTES: usize = 24;
/// Associations of one message, and addresses of one association: machines ask for one of one.
const ASSOCIATIONS_MAX: usize = 8;

/// The message with only the options that matter here, each of a length that it can have: what a machine sends meets no
/// more of the library's parser than is needed.
fn understood(bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    if !KINDS.contains(header.first()?) {
        return None;
    }
    let mut kept = header.to_vec();
    let mut associations = 0;
    for (code, value) in options(rest)? {
        match code {
            CLIENT_ID | SERVER_ID if (3..=DUID_BYTES_MAX).contains(&value.len()) => {
                put(&mut kept, code, value);
            }
            RAPID_COMMIT if value.is_empty() => put(&mut kept, code, value),
            IA_NA if associations < ASSOCIATIONS_MAX => {
                associations += 1;
                put(&mut kept, code, &association(value)?);
            }
            _ => {}
        }
    }
    Some(kept)
}

/// An association with only its addresses, and those without options of their own.
fn association(value: &[u8]) -> Option<Vec<u8>> {
    let (head, rest) = value.split_at_checked(IA_NA_BYTES)?;
    let mut kept = head.to_vec();
    let addresses = options(rest)?.into_iter().filter(|(code, _)| *code == IA_ADDRESS);
    for (code, value) in addresses.take(ASSOCIATIONS_MAX) {
        put(&mut kept, code, value.get(..IA_ADDRESS_BYTES)?);
    }
    Some(kept)
}

/// Codes and values; `None` if they do not fill the bytes.
fn options(mut rest: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        let [a, b, c, d] = *head;
        let (value, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
        found.push((u16::from_be_bytes([a, b]), value));
        rest = tail;
    }
    Some(found)
}

fn put(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    message.extend(code.to_be_bytes());
    // No option here is longer than the message, which is below 64 KiB.
    message.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    message.extend(value);
}

/// A DUID made of the gateway's MAC address (type 3, Ethernet), the same on every node.
fn server_id(directory: &Directory) -> Vec<u8> {
    [&[0, 3, 0, 1][..], &directory.network().vni.gateway_mac()].concat()
}

fn addresses(
    question: &Message,
    port: &LocalPort,
    directory: &Directory,
    options: &mut DhcpOptions,
) {
    let status =
        |status, text: &str| DhcpOption::StatusCode(StatusCode { status, msg: text.to_owned() });
    match question.msg_type() {
        MessageType::Release | MessageType::Decline => {
            options.insert(status(Status::Success, ""));
            return;
        }
        MessageType::Confirm => {
            let own = asked(question).iter().all(|address| port.ipv6 == Some(*address));
            let verdict = if own { Status::Success } else { Status::NotOnLink };
            options.insert(status(verdict, ""));
            return;
        }
        _ => {}
    }
    let lease = u32::try_from(directory.network().dhcp.lease.as_secs()).unwrap_or(u32::MAX);
    for wanted in question.opts().get_all(OptionCode::IANA).unwrap_or_default() {
        let DhcpOption::IANA(wanted) = wanted else { continue };
        let mut inner = DhcpOptions::new();
        match port.ipv6 {
            Some(addr) => inner.insert(DhcpOption::IAAddr(IAAddr {
                addr,
                preferred_life: lease,
                valid_life: lease,
                opts: DhcpOptions::new(),
            })),
            None => inner.insert(status(Status::NoAddrsAvail, "this port has no IPv6 address")),
        }
        // Addresses of another time end at once (RFC 8415, section 18.3.4).
        for stale in inside(wanted).into_iter().filter(|address| port.ipv6 != Some(*address)) {
            inner.insert(DhcpOption::IAAddr(IAAddr {
                addr: stale,
                preferred_life: 0,
                valid_life: 0,
                opts: DhcpOptions::new(),
            }));
        }
        let (t1, t2) = (lease / 2, lease / 8 * 7);
        options.insert(DhcpOption::IANA(IANA { id: wanted.id, t1, t2, opts: inner }));
    }
}

fn inside(association: &IANA) -> Vec<Ipv6Addr> {
    let all = association.opts.get_all(OptionCode::IAAddr).unwrap_or_default();
    all.iter()
        .filter_map(|option| match option {
            DhcpOption::IAAddr(address) => Some(address.addr),
            _ => None,
        })
        .collect()
}

fn asked(question: &Message) -> Vec<Ipv6Addr> {
    let all = question.opts().get_all(OptionCode::IANA).unwrap_or_default();
    let inner = all.iter().map(|option| match option {
        DhcpOption::IANA(association) => inside(association),
        _ => Vec::new(),
    });
    inner.flatten().collect()
}

fn settings(directory: &Directory, options: &mut DhcpOptions) {
    let network = directory.network();
    if let Some(range) = network.ipv6 {
        options.insert(DhcpOption::DomainNameServers(vec![range.gateway]));
    }
    let search: Vec<_> =
        directory.search().into_iter().filter_map(|name| Name::from_ascii(name).ok()).collect();
    if !search.is_empty() {
        options.insert(DhcpOption::DomainSearchList(search));
    }
}
