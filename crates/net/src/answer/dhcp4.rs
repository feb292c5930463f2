//! DHCPv4 (RFC 2131, 2132, 3442): the one address that belongs to a port, for as often as it asks.

use super::Directory;
use crate::desired::LocalPort;
use dhcproto::v4::{DhcpOption, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Encodable, Name};
use ipnet::Ipv4Net;
use skein_model::MacAddr;
use std::net::{IpAddr, Ipv4Addr};

/// Longest message that is read: what fits into the frames of the largest network.
const MESSAGE_BYTES_MAX: usize = 9_216;

/// What to send back, to port 68.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer4 {
    /// Where: the machine's address, or everybody if it cannot take frames by address yet.
    pub to: Ipv4Addr,
    /// The message.
    pub bytes: Vec<u8>,
}

/// The answer to a message to port 67; `None` if it deserves none.
pub fn answer4(bytes: &[u8], directory: &Directory) -> Option<Answer4> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return None;
    }
    let question = Message::from_bytes(&understood(bytes)?).ok()?;
    // There is no relay between a machine and its node.
    let sane = question.opcode() == Opcode::BootRequest
        && question.htype() == HType::Eth
        && question.hlen() == 6
        && question.hops() == 0
        && question.giaddr().is_unspecified();
    if !sane {
        return None;
    }
    let mac: [u8; 6] = question.chaddr().get(..6)?.try_into().ok()?;
    let port = directory.port(MacAddr::new(mac).ok()?)?;
    let server = directory.server();
    // A message for another server is not for us: the machine chose that one.
    if option(&question, OptionCode::ServerIdentifier).is_some_and(|other| other != server) {
        return None;
    }
    let kind = match question.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if wants(&question, port.address) => MessageType::Ack,
        MessageType::Request => MessageType::Nak,
        MessageType::Inform => MessageType::Ack,
        // Decline, release: the address stays the port's whatever the machine says.
        _ => return None,
    };
    let informing = question.opts().msg_type() == Some(MessageType::Inform);
    let answer = compose(&question, kind, informing, port, directory);
    let everybody = question.flags().broadcast() || kind == MessageType::Nak;
    let to = match everybody && question.ciaddr().is_unspecified() {
        true => Ipv4Addr::BROADCAST,
        false => port.address,
    };
    Some(Answer4 { to, bytes: answer.to_vec().ok()? })
}

/// Bytes before the options: the fixed header and the cookie.
const HEADER_BYTES: usize = 240;

/// The message with only the options that matter here, each of the length it must have: the
/// library's parser panics over some others (dhcproto 0.15, options with lists), and what a machine
/// sends must never end the service of its neighbours.
fn understood(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut kept = bytes.get(..HEADER_BYTES)?.to_vec();
    let mut rest = &bytes[HEADER_BYTES..];
    while let Some((code, tail)) = rest.split_first() {
        rest = match code {
            0 => tail,
            255 => break,
            _ => {
                let (length, tail) = tail.split_first()?;
                let (value, tail) = tail.split_at_checked(usize::from(*length))?;
                let fits = match code {
                    50 | 54 => value.len() == 4,
                    53 => value.len() == 1,
                    61 => (2..=64).contains(&value.len()),
                    _ => false,
                };
                if fits {
                    kept.extend([*code, *length]);
                    kept.extend(value);
                }
                tail
            }
        };
    }
    kept.push(255);
    Some(kept)
}

/// Whether a request asks for what the port has: in its option when selecting or rebooting, in its
/// header when renewing.
fn wants(question: &Message, address: Ipv4Addr) -> bool {
    let asked = option(question, OptionCode::RequestedIpAddress);
    let current = Some(question.ciaddr()).filter(|current| !current.is_unspecified());
    asked.or(current) == Some(address)
}

fn option(question: &Message, code: OptionCode) -> Option<Ipv4Addr> {
    match question.opts().get(code)? {
        DhcpOption::RequestedIpAddress(address) | DhcpOption::ServerIdentifier(address) => {
            Some(*address)
        }
        _ => None,
    }
}

fn compose(
    question: &Message,
    kind: MessageType,
    informing: bool,
    port: &LocalPort,
    directory: &Directory,
) -> Message {
    let mut answer = Message::default();
    answer
        .set_opcode(Opcode::BootReply)
        .set_htype(HType::Eth)
        .set_xid(question.xid())
        .set_flags(question.flags())
        .set_chaddr(&port.mac.octets());
    let options = answer.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(directory.server()));
    if let Some(DhcpOption::ClientIdentifier(id)) =
        question.opts().get(OptionCode::ClientIdentifier)
    {
        // RFC 6842: the answer says whom it is for.
        options.insert(DhcpOption::ClientIdentifier(id.clone()));
    }
    if kind == MessageType::Nak {
        let text = format!("this port has the address {}", port.address);
        options.insert(DhcpOption::Message(text));
        return answer;
    }
    for option in settings(port, directory) {
        options.insert(option);
    }
    if informing {
        // Who only informs has an address already.
        answer.set_ciaddr(question.ciaddr());
        return answer;
    }
    let lease = directory.network().dhcp.lease.as_secs();
    let seconds = u32::try_from(lease).unwrap_or(u32::MAX);
    let options = answer.opts_mut();
    options.insert(DhcpOption::AddressLeaseTime(seconds));
    options.insert(DhcpOption::Renewal(seconds / 2));
    options.insert(DhcpOption::Rebinding(seconds / 8 * 7));
    answer.set_ciaddr(question.ciaddr()).set_yiaddr(port.address);
    answer
}

fn settings(port: &LocalPort, directory: &Directory) -> Vec<DhcpOption> {
    let network = directory.network();
    let mut options = vec![
        DhcpOption::SubnetMask(mask(network.cidr.prefix_len())),
        DhcpOption::BroadcastAddr(network.cidr.broadcast()),
        DhcpOption::Router(vec![network.gateway]),
        DhcpOption::Hostname(port.host_name.clone()),
        DhcpOption::DomainName(network.dns.domain.clone()),
        DhcpOption::InterfaceMtu(network.mtu),
    ];
    let resolvers = directory.resolvers();
    if !resolvers.is_empty() {
        options.push(DhcpOption::DomainNameServer(resolvers));
    }
    let search: Vec<_> =
        directory.search().into_iter().filter_map(|name| Name::from_ascii(name).ok()).collect();
    if !search.is_empty() {
        options.push(DhcpOption::DomainSearch(search));
    }
    let given = network.dhcp.routes.iter().filter_map(|route| match route.to.network() {
        IpAddr::V4(to) => Some((Ipv4Net::new(to, route.to.prefix_len()).ok()?, route.via)),
        IpAddr::V6(_) => None,
    });
    let mut routes: Vec<_> = given.collect();
    if !routes.is_empty() {
        // Who understands this option ignores the router above (RFC 3442).
        routes.extend(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0).ok().zip(Some(network.gateway)));
        options.push(DhcpOption::ClasslessStaticRoute(routes));
    }
    options
}

fn mask(length: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0))
}
