//! Machines on their way to other nodes, in a live cloud: each with its copy, which is a machine of its own there.
//!
//! ```text
//!   Migrate ──▶ machine Ready, copy Starting ──▶ both Ready: the machine drains ──▶ the machine goes
//!                        │ either is lost, ends or is outdated
//!                        └──▶ what is left is a machine as any other
//! ```

use crate::core::{Freshness, Node, Replica, ReplicaPhase};
use crate::memory::Moving;
use crate::plan::ServiceView;
use skein_model::{MachineId, NodeState};

/// Sets the phases of machines on their way and of their copies, and forgets those whose way is over. Indices of the machines whose
/// copies serve: they are to drain.
pub(crate) fn follow(
    view: &ServiceView,
    replicas: &mut [Replica],
    nodes: &[Node],
    moving: &mut Vec<Moving>,
) -> Vec<usize> {
    let mut done = vec![];
    moving.retain(|pair| {
        let index = |id: &MachineId| view.replicas.iter().position(|it| it.machine == *id);
        let (Some(machine), Some(copy)) = (index(&pair.machine), index(&pair.copy)) else {
            return false;
        };
        let lasts = |at: usize| {
            nodes[replicas[at].node].state != NodeState::Lost
                && replicas[at].freshness == Freshness::Current
        };
        if !lasts(machine) || !lasts(copy) {
            return false;
        }
        match (replicas[machine].phase, replicas[copy].phase) {
            (ReplicaPhase::Ready, ReplicaPhase::Starting) => {
                replicas[machine].phase = ReplicaPhase::Moving;
                // Nobody counts it until it takes the machine's place.
                replicas[copy].phase = ReplicaPhase::Ending;
                true
            }
            (ReplicaPhase::Ready, ReplicaPhase::Ready) => {
                replicas[machine].phase = ReplicaPhase::DrainAsked;
                done.push(machine);
                true
            }
            _ => false,
        }
    });
    done
}
