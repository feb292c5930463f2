//! Nodes that encrypt what they send each other: one segment all the same, and secrets that stay where they are.

use anyhow::{Context, Result, ensure};
use camino::Utf8Path;
use skein_api::{Code, GroupPut};
use skein_model::{Direction, Encryption, Peer, Placement, Protocol, RuleLog, RuleSpec};
use skein_tests::{Setup, World, run, service, until};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

/// Everything may come in.
async fn open_group(world: &World) -> Result<()> {
    let rule = RuleSpec {
        direction: Direction::Ingress,
        protocol: Protocol::Any,
        ports: None,
        peer: Peer::Any,
        log: RuleLog::Off,
    };
    let put = GroupPut { name: "open".to_owned(), description: String::new(), rules: vec![rule] };
    world.client().create_group(&put).await?;
    Ok(())
}

/// Whether a machine takes connections from a node's end of the network.
fn reaches(namespace: &str, to: Ipv4Addr) -> bool {
    let path = format!("/run/netns/{namespace}");
    let dial = move || -> Result<()> {
        nix::sched::setns(std::fs::File::open(path)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
        TcpStream::connect_timeout(&(to, 80).into(), Duration::from_secs(2))?;
        Ok(())
    };
    // A thread of its own: a namespace belongs to a thread.
    std::thread::spawn(dial).join().is_ok_and(|dialled| dialled.is_ok())
}

/// The files below a folder that hold these bytes.
fn holders(folder: &Utf8Path, secret: &[u8]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in folder.read_dir_utf8()? {
        let path = entry?.into_path();
        if path.is_dir() {
            found.extend(holders(&path, secret)?);
        } else if path.is_file() {
            let bytes = std::fs::read(&path)?;
            let held = bytes.windows(secret.len()).any(|part| part == secret);
            found.extend(held.then(|| path.to_string()));
        }
    }
    Ok(found)
}

#[test]
fn nodes_that_encrypt_are_one_segment_and_keep_their_secrets() {
    let setup = Setup { nodes: 2, encryption: Encryption::WireGuard, ..Setup::default() };
    run(setup, async |world| {
        open_group(world).await?;
        let spec = service("echo", |s| {
            s.network.groups = vec!["open".parse().expect("a name")];
            s.scaling.replicas_min = 2;
            s.scaling.placement = Placement::Spread;
        });
        world.serve(&spec).await?;
        let machines = world.ready("echo", 2).await?;
        let there = machines.iter().find(|m| m.node == "n2").context("a machine on n2")?;
        let there: Ipv4Addr = there.ip.as_ref().context("an address")?.parse()?;
        let spaces = world.leaks().namespaces();
        let of = |part: &str| {
            let prefix = format!("skein-{}-{part}", world.network("n1"));
            spaces.iter().find(|name| name.starts_with(&prefix)).cloned().context("a namespace")
        };
        let inside = of("v")?;
        of("wire")?;
        let reached = async || Ok(reaches(&inside, there).then_some(()));
        until("a machine of the other node", reached).await?;
        // Each node has a key of its own, and its secret is in one file that only its owner reads.
        let nodes = world.client().nodes().await?;
        let keys: Vec<_> = nodes.iter().filter_map(|node| node.wire_key.clone()).collect();
        ensure!(keys.len() == 2 && keys[0] != keys[1], "{keys:?}");
        ensure!(nodes[0].wire_address.as_deref() == Some("100.126.0.1"), "{:?}", nodes[0]);
        let path = world.folder().join("n1/wire.key");
        let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{mode:o}");
        let secret = std::fs::read(&path)?;
        ensure!(holders(world.folder(), &secret)? == [path.to_string()], "copies of a secret");
        // Another key, while they talk.
        let renewed = world.client().renew_node_key("n1").await?;
        ensure!(renewed.wire_key.as_ref() != Some(&keys[0]), "{renewed:?}");
        ensure!(std::fs::read(&path)? != secret, "the secret is the old one");
        until("a machine of the other node again", reached).await?;
        // A node comes back under the key that it has.
        world.cloud_mut().crash_agent("n2").await;
        world.cloud_mut().restart_agent("n2").await?;
        until("a machine of the node that came back", reached).await?;
        let again = world.client().nodes().await?;
        ensure!(again[1].wire_key.as_ref() == Some(&keys[1]), "{:?}", again[1]);
        Ok(())
    });
}

#[test]
fn a_node_that_does_not_encrypt_has_no_key() {
    run(Setup::default(), async |world| {
        ensure!(world.client().nodes().await?[0].wire_key.is_none());
        let refused = world.client().renew_node_key("n1").await;
        ensure!(refused.is_err_and(|error| error.code() == Some(Code::NotEncrypted)));
        let unknown = world.client().renew_node_key("n9").await;
        ensure!(unknown.is_err_and(|error| error.code() == Some(Code::NodeUnknown)));
        Ok(())
    });
}
