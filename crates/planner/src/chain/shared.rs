//! Replicas that share nodes: which working nodes have how many, as far as it matters. Nodes are alike, so that only how many of
//! them have the same replicas counts, and a node without replicas is not listed.

/// Most nodes with replicas that a state can list.
pub(crate) const NODES_MAX: u32 = 10;

/// Most replicas of a node that a state can list.
pub(crate) const EACH_MAX: u32 = 15;

/// The nodes with replicas: for each 16 times its ready ones and its starting ones; the greatest number first, then nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Occupied([u8; NODES_MAX as usize]);

/// Nodes that have the same replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alike {
    /// The place of one of them in the list.
    pub(super) at: usize,
    /// How many there are.
    pub(super) nodes: u16,
    /// Ready replicas of each.
    pub(super) ready: u16,
    /// Starting replicas of each.
    pub(super) starting: u16,
}

/// Whether a replica listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stand {
    Starting,
    Ready,
}

impl Stand {
    const fn one(self) -> u8 {
        match self {
            Self::Starting => 1,
            Self::Ready => 16,
        }
    }

    const fn of(self, node: u8) -> u8 {
        match self {
            Self::Starting => node & 15,
            Self::Ready => node >> 4,
        }
    }
}

impl Occupied {
    /// Nodes with replicas.
    pub(super) fn count(&self) -> u16 {
        self.0.iter().filter(|node| **node > 0).count() as u16
    }

    /// The numbers of ready and starting replicas of each node.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (u8, u8)> + '_ {
        self.0.iter().map(|node| (Stand::Ready.of(*node), Stand::Starting.of(*node)))
    }

    /// Nodes by what they have.
    pub(super) fn kinds(&self) -> impl Iterator<Item = Alike> + '_ {
        let first = |at: &usize| self.0[*at] > 0 && (*at == 0 || self.0[at - 1] != self.0[*at]);
        (0..self.0.len()).filter(first).map(|at| Alike {
            at,
            nodes: self.0.iter().filter(|node| **node == self.0[at]).count() as u16,
            ready: Stand::Ready.of(self.0[at]).into(),
            starting: Stand::Starting.of(self.0[at]).into(),
        })
    }

    /// With one more replica, on the node with the fewest of so many that work: as placement spreads them.
    pub(super) fn with(mut self, working: u16, stand: Stand) -> Self {
        let listed = usize::from(working).min(self.0.len());
        let all = |node: &u8| Stand::Ready.of(*node) + Stand::Starting.of(*node);
        // The last of equal ones, which keeps the order.
        if let Some(node) = self.0[..listed].iter_mut().min_by_key(|node| all(node)) {
            *node += stand.one();
        }
        self.sorted()
    }

    /// With one replica less, of the node with the most of all that has such a one.
    pub(super) fn without(mut self, stand: Stand) -> Self {
        let all = |node: &u8| Stand::Ready.of(*node) + Stand::Starting.of(*node);
        let have = self.0.iter_mut().filter(|node| stand.of(**node) > 0);
        if let Some(node) = have.max_by_key(|node| all(node)) {
            *node -= stand.one();
        }
        self.sorted()
    }

    /// With a starting replica of a node ready.
    pub(super) fn started(mut self, at: usize) -> Self {
        self.0[at] += Stand::Ready.one() - Stand::Starting.one();
        self.sorted()
    }

    /// With all ready replicas starting.
    pub(super) fn not_yet(mut self) -> Self {
        for node in &mut self.0 {
            *node = Stand::Ready.of(*node) + Stand::Starting.of(*node);
        }
        self.sorted()
    }

    /// Without a node.
    pub(super) fn failed(mut self, at: usize) -> Self {
        self.0[at] = 0;
        self.sorted()
    }

    fn sorted(mut self) -> Self {
        self.0.sort_unstable_by(|a, b| b.cmp(a));
        self
    }
}

/// In how many ways `most` replicas at most, ready or starting where they take time to start, can be on `nodes` nodes that are
/// alike, `each` on one at most: as many lists as a chain has for each number of waiting requests, or fewer.
pub(crate) fn layouts(nodes: u32, most: u32, each: u32, starts: bool) -> u64 {
    let (nodes, most) = (nodes as usize, most as usize);
    // Lists by their nodes and replicas; one kind of node after the other, as many of it as wanted.
    let mut ways = vec![vec![0u64; most + 1]; nodes + 1];
    ways[0][0] = 1;
    for replicas in 1..=(each as usize).min(most) {
        let kinds = if starts { replicas + 1 } else { 1 };
        for _ in 0..kinds {
            for count in 1..=nodes {
                for sum in replicas..=most {
                    ways[count][sum] =
                        ways[count][sum].saturating_add(ways[count - 1][sum - replicas]);
                }
            }
        }
    }
    // With each number of nodes that work.
    let lists = |listed: usize| ways[listed].iter().fold(0u64, |sum, it| sum.saturating_add(*it));
    (0..=nodes).flat_map(|working| (0..=working).map(lists)).fold(0, u64::saturating_add)
}

/// Of `all` replicas `more` have one request more than the others: calls `each` with how many of these are among some `picked`
/// ones, and `times` the probability of it.
pub(super) fn shares(
    (all, more): (u32, u32),
    picked: u32,
    times: f64,
    mut each: impl FnMut(u32, f64),
) {
    let fewest = (picked + more).saturating_sub(all);
    for among in fewest..=picked.min(more) {
        let ways = times * choose(more, among) * choose(all - more, picked - among);
        each(among, ways / choose(all, picked));
    }
}

fn choose(n: u32, k: u32) -> f64 {
    (0..k).fold(1.0, |ways, at| ways * f64::from(n - at) / f64::from(at + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(occupied: Occupied) -> Vec<(u8, u8)> {
        occupied.nodes().take(occupied.count().into()).collect()
    }

    #[test]
    fn replicas_spread_and_go_from_where_most_are() {
        let mut it = Occupied::default();
        for _ in 0..4 {
            it = it.with(3, Stand::Ready);
        }
        assert_eq!(listed(it), [(2, 0), (1, 0), (1, 0)]);
        it = it.with(3, Stand::Starting);
        assert_eq!(listed(it), [(2, 0), (1, 1), (1, 0)]);
        let kinds: Vec<(u16, u16, u16)> =
            it.kinds().map(|kind| (kind.nodes, kind.ready, kind.starting)).collect();
        assert_eq!(kinds, [(1, 2, 0), (1, 1, 1), (1, 1, 0)]);
        assert_eq!(listed(it.started(1)), [(2, 0), (2, 0), (1, 0)]);
        assert_eq!(listed(it.without(Stand::Starting)), [(2, 0), (1, 0), (1, 0)]);
        assert_eq!(listed(it.without(Stand::Ready).failed(0)).len(), 2);
        assert_eq!(listed(it.not_yet()), [(0, 2), (0, 2), (0, 1)]);
        // A node that is repaired is where the next one goes.
        assert_eq!(listed(it.failed(0).with(3, Stand::Ready)), [(1, 1), (1, 0), (1, 0)]);
    }

    #[test]
    fn lists_are_counted() {
        // None, one, two on one, one on each of two, with none, one or two nodes at work.
        assert_eq!(layouts(2, 2, 2, false), 1 + 3 + 4);
        assert_eq!(layouts(1, 1, 1, true), 1 + 3);
        assert!(layouts(10, 40, 15, true) > 1_000_000);
    }

    #[test]
    fn shares_are_hypergeometric() {
        let mut all = vec![];
        shares((5, 2), 2, 10.0, |among, times| all.push((among, times)));
        assert_eq!(all, [(0, 3.0), (1, 6.0), (2, 1.0)]);
        let mut one = vec![];
        shares((3, 2), 1, 3.0, |among, times| one.push((among, times)));
        assert_eq!(one, [(0, 1.0), (1, 2.0)]);
    }
}
