//! Who runs guests on this host: KVM where KVM really runs them, emulation elsewhere, found by
//! trying.
//!
//! That `/dev/kvm` opens says little, and that a guest of four instructions runs says hardly more:
//! there are hosts that emulate the instructions of old, and stand still at the first SSE
//! instruction, which every compiler emits. So a guest is booted that switches to 64 bits, pages
//! and computes with SSE, and it must end with its code in time. The verdict is remembered for this
//! boot of the host and this QEMU.

use crate::accel::Accel;
use crate::exit::{RawExit, vmm_message};
use crate::probe_guest::TinyGuest;
use crate::proc::{self, ProcessMark};
use crate::qemu::spawn::{Order, SpawnThread};
use crate::qemu::version::QemuVersion;
use crate::qemu::{OpenError, QemuConfig, args, process::QemuProcess};
use crate::spec::RunAs;
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;
use tokio::time::timeout;

/// How long the probe's guest may take. Under KVM it takes about 20 ms, so this is long even on a
/// host in need.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// Code the probe's guest ends with, and QEMU's status for it.
const PROBE_CODE: u8 = 0x10;
const PROBE_STATUS: i32 = 0x21;
/// How much of what a short-lived QEMU says is read, bytes.
const OUTPUT_BYTES_MAX: u64 = 4096;
const KVM: &str = "/dev/kvm";
const VERDICT: &str = "accel.json";

/// Who shall run the guests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM if a guest really runs on it, else emulation.
    #[default]
    Probe,
    /// KVM, without trying.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Where a verdict comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeSource {
    /// It was tried just now.
    Tried,
    /// It was tried earlier in this boot of the host.
    Remembered,
    /// It was configured, or there was nothing to try.
    Settled,
}

/// Who runs the guests' instructions on this host, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// The verdict.
    pub accel: Accel,
    /// Why, for a person.
    pub reason: String,
    /// Where it comes from.
    pub source: ProbeSource,
    /// The group that may use KVM, if one may: machines run in it.
    pub(crate) kvm_group: Option<u32>,
}

/// What is remembered.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    boot_id: String,
    program: Utf8PathBuf,
    version: QemuVersion,
    as_root: bool,
    accel: Accel,
    reason: String,
}

impl ProbeReport {
    /// A verdict that needed no trial.
    pub(crate) fn settled(accel: Accel, reason: &str) -> Self {
        let source = ProbeSource::Settled;
        Self { accel, reason: reason.to_owned(), source, kvm_group: kvm_group() }
    }

    /// The user a machine runs as: under KVM in the group that may use it.
    pub(crate) fn run_as(&self, run_as: RunAs) -> RunAs {
        match (self.accel, self.kvm_group) {
            (Accel::Kvm, Some(gid)) => RunAs { gid, ..run_as },
            (Accel::Kvm, None) | (Accel::Tcg, _) => run_as,
        }
    }
}

/// The group of `/dev/kvm`, if it may write there.
fn kvm_group() -> Option<u32> {
    let metadata = std::fs::metadata(KVM).ok()?;
    (metadata.mode() & 0o020 != 0 && metadata.gid() != 0).then_some(metadata.gid())
}

/// Decides who runs the guests; `program` is the QEMU to try KVM with.
pub(crate) async fn decide(
    spawner: &SpawnThread,
    config: &QemuConfig,
    program: &Utf8Path,
    version: QemuVersion,
) -> Result<ProbeReport, OpenError> {
    let opened = File::options().read(true).write(true).open(KVM);
    match (config.accel, opened) {
        (AccelChoice::Tcg, _) => Ok(ProbeReport::settled(Accel::Tcg, "configured")),
        (AccelChoice::Kvm, Ok(_)) => Ok(ProbeReport::settled(Accel::Kvm, "configured")),
        (AccelChoice::Kvm, Err(error)) => {
            Err(OpenError::NoKvm { reason: format!("{KVM} does not open: {error}") })
        }
        (AccelChoice::Probe, Err(error)) => {
            Ok(ProbeReport::settled(Accel::Tcg, &format!("{KVM} does not open: {error}")))
        }
        (AccelChoice::Probe, Ok(_)) => Ok(probe(spawner, config, program, version).await),
    }
}

async fn probe(
    spawner: &SpawnThread,
    config: &QemuConfig,
    program: &Utf8Path,
    version: QemuVersion,
) -> ProbeReport {
    let path = config.state_dir.join(VERDICT);
    let boot_id = proc::boot_id().unwrap_or_default();
    let as_root = config.probe_as.is_none();
    if let Some(known) = remembered(&path)
        && known.boot_id == boot_id
        && known.program == program
        && known.version == version
        && known.as_root == as_root
    {
        let Verdict { accel, reason, .. } = known;
        return ProbeReport {
            accel,
            reason,
            source: ProbeSource::Remembered,
            kvm_group: kvm_group(),
        };
    }
    let (accel, reason) = match try_kvm(spawner, program, config.probe_as).await {
        Ok(()) => (Accel::Kvm, "a guest ran under KVM".to_owned()),
        Err(reason) => (Accel::Tcg, reason),
    };
    let program = program.to_owned();
    let verdict = Verdict { boot_id, program, version, as_root, accel, reason: reason.clone() };
    if let Err(error) = remember(&config.state_dir, &path, &verdict) {
        tracing::warn!(%path, %error, "verdict on KVM not remembered: the probe will run again");
    }
    ProbeReport { accel, reason, source: ProbeSource::Tried, kvm_group: kvm_group() }
}

fn remembered(path: &Utf8Path) -> Option<Verdict> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn remember(dir: &Utf8Path, path: &Utf8Path, verdict: &Verdict) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(&serde_json::to_vec(verdict).map_err(io::Error::other)?)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Boots a guest under KVM; the error says what happened instead of its end.
async fn try_kvm(
    spawner: &SpawnThread,
    program: &Utf8Path,
    run_as: Option<RunAs>,
) -> Result<(), String> {
    let unable = |error: io::Error| format!("the probe could not run: {error}");
    let kernel = kernel().map_err(unable)?;
    let output = tempfile::tempfile().map_err(unable)?;
    let said = output.try_clone().map_err(unable)?;
    let report = ProbeReport::settled(Accel::Kvm, "");
    let order = Order {
        program: program.to_owned(),
        args: arguments(kernel.as_raw_fd()),
        fds: vec![kernel],
        output,
        run_as: run_as.map(|run_as| report.run_as(run_as)),
    };
    match run_briefly(spawner, order, PROBE_DEADLINE).await {
        Ok(RawExit::Exited(PROBE_STATUS)) => Ok(()),
        Ok(RawExit::Exited(status)) => {
            let said = read_output(said).unwrap_or_default();
            Err(format!("QEMU ended with status {status} under KVM: {}", vmm_message(&said)))
        }
        Ok(RawExit::Signalled(signal)) => Err(format!("QEMU died of signal {signal} under KVM")),
        Ok(RawExit::Unknown) => Err("QEMU ended under KVM, and nobody saw how".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(format!("a guest under KVM did not end in {PROBE_DEADLINE:?}"))
        }
        Err(error) => Err(unable(error)),
    }
}

/// The beginning of what a process wrote into a file that is shared with it.
pub(crate) fn read_output(mut file: File) -> io::Result<String> {
    let mut said = Vec::new();
    file.rewind()?;
    file.take(OUTPUT_BYTES_MAX).read_to_end(&mut said)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// The probe's guest, in a file that any user may read and nobody can find.
fn kernel() -> io::Result<OwnedFd> {
    let mut file = tempfile::tempfile()?;
    file.write_all(&TinyGuest::new().long_mode().sse().exit(PROBE_CODE).elf())?;
    file.set_permissions(Permissions::from_mode(0o444))?;
    Ok(file.into())
}

fn arguments(kernel: i32) -> Vec<String> {
    let kernel = format!("/dev/fd/{kernel}");
    let accel = args::accel(Accel::Kvm).iter().copied();
    ["-machine", args::MACHINE, "-m", "16M", "-nodefaults", "-no-user-config", "-no-reboot"]
        .into_iter()
        .chain(accel)
        .chain(["-display", "none", "-sandbox", args::SANDBOX, "-device", args::DEBUG_EXIT])
        .chain(["-kernel", &kernel])
        .map(str::to_owned)
        .collect()
}

/// Runs a process to its end, or kills it: none is left behind.
///
/// # Errors
/// Those of starting and watching it, and [`io::ErrorKind::TimedOut`].
pub(crate) async fn run_briefly(
    spawner: &SpawnThread,
    order: Order,
    deadline: Duration,
) -> io::Result<RawExit> {
    let spawned = spawner
        .run(|spawner| spawner.spawn(order))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
    let process = Killed(QemuProcess::new(ProcessMark::of(spawned.pid)?, spawned.pidfd));
    let exit = process.0.exit()?;
    match timeout(deadline, exit).await {
        Ok(exit) => Ok(exit),
        Err(_) => {
            let exit = process.0.exit()?;
            drop(process);
            // Reaped: a killed process ends at once, and the deadline is there for a kernel that is
            // stuck.
            let _ = timeout(deadline, exit).await;
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

/// A process that must not outlive whoever waits for it.
struct Killed(QemuProcess);

impl Drop for Killed {
    fn drop(&mut self) {
        // Harmless when it has ended; the descriptor stands for no other process.
        let _ = crate::machine::Process::kill(&self.0);
    }
}
