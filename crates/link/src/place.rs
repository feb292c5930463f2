//! Where programs find the broker of their host.
//!
//! A host may be a network namespace, and file systems know nothing of those: a broker that serves one namespace among
//! others has the namespace's number in the name of its socket. Programs look for that one first, then for the one without.

use nix::sched::{CloneFlags, setns};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use skein_link_core::ring::host::network_namespace;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Folder of the brokers' sockets.
pub const FOLDER: &str = "/run/skein";
/// The project of programs that say nothing else.
pub const PROJECT: &str = "default";

/// The network namespace of the calling thread: `SO_NETNS_COOKIE` of its sockets, unique until the host restarts. `None`: a
/// kernel that does not tell (Linux before 5.14), or no descriptor is left.
pub fn own_namespace() -> Option<u64> {
    let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).ok()?;
    network_namespace(socket.as_fd()).ok()
}

/// Runs `body` in a network namespace, on a thread of its own: sockets and threads that it makes are of that one.
///
/// # Errors
/// The namespace cannot be entered, or `body` panicked.
pub fn within<T: Send>(namespace: &Path, body: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(namespace)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(body())
        });
        thread.join().map_err(|_| io::Error::other("the thread in the namespace panicked"))?
    })
}

/// The socket on which programs of a project ask: `link.sock`, `link.PROJECT.sock`, and with the number of a namespace
/// behind `link` where the broker serves that one.
pub fn socket_path(folder: &Path, namespace: Option<u64>, project: &str) -> PathBuf {
    let of_namespace = namespace.map(|number| format!("-{number}")).unwrap_or_default();
    let of_project = if project == PROJECT { String::new() } else { format!(".{project}") };
    folder.join(format!("link{of_namespace}{of_project}.sock"))
}

/// Where a broker is started for want of one, for programs of this host and project that have looked at `found` in vain: on the
/// socket of its network namespace, which a node there takes over.
pub fn socket_to_start(found: &Path, project: &str) -> PathBuf {
    let folder = found.parent().unwrap_or(Path::new("/"));
    let is_common = found == socket_path(folder, None, project);
    let own = own_namespace().filter(|_| is_common);
    own.map_or_else(|| found.to_owned(), |own| socket_path(folder, Some(own), project))
}

/// The sockets on which a broker serves a project's programs, in the network namespace `own`: its socket, and if it serves on the
/// common one, that of a broker which was started for want of it.
pub fn sockets_to_serve(
    folder: &Path,
    named: Option<u64>,
    own: Option<u64>,
    project: &str,
) -> Vec<PathBuf> {
    let besides =
        own.filter(|_| named.is_none()).map(|own| socket_path(folder, Some(own), project));
    let besides = besides.filter(|path| path.exists());
    std::iter::once(socket_path(folder, named, project)).chain(besides).collect()
}

/// The socket that a program of this host and project asks on: that of its namespace if there is one.
pub fn find_socket(folder: &Path, project: &str) -> PathBuf {
    let of_namespace = own_namespace().map(|own| socket_path(folder, Some(own), project));
    let there = of_namespace.filter(|path| path.exists());
    there.unwrap_or_else(|| socket_path(folder, None, project))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_s_own_broker_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert_eq!(find_socket(folder, "default"), folder.join("link.sock"));
        assert_eq!(find_socket(folder, "shop"), folder.join("link.shop.sock"));
        let own = own_namespace().unwrap();
        let path = socket_path(folder, Some(own), "shop");
        assert_eq!(path, folder.join(format!("link-{own}.shop.sock")));
        std::fs::write(&path, "").unwrap();
        assert_eq!(find_socket(folder, "shop"), path);
        assert_eq!(find_socket(folder, "default"), folder.join("link.sock"));
    }

    #[test]
    fn a_broker_for_want_of_another_is_where_the_namespace_s_node_will_be() {
        let bed = crate::testbed::Testbed::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let common = folder.path().join("link.sock");
        let other = Path::new("/run/netns").join(bed.namespace(crate::testbed::Host::A));
        let there = || (own_namespace().unwrap(), socket_to_start(&common, PROJECT));
        let (own, path) = within(&other, there).unwrap();
        assert_eq!(path, folder.path().join(format!("link-{own}.sock")));
        assert_eq!(within(&other, || socket_to_start(&path, PROJECT)).unwrap(), path);
        // A node that is told of no namespace takes it over too, if it is there.
        let serves = || sockets_to_serve(folder.path(), None, Some(own), PROJECT);
        assert_eq!(serves(), std::slice::from_ref(&common));
        std::fs::write(&path, "").unwrap();
        assert_eq!(serves(), [common, path.clone()]);
        assert_eq!(sockets_to_serve(folder.path(), Some(own), Some(own), PROJECT), [path]);
    }
}
