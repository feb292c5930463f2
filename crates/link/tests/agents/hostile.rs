//! Programs that want to harm others through the broker.

use crate::common::{Ground, On, program, rest, wait};
use crate::hosts::{Hosts, index};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket,
};
use skein_link::broker::connections;
use skein_link::node::Ethernet;
use skein_link::testbed::Host;
use skein_link_core::negotiate::LIST;
use std::os::fd::OwnedFd;

fn asker(ground: &Ground) -> OwnedFd {
    let address = SocketAddrUnix::new(ground.path("link.sock")).unwrap();
    let asker = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&asker, &address).unwrap();
    asker
}

/// Runs a program with a connection to the end of its traffic.
fn talks(ground: &Ground) {
    let script = program("resting.py");
    let words = ["python3", script.to_str().unwrap(), "nothing"];
    let (_running, stdin) = rest(ground.command(On::Link, &words));
    ground.until("a ring", |c| c.ring_bytes.iter().all(|bytes| *bytes > 1000));
    drop(stdin);
}

#[test]
fn who_connects_and_is_silent_keeps_nobody_out() {
    let ground = Ground::on_ring();
    let silent: Vec<OwnedFd> = (0..700).map(|_| asker(&ground)).collect();
    talks(&ground);
    // Those that have waited longest were let go, all others soon.
    let (length, _) = recv(&silent[0], &mut [0; 16][..], RecvFlags::empty()).unwrap();
    assert_eq!(length, 0);
    let (length, _) = recv(&silent[699], &mut [0; 16][..], RecvFlags::empty()).unwrap();
    assert_eq!(length, 0);
}

/// A list longer than a socket's buffer arrives whole; somebody who does not read his keeps nobody waiting.
#[test]
fn a_long_list_is_whole() {
    let ground = Ground::on_ring();
    let code = "import socket,sys\n\
        l=socket.create_server(('127.0.0.1',0),backlog=600)\n\
        held=[]\n\
        for _ in range(600):\n\
        \x20s=socket.create_connection(l.getsockname()); o,_=l.accept(); held.append((s,o))\n\
        \x20for _ in range(12):\n\
        \x20\x20s.sendall(b'x'); o.recv(1); o.sendall(b'y'); s.recv(1)\n\
        print('ready',flush=True); sys.stdin.readline()\n";
    let words = ["sh", "-c", "ulimit -n 4096; exec python3 -c \"$0\"", code];
    let (running, stdin) = rest(ground.command(On::Link, &words));
    let lazy: Vec<OwnedFd> = (0..20).map(|_| asker(&ground)).collect();
    for one in &lazy {
        send(one, &LIST, SendFlags::NOSIGNAL).unwrap();
    }
    let list = connections(&ground.path("link.sock")).unwrap();
    assert_eq!(list.len(), 600);
    drop((stdin, running, lazy));
    wait("the end", || ground.broker.connections().is_empty().then_some(()));
}

/// In a network namespace of its own a program may have any addresses, even those of a connection between two hosts: it does
/// not get to the light protocol with them.
#[test]
fn addresses_of_another_namespace_are_others() {
    let hosts = Hosts::new(Ethernet::Never);
    let own = format!("{}x", hosts.bed.namespace(Host::A));
    let ip = |command: &str| {
        let status = std::process::Command::new("ip").args(command.split(' ')).status().unwrap();
        assert!(status.success(), "{command}");
    };
    /// Removed with the test.
    struct Namespace(String);
    impl Drop for Namespace {
        fn drop(&mut self) {
            let delete = ["netns", "del", &self.0];
            let _ = std::process::Command::new("ip").args(delete).status();
        }
    }
    ip(&format!("netns add {own}"));
    let _own = Namespace(own.clone());
    ip(&format!("-n {own} link set lo up"));
    for host in Host::BOTH {
        ip(&format!("-n {own} address add {}/32 dev lo", host.address()));
    }
    let code = "import os,socket,sys\n\
        LIBC=__import__('ctypes').CDLL(None)\n\
        assert LIBC.setns(os.open('/run/netns/'+os.environ['OWN'],os.O_RDONLY),0x40000000)==0\n\
        l=socket.create_server(('10.77.0.2',7000))\n\
        s=socket.socket(); s.bind(('10.77.0.1',7001)); s.connect(('10.77.0.2',7000)); o,_=l.accept()\n\
        for _ in range(200):\n\
        \x20s.sendall(b'x'*100); n=0\n\
        \x20while n<100: n+=len(o.recv(100))\n\
        print('ready',flush=True); sys.stdin.readline()\n";
    let mut command = hosts.command(Host::A, On::Link, &["python3", "-c", code]);
    command.env("OWN", &own);
    let (mut running, stdin) = rest(command);
    let broker = hosts.brokers[index(Host::A)].as_ref().unwrap();
    let refused = broker.refused();
    let words: Vec<&str> = refused.iter().map(|one| one.reason.as_str()).collect();
    assert_eq!(words, ["other-namespace"]);
    drop(stdin);
    assert!(running.0.wait().unwrap().success());
    let totals = hosts.totals(Host::A);
    assert_eq!((totals.tcp_connections, totals.light_connections), (0, 0), "{totals:?}");
    assert!(hosts.connections(Host::A).is_empty());
}
