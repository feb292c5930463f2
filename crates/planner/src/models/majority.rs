//! A genetic Muller C-element in the majority design (Madsen, Zhang, Roehner, Winstead and Myers 2014): six proteins that keep
//! each other down, their amounts in steps.

use super::reached_within;
use crate::chain::ChainError;
use crate::progress::Progress;

/// Proteins, as the published model names them.
#[derive(Clone, Copy)]
enum Protein {
    D,
    Y,
    Z,
    Cc,
    Xx,
    Ee,
}

use Protein::{Cc, D, Ee, Xx, Y, Z};

/// Step and largest amount of each protein.
const STEPS: [(u8, u8); 6] = [(50, 250), (30, 120), (30, 120), (10, 150), (30, 120), (3, 45)];

/// Amounts of the proteins, in the order of [`Protein`].
type State = [u8; 6];

/// What decays per second and molecule.
const DECAY: f64 = 0.0075;

/// The inputs, which do not change: one is low, one high.
const LOW: f64 = 0.0;
const HIGH: f64 = 120.0;

/// Molecules per second that a promoter lets make, ten at a time, while so many of its repressor are there (a Hill function).
fn made(repressor: f64) -> f64 {
    10.0 * 0.099 / (1.99 + (0.5 * repressor).powi(2)) * 10.0
}

fn step(state: &State, protein: Protein, up: bool) -> State {
    let (at, mut after) = (protein as usize, *state);
    let by = STEPS[at].0;
    after[at] = if up { after[at] + by } else { after[at] - by };
    after
}

fn rule(state: &State, to: &mut dyn FnMut(State, f64)) {
    let amount = |protein: Protein| f64::from(state[protein as usize]);
    let promoted = [
        (D, made(amount(Xx)) + made(amount(Y)) + made(amount(Z))),
        (Y, made(LOW) + made(amount(D))),
        (Z, made(amount(D)) + made(HIGH)),
        (Cc, made(amount(Ee))),
        (Xx, made(LOW) + made(HIGH)),
        (Ee, made(amount(D))),
    ];
    for (protein, rate) in promoted {
        let (by, most) = STEPS[protein as usize];
        if state[protein as usize] < most {
            to(step(state, protein, true), rate / f64::from(by));
        }
        if state[protein as usize] > 0 {
            to(step(state, protein, false), DECAY * amount(protein) / f64::from(by));
        }
    }
}

/// The probability that the element changes its state within so many seconds though its inputs do not agree.
///
/// # Errors
/// It takes too many steps, or was stopped.
pub(crate) fn majority(secs: f64, progress: &Progress) -> Result<(usize, f64), ChainError> {
    let first = [200, 0, 0, 120, 0, 0];
    let changed = |state: &State| state[Ee as usize] > 40 && state[Cc as usize] < 20;
    reached_within(first, |state, to| rule(&state, to), changed, secs, progress)
}
