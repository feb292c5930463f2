//! A broker in a folder of its own, and programs on plain TCP and under the library.

#![allow(dead_code, reason = "each test program uses a part of it")]

use rustix::process::{Pid, Signal, kill_process_group};
use skein_link::broker::{Broker, BrokerConfig, Connection};
use skein_link::run;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long a program may run, seconds; far more than any of them takes on a busy machine.
const PATIENCE_SECS: u32 = 60;

/// What a program runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Tcp,
    Link,
}

pub(crate) struct Ground {
    pub(crate) folder: TempDir,
    pub(crate) broker: Broker,
    variables: Vec<(OsString, OsString)>,
}

/// A program that is ended with its test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // `timeout` leads a process group, in which all that it has started is.
        if let Some(group) = Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(0)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

impl Ground {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("skein-link-test-").tempdir().unwrap();
        let socket = folder.path().join("link.sock");
        let library = run::library(&folder.path().join("lib")).unwrap();
        let broker = Broker::start(BrokerConfig::new(socket.clone())).unwrap();
        let variables = run::environment(&library, &socket, None);
        Self { folder, broker, variables }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command; `timeout` ends it and what it has started if it hangs.
    pub(crate) fn command(&self, on: On, words: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=2", &PATIENCE_SECS.to_string()]).args(words);
        command.stdin(Stdio::null()).env_remove("LD_PRELOAD").current_dir(self.folder.path());
        if on == On::Link {
            command.envs(self.variables.iter().cloned());
        }
        command
    }

    /// Runs it to its end: what it printed on both outputs, and its status.
    pub(crate) fn output(&self, on: On, words: &[&str]) -> (String, Option<i32>) {
        let Output { status, stdout, stderr } = self.command(on, words).output().unwrap();
        let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (text.concat(), status.code())
    }

    /// Starts it, to be ended with the value.
    pub(crate) fn start(&self, on: On, words: &[&str]) -> Running {
        let mut command = self.command(on, words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Running(command.spawn().unwrap())
    }

    /// Waits until the broker knows a connection for which the condition holds.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Connection) -> bool) -> Connection {
        wait(what, || self.broker.connections().into_iter().find(&holds))
    }
}

/// Looks again and again, until there is an answer.
pub(crate) fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited 30 s in vain: {what}");
}

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Waits until somebody listens on a port of loopback, without connecting.
pub(crate) fn listening(port: u16) {
    let port = format!(":{port:04X}");
    wait("a listener", || {
        let tables = ["tcp", "tcp6"].map(|name| {
            std::fs::read_to_string(format!("/proc/self/net/{name}")).unwrap_or_default()
        });
        // Number, local address, remote address, state; 0A: listens.
        let listens = |line: &str| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some("0A")
        };
        tables.iter().flat_map(|table| table.lines()).any(listens).then_some(())
    });
}
