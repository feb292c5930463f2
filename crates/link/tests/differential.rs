//! Programs of socket calls that must print the same on plain TCP and on the link.

#[macro_use]
mod common;

use common::{Ground, On, Running, STEPS_BACK, make_hostile, program, wait};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

fn seeds(from: u32, count: u32, steps: u32) {
    let ground = Ground::on_ring();
    common::same_calls(from..from + count, steps, |on, words| ground.output(on, words));
}

#[test]
fn random_calls() {
    seeds(1, 40, 100);
}

#[test]
#[cfg(feature = "long-tests")]
fn many_random_calls() {
    seeds(1000, 500, 400);
}

/// Seeds of one's own choice; nothing, unless they are named.
#[test]
fn chosen_random_calls() {
    if let Some([from, count, steps]) = common::chosen_seeds() {
        seeds(from, count, steps);
    }
}

/// A hard case of `scenarios.py`.
fn scenario(name: &str) {
    let ground = Ground::on_ring();
    let script = program("scenarios.py");
    let words = ["python3", script.to_str().unwrap(), name];
    let tcp = ground.output(On::Tcp, &words);
    let link = ground.output(On::Link, &words);
    assert_eq!(link, tcp, "{name}: the link beside plain TCP");
}

each_by_name! { scenario:
    bulk slow_reader stopped_reader edge_reader fork_writers fork_readers last_holder exec_same exec_without spawn passed out_of_band
    stdio sandbox timeout interrupted shutdown_wakes kill_writer kill_reader
}

/// A hard case of `hostile.c`.
fn hostile(name: &str) {
    let ground = Ground::on_ring();
    make_hostile(ground.folder.path());
    let tcp = ground.output(On::Tcp, &["./hostile", name]);
    let link = ground.output(On::Link, &["./hostile", name]);
    assert_eq!(link, tcp, "{name}: the link beside plain TCP");
}

each_by_name! { hostile:
    vfork_child spawned static_program dup2_over ranges passed_in_a_list signalled handler_writes close_while_reading cancelled
    shutdown_own_reader shutdown_while_peer_sleeps waitall truncation receive_timeout broken_pipe empty_pieces queues
    information reset_by_linger reset_behind_bytes nonblocking_connect refused by_signal two_threads_read polled_by_another
    io_uring lists looks_across
}

/// Bytes that go past the library end the connection with an error; none is taken for another.
#[test]
fn foreign_bytes_end_the_connection() {
    let ground = Ground::on_ring();
    let script = program("scenarios.py");
    let (text, _) = ground.output(On::Link, &["python3", script.to_str().unwrap(), "foreign"]);
    assert!(text.contains("ECONNRESET"), "{text}");
}

/// Calls through liburing: the connections that they name go back to TCP before, and no others.
#[test]
fn rings_of_calls_take_back_what_they_use() {
    for (word, steps_back) in [("plain", true), ("registered", true), ("files", false)] {
        let ground = Ground::on_ring();
        let (source, program) = (program("uring.c"), ground.path("uring"));
        let (source, program) = (source.to_str().unwrap(), program.to_str().unwrap());
        let words = ["cc", "-O1", "-o", program, source, "-l:liburing.so.2"];
        let (text, status) = ground.output(On::Tcp, &words);
        assert_eq!(status, Some(0), "{text}");
        let tcp = ground.output(On::Tcp, &["./uring", word]);
        let link = ground.output(On::Link, &["./uring", word]);
        assert_eq!(link, tcp, "{word}: the link beside plain TCP");
        assert_eq!(tcp.1, Some(0), "{word}: {tcp:?}");
        wait("the end", || ground.broker.connections().is_empty().then_some(()));
        let totals = ground.broker.totals();
        assert_eq!(totals.steps_back.contains_key("io-uring"), steps_back, "{word}: {totals:?}");
        assert!(totals.ring_bytes > 100_000, "{word}: {totals:?}");
    }
}

/// A connection that rests after its traffic, in a state that the word names.
fn resting(ground: &Ground, word: &str) -> (Running, impl Write + use<>) {
    let script = program("resting.py");
    common::rest(ground.command(On::Link, &["python3", script.to_str().unwrap(), word]))
}

#[test]
fn both_directions_take_the_ring() {
    let ground = Ground::on_ring();
    let (running, stdin) = resting(&ground, "nothing");
    let found = ground
        .until("a connection on the ring", |c| c.ring_bytes.iter().all(|bytes| *bytes > 1000));
    assert_eq!(found.reason, "none");
    assert!(found.pids.iter().all(|pid| *pid > 0));
    drop((stdin, running));
    wait("the end of the connection", || ground.broker.connections().is_empty().then_some(()));
}

#[test]
fn steps_back_are_told_with_their_reason() {
    let ground = Ground::on_ring();
    for (word, reason) in STEPS_BACK {
        let (running, stdin) = resting(&ground, word);
        ground.until(word, |c| c.reason == reason);
        drop((stdin, running));
        wait("the end of the connection", || ground.broker.connections().is_empty().then_some(()));
    }
}

/// A receiver that sleeps in `select` for each message is told by TCP itself; one that is spoken to in bulk is not.
#[test]
fn small_messages_to_one_who_sleeps_take_tcp() {
    let ground = Ground::new();
    let script = program("polling.py");
    let mut command = ground.command(On::Link, &["python3", script.to_str().unwrap()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (stdin, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut running = Running(child);
    let found = ground.until("TCP by choice", |c| c.reason == "wake-ups");
    assert_eq!(found.path, skein_link::broker::Path::Tcp);
    drop(stdin);
    let mut text = String::new();
    BufReader::new(out).read_line(&mut text).unwrap();
    assert_eq!(text, "all came\n");
    assert!(running.0.wait().unwrap().success());
}

#[test]
fn a_revoked_connection_goes_on_over_tcp() {
    let ground = Ground::on_ring();
    let (mut running, mut stdin) = resting(&ground, "nothing");
    ground.until("a connection on the ring", |c| c.ring_bytes.iter().all(|bytes| *bytes > 1000));
    assert_eq!(ground.broker.revoke(|_| true), 1);
    stdin.write_all(b"more\n").unwrap();
    ground.until("a connection on TCP", |c| {
        c.reason == "operator" && c.tcp_bytes.iter().flatten().all(|bytes| *bytes > 20_000)
    });
    drop(stdin);
    assert!(running.0.wait().unwrap().success());
}

#[test]
fn without_a_broker_all_stays_on_tcp() {
    let ground = Ground::on_ring();
    let script = program("scenarios.py");
    let words = ["python3", script.to_str().unwrap(), "bulk"];
    let mut command = ground.command(On::Link, &words);
    command.env("SKEIN_LINK_BROKER", ground.path("nobody.sock"));
    let out = command.output().unwrap();
    assert!(out.status.success());
    assert!(ground.broker.connections().is_empty());
}

#[test]
fn projects_never_share_memory() {
    use skein_link::broker::{Broker, BrokerConfig, Project};
    let ground = Ground::on_ring();
    let sockets = [ground.path("one.sock"), ground.path("two.sock")];
    let project = |(name, socket): (&str, &std::path::PathBuf)| Project {
        name: name.to_owned(),
        socket: socket.clone(),
    };
    let projects = ["one", "two"].into_iter().zip(&sockets).map(project).collect();
    let config = BrokerConfig { projects, ..BrokerConfig::new(ground.path("unused.sock")) };
    let broker = Broker::start(config).unwrap();
    let script = program("resting.py");
    let mut command = ground.command(On::Link, &["python3", script.to_str().unwrap(), "nothing"]);
    command.env("SKEIN_LINK_BROKER", &sockets[0]).env("OTHER_BROKER", &sockets[1]);
    let (running, _stdin) = common::rest(command);
    let found = wait("both ends to have asked", || {
        let found = broker.connections();
        (found.len() == 2).then_some(found)
    });
    for connection in found {
        assert_eq!(connection.reason, "peer-not-there");
        assert_eq!(connection.ring_bytes, [0, 0]);
    }
    drop(running);
}

/// A program that is not one of ours gets nothing out of the broker, and does not disturb it.
#[test]
fn nonsense_is_not_answered() {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send,
        socket,
    };
    let ground = Ground::on_ring();
    let address = SocketAddrUnix::new(ground.path("link.sock")).unwrap();
    for bytes in [&b"x"[..], &[0; 16], &[0xFF; 16], &[0; 4000]] {
        let asker = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&asker, &address).unwrap();
        send(&asker, bytes, SendFlags::NOSIGNAL).unwrap();
        let (len, _) = recv(&asker, &mut [0; 64][..], RecvFlags::empty()).unwrap();
        assert_eq!(len, 0);
    }
    let (running, stdin) = resting(&ground, "nothing");
    ground.until("a connection on the ring", |c| c.ring_bytes[0] > 1000);
    drop((stdin, running));
}

/// The library stands in front of the functions that it names and of nothing else.
#[test]
fn the_library_exports_what_it_hooks() {
    let ground = Ground::on_ring();
    let library = std::fs::read_dir(ground.path("lib")).unwrap().next().unwrap().unwrap().path();
    let out = ground.output(On::Tcp, &["nm", "-D", "--defined-only", library.to_str().unwrap()]);
    let names: Vec<_> = out.0.lines().filter_map(|line| line.split_whitespace().last()).collect();
    for name in
        ["read", "write", "recvmsg", "__read_chk", "sendfile64", "fcntl64", "vfork", "execl"]
    {
        assert!(names.contains(&name), "{name} is not hooked");
    }
    for name in names {
        assert!(
            !name.contains("rust") && !name.starts_with("_ZN"),
            "{name} is not the C library's"
        );
    }
}
