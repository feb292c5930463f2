//! What the tests of programs share: programs that are ended with their test, waiting, one host with its broker. What two hosts have
//! beside that is in `two_hosts/hosts.rs`; programs of the distribution run on both, by [`site::Site`].

#![allow(dead_code, unused_macros, reason = "each test program uses a part of it")]

pub(crate) mod programs;
pub(crate) mod site;

use rustix::process::{Pid, Signal, kill_process_group};
use site::{End, Site};
use skein_link::broker::{Broker, BrokerConfig, Connection};
use skein_link::run;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long a program may run, seconds; far more than any of them takes on a busy machine.
pub(crate) const PATIENCE_SECS: u32 = if cfg!(feature = "long-tests") { 600 } else { 60 };

/// Has the library never leave the ring by choice.
pub(crate) const STAY: (&str, &str) = ("SKEIN_LINK_PATH", "ring");

/// States of `resting.py` in which a connection goes back to TCP, and the reason that is told.
pub(crate) const STEPS_BACK: [(&str, &str); 6] = [
    ("stdio", "stdio"),
    ("option", "socket-option"),
    ("sandbox", "sandbox"),
    ("uring", "io-uring"),
    ("urgent", "out-of-band"),
    ("passed", "descriptor-passed"),
];

/// A test for each name, which calls the function with it.
macro_rules! each_by_name {
    ($call:ident: $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                $call(stringify!($name));
            }
        )*
    };
}

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

/// A server that is asked to end, also when its test fails: one that is killed leaves memory behind that has a name.
pub(crate) struct Orderly(pub(crate) Running);

impl Drop for Orderly {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(i32::try_from(self.0.0.id()).unwrap_or(0)) {
            let _ = kill_process_group(group, Signal::INT);
        }
        for _ in 0..1000 {
            if !matches!(self.0.0.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

impl Ground {
    pub(crate) fn new() -> Self {
        Self::with(|config| config)
    }

    /// With a broker of one's own making.
    pub(crate) fn with(make: impl FnOnce(BrokerConfig) -> BrokerConfig) -> Self {
        let folder = tempfile::Builder::new().prefix("skein-link-test-").tempdir().unwrap();
        let socket = folder.path().join("link.sock");
        let library = run::library(&folder.path().join("lib")).unwrap();
        let broker = Broker::start(make(BrokerConfig::new(socket.clone()))).unwrap();
        let variables = run::environment(&library, &socket, None);
        Self { folder, broker, variables }
    }

    /// The same for programs whose connections stay on the ring although TCP may be as good for them.
    pub(crate) fn on_ring() -> Self {
        let mut ground = Self::new();
        ground.variables.push((STAY.0.into(), STAY.1.into()));
        ground
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
        site::output(self.command(on, words))
    }

    /// Waits until the broker knows a connection for which the condition holds.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Connection) -> bool) -> Connection {
        wait(what, || self.broker.connections().into_iter().find(&holds))
    }
}

/// Which seeds `chosen_random_calls` is to try, and how long: `FROM COUNT STEPS`.
const SEEDS: &str = "SKEIN_LINK_TEST_SEEDS";

/// First seed, number of seeds and steps that whoever runs the tests wants.
pub(crate) fn chosen_seeds() -> Option<[u32; 3]> {
    let words = std::env::var(SEEDS).ok()?;
    let numbers: Result<Vec<u32>, _> = words.split(' ').map(str::parse).collect();
    Some(numbers.unwrap().try_into().unwrap())
}

/// Random calls in lockstep, seed by seed: the same on plain TCP and on the link. `output` runs a program to its end.
pub(crate) fn same_calls(
    seeds: Range<u32>,
    steps: u32,
    output: impl Fn(On, &[&str]) -> (String, Option<i32>),
) {
    let script = program("exercise.py");
    for seed in seeds {
        // The last one is the one that hung, or was ended.
        println!("seed {seed}, {steps} steps");
        let (seed, steps) = (seed.to_string(), steps.to_string());
        let words = ["python3", script.to_str().unwrap(), &seed, &steps];
        let (tcp, link) = (output(On::Tcp, &words), output(On::Link, &words));
        if tcp == link {
            continue;
        }
        // What plain TCP answers may depend on the moment on a machine that has no time.
        let again = output(On::Tcp, &words);
        let both = tcp.0.lines().zip(link.0.lines()).find(|(one, other)| one != other);
        assert!(link == again, "seed {seed}: {both:?}");
    }
}

/// Starts a program that says when it is ready, and rests: `resting.py` after its traffic. It goes on with a line, and ends with its
/// input.
pub(crate) fn rest(mut command: Command) -> (Running, ChildStdin) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (Running(child), stdin)
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

impl Site for Ground {
    fn address(&self) -> &'static str {
        "127.0.0.1"
    }

    fn port(&self) -> u16 {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.local_addr().unwrap().port()
    }

    fn folder(&self, _: End) -> &Path {
        self.folder.path()
    }

    fn command(&self, _: End, on: On, words: &[&str]) -> Command {
        self.command(on, words)
    }
}

/// Makes the program of hard calls and its static companion in a folder.
pub(crate) fn make_hostile(folder: &Path) {
    for (name, option) in [("hostile", "-pthread"), ("talker", "-static")] {
        let source = program(&format!("{name}.c"));
        let mut command = Command::new("cc");
        command.args(["-O1", option, "-o"]).arg(folder.join(name)).arg(source);
        let (text, status) = site::output(command);
        assert_eq!(status, Some(0), "{text}");
    }
}
