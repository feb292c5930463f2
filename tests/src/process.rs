//! The real `skein` binary: as a cloud to be killed, and as a command line.

use crate::artifacts::skein_binary;
use crate::leaks::Leaks;
use crate::runner::Remover;
use anyhow::{Context, Result, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use skein_api::{Client, Target};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long one command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long a cloud may take to start or to stop.
const CLOUD_LIMIT: Duration = Duration::from_secs(40);

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit status.
    pub status: i32,
    /// Its data.
    pub out: String,
    /// Progress and errors.
    pub err: String,
}

impl Said {
    /// What it said, if it succeeded.
    ///
    /// # Errors
    /// It did not.
    pub fn good(self) -> Result<String> {
        ensure!(self.status == 0, "status {}: {}{}", self.status, self.out, self.err);
        Ok(self.out)
    }

    /// The sentence of its error; it must be one line that begins with `error: `, with exit status 1.
    ///
    /// # Errors
    /// It is something else.
    pub fn sentence(&self) -> Result<String> {
        ensure!(self.status == 1, "status {}: {}{}", self.status, self.out, self.err);
        let lines: Vec<&str> = self.err.lines().collect();
        match lines.as_slice() {
            [line] if line.starts_with("error: ") => Ok((*line).to_owned()),
            _ => bail!("not one sentence: {}", self.err),
        }
    }

    /// Words of the first line of data.
    pub fn lines(&self) -> Vec<&str> {
        self.out.lines().collect()
    }
}

/// The command line, against one server.
#[derive(Debug, Clone)]
pub struct Skein {
    access: Vec<(String, String)>,
    wrapper: Vec<String>,
}

impl Skein {
    /// Against a server, as if the user had said so in the environment.
    pub fn of(target: &Target) -> Self {
        let access = vec![
            ("SKEIN_URL".to_owned(), target.url.clone()),
            ("SKEIN_TOKEN".to_owned(), target.token.clone()),
        ];
        Self { access, wrapper: Vec::new() }
    }

    /// Against none, run by another program.
    pub fn within(wrapper: &[&str]) -> Self {
        let wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        Self { access: Vec::new(), wrapper }
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let binary = skein_binary()?;
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&binary),
            Some((program, first)) => {
                let mut command = Command::new(program);
                command.args(first).arg(&binary);
                command
            }
        };
        command.env_remove("SKEIN_URL").env_remove("SKEIN_TOKEN").env_remove("SKEIN_ACCESS");
        command.env_remove("SKEIN_LOG").env_remove("SKEIN_STATE").env("HOME", "/nonexistent");
        command.envs(self.access.iter().cloned()).args(arguments);
        Ok(command)
    }

    /// Runs a command to its end, with `input` on standard input. It is killed when it takes too long.
    ///
    /// # Errors
    /// It cannot be run, or does not end.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<Said> {
        let mut command = self.command(arguments)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Guard(command.spawn().context("running skein")?);
        if let Some(mut stdin) = child.0.stdin.take() {
            // It may not want all of it.
            let _ = stdin.write_all(input.as_bytes());
        }
        let out = read(child.0.stdout.take());
        let err = read(child.0.stderr.take());
        let status = child.wait(COMMAND_LIMIT).with_context(|| format!("skein {arguments:?}"))?;
        let text = |reader: std::thread::JoinHandle<String>| reader.join().unwrap_or_default();
        Ok(Said { status, out: text(out), err: text(err) })
    }

    /// As [`Skein::run`] in a thread of its own, for tests on a runtime.
    ///
    /// # Errors
    /// As [`Skein::run`].
    pub async fn say(&self, arguments: &[&str]) -> Result<Said> {
        let copy = self.clone();
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let run = move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            copy.run(&arguments, "")
        };
        tokio::task::spawn_blocking(run).await?
    }
}

/// Reads to the end, in a thread: a pipe that nobody empties stops its writer.
fn read(from: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A process that does not outlive its test.
#[derive(Debug)]
struct Guard(Child);

impl Guard {
    fn wait(&mut self, limit: Duration) -> Result<i32> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait().context("waiting for a process")? {
                return Ok(status.code().unwrap_or(-1));
            }
            ensure!(Instant::now() < until, "still running after {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cloud that is a process of its own: `skein up`.
#[derive(Debug)]
pub struct Up {
    child: Guard,
    /// Where its API is.
    pub target: Target,
    errors: Option<std::thread::JoinHandle<String>>,
    // Last: what the process leaves is removed when it has gone.
    remover: Remover,
}

impl Up {
    /// Starts one on a folder and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(folder: &Utf8Path, arguments: &[&str]) -> Result<Self> {
        let skein = Skein { access: Vec::new(), wrapper: Vec::new() };
        let mut command =
            skein.command(&["up", "--listen", "127.0.0.1:0", "--accel", "tcg", "--state"])?;
        command.arg(folder).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        let mut child = Guard(command.spawn().context("running skein up")?);
        let mut lines = BufReader::new(child.0.stderr.take().context("its errors")?);
        let mut said = String::new();
        let started = Instant::now();
        while !said.contains("access file") {
            if lines.read_line(&mut said)? == 0 || started.elapsed() > CLOUD_LIMIT {
                bail!("skein up did not start: {said}");
            }
        }
        let errors = Some(read(Some(lines)));
        let access = fs::read_to_string(folder.join("access.json")).context("the access file")?;
        let access: serde_json::Value = serde_json::from_str(&access)?;
        let word = |key: &str| access[key].as_str().unwrap_or_default().to_owned();
        let target = Target { url: word("url"), token: word("token") };
        let id = fs::read_to_string(folder.join("cloud.id")).context("the cloud's id")?;
        let remover = Remover { leaks: Leaks::of(id.trim(), folder), keep: false };
        Ok(Self { child, target, errors, remover })
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(self.target.clone())
    }

    /// Looks for what it has on the host.
    pub fn leaks(&self) -> Leaks {
        self.remover.leaks.clone()
    }

    fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = i32::try_from(self.child.0.id())?;
        let pid = rustix::process::Pid::from_raw(pid).context("a process id")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Kills the process with signal 9; its machines and networks stay as they are.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(mut self) -> Result<()> {
        self.signal(rustix::process::Signal::KILL)?;
        self.child.wait(CLOUD_LIMIT)?;
        self.remover.keep = true;
        Ok(())
    }

    /// Asks it to end (`SIGTERM`) and waits; what it said on stderr since it answered.
    ///
    /// # Errors
    /// It does not end, or not with status 0, or leaves something.
    pub fn stop(mut self) -> Result<String> {
        self.signal(rustix::process::Signal::TERM)?;
        let status = self.child.wait(CLOUD_LIMIT)?;
        let said = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
        ensure!(status == 0, "skein up ended with status {status}: {said}");
        let left = self.leaks().all();
        ensure!(left.is_empty(), "left on the host: {left:?}; {said}");
        Ok(said)
    }
}

/// A state folder below `/tmp`, short because sockets live below it.
///
/// # Errors
/// It cannot be made.
pub fn state_folder() -> Result<(tempfile::TempDir, Utf8PathBuf)> {
    let folder = tempfile::Builder::new().prefix("skein-").tempdir_in("/tmp")?;
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).ok().context("UTF-8")?;
    Ok((folder, path))
}
