//! Programs on two hosts: on the light protocol they see what they see on plain TCP.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;
mod hosts;
mod killed;
mod real;

use common::site::{End, Site};
use common::{On, Running, STAY, STEPS_BACK, make_hostile, wait};
use hosts::{Hosts, script};
use skein_link::broker::Path;
use skein_link::node::Ethernet;
use skein_link::testbed::Host;
use std::io::Write;
use std::process::Stdio;

/// A connection that rests after its traffic, in a state that the word names.
fn resting(hosts: &Hosts, word: &str) -> (Running, impl Write + use<>) {
    common::rest(hosts.command(Host::A, On::Link, &["python3", &script("resting.py"), word]))
}

fn gone(hosts: &Hosts) {
    for host in Host::BOTH {
        wait("the end of the connection", || hosts.connections(host).is_empty().then_some(()));
    }
}

#[test]
fn both_directions_take_the_light_protocol() {
    for ethernet in [Ethernet::Never, Ethernet::Probe] {
        let hosts = Hosts::new(ethernet);
        let (mut running, mut stdin) = resting(&hosts, "nothing");
        for host in Host::BOTH {
            let seen = hosts.until_light(host, |c| c.ring_bytes.iter().all(|bytes| *bytes > 1000));
            assert_eq!(seen.reason, "none");
        }
        stdin.write_all(b"more\n").unwrap();
        hosts.until_light(Host::A, |c| c.ring_bytes.iter().all(|bytes| *bytes > 25_000));
        drop(stdin);
        assert!(running.0.wait().unwrap().success());
        gone(&hosts);
    }
}

/// Random programs: the seed of each, and its steps.
fn seeds(programs: impl IntoIterator<Item = (u32, u32)>) {
    let hosts = Hosts::new(Ethernet::Never);
    let mut count = 0;
    for (seed, steps) in programs {
        common::same_calls(seed..seed + 1, steps, |on, words| hosts.output(Host::A, on, words));
        // However it ended, nothing of it stays.
        gone(&hosts);
        count += 1;
    }
    // On a busy host one or the other is over before its ends have met.
    let totals = hosts.totals(Host::A);
    assert!(count < 10 || totals.light_bytes > 10_000 * count, "{totals:?}");
}

#[test]
fn random_calls() {
    // The last two have ends that once were never noticed.
    seeds((1..=30).map(|seed| (seed, 80)).chain([(5018, 60), (5024, 60)]));
}

#[test]
#[cfg(feature = "long-tests")]
fn many_random_calls() {
    seeds((1000..1300).map(|seed| (seed, 300)));
}

/// Seeds of one's own choice; nothing, unless they are named.
#[test]
fn chosen_random_calls() {
    if let Some([from, count, steps]) = common::chosen_seeds() {
        seeds((from..from + count).map(|seed| (seed, steps)));
    }
}

/// A hard case of `scenarios.py`.
fn scenario(name: &str) {
    let hosts = Hosts::new(Ethernet::Never);
    let script = script("scenarios.py");
    let words = ["python3", &script, name];
    let tcp = hosts.output(Host::A, On::Tcp, &words);
    let link = hosts.output(Host::A, On::Link, &words);
    assert_eq!(link, tcp, "{name}: the link beside plain TCP");
    gone(&hosts);
    for host in Host::BOTH {
        let totals = hosts.totals(host);
        assert!(totals.light_bytes > 1000, "{name} went over TCP: {totals:?}");
        assert!(!totals.steps_back.contains_key("light-lost"), "{name}: {totals:?}");
    }
}

each_by_name! { scenario:
    bulk slow_reader stopped_reader edge_reader fork_writers fork_readers last_holder exec_same exec_without spawn passed out_of_band
    stdio sandbox timeout interrupted shutdown_wakes kill_writer kill_reader dropped_at_home
}

/// A hard case of `hostile.c`.
fn hostile(name: &str) {
    let hosts = Hosts::new(Ethernet::Never);
    for folder in &hosts.folders {
        make_hostile(folder.path());
    }
    let tcp = hosts.output(Host::A, On::Tcp, &["./hostile", name]);
    let link = hosts.output(Host::A, On::Link, &["./hostile", name]);
    assert_eq!(link, tcp, "{name}: the link beside plain TCP");
    gone(&hosts);
}

each_by_name! { hostile:
    vfork_child spawned static_program dup2_over ranges passed_in_a_list signalled handler_writes close_while_reading cancelled
    shutdown_own_reader shutdown_while_peer_sleeps waitall truncation receive_timeout broken_pipe empty_pieces queues
    information reset_by_linger reset_behind_bytes nonblocking_connect refused by_signal two_threads_read polled_by_another
    io_uring lists looks_across
}

#[test]
fn steps_back_are_told_with_their_reason() {
    let hosts = Hosts::new(Ethernet::Never);
    for (word, reason) in STEPS_BACK {
        let (mut running, mut stdin) = resting(&hosts, word);
        hosts.until(word, Host::A, |c| c.reason == reason);
        // It goes on, over TCP.
        stdin.write_all(b"more\n").unwrap();
        hosts.until(word, Host::A, |c| c.path == Path::Tcp && c.reason == reason);
        drop(stdin);
        assert!(running.0.wait().unwrap().success());
        gone(&hosts);
    }
}

/// Bytes that go past the library end the connection with an error; none is taken for another.
#[test]
fn foreign_bytes_end_the_connection() {
    let hosts = Hosts::new(Ethernet::Never);
    let script = script("scenarios.py");
    let (text, _) = hosts.output(Host::A, On::Link, &["python3", &script, "foreign"]);
    assert!(text.contains("ECONNRESET"), "{text}");
}

/// The broker of one host ends while bytes go over the light protocol: a connection error at both ends, soon. New connections
/// stay on TCP; when the broker is back, they take the light protocol again.
#[test]
fn an_agent_that_ends_is_a_clean_error_and_its_successor_is_used() {
    let mut hosts = Hosts::new(Ethernet::Never);
    let (mut running, mut stdin) = resting(&hosts, "nothing");
    hosts.until_light(Host::A, |c| c.ring_bytes.iter().all(|bytes| *bytes > 1000));
    hosts.stop_agent(Host::B);
    let _ = stdin.write_all(b"more\n");
    drop(stdin);
    assert!(!running.0.wait().unwrap().success(), "it saw the error");
    let (mut running, mut stdin) = resting(&hosts, "nothing");
    stdin.write_all(b"more\n").unwrap();
    drop(stdin);
    assert!(running.0.wait().unwrap().success(), "TCP is as it was");
    hosts.start_agent(Host::B, Ethernet::Never);
    hosts.meet();
    let (mut running, stdin) = resting(&hosts, "nothing");
    hosts.until_light(Host::A, |c| c.ring_bytes.iter().all(|bytes| *bytes > 1000));
    drop(stdin);
    assert!(running.0.wait().unwrap().success());
}

/// The wire is unplugged for longer than the nodes bear: an error at both ends, and no byte is wrong.
#[test]
fn an_unplugged_wire_is_a_clean_error() {
    let hosts = Hosts::new(Ethernet::Never);
    let (mut running, mut stdin) = resting(&hosts, "nothing");
    hosts.until_light(Host::A, |c| c.ring_bytes.iter().all(|bytes| *bytes > 1000));
    hosts.bed.plug(false).unwrap();
    stdin.write_all(b"more\n").unwrap();
    assert!(!running.0.wait().unwrap().success());
    hosts.bed.plug(true).unwrap();
    hosts.meet();
    let (mut running, stdin) = resting(&hosts, "nothing");
    hosts.until_light(Host::A, |c| c.ring_bytes.iter().all(|bytes| *bytes > 1000));
    drop(stdin);
    assert!(running.0.wait().unwrap().success());
}

/// Where only the processor limits, TCP brings more than three programs and two copies each: the bulk goes there, and is told so. On
/// a wire it stays on the light protocol, after both were measured.
#[test]
fn the_bulk_takes_the_path_that_brings_more() {
    let hosts = Hosts::new(Ethernet::Probe);
    let stream = |seconds: &str| {
        let port = hosts.port();
        let text = port.to_string();
        let server = hosts.serve(On::Link, port, &["iperf3", "-s", "-1", "-p", &text]);
        let choosing = ["env", "-u", STAY.0];
        let words = ["iperf3", "-c", "10.77.0.1", "-p", &text, "-t", seconds];
        let words = [&choosing[..], &words].concat();
        let mut client = Site::command(&hosts, End::Client, On::Link, &words);
        (server, Running(client.stdout(Stdio::null()).spawn().unwrap()))
    };
    let running = stream("40");
    let chosen = hosts.until("TCP by choice", Host::B, |c| c.reason == "tcp-faster");
    assert_eq!(chosen.path, Path::Tcp);
    drop(running);
    gone(&hosts);
    hosts.bed.limit(200, 32 * 1024).unwrap();
    let running = stream("40");
    // Measuring it took about a megabyte; whoever had chosen TCP would not come to so many in a minute.
    let kept = hosts.until_light(Host::B, |c| c.ring_bytes.iter().any(|bytes| *bytes > 30_000_000));
    assert_eq!(kept.reason, "none");
    drop(running);
}

/// To another host a wake-up by the ring costs a round trip more: small messages to one who sleeps take TCP.
#[test]
fn small_messages_to_one_who_sleeps_take_tcp() {
    let hosts = Hosts::new(Ethernet::Never);
    let script = script("polling.py");
    let words = ["env", "-u", STAY.0, "python3", &script];
    let mut command = hosts.command(Host::A, On::Link, &words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    let mut running = Running(child);
    let found = hosts.until("TCP by choice", Host::A, |c| c.reason == "wake-ups");
    assert_eq!(found.path, Path::Tcp);
    drop(stdin);
    assert!(running.0.wait().unwrap().success());
}

/// A wire that loses: bytes of both paths come late and in another order, and nothing is wrong.
#[test]
fn a_bad_wire() {
    let hosts = Hosts::new(Ethernet::Probe);
    hosts.bed.lose(50).unwrap();
    let script = script("scenarios.py");
    for name in ["bulk", "slow_reader", "edge_reader"] {
        let words = ["python3", &script, name];
        let tcp = hosts.output(Host::A, On::Tcp, &words);
        let link = hosts.output(Host::A, On::Link, &words);
        assert_eq!(link, tcp, "{name}: the link beside plain TCP");
    }
    hosts.bed.heal().unwrap();
}
