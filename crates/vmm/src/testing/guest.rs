//! Plays QEMU and the guest of one fake machine.

use super::{FakeCommand, FakeGuest, OnStop};
use crate::exit::RawExit;
use crate::lines::LineDecoder;
use serde_json::{Value, json};
use skein_wire::{GuestLine, HostLine, Stats};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Status of an orderly stop, and code of the `stopping` line that comes before it.
const STOPPED_STATUS: i32 = 33;
const STOPPED_CODE: u8 = 16;
const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

/// The guest's ends of a machine's sockets.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) qmp: UnixStream,
    pub(super) console: UnixStream,
    pub(super) control: UnixStream,
    pub(super) _serial: UnixStream,
}

/// One fake machine.
pub(super) struct GuestTask {
    guest: FakeGuest,
    port: u16,
    capacity: u32,
    launched: Instant,
    ready_at: Option<Instant>,
    ready: bool,
    paused: bool,
    ends: Option<Ends>,
    qmp_lines: LineDecoder,
    control_lines: LineDecoder,
}

/// What woke the task.
enum Wake {
    Killed,
    Command(FakeCommand),
    Connected(Ends),
    Booted,
    Qmp(usize),
    Control(usize),
    Disconnected,
}

impl GuestTask {
    pub(super) fn new(guest: FakeGuest, port: u16, capacity: u32) -> Self {
        let launched = Instant::now();
        let ready_at = guest.boot.map(|boot| launched + boot);
        Self {
            guest,
            port,
            capacity,
            launched,
            ready_at,
            ready: false,
            paused: false,
            ends: None,
            qmp_lines: LineDecoder::new(4096),
            control_lines: LineDecoder::new(4096),
        }
    }

    /// Lives until it is killed, told to end, or stops in order.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<FakeCommand>,
        mut connect: mpsc::Receiver<Ends>,
        exit: watch::Sender<Option<RawExit>>,
        kill: CancellationToken,
    ) {
        let mut ended = self.guest.dies_with.map(RawExit::Exited);
        let (mut qmp, mut control) = ([0; 1024], [0; 1024]);
        while ended.is_none() {
            let boot = self.ready_at.filter(|_| !self.ready && !self.paused);
            let wake = tokio::select! {
                // cancel-safe: token.
                () = kill.cancelled() => Wake::Killed,
                // cancel-safe: mpsc recv. The host holds both senders.
                Some(command) = commands.recv() => Wake::Command(command),
                Some(ends) = connect.recv() => Wake::Connected(ends),
                // cancel-safe: a timer; when it is due is kept.
                () = due(boot), if boot.is_some() => Wake::Booted,
                // cancel-safe: `read` loses nothing when it is dropped.
                wake = hear(self.ends.as_mut(), &mut qmp, &mut control) => wake,
            };
            ended = match wake {
                Wake::Killed => Some(RawExit::Signalled(9)),
                Wake::Command(command) => self.on_command(command).await,
                Wake::Connected(ends) => self.on_connected(ends).await,
                Wake::Booted => self.on_booted().await,
                Wake::Qmp(bytes) => self.on_qmp(&qmp[..bytes]).await,
                Wake::Control(bytes) => self.on_control(&control[..bytes]).await,
                Wake::Disconnected => {
                    self.ends = None;
                    None
                }
            };
        }
        self.ends = None;
        exit.send_replace(ended);
    }

    async fn on_command(&mut self, command: FakeCommand) -> Option<RawExit> {
        match command {
            FakeCommand::Print(text) => self.print(&text).await,
            FakeCommand::Say(line) => self.say(&format!("{line}\n")).await,
            FakeCommand::Exit(status) => return Some(RawExit::Exited(status)),
            FakeCommand::Die(signal) => return Some(RawExit::Signalled(signal)),
        }
        None
    }

    async fn on_connected(&mut self, ends: Ends) -> Option<RawExit> {
        self.ends = Some(ends);
        self.answer(GREETING).await;
        None
    }

    async fn on_booted(&mut self) -> Option<RawExit> {
        self.ready = true;
        self.say_ready().await;
        None
    }

    async fn on_qmp(&mut self, bytes: &[u8]) -> Option<RawExit> {
        let mut heard = Vec::new();
        self.qmp_lines.push(bytes, |line| heard.push(line.to_vec()));
        for line in heard {
            let command: Value = serde_json::from_slice(&line).unwrap_or_default();
            let status = if self.paused { "paused" } else { "running" };
            let mut result = json!({});
            match command["execute"].as_str() {
                _ if self.guest.on_stop == OnStop::Hang && command["execute"] == "quit" => continue,
                Some("query-status") => result = json!({"status": status}),
                Some("stop") => self.paused = true,
                Some("cont") => self.paused = false,
                Some("quit") => return Some(RawExit::Exited(0)),
                _ => {}
            }
            let reply = json!({"return": result, "id": command["id"]});
            self.answer(format!("{reply}\n").as_bytes()).await;
        }
        None
    }

    async fn on_control(&mut self, bytes: &[u8]) -> Option<RawExit> {
        let mut heard = Vec::new();
        self.control_lines
            .push(bytes, |line| heard.push(String::from_utf8_lossy(line).into_owned()));
        for line in heard {
            match HostLine::parse(&line) {
                Ok(Some(HostLine::Stats)) => {
                    let uptime_us = micros(self.launched.elapsed());
                    let stats = Stats { mem_total: 1 << 20, uptime_us, ..Stats::default() };
                    self.say(&format!("{}\n", GuestLine::Stats(stats))).await;
                }
                Ok(Some(HostLine::Stop)) if self.guest.on_stop == OnStop::Obey => {
                    let stopping = GuestLine::Stopping { code: STOPPED_CODE };
                    self.say(&format!("{stopping}\n")).await;
                    return Some(RawExit::Exited(STOPPED_STATUS));
                }
                Ok(Some(HostLine::Identity(_))) if self.ready => self.say_ready().await,
                _ => {}
            }
        }
        None
    }

    async fn say_ready(&mut self) {
        let ready = GuestLine::Ready {
            port: self.port,
            capacity: u16::try_from(self.capacity).unwrap_or(u16::MAX),
            boot_us: micros(self.guest.boot.unwrap_or_default()),
        };
        self.say(&format!("{ready}\n")).await;
    }

    // A driver that has gone hears nothing, as with a real machine: failures to write are ignored.

    async fn say(&mut self, text: &str) {
        if let Some(ends) = &mut self.ends {
            let _ = ends.control.write_all(text.as_bytes()).await;
        }
    }

    async fn print(&mut self, text: &str) {
        if let Some(ends) = &mut self.ends {
            let _ = ends.console.write_all(text.as_bytes()).await;
        }
    }

    async fn answer(&mut self, bytes: &[u8]) {
        if let Some(ends) = &mut self.ends {
            let _ = ends.qmp.write_all(bytes).await;
        }
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn hear(ends: Option<&mut Ends>, qmp: &mut [u8], control: &mut [u8]) -> Wake {
    let Some(ends) = ends else { return std::future::pending().await };
    tokio::select! {
        // cancel-safe: `read` loses nothing when it is dropped.
        read = ends.qmp.read(qmp) => match read {
            Ok(0) | Err(_) => Wake::Disconnected,
            Ok(bytes) => Wake::Qmp(bytes),
        },
        read = ends.control.read(control) => match read {
            Ok(0) | Err(_) => Wake::Disconnected,
            Ok(bytes) => Wake::Control(bytes),
        },
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
