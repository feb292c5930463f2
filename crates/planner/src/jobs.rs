//! Where the requests of a history stand.
//!
//! Simulated and live histories tell the same. But several parts of a cloud write a live one, each what it sees: a request may be
//! seen to begin before it is seen to be accepted, and nobody says of what was served on a node that fails that it waits again.
//! What is counted here is right at every moment all the same, and never below nothing.

use skein_model::{Event, EventKind, JobId};
use std::collections::{BTreeMap, BTreeSet};

/// A machine and its node; empty where a history does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) machine: String,
    pub(crate) node: String,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand<'a> {
    /// Nobody has told of it.
    Unknown,
    /// It waits.
    Waits,
    /// It is served.
    Runs(&'a Place),
    /// It is answered, given up or withdrawn.
    Over,
}

/// A request that waits, or is served at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Open {
    service: String,
    place: Option<Place>,
}

impl Open {
    fn stand(&self) -> Stand<'_> {
        self.place.as_ref().map_or(Stand::Waits, Stand::Runs)
    }
}

/// The requests of a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Jobs {
    open: BTreeMap<JobId, Open>,
    over: BTreeSet<JobId>,
    /// Copies of machines that have moved, by those machines.
    copies: BTreeMap<String, Place>,
}

impl Jobs {
    /// Lets an event happen. `turns` is told of each request that stands elsewhere for it: its service, where it stood and where it
    /// stands. How many there were.
    pub(crate) fn apply(
        &mut self,
        event: &Event,
        mut turns: impl FnMut(&str, Stand<'_>, Stand<'_>),
    ) -> usize {
        let subject = &event.subject;
        let machine = subject.machine.as_ref().map(ToString::to_string).unwrap_or_default();
        let node = subject.node.as_ref().map(ToString::to_string).unwrap_or_default();
        let place = match &event.kind {
            EventKind::NodeLeft | EventKind::NodeLost => {
                let there = |place: &Place| !node.is_empty() && place.node == node;
                return self.leave(there, None, turns);
            }
            EventKind::Migrating { machine: from, .. } => {
                self.copies.insert(from.clone(), Place { machine, node });
                return 0;
            }
            EventKind::MachineGone { .. } => {
                // What stood still while its machine moved goes on there; a copy that came to nothing takes nothing over.
                let copy = self.copies.remove(&machine);
                self.copies.retain(|_, copy| copy.machine != machine);
                let there = |place: &Place| !machine.is_empty() && place.machine == machine;
                return self.leave(there, copy.as_ref(), turns);
            }
            EventKind::JobAccepted | EventKind::JobReturned { .. } => None,
            EventKind::JobStarted { .. } => Some(Place { machine, node }),
            EventKind::JobDone { .. }
            | EventKind::JobDeadLettered { .. }
            | EventKind::JobCancelled => {
                let Some(job) = subject.job.filter(|job| self.over.insert(*job)) else { return 0 };
                let open = self.open.remove(&job);
                let service = subject.service.as_ref().map(ToString::to_string);
                let before = open.as_ref().map_or(Stand::Unknown, Open::stand);
                turns(&service.unwrap_or_default(), before, Stand::Over);
                return 1;
            }
            _ => return 0,
        };
        let Some(job) = subject.job.filter(|job| !self.over.contains(job)) else { return 0 };
        let known = self.open.get(&job);
        if event.kind == EventKind::JobAccepted && known.is_some() {
            return 0;
        }
        let service = subject.service.as_ref().map(ToString::to_string).unwrap_or_default();
        let open = Open { service, place };
        let before = self.open.insert(job, open.clone());
        turns(&open.service, before.as_ref().map_or(Stand::Unknown, Open::stand), open.stand());
        1
    }

    /// What is served at some places is served at another, or waits.
    fn leave(
        &mut self,
        at: impl Fn(&Place) -> bool,
        to: Option<&Place>,
        mut turns: impl FnMut(&str, Stand<'_>, Stand<'_>),
    ) -> usize {
        let mut count = 0;
        for open in self.open.values_mut() {
            if let Some(left) = open.place.take_if(|place| at(place)) {
                open.place = to.cloned();
                turns(&open.service, Stand::Runs(&left), open.stand());
                count += 1;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_model::{EventSubject, Timestamp};

    /// What happens to which request at which machine of which node; how many wait and are served after it.
    type Happens<'a> = (EventKind, u128, &'a str, &'a str, (i32, i32));

    fn check(story: &[Happens<'_>]) {
        let mut jobs = Jobs::default();
        let (mut waiting, mut busy) = (0, 0);
        for (number, (kind, job, machine, node, expect)) in story.iter().enumerate() {
            let at = Timestamp::from_micros(number as u64);
            let subject = EventSubject {
                service: Some("s".parse().unwrap()),
                job: (*job > 0).then(|| JobId::new(Timestamp::from_micros(0), *job)),
                machine: machine.parse().ok(),
                node: node.parse().ok(),
                ..EventSubject::default()
            };
            let event = Event { at, subject, kind: kind.clone() };
            jobs.apply(&event, |service, before, now| {
                assert_eq!(service, "s");
                for (stand, by) in [(before, -1), (now, 1)] {
                    match stand {
                        Stand::Waits => waiting += by,
                        Stand::Runs(_) => busy += by,
                        Stand::Unknown | Stand::Over => {}
                    }
                }
            });
            assert_eq!((waiting, busy), *expect, "after {kind:?}, number {number}");
        }
    }

    const STARTED: EventKind = EventKind::JobStarted { attempt: 1 };
    const DONE: EventKind = EventKind::JobDone { queue_us: 0, service_us: 1 };

    fn gone() -> EventKind {
        EventKind::MachineGone { code: String::new(), message: String::new() }
    }

    #[test]
    fn requests_are_told_of_in_any_order() {
        let accepted = EventKind::JobAccepted;
        check(&[
            (accepted.clone(), 1, "", "", (1, 0)),
            (STARTED, 1, "s-0", "n1", (0, 1)),
            (STARTED, 2, "s-1", "n1", (0, 2)),
            (accepted.clone(), 2, "", "", (0, 2)),
            (DONE, 2, "s-1", "n1", (0, 1)),
            (STARTED, 2, "s-1", "n1", (0, 1)),
            (DONE, 3, "s-1", "n1", (0, 1)),
            (accepted, 3, "", "", (0, 1)),
            (DONE, 1, "s-0", "n1", (0, 0)),
            (DONE, 1, "s-0", "n1", (0, 0)),
        ]);
    }

    #[test]
    fn what_a_node_takes_along_waits_again() {
        let returned = EventKind::JobReturned { attempt: 1, reason: String::new() };
        check(&[
            (STARTED, 1, "s-0", "n1", (0, 1)),
            (STARTED, 2, "s-1", "n2", (0, 2)),
            (EventKind::NodeLost, 0, "", "n1", (1, 1)),
            (returned, 1, "s-0", "n1", (1, 1)),
            (STARTED, 1, "s-2", "n2", (0, 2)),
            (gone(), 0, "s-2", "n2", (1, 1)),
            (EventKind::JobCancelled, 1, "", "", (0, 1)),
        ]);
    }

    #[test]
    fn what_stands_still_moves_along() {
        let text = String::new;
        let moves = |machine: &str| EventKind::Migrating {
            machine: machine.to_owned(),
            from: text(),
            reason: text(),
        };
        let moved = EventKind::Migrated { machine: "s-1".to_owned(), reason: text() };
        check(&[
            (STARTED, 1, "s-0", "n1", (0, 1)),
            (moves("s-0"), 0, "s-1", "n2", (0, 1)),
            (moved, 0, "s-0", "n1", (0, 1)),
            (gone(), 0, "s-0", "n1", (0, 1)),
            (EventKind::NodeLost, 0, "", "n1", (0, 1)),
            (moves("s-1"), 0, "s-2", "n1", (0, 1)),
            (gone(), 0, "s-2", "n1", (0, 1)),
            (gone(), 0, "s-1", "n2", (1, 0)),
            (STARTED, 1, "s-3", "n2", (0, 1)),
            (EventKind::NodeLost, 0, "", "n2", (1, 0)),
        ]);
    }
}
