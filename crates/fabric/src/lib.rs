//! State and bus, behind one small interface each, and what is built on them once.
mod embedded;
mod state;

pub use embedded::{EmbeddedOptions, EmbeddedState};
pub use state::{
    Batch, Compare, Entry, Event, KEY_BYTES_MAX, Key, KeySpan, LeaseId, LeaseStatus, Op, OpReply,
    Query, RANGE_BYTES_MAX, RangeReply, Relation, Revision, State, StateError, TXN_BYTES_MAX,
    TXN_OPS_MAX, Target, Txn, TxnReply, VALUE_BYTES_MAX, Watch, WatchFrom,
};
