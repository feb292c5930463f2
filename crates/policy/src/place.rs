//! Which node a machine is put on, and which machine goes first.

use crate::core::{Freshness, Node, Place, Replica, ReplicaPhase, Room};
use crate::reason::WaitReason;
use crate::rng::PlanRng;
use skein_model::{NodeState, Placement, Removal, Timestamp};
use std::cmp::Reverse;

/// Chooses a node with room for one machine and reserves it there, so that the next call sees it taken.
///
/// Only reservations count, never measured use. Ties go to the first node, so `nodes` shall be in the order of
/// their names. `of_service` says how many machines of the service a node has, `turn` is the round robin's place.
///
/// # Errors
/// [`WaitReason::NoRoom`] with the node that comes nearest.
pub fn place(
    nodes: &mut [Node],
    needs: Room,
    algorithm: Placement,
    of_service: impl Fn(usize) -> u32,
    turn: &mut u32,
    rng: &mut PlanRng,
) -> Result<(usize, Place), WaitReason> {
    place_on(nodes, (needs, &|_| true), algorithm, of_service, turn, rng)
}

/// As [`place`], among the nodes that suit.
///
/// # Errors
/// As [`place`], of all nodes.
pub(crate) fn place_on(
    nodes: &mut [Node],
    (needs, suits): (Room, &dyn Fn(&Node) -> bool),
    algorithm: Placement,
    of_service: impl Fn(usize) -> u32,
    turn: &mut u32,
    rng: &mut PlanRng,
) -> Result<(usize, Place), WaitReason> {
    let fits =
        |node: &Node| node.state == NodeState::Ready && node.free().holds(needs) && suits(node);
    let candidates = || nodes.iter().enumerate().filter(|(_, node)| fits(node));
    let chosen = match algorithm {
        Placement::LeastLoaded => least(candidates(), |(_, node)| node.load())
            .map(|(at, node)| (at, Place::LeastLoaded(node.load()))),
        Placement::MostFree => candidates()
            .min_by_key(|(_, node)| Reverse(node.free().memory_mib))
            .map(|(at, node)| (at, Place::MostFree(node.free().memory_mib))),
        Placement::Fastest => least(candidates(), |(_, node)| -node.performance)
            .map(|(at, node)| (at, Place::Fastest(node.performance))),
        Placement::Spread => {
            least(candidates(), |(at, node)| f64::from(of_service(*at)) * 2.0 + node.load())
                .map(|(at, _)| (at, Place::Spread(of_service(at))))
        }
        Placement::Random => {
            let count = candidates().count();
            candidates().nth(rng.below(count)).map(|(at, _)| (at, Place::Random))
        }
        Placement::RoundRobin => {
            let from = *turn as usize % nodes.len().max(1);
            let turns = (from..nodes.len()).chain(0..from);
            turns.map(|at| (at, &nodes[at])).find(|(_, node)| fits(node)).map(|(at, _)| {
                *turn = at as u32 + 1;
                (at, Place::RoundRobin)
            })
        }
    };
    match chosen {
        Some((at, why)) => {
            nodes[at].reserved = nodes[at].reserved.plus(needs);
            Ok((at, why))
        }
        None => Err(no_room(nodes, needs)),
    }
}

/// The first with the least score.
fn least<T>(items: impl Iterator<Item = T>, score: impl Fn(&T) -> f64) -> Option<T> {
    items.min_by(|a, b| score(a).total_cmp(&score(b)))
}

fn no_room(nodes: &[Node], needs: Room) -> WaitReason {
    let ready = || nodes.iter().enumerate().filter(|(_, node)| node.state == NodeState::Ready);
    // Nearest: the fewest kinds of room lacking, then the least memory lacking.
    let lack = |node: &Node| {
        let free = node.free();
        let kinds = u32::from(free.memory_mib < needs.memory_mib)
            + u32::from(free.cpu_milli < needs.cpu_milli)
            + u32::from(free.machines < needs.machines);
        (kinds, needs.minus(free).memory_mib, needs.minus(free).cpu_milli)
    };
    let nearest = ready().min_by_key(|(_, node)| lack(node)).map(|(at, node)| (at, node.free()));
    WaitReason::NoRoom { needs, nearest, nodes: ready().count() as u32 }
}

/// Order in which machines go: those that serve nothing yet, then idle ones, then busy ones; in each
/// class those on a cordoned node first, then as the algorithm says.
type RemovalKey = (u8, u32, bool, i64, Reverse<Timestamp>, usize);

/// Appends to `out` the indices of the `count` machines of the given revisions that go first. Machines that
/// already go and those on lost nodes are never among them.
pub fn removals(
    replicas: &[Replica],
    nodes: &[Node],
    kinds: &[Freshness],
    (count, algorithm): (u32, Removal),
    rng: &mut PlanRng,
    out: &mut Vec<usize>,
) {
    if count == 0 {
        return;
    }
    let mut keys: Vec<RemovalKey> = replicas
        .iter()
        .enumerate()
        .filter(|(_, replica)| {
            let serves = matches!(replica.phase, ReplicaPhase::Ready | ReplicaPhase::Moving);
            (serves || replica.phase == ReplicaPhase::Starting)
                && nodes[replica.node].state != NodeState::Lost
                && kinds.contains(&replica.freshness)
        })
        .map(|(at, replica)| removal_key(at, replica, &nodes[replica.node], algorithm, rng))
        .collect();
    keys.sort_unstable();
    out.extend(keys.into_iter().take(count as usize).map(|key| key.5));
}

fn removal_key(
    at: usize,
    replica: &Replica,
    node: &Node,
    algorithm: Removal,
    rng: &mut PlanRng,
) -> RemovalKey {
    let class = match replica.phase {
        ReplicaPhase::Starting => 0,
        _ if replica.in_service == 0 => 1,
        _ => 2,
    };
    let oldest_first = replica.since.as_micros() as i64;
    let by_algorithm = match algorithm {
        Removal::Newest => -oldest_first,
        Removal::Oldest => oldest_first,
        // Millionths: finer than one MiB of a TiB.
        Removal::MostLoadedNode => -(node.load() * 1e6) as i64,
        Removal::SlowestNode => (node.performance * 1e6) as i64,
        Removal::Random => (rng.next_u64() >> 1) as i64,
    };
    let cordoned_first = node.state != NodeState::Cordoned;
    (class, replica.in_service, cordoned_first, by_algorithm, Reverse(replica.since), at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(reserved: u64, capacity: u64, performance: f64, state: NodeState) -> Node {
        Node {
            state,
            capacity: Room { memory_mib: capacity, cpu_milli: 4000, machines: 10 },
            reserved: Room { memory_mib: reserved, cpu_milli: 0, machines: 0 },
            performance,
            used: 0.0,
        }
    }

    fn cloud() -> Vec<Node> {
        vec![
            node(50, 100, 1.0, NodeState::Ready),
            node(300, 1000, 1.0, NodeState::Ready),
            node(80, 100, 4.0, NodeState::Ready),
            node(0, 100, 9.0, NodeState::Cordoned),
            node(0, 9999, 9.0, NodeState::Lost),
        ]
    }

    const NEEDS: Room = Room { memory_mib: 16, cpu_milli: 100, machines: 1 };

    fn check(algorithm: Placement, expect: &[usize]) {
        let (mut nodes, mut turn) = (cloud(), 0);
        let mut placed: Vec<usize> = vec![1, 1];
        let mut rng = PlanRng::from_seed(7);
        for _ in 0..expect.len() {
            let of_service = |at| placed.iter().filter(|on| **on == at).count() as u32;
            let (at, _) =
                place(&mut nodes, NEEDS, algorithm, of_service, &mut turn, &mut rng).unwrap();
            placed.push(at);
        }
        assert_eq!(placed[2..], *expect, "{algorithm:?}");
    }

    #[test]
    fn each_algorithm_chooses_as_it_says_and_sees_what_it_placed() {
        check(Placement::LeastLoaded, &[1, 1, 1, 1]);
        check(Placement::MostFree, &[1, 1, 1, 1]);
        check(Placement::Fastest, &[2, 0, 0, 0, 1]);
        check(Placement::Spread, &[0, 2, 0, 1]);
        check(Placement::RoundRobin, &[0, 1, 2, 0, 1, 0, 1, 1]);
        check(Placement::Random, &[0, 0, 2, 0, 1]);
    }

    #[test]
    fn no_room_says_what_is_missing_where() {
        let mut nodes = cloud();
        let needs = Room { memory_mib: 800, cpu_milli: 5000, machines: 1 };
        let why = place(
            &mut nodes,
            needs,
            Placement::LeastLoaded,
            |_| 0,
            &mut 0,
            &mut PlanRng::from_seed(0),
        )
        .unwrap_err();
        assert_eq!(
            why.text(Timestamp::ZERO, |at| ["a", "b", "c", "d", "e"][at]),
            "no room on all 3 nodes; b comes nearest and lacks 100 MiB of memory and 1000 thousandths of a core"
        );
        assert_eq!(nodes, cloud(), "a refusal reserves nothing");
    }

    fn replica(node: usize, phase: ReplicaPhase, in_service: u32, since: u64) -> Replica {
        let since = Timestamp::from_micros(since);
        Replica { node, phase, in_service, since, freshness: Freshness::Current }
    }

    #[test]
    fn idle_machines_go_before_busy_ones() {
        use ReplicaPhase::*;
        let replicas = [
            replica(0, Ready, 2, 1),
            replica(1, Ready, 0, 2),
            replica(2, Ready, 0, 3),
            replica(0, Starting, 0, 4),
            replica(3, Ready, 0, 5),
            replica(4, Ready, 0, 6),
            replica(0, Draining, 0, 7),
            replica(0, Ready, 1, 8),
        ];
        let check = |removal, expect: &[usize]| {
            let mut out = vec![];
            let rng = &mut PlanRng::from_seed(1);
            removals(&replicas, &cloud(), &[Freshness::Current], (9, removal), rng, &mut out);
            assert_eq!(out, expect, "{removal:?}");
        };
        check(Removal::Newest, &[3, 4, 2, 1, 7, 0]);
        check(Removal::Oldest, &[3, 4, 1, 2, 7, 0]);
        check(Removal::MostLoadedNode, &[3, 4, 2, 1, 7, 0]);
        check(Removal::SlowestNode, &[3, 4, 1, 2, 7, 0]);
    }
}
