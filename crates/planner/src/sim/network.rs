//! Transfers over links: the transfers on a link share its throughput evenly, and a transfer over several links is as
//! fast as the slowest of its shares.

use super::events::{Nanos, nanos, secs};
use crate::random::{Distribution, Stream};
use crate::scenario::{self, BackgroundChanges, ThroughputIs, Topology};
use std::collections::VecDeque;
use std::rc::Rc;

/// Less than a byte is left: rounding.
const NOTHING_MIB: f64 = 1e-7;

/// The network of a run. `T` is what a transfer is for.
#[derive(Debug)]
pub(super) struct Network<T> {
    throughput: Distribution,
    background: Distribution,
    changes: BackgroundChanges,
    scope: ThroughputIs,
    latency: Nanos,
    stream: Stream,
    nodes: usize,
    /// Links of the route from one node to another, for each pair.
    routes: Vec<Rc<[u32]>>,
    links: Vec<Link>,
    /// The two nodes of each link.
    ends: Vec<(usize, usize)>,
    flows: Vec<Option<Flow<T>>>,
    free: Vec<u32>,
    tokens: u32,
    /// Transfers whose end has moved: number, token, end. The caller schedules them.
    pub(super) moved: Vec<(u32, u32, Nanos)>,
    /// MiB sent so far.
    pub(super) sent_mib: f64,
}

#[derive(Debug)]
struct Link {
    /// What transfers get together, MiB per second.
    capacity: f64,
    flows: Vec<u32>,
}

#[derive(Debug)]
struct Flow<T> {
    route: (usize, usize),
    remaining_mib: f64,
    rate: f64,
    updated: Nanos,
    token: u32,
    what: T,
}

impl<T> Network<T> {
    pub(super) fn new(
        network: &scenario::Network,
        names: &[(String, usize)],
        assumptions: scenario::Assumptions,
        stream: Stream,
    ) -> Self {
        let ends = link_ends(&network.topology, names);
        let mut net = Self {
            throughput: network.throughput_mib_per_sec.clone(),
            background: network.background_mib_per_sec.clone(),
            changes: assumptions.background_changes,
            scope: assumptions.throughput_is,
            latency: nanos(network.latency_ms / 1000.0),
            stream,
            nodes: names.len(),
            routes: routes(names.len(), &ends),
            links: ends.iter().map(|_| Link { capacity: 0.0, flows: vec![] }).collect(),
            ends,
            flows: vec![],
            free: vec![],
            tokens: 0,
            moved: vec![],
            sent_mib: 0.0,
        };
        let all: Vec<u32> = (0..net.links.len() as u32).collect();
        net.draw(&all);
        net
    }

    /// Draws the capacities of links anew.
    fn draw(&mut self, links: &[u32]) {
        let mut draw = || {
            let total = self.throughput.sample(&mut self.stream);
            // A hundredth is left, or a transfer might never end.
            (total - self.background.sample(&mut self.stream)).max(total / 100.0).max(1e-9)
        };
        match self.scope {
            ThroughputIs::PerLink => {
                for link in links {
                    self.links[*link as usize].capacity = draw();
                }
            }
            ThroughputIs::NetworkWide => {
                let capacity = draw();
                for link in &mut self.links {
                    link.capacity = capacity;
                }
            }
        }
    }

    /// Links between two nodes.
    pub(super) fn hops(&self, from: usize, to: usize) -> usize {
        self.routes[from * self.nodes + to].len()
    }

    /// The nodes on the route from one to another, both among them.
    pub(super) fn nodes_on(&self, from: usize, to: usize) -> Vec<usize> {
        let mut nodes = vec![from];
        let mut at = from;
        for link in self.routes[from * self.nodes + to].iter() {
            let (a, b) = self.ends[*link as usize];
            at = if a == at { b } else { a };
            nodes.push(at);
        }
        nodes
    }

    /// Begins a transfer between two different nodes.
    pub(super) fn start(&mut self, now: Nanos, route: (usize, usize), mib: f64, what: T) {
        let links = Rc::clone(&self.routes[route.0 * self.nodes + route.1]);
        if self.changes == BackgroundChanges::EachUse {
            self.draw(&links);
        }
        self.sent_mib += mib;
        let flow = Flow { route, remaining_mib: mib, rate: 0.0, updated: now, token: 0, what };
        let number = match self.free.pop() {
            Some(number) => {
                self.flows[number as usize] = Some(flow);
                number
            }
            None => {
                self.flows.push(Some(flow));
                self.flows.len() as u32 - 1
            }
        };
        for link in links.iter() {
            self.links[*link as usize].flows.push(number);
        }
        self.share(now, &links);
    }

    /// The end of a transfer, if the token is its latest: it leaves its links. Time until its last byte arrives.
    pub(super) fn finish(&mut self, now: Nanos, number: u32, token: u32) -> Option<Nanos> {
        let flow = self.flows.get(number as usize)?.as_ref().filter(|flow| flow.token == token)?;
        let links = Rc::clone(&self.routes[flow.route.0 * self.nodes + flow.route.1]);
        for link in links.iter() {
            self.links[*link as usize].flows.retain(|other| *other != number);
        }
        self.share(now, &links);
        Some(self.latency * links.len() as u64)
    }

    /// Takes out a transfer that has ended.
    pub(super) fn take(&mut self, number: u32) -> Option<T> {
        let flow = self.flows.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(flow.what)
    }

    /// Divides links among their transfers anew.
    fn share(&mut self, now: Nanos, links: &[u32]) {
        for link in links {
            for at in 0..self.links[*link as usize].flows.len() {
                let number = self.links[*link as usize].flows[at];
                let Some(flow) = &self.flows[number as usize] else { continue };
                let route = &self.routes[flow.route.0 * self.nodes + flow.route.1];
                let share = |link: &u32| {
                    let link = &self.links[*link as usize];
                    link.capacity / link.flows.len().max(1) as f64
                };
                let rate = route.iter().map(share).fold(f64::INFINITY, f64::min);
                let Some(flow) = &mut self.flows[number as usize] else { continue };
                if flow.updated == now && flow.rate == rate && flow.token != 0 {
                    continue;
                }
                flow.remaining_mib -= flow.rate * secs(now - flow.updated);
                if flow.remaining_mib < NOTHING_MIB {
                    flow.remaining_mib = 0.0;
                }
                flow.updated = now;
                flow.rate = rate;
                self.tokens = self.tokens.wrapping_add(1).max(1);
                flow.token = self.tokens;
                let end = now + nanos(flow.remaining_mib / rate);
                self.moved.push((number, flow.token, end));
            }
        }
    }
}

fn link_ends(topology: &Topology, names: &[(String, usize)]) -> Vec<(usize, usize)> {
    let n = names.len();
    let index = |name: &str| names.iter().position(|(known, _)| known == name).unwrap_or(0);
    let mut ends: Vec<(usize, usize)> = match topology {
        Topology::Clique => (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b))).collect(),
        Topology::Ring => (0..n).map(|a| (a, (a + 1) % n)).collect(),
        Topology::Star { centre } => {
            let centre = index(centre.as_str());
            (0..n).filter(|a| *a != centre).map(|a| (a, centre)).collect()
        }
        Topology::Explicit { links } => {
            links.iter().map(|(a, b)| (index(a.as_str()), index(b.as_str()))).collect()
        }
    };
    // A ring of two nodes has one link, and a link said twice is one.
    for pair in &mut ends {
        *pair = (pair.0.min(pair.1), pair.0.max(pair.1));
    }
    ends.sort_unstable();
    ends.dedup();
    ends.retain(|(a, b)| a != b);
    ends
}

/// Shortest routes between all pairs; among equally short ones the one over the nodes that come first.
fn routes(n: usize, ends: &[(usize, usize)]) -> Vec<Rc<[u32]>> {
    let mut neighbours = vec![vec![]; n];
    for (link, (a, b)) in ends.iter().enumerate() {
        neighbours[*a].push((*b, link as u32));
        neighbours[*b].push((*a, link as u32));
    }
    neighbours.iter_mut().for_each(|list| list.sort_unstable());
    let mut routes = Vec::with_capacity(n * n);
    for from in 0..n {
        let mut came: Vec<Option<(usize, u32)>> = vec![None; n];
        let mut todo = VecDeque::from([from]);
        while let Some(at) = todo.pop_front() {
            for (next, link) in &neighbours[at] {
                if *next != from && came[*next].is_none() {
                    came[*next] = Some((at, *link));
                    todo.push_back(*next);
                }
            }
        }
        for to in 0..n {
            let mut links = vec![];
            let mut at = to;
            while let Some((before, link)) = came[at].filter(|_| at != from) {
                links.push(link);
                at = before;
            }
            links.reverse();
            routes.push(links.into());
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Purpose;

    fn network(topology: &str, n: usize, latency_ms: f64) -> Network<u32> {
        let text = format!(
            "topology = {topology}\nthroughput_mib_per_sec = 10\nlatency_ms = {latency_ms}"
        );
        let names: Vec<_> = (1..=n).map(|at| (format!("n{at}"), 0)).collect();
        let stream = Stream::new(1, 0, 0, Purpose::Link);
        Network::new(&toml::from_str(&text).unwrap(), &names, Default::default(), stream)
    }

    #[test]
    fn routes_are_as_long_as_the_topology_says() {
        let check = |topology: &str, from: usize, to: usize, hops: usize| {
            assert_eq!(network(topology, 5, 0.0).hops(from, to), hops, "{topology} {from} {to}");
        };
        check("{kind = \"clique\"}", 1, 4, 1);
        check("{kind = \"clique\"}", 2, 2, 0);
        check("{kind = \"ring\"}", 0, 2, 2);
        check("{kind = \"ring\"}", 0, 4, 1);
        check("{kind = \"star\", centre = \"n1\"}", 1, 4, 2);
        check("{kind = \"star\", centre = \"n1\"}", 0, 4, 1);
        let star = network("{kind = \"star\", centre = \"n3\"}", 5, 0.0);
        assert_eq!(star.nodes_on(4, 0), [4, 2, 0]);
        let line = "{kind = \"explicit\", links = [[\"n1\",\"n2\"],[\"n2\",\"n3\"],[\"n3\",\"n4\"],[\"n4\",\"n5\"]]}";
        check(line, 0, 4, 4);
    }

    /// Runs transfers (start in seconds, from, to, MiB) to their ends.
    fn check(topology: &str, transfers: &[(f64, usize, usize, f64)], ends: &[f64]) {
        let mut net = network(topology, 3, 0.0);
        let mut due: Vec<(Nanos, u32, u32)> = vec![];
        let mut waiting: VecDeque<_> = transfers.iter().enumerate().collect();
        let mut done = vec![0.0; ends.len()];
        loop {
            due.sort_unstable();
            let next = due.first().map(|(at, ..)| *at);
            let now = match (waiting.front(), next) {
                (Some((_, begins)), at) if at.is_none_or(|at| nanos(begins.0) <= at) => {
                    let (number, (at, from, to, mib)) = waiting.pop_front().unwrap();
                    net.start(nanos(*at), (*from, *to), *mib, number as u32);
                    nanos(*at)
                }
                (_, Some(at)) => {
                    let (_, flow, token) = due.remove(0);
                    if net.finish(at, flow, token).is_some() {
                        done[net.take(flow).unwrap() as usize] = secs(at);
                    }
                    at
                }
                _ => break,
            };
            assert!(net.moved.iter().all(|(_, _, end)| *end >= now));
            due.extend(net.moved.drain(..).map(|(flow, token, end)| (end, flow, token)));
        }
        for (is, expect) in done.iter().zip(ends) {
            assert!((is - expect).abs() < 1e-6, "{transfers:?}: {done:?}, not {ends:?}");
        }
    }

    #[test]
    fn transfers_share_links_evenly() {
        let clique = "{kind = \"clique\"}";
        let star = "{kind = \"star\", centre = \"n1\"}";
        check(clique, &[(0.0, 0, 1, 20.0)], &[2.0]);
        check(clique, &[(0.0, 0, 1, 20.0), (0.0, 1, 2, 20.0)], &[2.0, 2.0]);
        check(clique, &[(0.0, 0, 1, 20.0), (0.0, 1, 0, 20.0)], &[4.0, 4.0]);
        check(clique, &[(0.0, 0, 1, 20.0), (1.0, 1, 0, 5.0)], &[2.5, 2.0]);
        check(star, &[(0.0, 1, 2, 20.0), (0.0, 0, 2, 10.0)], &[3.0, 2.0]);
    }
}
