//! From a specification to a process. The part that blocks runs on the spawn thread.

use crate::console::Keep;
use crate::control::Ready;
use crate::driver::LaunchError;
use crate::machine::{LaunchTimes, Machine};
use crate::probe::ProbeReport;
use crate::proc::{self, ProcessMark};
use crate::qemu::adopt;
use crate::qemu::args::{self, NicShape, Shape};
use crate::qemu::process::QemuProcess;
use crate::qemu::rundir::{Device, ExitFile, MachineFile, RunDir};
use crate::qemu::spawn::{Order, Spawner};
use crate::qemu::version::QemuVersion;
use crate::spec::{LaunchSpec, RunAs};
use crate::supervise::{Channels, Keeper, Parts, Supervisor, assemble};
use camino::{Utf8Path, Utf8PathBuf};
use skein_model::{ExitCause, Timestamp};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

/// What is the same for all launches of a driver.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) program: Utf8PathBuf,
    pub(super) version: QemuVersion,
    pub(super) report: ProbeReport,
}

/// A process that runs, and the clients of its sockets.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) dir: RunDir,
    pub(super) path: Utf8PathBuf,
    pub(super) record: MachineFile,
    pub(super) process: QemuProcess,
    pub(super) clients: Clients,
    pub(super) times: LaunchTimes,
}

/// Clients of a machine's sockets.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) qmp: UnixStream,
    pub(super) console: UnixStream,
    pub(super) control: UnixStream,
    pub(super) serial: UnixStream,
}

/// The run directory's four sockets.
struct Devices {
    qmp: Device,
    console: Device,
    control: Device,
    serial: Device,
}

/// Starts QEMU.
pub(super) fn launch(
    spec: LaunchSpec,
    settings: &Settings,
    spawner: &Spawner,
    asked: Instant,
) -> Result<Launched, LaunchError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let clock_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let command_line = spec.guest.command_line(&spec.id, clock_ns, rand::random())?;
    let run_as = spec.run_as.map(|run_as| settings.report.run_as(run_as));
    let kernel = open_for(&spec.kernel, run_as)?;
    let modules = spec.modules.as_deref().map(|path| open_for(path, run_as)).transpose()?;

    let dir = RunDir::new(&spec.dir);
    dir.check()?;
    if let Some(pid) = adopt::occupant(&dir) {
        return Err(LaunchError::Occupied { path: spec.dir, pid });
    }
    let attempt = Attempt { dir: dir.clone(), armed: true };
    dir.prepare()?;
    let devices = Devices::make(&dir)?;
    let uuid = uuid(rand::random());
    let argv = args::arguments(&Shape {
        id: &spec.id,
        uuid: &uuid,
        accel: settings.report.accel,
        memory: spec.memory,
        kernel: kernel.as_raw_fd(),
        modules: modules.as_ref().map(AsRawFd::as_raw_fd),
        command_line: &command_line,
        nic: spec.nic.as_ref().map(|nic| NicShape {
            mac: nic.mac,
            mtu: nic.mtu,
            tap: nic.tap.as_raw_fd(),
        }),
        qmp: devices.qmp.listener.as_raw_fd(),
        console: devices.console.listener.as_raw_fd(),
        control: devices.control.listener.as_raw_fd(),
        serial: devices.serial.listener.as_raw_fd(),
    });
    let record = record(&spec, settings, uuid, argv, now)?;
    // Written before there is a process: whoever comes next finds it by the UUID if this process
    // dies in between.
    dir.write_record(&record)?;
    let prepared = asked.elapsed();

    let (clients, listeners) = devices.split();
    let fds = [Some(kernel), modules, spec.nic.map(|nic| nic.tap)];
    let order = Order {
        program: settings.program.clone(),
        args: record.argv.clone(),
        fds: fds.into_iter().flatten().chain(listeners).collect(),
        output: dir.open_stderr()?,
        run_as,
    };
    let prepared = Prepared { order, dir, path: spec.dir, record, clients, asked, prepared };
    let launched = prepared.start(spawner)?;
    attempt.succeeded();
    Ok(launched)
}

/// Takes back what a launch that failed made in its run directory.
struct Attempt {
    dir: RunDir,
    armed: bool,
}

impl Attempt {
    fn succeeded(mut self) {
        self.armed = false;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.armed {
            self.dir.clear();
        }
    }
}

/// Everything but the process.
struct Prepared {
    order: Order,
    dir: RunDir,
    path: Utf8PathBuf,
    record: MachineFile,
    clients: Clients,
    asked: Instant,
    prepared: Duration,
}

impl Prepared {
    fn start(self, spawner: &Spawner) -> Result<Launched, LaunchError> {
        let Self { order, dir, path, mut record, clients, asked, prepared } = self;
        let program = order.program.clone();
        let failed = |source| LaunchError::Spawn { program: program.clone(), source };
        let spawned = spawner.spawn(order).map_err(failed)?;
        let times = LaunchTimes { asked, prepared, spawned: asked.elapsed() };
        let mark = ProcessMark::of(spawned.pid).map_err(failed)?;
        let process = QemuProcess::new(mark, spawned.pidfd);
        record.process = Some(mark);
        if let Err(error) = dir.write_record(&record) {
            // A machine that cannot be found again must not run.
            process.put_down();
            return Err(error);
        }
        Ok(Launched { dir, path, record, process, clients, times })
    }
}

impl Devices {
    fn make(dir: &RunDir) -> Result<Self, LaunchError> {
        Ok(Self {
            qmp: dir.device(RunDir::QMP)?,
            console: dir.device(RunDir::CONSOLE)?,
            control: dir.device(RunDir::CONTROL)?,
            serial: dir.device(RunDir::SERIAL)?,
        })
    }

    fn split(self) -> (Clients, [OwnedFd; 4]) {
        let Self { qmp, console, control, serial } = self;
        let listeners = [qmp.listener, console.listener, control.listener, serial.listener];
        let clients = Clients {
            qmp: qmp.client,
            console: console.client,
            control: control.client,
            serial: serial.client,
        };
        (clients, listeners.map(OwnedFd::from))
    }
}

fn record(
    spec: &LaunchSpec,
    settings: &Settings,
    uuid: String,
    argv: Vec<String>,
    now: Duration,
) -> Result<MachineFile, LaunchError> {
    let boot_id = proc::boot_id().map_err(|source| LaunchError::RunDir {
        path: "/proc/sys/kernel/random/boot_id".into(),
        source,
    })?;
    Ok(MachineFile {
        format: MachineFile::FORMAT,
        id: spec.id.clone(),
        generation: spec.generation,
        uuid,
        boot_id,
        launched_at: Timestamp::from_micros(u64::try_from(now.as_micros()).unwrap_or(u64::MAX)),
        process: None,
        ready: None,
        qemu: settings.version,
        accel: settings.report.accel,
        memory: spec.memory,
        argv,
    })
}

/// Opens what QEMU will open again under its own user, by way of `/dev/fd`: the directory above
/// does not matter then, and the file's own permissions do.
fn open_for(path: &Utf8Path, run_as: Option<RunAs>) -> Result<OwnedFd, LaunchError> {
    let failed = |source| LaunchError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    match run_as {
        Some(RunAs { uid, .. }) if metadata.mode() & 0o004 == 0 => {
            Err(LaunchError::Unreadable { path: path.to_owned(), uid })
        }
        _ => Ok(file.into()),
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid(random: u128) -> String {
    let bits = random & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}

/// A launch on its way to whoever asked for it. Dropped on the way, because they have gone, it ends the process: nobody
/// would know of it.
#[derive(Debug)]
pub(super) struct Delivery(Option<Launched>);

impl Delivery {
    pub(super) fn new(launched: Launched) -> Self {
        Self(Some(launched))
    }

    /// It has arrived. `None` never: this takes the delivery itself.
    pub(super) fn arrived(mut self) -> Option<Launched> {
        self.0.take()
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(launched) = self.0.take() {
            launched.process.put_down();
            launched.dir.clear();
        }
    }
}

impl Launched {
    /// Gives the clients to the runtime and puts the machine together.
    pub(super) fn connect(self) -> Result<(Machine, Supervisor), LaunchError> {
        let Self { dir, path, record, process, clients, times } = self;
        let registered = process.exit().and_then(|exit| Ok((exit, clients.register()?)));
        let (exit, channels) = match registered {
            Ok(registered) => registered,
            Err(source) => {
                // Out of descriptors, for example: a machine that cannot be watched must not run.
                process.put_down();
                dir.clear();
                return Err(LaunchError::RunDir { path, source });
            }
        };
        Ok(assemble(Parts {
            id: record.id.clone(),
            generation: record.generation,
            launched_at: record.launched_at,
            channels,
            process: Box::new(process),
            exit,
            times,
            ready: record.ready,
            console_log: Keep::File(dir.console_log()),
            keeper: Box::new(RunDirKeeper { dir, record }),
            dir: path,
        }))
    }
}

impl Clients {
    pub(super) fn register(self) -> io::Result<Channels> {
        let register = tokio::net::UnixStream::from_std;
        Ok(Channels {
            qmp: register(self.qmp)?,
            console: register(self.console)?,
            control: register(self.control)?,
            serial: register(self.serial)?,
        })
    }
}

/// Keeps in the run directory what the next process must know.
#[derive(Debug)]
pub(super) struct RunDirKeeper {
    pub(super) dir: RunDir,
    pub(super) record: MachineFile,
}

impl Keeper for RunDirKeeper {
    fn ready(&mut self, ready: Ready) {
        self.record.ready = Some(ready);
        if let Err(error) = self.dir.write_record(&self.record) {
            tracing::warn!(machine.id = %self.record.id, %error, "readiness not recorded");
        }
    }

    fn stderr(&self) -> String {
        self.dir.stderr()
    }

    fn ended(&mut self, cause: &ExitCause, serial: Option<&[u8]>) {
        let exit = ExitFile { uuid: self.record.uuid.clone(), cause: cause.clone() };
        let log = serial.map_or(Ok(()), |said| {
            File::options().append(true).create(true).open(self.dir.console_log())?.write_all(said)
        });
        if let Err(error) = self.dir.write_exit(&exit).and(log) {
            tracing::warn!(machine.id = %self.record.id, %error, "end not recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_of_version_4() {
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
