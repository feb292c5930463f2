//! State and bus, behind one small interface each, and what is built on them once.
//!
//! ```text
//!   Queue   Election   HeldLease   Reservations   BlobStore        written once
//! ─────────────────────────────────────────────────────────
//!         State (the truth)         Bus (the messages)             the two interfaces
//! ─────────────────────────────────────────────────────────
//!     EmbeddedState (SQLite)             LocalBus                  one machine
//!             etcd                         NATS                    several
//! ```
//! [`State`] has etcd's data model: revisioned keys, transactions over several keys, watches, leases. [`Bus`] has
//! NATS's: subjects, requests, groups. A lost message may cost time, never truth. What every implementation must do
//! is in [`conformance`].
//!
//! This crate knows of jobs, machines and nodes only their names and records (`skein-model`). It decides nothing: when
//! a job is retried is in its record, where a machine runs is decided elsewhere. It reads no clock for what it stores:
//! time is an argument; only leases live by the clock of their store.

mod blob;
mod bus;
pub mod conformance;
mod election;
mod embedded;
mod lease;
mod lock;
mod queue;
mod reservation;
mod state;

pub use blob::{
    BlobError, BlobReader, BlobStore, BlobSweep, BlobWriter, PinnedBlob, blob_reference,
};
pub use bus::{
    Bus, BusError, BusStats, Headers, LocalBus, Message, PAYLOAD_BYTES_MAX, Pattern,
    SUBJECT_BYTES_MAX, Subject, SubjectError, Subscribe, Subscription,
};
pub use election::{Election, Leader, Leadership};
pub use embedded::{EmbeddedOptions, EmbeddedState};
pub use lease::{HeldLease, Lost};
pub use queue::{
    Attempt, Audit, Body, CLAIM_MAX, Cancelled, Claimant, Completed, Cursor, Depth, Failed,
    Failure, JobFilter, JobPage, JobResult, Queue, QueueChanges, QueueEnds, QueueError, QueueName,
    StoredBody, Submission, Submitted, Swept,
};
pub use reservation::{Amounts, Plan, Reservations, Reserved, Step, Usage};
pub use state::{
    Batch, Compare, Durability, Entry, Event, KEY_BYTES_MAX, Key, KeySpan, LeaseId, LeaseStatus,
    Op, OpReply, Query, RANGE_BYTES_MAX, RangeReply, Relation, Revision, State, StateError,
    TXN_BYTES_MAX, TXN_OPS_MAX, Target, Txn, TxnReply, VALUE_BYTES_MAX, Watch, WatchFrom,
};
