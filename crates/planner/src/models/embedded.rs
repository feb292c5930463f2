//! An embedded control system (Muppala, Ciardo and Trivedi 1994): three sensors, two actuators, processors for input and output that
//! restart after transient faults, and a main processor that gives up when too many cycles in a row were skipped.
//!
//! What is asked is what happens until it is down. So it is made to begin anew whenever it is down: shares of the long run are then
//! those of one life.

use super::long_run;
use crate::chain::ChainError;
use crate::progress::Progress;

/// What is asked of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Embedded {
    /// Hours in full operation until it is down.
    UpTime,
    /// Probability that it is the main processor that brings it down.
    MainFailure,
}

/// What brought it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Cause {
    Main,
    Other,
}

/// An input or output processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Processor {
    Works,
    Restarts,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Life {
    sensors: u8,
    actuators: u8,
    input: Processor,
    output: Processor,
    skipped: u8,
    /// Whether the main processor is through with this cycle, and whether input and output have something for their receivers.
    done: bool,
    input_ready: bool,
    output_waits: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Lives(Life),
    Down(Cause),
}

const DAY: f64 = 86_400.0;
const PROCESSOR_FAILS: f64 = 1.0 / (365.0 * DAY);
const SENSOR_FAILS: f64 = 1.0 / (30.0 * DAY);
const ACTUATOR_FAILS: f64 = 1.0 / (60.0 * DAY);
const CYCLE: f64 = 1.0 / 60.0;
const FAULT: f64 = 1.0 / DAY;
const RESTART: f64 = 1.0 / 30.0;
const SENSORS_MIN: u8 = 2;

/// A figure of the system that gives up after `skipped_max` skipped cycles and one more.
///
/// # Errors
/// It could not be certified.
pub(crate) fn embedded(
    skipped_max: u8,
    asked: Embedded,
    progress: &Progress,
) -> Result<(usize, f64), ChainError> {
    let life = Life {
        sensors: 3,
        actuators: 2,
        input: Processor::Works,
        output: Processor::Works,
        skipped: 0,
        done: true,
        input_ready: true,
        output_waits: false,
    };
    let first = State::Lives(life);
    let run = |reward: fn(&State) -> f64| {
        long_run(first, move |state, to| rule(skipped_max, first, state, to), reward, progress)
    };
    // A life ends so many times a second, because a new one begins after a second of being down.
    let (_, ends) = run(|state| f64::from(u8::from(matches!(state, State::Down(_)))))?;
    let (states, part) = match asked {
        Embedded::MainFailure => {
            run(|state| f64::from(u8::from(*state == State::Down(Cause::Main))))?
        }
        Embedded::UpTime => run(|state| match state {
            State::Lives(life) if life.is_up() => 1.0 / 3600.0,
            State::Lives(_) | State::Down(_) => 0.0,
        })?,
    };
    Ok((states, part / ends))
}

impl Life {
    fn is_up(&self) -> bool {
        self.input != Processor::Restarts && self.output != Processor::Restarts
    }

    fn senses(&self) -> bool {
        self.sensors >= SENSORS_MIN
    }

    fn acts(&self) -> bool {
        self.actuators >= 1
    }

    /// The main processor's time is up.
    fn times_out(self, skipped_max: u8) -> Self {
        let input = self.input == Processor::Works && self.senses();
        let output = self.output == Processor::Works && self.acts();
        Self {
            skipped: if self.done { 0 } else { (self.skipped + 1).min(skipped_max + 1) },
            done: self.input_ready && !self.output_waits,
            input_ready: input || (self.input_ready && self.output_waits),
            output_waits: !output && (self.output_waits || self.input_ready),
            ..self
        }
    }

    fn input_restarts(self) -> Self {
        let output = self.output == Processor::Works && self.acts();
        Self {
            input: Processor::Works,
            done: self.done || !self.output_waits,
            input_ready: true,
            output_waits: !output,
            ..self
        }
    }

    fn output_restarts(self) -> Self {
        Self {
            output: Processor::Works,
            done: self.done || self.input_ready,
            input_ready: self.input == Processor::Works && self.senses(),
            output_waits: false,
            ..self
        }
    }
}

fn rule(skipped_max: u8, first: State, state: State, to: &mut dyn FnMut(State, f64)) {
    let State::Lives(life) = state else { return to(first, 1.0) };
    let mut go = |after: Life, rate: f64| {
        let down = (after.input == Processor::Works && !after.senses())
            || (after.output == Processor::Works && !after.acts())
            || after.skipped > skipped_max;
        to(if down { State::Down(Cause::Other) } else { State::Lives(after) }, rate);
    };
    if life.sensors > 1 {
        let rate = f64::from(life.sensors) * SENSOR_FAILS;
        go(Life { sensors: life.sensors - 1, ..life }, rate);
    }
    if life.actuators > 0 {
        let rate = f64::from(life.actuators) * ACTUATOR_FAILS;
        go(Life { actuators: life.actuators - 1, ..life }, rate);
    }
    if life.senses() && life.input != Processor::Failed {
        go(Life { input: Processor::Failed, ..life }, PROCESSOR_FAILS);
        match life.input {
            Processor::Works => go(Life { input: Processor::Restarts, ..life }, FAULT),
            Processor::Restarts => go(life.input_restarts(), RESTART),
            Processor::Failed => {}
        }
    }
    if life.acts() && life.output != Processor::Failed {
        go(Life { output: Processor::Failed, ..life }, PROCESSOR_FAILS);
        match life.output {
            Processor::Works => go(Life { output: Processor::Restarts, ..life }, FAULT),
            Processor::Restarts => go(life.output_restarts(), RESTART),
            Processor::Failed => {}
        }
    }
    go(life.times_out(skipped_max), CYCLE);
    to(State::Down(Cause::Main), PROCESSOR_FAILS);
}
