//! A tap in the hands of a QEMU that outlives the owner of its network. Needs root and QEMU.

mod common;

use anyhow::{Context, Result, ensure};
use common::{Scratch, eventually};
use skein_net::{NodeNetwork, Opened, Port};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A QEMU without a kernel, which waits for commands; killed when dropped.
struct Qemu(Child);

impl Qemu {
    /// The tap goes in as standard input, which is a descriptor that a child process gets without
    /// further ado.
    fn start(port: Port, socket: &Path) -> Result<Self> {
        let child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-M", "microvm,acpi=off,pit=off,pic=off,rtc=off", "-m", "16"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
            .args(["-netdev", "tap,id=net0,fd=0"])
            .arg("-device")
            .arg(format!("virtio-net-device,netdev=net0,mac={}", port.mac))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::from(port.tap))
            .spawn()
            .context("starting qemu-system-x86_64")?;
        Ok(Self(child))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn greeting(socket: &Path) -> Option<String> {
    let mut line = String::new();
    BufReader::new(UnixStream::connect(socket).ok()?).read_line(&mut line).ok()?;
    Some(line)
}

#[tokio::test]
async fn a_machine_keeps_its_port_when_the_owner_is_gone() -> Result<()> {
    let scratch = Scratch::new("qemu");
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("qmp");
    let network = scratch.open().await?;
    let mut qemu = Qemu::start(network.plug(scratch.port(0)).await?, &socket)?;
    // QEMU greets after it took the tap; it ends instead if it does not like it.
    let greeted = eventually("QEMU greets", || {
        let ended = qemu.0.try_wait().ok().flatten();
        let answer = ended.map(|status| status.to_string()).or_else(|| greeting(&socket));
        std::future::ready(answer)
    });
    let greeted = greeted.await?;
    ensure!(greeted.contains("QMP"), "QEMU ended: {greeted}");
    drop(network);

    let network = scratch.open().await?;
    ensure!(network.opened() == Opened::Adopted);
    let ports = network.ports().await?;
    ensure!(ports.len() == 1 && ports[0].holders == [qemu.0.id()], "{ports:?}");
    drop(network);
    ensure!(NodeNetwork::sweep(&scratch.name).await?.is_empty());
    drop(qemu);
    // The kernel removed the tap with the process, so now the network is nobody's.
    ensure!(NodeNetwork::sweep(&scratch.name).await? == std::slice::from_ref(&scratch.name));
    Ok(())
}
