//! The embedded store against a naive one in memory: the same random operations, the same answers and events.

use proptest::prelude::*;
use skein_fabric::{
    Batch, Compare, EmbeddedOptions, EmbeddedState, Entry, Event, Key, KeySpan, Op, OpReply, Query,
    RangeReply, Relation, Revision, State, Target, Txn, TxnReply, WatchFrom,
};
use std::collections::BTreeMap;

/// What the store should be: a map and a number.
#[derive(Default)]
struct Model {
    revision: Revision,
    entries: BTreeMap<Key, Entry>,
}

impl Model {
    fn range(&self, query: &Query, revision: Revision) -> RangeReply {
        let inside = self.entries.values().filter(|entry| query.span.contains(&entry.key));
        let mut entries: Vec<Entry> = inside.cloned().collect();
        let more = entries.len() > query.limit;
        entries.truncate(query.limit);
        if query.keys_only {
            entries.iter_mut().for_each(|entry| entry.value.clear());
        }
        RangeReply { entries, more, revision }
    }

    fn txn(&mut self, txn: &Txn) -> (TxnReply, Option<Batch>) {
        let succeeded = txn.compares.iter().all(|c| c.holds(self.entries.get(&c.key)));
        let next = self.revision.next();
        let mut events = Vec::new();
        let mut replies = Vec::new();
        for op in if succeeded { &txn.then } else { &txn.otherwise } {
            replies.push(match op {
                Op::Put { key, value, lease } => {
                    let before = self.entries.get(key);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: before.map_or(next, |entry| entry.create_revision),
                        mod_revision: next,
                        version: before.map_or(1, |entry| entry.version + 1),
                        lease: *lease,
                    };
                    self.entries.insert(key.clone(), entry.clone());
                    events.push(Event::Put(entry));
                    OpReply::Put
                }
                Op::Delete(span) => {
                    let gone: Vec<Key> =
                        self.entries.keys().filter(|key| span.contains(key)).cloned().collect();
                    for key in &gone {
                        self.entries.remove(key);
                        events.push(Event::Deleted(key.clone()));
                    }
                    OpReply::Deleted(gone.len() as u64)
                }
                Op::Range(query) => {
                    let revision = if events.is_empty() { self.revision } else { next };
                    OpReply::Range(self.range(query, revision))
                }
            });
        }
        if !events.is_empty() {
            self.revision = next;
        }
        let reply = TxnReply { succeeded, revision: self.revision, replies };
        let batch = (!events.is_empty()).then_some(Batch { revision: next, events });
        (reply, batch)
    }
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof!["[ab]{1,2}", "a/[a-c]", Just("\u{e9}".to_owned())]
        .prop_map(|text| Key::new(text).unwrap())
}

fn any_span() -> impl Strategy<Value = KeySpan> {
    prop_oneof![
        4 => any_key().prop_map(|key| KeySpan::one(&key)),
        2 => any_key().prop_map(|key| KeySpan::prefix(key.as_str()).unwrap()),
        1 => (any_key(), any_key()).prop_map(|(a, b)| KeySpan::between(&a, &b)),
        1 => (any_key(), any_key())
            .prop_map(|(a, b)| KeySpan::prefix(a.as_str()).unwrap().after(&b)),
        1 => Just(KeySpan::all()),
    ]
}

fn any_query() -> impl Strategy<Value = Query> {
    (any_span(), 1usize..5, any::<bool>()).prop_map(|(span, limit, keys_only)| Query {
        span,
        limit,
        keys_only,
    })
}

fn any_compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        (0u64..4).prop_map(Target::Version),
        (0u64..12).prop_map(|n| Target::CreateRevision(Revision::new(n))),
        (0u64..12).prop_map(|n| Target::ModRevision(Revision::new(n))),
        "[xy]?".prop_map(|text| Target::Value(text.into())),
    ];
    let relation = prop_oneof![
        Just(Relation::Equal),
        Just(Relation::NotEqual),
        Just(Relation::Greater),
        Just(Relation::Less),
    ];
    (any_key(), target, relation).prop_map(|(key, target, relation)| Compare {
        key,
        target,
        relation,
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (any_key(), "[xy]?").prop_map(|(key, value)| Op::put(key, value)),
        2 => any_span().prop_map(Op::Delete),
        2 => any_query().prop_map(Op::Range),
    ]
}

fn any_txn() -> impl Strategy<Value = Txn> {
    let ops = || prop::collection::vec(any_op(), 0..5);
    (prop::collection::vec(any_compare(), 0..2), ops(), ops())
        .prop_map(|(compares, then, otherwise)| Txn { compares, then, otherwise, ..Txn::default() })
}

#[derive(Debug, Clone)]
enum Step {
    Txn(Txn),
    Range(Query),
    /// These at once, in this order: they share a commit.
    Together(Vec<Txn>),
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any_txn().prop_map(Step::Txn),
        3 => any_query().prop_map(Step::Range),
        2 => prop::collection::vec(any_txn(), 2..6).prop_map(Step::Together),
        1 => Just(Step::Reopen),
    ]
}

async fn replay(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let open = || EmbeddedState::open(directory.path(), EmbeddedOptions::default()).unwrap();
    let mut state = open();
    let mut model = Model::default();
    let mut watch = state.watch(KeySpan::all(), WatchFrom::Now).await.unwrap();
    for step in steps {
        let txns = match step {
            Step::Range(query) => {
                let expect = model.range(&query, model.revision);
                assert_eq!(state.range(query).await.unwrap(), expect);
                continue;
            }
            Step::Reopen => {
                state.close().await;
                state = open();
                watch = state.watch(KeySpan::all(), WatchFrom::Now).await.unwrap();
                continue;
            }
            Step::Txn(txn) => vec![txn],
            Step::Together(txns) => txns,
        };
        // Reads may overtake writes that were not answered yet, so only writes go together.
        let writes = |txn: &Txn| txn.check().is_err() || !txn.is_read_only();
        let (together, alone): (Vec<Txn>, Vec<Txn>) = txns.into_iter().partition(writes);
        let replies =
            futures_util::future::join_all(together.iter().cloned().map(|t| state.txn(t)));
        let mut answered: Vec<_> = together.iter().cloned().zip(replies.await).collect();
        for txn in alone {
            let reply = state.txn(txn.clone()).await;
            answered.push((txn, reply));
        }
        for (txn, reply) in answered {
            if let Err(refusal) = txn.check() {
                assert_eq!(reply.unwrap_err().code(), refusal.code());
                continue;
            }
            let (expect, batch) = model.txn(&txn);
            assert_eq!(reply.unwrap(), expect, "{txn:?}");
            if let Some(batch) = batch {
                assert_eq!(watch.next().await.unwrap(), batch, "{txn:?}");
            }
        }
    }
    state.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn the_store_does_what_the_model_does(steps in prop::collection::vec(any_step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(replay(steps));
    }
}
