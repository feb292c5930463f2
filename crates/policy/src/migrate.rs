//! Which machines leave their nodes, and for where: away from nodes that are cordoned and from crowded ones.

use crate::core::{Freshness, Move, Node, Place, Replica, ReplicaPhase, Service};
use crate::memory::ServiceMemory;
use crate::place::place_on;
use crate::reason::{Reason, WaitReason};
use crate::rng::PlanRng;
use crate::scale::Earliest;
use skein_model::{Migration, NodeState, Timestamp};

/// A machine that shall leave its node.
#[derive(Debug, Clone, Copy)]
struct Leaver {
    replica: usize,
    reason: Reason,
}

/// Appends a move for each machine that leaves its node now; says why one on a cordoned node cannot. `begun` is where the moves of
/// this service begin in `out`.
pub(crate) fn migrate(
    service: &Service<'_>,
    nodes: &mut [Node],
    (memory, now): (&mut ServiceMemory, Timestamp),
    (rng, next): (&mut PlanRng, &mut Earliest),
    (begun, out): (usize, &mut Vec<Move>),
) -> Option<WaitReason> {
    let rule = service.policy.migration.as_ref()?;
    let on_way = service.replicas.iter().filter(|it| it.phase == ReplicaPhase::Moving).count();
    let free = (rule.at_once as usize).saturating_sub(on_way);
    let goes = |replica: usize| {
        out[begun..].iter().any(|step| match step {
            Move::Drain { replica: gone, .. } | Move::Stop { replica: gone, .. } => {
                *gone == replica
            }
            Move::Boot { .. } | Move::Migrate { .. } | Move::Hold { .. } => false,
        })
    };
    let mut leavers = leavers(service.replicas, nodes, rule, (now, next));
    leavers.retain(|leaver| !goes(leaver.replica));
    let mut stuck = None;
    for leaver in leavers.into_iter().take(free) {
        match target(service, nodes, (rule, leaver.reason), memory, rng) {
            Ok((node, place)) => {
                let Leaver { replica, reason } = leaver;
                out.push(Move::Migrate { replica, node, reason, place });
            }
            // That no node is calm enough is no news; that a node cannot be left is.
            Err(why) if leaver.reason == Reason::Cordoned => stuck = stuck.or(Some(why)),
            Err(_) => {}
        }
    }
    stuck
}

/// Machines that shall leave, most urgent first: from cordoned nodes, then from the most crowded ones; idle ones before busy ones.
fn leavers(
    replicas: &[Replica],
    nodes: &[Node],
    rule: &Migration,
    (now, next): (Timestamp, &mut Earliest),
) -> Vec<Leaver> {
    let mut found = vec![];
    for (at, replica) in replicas.iter().enumerate() {
        let stays =
            replica.phase != ReplicaPhase::Ready || replica.freshness == Freshness::Outdated;
        if stays {
            continue;
        }
        let node = &nodes[replica.node];
        match node.state {
            NodeState::Cordoned if rule.leave_cordoned => {
                found.push(Leaver { replica: at, reason: Reason::Cordoned });
            }
            NodeState::Ready | NodeState::Cordoned => {
                let Some(above) = rule.leave_above.filter(|above| node.used > *above) else {
                    continue;
                };
                let until = replica.since + rule.stay;
                if until > now {
                    next.add(until, now);
                } else {
                    let reason = Reason::Crowded { used: node.used, above };
                    found.push(Leaver { replica: at, reason });
                }
            }
            NodeState::Lost => {}
        }
    }
    found.sort_by(|a, b| {
        let key = |leaver: &Leaver| {
            let replica = &replicas[leaver.replica];
            let used = nodes[replica.node].used;
            (leaver.reason != Reason::Cordoned, -used, replica.in_service)
        };
        let (a, b) = (key(a), key(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2))
    });
    found
}

/// Where a machine goes; reserves there.
fn target(
    service: &Service<'_>,
    nodes: &mut [Node],
    (rule, reason): (&Migration, Reason),
    memory: &mut ServiceMemory,
    rng: &mut PlanRng,
) -> Result<(usize, Place), WaitReason> {
    let of_service = |at: usize| {
        let live = service.replicas.iter().filter(|replica| {
            let counts = matches!(
                replica.phase,
                ReplicaPhase::Starting | ReplicaPhase::Ready | ReplicaPhase::Moving
            );
            replica.node == at && counts
        });
        live.count() as u32
    };
    let suits = |node: &Node| reason == Reason::Cordoned || node.used <= rule.go_below;
    let algorithm = service.policy.placement;
    place_on(nodes, (service.room, &suits), algorithm, of_service, &mut memory.turn, rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Load, Room};
    use skein_model::ScalingPolicy;
    use std::time::Duration;

    /// A node of a state, used to a share, with room for so many machines.
    fn node(state: NodeState, used: f64, machines: u32) -> Node {
        let capacity = Room { memory_mib: 1000, cpu_milli: 8000, machines };
        Node { state, capacity, reserved: Room::default(), performance: 1.0, used }
    }

    /// A machine on a node with so many jobs, ready since second 10.
    fn replica(node: usize, phase: ReplicaPhase, in_service: u32) -> Replica {
        let since = Timestamp::from_micros(10_000_000);
        Replica { node, phase, in_service, since, freshness: Freshness::Current }
    }

    /// What leaves at a second, as (machine, node), and whether one is stuck.
    fn check(
        migration: Migration,
        nodes: &[Node],
        replicas: &[Replica],
        secs: u64,
        expect: (&[(usize, usize)], bool),
    ) {
        let policy = ScalingPolicy { migration: Some(migration), ..ScalingPolicy::default() };
        let service = Service {
            policy: &policy,
            capacity: 1,
            room: Room { memory_mib: 16, cpu_milli: 100, machines: 1 },
            load: Load::default(),
            replicas,
            ended: &[],
            revision: 0,
        };
        let (mut nodes, mut out) = (nodes.to_vec(), vec![]);
        let mut memory = ServiceMemory::default();
        let (mut rng, mut next) = (PlanRng::from_seed(1), Earliest::default());
        let now = Timestamp::from_micros(secs * 1_000_000);
        let random = (&mut rng, &mut next);
        let stuck =
            migrate(&service, &mut nodes, (&mut memory, now), random, (0, &mut out)).is_some();
        let moves: Vec<(usize, usize)> = out
            .iter()
            .map(|step| match step {
                Move::Migrate { replica, node, .. } => (*replica, *node),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!((&moves[..], stuck), expect, "{migration:?} at {secs} s");
    }

    #[test]
    fn machines_leave_cordoned_nodes_for_those_with_room() {
        use NodeState::{Cordoned, Lost, Ready};
        use ReplicaPhase as P;
        let rule = Migration { at_once: 2, ..Migration::default() };
        let nodes = [node(Cordoned, 0.0, 9), node(Ready, 0.0, 1), node(Ready, 0.9, 9)];
        let two = [replica(0, P::Ready, 1), replica(0, P::Ready, 0), replica(0, P::Starting, 0)];
        check(rule, &nodes, &two, 11, (&[(1, 1), (0, 2)], false));
        let one = [replica(0, P::Moving, 0), two[0], two[1]];
        check(rule, &nodes, &one, 11, (&[(2, 1)], false));
        let never = Migration { leave_cordoned: false, ..rule };
        check(never, &nodes, &two, 11, (&[], false));
        let full = [node(Cordoned, 0.0, 9), node(Ready, 0.0, 0), node(Lost, 0.0, 9)];
        check(rule, &full, &two, 11, (&[], true));
    }

    #[test]
    fn machines_leave_crowded_nodes_for_calm_ones_after_a_while() {
        use NodeState::{Cordoned, Ready};
        use ReplicaPhase as P;
        let rule = Migration {
            leave_above: Some(0.8),
            go_below: 0.5,
            at_once: 1,
            stay: Duration::from_secs(30),
            ..Migration::default()
        };
        let nodes =
            [node(Ready, 0.85, 9), node(Ready, 0.95, 9), node(Ready, 0.6, 9), node(Ready, 0.5, 9)];
        let replicas = [replica(0, P::Ready, 0), replica(1, P::Ready, 1), replica(2, P::Ready, 0)];
        check(rule, &nodes, &replicas, 39, (&[], false));
        check(rule, &nodes, &replicas, 40, (&[(1, 3)], false));
        check(rule, &nodes[..3], &replicas, 40, (&[], false));
        let mut cordoned = nodes;
        cordoned[0].state = Cordoned;
        check(rule, &cordoned, &replicas, 11, (&[(0, 1)], false));
    }
}
