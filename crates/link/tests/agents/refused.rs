//! Connections that are refused stay on TCP, and are in the list with the reason.

use crate::common::{Ground, On, Running, program, rest, wait};
use crate::hosts::{Hosts, index};
use crate::peers::{goes_on, resting};
use skein_link::broker::{
    Broker, BrokerConfig, Connection, Guard, Path as Way, Place, connections,
};
use skein_link::node::Ethernet;
use skein_link::remote::{Local, Meeting, Remote, Unreached};
use skein_link::testbed::Host;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::Arc;

/// Reaches nobody, for this reason.
struct Nowhere(Unreached);

impl Remote for Nowhere {
    fn reaches(&self, _: SocketAddr) -> bool {
        false
    }

    fn why_not(&self, _: SocketAddr) -> Unreached {
        self.0
    }

    fn open(&self, _: Meeting, _: SocketAddr, _: Box<dyn Local>) {
        unreachable!("nobody is reached");
    }
}

/// Allows nothing.
struct Nothing;

impl Guard for Nothing {
    fn allows(&self, _: &Place) -> bool {
        false
    }
}

/// Waits until a broker tells that it has refused a connection for this reason: among those that it tells everybody.
fn refused(broker: &Broker, socket: &Path, reason: &str) -> Connection {
    let what = format!("a connection that was refused: {reason}");
    let one = wait(&what, || broker.refused().into_iter().find(|one| one.reason == reason));
    let told = connections(socket).unwrap();
    let is_it = |other: &&Connection| (&other.low, &other.high) == (&one.low, &one.high);
    let told: Vec<_> = told.iter().filter(is_it).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].path, told[0].reason.as_str()), (Way::Tcp, reason));
    assert_eq!((one.ring_bytes, one.wakeups), ([0; 2], [0; 2]));
    // 200 messages of 100 bytes, there and back; the last may not be acknowledged yet.
    let bytes = one.tcp_bytes.expect("the test may look at its programs");
    assert!(bytes.iter().all(|bytes| *bytes >= 19_900), "{bytes:?}");
    one
}

fn none_is_left(broker: &Broker) {
    wait("the end of the connection", || broker.refused().is_empty().then_some(()));
}

/// A connection of one host that rests after its traffic.
fn resting_near(ground: &Ground) -> (Running, ChildStdin) {
    let script = program("resting.py");
    rest(ground.command(On::Link, &["python3", script.to_str().unwrap(), "nothing"]))
}

/// To hosts that the light protocol does not reach.
#[test]
fn no_way_to_a_host_is_told() {
    let mut hosts = Hosts::new(Ethernet::Never);
    hosts.stop_agent(Host::A);
    let socket = hosts.path(Host::A, "link.sock");
    for (why, word) in [(Unreached::NoNode, "no-node"), (Unreached::Encrypted, "encrypted")] {
        hosts.brokers[index(Host::A)] = None;
        let remote = Some(Arc::new(Nowhere(why)) as Arc<dyn Remote>);
        let config = BrokerConfig { remote, ..BrokerConfig::new(socket.clone()) };
        hosts.brokers[index(Host::A)] = Some(Broker::start(config).unwrap());
        let rests = resting(&hosts);
        let broker = hosts.brokers[index(Host::A)].as_ref().unwrap();
        let found = refused(broker, &socket, word);
        assert_eq!(found.pids.iter().filter(|pid| **pid != 0).count(), 1, "one end is here");
        assert!(broker.connections().is_empty(), "it has no segment");
        // The other host has a node, whose peer is gone.
        let other = hosts.brokers[index(Host::B)].as_ref().unwrap();
        refused(other, &hosts.path(Host::B, "link.sock"), "node-away");
        assert!(goes_on(rests));
        none_is_left(broker);
        none_is_left(other);
    }
}

/// By a rule: told once, with both ends; while its descriptors are there, and no longer.
#[test]
fn what_a_rule_forbids_is_told() {
    let nothing = || Some(Arc::new(Nothing) as Arc<dyn Guard>);
    let ground = Ground::with(|config| BrokerConfig { guard: nothing(), ..config });
    let socket = ground.path("link.sock");
    let rests = resting_near(&ground);
    let found = refused(&ground.broker, &socket, "forbidden");
    assert!(found.pids.iter().all(|pid| *pid != 0), "{found:?}");
    assert_eq!(ground.broker.refused().len(), 1);
    assert!(ground.broker.connections().is_empty());
    assert!(goes_on(rests));
    none_is_left(&ground.broker);

    let code = "import socket,sys\n\
        l=socket.create_server(('127.0.0.1',0)); s=socket.create_connection(l.getsockname()); o,_=l.accept()\n\
        for _ in range(200):\n\
        \x20s.sendall(b'x'*100); o.recv(100,socket.MSG_WAITALL); o.sendall(b'x'*100); s.recv(100,socket.MSG_WAITALL)\n\
        print('ready',flush=True); sys.stdin.readline(); s.close(); o.close(); sys.stdin.readline()\n";
    let (mut running, mut stdin) = rest(ground.command(On::Link, &["python3", "-c", code]));
    refused(&ground.broker, &socket, "forbidden");
    stdin.write_all(b"close\n").unwrap();
    none_is_left(&ground.broker);
    assert!(running.0.try_wait().unwrap().is_none(), "only its sockets are gone");
}

/// For want of room: when there is some, the next asks again and is among the others.
#[test]
fn one_too_many_is_told_until_there_is_room() {
    let ground = Ground::with(|config| BrokerConfig { connections_max: 1, ..config });
    let first = resting_near(&ground);
    ground.until("the first", |_| true);
    let (mut running, mut stdin) = resting_near(&ground);
    let second = refused(&ground.broker, &ground.path("link.sock"), "too-many");
    assert!(goes_on(first));
    wait("the end of the first", || ground.broker.connections().is_empty().then_some(()));
    wait("its turn", || {
        stdin.write_all(b"more\n").unwrap();
        let known = ground.broker.connections();
        known.iter().any(|one| (&one.low, &one.high) == (&second.low, &second.high)).then_some(())
    });
    none_is_left(&ground.broker);
    drop(stdin);
    assert!(running.0.wait().unwrap().success());
}
