//! Where the time of a start goes: this driver beside bare QEMU, interleaved, until the guest says
//! that it is ready. `cargo run --release -p skein-vmm --example start -- [RUNS]`, as root.

#[path = "../tests/host/mod.rs"]
mod host;

use anyhow::Context;
use command_fds::CommandFdExt;
use host::echo::{self, Network};
use host::{Guard, Host, PATIENCE};
use skein_vmm::{Driver, LaunchSpec, RunAs};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let runs = std::env::args().nth(1).map_or(Ok(30), |runs| runs.parse()).context("RUNS")?;
    let (_network, tap) = Network::new().context("needs root and /dev/net/tun")?;
    let host = Host::start().await;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    let (mut prepared, mut spawned, mut boot) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        bare.push(run_bare(&host, tap.try_clone()?)?);
        let spec = spec(&host, tap.try_clone()?);
        let began = Instant::now();
        let machine = Guard(host.driver.launch(spec).await?);
        let ready = machine.ready(PATIENCE).await?;
        ours.push(began.elapsed());
        prepared.push(machine.times().prepared);
        spawned.push(machine.times().spawned - machine.times().prepared);
        boot.push(ready.boot);
        machine.kill().await?;
    }
    for (name, times) in [
        ("bare QEMU, spawn to ready", &mut bare),
        ("driver, launch to ready", &mut ours),
        ("  of it: sockets and files", &mut prepared),
        ("  of it: fork, drop privileges, exec", &mut spawned),
        ("  of it: guest, entry to listening", &mut boot),
    ] {
        times.sort();
        let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e3;
        println!("{name:38} p10 {:6.2}  median {:6.2}  p90 {:6.2} ms", at(10), at(50), at(90));
    }
    let ratio = ours[runs / 2].as_secs_f64() / bare[runs / 2].as_secs_f64();
    println!("ratio of medians {ratio:.3}");
    Ok(())
}

fn spec(host: &Host, tap: OwnedFd) -> LaunchSpec {
    let mut spec = echo::spec(host, "echo", tap);
    spec.run_as = Some(RunAs { uid: 700_125, gid: 700_125 });
    spec
}

/// What one would type: the same devices, no sandbox, no other user, no monitor.
fn run_bare(host: &Host, tap: OwnedFd) -> anyhow::Result<Duration> {
    let socket = host.path("bare.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    let spec = echo::spec(host, "echo", tap);
    let tap = spec.nic.context("nic")?.tap;
    let began = Instant::now();
    let mut command = Command::new(host.driver.program());
    command
        .args(["-M", "microvm,acpi=off,pit=off,pic=off,rtc=off,auto-kernel-cmdline=off"])
        .args(["-accel", "tcg,tb-size=8", "-m", "16M", "-nodefaults", "-no-user-config"])
        .args(["-no-reboot", "-display", "none", "-kernel", spec.kernel.as_str()])
        .args(["-append", "ip=10.99.0.2/24 gw=10.99.0.1 capacity=4"])
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .args(["-device", "isa-debug-exit,iobase=0x501,iosize=1", "-device", "virtio-rng-device"])
        .args(["-chardev", "null,id=log", "-device", "virtio-serial-device,id=a"])
        .args(["-device", "virtconsole,chardev=log,bus=a.0"])
        .args(["-chardev", &format!("socket,id=control,path={socket}")])
        .args(["-device", "virtio-serial-device,id=b"])
        .args(["-device", "virtconsole,chardev=control,bus=b.0"])
        .args(["-netdev", &format!("tap,id=nic,fd={}", tap.as_raw_fd())])
        .args(["-device", "virtio-net-device,netdev=nic,mac=52:54:00:12:34:56"])
        .stdin(Stdio::null())
        .preserved_fds(vec![tap]);
    let mut child = command.spawn()?;
    let said = listener.accept().and_then(|(stream, _)| {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map(|_| line)
    });
    let took = began.elapsed();
    child.kill()?;
    child.wait()?;
    anyhow::ensure!(said?.starts_with("ready "), "the guest is not ready");
    Ok(took)
}
