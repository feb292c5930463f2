//! Reservations: what of a pool (a node, a project's quota) is promised to whom, so that decisions never rest on
//! measurements that others are about to change.
//!
//! A pool's record holds its capacity and what is taken of it; each holder has a key of its own. Both change in one
//! transaction that compares the pool's last write, so no race can sell more than there is. To reserve *and* record
//! in one step, take the compares and operations of a [`Step`] into a transaction of your own.
//!
//! | key | value |
//! | --- | --- |
//! | `pool/POOL` | capacity and sum of what is held |
//! | `held/POOL/HOLDER` | what that holder has |

use crate::state::{
    Compare, Entry, Key, KeySpan, Op, OpReply, Query, Revision, State, StateError, Txn,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How often a reservation is tried when others keep changing the pool: each round one of the competitors wins, and
/// hundreds at once are not expected.
const TRIES_MAX: u32 = 256;

/// What can be reserved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Amounts {
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Processors, thousandths of a core.
    pub cpu_milli: u64,
    /// Machines.
    pub machines: u64,
}

impl Amounts {
    fn combine(self, other: Self, with: impl Fn(u64, u64) -> Option<u64>) -> Option<Self> {
        Some(Self {
            memory_mib: with(self.memory_mib, other.memory_mib)?,
            cpu_milli: with(self.cpu_milli, other.cpu_milli)?,
            machines: with(self.machines, other.machines)?,
        })
    }

    /// The sum; `None` beyond 2^64.
    pub fn plus(self, other: Self) -> Option<Self> {
        self.combine(other, u64::checked_add)
    }

    /// The difference, each part not below zero.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        self.combine(other, |a, b| Some(a.saturating_sub(b))).unwrap_or_default()
    }

    /// Whether each part is at most that of `other`.
    pub fn fits(self, other: Self) -> bool {
        self.memory_mib <= other.memory_mib
            && self.cpu_milli <= other.cpu_milli
            && self.machines <= other.machines
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct PoolRecord {
    capacity: Amounts,
    held: Amounts,
}

/// How full a pool is. A pool that was lowered below what is held has nothing free, and stays so until enough is
/// released.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// What there is.
    pub capacity: Amounts,
    /// What is promised.
    pub held: Amounts,
}

impl Usage {
    /// What can still be promised.
    pub fn free(&self) -> Amounts {
        self.capacity.less(self.held)
    }
}

/// The answer to a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// The holder has what it asked for, and nothing else.
    Reserved,
    /// It does not fit; nothing has changed.
    Exhausted {
        /// What is free for this holder (what it has already included).
        free: Amounts,
        /// What it asked for.
        wanted: Amounts,
    },
}

impl Reserved {
    /// The stable code of a refusal.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Reserved => None,
            Self::Exhausted { .. } => Some("CAPACITY_EXHAUSTED"),
        }
    }
}

/// Part of a transaction that reserves or releases: take both lists into one of your own. If its compares do not hold,
/// someone else has changed the pool: ask for a new step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What is then written.
    pub ops: Vec<Op>,
}

/// A reservation thought through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It fits, as of now.
    Fits(Step),
    /// It does not.
    Exhausted {
        /// What is free for this holder.
        free: Amounts,
        /// What it asked for.
        wanted: Amounts,
    },
}

/// All pools of a state.
#[derive(Debug, Clone)]
pub struct Reservations {
    state: Arc<dyn State>,
}

/// What is stored of a pool and one holder, with the revisions to compare.
struct Seen {
    pool: PoolRecord,
    pool_revision: Revision,
    held: Amounts,
    held_revision: Revision,
}

impl Reservations {
    /// The pools in `state`.
    pub fn new(state: Arc<dyn State>) -> Self {
        Self { state }
    }

    /// Sets what a pool has. A pool that was never set has nothing.
    ///
    /// # Errors
    /// [`StateError::Invalid`] for a name that does not fit a key, and whatever stops the state from answering.
    pub async fn set_capacity(&self, pool: &str, capacity: Amounts) -> Result<(), StateError> {
        let key = pool_key(pool)?;
        for _ in 0..TRIES_MAX {
            let entry = self.state.get(&key).await?;
            let record = PoolRecord { capacity, ..decode(entry.as_ref())? };
            let txn = Txn::new()
                .when(Compare::unchanged(key.clone(), revision(entry.as_ref())))
                .then(Op::put(key.clone(), encode(&record)));
            if self.state.txn(txn).await?.succeeded {
                return Ok(());
            }
        }
        Err(contended())
    }

    /// How full a pool is.
    ///
    /// # Errors
    /// As [`Reservations::set_capacity`].
    pub async fn usage(&self, pool: &str) -> Result<Usage, StateError> {
        let entry = self.state.get(&pool_key(pool)?).await?;
        let PoolRecord { capacity, held } = decode(entry.as_ref())?;
        Ok(Usage { capacity, held })
    }

    /// Who holds what of a pool.
    ///
    /// # Errors
    /// As [`Reservations::set_capacity`].
    pub async fn holders(&self, pool: &str) -> Result<Vec<(String, Amounts)>, StateError> {
        let root = format!("held/{pool}/");
        let mut rest = KeySpan::prefix(&root)?;
        let mut holders = Vec::new();
        loop {
            let found = self.state.range(Query::span(rest.clone())).await?;
            for entry in &found.entries {
                let name = entry.key.as_str().strip_prefix(&root).unwrap_or_default().to_owned();
                holders.push((name, decode(Some(entry))?));
            }
            match found.entries.last() {
                Some(last) if found.more => rest = rest.after(&last.key),
                _ => return Ok(holders),
            }
        }
    }

    /// Promises `wanted` of a pool to a holder, who then has exactly that, whatever it had before: repeating it changes
    /// nothing, and another amount resizes.
    ///
    /// # Errors
    /// As [`Reservations::set_capacity`].
    pub async fn reserve(
        &self,
        pool: &str,
        holder: &str,
        wanted: Amounts,
    ) -> Result<Reserved, StateError> {
        for _ in 0..TRIES_MAX {
            match self.plan_reserve(pool, holder, wanted).await? {
                Plan::Exhausted { free, wanted } => {
                    return Ok(Reserved::Exhausted { free, wanted });
                }
                Plan::Fits(step) => {
                    if self.try_step(step).await? {
                        return Ok(Reserved::Reserved);
                    }
                }
            }
        }
        Err(contended())
    }

    /// Takes back what a holder has of a pool; what it had. Nothing is held: nothing happens.
    ///
    /// # Errors
    /// As [`Reservations::set_capacity`].
    pub async fn release(&self, pool: &str, holder: &str) -> Result<Amounts, StateError> {
        for _ in 0..TRIES_MAX {
            let held = self.seen(pool, holder).await?.held;
            let Some(step) = self.plan_release(pool, holder).await? else {
                return Ok(Amounts::default());
            };
            if self.try_step(step).await? {
                return Ok(held);
            }
        }
        Err(contended())
    }

    /// What a transaction must compare and write to reserve, as of now.
    ///
    /// # Errors
    /// As [`Reservations::set_capacity`].
    pub async fn plan_reserve(
        &self,
        pool: &str,
        holder: &str,
        wanted: Amounts,
    ) -> Result<Plan, StateError> {
        let seen = self.seen(pool, holder).await?;
        let others = seen.pool.held.less(seen.held);
        let free = seen.pool.capacity.less(others);
        let held = match others.plus(wanted) {
            // Shrinking is allowed even where the capacity was lowered below what is held.
            Some(held) if wanted.fits(free) || wanted.fits(seen.held) => held,
            _ => return Ok(Plan::Exhausted { free, wanted }),
        };
        let pool_record = PoolRecord { held, ..seen.pool };
        let write = Op::put(holder_key(pool, holder)?, encode(&wanted));
        Ok(Plan::Fits(seen.step(pool, holder, &pool_record, write)?))
    }

    /// What a transaction must compare and write to release, as of now; `None` if nothing is held.
    ///
    /// # Errors
    /// As [`Reservations::set_capacity`].
    pub async fn plan_release(&self, pool: &str, holder: &str) -> Result<Option<Step>, StateError> {
        let seen = self.seen(pool, holder).await?;
        if seen.held_revision == Revision::ZERO {
            return Ok(None);
        }
        let pool_record = PoolRecord { held: seen.pool.held.less(seen.held), ..seen.pool };
        let write = Op::delete(&holder_key(pool, holder)?);
        seen.step(pool, holder, &pool_record, write).map(Some)
    }

    async fn try_step(&self, step: Step) -> Result<bool, StateError> {
        let txn = Txn { compares: step.compares, then: step.ops, ..Txn::default() };
        Ok(self.state.txn(txn).await?.succeeded)
    }

    async fn seen(&self, pool: &str, holder: &str) -> Result<Seen, StateError> {
        let txn =
            Txn::new().then(Op::get(pool_key(pool)?)).then(Op::get(holder_key(pool, holder)?));
        let replies = self.state.txn(txn).await?.replies;
        let mut entries = replies.into_iter().map(|reply| match reply {
            OpReply::Range(found) => found.entries.into_iter().next(),
            OpReply::Put | OpReply::Deleted(_) => None,
        });
        let (pool, held) = (entries.next().flatten(), entries.next().flatten());
        Ok(Seen {
            pool: decode(pool.as_ref())?,
            pool_revision: revision(pool.as_ref()),
            held: decode(held.as_ref())?,
            held_revision: revision(held.as_ref()),
        })
    }
}

impl Seen {
    fn step(
        &self,
        pool: &str,
        holder: &str,
        record: &PoolRecord,
        write: Op,
    ) -> Result<Step, StateError> {
        let (pool, holder) = (pool_key(pool)?, holder_key(pool, holder)?);
        let compares = vec![
            Compare::unchanged(pool.clone(), self.pool_revision),
            Compare::unchanged(holder, self.held_revision),
        ];
        Ok(Step { compares, ops: vec![Op::put(pool, encode(record)), write] })
    }
}

fn pool_key(pool: &str) -> Result<Key, StateError> {
    Key::new(format!("pool/{pool}"))
}

fn holder_key(pool: &str, holder: &str) -> Result<Key, StateError> {
    Key::new(format!("held/{pool}/{holder}"))
}

fn revision(entry: Option<&Entry>) -> Revision {
    entry.map_or(Revision::ZERO, |entry| entry.mod_revision)
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("stored types are always JSON")
}

fn decode<T: Default + for<'de> Deserialize<'de>>(entry: Option<&Entry>) -> Result<T, StateError> {
    let Some(entry) = entry else { return Ok(T::default()) };
    serde_json::from_slice(&entry.value).map_err(|error| StateError::Corrupt {
        path: entry.key.as_str().into(),
        what: error.to_string(),
    })
}

fn contended() -> StateError {
    StateError::Unavailable { why: "the pool keeps being changed".to_owned() }
}
