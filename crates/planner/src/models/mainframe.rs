//! A mainframe of four processors with two bounded queues that fails and is repaired (Herzog and Mertsiotakis 1994): the nearest
//! published kin of a service on nodes that fail.

use super::long_run;
use crate::chain::ChainError;
use crate::progress::Progress;

/// What is asked of the mainframe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mainframe {
    /// The long-run share of time in which it works.
    Available,
    /// Users' jobs done per minute.
    Throughput,
}

/// What a processor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Processor {
    Idle,
    User,
    Programmer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    /// Low, high and no load.
    phase: u8,
    programmers: u8,
    users: u8,
    /// None while it has failed.
    processors: Option<[Processor; 4]>,
}

/// Rates per minute: change of phase; arrivals of programmers' and users' jobs and failures in the phases; delivery, repair, service.
const PHASE: f64 = 0.00334;
const PROGRAMMERS: [f64; 3] = [0.01667, 0.16, 0.0];
const USERS: [f64; 3] = [0.033, 2.0, 0.0];
const FAILURES: [f64; 3] = [0.00035, 0.0007, 0.0];
const DELIVERY: f64 = 48.0;
const REPAIR: f64 = 0.01;
const SERVE_PROGRAMMER: f64 = 0.3;
const SERVE_USER: f64 = 12.0;

/// A figure of the mainframe with so many places for programmers' and users' jobs.
///
/// # Errors
/// It could not be certified.
pub(crate) fn mainframe(
    places: (u8, u8),
    asked: Mainframe,
    progress: &Progress,
) -> Result<(usize, f64), ChainError> {
    let reward = move |state: &State| match (asked, state.processors) {
        (_, None) => 0.0,
        (Mainframe::Available, Some(_)) => 1.0,
        (Mainframe::Throughput, Some(all)) => {
            let serving = all.iter().filter(|it| **it == Processor::User).count();
            SERVE_USER * serving as f64
        }
    };
    let processors = Some([Processor::Idle; 4]);
    let first = State { phase: 0, programmers: 0, users: 0, processors };
    long_run(first, move |state, to| rule(places, state, to), reward, progress)
}

fn rule((programmers, users): (u8, u8), state: State, to: &mut dyn FnMut(State, f64)) {
    let phase = usize::from(state.phase);
    to(State { phase: (state.phase + 1) % 3, ..state }, PHASE);
    let Some(processors) = state.processors else {
        to(State { processors: Some([Processor::Idle; 4]), ..state }, REPAIR);
        return;
    };
    to(State { processors: None, ..state }, FAILURES[phase]);
    if state.programmers < programmers {
        to(State { programmers: state.programmers + 1, ..state }, PROGRAMMERS[phase]);
    }
    if state.users < users {
        to(State { users: state.users + 1, ..state }, USERS[phase]);
    }
    for at in 0..4 {
        let with = |processor: Processor, state: State| {
            let mut all = processors;
            all[at] = processor;
            State { processors: Some(all), ..state }
        };
        match processors[at] {
            Processor::User => to(with(Processor::Idle, state), SERVE_USER),
            Processor::Programmer => to(with(Processor::Idle, state), SERVE_PROGRAMMER),
            // Users' jobs go first.
            Processor::Idle if state.users > 0 => {
                to(with(Processor::User, State { users: state.users - 1, ..state }), DELIVERY);
            }
            Processor::Idle if state.programmers > 0 => {
                let rest = State { programmers: state.programmers - 1, ..state };
                to(with(Processor::Programmer, rest), DELIVERY);
            }
            Processor::Idle => {}
        }
    }
}
