//! What is answered to machines, from a directory alone.

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Encodable};
use proptest::prelude::*;
use skein_net::{Directory, DnsAnswer, Mac, Way, advertisement, answer_dns, answer4, answer6};

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

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let directory: &Directory = &network::DIRECTORY;
        let _ = answer4(&bytes, directory);
        let _ = answer6(&bytes, Mac::new(network::MAC).unwrap(), directory);
        if let DnsAnswer::Bytes(answer) = answer_dns(&bytes, Way::Udp, directory) {
            prop_assert!(answer.len() <= 1_232);
        }
    }
}
