//! `wireguard-go`: WireGuard in user space, for kernels that have none. One process for each interface, which lives as long
//! as the interface does, whatever becomes of who started it.

use super::config::{Shown, WireChange};
use super::uapi;
use crate::names::InterfaceName;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::sockopt::socket_peercred;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The program's name.
const PROGRAM: &str = "wireguard-go";
/// Where it is looked for besides `PATH`, which services of the system may not have.
const PLACES: [&str; 2] = ["/usr/bin", "/usr/local/bin"];
/// Where the program makes the sockets that it is configured by.
const SOCKETS: &str = "/var/run/wireguard";
/// It answers within milliseconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Longest answer: some 500 bytes a node.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The program, if it is installed.
pub(super) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(PLACES.map(PathBuf::from));
    places.map(|place| place.join(PROGRAM)).find(|program| program.is_file())
}

/// Starts the program for the interface `name` in the namespace of the calling thread. It is in no group of processes of
/// ours, so that a signal from the terminal does not end it.
pub(super) fn start(program: &Path, name: &InterfaceName) -> io::Result<Child> {
    // What a crash left would be taken for another program's.
    let _ = std::fs::remove_file(socket(name));
    Command::new(program)
        .args(["--foreground", name.as_str()])
        .env_clear()
        .env("LOG_LEVEL", "silent")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

fn socket(name: &InterfaceName) -> PathBuf {
    Path::new(SOCKETS).join(format!("{name}.sock"))
}

fn connect(name: &InterfaceName) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket(name))?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
    Ok(stream)
}

/// Sends a request; the answer up to the empty line at its end.
fn ask(name: &InterfaceName, request: &str) -> io::Result<String> {
    let mut stream = connect(name)?;
    stream.write_all(request.as_bytes())?;
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    while !text.ends_with(b"\n\n") {
        let count = stream.read(&mut piece)?;
        if count == 0 || text.len() as u64 > ANSWER_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        text.extend_from_slice(&piece[..count]);
    }
    String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn answer(text: &str) -> io::Result<Shown> {
    let parsed = uapi::parse(text).ok_or(io::ErrorKind::InvalidData)?;
    parsed.map_err(|number| io::Error::from_raw_os_error(number.abs()))
}

/// What the interface is.
pub(super) fn get(name: &InterfaceName) -> io::Result<Shown> {
    answer(&ask(name, uapi::GET)?)
}

/// Makes a change.
pub(super) fn set(name: &InterfaceName, change: &WireChange) -> io::Result<()> {
    answer(&ask(name, &uapi::set(change))?).map(drop)
}

/// Ends the program that has the interface, if there is one: the one that answers at its socket, and nobody else.
pub(super) fn end(name: &InterfaceName) {
    let peer = connect(name).ok().and_then(|stream| socket_peercred(stream.as_fd()).ok());
    if let Some(peer) = peer {
        let pid = peer.pid.as_raw_nonzero().get();
        let of = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if of.trim() == PROGRAM {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
    let _ = std::fs::remove_file(socket(name));
}
