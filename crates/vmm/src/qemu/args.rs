//! QEMU's command line. Pure: every option is decided here, and checked against the real binary by
//! tests.
//!
//! What was measured (QEMU 7.2, emulated, 40 interleaved runs each): of the 33 ms from spawn to a
//! guest's first instruction and exit, 18 ms are QEMU's dynamic linking (`--version` takes as long)
//! and 4 ms its firmware; the sandbox, the serial devices and the random device together cost less
//! than can be measured, and neither do `x-option-roms=off`, a firmware given by path, other sizes
//! of the translation buffer nor malloc's settings save anything. So the line below holds what is
//! needed, and no tricks.

use crate::accel::Accel;
use crate::spec::MacAddress;
use skein_model::{MachineId, MemoryMib};
use std::os::fd::RawFd;

/// The machine's shape, with the numbers of the descriptors QEMU inherits.
#[derive(Debug)]
pub(super) struct Shape<'a> {
    pub(super) id: &'a MachineId,
    pub(super) uuid: &'a str,
    pub(super) accel: Accel,
    pub(super) memory: MemoryMib,
    pub(super) kernel: RawFd,
    pub(super) modules: Option<RawFd>,
    pub(super) command_line: &'a str,
    pub(super) nic: Option<NicShape>,
    /// Listening sockets, each with a client that waits already.
    pub(super) qmp: RawFd,
    pub(super) console: RawFd,
    pub(super) control: RawFd,
    pub(super) serial: RawFd,
}

/// A network card.
#[derive(Debug, Clone, Copy)]
pub(super) struct NicShape {
    pub(super) mac: MacAddress,
    pub(super) mtu: Option<u16>,
    pub(super) tap: RawFd,
}

/// The machine type of unikernels: no ACPI, no legacy timers, no legacy interrupt controller.
pub(crate) const MACHINE: &str =
    "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=on,auto-kernel-cmdline=off";
/// What QEMU may not do once it runs.
pub(crate) const SANDBOX: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// The port by which a guest ends its machine with a code.
pub(crate) const DEBUG_EXIT: &str = "isa-debug-exit,iobase=0x501,iosize=1";

/// The accelerator's options. `tb-size=8`: 8 MiB of translated code hold a unikernel, and save
/// memory.
pub(crate) fn accel(accel: Accel) -> &'static [&'static str] {
    match accel {
        Accel::Kvm => &["-accel", "kvm", "-cpu", "host"],
        Accel::Tcg => &["-accel", "tcg,tb-size=8"],
    }
}

/// The command line without the program's name.
pub(super) fn arguments(shape: &Shape<'_>) -> Vec<String> {
    let Shape { id, uuid, memory, kernel, command_line, .. } = shape;
    let mut args = Args(Vec::with_capacity(64));
    args.pair("-name", format!("guest={id},process=skein-{id}"));
    args.pair("-uuid", *uuid);
    args.pair("-machine", MACHINE);
    args.0.extend(accel(shape.accel).iter().map(|&arg| arg.to_owned()));
    args.pair("-m", format!("{}M", memory.get()));
    args.pair("-smp", "1");
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        args.0.push(flag.to_owned());
    }
    args.pair("-display", "none");
    args.pair("-sandbox", SANDBOX);
    args.pair("-kernel", format!("/dev/fd/{kernel}"));
    if let Some(modules) = shape.modules {
        args.pair("-initrd", format!("/dev/fd/{modules}"));
    }
    args.pair("-append", *command_line);
    args.pair("-global", "virtio-mmio.force-legacy=false");
    args.pair("-device", DEBUG_EXIT);
    args.pair("-device", "virtio-rng-device");
    args.socket("qmp", shape.qmp);
    args.pair("-mon", "chardev=qmp,mode=control");
    args.socket("serial", shape.serial);
    args.pair("-serial", "chardev:serial");
    // The guest tells the two apart by their order: the log first (docs/guest-abi.md).
    for (name, fd) in [("console", shape.console), ("control", shape.control)] {
        args.socket(name, fd);
        args.pair("-device", format!("virtio-serial-device,id={name}-bus,max_ports=1"));
        args.pair("-device", format!("virtconsole,chardev={name},bus={name}-bus.0"));
    }
    if let Some(NicShape { mac, mtu, tap }) = shape.nic {
        let mtu = mtu.map_or_else(String::new, |mtu| format!(",host_mtu={mtu}"));
        args.pair("-netdev", format!("tap,id=nic,fd={tap},vhost=off"));
        args.pair("-device", format!("virtio-net-device,netdev=nic,mac={mac}{mtu}"));
    }
    args.0
}

struct Args(Vec<String>);

impl Args {
    fn pair(&mut self, option: &str, value: impl Into<String>) {
        self.0.push(option.to_owned());
        self.0.push(value.into());
    }

    /// A character device on a listening socket. `wait=on`: the client is in the socket's queue
    /// before QEMU starts, so QEMU takes it at once and not one byte of the guest's output is lost.
    fn socket(&mut self, name: &str, fd: RawFd) {
        self.pair("-chardev", format!("socket,id={name},fd={fd},server=on,wait=on"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_line() {
        let id = "search-1".parse().expect("id");
        let shape = Shape {
            id: &id,
            uuid: "00000000-0000-4000-8000-000000000001",
            accel: Accel::Tcg,
            memory: MemoryMib::DEFAULT,
            kernel: 10,
            modules: Some(11),
            command_line: "host=search-1 port=8080",
            nic: Some(NicShape {
                mac: "52:54:00:00:00:01".parse().expect("mac"),
                mtu: Some(1450),
                tap: 12,
            }),
            qmp: 20,
            console: 21,
            control: 22,
            serial: 23,
        };
        let expect = "-name guest=search-1,process=skein-search-1 \
            -uuid 00000000-0000-4000-8000-000000000001 \
            -machine microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=on,auto-kernel-cmdline=off \
            -accel tcg,tb-size=8 -m 16M -smp 1 -nodefaults -no-user-config -no-reboot -display none \
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
            -kernel /dev/fd/10 -initrd /dev/fd/11 -append host=search-1 port=8080 \
            -global virtio-mmio.force-legacy=false -device isa-debug-exit,iobase=0x501,iosize=1 \
            -device virtio-rng-device -chardev socket,id=qmp,fd=20,server=on,wait=on \
            -mon chardev=qmp,mode=control -chardev socket,id=serial,fd=23,server=on,wait=on \
            -serial chardev:serial -chardev socket,id=console,fd=21,server=on,wait=on \
            -device virtio-serial-device,id=console-bus,max_ports=1 \
            -device virtconsole,chardev=console,bus=console-bus.0 \
            -chardev socket,id=control,fd=22,server=on,wait=on \
            -device virtio-serial-device,id=control-bus,max_ports=1 \
            -device virtconsole,chardev=control,bus=control-bus.0 \
            -netdev tap,id=nic,fd=12,vhost=off -device virtio-net-device,netdev=nic,mac=52:54:00:00:00:01,host_mtu=1450";
        assert_eq!(
            arguments(&shape).join(" "),
            expect.split_whitespace().collect::<Vec<_>>().join(" ")
        );
        let bare = Shape { modules: None, nic: None, accel: Accel::Kvm, ..shape };
        let line = arguments(&bare).join(" ");
        assert!(line.contains("-accel kvm -cpu host") && !line.contains("-initrd"), "{line}");
        assert!(!line.contains("-netdev"), "{line}");
    }
}
