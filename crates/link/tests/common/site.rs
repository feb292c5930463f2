//! Where a server and its client run: on one host, or on two.

use super::{On, Running, wait};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Which of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Server,
    Client,
}

/// Where a server and its client run.
pub(crate) trait Site {
    /// The server's address.
    fn address(&self) -> &'static str;

    /// A port that is free there.
    fn port(&self) -> u16;

    /// The folder in which an end's commands run.
    fn folder(&self, end: End) -> &Path;

    /// A command at one end, which is ended if it hangs.
    fn command(&self, end: End, on: On, words: &[&str]) -> Command;

    /// A file in an end's folder.
    fn path(&self, end: End, name: &str) -> PathBuf {
        self.folder(end).join(name)
    }

    /// Runs it to its end, which must be a good one; what it printed.
    fn run(&self, end: End, on: On, words: &[&str]) -> String {
        let (text, status) = output(self.command(end, on, words));
        assert_eq!(status, Some(0), "{words:?} on {on:?}: {text}");
        text
    }

    /// The same, for a line of the shell.
    fn shell(&self, end: End, on: On, line: &str) -> String {
        self.run(end, on, &["sh", "-c", line])
    }

    /// Starts a server and waits until it listens, without connecting.
    fn serve(&self, on: On, port: u16, words: &[&str]) -> Running {
        let mut command = self.command(End::Server, on, words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = Running(command.spawn().unwrap());
        let port = format!(":{port:04X}");
        wait("a listener", || {
            let ended = running.0.try_wait().unwrap();
            assert!(ended.is_none(), "{words:?} on {on:?} ended: {ended:?}");
            let words = ["cat", "/proc/net/tcp", "/proc/net/tcp6"];
            let (tables, _) = output(self.command(End::Server, On::Tcp, &words));
            tables.lines().any(|line| listens(line, &port)).then_some(())
        });
        running
    }
}

/// Whether a line of `/proc/net/tcp` is of a listener on the port: number, local address, remote address, state; 0A: listens.
fn listens(line: &str, port: &str) -> bool {
    let mut words = line.split_whitespace().skip(1);
    words.next().is_some_and(|local| local.ends_with(port)) && words.nth(1) == Some("0A")
}

/// Runs a command to its end: what it printed on both outputs, and its status.
pub(crate) fn output(mut command: Command) -> (String, Option<i32>) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (text.concat(), status.code())
}
