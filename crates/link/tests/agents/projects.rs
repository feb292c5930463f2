//! Projects that come and go, and what a guard forbids.

use crate::common::{Ground, On, Running, program, rest, wait};
use skein_link::broker::{Broker, BrokerConfig, BrokerError, Connection, Guard, Place, Project};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A connection that rests after its traffic, whose programs ask on a socket.
fn resting(ground: &Ground, socket: &Path) -> (Running, ChildStdin) {
    let script = program("resting.py");
    let mut command = ground.command(On::Link, &["python3", script.to_str().unwrap(), "nothing"]);
    command.env("SKEIN_LINK_BROKER", socket);
    rest(command)
}

fn goes_on((mut running, mut stdin): (Running, ChildStdin)) -> bool {
    stdin.write_all(b"more\n").unwrap();
    drop(stdin);
    running.0.wait().unwrap().success()
}

fn until(broker: &Broker, what: &str, holds: impl Fn(&Connection) -> bool) -> Connection {
    wait(what, || broker.connections().into_iter().find(&holds))
}

fn is_busy(connection: &Connection) -> bool {
    connection.ring_bytes.iter().all(|bytes| *bytes > 1000)
}

fn project(ground: &Ground, name: &str) -> Project {
    Project { name: name.to_owned(), socket: ground.path(&format!("{name}.sock")) }
}

fn broker(ground: &Ground, projects: Vec<Project>, guard: Option<Arc<dyn Guard>>) -> Broker {
    let config = BrokerConfig::new(ground.path("unused.sock"));
    Broker::start(BrokerConfig { projects, guard, ..config }).unwrap()
}

#[test]
fn a_project_that_ends_sends_its_connections_back() {
    let ground = Ground::on_ring();
    let [one, two] = ["one", "two"].map(|name| project(&ground, name));
    let broker = broker(&ground, Vec::new(), None);
    broker.set_projects(vec![one.clone(), two.clone()]).unwrap();
    let [first, second] = [&one, &two].map(|project| resting(&ground, &project.socket));
    for name in ["one", "two"] {
        until(&broker, "a ring", |c| c.project == name && is_busy(c));
    }
    broker.set_projects(vec![two.clone()]).unwrap();
    assert!(!one.socket.exists());
    until(&broker, "going back", |c| c.project == "one" && c.reason == "operator");
    assert!(goes_on(first), "over TCP");
    let other = until(&broker, "the other's ring", |c| c.project == "two");
    assert_eq!(other.reason, "none");
    assert!(goes_on(second));
    // It comes back, and a program that has waited for it gets a ring.
    broker.set_projects(vec![one.clone(), two]).unwrap();
    let third = resting(&ground, &one.socket);
    until(&broker, "a ring", |c| c.project == "one" && c.reason == "none" && is_busy(c));
    assert!(goes_on(third));
}

#[test]
fn a_socket_is_one_brokers() {
    let ground = Ground::on_ring();
    let one = project(&ground, "one");
    let first = broker(&ground, vec![one.clone()], None);
    let second = broker(&ground, Vec::new(), None);
    let refused = second.set_projects(vec![one.clone()]);
    assert!(matches!(refused, Err(BrokerError::Running { .. })), "{refused:?}");
    assert!(one.socket.exists(), "the first one's");
    drop(first);
    assert!(!one.socket.exists());
    second.set_projects(vec![one.clone()]).unwrap();
    let held = resting(&ground, &one.socket);
    until(&second, "a ring", is_busy);
    assert!(goes_on(held));
    // What one that was killed left is replaced.
    drop(second);
    drop(std::os::unix::net::UnixListener::bind(&one.socket).unwrap());
    assert!(one.socket.exists());
    drop(broker(&ground, vec![one.clone()], None));
    // What is no socket is somebody's.
    std::fs::write(&one.socket, "mine").unwrap();
    let config = BrokerConfig::new(one.socket.clone());
    let refused = Broker::start(config).map(drop);
    assert!(matches!(refused, Err(BrokerError::Listen { .. })), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&one.socket).unwrap(), "mine");
}

/// A broker that was started for want of another leaves its sockets to one that is wanted; rings go on.
#[test]
fn a_makeshift_leaves_to_a_broker_that_is_wanted() {
    let ground = Ground::on_ring();
    let one = project(&ground, "one");
    let config = BrokerConfig {
        projects: vec![one.clone()],
        yields: true,
        ..BrokerConfig::new(ground.path("unused.sock"))
    };
    let makeshift = Broker::start(config.clone()).unwrap();
    let again = Broker::start(config).map(drop);
    assert!(matches!(again, Err(BrokerError::Running { .. })), "not to its like");
    let held = resting(&ground, &one.socket);
    until(&makeshift, "a ring", is_busy);
    let wanted = broker(&ground, vec![one.clone()], None);
    let fresh = resting(&ground, &one.socket);
    until(&wanted, "a ring", is_busy);
    assert_eq!(makeshift.connections().len(), 1, "it knows the former ones");
    assert!(goes_on(held));
    assert!(goes_on(fresh));
    drop(makeshift);
    assert!(one.socket.exists(), "it is the other's");
    let refused = Broker::start(BrokerConfig {
        projects: vec![one],
        ..BrokerConfig::new(ground.path("unused.sock"))
    });
    assert!(matches!(refused.map(drop), Err(BrokerError::Running { .. })), "one that stays");
}

struct Switch(AtomicBool);

impl Guard for Switch {
    fn allows(&self, place: &Place) -> bool {
        assert_eq!(&*place.project, "one");
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn what_the_guard_forbids_stays_on_tcp_or_goes_back_to_it() {
    let ground = Ground::on_ring();
    let one = project(&ground, "one");
    let switch = Arc::new(Switch(AtomicBool::new(false)));
    let broker = broker(&ground, vec![one.clone()], Some(switch.clone()));
    let forbidden = resting(&ground, &one.socket);
    assert!(broker.connections().is_empty());
    assert!(goes_on(forbidden));
    switch.0.store(true, Ordering::Relaxed);
    assert_eq!(broker.enforce(), 0);
    let allowed = resting(&ground, &one.socket);
    until(&broker, "a ring", is_busy);
    assert_eq!(broker.enforce(), 0);
    switch.0.store(false, Ordering::Relaxed);
    assert_eq!(broker.enforce(), 1);
    assert_eq!(broker.enforce(), 0, "it was sent back");
    let before = until(&broker, "going back", |c| c.reason == "operator");
    assert!(goes_on(allowed), "over TCP");
    drop(before);
}

/// Who has asked ends, and another process goes on with its socket: the connection is still known, and may be revoked.
#[test]
fn a_connection_outlives_who_has_asked() {
    let ground = Ground::on_ring();
    let one = project(&ground, "one");
    let broker = broker(&ground, vec![one.clone()], None);
    let code = "import os,socket,sys\n\
        l=socket.create_server(('127.0.0.1',0))\n\
        def talk(s,o):\n\
        \x20for _ in range(100):\n\
        \x20\x20s.sendall(b'x'*100); o.sendall(b'y'*100); left=200\n\
        \x20\x20while left: left-=len((s if left<=100 else o).recv(min(100,left)))\n\
        s=socket.create_connection(l.getsockname()); o,_=l.accept(); l.close()\n\
        talk(s,o)\n\
        if os.fork(): os._exit(0)\n\
        print(os.getpid(),flush=True)\n\
        sys.stdin.readline(); talk(s,o); print('well',flush=True)\n";
    let mut command = ground.command(On::Link, &["sh", "-c", "python3 -c \"$0\" <&0 | cat", code]);
    command.env("SKEIN_LINK_BROKER", &one.socket);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let _running = Running(child);
    let pid: u32 = said.next().unwrap().unwrap().parse().unwrap();
    until(&broker, "the heir", |c| c.pids == [pid, pid] && is_busy(c));
    assert_eq!(broker.revoke(|_| true), 1);
    stdin.write_all(b"\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "well");
    drop(stdin);
    wait("the end", || broker.connections().is_empty().then_some(()));
}
