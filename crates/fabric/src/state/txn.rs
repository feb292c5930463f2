//! Reads and transactions, and their bounds.

use super::{Key, KeySpan, LeaseId, Revision, StateError};
use bytes::Bytes;
use std::collections::HashSet;

/// Largest value, bytes. Larger things are blobs.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// Most compares, and most operations of either list, of one transaction: etcd's default.
pub const TXN_OPS_MAX: usize = 128;

/// Most bytes of keys and values in one transaction: fits etcd's default request of 1.5 MiB with room for its
/// framing.
pub const TXN_BYTES_MAX: usize = 1280 * 1024;

/// A page of a list ends after the entry that reaches so many bytes of keys and values: few entries of the largest
/// size, and far more than a page of small ones.
pub const RANGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A key with its value and history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// When it was created (last).
    pub create_revision: Revision,
    /// When it was written last.
    pub mod_revision: Revision,
    /// How often it was written since its creation, from 1.
    pub version: u64,
    /// What its life hangs on.
    pub lease: Option<LeaseId>,
}

/// A read of a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Which keys.
    pub span: KeySpan,
    /// At most so many entries, from 1.
    pub limit: usize,
    /// Whether the values are left out (they are empty then).
    pub keys_only: bool,
}

impl Query {
    /// Entries of one page unless asked otherwise: 1,000 small records are a few hundred KiB.
    pub const LIMIT_DEFAULT: usize = 1000;

    /// One key.
    pub fn one(key: Key) -> Self {
        Self { span: KeySpan::one(&key), limit: 1, keys_only: false }
    }

    /// The first entries of a span.
    pub fn span(span: KeySpan) -> Self {
        Self { span, limit: Self::LIMIT_DEFAULT, keys_only: false }
    }

    /// At most `limit` entries.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Without values.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeReply {
    /// The entries, in key order.
    pub entries: Vec<Entry>,
    /// Whether the span holds more than the limit let through.
    pub more: bool,
    /// The revision of the store at which this was read.
    pub revision: Revision,
}

/// How a compared quantity must relate to the given one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    /// Equal to it.
    Equal,
    /// Different from it.
    NotEqual,
    /// Greater than it.
    Greater,
    /// Less than it.
    Less,
}

/// Which quantity of a key is compared, and with what. A key that does not exist has version and revisions 0, and
/// no value: every comparison of its value fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Writes since its creation.
    Version(u64),
    /// The revision of its creation.
    CreateRevision(Revision),
    /// The revision of its last write.
    ModRevision(Revision),
    /// Its value, by bytes.
    Value(Bytes),
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Which key.
    pub key: Key,
    /// What of it.
    pub target: Target,
    /// How it must relate.
    pub relation: Relation,
}

impl Compare {
    /// The key does not exist.
    pub fn missing(key: Key) -> Self {
        Self { key, target: Target::Version(0), relation: Relation::Equal }
    }

    /// The key exists.
    pub fn exists(key: Key) -> Self {
        Self { key, target: Target::Version(0), relation: Relation::Greater }
    }

    /// The key was written last at `revision` ([`Revision::ZERO`]: does not exist).
    pub fn unchanged(key: Key, revision: Revision) -> Self {
        Self { key, target: Target::ModRevision(revision), relation: Relation::Equal }
    }

    /// The key was created at `revision` and has not been deleted since.
    pub fn created_at(key: Key, revision: Revision) -> Self {
        Self { key, target: Target::CreateRevision(revision), relation: Relation::Equal }
    }

    /// The key has this value.
    pub fn value(key: Key, value: impl Into<Bytes>) -> Self {
        Self { key, target: Target::Value(value.into()), relation: Relation::Equal }
    }

    /// Whether it holds for what the store has under the key.
    pub fn holds(&self, entry: Option<&Entry>) -> bool {
        let ordering = match &self.target {
            Target::Version(version) => entry.map_or(0, |e| e.version).cmp(version),
            Target::CreateRevision(revision) => {
                entry.map_or(Revision::ZERO, |e| e.create_revision).cmp(revision)
            }
            Target::ModRevision(revision) => {
                entry.map_or(Revision::ZERO, |e| e.mod_revision).cmp(revision)
            }
            Target::Value(value) => match entry {
                Some(entry) => entry.value.cmp(value),
                None => return false,
            },
        };
        match self.relation {
            Relation::Equal => ordering.is_eq(),
            Relation::NotEqual => ordering.is_ne(),
            Relation::Greater => ordering.is_gt(),
            Relation::Less => ordering.is_lt(),
        }
    }
}

/// An operation of a transaction. Operations run in order, and a read sees the writes before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// Which.
        key: Key,
        /// What.
        value: Bytes,
        /// What its life hangs on from now; `None` detaches it.
        lease: Option<LeaseId>,
    },
    /// Deletes the keys of a span.
    Delete(KeySpan),
    /// Reads.
    Range(Query),
}

impl Op {
    /// Writes a key without a lease.
    pub fn put(key: Key, value: impl Into<Bytes>) -> Self {
        Self::Put { key, value: value.into(), lease: None }
    }

    /// Writes a key whose life hangs on `lease`.
    pub fn put_leased(key: Key, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        Self::Put { key, value: value.into(), lease: Some(lease) }
    }

    /// Deletes one key.
    pub fn delete(key: &Key) -> Self {
        Self::Delete(KeySpan::one(key))
    }

    /// Reads one key.
    pub fn get(key: Key) -> Self {
        Self::Range(Query::one(key))
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.as_bytes().len() + value.len(),
            Self::Delete(span) => span.start().len() * 2,
            Self::Range(query) => query.span.start().len() * 2,
        }
    }
}

/// A transaction: at most [`TXN_OPS_MAX`] compares and operations in either list, [`TXN_BYTES_MAX`] in all. One list
/// may not write a key twice, nor write a key that it deletes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold for `then` to run.
    pub compares: Vec<Compare>,
    /// What happens if they do.
    pub then: Vec<Op>,
    /// What happens if not.
    pub otherwise: Vec<Op>,
    /// What its answer promises.
    pub durability: Durability,
}

/// What the answer of a transaction promises about a loss of power. The death of any process loses nothing either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// It outlasts a loss of power.
    #[default]
    Now,
    /// A loss of power may undo it, with everything that came after it: what is durable never misses what was before.
    /// For what means nothing once the power was lost, because whom it speaks of is gone then: who works on a job, what a
    /// machine is doing; and for those who call [`State::sync`](super::State::sync) when they have done other things
    /// meanwhile. A store may make it durable at once all the same; etcd does.
    Soon,
}

impl Txn {
    /// Without conditions and operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// One condition more.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// One operation more if the conditions hold.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// One operation more if they do not.
    #[must_use]
    pub fn otherwise(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }

    /// Answered as soon as others see it: see [`Durability::Soon`].
    #[must_use]
    pub fn soon(mut self) -> Self {
        self.durability = Durability::Soon;
        self
    }

    /// Whether neither list changes anything.
    pub fn is_read_only(&self) -> bool {
        self.then.iter().chain(&self.otherwise).all(|op| matches!(op, Op::Range(_)))
    }

    /// Bytes of keys and values it carries, for its bound.
    pub fn bytes(&self) -> usize {
        let compared = |compare: &Compare| {
            let value = match &compare.target {
                Target::Value(value) => value.len(),
                Target::Version(_) | Target::CreateRevision(_) | Target::ModRevision(_) => 8,
            };
            compare.key.as_bytes().len() + value
        };
        let ops = self.then.iter().chain(&self.otherwise).map(Op::bytes).sum::<usize>();
        ops + self.compares.iter().map(compared).sum::<usize>()
    }

    /// Checks the bounds. Every implementation calls this first.
    ///
    /// # Errors
    /// [`StateError::Invalid`] names the broken bound.
    pub fn check(&self) -> Result<(), StateError> {
        let lists = [self.compares.len(), self.then.len(), self.otherwise.len()];
        if let Some(count) = lists.iter().find(|count| **count > TXN_OPS_MAX) {
            return Err(StateError::invalid(format!(
                "{count} compares or operations in one transaction; at most {TXN_OPS_MAX}"
            )));
        }
        let bytes = self.bytes();
        if bytes > TXN_BYTES_MAX {
            return Err(StateError::invalid(format!(
                "{bytes} bytes in one transaction; at most {TXN_BYTES_MAX}"
            )));
        }
        check_list(&self.then)?;
        check_list(&self.otherwise)
    }
}

fn check_list(ops: &[Op]) -> Result<(), StateError> {
    let mut written = HashSet::with_capacity(ops.len());
    for op in ops {
        match op {
            Op::Put { key, value, .. } => {
                if value.len() > VALUE_BYTES_MAX {
                    return Err(StateError::invalid(format!(
                        "value of {key} has {} bytes; at most {VALUE_BYTES_MAX}",
                        value.len()
                    )));
                }
                if !written.insert(key.as_bytes()) {
                    return Err(StateError::invalid(format!("{key} is written twice")));
                }
            }
            Op::Range(query) if query.limit == 0 => {
                return Err(StateError::invalid("a limit of 0"));
            }
            Op::Range(_) | Op::Delete(_) => {}
        }
    }
    let spans = ops.iter().filter_map(|op| match op {
        Op::Delete(span) => Some(span),
        Op::Put { .. } | Op::Range(_) => None,
    });
    for span in spans {
        // One key deleted is the common case, and a set answers it; a prefix is compared with each.
        let both = match span.as_one() {
            Some(one) => written.contains(one),
            None => written.iter().any(|key| span.contains_bytes(key)),
        };
        if both {
            return Err(StateError::invalid("a key is both written and deleted"));
        }
    }
    Ok(())
}

/// What an operation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpReply {
    /// The key was written.
    Put,
    /// So many keys were deleted.
    Deleted(u64),
    /// What a read found; its revision is that of the transaction.
    Range(RangeReply),
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnReply {
    /// Whether the compares held, and so which list ran.
    pub succeeded: bool,
    /// The revision of its changes, or the current one if it changed nothing.
    pub revision: Revision,
    /// One reply for each operation of the list that ran.
    pub replies: Vec<OpReply>,
}

impl TxnReply {
    /// What the reads of the list found, in order.
    pub fn ranges(self) -> impl Iterator<Item = RangeReply> {
        self.replies.into_iter().filter_map(|reply| match reply {
            OpReply::Range(found) => Some(found),
            OpReply::Put | OpReply::Deleted(_) => None,
        })
    }
}
