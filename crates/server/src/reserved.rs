//! What machines reserve of their nodes: promised in the transaction that makes a machine's record, taken back when the
//! machine is gone. Measured use never counts.
//!
//! The policy plans with the sums of the records that the leader sees; the reservation in the store is what makes
//! overselling impossible, whoever else may place machines at the same time.

use skein_fabric::{Amounts, Reservations, StateError};
use skein_model::{MachineId, MachineRecord, NodeName, NodeRecord, PhaseName};
use skein_policy::Room;
use skein_registry::View;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the machines of each node have reserved: all that are not gone, whatever they use.
pub(crate) fn reserved(view: &View) -> BTreeMap<NodeName, Room> {
    let mut nodes: BTreeMap<NodeName, Room> = BTreeMap::new();
    for stored in view.machines.values() {
        let record = &stored.value;
        let status = view.statuses.get(&record.id).map(|status| &*status.value);
        if crate::observe::phase(status) == PhaseName::Gone {
            continue;
        }
        let Amounts { memory_mib, cpu_milli, machines: _ } = amounts(record);
        let node = nodes.entry(record.node.clone()).or_default();
        *node = node.plus(Room { memory_mib, cpu_milli, machines: 1 });
    }
    nodes
}

/// What one machine reserves.
pub(crate) fn amounts(record: &MachineRecord) -> Amounts {
    Amounts {
        memory_mib: record.memory.get().into(),
        cpu_milli: record.cpu_milli.into(),
        machines: 1,
    }
}

/// The pool of a node.
pub(crate) fn pool(node: &NodeName) -> String {
    format!("node/{node}")
}

/// The leader's view of the pools: what it has set and released already, so that it does not ask the store each time.
#[derive(Debug)]
pub(crate) struct Pools {
    pub(crate) reservations: Reservations,
    capacities: BTreeMap<NodeName, Amounts>,
    released: BTreeSet<MachineId>,
}

impl Pools {
    pub(crate) fn new(reservations: Reservations) -> Self {
        Self { reservations, capacities: BTreeMap::new(), released: BTreeSet::new() }
    }

    /// Sets the capacity of each node's pool to what the node offers.
    pub(crate) async fn set_capacities(
        &mut self,
        nodes: Vec<Arc<NodeRecord>>,
    ) -> Result<(), StateError> {
        for node in nodes {
            let capacity = Amounts {
                memory_mib: node.memory_mib,
                cpu_milli: node.cpu.0.into(),
                machines: node.machines_max.into(),
            };
            if self.capacities.get(&node.name) != Some(&capacity) {
                self.reservations.set_capacity(&pool(&node.name), capacity).await?;
                self.capacities.insert(node.name.clone(), capacity);
            }
        }
        Ok(())
    }

    /// Takes back what machines that are gone had reserved. `gone` are all whose records still exist.
    pub(crate) async fn release(
        &mut self,
        gone: Vec<(MachineId, NodeName)>,
    ) -> Result<(), StateError> {
        self.released.retain(|id| gone.iter().any(|(other, _)| other == id));
        for (id, node) in gone {
            if !self.released.contains(&id) {
                self.reservations.release(&pool(&node), id.as_str()).await?;
                self.released.insert(id);
            }
        }
        Ok(())
    }
}
