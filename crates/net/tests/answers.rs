//! What is answered to machines, from a directory alone.

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Encodable};
use proptest::prelude::*;
use skein_model::MacAddr;
use skein_net::{Directory, DnsAnswer, Way, advertisement, answer_dns, answer4, answer6};

#[path = "../fuzz/fuzz_targets/network.rs"]
mod network;

fn ask(kind: MessageType, mac: [u8; 6], wants: Option<[u8; 4]>) -> Option<Message> {
    let directory: &Directory = &network::DIRECTORY;
    let mut question = Message::default();
    question.set_chaddr(&mac);
    question.opts_mut().insert(DhcpOption::MessageType(kind));
    if let Some(wants) = wants {
        question.opts_mut().insert(DhcpOption::RequestedIpAddress(wants.into()));
    }
    let answer = answer4(&question.to_vec().expect("encodes"), directory)?;
    Some(Message::from_bytes(&answer.bytes).expect("our own message"))
}

#[test]
fn a_port_gets_its_address_and_no_other() {
    let offer = ask(MessageType::Discover, network::MAC, None).expect("an offer");
    assert_eq!(offer.yiaddr().octets(), [10, 20, 0, 9]);
    assert!(offer.opts().has_msg_type(MessageType::Offer));
    assert_eq!(offer.opts().get(OptionCode::InterfaceMtu), Some(&DhcpOption::InterfaceMtu(1450)));
    let ack = ask(MessageType::Request, network::MAC, Some([10, 20, 0, 9])).expect("an answer");
    assert!(ack.opts().has_msg_type(MessageType::Ack));
    let nak = ask(MessageType::Request, network::MAC, Some([10, 20, 0, 8])).expect("an answer");
    assert!(nak.opts().has_msg_type(MessageType::Nak) && nak.yiaddr().is_unspecified());
    assert!(ask(MessageType::Discover, [2, 0, 0, 0, 0, 8], None).is_none(), "a stranger");
}

#[test]
fn the_router_says_its_name_and_size() {
    let bytes = advertisement(&network::DIRECTORY).expect("a network with IPv6");
    assert_eq!(bytes[..1], [134]);
    assert_eq!(bytes.len() % 8, 0);
    assert!(bytes.windows(8).any(|part| part == [5, 1, 0, 0, 0, 0, 5, 170]), "{bytes:x?}");
}

/// A message of DHCPv6 with these options behind its client's name.
fn six(kind: u8, options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![kind, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1];
    message.extend(network::MAC);
    for (code, value) in options {
        message.extend(code.to_be_bytes());
        message.extend(u16::try_from(value.len()).expect("short").to_be_bytes());
        message.extend_from_slice(value);
    }
    message
}

#[test]
fn only_what_is_understood_of_dhcpv6_is_read() {
    let directory: &Directory = &network::DIRECTORY;
    let mac = MacAddr::new(network::MAC).expect("a MAC address");
    let own = "fd00:20::9".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    let gives = |message: &[u8]| {
        answer6(message, mac, directory).map(|answer| answer.windows(16).any(|part| part == own))
    };
    let association = [0; 12];
    assert_eq!(gives(&six(1, &[(3, &association)])), Some(true));
    // Options of others are passed over, however long they are.
    let foreign = [0xff; 300];
    assert_eq!(gives(&six(1, &[(16, &foreign), (6, &[1]), (3, &association)])), Some(true));
    // Eight associations are answered, and no more.
    let many = vec![(3_u16, &association[..]); 60];
    let answer = answer6(&six(1, &many), mac, directory).expect("an answer");
    assert_eq!(answer.windows(16).filter(|part| *part == own).count(), 8);
    for wrong in [
        // Too short an association, an address that is cut, options that do not fill the message, a relay's.
        six(1, &[(3, &[0; 11])]),
        six(3, &[(3, &[&association[..], &[0, 5, 0, 4, 1, 2, 3, 4]].concat())]),
        [six(1, &[]), vec![0, 3, 0, 50, 0]].concat(),
        six(12, &[(3, &association)]),
        vec![1, 2, 3],
        vec![],
    ] {
        assert_eq!(gives(&wrong), None, "{wrong:x?}");
    }
}

#[test]
fn a_message_of_many_questions_is_refused_without_them() {
    let directory: &Directory = &network::DIRECTORY;
    let label = [&[63][..], &[b'a'; 63]].concat();
    let question = [&label.repeat(3)[..], &[0, 0, 1, 0, 1]].concat();
    for count in [0_u8, 2, 9, 17] {
        let header = [7, 7, 1, 0, 0, count, 0, 0, 0, 0, 0, 0];
        let message = [&header[..], &question.repeat(count.into())].concat();
        let DnsAnswer::Bytes(answer) = answer_dns(&message, Way::Udp, directory) else {
            panic!("{count} questions deserve an answer");
        };
        assert_eq!((answer.len(), &answer[..2], answer[3] & 15), (12, &[7, 7][..], 1), "{count}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let directory: &Directory = &network::DIRECTORY;
        let _ = answer4(&bytes, directory);
        let _ = answer6(&bytes, MacAddr::new(network::MAC).unwrap(), directory);
        if let DnsAnswer::Bytes(answer) = answer_dns(&bytes, Way::Udp, directory) {
            prop_assert!(answer.len() <= 1_232);
        }
    }
}
