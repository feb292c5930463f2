//! Machines that are no processes, for tests of whoever drives machines.
//!
//! A [`FakeDriver`] hands out real [`Machine`] handles, with the real supervisor, QMP actor,
//! control channel and console behind them; only QEMU and the guest at the other end of the sockets
//! are played by a task. What a driver leaves behind when it goes lives in a [`FakeHost`], as
//! processes live in a host: another driver on the same fake host adopts it.

use crate::accel::Accel;
use crate::console::Keep;
use crate::control::Ready;
use crate::driver::{AdoptError, Adopted, Driver, LaunchError};
use crate::exit::{self, Evidence, RawExit};
use crate::machine::{LaunchTimes, Machine, Process};
use crate::probe::ProbeReport;
use crate::proc::HostUsage;
use crate::spec::LaunchSpec;
use crate::supervise::{Channels, Keeper, Parts, assemble};
use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use guest::{Ends, GuestTask};
use skein_model::{ExitCause, Generation, MachineId, Timestamp};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod guest;

/// Commands to a fake guest not yet carried out. 16: a test gives one at a time.
const COMMANDS_MAX: usize = 16;

/// How a fake guest behaves.
#[derive(Debug, Clone)]
pub struct FakeGuest {
    /// From launch to ready; `None` for a guest that never is.
    pub boot: Option<Duration>,
    /// What it does when asked to stop.
    pub on_stop: OnStop,
    /// A status it ends with right after launch: 1 is a QEMU that refuses its kernel.
    pub dies_with: Option<i32>,
}

impl Default for FakeGuest {
    /// Ready at once, and obedient.
    fn default() -> Self {
        Self { boot: Some(Duration::ZERO), on_stop: OnStop::Obey, dies_with: None }
    }
}

/// What a fake guest does when asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// It stops.
    Obey,
    /// Nothing: it must be told by QMP.
    Ignore,
    /// Nothing, and its QEMU ignores QMP as well: it must be killed.
    Hang,
}

/// What a test does to a fake machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FakeCommand {
    /// Prints on the console.
    Print(String),
    /// Says a line on the control channel, without its end.
    Say(String),
    /// Ends with a status of QEMU, as `docs/guest-abi.md` lists them.
    Exit(i32),
    /// Dies of a signal.
    Die(i32),
}

/// What outlives drivers: the fake machines of one fake host. Clones are the same host.
#[derive(Debug, Clone, Default)]
pub struct FakeHost {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    usual: FakeGuest,
    special: HashMap<MachineId, FakeGuest>,
    /// By run directory, as on a real host.
    machines: HashMap<Utf8PathBuf, FakeProcess>,
    refuse_launches: bool,
    /// Who takes the taps of machines; without anybody they are closed.
    taps: Option<std::sync::mpsc::Sender<(MachineId, OwnedFd)>>,
}

/// The process table's entry of a fake machine.
#[derive(Debug, Clone)]
struct FakeProcess {
    id: MachineId,
    generation: Generation,
    launched_at: Timestamp,
    commands: mpsc::Sender<FakeCommand>,
    connect: mpsc::Sender<Ends>,
    exit: watch::Receiver<Option<RawExit>>,
    kill: CancellationToken,
    ready: Arc<Mutex<Option<Ready>>>,
}

impl FakeHost {
    /// A host without machines, whose guests are ready at once and obey.
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A test that panicked while it held the lock has failed already.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How guests behave that are launched from now on.
    pub fn set_guest(&self, guest: FakeGuest) {
        self.inner().usual = guest;
    }

    /// How the guest of one machine behaves.
    pub fn set_guest_of(&self, id: MachineId, guest: FakeGuest) {
        self.inner().special.insert(id, guest);
    }

    /// Whether launches fail from now on, as without QEMU.
    pub fn refuse_launches(&self, refuse: bool) {
        self.inner().refuse_launches = refuse;
    }

    /// The taps of the machines that are launched from now on, as QEMU would hold them.
    pub fn take_taps(&self) -> std::sync::mpsc::Receiver<(MachineId, OwnedFd)> {
        let (sender, taps) = std::sync::mpsc::channel();
        self.inner().taps = Some(sender);
        taps
    }

    /// The machines that run.
    pub fn running(&self) -> Vec<MachineId> {
        let inner = self.inner();
        let alive = inner.machines.values().filter(|machine| machine.exit.borrow().is_none());
        alive.map(|machine| machine.id.clone()).collect()
    }

    /// Does something to a machine that runs; `false` when there is none of that name.
    pub async fn command(&self, id: &MachineId, command: FakeCommand) -> bool {
        let find = |machine: &&FakeProcess| machine.id == *id && machine.exit.borrow().is_none();
        let commands =
            self.inner().machines.values().find(find).map(|machine| machine.commands.clone());
        match commands {
            Some(commands) => commands.send(command).await.is_ok(),
            None => false,
        }
    }
}

/// A [`Driver`] whose machines are played.
#[derive(Debug)]
pub struct FakeDriver {
    host: FakeHost,
    report: ProbeReport,
    tasks: TaskTracker,
    detach: CancellationToken,
}

impl FakeDriver {
    /// A driver on a host of its own.
    pub fn new() -> Self {
        Self::on(FakeHost::new())
    }

    /// A driver on a host that may hold machines of an earlier one.
    pub fn on(host: FakeHost) -> Self {
        let report = ProbeReport::settled(Accel::Tcg, "fake");
        Self { host, report, tasks: TaskTracker::new(), detach: CancellationToken::new() }
    }

    /// The host it runs on.
    pub fn host(&self) -> &FakeHost {
        &self.host
    }

    fn connect(&self, process: &FakeProcess, dir: &Utf8Path) -> io::Result<Machine> {
        let (channels, ends) = pairs()?;
        // The guest takes a new connection whenever it is given one, so the channel has room unless
        // it has ended.
        let _ = process.connect.try_send(ends);
        let mut exit = process.exit.clone();
        let now = Instant::now();
        let (machine, supervisor) = assemble(Parts {
            id: process.id.clone(),
            generation: process.generation,
            launched_at: process.launched_at,
            dir: dir.to_owned(),
            channels,
            process: Box::new(process.clone()),
            exit: Box::pin(async move {
                match exit.wait_for(Option::is_some).await {
                    Ok(exit) => exit.unwrap_or(RawExit::Unknown),
                    Err(_) => RawExit::Unknown,
                }
            }),
            times: LaunchTimes { asked: now, prepared: Duration::ZERO, spawned: Duration::ZERO },
            ready: process.known_ready(),
            console_log: Keep::Memory,
            keeper: Box::new(FakeKeeper(process.clone())),
        });
        self.tasks.spawn(supervisor.run(self.detach.clone()));
        Ok(machine)
    }
}

impl Default for FakeDriver {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        self.detach.cancel();
    }
}

#[async_trait]
impl Driver for FakeDriver {
    async fn launch(&self, spec: LaunchSpec) -> Result<Machine, LaunchError> {
        // The checks of a real launch: what it would refuse is refused here.
        spec.guest.command_line(&spec.id, 0, [0; 32])?;
        let failed = |source| LaunchError::RunDir { path: spec.dir.clone(), source };
        let process = {
            let mut inner = self.host.inner();
            if inner.refuse_launches {
                let source = io::ErrorKind::NotFound.into();
                return Err(LaunchError::Spawn { program: "qemu-system-x86_64".into(), source });
            }
            let usual = inner.usual.clone();
            let guest = inner.special.get(&spec.id).cloned().unwrap_or(usual);
            let process = FakeProcess::start(&spec, guest);
            inner.machines.insert(spec.dir.clone(), process.clone());
            if let (Some(taps), Some(nic)) = (&inner.taps, spec.nic) {
                // Who took them may have left.
                let _ = taps.send((spec.id.clone(), nic.tap));
            }
            process
        };
        self.connect(&process, &spec.dir).map_err(failed)
    }

    async fn adopt(&self, dir: &Utf8Path) -> Result<Adopted, AdoptError> {
        let process = self.host.inner().machines.get(dir).cloned();
        let process = process.ok_or_else(|| AdoptError::NoMachine { path: dir.to_owned() })?;
        let ended = *process.exit.borrow();
        if let Some(exit) = ended {
            let cause = exit::classify(exit, &Evidence::default());
            let FakeProcess { id, generation, .. } = process;
            return Ok(Adopted::Ended { id, generation, cause });
        }
        let failed = |source| AdoptError::Socket { path: dir.to_owned(), source };
        Ok(Adopted::Running(self.connect(&process, dir).map_err(failed)?))
    }

    fn probe(&self) -> &ProbeReport {
        &self.report
    }
}

impl FakeProcess {
    fn start(spec: &LaunchSpec, guest: FakeGuest) -> Self {
        let (commands, commands_out) = mpsc::channel(COMMANDS_MAX);
        let (connect, connect_out) = mpsc::channel(1);
        let (exit_out, exit) = watch::channel(None);
        let kill = CancellationToken::new();
        let task = GuestTask::new(guest, spec.guest.port, spec.guest.capacity);
        // Not held by the driver: it must live when the driver has gone, as a process does.
        tokio::spawn(task.run(commands_out, connect_out, exit_out, kill.clone()));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            id: spec.id.clone(),
            generation: spec.generation,
            launched_at: Timestamp::from_micros(u64::try_from(now.as_micros()).unwrap_or(u64::MAX)),
            commands,
            connect,
            exit,
            kill,
            ready: Arc::default(),
        }
    }

    fn known_ready(&self) -> Option<Ready> {
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process for FakeProcess {
    fn pid(&self) -> Option<u32> {
        None
    }

    fn kill(&self) -> io::Result<()> {
        self.kill.cancel();
        Ok(())
    }

    fn usage(&self) -> io::Result<HostUsage> {
        Ok(HostUsage::default())
    }

    fn proportional_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }
}

struct FakeKeeper(FakeProcess);

impl Keeper for FakeKeeper {
    fn ready(&mut self, ready: Ready) {
        *self.0.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready);
    }

    fn stderr(&self) -> String {
        match *self.0.exit.borrow() {
            Some(RawExit::Exited(1)) => "qemu-system-x86_64: refused".to_owned(),
            _ => String::new(),
        }
    }

    fn ended(&mut self, _cause: &ExitCause, _serial: Option<&[u8]>) {}
}

fn pairs() -> io::Result<(Channels, Ends)> {
    let (qmp, qmp_end) = UnixStream::pair()?;
    let (console, console_end) = UnixStream::pair()?;
    let (control, control_end) = UnixStream::pair()?;
    let (serial, serial_end) = UnixStream::pair()?;
    let ends =
        Ends { qmp: qmp_end, console: console_end, control: control_end, _serial: serial_end };
    Ok((Channels { qmp, console, control, serial }, ends))
}

#[cfg(test)]
mod tests;
