//! The nodes of both ends are killed at once, so that none is left to tell the programs.

use crate::common::{On, Running, rest, wait};
use crate::hosts::{Hosts, agent, script};
use skein_link::broker::{Connection, connections};
use skein_link::node::Ethernet;
use skein_link::testbed::Host;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};

/// Where the agents are to be: namespace and socket of each host, between blanks.
const PLACES: &str = "SKEIN_LINK_TEST_AGENTS";
/// Ways in which a program waits for bytes, or for room (`resting.py`).
const WAYS: [&str; 7] = ["read", "limited", "write", "poll", "select", "epoll", "timeout"];

/// The process that the test below kills; by itself it tests nothing.
#[test]
fn both_agents_in_one_process() {
    let Ok(places) = std::env::var(PLACES) else { return };
    let words: Vec<&str> = places.split(' ').collect();
    let start = |(host, place): (Host, &[&str])| {
        agent(host, place[0], Path::new(place[1]), Ethernet::Never)
    };
    let agents: Vec<_> = Host::BOTH.into_iter().zip(words.chunks(2)).map(start).collect();
    // Until it is killed, or its test is no more.
    let _ = std::io::stdin().read_line(&mut String::new());
    drop(agents);
}

/// Starts that process.
fn agents(hosts: &Hosts) -> Running {
    let place = |host| format!("{} {}", hosts.bed.namespace(host), socket(hosts, host));
    let words = ["--exact", "killed::both_agents_in_one_process", "--nocapture"];
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(words).env(PLACES, Host::BOTH.map(place).join(" "));
    Running(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
}

fn socket(hosts: &Hosts, host: Host) -> String {
    hosts.path(host, "link.sock").to_str().unwrap().to_owned()
}

/// Those that have taken the light protocol; who finds no room goes on over TCP.
fn light(hosts: &Hosts, host: Host) -> Vec<Connection> {
    let all = connections(Path::new(&socket(hosts, host))).unwrap_or_default();
    all.into_iter().filter(|c| c.ring_bytes.iter().all(|bytes| *bytes > 1000)).collect()
}

/// A program whose ends wait, and what it prints.
fn waiting(hosts: &Hosts, way: &str) -> (Running, BufReader<ChildStdout>) {
    let mut command = hosts.command(Host::A, On::Link, &["python3", &script("resting.py"), way]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (Running(child), output)
}

fn line(output: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line
}

/// Whichever way they wait, both programs get an error, soon.
#[test]
fn programs_that_sleep_are_told() {
    let hosts = Hosts::without_agents();
    let mut agents = agents(&hosts);
    for host in Host::BOTH {
        wait("the broker", || connections(Path::new(&socket(&hosts, host))).ok());
    }
    let mut programs: Vec<_> = WAYS.iter().map(|way| waiting(&hosts, way)).collect();
    for (_, output) in &mut programs {
        assert_eq!(line(output), "ready\n");
    }
    for host in Host::BOTH {
        wait("the light protocol", || (light(&hosts, host).len() == WAYS.len()).then_some(()));
    }
    agents.0.kill().unwrap();
    agents.0.wait().unwrap();
    for (way, (_, output)) in WAYS.iter().zip(&mut programs) {
        assert_eq!(line(output), "ECONNRESET 3\n", "{way}");
    }
}

/// A program steps back when nobody is left to tell the other host: an error at both ends, and no byte is wrong.
#[test]
fn a_step_back_without_agents_is_a_clean_error() {
    let hosts = Hosts::without_agents();
    let mut agents = agents(&hosts);
    for host in Host::BOTH {
        wait("the broker", || connections(Path::new(&socket(&hosts, host))).ok());
    }
    let words = ["python3", &script("resting.py"), "nothing"];
    let (mut running, mut stdin) = rest(hosts.command(Host::A, On::Link, &words));
    for host in Host::BOTH {
        wait("the light protocol", || (!light(&hosts, host).is_empty()).then_some(()));
    }
    agents.0.kill().unwrap();
    agents.0.wait().unwrap();
    stdin.write_all(b"leave\n").unwrap();
    assert!(!running.0.wait().unwrap().success(), "it saw the error");
}
