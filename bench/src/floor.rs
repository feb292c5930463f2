//! The floor: bare QEMU, as somebody would write it who wants one machine to answer as soon as it can.
//!
//! Same image, same machine type, memory, accelerator and network card as ours; nothing else: no monitor, no
//! consoles, no sandbox, no change of user. Namespace, bridge and tap are made once, beforehand.
//!
//! When it answers is found without polling: the connection is opened as soon as the process is started. Its first
//! segment waits in the tap's queue until the guest's network card takes it, and the guest answers it with the first
//! thing it does once it listens. A refused connection is tried again after a millisecond, and one whose segment got lost
//! after a tenth of a second.

use crate::error::BenchError;
use crate::http1::{Answer, Wire};
use bytes::Bytes;
use camino::Utf8PathBuf;
use command_fds::CommandFdExt;
use skein_model::Subnet;
use skein_net::{Connector, NetworkSpec, NodeNetwork, Peers, Port, PortSpec};
use skein_vmm::{Accel, ImageFiles};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Same as ours: no ACPI, no legacy timers, no legacy interrupt controller.
const MACHINE: &str =
    "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=on,auto-kernel-cmdline=off";
/// After a refused connection: the guest is up and does not listen yet.
const REFUSED_AGAIN: Duration = Duration::from_millis(1);
/// After this long a connection's first segment counts as lost.
const SILENT_AGAIN: Duration = Duration::from_millis(100);
/// An emulated machine answers after a twentieth of a second.
const DEADLINE: Duration = Duration::from_secs(30);

/// What bare machines are like.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Name of their network.
    pub(crate) name: String,
    pub(crate) program: Option<Utf8PathBuf>,
    pub(crate) accel: Accel,
    pub(crate) files: ImageFiles,
    pub(crate) memory_mib: u32,
    pub(crate) capacity: u32,
    pub(crate) port: u16,
    /// Where their serial port writes; of use only when one fails.
    pub(crate) log: Utf8PathBuf,
}

/// A network for bare machines.
pub(crate) struct Floor {
    shape: Shape,
    network: NodeNetwork,
    connector: Connector,
}

/// A bare machine. Dropping it kills its process.
pub(crate) struct Bare {
    child: Child,
    begun: Instant,
    to: SocketAddrV4,
    connector: Connector,
}

impl Floor {
    /// Makes the network.
    pub(crate) async fn open(shape: Shape) -> Result<Self, BenchError> {
        let wrong =
            |what: String| BenchError::unexpected(format!("the baseline's network: {what}"));
        let name = shape.name.parse().map_err(|error| wrong(format!("{error}")))?;
        let cidr = Subnet::new(Ipv4Addr::new(10, 64, 0, 0), 22)
            .map_err(|error| wrong(error.to_string()))?;
        let network = NodeNetwork::open(NetworkSpec::new(name, cidr)).await?;
        let connector = network.connector().with_timeout(DEADLINE);
        Ok(Self { shape, network, connector })
    }

    /// Removes it.
    pub(crate) async fn close(self) {
        let Self { network, connector, .. } = self;
        drop(connector);
        if let Err(error) = network.close().await {
            tracing::warn!(%error, "the network of the baseline could not be removed");
        }
    }

    /// A tap on the bridge for the machine of this number, from 0.
    pub(crate) async fn plug(&self, number: u32) -> Result<Port, BenchError> {
        let spec = self.network.spec();
        let beyond =
            || BenchError::unexpected(format!("the baseline's network has no room for {number}"));
        let address = spec.cidr().machine(number).ok_or_else(beyond)?;
        let label = format!("bare-{number}").parse();
        let port = PortSpec {
            address,
            mac: spec.name().port_mac(address),
            label: label.map_err(|error| BenchError::unexpected(format!("a label: {error}")))?,
            peers: Peers::Reachable,
        };
        Ok(self.network.plug(port).await?)
    }

    /// Removes what a machine's port has left.
    pub(crate) async fn unplug(&self, port: Port) -> Result<(), BenchError> {
        let address = port.address;
        self.network.unplug(address).await?;
        // Closing the last descriptor of a tap blocks.
        let _ = tokio::task::spawn_blocking(move || drop(port)).await;
        Ok(())
    }

    /// Starts QEMU on a tap.
    pub(crate) fn spawn(&self, port: &Port) -> Result<Bare, BenchError> {
        let begun = Instant::now();
        let tap = port.tap.try_clone().map_err(BenchError::io("duplicating a descriptor"))?;
        let program = self.shape.program.as_deref().map_or("qemu-system-x86_64", |p| p.as_str());
        let mut command = std::process::Command::new(program);
        command
            .args(self.arguments(port, &tap))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .preserved_fds(vec![tap]);
        let mut command = Command::from(command);
        let child = command.kill_on_drop(true).spawn();
        let child = child.map_err(BenchError::io(format!("starting {program}")))?;
        let to = SocketAddrV4::new(port.address, self.shape.port);
        Ok(Bare { child, begun, to, connector: self.connector.clone() })
    }

    fn arguments(&self, port: &Port, tap: &OwnedFd) -> Vec<String> {
        let Shape { accel, files, memory_mib, capacity, log, .. } = &self.shape;
        let spec = self.network.spec();
        let append = format!(
            "ip={}/{} gw={} port={} capacity={capacity} log=error",
            port.address,
            spec.cidr().prefix_len(),
            spec.gateway(),
            self.shape.port
        );
        let accel: &[&str] = match accel {
            Accel::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Accel::Tcg => &["-accel", "tcg,tb-size=8"],
        };
        let mut args: Vec<String> = ["-machine", MACHINE]
            .into_iter()
            .chain(accel.iter().copied())
            .map(str::to_owned)
            .collect();
        let mut pair = |option: &str, value: String| args.extend([option.to_owned(), value]);
        pair("-m", format!("{memory_mib}M"));
        pair("-smp", "1".to_owned());
        pair("-display", "none".to_owned());
        pair("-serial", format!("file:{log}"));
        pair("-kernel", files.kernel.to_string());
        if let Some(modules) = &files.modules {
            pair("-initrd", modules.to_string());
        }
        pair("-append", append);
        pair("-global", "virtio-mmio.force-legacy=false".to_owned());
        pair("-device", "virtio-rng-device".to_owned());
        pair("-netdev", format!("tap,id=nic,fd={},vhost=off", tap.as_raw_fd()));
        pair("-device", format!("virtio-net-device,netdev=nic,mac={}", port.mac));
        args.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
        args
    }
}

impl Bare {
    /// Waits for the machine's first answer to `POST /` with this body; from the start of its process to the first byte.
    pub(crate) async fn first_answer(&self, body: Bytes) -> Result<(Duration, Answer), BenchError> {
        let stream = self.connect().await?;
        let mut wire = Wire::over(stream, &self.to.to_string()).await?;
        let asked = self.begun.elapsed();
        let answer = wire.post_ok("/", body).await?;
        Ok((asked + answer.first, answer))
    }

    async fn connect(&self) -> Result<TcpStream, BenchError> {
        loop {
            match tokio::time::timeout(SILENT_AGAIN, self.connector.connect(self.to)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    tokio::time::sleep(REFUSED_AGAIN).await;
                }
                Ok(Err(source)) => {
                    return Err(BenchError::Io {
                        action: format!("connecting to {}", self.to),
                        source,
                    });
                }
                Err(_) => {}
            }
            if self.begun.elapsed() > DEADLINE {
                let what = "an answer of a bare machine".to_owned();
                return Err(BenchError::Deadline { what, waited: DEADLINE });
            }
        }
    }

    /// Number of its process, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it and waits until it is gone.
    pub(crate) async fn end(mut self) -> Result<(), BenchError> {
        self.child.kill().await.map_err(BenchError::io("ending a bare machine"))
    }
}
