//! What earlier clouds left and this one does not take up: nodes beyond its number, and whole folders of clouds that
//! were killed.

use crate::cloud::{CloudConfig, CloudError, open_qemu};
use camino::Utf8Path;
use skein_agent::Parts;
use skein_fabric::{EmbeddedOptions, EmbeddedState, Op, Reservations, State, StateError, Txn};
use skein_model::{MachineId, NodeName};
use skein_net::{NetworkName, NodeNetwork, sweep_tables};
use skein_registry::{Mirror, RecordKey, RegistryError};
use skein_shell::{Tasks, report};
use skein_vmm::{AdoptError, Adopted, Driver};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// How long the mirror's one task may take to end; it only waits for changes.
const MIRROR_BUDGET: Duration = Duration::from_secs(5);

/// Number of a node of this cloud: `n7` is 7. Anything else in the state folder is no node.
fn number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix('n')?;
    let number = digits.parse().ok()?;
    // Neither n07 nor n+7 is a name that a cloud gives.
    (format!("n{number}") == name && number > 0).then_some(number)
}

/// The nodes whose folders are in a state folder.
fn folders(state: &Utf8Path) -> BTreeSet<NodeName> {
    let Ok(entries) = state.read_dir_utf8() else { return BTreeSet::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_owned());
    names.filter(|name| number(name).is_some()).filter_map(|name| name.parse().ok()).collect()
}

/// Ends and forgets the nodes that an earlier cloud on this folder had and this one has not: their machines go, and the
/// leader replaces them elsewhere. What fails is logged and tried again at the next start.
pub(crate) async fn remove_nodes(config: &CloudConfig, cloud: &str, parts: &Parts) {
    let nodes = config.nodes;
    let beyond = move |node: &NodeName| number(node.as_str()).is_some_and(|n| n > nodes);
    for node in folders(&config.state).into_iter().filter(beyond) {
        info!(node.id = %node, "a node of an earlier cloud is removed");
        remove_node(&config.state, &node, cloud, parts.driver.as_ref()).await;
    }
    let kept = folders(&config.state);
    remove_tables(cloud, move |node| kept.contains(node) || !beyond(node)).await;
    if let Err(error) = forget_nodes(&parts.state, beyond).await {
        warn!(error = %report::chain(&error), "records of earlier nodes stay");
    }
}

/// Removes the rules in the host's namespace of the cloud's nodes that are no more.
async fn remove_tables(cloud: &str, stays: impl Fn(&NodeName) -> bool + Send + 'static) {
    let Ok(group) = cloud.parse::<NetworkName>() else { return };
    let prefix = format!("{cloud}-");
    let stays = move |table: &NetworkName| {
        let node = table.as_str().strip_prefix(&prefix).and_then(|node| node.parse().ok());
        node.is_some_and(|node| stays(&node))
    };
    if let Err(error) = sweep_tables(&group, stays).await {
        warn!(network.name = %group, error = %report::chain(&error), "tables of earlier nodes stay");
    }
}

/// Ends a node's machines, and removes its folder and its network.
pub(crate) async fn remove_node(
    state: &Utf8Path,
    node: &NodeName,
    cloud: &str,
    driver: &dyn Driver,
) {
    let folder = state.join(node.as_str());
    let Ok(entries) = folder.read_dir_utf8() else { return };
    let mut all_ended = true;
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        all_ended &= end_machine(entry.path(), driver).await;
    }
    if !all_ended {
        // The folder is the only trace of a machine that still runs.
        return;
    }
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        warn!(node.id = %node, error = %error, "the node's folder stays");
    }
    let Ok(group) = format!("{cloud}-{node}").parse::<NetworkName>() else { return };
    // Its machines have ended, so that nothing holds a port in them.
    if let Err(error) = NodeNetwork::sweep(&group).await {
        warn!(network.name = %group, error = %report::chain(&error), "the node's networks stay");
    }
}

/// Ends the machine of a run directory; whether none runs there now.
async fn end_machine(folder: &Utf8Path, driver: &dyn Driver) -> bool {
    match driver.adopt(folder).await {
        Ok(Adopted::Running(machine)) => match machine.kill().await {
            Ok(_) => true,
            Err(error) => {
                warn!(machine.id = %machine.id(), error = %report::chain(&error), "a machine could not be ended");
                false
            }
        },
        Ok(Adopted::Ended { .. }) | Err(AdoptError::NoMachine { .. }) => true,
        Err(error) => {
            warn!(folder = %folder, error = %report::chain(&error), "a machine could not be found again");
            false
        }
    }
}

/// Deletes the records of nodes and of their machines, and takes back what those had reserved. A node without a record
/// is one that the leader does not wait for.
async fn forget_nodes(
    state: &Arc<dyn State>,
    beyond: impl Fn(&NodeName) -> bool,
) -> Result<(), RegistryError> {
    let tasks = Tasks::new();
    let mirror = Mirror::start(state.clone(), &tasks).await?;
    let (nodes, machines) = mirror.read(|view| {
        let nodes: Vec<NodeName> = view.nodes.keys().filter(|node| beyond(node)).cloned().collect();
        let records = view.machines.values().map(|stored| &stored.value);
        let machines: Vec<(MachineId, NodeName)> = records
            .filter(|record| beyond(&record.node))
            .map(|record| (record.id.clone(), record.node.clone()))
            .collect();
        (nodes, machines)
    });
    tasks.shutdown(MIRROR_BUDGET).await;
    Ok(delete_records(state, &nodes, &machines).await?)
}

async fn delete_records(
    state: &Arc<dyn State>,
    nodes: &[NodeName],
    machines: &[(MachineId, NodeName)],
) -> Result<(), StateError> {
    let reservations = Reservations::new(state.clone());
    for (id, node) in machines {
        // First, as the leader does: a record is what tells of a reservation.
        reservations.release(&format!("node/{node}"), id.as_str()).await?;
        let txn = Txn::new()
            .then(Op::delete(&RecordKey::Machine(id.clone()).key()))
            .then(Op::delete(&RecordKey::Status(id.clone()).key()));
        state.txn(txn).await?;
    }
    for node in nodes {
        let txn = Txn::new()
            .then(Op::delete(&RecordKey::Node(node.clone()).key()))
            .then(Op::delete(&RecordKey::Alive(node.clone()).key()));
        state.txn(txn).await?;
    }
    Ok(())
}

/// Removes the state folder of a cloud that was killed, with its machines and networks. Returns false, and touches
/// nothing, when a living process has that cloud. For folders that nobody will start a cloud on again.
///
/// # Errors
/// [`CloudError`]; it may be repeated.
pub async fn remove_abandoned(folder: &Utf8Path) -> Result<bool, CloudError> {
    let failed = |source| CloudError::Folder { path: folder.to_owned(), source };
    let state = folder.join("state");
    // Held until the folder is gone, so that no cloud starts on it meanwhile.
    let held = match EmbeddedState::open(state.as_std_path(), EmbeddedOptions::default()) {
        Ok(held) => Some(held),
        Err(StateError::Locked { .. }) => return Ok(false),
        // A state that is broken has no owner either.
        Err(error) => {
            warn!(folder = %folder, error = %report::chain(&error), "an abandoned state cannot be read");
            None
        }
    };
    if let Ok(cloud) = std::fs::read_to_string(folder.join("cloud.id")) {
        let driver = open_qemu(&CloudConfig::new(folder)).await?;
        for node in folders(folder) {
            remove_node(folder, &node, cloud.trim(), &driver).await;
        }
        driver.detach().await;
        let left = folders(folder);
        remove_tables(cloud.trim(), move |node| left.contains(node)).await;
    }
    if !folders(folder).is_empty() {
        return Err(failed(io::Error::other("a machine below it could not be ended")));
    }
    std::fs::remove_dir_all(folder).map_err(failed)?;
    drop(held);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_cloud_gives_are_nodes() {
        let check = |name, expect| assert_eq!(number(name), expect, "{name}");
        check("n1", Some(1));
        check("n100", Some(100));
        check("n0", None);
        check("n07", None);
        check("n+7", None);
        check("n", None);
        check("nodes", None);
        check("images", None);
    }
}
