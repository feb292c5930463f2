//! Peers that come and go.

use crate::common::site::Site as _;
use crate::common::{On, Running, rest, wait};
use crate::hosts::{Hosts, index, script};
use skein_link::node::{Ethernet, NodeError, PORT, PeerConfig};
use skein_link::remote::Remote;
use skein_link::testbed::Host;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ChildStdin;

/// Starts a connection that rests after its traffic.
pub(crate) fn resting(hosts: &Hosts) -> (Running, ChildStdin) {
    let script = script("resting.py");
    rest(hosts.command(Host::A, On::Link, &["python3", &script, "nothing"]))
}

pub(crate) fn is_busy(connection: &skein_link::broker::Connection) -> bool {
    connection.ring_bytes.iter().all(|bytes| *bytes > 1000)
}

/// Lets a resting connection go on and end: whether it did so well.
pub(crate) fn goes_on((mut running, mut stdin): (Running, ChildStdin)) -> bool {
    let _ = stdin.write_all(b"more\n");
    drop(stdin);
    running.0.wait().unwrap().success()
}

fn peer(host: Host) -> PeerConfig {
    let name = if host == Host::A { "a" } else { "b" };
    let socket = SocketAddr::new(host.address().into(), PORT);
    PeerConfig { name: name.to_owned(), socket, addresses: Vec::new() }
}

/// The peer of a connection is removed: both programs get an error, soon. Later ones stay on TCP until it is there again.
#[test]
fn a_removed_peer_is_a_clean_error_and_may_come_back() {
    let hosts = Hosts::new(Ethernet::Never);
    let node = hosts.nodes[index(Host::A)].clone().unwrap();
    let first = resting(&hosts);
    hosts.until_light(Host::A, is_busy);
    assert!(node.remove_peer("b"));
    assert!(!node.remove_peer("b"), "it is gone");
    assert!(node.peers().is_empty());
    assert!(!goes_on(first), "it saw the error");
    for host in Host::BOTH {
        wait("the end of the connection", || hosts.connections(host).is_empty().then_some(()));
    }
    // The other one has noticed as well: nothing of it is left waiting.
    let other = hosts.nodes[index(Host::B)].clone().unwrap();
    let there = SocketAddr::new(Host::A.address().into(), 1);
    wait("the goodbye", || (!other.reaches(there)).then_some(()));
    let second = resting(&hosts);
    assert!(hosts.connections(Host::A).is_empty(), "there is nobody to ask");
    assert!(goes_on(second), "TCP is as it was");
    node.add_peer(peer(Host::B)).unwrap();
    hosts.meet();
    let third = resting(&hosts);
    hosts.until_light(Host::A, is_busy);
    assert!(goes_on(third));
}

/// A connection of which only one end is under the link waits for the other; it does not notice that its peer goes.
#[test]
fn who_still_waits_stays_on_tcp_when_the_peer_is_removed() {
    let hosts = Hosts::new(Ethernet::Never);
    // The server is not under the link.
    let server = ["socat", "TCP-LISTEN:7000,reuseaddr", "EXEC:cat"];
    let _server = hosts.serve(On::Tcp, 7000, &server);
    let code = "import socket,sys\n\
                s=socket.create_connection(('10.77.0.1',7000))\n\
                def talk():\n\
                \x20for _ in range(50):\n\
                \x20\x20s.sendall(b'x'*100); left=100\n\
                \x20\x20while left: left-=len(s.recv(left))\n\
                talk(); print('ready',flush=True); sys.stdin.readline(); talk()\n";
    let held = rest(hosts.command(Host::B, On::Link, &["python3", "-c", code]));
    hosts.until("one end", Host::B, |c| c.reason == "peer-not-there");
    let node = hosts.nodes[index(Host::B)].clone().unwrap();
    assert!(node.remove_peer("a"));
    assert!(goes_on(held));
    assert_eq!(node.aborts(), 0);
}

#[test]
fn peers_are_brought_in_line() {
    let hosts = Hosts::new(Ethernet::Never);
    let node = hosts.nodes[index(Host::A)].clone().unwrap();
    let held = resting(&hosts);
    hosts.until_light(Host::A, is_busy);
    let overlay = vec![Host::B.overlay_address().into()];
    let as_it_was = PeerConfig { addresses: overlay, ..peer(Host::B) };
    let stranger = PeerConfig {
        name: "c".to_owned(),
        socket: SocketAddr::from(([10, 77, 0, 9], PORT)),
        addresses: Vec::new(),
    };
    node.set_peers(vec![as_it_was.clone(), stranger.clone()]).unwrap();
    wait("a word about both", || (node.peers().len() == 2).then_some(()));
    assert!(!node.reaches(stranger.socket), "it does not answer");
    node.set_peers(vec![as_it_was.clone()]).unwrap();
    assert!(goes_on(held), "a peer that is as it was stays");
    // Names and addresses are one peer's.
    let taken = PeerConfig { name: "d".to_owned(), ..as_it_was.clone() };
    let Err(error) = node.add_peer(taken) else { panic!("an address twice") };
    assert!(matches!(&error, NodeError::PeerTwice { name } if name == "d"), "{error}");
    let own = PeerConfig { name: "a".to_owned(), ..stranger };
    assert_eq!(node.add_peer(own).unwrap_err().code(), "LINK_PEER_TWICE");
    // Many changes, one after the other, while nobody looks.
    for round in 0..50 {
        let wanted = if round % 2 == 0 { Vec::new() } else { vec![as_it_was.clone()] };
        node.set_peers(wanted).unwrap();
    }
    hosts.meet();
    let after = resting(&hosts);
    hosts.until_light(Host::A, is_busy);
    assert!(goes_on(after));
}
