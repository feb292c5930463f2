//! The UDP ports of the tunnels between the nodes of one process. All are in one network namespace, so each node has a port
//! of its own, and each cloud on the host a group of a hundred that no other cloud or program has.

use camino::Utf8Path;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Nodes of one process.
pub(crate) const NODES_MAX: u32 = 100;
/// 10,240 to 30,239, below the ports that Linux gives to clients.
const FIRST: u32 = 10_240;
/// Clouds on one host that can have ports of their own.
const GROUPS: u32 = 200;

/// The ports of a cloud, while it is held. Taken by binding an abstract Unix address: those belong to the network namespace,
/// just as ports do, and the kernel frees them with the process.
#[derive(Debug)]
pub(crate) struct TunnelPorts {
    group: u32,
    _claim: UnixDatagram,
}

impl TunnelPorts {
    /// The ports that the cloud on this folder had, or others if somebody has those by now; none if no group is free. The
    /// choice is kept in the folder, because tunnels outlive the process.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn take(state: &Utf8Path, cloud: &str, nodes: u32) -> io::Result<Option<Self>> {
        let path = state.join("tunnel.ports");
        let kept = std::fs::read_to_string(&path).ok();
        let kept = kept.and_then(|text| text.trim().parse().ok()).filter(|group| *group < GROUPS);
        // Ports of the group that are open then are those of its own tunnels.
        if let Some(taken) = kept.and_then(Self::claim) {
            return Ok(Some(taken));
        }
        let id = u32::from_str_radix(cloud.trim_start_matches('c'), 16).unwrap_or_default();
        let groups = (0..GROUPS).map(|step| (id % GROUPS + step) % GROUPS);
        let taken = groups
            .filter_map(Self::claim)
            .find(|taken| (1..=nodes).all(|number| taken.port(number).is_some_and(is_free)));
        if let Some(taken) = &taken {
            let draft = state.join("tunnel.ports.draft");
            std::fs::write(&draft, taken.group.to_string())?;
            std::fs::rename(&draft, &path)?;
        }
        Ok(taken)
    }

    fn claim(group: u32) -> Option<Self> {
        let name = format!("skein-tunnels-{group}");
        let address = SocketAddr::from_abstract_name(name.as_bytes()).ok()?;
        Some(Self { group, _claim: UnixDatagram::bind_addr(&address).ok()? })
    }

    /// The port of node `number`, counted from 1; none beyond [`NODES_MAX`].
    pub(crate) fn port(&self, number: u32) -> Option<u16> {
        let within = (1..=NODES_MAX).contains(&number);
        within.then(|| FIRST + self.group * NODES_MAX + number - 1)?.try_into().ok()
    }
}

/// Whether nobody receives there: neither a program nor a tunnel of the kernel's.
fn is_free(port: u16) -> bool {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned().try_into().expect("UTF-8");
        (folder, path)
    }

    #[test]
    fn two_clouds_of_one_host_share_no_port_whatever_their_ids() {
        let ((_a, one), (_b, two)) = (folder(), folder());
        let first = TunnelPorts::take(&one, "c0badcafe", 3).unwrap().unwrap();
        let second = TunnelPorts::take(&two, "c0badcafe", 3).unwrap().unwrap();
        assert_ne!(first.group, second.group);
        assert_eq!(first.port(3), first.port(1).map(|port| port + 2));
        assert_eq!((first.port(0), first.port(NODES_MAX + 1)), (None, None));
        // Each gets its own again.
        let (before, other) = (first.group, second.group);
        drop((first, second));
        let second = TunnelPorts::take(&two, "c0badcafe", 3).unwrap().unwrap();
        let first = TunnelPorts::take(&one, "c0badcafe", 3).unwrap().unwrap();
        assert_eq!((first.group, second.group), (before, other));
    }

    #[test]
    fn a_group_that_a_program_has_a_port_of_is_passed_over() {
        let ((_a, one), (_b, two)) = (folder(), folder());
        let taken = TunnelPorts::take(&one, "c00000042", 2).unwrap().unwrap();
        let (group, port) = (taken.group, taken.port(2).unwrap());
        drop(taken);
        let _program = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        let taken = TunnelPorts::take(&two, "c00000042", 2).unwrap().unwrap();
        assert_ne!(taken.group, group);
    }
}
