//! Starts processes, from one thread of its own.
//!
//! What a QEMU process may do is settled before it runs its first instruction, with safe code only:
//!
//! - *User*: `CommandExt::uid` and `gid` set both and clear the supplementary groups between fork
//!   and exec. The alternatives are worse: `setpriv` costs one more exec, and QEMU's `-runas` works
//!   only with a sandbox that allows changes of user, and after QEMU has parsed everything as root.
//! - *Privileges*: this thread sets `no_new_privs` for itself once, and its children inherit it.
//! - *Network*: this thread moves itself to an empty network namespace, if it may, and its children
//!   start there: a QEMU that its guest took over reaches no service of the host. Its tap device is
//!   an open descriptor and stays where it is.
//! - *Descriptors*: everything Rust opens closes on exec. Exactly the descriptors handed over are
//!   kept, in the child only, so that no other spawn of this process can inherit them. What this
//!   process itself inherited without the flag is replaced by `/dev/null` in the child.
//! - *Terminal*: a process group of its own, so that Ctrl-C in a terminal ends the daemon and not
//!   its machines. (A session of its own would need an unstable or unsafe call, and adds nothing
//!   for a process without terminal.)
//! - *Limits*: 256 descriptors, no core dump (it would hold the guest's memory), and 16 MiB for any
//!   one file, which is standard error: QEMU writes no other.

use camino::Utf8PathBuf;
use command_fds::{CommandFdExt, FdMapping};
use nix::sched::CloneFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit};
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use tokio::sync::{mpsc, oneshot};

use crate::spec::RunAs;

/// Tasks waiting for the thread. 64: each takes about 2 ms, and whoever asks for more at once
/// waits.
const TASKS_MAX: usize = 64;
/// A QEMU with all devices holds about 30 descriptors.
const DESCRIPTORS_MAX: u64 = 256;
/// Largest file QEMU may write, bytes.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Added to the badness of a machine's process when the host runs out of memory: a machine goes
/// before the daemon.
const OOM_SCORE: &str = "300";

/// A process to be started.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) program: Utf8PathBuf,
    pub(crate) args: Vec<String>,
    /// Descriptors the process keeps under the same numbers.
    pub(crate) fds: Vec<OwnedFd>,
    /// Standard output and error.
    pub(crate) output: File,
    pub(crate) run_as: Option<RunAs>,
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

type Task = Box<dyn FnOnce(&Spawner) + Send>;

/// A handle on the thread that starts processes. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct SpawnThread {
    tasks: mpsc::Sender<Task>,
}

/// The thread has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gone;

impl SpawnThread {
    pub(crate) fn start() -> io::Result<Self> {
        let (tasks, mut inbox) = mpsc::channel::<Task>(TASKS_MAX);
        let leaked = leaked_descriptors()?;
        thread::Builder::new().name("vmm-spawn".into()).spawn(move || {
            let spawner = Spawner { leaked };
            harden();
            while let Some(task) = inbox.blocking_recv() {
                task(&spawner);
            }
        })?;
        Ok(Self { tasks })
    }

    /// Runs `task` on the thread. Everything that blocks in a launch belongs into it.
    ///
    /// # Cancel safety
    /// Dropped before the answer has come, the task runs all the same, and its answer is dropped: where that leaves
    /// something behind, its `Drop` takes it back.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce(&Spawner) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        let task: Task = Box::new(move |spawner| {
            // Whoever asked may have gone; then the answer is dropped here.
            let _ = reply.send(task(spawner));
        });
        self.tasks.send(task).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

/// What the calling thread gives up for itself and its children.
fn harden() {
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        tracing::warn!(%error, "machines run without no_new_privs");
    }
    // Without root this is not permitted, and QEMU is as mighty as any process of this user anyway.
    if let Err(error) = nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC) {
        tracing::info!(%error, "machines stay in the host's network namespace");
    }
}

/// Descriptors this process was started with that do not close on exec.
fn leaked_descriptors() -> io::Result<Vec<RawFd>> {
    let mut leaked = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok())
        else {
            continue;
        };
        if fd > 2 && !closes_on_exec(fd) {
            leaked.push(fd);
        }
    }
    Ok(leaked)
}

fn closes_on_exec(fd: RawFd) -> bool {
    const O_CLOEXEC: u32 = 0o2_000_000;
    // A descriptor that is gone again leaks nowhere.
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        .is_none_or(|f| f & O_CLOEXEC != 0)
}

/// Starts processes on the spawn thread.
#[derive(Debug)]
pub(crate) struct Spawner {
    leaked: Vec<RawFd>,
}

impl Spawner {
    /// Starts a process. It outlives this one.
    pub(crate) fn spawn(&self, order: Order) -> io::Result<Spawned> {
        let Order { program, args, fds, output, run_as } = order;
        let mut command = Command::new(&program);
        command
            .args(args)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        if let Some(RunAs { uid, gid }) = run_as {
            command.uid(uid).gid(gid);
        }
        let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let mut covers = Vec::new();
        for &child_fd in &self.leaked {
            covers.push(FdMapping { parent_fd: null()?, child_fd });
        }
        command.fd_mappings(covers).map_err(io::Error::other)?.preserved_fds(fds);
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let handle = Pid::from_child(&child);
        // The child cannot be reaped by anybody else before it has a descriptor, so its number is
        // its own.
        let pidfd = rustix::process::pidfd_open(handle, PidfdFlags::NONBLOCK)?;
        limit(handle);
        Ok(Spawned { pid, pidfd })
    }
}

fn limit(pid: Pid) {
    let to = |bound| Rlimit { current: Some(bound), maximum: Some(bound) };
    for (resource, bound) in [
        (Resource::Nofile, DESCRIPTORS_MAX),
        (Resource::Core, 0),
        (Resource::Fsize, FILE_BYTES_MAX),
    ] {
        // A process that has ended already needs no limit.
        if let Err(error) = rustix::process::prlimit(Some(pid), resource, to(bound)) {
            tracing::debug!(%error, ?resource, "limit not set");
        }
    }
    let score = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    if let Err(error) = std::fs::write(score, OOM_SCORE) {
        tracing::debug!(%error, "OOM score not set");
    }
}
