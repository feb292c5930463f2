//! States of a chain joined to groups: the chain of the groups, with rates weighed by what is known of the states.

use super::graph::Chain;

/// A transition between two states that were joined.
const WITHIN: u32 = u32::MAX;

/// How the states of a chain are joined.
#[derive(Debug)]
pub(super) struct Joined {
    /// The group that each state belongs to.
    group: Vec<u32>,
    /// Where in the rates of the groups' chain the rate of each transition counts.
    into: Vec<u32>,
}

impl Joined {
    /// Joins states to `count` groups; their chain has no rates yet. Both chains say what flows into each state. Rows of the new one
    /// begin with what flows in from the groups that `first` names, whether there is such a transition or not.
    pub(super) fn new<const N: usize>(
        sources: &Chain,
        group: Vec<u32>,
        count: usize,
        first: impl Fn(u32) -> [Option<u32>; N],
    ) -> (Self, Chain) {
        let (members, order) = members(&group, count);
        let mut into = vec![WITHIN; sources.transitions()];
        // Where the transition from a group into the current one stands, if it is there yet.
        let mut known = vec![(WITHIN, 0u32); count];
        let (mut starts, mut targets) = (vec![0u32], vec![]);
        for to in 0..count as u32 {
            let mut place = |from: u32| {
                let entry = &mut known[from as usize];
                if entry.0 != to {
                    *entry = (to, targets.len() as u32);
                    targets.push(from);
                }
                entry.1
            };
            for from in first(to).into_iter().flatten() {
                place(from);
            }
            for state in &order[members[to as usize] as usize..members[to as usize + 1] as usize] {
                let begin = sources.begin(*state as usize);
                for (at, (from, _)) in sources.row(*state as usize).enumerate() {
                    let from = group[from];
                    if from != to {
                        into[begin + at] = place(from);
                    }
                }
            }
            starts.push(targets.len() as u32);
        }
        let rates = vec![0.0; targets.len()];
        (Self { group, into }, Chain::of_parts(starts, targets, rates))
    }

    /// Gives the groups the weights `y` and their chain the rates that follow from the probabilities `x` of the states; says of
    /// each group how fast it is left by each transition.
    pub(super) fn weigh(
        &self,
        (sources, x): (&Chain, &[f64]),
        (next, y): (&mut Chain, &mut [f64]),
        mut left: impl FnMut(usize, f64),
    ) {
        y.fill(0.0);
        for (value, group) in x.iter().zip(&self.group) {
            y[*group as usize] += value;
        }
        let rates = next.rates_mut();
        rates.fill(0.0);
        for (into, (from, rate)) in self.into.iter().zip(sources.all()) {
            if *into != WITHIN {
                rates[*into as usize] += x[from] * rate;
            }
        }
        next.scale_rates(|from, flow| {
            let rate = if y[from] > 0.0 { flow / y[from] } else { 0.0 };
            left(from, rate);
            rate
        });
    }

    /// Gives the states what became of the weights of their groups.
    pub(super) fn spread(&self, before: &[f64], now: &[f64], x: &mut [f64]) {
        for (value, group) in x.iter_mut().zip(&self.group) {
            let (was, is) = (before[*group as usize], now[*group as usize]);
            if was > 0.0 && is.is_finite() {
                *value *= is / was;
            }
        }
    }
}

/// The states of each group, one after the other, and where those of each begin.
fn members(group: &[u32], count: usize) -> (Vec<u32>, Vec<u32>) {
    let mut begins = vec![0u32; count + 1];
    for group in group {
        begins[*group as usize + 1] += 1;
    }
    for at in 0..count {
        begins[at + 1] += begins[at];
    }
    let mut order = vec![0u32; group.len()];
    let mut place = begins.clone();
    for (state, group) in group.iter().enumerate() {
        order[place[*group as usize] as usize] = state as u32;
        place[*group as usize] += 1;
    }
    (begins, order)
}
