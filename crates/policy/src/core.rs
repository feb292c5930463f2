//! What the decision functions see and say: numbers and indices, no names, so that a simulator can call them
//! millions of times without allocating.

use crate::reason::{Reason, WaitReason};
use serde::{Deserialize, Serialize};
use skein_model::{NodeState, ScalingPolicy, Timestamp};

/// An amount of what a node offers to machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Processor, thousandths of a core.
    pub cpu_milli: u64,
    /// Machines.
    pub machines: u32,
}

impl Room {
    /// What is left of it when `other` is taken; nothing is less than zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            machines: self.machines.saturating_sub(other.machines),
        }
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            machines: self.machines.saturating_add(other.machines),
        }
    }

    /// Whether `other` fits in it.
    pub const fn holds(self, other: Self) -> bool {
        self.memory_mib >= other.memory_mib
            && self.cpu_milli >= other.cpu_milli
            && self.machines >= other.machines
    }
}

/// A node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// Whether machines may be placed on it.
    pub state: NodeState,
    /// What it offers.
    pub capacity: Room,
    /// What its machines have reserved, whatever they use.
    pub reserved: Room,
    /// Relative speed of one core; 1.0 is the reference.
    pub performance: f64,
    /// Share of its processors that is used, as measured, 0 to 1; 0 where nobody measures. Machines may leave a node for it; none is
    /// started by it.
    pub used: f64,
}

impl Node {
    /// What is not reserved.
    pub const fn free(&self) -> Room {
        self.capacity.minus(self.reserved)
    }

    /// Share of its memory that is reserved, 0 to 1; 1 for a node without memory.
    pub fn load(&self) -> f64 {
        if self.capacity.memory_mib == 0 {
            return 1.0;
        }
        self.reserved.memory_mib as f64 / self.capacity.memory_mib as f64
    }
}

/// Where a replica stands, as far as decisions care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaPhase {
    /// Wanted, not listening yet.
    Starting,
    /// Wanted and listening.
    Ready,
    /// Wanted and listening, while its copy starts on another node.
    Moving,
    /// Asked to drain; may still take work.
    DrainAsked,
    /// Takes no more work, finishes what it has.
    Draining,
    /// Asked to stop, or ended: nothing is left to decide.
    Ending,
}

/// A machine of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica {
    /// Index of its node.
    pub node: usize,
    /// Where it stands.
    pub phase: ReplicaPhase,
    /// Jobs it serves now.
    pub in_service: u32,
    /// When it became ready; when it was made, until then.
    pub since: Timestamp,
    /// Whether it runs what the service asks for now.
    pub freshness: Freshness,
}

/// Whether a machine runs what its service asks for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It does.
    Current,
    /// The image or the shape has changed since it was made: it is to be replaced.
    Outdated,
}

/// A machine that ended though nobody asked, other than together with its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// When it was made.
    pub created_at: Timestamp,
    /// When it became ready, if it did.
    pub ready_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Stable code of the cause ([`skein_model::ExitCause::code`]).
    pub code: &'static str,
}

/// What a service has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Jobs in its queue that may be served now. A job whose back-off still runs is not waiting in this sense.
    pub waiting: u32,
    /// Jobs being served.
    pub in_service: u32,
    /// Jobs that its queue has accepted so far, however they ended: rules that look at the rate of arrivals compare two
    /// values of it. A counter that begins anew does no harm; where nobody counts, 0.
    pub accepted: u64,
}

impl Load {
    /// Waiting and in service.
    pub const fn total(self) -> u32 {
        self.waiting.saturating_add(self.in_service)
    }
}

/// A service as the decision functions see it.
#[derive(Debug, Clone, Copy)]
pub struct Service<'a> {
    /// When its machines come and go.
    pub policy: &'a ScalingPolicy,
    /// Jobs one machine serves at a time, at least 1.
    pub capacity: u32,
    /// What one machine reserves.
    pub room: Room,
    /// What it has to do.
    pub load: Load,
    /// Its machines, in a stable order.
    pub replicas: &'a [Replica],
    /// Its machines that ended unasked, as many as are still remembered, in any order.
    pub ended: &'a [Ended],
    /// Which revision of image and shape it asks for.
    pub revision: u64,
}

/// One action for one service.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Move {
    /// Start a machine.
    Boot {
        /// On this node.
        node: usize,
        /// Why one more.
        reason: Reason,
        /// Why there.
        place: Place,
    },
    /// Start a copy of a machine on another node; the machine goes once the copy serves.
    Migrate {
        /// Index of the machine.
        replica: usize,
        /// To this node.
        node: usize,
        /// Why it leaves its own.
        reason: Reason,
        /// Why there.
        place: Place,
    },
    /// Let a machine finish what it has, then go.
    Drain {
        /// Index of the machine.
        replica: usize,
        /// Why.
        reason: Reason,
    },
    /// End a machine that serves nothing.
    Stop {
        /// Index of the machine.
        replica: usize,
        /// Why.
        reason: Reason,
    },
    /// Machines are wanted that cannot be had now.
    Hold {
        /// How many.
        missing: u32,
        /// Why.
        why: WaitReason,
    },
}

/// Why a node was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    /// The smallest share of its memory reserved: this, 0 to 1.
    LeastLoaded(f64),
    /// The most unreserved memory: this, MiB.
    MostFree(u64),
    /// The highest performance: this.
    Fastest(f64),
    /// The fewest machines of the service: so many.
    Spread(u32),
    /// Drawn.
    Random,
    /// Its turn.
    RoundRobin,
}

/// What was decided for one service, and from what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// Machines it shall have.
    pub wanted: u32,
    /// Machines it has: starting and ready, without those that go.
    pub current: u32,
    /// Why so many.
    pub reason: Reason,
    /// What it was decided from.
    pub inputs: Inputs,
    /// When to ask again though nothing happens.
    pub next_at: Option<Timestamp>,
}

/// What a decision was made from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Jobs waiting.
    pub waiting: u32,
    /// Jobs in service.
    pub in_service: u32,
    /// Machines listening.
    pub ready: u32,
    /// Machines starting.
    pub starting: u32,
    /// Machines that finish and go.
    pub draining: u32,
    /// Machines that run an older revision (they are among the ready ones).
    pub outdated: u32,
    /// Machines on lost nodes (they are among none of the others).
    pub lost: u32,
    /// What the rule averages over its window, for those that do: jobs, or jobs in service.
    pub average: Option<f64>,
}

impl Inputs {
    /// Counts machines by phase.
    pub fn count(load: Load, replicas: &[Replica], nodes: &[Node]) -> Self {
        let mut inputs =
            Self { waiting: load.waiting, in_service: load.in_service, ..Self::default() };
        for replica in replicas {
            let lost = nodes[replica.node].state == NodeState::Lost;
            match replica.phase {
                ReplicaPhase::Ending => {}
                _ if lost => inputs.lost += 1,
                ReplicaPhase::Starting => inputs.starting += 1,
                ReplicaPhase::Ready | ReplicaPhase::Moving => {
                    inputs.ready += 1;
                    inputs.outdated += u32::from(replica.freshness == Freshness::Outdated);
                }
                ReplicaPhase::DrainAsked | ReplicaPhase::Draining => inputs.draining += 1,
            }
        }
        inputs
    }
}
