//! Two nodes on two hosts: programs' bytes go over the light protocol, whatever happens on the way.

mod frames;
mod program;

use program::Program;
use skein_link::carrier::CarrierKind;
use skein_link::node::{Ethernet, Node, NodeConfig, PORT, PeerConfig, PeerStatus};
use skein_link::remote::{ConnectionKey, Meeting, Note, Remote};
use skein_link::testbed::{Host, Testbed};
use skein_link_core::light::{Check, Key};
use skein_link_core::ring::{Phase, Record};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

fn name(host: Host) -> &'static str {
    match host {
        Host::A => "a",
        Host::B => "b",
    }
}

fn config(host: Host, ethernet: Ethernet) -> NodeConfig {
    let socket = |host: Host| SocketAddr::new(host.address().into(), PORT);
    let other = host.other();
    let peer = PeerConfig { name: name(other).into(), socket: socket(other), addresses: vec![] };
    let config = NodeConfig::new(name(host), socket(host), Key::new([3; 32]));
    NodeConfig { peers: vec![peer], ethernet, ..config }
}

fn start(bed: &Testbed, config: NodeConfig) -> Node {
    bed.on(Host::A, || ()).expect("a host");
    let host = if config.name == "a" { Host::A } else { Host::B };
    bed.on(host, move || Node::start(&config)).expect("a host").expect("a node")
}

fn pair(bed: &Testbed, ethernet: Ethernet) -> [Node; 2] {
    Host::BOTH.map(|host| start(bed, config(host, ethernet)))
}

fn address(host: Host, port: u16) -> SocketAddr {
    SocketAddr::new(host.address().into(), port)
}

fn meeting(here: SocketAddr, there: SocketAddr) -> Meeting {
    Meeting { project: "p".to_owned(), key: ConnectionKey::new(here, there) }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::yield_now();
    }
}

fn reach(node: &Node, host: Host) {
    until("a session", || node.reaches(address(host.other(), 1)));
}

fn status(node: &Node) -> Option<PeerStatus> {
    node.peers().first().map(|(_, status)| *status)
}

/// A connection between two programs on the nodes, both joined.
fn connect(nodes: &[Node; 2], port: u16) -> [Program; 2] {
    let key = meeting(address(Host::A, port), address(Host::B, 80));
    let programs = [Program::new(), Program::new()];
    nodes[0].open(key.clone(), address(Host::B, 80), programs[0].local());
    nodes[1].open(key, address(Host::A, port), programs[1].local());
    for program in &programs {
        program.wait("joining", |seen| seen.joined.then_some(()));
    }
    programs
}

fn bytes(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|place| (place.wrapping_mul(0x9e37_79b9) >> 9) as u8 ^ salt).collect()
}

/// Sends in both directions and ends both; checks every byte.
fn exchange(programs: &[Program; 2], length: usize) {
    for (program, salt) in programs.iter().zip([1, 2]) {
        for piece in bytes(length, salt).chunks(10_007) {
            program.write(piece);
        }
        program.end();
    }
    for (program, salt) in programs.iter().zip([2, 1]) {
        let got = program.wait("the end", |seen| seen.ended.then(|| seen.bytes.clone()));
        assert!(got == bytes(length, salt), "{} bytes of {length}", got.len());
        program.wait("letting go", |seen| seen.dropped.then_some(()));
    }
}

#[test]
fn programs_talk_and_end() {
    let bed = Testbed::new().expect("two hosts");
    let nodes = pair(&bed, Ethernet::Probe);
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    exchange(&connect(&nodes, 4001), 3_000_000);
    for port in 5000..5020 {
        exchange(&connect(&nodes, port), 1000);
    }
    assert!(nodes.iter().all(|node| node.aborts() == 0));
}

#[test]
fn notes_keep_their_place() {
    let bed = Testbed::new().expect("two hosts");
    let nodes = pair(&bed, Ethernet::Never);
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    let [a, b] = connect(&nodes, 4002);
    let switch = |phase: u32| {
        let record = Record { tcp: u64::from(phase) << 33, ring: 5 };
        Note::Switch { phase: Phase(phase), record }
    };
    for phase in 1..=50 {
        a.write(&bytes(usize::from(phase as u16) * 100, 1));
        a.note(switch(phase));
    }
    let notes = b.wait("all notes", |seen| (seen.notes.len() == 50).then(|| seen.notes.clone()));
    let mut place = 0;
    for (phase, (found, at)) in (1..=50).zip(notes) {
        place += phase as usize * 100;
        assert_eq!((found, at), (switch(phase), place));
    }
}

/// The same two addresses in two projects are two connections.
#[test]
fn projects_do_not_meet() {
    let bed = Testbed::new().expect("two hosts");
    let short = |host| NodeConfig {
        meet_within: Duration::from_millis(500),
        ..config(host, Ethernet::Never)
    };
    let nodes = Host::BOTH.map(|host| start(&bed, short(host)));
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    let key = |project: &str| Meeting {
        project: project.to_owned(),
        ..meeting(address(Host::A, 1), address(Host::B, 80))
    };
    let programs = [Program::new(), Program::new()];
    nodes[0].open(key("one"), address(Host::B, 80), programs[0].local());
    nodes[1].open(key("two"), address(Host::A, 1), programs[1].local());
    for program in &programs {
        let joined = program.wait("letting go", |seen| seen.dropped.then_some(seen.joined));
        assert!(!joined);
    }
}

#[test]
fn a_program_that_does_not_read_holds_up_only_its_own_peer() {
    let bed = Testbed::new().expect("two hosts");
    let nodes = pair(&bed, Ethernet::Never);
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    let [a, b] = connect(&nodes, 4003);
    b.lazy(true);
    a.write(&bytes(5_000_000, 1));
    b.wait("a full ring", |seen| (seen.bytes.len() >= 128 * 1024).then_some(()));
    exchange(&connect(&nodes, 4004), 100_000);
    let held = b.wait("nothing", |seen| Some(seen.bytes.len()));
    assert_eq!(held, 128 * 1024);
    b.lazy(false);
    b.write(b"x");
    b.wait("the rest", |seen| (seen.bytes.len() == 5_000_000).then_some(()));
}

#[test]
fn nothing_is_lost_on_a_bad_wire() {
    let bed = Testbed::new().expect("two hosts");
    bed.lose(30).expect("a bad wire");
    let nodes = pair(&bed, Ethernet::Probe);
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    exchange(&connect(&nodes, 4005), 2_000_000);
    bed.heal().expect("a good wire");
}

#[test]
fn an_end_alone_is_left_on_tcp() {
    let bed = Testbed::new().expect("two hosts");
    let short = |host| NodeConfig {
        meet_within: Duration::from_millis(500),
        ..config(host, Ethernet::Never)
    };
    let nodes = Host::BOTH.map(|host| start(&bed, short(host)));
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    let key = |port| meeting(address(Host::A, port), address(Host::B, 80));
    let alone = [Program::new(), Program::new()];
    nodes[0].open(key(1), address(Host::B, 80), alone[0].local());
    nodes[1].open(key(2), address(Host::A, 2), alone[1].local());
    for program in &alone {
        let seen =
            program.wait("letting go", |seen| seen.dropped.then_some((seen.joined, seen.aborted)));
        assert_eq!(seen, (false, None));
    }
}

#[test]
fn an_unplugged_wire_is_a_clean_error_and_heals() {
    let bed = Testbed::new().expect("two hosts");
    let nodes = pair(&bed, Ethernet::Probe);
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    let programs = connect(&nodes, 4006);
    programs[0].write(&bytes(1000, 1));
    programs[1].wait("bytes", |seen| (seen.bytes.len() == 1000).then_some(()));
    bed.plug(false).expect("an unplugged wire");
    programs[0].write(&bytes(1000, 1));
    for program in &programs {
        let reason = program.wait("an error", |seen| seen.aborted);
        assert_eq!(reason, "LINK_PEER_LOST");
    }
    until("the node's word for it", || !nodes[0].reaches(address(Host::B, 1)));
    bed.plug(true).expect("a wire");
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    exchange(&connect(&nodes, 4007), 100_000);
}

#[test]
fn narrow_paths() {
    let bed = Testbed::new().expect("two hosts");
    bed.set_mtu(1300).expect("a narrow wire");
    let nodes = pair(&bed, Ethernet::Probe);
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    exchange(&connect(&nodes, 4008), 500_000);
    let datagram = status(&nodes[0]).expect("a peer").datagram_bytes;
    assert!(datagram <= 1300, "{datagram}");
}

#[test]
fn a_path_that_narrows_under_way() {
    let bed = Testbed::new().expect("two hosts");
    let nodes = pair(&bed, Ethernet::Probe);
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    let programs = connect(&nodes, 4009);
    programs[0].write(&bytes(100_000, 1));
    programs[1].wait("bytes", |seen| (seen.bytes.len() == 100_000).then_some(()));
    bed.set_mtu(1200).expect("a narrow wire");
    exchange(&connect(&nodes, 4010), 500_000);
    programs[0].write(&bytes(100_000, 1));
    programs[1].wait("more bytes", |seen| (seen.bytes.len() == 200_000).then_some(()));
}

#[test]
fn the_faster_carrier_is_chosen() {
    let bed = Testbed::new().expect("two hosts");
    bed.limit(100, 16 * 1024).expect("a slow wire");
    let nodes = pair(&bed, Ethernet::Probe);
    let measured = || status(&nodes[0]).and_then(|status| Some((status.rates?, status.carrier)));
    until("a race on a slow wire", || measured().is_some());
    let ((udp, ethernet), carrier) = measured().expect("rates");
    // What a race measures on a busy host is chance; what follows from it is not.
    if ethernet == 0 || ethernet >= udp {
        assert_eq!(carrier, CarrierKind::Ethernet, "{udp} against {ethernet} bytes/s");
    }
    exchange(&connect(&nodes, 4020), 200_000);
}

#[test]
fn checked_datagrams() {
    let bed = Testbed::new().expect("two hosts");
    let nodes = Host::BOTH.map(|host| {
        // One end asks for it.
        let check = if host == Host::A { Check::EndToEnd } else { Check::Carrier };
        start(&bed, NodeConfig { check, ..config(host, Ethernet::Never) })
    });
    reach(&nodes[0], Host::A);
    reach(&nodes[1], Host::B);
    exchange(&connect(&nodes, 4011), 500_000);
}

/// Says to this test program that it is to be the node of host B until it is killed.
const AS_NODE: &str = "SKEIN_TEST_AS_NODE";

/// A node in a process of its own, with a program that sends everything it can.
#[test]
fn as_a_node() {
    if std::env::var_os(AS_NODE).is_none() {
        return;
    }
    let node = Node::start(&config(Host::B, Ethernet::Probe)).expect("a node");
    reach(&node, Host::B);
    let key = meeting(address(Host::A, 9), address(Host::B, 80));
    let program = Program::new();
    node.open(key, address(Host::A, 9), program.local());
    program.wait("joining", |seen| seen.joined.then_some(()));
    let sent = bytes(1_000_000, 7);
    (0..20).for_each(|_| program.write(&sent));
    program.wait("being killed", |_| None)
}

struct Victim(Child);

impl Victim {
    fn start(bed: &Testbed) -> Self {
        let exe = std::env::current_exe().expect("this program");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &bed.namespace(Host::B)]).arg(exe);
        command.args(["--exact", "as_a_node", "--nocapture"]).env(AS_NODE, "1");
        Self(command.stdout(Stdio::null()).spawn().expect("a process"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("a kill");
        self.0.wait().expect("an end");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_agent_is_a_clean_error_and_its_successor_is_found_at_once() {
    let bed = Testbed::new().expect("two hosts");
    let node = start(&bed, config(Host::A, Ethernet::Probe));
    let key = meeting(address(Host::A, 9), address(Host::B, 80));
    let mut victim = Victim::start(&bed);
    for round in 0..3 {
        reach(&node, Host::A);
        let program = Program::new();
        node.open(key.clone(), address(Host::B, 80), program.local());
        program.wait("bytes", |seen| (seen.bytes.len() > 100_000 * round).then_some(()));
        victim.kill();
        // The successor's set-up is what ends the former connection, or silence.
        victim = Victim::start(&bed);
        let reason = program.wait("an error", |seen| seen.aborted);
        assert!(["LINK_PEER_RESTARTED", "LINK_PEER_LOST"].contains(&reason), "{reason}");
        // What did come is what was sent, from its beginning.
        program.wait("bytes", |seen| {
            let got = &seen.bytes;
            let sent = bytes(1_000_000, 7);
            assert!(got.chunks(1_000_000).all(|piece| *piece == sent[..piece.len()]));
            Some(())
        });
    }
}
