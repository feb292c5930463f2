//! The echo service's image, and a network to reach its machine by.

use super::{Host, utf8};
use skein_vmm::{GuestAddress, LaunchSpec, Nic};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;
use tun_rs::{DeviceBuilder, Layer};

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// The echo service, built as any service is. Cargo does nothing when it is up to date.
pub(crate) fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.current_dir(&guest).args(["build", "--release", "-p", "echo", "--target"]);
        build.args(["x86_64-unknown-linux-gnu", "--config", "unikernel/build-flags.toml"]);
        for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"] {
            build.env_remove(variable);
        }
        let output = build.output().expect("cargo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = guest.join("target/x86_64-unknown-linux-gnu/release/echo");
        std::fs::read(path).expect("image")
    })
}

type Task = Box<dyn FnOnce() + Send>;

/// A network namespace with one tap in it. Both are gone when this is dropped and the machine has
/// ended.
pub(crate) struct Network {
    tasks: mpsc::Sender<Task>,
}

impl Network {
    /// `None` where this may not be done.
    pub(crate) fn new() -> Option<(Self, OwnedFd)> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
            eprintln!("passed over: needs root and /dev/net/tun");
            return None;
        }
        let (tasks, inbox) = mpsc::channel::<Task>();
        let (tap_out, tap) = mpsc::channel();
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("namespace");
            let device = DeviceBuilder::new()
                .name("t0")
                .layer(Layer::L2)
                .packet_information(false)
                .offload(true)
                .build_sync()
                .expect("tap");
            ip("link set lo up");
            ip("link set t0 up");
            ip(&format!("addr add {GATEWAY}/24 dev t0"));
            let fd = device.as_fd().try_clone_to_owned().expect("descriptor");
            drop(device);
            tap_out.send(fd).expect("the test waits");
            for task in inbox {
                task();
            }
        });
        let tap = tap.recv_timeout(Duration::from_secs(20)).expect("tap");
        Some((Self { tasks }, tap))
    }

    /// Runs `task` in the namespace.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let task: Task = Box::new(move || drop(reply.send(task())));
        self.tasks.send(task).expect("the namespace's thread lives");
        answer.await.expect("the task is run")
    }

    /// The status and the body of a request to the guest; `None` when the connection breaks.
    pub(crate) async fn get(&self, target: &str) -> Option<(u16, String)> {
        let request = self.send(target).await;
        self.run(move || {
            let (mut stream, mut answer) = (request?, String::new());
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        })
        .await
    }

    /// Sends a request to the guest and waits for no answer.
    pub(crate) async fn send(&self, target: &str) -> Option<TcpStream> {
        let request = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        self.run(move || {
            let timeout = Duration::from_secs(20);
            let guest = SocketAddr::from((GUEST, 80));
            let mut stream = TcpStream::connect_timeout(&guest, timeout).ok()?;
            stream.set_read_timeout(Some(timeout)).ok()?;
            stream.write_all(request.as_bytes()).ok()?;
            Some(stream)
        })
        .await
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip is installed");
    assert!(status.success(), "ip {arguments}");
}

/// A machine of the echo service on that tap.
pub(crate) fn spec(host: &Host, id: &str, tap: OwnedFd) -> LaunchSpec {
    let mut spec = host.spec(id, image());
    spec.nic = Some(Nic { mac: "52:54:00:12:34:56".parse().expect("mac"), mtu: None, tap });
    spec.guest.capacity = 4;
    spec.guest.address =
        Some(GuestAddress { ip: GUEST, prefix: 24, gateway: Some(GATEWAY), dns: None });
    assert!(utf8(host.dir.path()).exists());
    spec
}
