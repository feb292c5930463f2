//! The one task that changes queues: it plans what waits in its inbox as one transaction after the other.
//!
//! As the embedded store shares one commit among many writers, the engine shares one transaction among many
//! requests: while one is under way, the next gathers. So a queue under load costs a few operations per job and not a
//! round trip, and the count that every change writes is no bottleneck. Engines of several processes meet only in
//! that count: a transaction that lost is planned again from what is read anew.
//!
//! If it is not known whether a transaction happened, its requests are planned again *carefully*: all they touch is
//! read, and each recognises what it has already done (see [`plan`](super::plan)).

use super::QueueError;
use super::keys::{self, QueueName};
use super::lane::{Draft, Lane, WINDOW_MAX};
use super::plan::{Action, Need, Reply, Step};
use super::stored::{Count, decode};
use crate::blob::PinnedBlob;
use crate::state::{
    Compare, LeaseId, Op, Query, RangeReply, Revision, State, StateError, TXN_OPS_MAX, Txn,
};
use rand::RngExt as _;
use skein_model::{JobId, Timestamp};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};

/// Requests under consideration: several transactions full.
const PENDING_MAX: usize = 512;

/// Queues, and claimants, known by heart.
const LANES_MAX: usize = 1024;

/// How often a request is planned before it is given up, when others keep changing its queue or the outcome stays
/// unknown: with the pauses below, some 10 s.
const TRIES_MAX: u32 = 200;

/// Longest pause before a transaction that lost is planned again.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// A request with the way back.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) queue: QueueName,
    pub(super) now: Timestamp,
    pub(super) action: Action,
    pub(super) answer: oneshot::Sender<Result<Settled, QueueError>>,
    /// Holds a blob until the reference to it is written.
    pub(super) _pin: Option<PinnedBlob>,
    pub(super) tries: Tries,
}

/// What came of a request, for all to see.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) reply: Reply,
    /// Durable once the state has brought this to the disk.
    pub(super) revision: Revision,
}

/// What a request has been through.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tries {
    count: u32,
    /// Nothing may be assumed: read all it touches.
    careful: bool,
    /// A transaction with it may have happened.
    unknown: bool,
}

pub(super) struct Engine {
    state: Arc<dyn State>,
    inbox: mpsc::Receiver<Command>,
    lanes: HashMap<QueueName, Lane>,
    /// Leases with a claimant key.
    claimants: HashSet<LeaseId>,
    /// So many of the next requests are tried alone, because together there was no space for them.
    alone: usize,
    /// Told when something was put off, so that the next sweep may be due earlier.
    put_off: Arc<Notify>,
}

/// What one read is for.
type Wanted = BTreeMap<QueueName, Vec<Need>>;

impl Engine {
    pub(super) fn new(
        state: Arc<dyn State>,
        inbox: mpsc::Receiver<Command>,
        put_off: Arc<Notify>,
    ) -> Self {
        let (lanes, claimants) = Default::default();
        Self { state, inbox, lanes, claimants, alone: 0, put_off }
    }

    /// Serves until all handles are gone.
    pub(super) async fn run(mut self) {
        let mut pending = VecDeque::new();
        loop {
            if pending.is_empty() {
                let Some(first) = self.inbox.recv().await else { return };
                pending.push_back(first);
            }
            while pending.len() < PENDING_MAX {
                let Ok(next) = self.inbox.try_recv() else { break };
                pending.push_back(next);
            }
            self.round(&mut pending).await;
        }
    }

    /// One transaction: reads what is missing, plans what fits, tries it, answers.
    async fn round(&mut self, pending: &mut VecDeque<Command>) {
        self.register_claimants(pending).await;
        let considered = match self.learn(pending).await {
            Ok(considered) => considered,
            Err(error) => {
                let all = pending.len();
                return self.failed(pending.drain(..all).collect(), error, pending).await;
            }
        };
        let mut draft = Draft::default();
        let mut planned = Vec::new();
        while planned.len() < considered {
            let Some(command) = pending.front_mut() else { break };
            let Some(lane) = self.lanes.get_mut(&command.queue) else { break };
            if command.tries.unknown {
                // Writing the count bars the transaction that may still be under way.
                draft.changes(&command.queue);
            }
            let step = command.action.step(lane, &mut draft, &command.queue, command.now);
            let Step::Answer(reply) = step else { break };
            planned.extend(pending.pop_front().map(|command| (command, reply)));
        }
        if draft.lanes().is_empty() {
            return;
        }
        let lanes = draft.lanes().clone();
        // Those who ask wait for the disk by themselves, while the next requests are planned: an accepted job can be
        // claimed before it is durable. A loss of power between the two takes the claim and its machine as well.
        let txn = draft.into_txn(&self.lanes).soon();
        match self.state.txn(txn).await {
            Ok(reply) if reply.succeeded => {
                for (queue, _) in lanes.iter().filter(|(_, changed)| **changed) {
                    if let Some(lane) = self.lanes.get_mut(queue) {
                        lane.revision = reply.revision;
                        lane.trim();
                    }
                }
                self.succeeded(planned, reply.revision);
            }
            outcome => {
                for queue in lanes.keys() {
                    self.lanes.remove(queue);
                }
                let commands = planned.into_iter().map(|(command, _)| command).collect();
                match outcome {
                    Ok(_) => self.lost(commands, pending).await,
                    Err(error) => self.failed(commands, error.into(), pending).await,
                }
            }
        }
    }

    fn succeeded(
        &mut self,
        planned: Vec<(Command, Result<Reply, QueueError>)>,
        revision: Revision,
    ) {
        self.alone = self.alone.saturating_sub(planned.len());
        let mut put_off = false;
        for (command, reply) in planned {
            put_off |= match &command.action {
                Action::Submit(submit) => submit.job.deadline.is_some(),
                Action::Fail { .. } => true,
                _ => false,
            };
            // Whoever asked may have gone; what was asked has happened all the same.
            let _ = command.answer.send(reply.map(|reply| Settled { reply, revision }));
        }
        if put_off {
            self.put_off.notify_one();
        }
        if self.lanes.len() > LANES_MAX {
            self.lanes.clear();
        }
        if self.claimants.len() > LANES_MAX {
            self.claimants.clear();
        }
    }

    /// Someone else was faster: again, from what is read anew.
    async fn lost(&mut self, commands: Vec<Command>, pending: &mut VecDeque<Command>) {
        let error = StateError::Unavailable { why: "the queue keeps being changed".to_owned() };
        self.again(commands, pending, &error.into(), |tries| tries.careful = true).await;
    }

    /// The store refused, or does not know.
    async fn failed(
        &mut self,
        commands: Vec<Command>,
        error: QueueError,
        pending: &mut VecDeque<Command>,
    ) {
        let again = match &error {
            QueueError::State { source: StateError::Unknown { .. } } => true,
            QueueError::State { source: StateError::DiskFull } if commands.len() > 1 => {
                self.alone = commands.len();
                return commands.into_iter().rev().for_each(|c| pending.push_front(c));
            }
            _ => false,
        };
        if again {
            let unknown = |tries: &mut Tries| (tries.careful, tries.unknown) = (true, true);
            return self.again(commands, pending, &error, unknown).await;
        }
        self.alone = self.alone.saturating_sub(commands.len());
        for command in commands {
            give_up(command, error.clone());
        }
    }

    /// Puts the requests back to the front, those that have tries left, after a pause.
    async fn again(
        &mut self,
        commands: Vec<Command>,
        pending: &mut VecDeque<Command>,
        error: &QueueError,
        mark: impl Fn(&mut Tries),
    ) {
        let mut tried = 0;
        for mut command in commands.into_iter().rev() {
            mark(&mut command.tries);
            command.tries.count += 1;
            tried = tried.max(command.tries.count);
            if let (Action::Claim(claiming), false) = (&mut command.action, command.tries.unknown) {
                claiming.tried.clear();
            }
            if command.tries.count >= TRIES_MAX {
                give_up(command, error.clone());
            } else {
                pending.push_front(command);
            }
        }
        // The first time at once: the other is done. Then longer and longer, at random, so that two do not meet again.
        if tried > 1 {
            let longest = PAUSE_MAX.min(Duration::from_millis(1) * tried);
            let pause = longest.mul_f64(rand::rng().random_range(0.0..1.0));
            tokio::time::sleep(pause).await;
        }
    }

    /// Sees to it that each claimant has its key, which dies with its lease.
    async fn register_claimants(&mut self, pending: &mut VecDeque<Command>) {
        let lease_of = |command: &Command| match &command.action {
            Action::Claim(claiming) => {
                Some((claiming.lease, claiming.claim.node.to_string(), command.tries.careful))
            }
            _ => None,
        };
        let wanted: BTreeMap<LeaseId, (String, bool)> = pending
            .iter()
            .filter_map(lease_of)
            .filter(|(lease, _, careful)| *careful || !self.claimants.contains(lease))
            .map(|(lease, node, careful)| (lease, (node, careful)))
            .collect();
        for (lease, (node, _)) in wanted {
            let error = match self.register(lease, node).await {
                Ok(()) => {
                    self.claimants.insert(lease);
                    continue;
                }
                Err(StateError::LeaseNotFound { .. }) => QueueError::ClaimantGone,
                Err(error) => error.into(),
            };
            self.claimants.remove(&lease);
            let of_lease = |command: &Command| lease_of(command).is_some_and(|(l, ..)| l == lease);
            let (gone, rest): (Vec<_>, Vec<_>) = pending.drain(..).partition(of_lease);
            pending.extend(rest);
            gone.into_iter().for_each(|command| give_up(command, error.clone()));
        }
    }

    /// Writes a claimant's key; doing it twice is doing it once.
    async fn register(&self, lease: LeaseId, node: String) -> Result<(), StateError> {
        let key = keys::claimant(lease);
        let txn =
            Txn::new().when(Compare::missing(key.clone())).then(Op::put_leased(key, node, lease));
        for left in (0..TRIES_MAX).rev() {
            match self.state.txn(txn.clone()).await {
                Err(StateError::Unknown { .. }) if left > 0 => {
                    tokio::time::sleep(PAUSE_MAX).await;
                }
                outcome => return outcome.map(|_| ()),
            }
        }
        Ok(())
    }

    /// Reads what the first requests need, and says how many of them can be planned.
    async fn learn(&mut self, pending: &VecDeque<Command>) -> Result<usize, QueueError> {
        // Each reading may find that a queue was changed meanwhile, and what was known of it is void.
        for _ in 0..TRIES_MAX {
            let (wanted, considered) = self.wanted(pending);
            if wanted.is_empty() {
                return Ok(considered);
            }
            self.read(&wanted).await?;
        }
        Err(StateError::Unavailable { why: "the queues keep being changed".to_owned() }.into())
    }

    /// What is missing for the first requests, as far as one transaction can read it.
    fn wanted(&self, pending: &VecDeque<Command>) -> (Wanted, usize) {
        let unknown = Lane::new(Revision::ZERO, Count::default());
        let mut wanted = Wanted::new();
        let mut known = HashSet::new();
        let mut claimed: HashMap<&QueueName, usize> = HashMap::new();
        let mut ops = 0;
        let most = if self.alone > 0 { 1 } else { pending.len() };
        for (index, command) in pending.iter().take(most).enumerate() {
            let queue = &command.queue;
            let claimed = claimed.entry(queue).or_default();
            let needs = match self.lanes.get(queue) {
                Some(lane) => command.action.needs(lane, *claimed, command.tries.careful),
                None => command.action.needs(&unknown, 0, true),
            };
            *claimed += command.action.claims();
            let must = !needs.is_empty() || !self.lanes.contains_key(queue);
            if !must {
                continue;
            }
            let new_lane = !wanted.contains_key(queue);
            let new: Vec<Need> =
                needs.into_iter().filter(|n| known.insert((queue.clone(), n.clone()))).collect();
            ops += new.len() + usize::from(new_lane);
            if ops > TXN_OPS_MAX {
                return (wanted, index);
            }
            wanted.entry(queue.clone()).or_default().extend(new);
        }
        (wanted, most)
    }

    /// Reads in one snapshot, and takes what was found into the lanes.
    async fn read(&mut self, wanted: &Wanted) -> Result<(), QueueError> {
        let mut txn = Txn::new();
        for (queue, needs) in wanted {
            txn.then.push(Op::get(keys::count(queue)));
            txn.then.extend(needs.iter().map(|need| match need {
                Need::Job(id) => Op::get(keys::job(*id)),
                Need::Token(token) => Op::get(keys::token(queue, token)),
                Need::Window => Op::Range(Query::span(keys::waiting_of(queue)).limit(WINDOW_MAX)),
            }));
        }
        let reply = self.state.txn(txn).await?;
        let mut found = reply.ranges();
        let mut next =
            || found.next().ok_or(StateError::Protocol { what: "a read was not answered" });
        for (queue, needs) in wanted {
            let lane = self.lane_as_read(queue, &next()?)?;
            for need in needs {
                let found = next()?;
                take_in(lane, need, &found)?;
            }
        }
        Ok(())
    }

    /// The lane, which is void if its count has been written by someone else.
    fn lane_as_read(
        &mut self,
        queue: &QueueName,
        found: &RangeReply,
    ) -> Result<&mut Lane, QueueError> {
        let (revision, count) = match found.entries.first() {
            None => (Revision::ZERO, Count::default()),
            Some(entry) => (entry.mod_revision, parse(entry)?),
        };
        let lane =
            self.lanes.entry(queue.clone()).or_insert_with(|| Lane::new(revision, count.clone()));
        if lane.revision != revision {
            *lane = Lane::new(revision, count);
        }
        Ok(lane)
    }
}

fn give_up(command: Command, error: QueueError) {
    // An earlier try may have happened, whatever the last one says.
    let error = match error {
        error if !command.tries.unknown => error,
        // Whatever it has claimed falls back with its lease.
        QueueError::ClaimantGone => QueueError::ClaimantGone,
        QueueError::State { source } => StateError::Unknown { why: source.to_string() }.into(),
        error => StateError::Unknown { why: error.to_string() }.into(),
    };
    let _ = command.answer.send(Err(error));
}

fn take_in(lane: &mut Lane, need: &Need, found: &RangeReply) -> Result<(), QueueError> {
    match need {
        Need::Job(id) => {
            let stored = found.entries.first().map(parse).transpose()?;
            lane.jobs.insert(*id, stored);
        }
        Need::Token(token) => {
            let used = found.entries.first().map(parse).transpose()?;
            lane.tokens.insert(token.clone(), used);
        }
        Need::Window => {
            lane.window.clear();
            lane.whole = !found.more;
            for entry in &found.entries {
                let damaged = || QueueError::Damaged {
                    key: entry.key.to_string(),
                    what: "neither a sequence number nor a job".to_owned(),
                };
                let (_, sequence) = keys::queue_and_last(&entry.key).ok_or_else(damaged)?;
                let sequence = u64::from_str_radix(sequence, 16).map_err(|_| damaged())?;
                let id = std::str::from_utf8(&entry.value).map_err(|_| damaged())?;
                lane.window.insert(sequence, id.parse::<JobId>().map_err(|_| damaged())?);
            }
        }
    }
    Ok(())
}

/// A stored type of an entry.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    entry: &crate::state::Entry,
) -> Result<T, QueueError> {
    let damaged = |what| QueueError::Damaged { key: entry.key.to_string(), what };
    decode(&entry.value).map_err(damaged)
}
