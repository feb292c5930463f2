//! Why: data first, words when somebody reads them.

use crate::core::{Place, Room};
use crate::scale::Machines;
use skein_model::{ThresholdScope, Timestamp};
use std::fmt;
use std::time::Duration;

/// Why a service shall have as many machines as it shall.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// The load asks for as many as there are.
    Enough,
    /// Nothing runs, nothing waits.
    AtZero,
    /// A job waits and nothing runs: no window delays the first machine.
    FromZero {
        /// Jobs waiting or on their way back to the queue.
        jobs: u32,
    },
    /// The queue is longer than the replication threshold.
    QueueAbove {
        /// Waiting jobs.
        waiting: u32,
        /// Machines they were divided by; 1 when the whole queue counts.
        replicas: u32,
        /// The threshold.
        threshold: u32,
        /// What it counts.
        scope: ThresholdScope,
    },
    /// The queue is not longer than the dereplication threshold, and the rest can hold what is in service.
    QueueAtMost {
        /// Waiting jobs.
        waiting: u32,
        /// The threshold.
        threshold: u32,
        /// What it counts.
        scope: ThresholdScope,
    },
    /// The average number of jobs divided by what one machine shall have.
    Load {
        /// Average over the window.
        average: f64,
        /// Jobs one machine shall have.
        target: f64,
        /// Width of the window.
        window: Duration,
    },
    /// As `Load`, over the short window, and never fewer than there are.
    Burst {
        /// Average over the window.
        average: f64,
        /// Jobs one machine shall have.
        target: f64,
        /// Width of the window.
        window: Duration,
        /// Until then no machine is removed.
        until: Timestamp,
    },
    /// The machines times the ratio of their use to its target.
    Ratio {
        /// Share of the capacity of the ready machines that is used, average over the window.
        usage: f64,
        /// What it shall be.
        target: f64,
        /// Width of the window.
        window: Duration,
    },
    /// The queueing model: so many keep the wait under its objective.
    Model {
        /// Jobs per second that are expected.
        arrivals: f64,
        /// Seconds that a job takes at a machine.
        service: f64,
        /// The objective.
        wait: Duration,
    },
    /// The load asks for another number, but earlier answers of the window hold it.
    Steadied {
        /// What the load asks for.
        asked: u32,
        /// Width of the window.
        window: Duration,
    },
    /// The load asks for more, or fewer, than may come or go at once.
    Limited {
        /// What the load asks for.
        asked: u32,
    },
    /// As decided a moment ago.
    Between {
        /// Next decision.
        until: Timestamp,
    },
    /// Nothing to do for longer than the grace.
    Idle {
        /// For so long.
        idle: Duration,
        /// The grace.
        grace: Duration,
    },
    /// Nothing to do, but not for long enough to go to zero.
    Grace {
        /// Until then the last machine stays.
        until: Timestamp,
    },
    /// Fewer would do, but machines were added or removed a moment ago.
    Cooldown {
        /// Until then none is removed.
        until: Timestamp,
    },
    /// The load asks for fewer.
    Minimum {
        /// The fewest allowed.
        min: u32,
    },
    /// The load asks for more.
    Maximum {
        /// The most allowed.
        max: u32,
        /// What the load asks for.
        asked: u32,
    },
    /// Idle machines beyond what the load asks for.
    Warm {
        /// So many.
        warm: u32,
    },
    /// Machines ended or went with their nodes.
    Replace {
        /// So many are missing.
        missing: u32,
    },
    /// The image or the shape changed.
    Roll {
        /// Machines still to be replaced.
        outdated: u32,
    },
    /// Its node is cordoned: it is to be maintained, or is expected to fail.
    Cordoned,
    /// The processors of its node are used more than they shall be.
    Crowded {
        /// Share that is used.
        used: f64,
        /// Share above which machines leave.
        above: f64,
    },
    /// Its copy on another node serves.
    Moved,
    /// The service was removed.
    Removed,
    /// A machine that drained has nothing left to do.
    Drained,
}

impl Reason {
    /// Why `goal` machines between two decisions of a rule that decides by the clock.
    pub(crate) fn between(goal: u32, machines: Machines, until: Timestamp) -> Self {
        if goal == machines.total() { Self::Enough } else { Self::Between { until } }
    }

    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Enough => "ENOUGH",
            Self::AtZero => "AT_ZERO",
            Self::FromZero { .. } => "FROM_ZERO",
            Self::QueueAbove { .. } => "QUEUE_ABOVE",
            Self::QueueAtMost { .. } => "QUEUE_AT_MOST",
            Self::Load { .. } => "LOAD",
            Self::Burst { .. } => "BURST",
            Self::Ratio { .. } => "RATIO",
            Self::Model { .. } => "MODEL",
            Self::Steadied { .. } => "STEADIED",
            Self::Limited { .. } => "LIMITED",
            Self::Between { .. } => "BETWEEN",
            Self::Idle { .. } => "IDLE",
            Self::Grace { .. } => "GRACE",
            Self::Cooldown { .. } => "COOLDOWN",
            Self::Minimum { .. } => "MINIMUM",
            Self::Maximum { .. } => "MAXIMUM",
            Self::Warm { .. } => "WARM",
            Self::Replace { .. } => "REPLACE",
            Self::Roll { .. } => "ROLL",
            Self::Cordoned => "NODE_CORDONED",
            Self::Crowded { .. } => "NODE_CROWDED",
            Self::Moved => "MOVED",
            Self::Removed => "REMOVED",
            Self::Drained => "DRAINED",
        }
    }
}

/// Seconds with at most three digits after the point, and no more than needed.
struct Secs(Duration);

impl fmt::Display for Secs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < Duration::from_secs(1) {
            return write!(f, "{} ms", self.0.as_micros().div_ceil(1000));
        }
        write!(f, "{} s", (self.0.as_secs_f64() * 10.0).round() / 10.0)
    }
}

/// A reason with the time it is read at, so that "until" becomes "for another".
struct At<'a>(&'a Reason, Timestamp);

impl Reason {
    /// The reason in words, as read at `now`.
    pub fn text(&self, now: Timestamp) -> impl fmt::Display + '_ {
        At(self, now)
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = |until: Timestamp| Secs(until.since(self.1));
        let each = |scope| match scope {
            ThresholdScope::Service => "",
            ThresholdScope::Replica => " each",
        };
        match *self.0 {
            Reason::Enough => f.write_str("as many as the load asks for"),
            Reason::AtZero => f.write_str("nothing to do"),
            Reason::FromZero { jobs } => write!(f, "{jobs} waiting and none ready"),
            Reason::QueueAbove { waiting, replicas, threshold, scope: ThresholdScope::Replica } => {
                let queue = f64::from(waiting) / f64::from(replicas.max(1));
                write!(f, "queue {queue:.1} each > {threshold}")
            }
            Reason::QueueAbove { waiting, threshold, .. } => {
                write!(f, "queue {waiting} > {threshold}")
            }
            Reason::QueueAtMost { waiting, threshold, scope } => {
                write!(f, "queue {waiting} <= {threshold}{}", each(scope))
            }
            Reason::Load { average, target, window } => {
                write!(f, "{average:.1} jobs over {} at {target:.2} each", Secs(window))
            }
            Reason::Burst { average, target, window, until } => write!(
                f,
                "burst of {average:.1} jobs over {} at {target:.2} each, none removed for another {}",
                Secs(window),
                left(until)
            ),
            Reason::Ratio { usage, target, window } => write!(
                f,
                "{:.0} % in use over {} at a target of {:.0} %",
                usage * 100.0,
                Secs(window),
                target * 100.0
            ),
            Reason::Model { arrivals, service, wait } => write!(
                f,
                "{arrivals:.2} jobs/s of {} each wait at most {} by the model",
                Secs(Duration::from_secs_f64(service.clamp(0.0, 1e9))),
                Secs(wait)
            ),
            Reason::Steadied { asked, window } => {
                write!(f, "{asked} would do, earlier answers hold it for {}", Secs(window))
            }
            Reason::Limited { asked } => {
                write!(f, "the load asks for {asked}, only so many come or go at once")
            }
            Reason::Between { until } => {
                write!(f, "as decided; the next decision is in {}", left(until))
            }
            Reason::Idle { idle, grace } => {
                write!(f, "idle for {}, the grace is {}", Secs(idle), Secs(grace))
            }
            Reason::Grace { until } => write!(f, "idle, goes to zero in {}", left(until)),
            Reason::Cooldown { until } => {
                write!(f, "fewer would do, none is removed for another {}", left(until))
            }
            Reason::Minimum { min } => write!(f, "never fewer than {min}"),
            Reason::Maximum { max, asked } => {
                write!(f, "never more than {max}, the load asks for {asked}")
            }
            Reason::Warm { warm } => write!(f, "{warm} kept warm beyond the load"),
            Reason::Replace { missing } => write!(f, "{missing} ended or lost with their node"),
            Reason::Roll { outdated } => {
                write!(f, "{outdated} run an older image or shape and are replaced")
            }
            Reason::Cordoned => f.write_str("its node is cordoned"),
            Reason::Crowded { used, above } => write!(
                f,
                "{:.0} % of its node's processors in use > {:.0} %",
                used * 100.0,
                above * 100.0
            ),
            Reason::Moved => f.write_str("its copy on another node serves"),
            Reason::Removed => f.write_str("the service was removed"),
            Reason::Drained => f.write_str("drained"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeastLoaded(share) => {
                write!(f, "least loaded: {:.0} % reserved", share * 100.0)
            }
            Self::MostFree(mib) => write!(f, "most free: {mib} MiB"),
            Self::Fastest(performance) => write!(f, "fastest: performance {performance}"),
            Self::Spread(count) => write!(f, "spread: has {count} of them"),
            Self::Random => f.write_str("drawn"),
            Self::RoundRobin => f.write_str("its turn"),
        }
    }
}

/// Why wanted machines cannot be had now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitReason {
    /// No node has room for one more.
    NoRoom {
        /// What one machine reserves.
        needs: Room,
        /// The node that comes nearest, and what it has left; none when no node is ready.
        nearest: Option<(usize, Room)>,
        /// Nodes that are ready.
        nodes: u32,
    },
    /// Machines of this revision end before they serve.
    StartsFail {
        /// Failed starts in a row.
        failures: u32,
        /// Stable code of the latest failure.
        code: &'static str,
        /// Tried again then; none while the one that tries is under way.
        retry_at: Option<Timestamp>,
    },
    /// Its image, and with it the shape of its machines, is not known.
    ImageUnknown,
}

impl WaitReason {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoRoom { .. } => "CAPACITY_EXHAUSTED",
            Self::StartsFail { .. } => "STARTS_FAIL",
            Self::ImageUnknown => "IMAGE_UNKNOWN",
        }
    }

    /// The reason in words, as read at `now`; `name` gives the name of a node.
    pub fn text<'a>(&self, now: Timestamp, name: impl Fn(usize) -> &'a str) -> String {
        match *self {
            Self::NoRoom { nodes: 0, .. } => "no node is ready".to_owned(),
            Self::NoRoom { needs, nearest, nodes } => no_room(needs, nearest, nodes, name),
            Self::StartsFail { failures, code, retry_at: Some(at) } => format!(
                "starts fail: {failures} in a row, the last one with {code}; next try in {}",
                Secs(at.since(now))
            ),
            Self::StartsFail { failures, code, retry_at: None } => {
                format!("starts fail: {failures} in a row, the last one with {code}; one is tried")
            }
            Self::ImageUnknown => "its image is not known".to_owned(),
        }
    }
}

fn no_room<'a>(
    needs: Room,
    nearest: Option<(usize, Room)>,
    nodes: u32,
    name: impl Fn(usize) -> &'a str,
) -> String {
    let Some((node, free)) = nearest else { return "no node is ready".to_owned() };
    let mut lacks = vec![];
    if free.memory_mib < needs.memory_mib {
        lacks.push(format!("{} MiB of memory", needs.memory_mib - free.memory_mib));
    }
    if free.cpu_milli < needs.cpu_milli {
        lacks.push(format!("{} thousandths of a core", needs.cpu_milli - free.cpu_milli));
    }
    if free.machines < needs.machines {
        lacks.push("a place for one more machine".to_owned());
    }
    let of = if nodes == 1 { "the only node".to_owned() } else { format!("all {nodes} nodes") };
    format!("no room on {of}; {} comes nearest and lacks {}", name(node), lacks.join(" and "))
}
