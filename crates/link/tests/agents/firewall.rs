//! A connection whose firewall changes goes back to TCP, where the firewall has it.

use crate::common::{On, Running, rest, wait};
use crate::hosts::{Hosts, script};
use crate::peers::{goes_on, is_busy, resting};
use skein_link::broker::{Connection, Path};
use skein_link::node::Ethernet;
use skein_link::testbed::Host;
use std::io::Write;
use std::process::ChildStdin;

/// As [`resting`], between two programs of host A.
fn resting_near(hosts: &Hosts) -> (Running, ChildStdin) {
    let script = script("resting.py");
    let mut command = hosts.command(Host::A, On::Link, &["python3", &script, "nothing"]);
    command.env_remove("FAR");
    rest(command)
}

fn nft(hosts: &Hosts, command: &str) {
    hosts.bed.run(Host::A, &format!("nft {command}")).unwrap();
}

/// Makes a table with a chain on the way in.
fn filter(hosts: &Hosts) {
    nft(hosts, "add table inet test");
    nft(hosts, "add chain inet test in { type filter hook input priority 0; policy accept; }");
}

/// The port at which a connection was accepted, or from which it was made: a rule that names it meets all its packets.
fn port(address: &str) -> &str {
    address.rsplit_once(':').unwrap().1
}

fn sum(bytes: [u64; 2]) -> u64 {
    bytes.iter().sum()
}

/// A rule that drops a connection's packets drops those that were on the ring as well; when it goes, all arrives.
fn a_dropped_connection_stands_still(near: bool) {
    let hosts = Hosts::new(Ethernet::Never);
    filter(&hosts);
    let (mut running, mut stdin) = if near { resting_near(&hosts) } else { resting(&hosts) };
    let wanted = if near { Path::Ring } else { Path::Light };
    let found =
        hosts.until("a way past TCP", Host::A, |c: &Connection| c.path == wanted && is_busy(c));
    let [low, high] = [port(&found.low), port(&found.high)];
    for port in [low, high] {
        nft(&hosts, &format!("add rule inet test in tcp dport {port} drop"));
    }
    hosts.until("going back", Host::A, |c| c.reason == "operator");
    stdin.write_all(b"more\n").unwrap();
    let on_tcp = |c: &Connection| c.tcp_bytes.map_or(0, sum);
    let before = (sum(found.ring_bytes), on_tcp(&found));
    let still = hosts.until("bytes on TCP", Host::A, |c| on_tcp(c) > before.1);
    if near {
        assert_eq!(sum(still.ring_bytes), before.0, "nothing goes past the firewall");
    } else {
        hosts.until("going back of the other", Host::B, |c| c.path == Path::Tcp);
    }
    assert!(running.0.try_wait().unwrap().is_none(), "it waits for what was dropped");
    nft(&hosts, "delete table inet test");
    drop(stdin);
    assert!(running.0.wait().unwrap().success());
}

#[test]
fn a_dropped_ring_stands_still() {
    a_dropped_connection_stands_still(true);
}

#[test]
fn a_dropped_connection_to_another_host_stands_still() {
    a_dropped_connection_stands_still(false);
}

/// Any change sends connections back; those that begin after it, or have heard of their peer since, get a ring.
#[test]
fn connections_after_a_change_get_a_ring() {
    let hosts = Hosts::new(Ethernet::Never);
    let first = resting_near(&hosts);
    hosts.until("a ring", Host::A, |c| c.path == Path::Ring && is_busy(c));
    filter(&hosts);
    hosts.until("going back", Host::A, |c| c.reason == "operator");
    assert!(goes_on(first), "the rules let it through");
    let second = resting_near(&hosts);
    hosts.until("a ring", Host::A, |c| c.path == Path::Ring && is_busy(c));
    // A namespace has its own rules.
    hosts.bed.run(Host::B, "nft add table inet other").unwrap();
    let third = resting_near(&hosts);
    wait("two rings", || {
        let all = hosts.connections(Host::A);
        let rings = all.iter().filter(|c| c.path == Path::Ring && is_busy(c)).count();
        (rings == 2).then_some(())
    });
    assert!(goes_on(second));
    assert!(goes_on(third));
}
