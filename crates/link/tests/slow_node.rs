//! Programs whose node does not do what it should when it should. The test is broker, node and the TCP connection's other end.

mod common;

use common::{PATIENCE_SECS, Running, STAY, program, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, accept, bind, listen, recvmsg,
    send, sendmsg, socket,
};
use skein_link::run;
use skein_link_core::negotiate::{Answer, Ask, MESSAGE_LEN};
use skein_link_core::ring::far::{Rang, Taker};
use skein_link_core::ring::host::{Memory, wake_all};
use skein_link_core::ring::{Direction, Hello, Phase, Reach, Role};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const CAPACITY: usize = 1 << 20;
/// Written when the ring is there: the ring, and more than TCP's buffers hold.
const BYTES: u64 = 30 << 20;
/// The program is the low end.
const ROLE: Role = Role::Low;

/// A socket where one program asks.
fn listen_at(path: &Path) -> OwnedFd {
    let listener = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&listener, 8).unwrap();
    listener
}

/// Gives whoever asks the segment, until it counts; answers with a copy of its socket.
fn give(listener: &OwnedFd, memory: &Memory) -> OwnedFd {
    let header = memory.segment().header();
    let mut held = None;
    wait("the program to count", || {
        let mut set = [PollFd::new(listener, PollFlags::IN)];
        let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        if poll(&mut set, Some(&moment)).unwrap() > 0 {
            held = Some(answer(&accept(listener).unwrap(), memory.file()));
        }
        (header.hello(ROLE) == Hello::Confirmed).then_some(())
    });
    held.unwrap()
}

fn answer(asker: &OwnedFd, file: BorrowedFd<'_>) -> OwnedFd {
    let mut bytes = [0; MESSAGE_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(asker, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .unwrap();
    assert!(Ask::decode(&bytes).is_ok());
    let passed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    control.push(SendAncillaryMessage::ScmRights(&files));
    let bytes = Answer::Segment(ROLE).encode();
    sendmsg(asker.as_fd(), &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    passed.expect("a socket comes along")
}

/// A program that connects to the listener.
fn start(folder: &Path, broker: &Path, listener: &TcpListener, script: &str) -> Running {
    let (port, bytes) = (listener.local_addr().unwrap().port().to_string(), BYTES.to_string());
    let library = run::library(&folder.join("lib")).unwrap();
    let mut command = Command::new("timeout");
    command.args(["--kill-after=2", &PATIENCE_SECS.to_string(), "python3"]);
    command.arg(program(script)).args(["127.0.0.1", &port, &bytes]);
    command.envs(run::environment(&library, broker, None)).env(STAY.0, STAY.1);
    Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
}

fn said(running: &mut Running) -> String {
    let mut text = String::new();
    running.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

/// Rings for the program, and is not done before its ring is full and it waits for that, or has found something else to wait for.
fn ring_slowly(dir: &Direction, phase: Phase, socket: &OwnedFd, child: &mut Child) -> Rang {
    Taker::default().ring(dir, phase, || {
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        wait("a full ring", || (dir.head() - dir.tail() == CAPACITY as u64).then_some(()));
        let patience = Instant::now() + Duration::from_secs(2);
        while !dir.take_listening() && Instant::now() < patience {
            std::thread::yield_now();
        }
        Some(send(socket, &[7], SendFlags::NOSIGNAL).is_ok())
    })
}

/// A call that may not wait says that there is no room only if TCP has none: edges tell of nothing else.
#[test]
fn a_full_ring_is_left_whoever_rings() {
    let folder = tempfile::Builder::new().prefix("skein-link-test-").tempdir().unwrap();
    let path = folder.path().join("link.sock");
    let listener = listen_at(&path);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut running = start(folder.path(), &path, &tcp, "edge_writer.py");
    let (mut stream, _) = tcp.accept().unwrap();
    let memory = Memory::create(CAPACITY, Reach::Far).unwrap();
    let (header, dir) = (memory.segment().header(), memory.segment().pipe(ROLE).direction());
    header.set_hello(ROLE.other(), Hello::Mapped);
    let socket = give(&listener, &memory);
    header.set_hello(ROLE.other(), Hello::Confirmed);
    let phase = wait("the ring", || Some(dir.phase()).filter(|phase| phase.on_ring()));
    Taker::default().placed(dir, phase);
    let on_tcp = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).map(|count| count as u64)
    });
    let rang = ring_slowly(dir, phase, &socket, &mut running.0);
    assert!(matches!(rang, Rang::Yes(_)), "{rang:?}");
    wake_all(dir.news());
    drop(socket);
    assert!(running.0.wait().unwrap().success());
    let sent = said(&mut running);
    // The node's bell, and the program's own at the end of the phase.
    let on_tcp = on_tcp.join().unwrap().unwrap();
    assert_eq!(on_tcp + dir.head(), sent.trim().parse::<u64>().unwrap() + 2);
}

/// A node that is no more is waited for once, not by each of a program's connections.
#[test]
fn a_silent_node_is_waited_for_once() {
    let folder = tempfile::Builder::new().prefix("skein-link-test-").tempdir().unwrap();
    let path = folder.path().join("link.sock");
    let listener = listen_at(&path);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut running = start(folder.path(), &path, &tcp, "silent_node.py");
    let mut held = Vec::new();
    for _ in 0..2 {
        let (stream, _) = tcp.accept().unwrap();
        let memory = Memory::create(CAPACITY, Reach::Far).unwrap();
        memory.segment().header().set_hello(ROLE.other(), Hello::Mapped);
        drop(give(&listener, &memory));
        running.0.stdin.as_mut().unwrap().write_all(b"next\n").unwrap();
        held.push((stream, memory));
    }
    let memories: Vec<Memory> = held.into_iter().map(|(_, memory)| memory).collect();
    running.0.stdin.as_mut().unwrap().write_all(b"read\n").unwrap();
    assert!(running.0.wait().unwrap().success());
    drop(memories);
    let text = said(&mut running);
    let took: Vec<f64> = text
        .lines()
        .map(|line| line.strip_prefix("ECONNRESET ").expect(&text).parse().unwrap())
        .collect();
    assert!(took.len() == 2 && took[1] * 4.0 < took[0], "{text}");
}
