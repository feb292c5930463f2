//! Named network namespaces: files in `/run/netns`, as `ip netns` makes them.
//!
//! A namespace lives while a thread, a descriptor or a mount refers to it. The mount is what lets
//! it be found again after every process of ours has died. All functions here block; call them off
//! the runtime.

use crate::error::NetError;
use crate::host::HostError;
use crate::names::NetworkName;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const DIRECTORY: &str = "/run/netns";
/// File system of namespace files (`NSFS_MAGIC` of linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;
const NOTHING: Option<&str> = None;

/// Whether a namespace was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It was made by this call.
    Created,
    /// It was there, perhaps from a process that crashed.
    Existing,
}

/// The file of a network's namespace.
pub(crate) fn path(name: &NetworkName) -> PathBuf {
    Path::new(DIRECTORY).join(name.namespace())
}

/// Opens the namespace of `name`, making it if there is none.
pub(crate) fn open_or_create(name: &NetworkName) -> Result<(OwnedFd, Found), NetError> {
    let _lock = lock()?;
    let path = path(name);
    match open(&path)? {
        Some(namespace) => return Ok((namespace, Found::Existing)),
        None if path.exists() => discard_unmounted(&path)?,
        None => {}
    }
    share_directory()?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path);
    file.map_err(failed("creating", &path))?;
    let created = mount_new(&path)
        .and_then(|()| open(&path)?.ok_or_else(|| failed("opening", &path)(Errno::ENOENT.into())));
    match created {
        Ok(namespace) => Ok((namespace, Found::Created)),
        Err(error) => {
            // The first failure is the one to report; a file left here is discarded by the next
            // call.
            let _ = detach(&path);
            Err(error)
        }
    }
}

/// Opens the namespace of `name` if there is one.
pub(crate) fn open_existing(name: &NetworkName) -> Result<Option<OwnedFd>, NetError> {
    open(&path(name))
}

/// Whether `namespace` is still the one that the file of `name` leads to.
pub(crate) fn is_current(name: &NetworkName, namespace: &OwnedFd) -> Result<bool, NetError> {
    let path = path(name);
    let Some(current) = open(&path)? else { return Ok(false) };
    let identity = |namespace: &OwnedFd| {
        let stat = rustix::fs::fstat(namespace);
        stat.map(|stat| (stat.st_dev, stat.st_ino))
            .map_err(|errno| failed("examining", &path)(errno.into()))
    };
    Ok(identity(&current)? == identity(namespace)?)
}

/// Gives a namespace its name again if somebody took it away.
pub(crate) fn restore(name: &NetworkName, namespace: &OwnedFd) -> Result<(), NetError> {
    if is_current(name, namespace)? {
        return Ok(());
    }
    let _lock = lock()?;
    let path = path(name);
    detach(&path)?;
    share_directory()?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path);
    file.map_err(failed("creating", &path))?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    mount(Some(source.as_str()), &path, NOTHING, MsFlags::MS_BIND, NOTHING)
        .map_err(refused("mounting", &path))
}

/// Removes the name of a namespace, and with it the namespace unless something still refers to it.
/// Returns whether there was one.
pub(crate) fn remove(name: &NetworkName) -> Result<bool, NetError> {
    let path = path(name);
    if !path.exists() {
        return Ok(false);
    }
    let _lock = lock()?;
    detach(&path)
}

/// The networks that have a namespace on this host, in no order.
pub(crate) fn list() -> Result<Vec<NetworkName>, NetError> {
    let directory = Path::new(DIRECTORY);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("listing", directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("listing", directory))?;
        names.extend(entry.file_name().to_str().and_then(NetworkName::of_namespace));
    }
    Ok(names)
}

/// `None` if nothing is mounted at `path`.
fn open(path: &Path) -> Result<Option<OwnedFd>, NetError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("opening", path)(error)),
    };
    let stat = rustix::fs::fstatfs(&file);
    let stat = stat.map_err(|errno| failed("examining", path)(errno.into()))?;
    Ok((stat.f_type == NSFS_MAGIC).then(|| file.into()))
}

/// Removes the empty file that a crash between making the file and mounting on it leaves.
fn discard_unmounted(path: &Path) -> Result<(), NetError> {
    let data = fs::symlink_metadata(path).map_err(failed("examining", path))?;
    if !data.is_file() || data.len() > 0 {
        return Err(NetError::FileForeign { path: path.to_owned() });
    }
    fs::remove_file(path).map_err(failed("removing", path))
}

/// Makes a namespace and mounts it at `path`, on a thread that goes with its old namespace.
fn mount_new(path: &Path) -> Result<(), NetError> {
    let body = || -> Result<(), NetError> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(refused("making a namespace for", path))?;
        let source = Some("/proc/thread-self/ns/net");
        mount(source, path, NOTHING, MsFlags::MS_BIND, NOTHING).map_err(refused("mounting", path))
    };
    std::thread::scope(|scope| scope.spawn(body).join()).map_err(|_| NetError::Closed)?
}

fn detach(path: &Path) -> Result<bool, NetError> {
    // More than one mount can lie on the file if the directory was made a mount point after it.
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(refused("unmounting", path)(errno)),
        }
    }
    if path.exists() { discard_unmounted(path).map(|()| true) } else { Ok(false) }
}

/// One process at a time makes or removes namespaces. `ip netns` takes the same lock.
fn lock() -> Result<File, NetError> {
    let directory = Path::new(DIRECTORY);
    fs::create_dir_all(directory).map_err(failed("creating", directory))?;
    let file = File::open(directory).map_err(failed("opening", directory))?;
    file.lock().map_err(failed("locking", directory))?;
    Ok(file)
}

/// Makes the directory a shared mount, as `ip netns` does, so that a namespace removed here does
/// not stay mounted in the private copies of services that were started meanwhile.
fn share_directory() -> Result<(), NetError> {
    let directory = Path::new(DIRECTORY);
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    match mount(NOTHING, directory, NOTHING, shared, NOTHING) {
        Ok(()) => Ok(()),
        Err(Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(directory), directory, NOTHING, bind, NOTHING)
                .and_then(|()| mount(NOTHING, directory, NOTHING, shared, NOTHING))
                .map_err(refused("sharing", directory))
        }
        Err(errno) => Err(refused("sharing", directory)(errno)),
    }
}

fn refused(action: &'static str, path: &Path) -> impl Fn(Errno) -> NetError {
    let failed = failed(action, path);
    move |errno| failed(errno.into())
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> NetError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => HostError::NotRoot.into(),
        _ => NetError::Namespace { action, path: path.clone(), source },
    }
}
