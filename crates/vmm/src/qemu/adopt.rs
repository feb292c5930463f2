//! Finding a machine again whose launcher has ended.

use crate::console::Keep;
use crate::driver::{AdoptError, Adopted};
use crate::exit::{self, Evidence, RawExit};
use crate::machine::{LaunchTimes, Machine};
use crate::proc::{self, ProcessMark};
use crate::qemu::launch::{Clients, RunDirKeeper};
use crate::qemu::process::QemuProcess;
use crate::qemu::rundir::{ExitFile, MachineFile, RunDir};
use crate::supervise::{Keeper, Parts, Supervisor, assemble};
use camino::Utf8Path;
use skein_model::ExitCause;
use std::io;
use std::time::{Duration, Instant, SystemTime};

/// How much of the log is searched for last words, bytes.
const LAST_WORDS_BYTES: usize = 16 * 1024;

/// The machine of a run directory, and its supervisor if it runs.
pub(super) fn adopt(dir: &Utf8Path) -> Result<(Adopted, Option<Supervisor>), AdoptError> {
    let run_dir = RunDir::new(dir);
    let unreadable = |source| AdoptError::Record { path: dir.to_owned(), source };
    let record = run_dir
        .read_record()
        .map_err(unreadable)?
        .ok_or_else(|| AdoptError::NoMachine { path: dir.to_owned() })?;
    let here = proc::boot_id().map_err(unreadable)? == record.boot_id;
    let process = if here { find(&record).map_err(unreadable)? } else { None };
    let Some(process) = process else {
        return Ok((ended(run_dir, record, RawExit::Unknown), None));
    };
    let connected = connect(&run_dir);
    // Looked at after connecting: a process that ends in between leaves sockets that refuse, or
    // that end at once.
    if let Some(exit) = process.ended() {
        return Ok((ended(run_dir, record, exit), None));
    }
    let (machine, supervisor) = attach(dir, run_dir, record, process, connected?)?;
    Ok((Adopted::Running(machine), Some(supervisor)))
}

/// The process of the machine that runs in a directory, if one does.
pub(super) fn occupant(dir: &RunDir) -> Option<i32> {
    let record = dir.read_record().ok()??;
    if proc::boot_id().ok()? != record.boot_id {
        return None;
    }
    let process = find(&record).ok()??;
    process.ended().is_none().then(|| process.pid())
}

/// The process of a record, if it still runs. A record without a process is of a launch that was
/// cut short: the process, if there is one, has the launch's UUID on its command line.
fn find(record: &MachineFile) -> io::Result<Option<QemuProcess>> {
    if let Some(mark) = record.process {
        return QemuProcess::find(mark);
    }
    for pid in proc::find_by_argument(&record.uuid)? {
        // A process that ends meanwhile is no process.
        if let Ok(mark) = ProcessMark::of(pid) {
            return QemuProcess::find(mark);
        }
    }
    Ok(None)
}

fn connect(run_dir: &RunDir) -> Result<Clients, AdoptError> {
    let connect = |name| {
        run_dir
            .connect(name)
            .map_err(|source| AdoptError::Socket { path: run_dir.file(name), source })
    };
    Ok(Clients {
        qmp: connect(RunDir::QMP)?,
        console: connect(RunDir::CONSOLE)?,
        control: connect(RunDir::CONTROL)?,
        serial: connect(RunDir::SERIAL)?,
    })
}

fn attach(
    dir: &Utf8Path,
    run_dir: RunDir,
    record: MachineFile,
    process: QemuProcess,
    clients: Clients,
) -> Result<(Machine, Supervisor), AdoptError> {
    let pid = process.pid();
    let unwatched = |source| AdoptError::Process { pid, source };
    let exit = process.exit().map_err(unwatched)?;
    let channels = clients.register().map_err(unwatched)?;
    let now = Instant::now();
    let times = LaunchTimes { asked: now, prepared: Duration::ZERO, spawned: Duration::ZERO };
    let (machine, supervisor) = assemble(Parts {
        id: record.id.clone(),
        generation: record.generation,
        launched_at: record.launched_at,
        dir: dir.to_owned(),
        channels,
        process: Box::new(process),
        exit,
        times,
        ready: record.ready,
        console_log: Keep::File(run_dir.console_log()),
        keeper: Box::new(RunDirKeeper { dir: run_dir, record: record.clone() }),
    });
    if record.ready.is_none() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let clock_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        // The channel is new and empty, so it takes the request.
        let _ = machine.inner().control.greet(clock_ns);
    }
    Ok((machine, supervisor))
}

/// What is known of a machine that has ended: the cause that was recorded, or what its status and
/// its log tell.
fn ended(dir: RunDir, record: MachineFile, exit: RawExit) -> Adopted {
    let (id, generation) = (record.id.clone(), record.generation);
    let recorded = dir.read_exit().ok().flatten().filter(|exit| exit.uuid == record.uuid);
    if let Some(ExitFile { cause, .. }) = recorded {
        return Adopted::Ended { id, generation, cause };
    }
    let log = crate::console::read_log(&dir.console_log(), LAST_WORDS_BYTES).unwrap_or_default();
    let evidence = Evidence {
        log: String::from_utf8_lossy(&log).into_owned(),
        stderr: dir.stderr(),
        ..Evidence::default()
    };
    let cause = match exit::classify(exit, &evidence) {
        ExitCause::Killed { signal: 0 } => ExitCause::Lost,
        cause => cause,
    };
    RunDirKeeper { dir, record }.ended(&cause, None);
    Adopted::Ended { id, generation, cause }
}
