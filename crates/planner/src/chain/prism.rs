//! A chain for other tools: PRISM's explicit files, Storm's, and the model in PRISM's language, which both read.

use super::family::{Bound, Family, Replicas, State};
use super::graph::{Chain, ChainError};
use super::shared::NODES_MAX;
use crate::scenario::{FailureLoses, QueueCounts, Repair};
use std::fmt::Write;

/// The explicit files of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explicit {
    /// Transitions (`.tra`): states and transitions, then source, target and rate.
    pub transitions: String,
    /// States (`.sta`): number and variables.
    pub states: String,
    /// Labels (`.lab`): the initial state, and those that refuse (`full`).
    pub labels: String,
    /// Rewards of states (`.srew`): requests in the system.
    pub rewards: String,
    /// All of it for Storm (`.drn`): rates, the labels `init` and `full`, and the reward `in_system`.
    pub drn: String,
}

impl Family {
    /// The chain as explicit files.
    ///
    /// # Errors
    /// The chain is too large.
    pub fn to_explicit(&self) -> Result<Explicit, ChainError> {
        let (chain, states, _) = self.chain()?;
        let mut files = Explicit {
            transitions: format!("{} {}\n", chain.len(), chain.transitions()),
            states: format!("(i,k,s,j{})\n", self.node_columns()),
            labels: String::new(),
            rewards: String::new(),
            drn: String::new(),
        };
        write_rows(&chain, &mut files.transitions);
        let mut rewarded = 0;
        for (at, state) in states.iter().enumerate() {
            let (i, k, s, j) = (state.i, state.k, state.s, state.j);
            let _ = write!(files.states, "{at}:({i},{k},{s},{j}");
            if self.is_shared() {
                for (ready, starting) in state.on.nodes() {
                    let _ = write!(files.states, ",{ready},{starting}");
                }
            }
            files.states.push_str(")\n");
            if state.j > 0 {
                let _ = writeln!(files.rewards, "{at} {}", state.j);
                rewarded += 1;
            }
        }
        files.rewards = format!("{} {rewarded}\n{}", chain.len(), files.rewards);
        let empty = |at: &usize| states[*at].j == 0 && u32::from(states[*at].i) == self.nodes;
        let first = (0..states.len()).find(empty).unwrap_or(0);
        files.labels = self.labels(&states, first);
        files.drn = self.drn(&chain, &states, first);
        Ok(files)
    }

    /// Where replicas share nodes: ready and starting ones of each, the node with the most first.
    fn node_columns(&self) -> String {
        let nodes = if self.is_shared() { NODES_MAX } else { 0 };
        (1..=nodes).map(|node| format!(",k{node},s{node}")).collect()
    }

    fn labels(&self, states: &[State], first: usize) -> String {
        let mut text = "0=\"init\" 1=\"deadlock\" 2=\"full\"\n".to_owned();
        for (at, state) in states.iter().enumerate() {
            let _ = match (at == first, !self.accepts(*state)) {
                (true, true) => writeln!(text, "{at}: 0 2"),
                (true, false) => writeln!(text, "{at}: 0"),
                (false, true) => writeln!(text, "{at}: 2"),
                (false, false) => Ok(()),
            };
        }
        text
    }

    fn drn(&self, chain: &Chain, states: &[State], first: usize) -> String {
        let count = states.len();
        let mut text = format!(
            "@type: CTMC\n@parameters\n\n@reward_models\nin_system\n@nr_states\n{count}\n@nr_choices\n{count}\n@model\n"
        );
        for (at, state) in states.iter().enumerate() {
            let init = if at == first { " init" } else { "" };
            let full = if self.accepts(*state) { "" } else { " full" };
            let (exit, requests) = (chain.exit(at), state.j);
            let _ = writeln!(text, "state {at} !{exit:?} [{requests}]{init}{full}\n\taction 0");
            let mut row: Vec<(usize, f64)> = chain.row(at).collect();
            row.sort_unstable_by_key(|(target, _)| *target);
            for (target, rate) in row {
                let _ = writeln!(text, "\t\t{target} : {rate:?}");
            }
        }
        text
    }

    /// Variants A and B in PRISM's language, with rewards for each measure; none for what that model does not hold.
    pub fn to_prism(&self) -> Option<String> {
        let replicas = match &self.replicas {
            Replicas::EveryNode => "i".to_owned(),
            Replicas::WhenFull => "min(i, max(1, ceil(j/places)))".to_owned(),
            Replicas::Policy { .. } => return None,
        };
        let fits = self.bound == Bound::Each
            && self.counts == QueueCounts::Waiting
            && self.capacity == 1
            && self.loses != FailureLoses::Nothing;
        if !fits || self.failure <= 0.0 {
            return None;
        }
        let crews = match self.crew {
            Repair::PerNode => "(n-i)",
            Repair::SingleCrew => "1",
        };
        let mut text = format!(
            "ctmc\n\nconst int n = {};\nconst int places = {};\nconst double lambda = {};\nconst double mu = {};\n\
             const double fail = {};\nconst double repair = {};\n\nformula k = {replicas};\n\
             formula busy = min(k, j);\nformula room = (i-1)*places;\n\nmodule service\n  i : [0..n] init n;\n  \
             j : [0..n*places] init 0;\n  [] j < i*places -> lambda : (j'=j+1);\n  \
             [] busy > 0 -> busy*mu : (j'=j-1);\n  [] i < n -> {crews}*repair : (i'=i+1);\n",
            self.nodes,
            self.queue + 1,
            self.arrival,
            self.service,
            self.failure,
            self.repair
        );
        if matches!(self.replicas, Replicas::WhenFull) {
            text.push_str("  [] i > k -> (i-k)*fail : (i'=i-1);\n");
        }
        for (guard, rate, loses) in self.prism_failures() {
            let _ = writeln!(
                text,
                "  [] i > 0 & {guard} -> {rate}*fail : (i'=i-1) & (j'=min(j-{loses}, room));"
            );
        }
        text.push_str("endmodule\n\n");
        for (name, value) in
            [("in_system", "j"), ("replicas", "k"), ("busy", "busy"), ("nodes", "i")]
        {
            let _ = writeln!(text, "rewards \"{name}\"\n  true : {value};\nendrewards");
        }
        text.push_str("label \"full\" = j = i*places;\n");
        Some(text)
    }

    /// Guards, counts of nodes and losses of the failures that hit replicas.
    fn prism_failures(&self) -> Vec<(&'static str, &'static str, &'static str)> {
        match self.loses {
            FailureLoses::Nothing => vec![],
            FailureLoses::Overflow => vec![("k > 0", "k", "0")],
            FailureLoses::InService => {
                vec![("busy > 0", "busy", "1"), ("k > busy", "(k-busy)", "0")]
            }
            FailureLoses::Held => vec![
                ("k > 0 & mod(j, max(k,1)) > 0", "mod(j, max(k,1))", "(floor(j/max(k,1))+1)"),
                ("k > 0", "(k-mod(j, max(k,1)))", "floor(j/max(k,1))"),
            ],
        }
    }
}

fn write_rows(chain: &Chain, text: &mut String) {
    for state in 0..chain.len() {
        for (target, rate) in chain.row(state) {
            let _ = writeln!(text, "{state} {target} {rate:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(replicas: Replicas, loses: FailureLoses) -> Family {
        Family {
            nodes: 2,
            queue: 1,
            bound: Bound::Each,
            counts: QueueCounts::Waiting,
            capacity: 1,
            arrival: 1.5,
            service: 1.0,
            failure: 0.05,
            repair: 0.5,
            crew: Repair::PerNode,
            loses,
            replicas,
        }
    }

    #[test]
    fn explicit_files_hold_the_whole_chain() {
        let family = small(Replicas::EveryNode, FailureLoses::InService);
        let files = family.to_explicit().unwrap();
        let (chain, states, _) = family.chain().unwrap();
        let mut lines = files.transitions.lines();
        assert_eq!(lines.next(), Some(format!("{} {}", chain.len(), chain.transitions()).as_str()));
        assert_eq!(lines.count(), chain.transitions());
        assert_eq!(files.states.lines().count(), states.len() + 1);
        let first = states.iter().position(|state| state.i == 2 && state.j == 0).unwrap();
        assert!(files.labels.contains(&format!("\n{first}: 0\n")));
        let full = states.iter().filter(|state| !family.accepts(**state)).count();
        assert_eq!(files.labels.lines().count(), 2 + full);
        let entries = files.drn.lines().filter(|line| line.starts_with("\t\t")).count();
        assert_eq!(entries, chain.transitions());
        assert_eq!(files.drn.matches(" full\n").count(), full);
        assert_eq!(files.drn.matches(" init").count(), 1);
    }

    #[test]
    fn the_language_is_written_for_a_and_b_only() {
        let a = small(Replicas::EveryNode, FailureLoses::InService).to_prism().unwrap();
        assert!(a.contains("formula k = i;") && a.contains("[] i > 0 & busy > 0 -> busy*fail"));
        let b = small(Replicas::WhenFull, FailureLoses::Held).to_prism().unwrap();
        assert!(b.contains("(i-k)*fail") && b.contains("floor(j/max(k,1))+1"));
        assert_eq!(small(Replicas::EveryNode, FailureLoses::Nothing).to_prism(), None);
    }
}
