//! Peers that come and go.

use crate::common::site::Site as _;
use crate::common::{On, Running, rest, wait};
use crate::hosts::{Hosts, index, script};
use skein_link::broker::Path;
use skein_link::node::{Ethernet, NodeError, PORT, PeerConfig};
use skein_link::remote::Remote;
use skein_link::testbed::Host;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

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

/// A line of a program's output, without its end.
fn read_line(output: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
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

/// Reads a little at a time, and so soon asks the broker; answers each 200 bytes. Prints its port.
const ANSWERS: &str = "import os,socket\n\
    l=socket.create_server((os.environ['HERE'],0))\n\
    print(l.getsockname()[1],flush=True)\n\
    s,_=l.accept()\n\
    got=b''\n\
    while d:=s.recv(10):\n\
    \x20got+=d\n\
    \x20if len(got)==200: s.sendall(got); got=b''\n";
/// Few calls, then, for each line of its input, many.
const ASKS_LATE: &str = "import socket,sys\n\
    s=socket.create_connection((sys.argv[1],int(sys.argv[2])))\n\
    def talk():\n\
    \x20s.sendall(b'x'*200)\n\
    \x20assert len(s.recv(200,socket.MSG_WAITALL))==200\n\
    talk(); print('ready',flush=True)\n\
    for _ in sys.stdin:\n\
    \x20for _ in range(100): talk()\n\
    \x20print('talked',flush=True)\n";

/// One end of a connection comes after the other one's node has let it go: it stays on TCP, and both programs notice nothing.
#[test]
fn who_comes_too_late_stays_on_tcp() {
    // The node that calls, and the one that is called.
    for host in Host::BOTH {
        let hosts = Hosts::that_meet_within(Duration::from_millis(300));
        let mut server = hosts.command(host, On::Link, &["python3", "-c", ANSWERS]);
        let mut server = Running(server.stdout(Stdio::piped()).spawn().unwrap());
        let port = read_line(&mut BufReader::new(server.0.stdout.take().unwrap()));
        let address = host.address().to_string();
        let words = ["python3", "-c", ASKS_LATE, &address, &port];
        let mut client = hosts.command(host.other(), On::Link, &words);
        client.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Running(client.spawn().unwrap());
        let mut output = BufReader::new(client.0.stdout.take().unwrap());
        assert_eq!(read_line(&mut output), "ready");
        let node = |host: Host| hosts.nodes[index(host)].as_ref().unwrap();
        wait("the end of its patience", || (node(host).unmet() > 0).then_some(()));
        let found = hosts.until("one end", host, |c| c.reason == "peer-not-there");
        assert_eq!(found.path, Path::Tcp);
        assert!(hosts.connections(host.other()).is_empty(), "it has not asked");
        client.0.stdin.as_mut().unwrap().write_all(b"more\n").unwrap();
        assert_eq!(read_line(&mut output), "talked");
        for host in Host::BOTH {
            let found = hosts.until("both ends", host, |c| c.reason == "peer-not-there");
            assert_eq!((found.path, found.ring_bytes), (Path::Tcp, [0, 0]));
            assert_eq!(node(host).aborts(), 0);
        }
        drop(client.0.stdin.take());
        assert!(client.0.wait().unwrap().success());
        assert!(server.0.wait().unwrap().success());
        wait("the end", || hosts.connections(host).is_empty().then_some(()));
    }
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
