//! What the machines of each node have reserved.
//!
//! The record of a machine *is* its reservation: it is written by the leader alone, guarded by its epoch, and the leader
//! plans again only when it has seen what it wrote. So nothing is oversold, and there is no second number that could drift
//! from the records. Measured use never counts.

use skein_model::{NodeName, PhaseName};
use skein_policy::Room;
use skein_registry::View;
use std::collections::BTreeMap;

/// What the machines of each node have reserved: all that are not gone, whatever they use.
pub(crate) fn reserved(view: &View) -> BTreeMap<NodeName, Room> {
    let mut nodes: BTreeMap<NodeName, Room> = BTreeMap::new();
    for stored in view.machines.values() {
        let record = &stored.value;
        let status = view.statuses.get(&record.id).map(|status| &*status.value);
        if crate::observe::phase(status) == PhaseName::Gone {
            continue;
        }
        let room = Room {
            memory_mib: record.memory.get().into(),
            cpu_milli: record.cpu_milli.into(),
            machines: 1,
        };
        let node = nodes.entry(record.node.clone()).or_default();
        *node = node.plus(room);
    }
    nodes
}
