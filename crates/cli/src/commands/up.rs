//! `skein up`.

use crate::{Context, access};
use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use skein_cloud::{Cloud, CloudConfig, NodePlace};
use skein_model::Encryption;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Run a cloud on this machine: server and nodes in one process, until Ctrl-C
///
/// Machines are ended with the cloud. With --keep they go on, and the next `skein up` on the same folder takes them up again;
/// so they do when the cloud is killed.
#[derive(clap::Args)]
pub(crate) struct Up {
    #[command(flatten)]
    shape: Shape,
    /// Let machines go on when the cloud stops
    #[arg(long)]
    keep: bool,
    /// Folder of the sockets on which programs of this host ask for the link (`skein link run`)
    #[arg(long, value_name = "DIR", default_value = skein_link::place::FOLDER, conflicts_with = "no_link")]
    link_dir: Utf8PathBuf,
    /// No link for programs of this host
    #[arg(long)]
    no_link: bool,
}

/// What the cloud is like
#[derive(clap::Args, Clone)]
pub(crate) struct Shape {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) nodes: u32,
    /// Put a node into a network namespace of this host, at an address there that the others reach: instead of --nodes, once for
    /// each node. Makes one machine behave like several hosts
    #[arg(long = "node-in", value_name = "NAMESPACE=ADDRESS", value_parser = place, conflicts_with = "nodes")]
    places: Vec<NodePlace>,
    /// Where the API listens
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// Who runs the guests' instructions; KVM is tried unless given
    #[arg(long, value_parser = accel, value_name = "kvm|tcg")]
    accel: Option<skein_vmm::AccelChoice>,
    /// Encrypt what nodes send each other for their machines, by WireGuard: the kernel's, or else wireguard-go
    #[arg(long)]
    encrypt: bool,
    /// QEMU's program
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<Utf8PathBuf>,
}

/// A name as `ip netns` gives it, or a path, and an address.
fn place(text: &str) -> Result<NodePlace, String> {
    let (name, address) = text.split_once('=').ok_or("a place is NAMESPACE=ADDRESS")?;
    let namespace = if name.contains('/') {
        name.into()
    } else {
        std::path::Path::new("/run/netns").join(name)
    };
    let address = address.parse().map_err(|_| format!("{address} is no IPv4 address"))?;
    Ok(NodePlace { namespace, address })
}

pub(crate) fn accel(text: &str) -> Result<skein_vmm::AccelChoice, String> {
    match text {
        "kvm" => Ok(skein_vmm::AccelChoice::Kvm),
        "tcg" => Ok(skein_vmm::AccelChoice::Tcg),
        _ => Err("kvm or tcg".to_owned()),
    }
}

impl Shape {
    /// How many nodes.
    pub(crate) fn count(&self) -> u32 {
        let places = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        if places == 0 { self.nodes } else { places }
    }

    /// The configuration of a cloud on `state`.
    pub(crate) fn config(&self, state: impl Into<Utf8PathBuf>) -> CloudConfig {
        CloudConfig {
            nodes: self.count(),
            places: self.places.clone(),
            listen: self.listen,
            accel: self.accel.unwrap_or_default(),
            qemu: self.qemu.clone(),
            encryption: if self.encrypt { Encryption::WireGuard } else { Encryption::Off },
            ..CloudConfig::new(state)
        }
    }
}

impl Up {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let state = Utf8PathBuf::from_path_buf(context.state.clone())
            .map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))?;
        let state = camino::absolute_utf8(&state).context("the state folder")?;
        let mut stop = Stop::new()?;
        let link = (!self.no_link).then(|| camino::absolute_utf8(&self.link_dir)).transpose();
        let link = link.context("the folder of the link")?;
        let cloud = Cloud::start(CloudConfig { link, ..self.shape.config(&state) }).await?;
        let target = cloud.target();
        let file = access::write(state.as_std_path(), &target)?;
        let told = access::told(&target, &file, std::io::stderr().is_terminal());
        eprintln!("{told}");
        eprintln!("nodes          {}; Ctrl-C stops", self.shape.count());
        stop.wait().await;
        eprintln!("stopping");
        if self.keep {
            cloud.stop().await;
        } else {
            cloud.stop_all().await;
        }
        let _ = std::fs::remove_file(file);
        Ok(ExitCode::SUCCESS)
    }
}

/// Ctrl-C, a request to end, or a terminal that was closed.
pub(crate) struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stop {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}     // cancel-safe: signals are kept
            _ = self.terminate.recv() => {}     // as above
            _ = self.hangup.recv() => {}        // as above
        }
    }
}
