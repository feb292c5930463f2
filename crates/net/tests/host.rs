//! What a host without the means is told. Needs root, to give up what root has on one thread.

mod common;

use anyhow::{Context, Result, ensure};
use common::Scratch;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use skein_net::{NetError, NodeNetwork, check_host};

/// Runs `body` on a thread of its own, whose children inherit what it gave up.
fn on_a_thread<T: Send + 'static>(body: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    std::thread::spawn(body).join().expect("the thread does not panic")
}

fn try_to_open(scratch: &Scratch) -> impl FnOnce() -> Result<(String, NetError)> + use<> {
    let spec = scratch.spec();
    let port = scratch.port(0);
    move || {
        let checked = check_host().err().context("the check fails")?;
        let text = format!("{}: {checked}", checked.code());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let opened = runtime.block_on(async { NodeNetwork::open(spec).await?.plug(port).await });
        Ok((text, opened.err().context("plugging fails")?))
    }
}

#[test]
fn without_capabilities_it_says_how_to_get_them() -> Result<()> {
    let scratch = Scratch::new("caps");
    let attempt = try_to_open(&scratch);
    let (checked, error) = on_a_thread(move || {
        let mut sets = capabilities(None)?;
        sets.effective.remove(CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN);
        sets.permitted.remove(CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN);
        set_capabilities(None, sets)?;
        attempt()
    })?;
    ensure!(checked.starts_with("NOT_ROOT: ") && checked.contains("run as root"), "{checked}");
    ensure!(error.code() == "NOT_ROOT", "{error}");
    ensure!(!scratch.file().exists());
    Ok(())
}

#[test]
fn without_a_tun_device_it_says_how_to_get_one() -> Result<()> {
    let scratch = Scratch::new("tun");
    let attempt = try_to_open(&scratch);
    let (checked, error) = on_a_thread(move || {
        // An empty /dev/net, for this thread and its children only.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        mount(Some("none"), "/dev/net", Some("tmpfs"), MsFlags::empty(), none)?;
        attempt()
    })?;
    ensure!(checked.starts_with("TUN_MISSING: ") && checked.contains("modprobe tun"), "{checked}");
    ensure!(error.code() == "TUN_MISSING", "{error}");
    Ok(())
}

/// The kernels that tests run on are newer than what nodes of one host need.
#[test]
fn nodes_may_share_this_host() {
    skein_net::check_shared_host().expect("Linux 6.5 or newer");
}

#[test]
fn who_cannot_encrypt_says_so() -> Result<()> {
    // On a kernel that can, there is nothing to say.
    let checked = on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        for folder in ["/usr/bin", "/usr/local/bin"] {
            mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), none)?;
        }
        Ok(skein_net::check_encryption())
    })?;
    let Err(error) = checked else { return Ok(()) };
    ensure!(error.code() == "WIREGUARD_MISSING", "{error}");
    ensure!(error.to_string().contains("apt install wireguard-go"), "{error}");
    Ok(())
}
