//! DNS (RFC 1035): names of the network from its directory; what is not its own is somebody
//! else's to answer.

use super::Directory;
use crate::desired::OtherNames;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How long an answer may be kept, in seconds: replicas come and go.
const TTL_SECS: u32 = 5;
/// Longest question that is read: far beyond what names allow.
const QUESTION_BYTES_MAX: usize = 4_096;
/// Longest answer over UDP for who does not say otherwise (RFC 1035, section 2.3.4).
const UDP_BYTES: u16 = 512;
/// Longest answer over UDP: what passes everywhere without being cut into fragments.
const UDP_BYTES_MAX: u16 = 1_232;

/// What becomes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsAnswer {
    /// Send this back.
    Bytes(Vec<u8>),
    /// Ask the node's resolvers the same, and pass on what they say.
    Forward,
    /// Nothing.
    Silence,
}

/// The way a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Long answers are cut, and asked for again over TCP.
    Udp,
    /// Answers have up to 64 KiB.
    Tcp,
}

/// What to do with a question from a machine.
pub fn answer_dns(bytes: &[u8], way: Way, directory: &Directory) -> DnsAnswer {
    if bytes.len() > QUESTION_BYTES_MAX {
        return DnsAnswer::Silence;
    }
    let Ok(question) = Message::from_vec(bytes) else {
        return malformed(bytes);
    };
    if question.metadata.message_type != MessageType::Query {
        return DnsAnswer::Silence;
    }
    let refuse = |code| respond(&question, way, code, Vec::new());
    if question.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let [query] = question.queries.as_slice() else {
        // What is not one question is not repeated: many would make an answer longer than any may be.
        return malformed(bytes);
    };
    let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let own = own_answer(&name, query.name(), query.query_type(), directory);
    match own {
        Some((code, records)) if query.query_class() == DNSClass::IN => {
            respond(&question, way, code, records)
        }
        Some(_) => refuse(ResponseCode::Refused),
        None => match directory.network().dns.others {
            OtherNames::Forward => DnsAnswer::Forward,
            OtherNames::Refuse => refuse(ResponseCode::Refused),
        },
    }
}

/// What is said to a question that was to be passed on and was not answered: that it failed (`SERVFAIL`), so that who asks
/// need not wait. `None`: nothing.
pub(crate) fn fail_dns(bytes: &[u8], way: Way) -> Option<Vec<u8>> {
    let question = Message::from_vec(bytes).ok()?;
    match respond(&question, way, ResponseCode::ServFail, Vec::new()) {
        DnsAnswer::Bytes(answer) => Some(answer),
        DnsAnswer::Forward | DnsAnswer::Silence => None,
    }
}

/// `None` if the name is not the network's to answer.
fn own_answer(
    name: &str,
    asked: &Name,
    kind: RecordType,
    directory: &Directory,
) -> Option<(ResponseCode, Vec<Record>)> {
    let record = |data| Record::from_rdata(asked.clone(), TTL_SECS, data);
    if let Some(address) = reverse_address(name) {
        let own = match address {
            IpAddr::V4(v4) => directory.network().cidr.is_host(v4),
            IpAddr::V6(_) => {
                directory.network().ipv6.is_some_and(|range| range.prefix.contains(address))
            }
        };
        let Some(found) = directory.name(address) else {
            return own.then_some((ResponseCode::NXDomain, Vec::new()));
        };
        let target = Name::from_ascii(format!("{found}.")).ok()?;
        let wanted = matches!(kind, RecordType::PTR | RecordType::ANY);
        let records = wanted.then(|| record(RData::PTR(PTR(target))));
        return Some((ResponseCode::NoError, records.into_iter().collect()));
    }
    let Some(addresses) = directory.addresses(name) else {
        return directory.is_own(name).then_some((ResponseCode::NXDomain, Vec::new()));
    };
    let any = kind == RecordType::ANY;
    let records = addresses.into_iter().filter_map(|address| match address {
        IpAddr::V4(v4) if any || kind == RecordType::A => Some(record(RData::A(A(v4)))),
        IpAddr::V6(v6) if any || kind == RecordType::AAAA => Some(record(RData::AAAA(AAAA(v6)))),
        _ => None,
    });
    Some((ResponseCode::NoError, records.collect()))
}

/// The address in `4.3.2.1.in-addr.arpa`, or in 32 nibbles under `ip6.arpa`.
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> =
            rest.split('.').rev().map(str::parse).collect::<Result<_, _>>().ok()?;
        let octets: [u8; 4] = octets.try_into().ok()?;
        return Some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut address = 0_u128;
    let mut count = 0;
    for nibble in rest.rsplit('.') {
        let value = u8::from_str_radix(nibble, 16).ok().filter(|_| nibble.len() == 1)?;
        address = address.checked_shl(4)? | u128::from(value);
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(Ipv6Addr::from(address)))
}

fn respond(question: &Message, way: Way, code: ResponseCode, records: Vec<Record>) -> DnsAnswer {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.authoritative = code != ResponseCode::ServFail;
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.add_queries(question.queries.iter().cloned());
    answer.add_answers(records);
    let Ok(bytes) = answer.to_vec() else { return DnsAnswer::Silence };
    let room = match &question.edns {
        Some(edns) => edns.max_payload().clamp(UDP_BYTES, UDP_BYTES_MAX),
        None => UDP_BYTES,
    };
    if way == Way::Tcp || bytes.len() <= usize::from(room) {
        return DnsAnswer::Bytes(bytes);
    }
    match answer.truncate().to_vec() {
        Ok(bytes) => DnsAnswer::Bytes(bytes),
        Err(_) => DnsAnswer::Silence,
    }
}

/// Bytes that are no question but begin like one are told so.
fn malformed(bytes: &[u8]) -> DnsAnswer {
    // The highest bit of the third byte tells answers; two of them must not answer each other.
    let (Some([high, low]), Some(flags)) = (bytes.get(..2), bytes.get(2)) else {
        return DnsAnswer::Silence;
    };
    if flags & 0x80 != 0 {
        return DnsAnswer::Silence;
    }
    let id = u16::from_be_bytes([*high, *low]);
    let answer = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    answer.to_vec().map_or(DnsAnswer::Silence, DnsAnswer::Bytes)
}
