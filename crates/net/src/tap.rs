//! Taps: the kernel's end of a machine's network device.

use crate::error::NetError;
use crate::host::HostError;
use crate::names::InterfaceName;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use tun_rs::{DeviceBuilder, Layer};

/// The device of which every tap is an open file.
pub(crate) const TUN_DEVICE: &str = "/dev/net/tun";

/// Makes the tap `name` in the namespace of the calling thread and returns its only holder. The tap
/// is down, carries whole Ethernet frames, each behind a virtio-net header (`IFF_TAP | IFF_NO_PI |
/// IFF_VNET_HDR`), and goes when the last duplicate of the descriptor is closed.
///
/// QEMU reads these flags from the descriptor (`-netdev tap,fd=N`), sets the header's size itself
/// and turns off the offloads that its guest does not ask for.
pub(crate) fn create(name: &InterfaceName) -> Result<OwnedFd, NetError> {
    // The library would make a missing device file itself; the host's /dev is not ours to change.
    if !Path::new(TUN_DEVICE).exists() {
        return Err(HostError::TunMissing.into());
    }
    let device = DeviceBuilder::new()
        .name(name.as_str())
        .layer(Layer::L2)
        .packet_information(false)
        .offload(true)
        .build_sync()
        .map_err(|source| failed(name, source))?;
    // The descriptor goes to another process: a duplicate outlives the wrapper, which closes its
    // own.
    device.as_fd().try_clone_to_owned().map_err(|source| failed(name, source))
}

fn failed(name: &InterfaceName, source: io::Error) -> NetError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => HostError::NotRoot.into(),
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => HostError::TunMissing.into(),
        Some(Errno::EMFILE | Errno::ENFILE) => NetError::Descriptors { action: "creating a tap" },
        _ => NetError::Tap { tap: name.clone(), source },
    }
}

/// Whether creating a tap failed because one of its name has a holder.
pub(crate) fn is_taken(error: &NetError) -> bool {
    matches!(error, NetError::Tap { source, .. }
        if source.raw_os_error().map(Errno::from_raw) == Some(Errno::EBUSY))
}
