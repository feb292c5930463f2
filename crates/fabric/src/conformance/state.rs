//! The properties of a store.

use super::linear::{Call, Operation, is_linearizable};
use super::{StateFactory, soon};
use crate::state::{
    Batch, Compare, Event, Key, KeySpan, LeaseId, Op, OpReply, Query, Relation, Revision, State,
    StateError, TXN_BYTES_MAX, TXN_OPS_MAX, Target, Txn, VALUE_BYTES_MAX, Watch, WatchFrom,
};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::task::JoinSet;

fn key(text: &str) -> Key {
    Key::new(text).expect("a key of the suite")
}

fn prefix(text: &str) -> KeySpan {
    KeySpan::prefix(text).expect("a prefix of the suite")
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn value(state: &Arc<dyn State>, name: &str) -> Option<String> {
    let entry = state.get(&key(name)).await.expect("get");
    entry.map(|entry| String::from_utf8(entry.value.to_vec()).expect("text"))
}

async fn put(state: &Arc<dyn State>, name: &str, text: &str) -> Revision {
    state.put(key(name), bytes(text)).await.expect("put")
}

async fn put_leased(state: &Arc<dyn State>, name: &str, lease: LeaseId) {
    let txn = Txn::new().then(Op::put_leased(key(name), bytes("leased"), lease));
    state.txn(txn).await.expect("put under a lease");
}

async fn follow(state: &Arc<dyn State>, span: KeySpan, from: WatchFrom) -> Watch {
    state.watch(span, from).await.expect("watch")
}

async fn next(watch: &mut Watch) -> Batch {
    soon("a change", watch.next()).await.expect("a batch")
}

/// Every change has a revision, every key its creation, last change and version.
pub async fn keys_have_a_history(factory: &dyn StateFactory) {
    let state = factory.start().await;
    assert_eq!(state.get(&key("a")).await.expect("get"), None);
    let first = put(&state, "a", "1").await;
    let second = put(&state, "a", "2").await;
    let other = put(&state, "b", "x").await;
    assert!(Revision::ZERO < first && first < second && second < other);
    let entry = state.get(&key("a")).await.expect("get").expect("an entry");
    assert_eq!(entry.value, bytes("2"));
    assert_eq!((entry.create_revision, entry.mod_revision), (first, second));
    assert_eq!((entry.version, entry.lease), (2, None));
    let found = state.range(Query::one(key("a"))).await.expect("range");
    assert_eq!(found.revision, other, "a read reports the revision of the store");

    assert_eq!(state.delete(KeySpan::one(&key("a"))).await.expect("delete"), 1);
    assert_eq!(state.delete(KeySpan::one(&key("a"))).await.expect("delete"), 0);
    assert_eq!(value(&state, "a").await, None);
    let again = put(&state, "a", "3").await;
    let entry = state.get(&key("a")).await.expect("get").expect("an entry");
    assert_eq!((entry.create_revision, entry.version), (again, 1), "a new life begins at 1");
    // A transaction that changes nothing has no revision of its own.
    let nothing = Txn::new().then(Op::delete(&key("none")));
    let reply = state.txn(nothing).await.expect("txn");
    assert_eq!((reply.revision, reply.replies), (again, vec![OpReply::Deleted(0)]));
}

/// Ranges give the keys of a span in order, page by page.
pub async fn ranges_are_paged(factory: &dyn StateFactory) {
    let state = factory.start().await;
    for name in ["p/1", "p/2", "p/3", "p/3/a", "q/1", "o"] {
        put(&state, name, name).await;
    }
    let mut rest = prefix("p/");
    let mut names = Vec::new();
    loop {
        let found = state.range(Query::span(rest.clone()).limit(2)).await.expect("range");
        assert!(found.entries.len() <= 2);
        names.extend(found.entries.iter().map(|entry| entry.key.to_string()));
        match found.entries.last() {
            Some(last) if found.more => rest = rest.after(&last.key),
            _ => break,
        }
    }
    assert_eq!(names, ["p/1", "p/2", "p/3", "p/3/a"]);
    let between = Query::span(KeySpan::between(&key("p/2"), &key("q/1")));
    let found = state.range(between).await.expect("range");
    assert_eq!((found.entries.len(), found.more), (3, false));
    let exactly = state.range(Query::span(prefix("p/")).limit(4)).await.expect("range");
    assert_eq!((exactly.entries.len(), exactly.more), (4, false));
    let keys = Query::span(KeySpan::all()).keys_only();
    let found = state.range(keys).await.expect("range");
    assert_eq!(found.entries.len(), 6);
    assert!(found.entries.iter().all(|entry| entry.value.is_empty() && entry.version == 1));
    let error = state.range(Query::span(prefix("p/")).limit(0)).await.expect_err("a limit of 0");
    assert_eq!(error.code(), "STATE_INVALID");
}

/// Each quantity and relation of a comparison, for keys that exist and keys that do not.
pub async fn comparisons_decide(factory: &dyn StateFactory) {
    let state = factory.start().await;
    let created = put(&state, "k", "m").await;
    let changed = put(&state, "k", "m").await;
    let table: &[(&str, Target, [bool; 4])] = &[
        // which key, what of it against what it is, a larger and a smaller one; expected for = != > <
        ("k", Target::Version(2), [true, false, false, false]),
        ("k", Target::Version(3), [false, true, false, true]),
        ("k", Target::Version(1), [false, true, true, false]),
        ("k", Target::CreateRevision(created), [true, false, false, false]),
        ("k", Target::CreateRevision(changed), [false, true, false, true]),
        ("k", Target::ModRevision(changed), [true, false, false, false]),
        ("k", Target::ModRevision(created), [false, true, true, false]),
        ("k", Target::Value(bytes("m")), [true, false, false, false]),
        ("k", Target::Value(bytes("n")), [false, true, false, true]),
        ("k", Target::Value(bytes("a")), [false, true, true, false]),
        ("none", Target::Version(0), [true, false, false, false]),
        ("none", Target::ModRevision(Revision::ZERO), [true, false, false, false]),
        ("none", Target::CreateRevision(created), [false, true, false, true]),
        ("none", Target::Value(bytes("")), [false, false, false, false]),
    ];
    let relations = [Relation::Equal, Relation::NotEqual, Relation::Greater, Relation::Less];
    for (name, target, expect) in table {
        for (relation, expect) in relations.into_iter().zip(expect) {
            let compare = Compare { key: key(name), target: target.clone(), relation };
            // Once as a transaction that reads, once as one that writes: they may go different ways.
            for op in [Op::get(key("k")), Op::put(key("side"), "x")] {
                let txn = Txn::new().when(compare.clone()).then(op.clone()).otherwise(op);
                let reply = state.txn(txn).await.expect("txn");
                assert_eq!(reply.succeeded, *expect, "{compare:?}");
            }
        }
    }
    let both = Txn::new()
        .when(Compare::exists(key("k")))
        .when(Compare::missing(key("k")))
        .then(Op::put(key("wrong"), "x"))
        .otherwise(Op::put(key("right"), "x"));
    assert!(!state.txn(both).await.expect("txn").succeeded);
    assert_eq!(value(&state, "wrong").await, None);
    assert!(value(&state, "right").await.is_some());
}

/// A transaction happens whole, with one revision, and its reads see its writes.
pub async fn transactions_are_whole(factory: &dyn StateFactory) {
    let state = factory.start().await;
    for name in ["d/1", "d/2"] {
        put(&state, name, "old").await;
    }
    let mut watch = follow(&state, KeySpan::all(), WatchFrom::Now).await;
    let txn = Txn::new()
        .then(Op::get(key("new")))
        .then(Op::put(key("new"), "1"))
        .then(Op::get(key("new")))
        .then(Op::Delete(prefix("d/")))
        .then(Op::Range(Query::span(prefix("d/"))));
    let reply = state.txn(txn).await.expect("txn");
    let lengths: Vec<Option<usize>> = reply
        .replies
        .iter()
        .map(|reply| match reply {
            OpReply::Range(found) => Some(found.entries.len()),
            OpReply::Put | OpReply::Deleted(_) => None,
        })
        .collect();
    assert_eq!(lengths, [Some(0), None, Some(1), None, Some(0)]);
    assert_eq!(reply.replies[3], OpReply::Deleted(2));
    let batch = next(&mut watch).await;
    assert_eq!(batch.revision, reply.revision);
    let mut keys: Vec<String> = batch.events.iter().map(|event| event.key().to_string()).collect();
    keys.sort();
    assert_eq!(keys, ["d/1", "d/2", "new"], "the changes of one revision come together");

    let lease = state.grant(factory.ttl()).await.expect("grant");
    state.revoke(lease).await.expect("revoke");
    let refused = Txn::new().then(Op::put(key("half"), "1")).then(Op::put_leased(
        key("other half"),
        "1",
        lease,
    ));
    let error = state.txn(refused).await.expect_err("a put under a revoked lease");
    assert_eq!(error.code(), "LEASE_NOT_FOUND");
    assert_eq!(value(&state, "half").await, None, "a refused transaction leaves nothing");
}

/// Too many, too large and contradictory operations are refused, and nothing of them happens.
pub async fn transactions_are_bounded(factory: &dyn StateFactory) {
    let state = factory.start().await;
    let many = |count: usize| {
        (0..count).fold(Txn::new(), |txn, n| txn.then(Op::put(key(&format!("n/{n}")), "x")))
    };
    assert!(state.txn(many(TXN_OPS_MAX)).await.is_ok());
    let largest = vec![b'x'; VALUE_BYTES_MAX];
    assert!(state.put(key("large"), largest.clone().into()).await.is_ok());
    let stored = state.get(&key("large")).await.expect("get").expect("an entry");
    assert_eq!(stored.value.len(), VALUE_BYTES_MAX);
    let before = state.range(Query::one(key("none"))).await.expect("range").revision;
    let mut larger = largest.clone();
    larger.push(b'x');
    let half = Bytes::from(vec![b'x'; TXN_BYTES_MAX / 2]);
    let refused = [
        many(TXN_OPS_MAX + 1),
        Txn::new().then(Op::put(key("larger"), larger)),
        Txn::new().then(Op::put(key("h1"), half.clone())).then(Op::put(key("h2"), half)),
        Txn::new().then(Op::put(key("twice"), "1")).then(Op::put(key("twice"), "2")),
        Txn::new().then(Op::put(key("both"), "1")).then(Op::delete(&key("both"))),
        Txn::new().then(Op::Delete(prefix("bo"))).then(Op::put(key("both"), "1")),
    ];
    for txn in refused {
        let ops = txn.then.len();
        let error = state.txn(txn).await.expect_err("a transaction beyond its bounds");
        assert_eq!(error.code(), "STATE_INVALID", "{ops} operations");
    }
    let after = state.range(Query::one(key("none"))).await.expect("range").revision;
    assert_eq!(before, after);
}

/// Of many who compare with the same revision, one writes.
pub async fn one_writer_wins_each_revision(factory: &dyn StateFactory) {
    const WRITERS: usize = 8;
    const ROUNDS: usize = 40;
    let state = factory.start().await;
    let mut revision = put(&state, "contested", "start").await;
    for round in 0..ROUNDS {
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let state = state.clone();
            writers.spawn(async move {
                let txn = Txn::new()
                    .when(Compare::unchanged(key("contested"), revision))
                    .then(Op::put(key("contested"), format!("{writer}")));
                (writer, state.txn(txn).await.expect("txn"))
            });
        }
        let outcomes = writers.join_all().await;
        let won: Vec<_> = outcomes.iter().filter(|(_, reply)| reply.succeeded).collect();
        assert_eq!(won.len(), 1, "round {round}");
        assert_eq!(value(&state, "contested").await, Some(won[0].0.to_string()));
        revision = won[0].1.revision;
    }
}

/// Transfers between accounts, each a transaction, keep the sum for every reader at every moment.
pub async fn concurrent_transactions_keep_sums(factory: &dyn StateFactory) {
    const ACCOUNTS: u64 = 4;
    const START: u64 = 100;
    let state = factory.start().await;
    let account = |n: u64| key(&format!("account/{n}"));
    for n in 0..ACCOUNTS {
        state.put(account(n), START.to_string().into()).await.expect("put");
    }
    let mut tasks = JoinSet::new();
    for task in 0..6u64 {
        let state = state.clone();
        tasks.spawn(async move {
            for round in 0..50u64 {
                let (from, to) = ((task + round) % ACCOUNTS, (task + 2 * round + 1) % ACCOUNTS);
                let read = Txn::new().then(Op::Range(Query::span(prefix("account/"))));
                let found = state.txn(read).await.expect("read").ranges().next().expect("a range");
                let amounts: Vec<u64> = found
                    .entries
                    .iter()
                    .map(|e| String::from_utf8_lossy(&e.value).parse().expect("a number"))
                    .collect();
                assert_eq!(amounts.iter().sum::<u64>(), ACCOUNTS * START, "at {}", found.revision);
                let (a, b) = (&found.entries[from as usize], &found.entries[to as usize]);
                if from == to || amounts[from as usize] == 0 {
                    continue;
                }
                let txn = Txn::new()
                    .when(Compare::unchanged(a.key.clone(), a.mod_revision))
                    .when(Compare::unchanged(b.key.clone(), b.mod_revision))
                    .then(Op::put(a.key.clone(), (amounts[from as usize] - 1).to_string()))
                    .then(Op::put(b.key.clone(), (amounts[to as usize] + 1).to_string()));
                state.txn(txn).await.expect("transfer");
            }
        });
    }
    tasks.join_all().await;
}

/// A watch delivers every revision of its keys once, in order and whole, and nothing else.
pub async fn watches_see_all_in_order(factory: &dyn StateFactory) {
    const WRITERS: usize = 4;
    const ROUNDS: usize = 60;
    let state = factory.start().await;
    let mut watch = follow(&state, prefix("w/"), WatchFrom::Now).await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let state = state.clone();
        writers.spawn(async move {
            for round in 0..ROUNDS {
                let text = format!("{round}");
                let txn = Txn::new()
                    .then(Op::put(key(&format!("w/{writer}/a")), text.clone()))
                    .then(Op::put(key(&format!("w/{writer}/b")), text.clone()))
                    .then(Op::put(key(&format!("elsewhere/{writer}")), text));
                state.txn(txn).await.expect("txn");
            }
        });
    }
    let mut seen: BTreeMap<Key, usize> = BTreeMap::new();
    let mut last = Revision::ZERO;
    for _ in 0..WRITERS * ROUNDS {
        let batch = next(&mut watch).await;
        assert!(batch.revision > last, "revisions come in order");
        last = batch.revision;
        assert_eq!(batch.events.len(), 2, "the two keys of a transaction come together");
        for event in batch.events {
            let Event::Put(entry) = event else { panic!("nothing was deleted") };
            assert_eq!(entry.mod_revision, last);
            let round: usize = String::from_utf8_lossy(&entry.value).parse().expect("a number");
            let expect = seen.insert(entry.key, round).map_or(0, |before| before + 1);
            assert_eq!(round, expect, "no change of a key is missing or doubled");
        }
    }
    writers.join_all().await;
    let end = put(&state, "w/end", "x").await;
    assert_eq!(next(&mut watch).await.revision, end, "nothing else is delivered");
}

/// A watch from an earlier revision delivers what has happened since, then goes on.
pub async fn watches_resume(factory: &dyn StateFactory) {
    let state = factory.start().await;
    let mut revisions = Vec::new();
    for n in 0..10 {
        revisions.push(put(&state, &format!("r/{n}"), "x").await);
        put(&state, "between", "x").await;
    }
    let found = state.range(Query::span(prefix("r/"))).await.expect("range");
    let mut after_list =
        follow(&state, prefix("r/"), WatchFrom::Revision(found.revision.next())).await;
    let mut from_middle = follow(&state, prefix("r/"), WatchFrom::Revision(revisions[5])).await;
    for expect in &revisions[5..] {
        assert_eq!(next(&mut from_middle).await.revision, *expect);
    }
    state.delete(prefix("r/")).await.expect("delete");
    for watch in [&mut from_middle, &mut after_list] {
        let batch = next(watch).await;
        assert_eq!(batch.events.len(), 10);
        assert!(batch.events.iter().all(|event| matches!(event, Event::Deleted(_))));
    }
    let one = follow(&state, KeySpan::one(&key("r/3")), WatchFrom::Revision(revisions[0])).await;
    let mut one = one;
    assert_eq!(next(&mut one).await.revision, revisions[3]);
    assert_eq!(next(&mut one).await.events, [Event::Deleted(key("r/3"))]);
}

/// A watch that would begin in forgotten history is refused, so that its owner lists again.
pub async fn compacted_history_is_refused(factory: &dyn StateFactory) {
    let state = factory.start().await;
    let first = put(&state, "c", "1").await;
    put(&state, "c", "2").await;
    let third = put(&state, "c", "3").await;
    let last = put(&state, "c", "4").await;
    state.compact(third).await.expect("compact");
    // It may be refused at once or by the first batch.
    let error = match state.watch(KeySpan::all(), WatchFrom::Revision(first)).await {
        Err(error) => error,
        Ok(mut watch) => soon("a refusal", watch.next()).await.expect_err("forgotten history"),
    };
    assert_eq!(error.code(), "STATE_COMPACTED");
    let mut watch = follow(&state, KeySpan::all(), WatchFrom::Revision(third.next())).await;
    assert_eq!(next(&mut watch).await.revision, last);
    assert_eq!(value(&state, "c").await.as_deref(), Some("4"), "the present is not forgotten");
    let error = state.compact(first).await.expect_err("compacted before");
    assert_eq!(error.code(), "STATE_COMPACTED");
    assert!(state.compact(Revision::new(last.get() + 1000)).await.is_err());
}

/// When a lease runs out, its keys go in one revision that watchers see.
pub async fn leases_end_with_their_keys(factory: &dyn StateFactory) {
    let state = factory.start().await;
    let mut watch = follow(&state, prefix("l/"), WatchFrom::Now).await;
    let lease = state.grant(factory.ttl()).await.expect("grant");
    for name in ["l/1", "l/2"] {
        put_leased(&state, name, lease).await;
        next(&mut watch).await;
    }
    put(&state, "l/free", "x").await;
    next(&mut watch).await;
    let batch = next(&mut watch).await;
    assert_eq!(batch.events, [Event::Deleted(key("l/1")), Event::Deleted(key("l/2"))]);
    assert_eq!(value(&state, "l/1").await, None);
    assert!(value(&state, "l/free").await.is_some());
    let error = state.keep_alive(lease).await.expect_err("it does not come back");
    assert_eq!(error.code(), "LEASE_NOT_FOUND");
    let txn = Txn::new().then(Op::put_leased(key("l/3"), "x", lease));
    assert_eq!(state.txn(txn).await.expect_err("it is gone").code(), "LEASE_NOT_FOUND");
}

/// A lease that is kept alive lives, next to one that is not.
pub async fn kept_leases_live(factory: &dyn StateFactory) {
    let state = factory.start().await;
    let mut watch = follow(&state, prefix("k/"), WatchFrom::Now).await;
    let (kept, left) = (
        state.grant(factory.ttl()).await.expect("grant"),
        state.grant(factory.ttl()).await.expect("grant"),
    );
    assert_ne!(kept, left);
    put_leased(&state, "k/kept", kept).await;
    put_leased(&state, "k/left", left).await;
    let (keeper, stop) = (state.clone(), Arc::new(tokio::sync::Notify::new()));
    let (stopped, pause) = (stop.clone(), factory.ttl() / 5);
    let keeping = tokio::spawn(async move {
        while tokio::time::timeout(pause, stopped.notified()).await.is_err() {
            let _ = keeper.keep_alive(kept).await;
        }
    });
    let left_goes = async {
        loop {
            if next(&mut watch).await.events.contains(&Event::Deleted(key("k/left"))) {
                break;
            }
        }
    };
    left_goes.await;
    let status = state.time_to_live(kept).await.expect("the kept lease lives");
    assert_eq!(status.keys, [key("k/kept")]);
    assert!(status.remaining <= status.granted);
    stop.notify_one();
    keeping.await.expect("the keeper");
    let batch = next(&mut watch).await;
    assert_eq!(batch.events, [Event::Deleted(key("k/kept"))], "kept no more, it ends");
}

/// Revoking ends a lease at once.
pub async fn revoked_leases_are_gone(factory: &dyn StateFactory) {
    let state = factory.start().await;
    let lease = state.grant(factory.ttl()).await.expect("grant");
    put_leased(&state, "v", lease).await;
    state.revoke(lease).await.expect("revoke");
    assert_eq!(value(&state, "v").await, None);
    for error in [
        state.revoke(lease).await.expect_err("revoked before"),
        state.keep_alive(lease).await.expect_err("revoked before"),
        state.time_to_live(lease).await.expect_err("revoked before"),
    ] {
        assert_eq!(error.code(), "LEASE_NOT_FOUND");
    }
}

/// A key written without the lease no longer hangs on it.
pub async fn leases_can_be_left(factory: &dyn StateFactory) {
    let state = factory.start().await;
    let lease = state.grant(factory.ttl()).await.expect("grant");
    put_leased(&state, "x", lease).await;
    put_leased(&state, "y", lease).await;
    put(&state, "x", "free").await;
    let status = state.time_to_live(lease).await.expect("status");
    assert_eq!(status.keys, [key("y")]);
    state.revoke(lease).await.expect("revoke");
    assert_eq!(value(&state, "x").await.as_deref(), Some("free"));
    assert_eq!(value(&state, "y").await, None);
}

/// A stopped and started store has everything that was acknowledged, and goes on counting.
pub async fn restarts_keep_everything(factory: &dyn StateFactory) {
    let state = factory.start().await;
    let first = put(&state, "s/1", "1").await;
    put(&state, "s/2", "2").await;
    put(&state, "s/2", "3").await;
    state.delete(KeySpan::one(&key("s/1"))).await.expect("delete");
    let before = state.range(Query::span(prefix("s/"))).await.expect("range");
    drop(state);
    let state = factory.start().await;
    let after = state.range(Query::span(prefix("s/"))).await.expect("range");
    assert_eq!(after.entries, before.entries);
    assert!(after.revision >= before.revision);
    let entry = &after.entries[0];
    assert_eq!((entry.version, entry.value.clone()), (2, bytes("3")));
    assert!(put(&state, "s/3", "x").await > before.revision);
    // Its history may be gone, but then it says so.
    if let Ok(mut watch) = state.watch(prefix("s/"), WatchFrom::Revision(first)).await {
        match soon("history or refusal", watch.next()).await {
            Ok(batch) => assert_eq!(batch.revision, first),
            Err(error) => assert_eq!(error.code(), "STATE_COMPACTED"),
        }
    }
}

/// Reads, writes and swaps of concurrent clients on few keys have an order in which every answer is right.
pub async fn histories_are_linearizable(factory: &dyn StateFactory) {
    const CLIENTS: u64 = 6;
    const ROUNDS: u64 = 30;
    const KEYS: u64 = 3;
    let state = factory.start().await;
    let clock = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (state, clock) = (state.clone(), clock.clone());
        clients.spawn(async move {
            let mut history: Vec<(u64, Operation)> = Vec::new();
            let mut last_seen = [0; KEYS as usize];
            for round in 0..ROUNDS {
                let register = (client + round * 7) % KEYS;
                let new = 1 + client + CLIENTS * round;
                let called = clock.fetch_add(1, Ordering::SeqCst);
                let seen = &mut last_seen[register as usize];
                let outcome = one_call(&state, register, (client + round) % 3, *seen, new).await;
                let (call, returned) = match outcome {
                    Ok(call) => (call, Some(clock.fetch_add(1, Ordering::SeqCst))),
                    Err(call) => (call, None),
                };
                match call {
                    Call::Read(value) => *seen = value,
                    Call::Write(value) => *seen = value,
                    Call::Swap(..) => {}
                }
                history.push((register, Operation { call, called, returned }));
            }
            history
        });
    }
    let histories = clients.join_all().await.concat();
    for register in 0..KEYS {
        let own = histories.iter().filter(|(of, _)| *of == register);
        let history: Vec<Operation> = own.map(|(_, operation)| *operation).collect();
        assert!(is_linearizable(&history), "register {register}: {history:?}");
    }
}

/// One operation on a register; `Err` if its outcome is not known.
async fn one_call(
    state: &Arc<dyn State>,
    register: u64,
    kind: u64,
    expected: u64,
    new: u64,
) -> Result<Call, Call> {
    let name = key(&format!("register/{register}"));
    let unknown = |call: Call| {
        move |error: StateError| match error {
            StateError::Unknown { .. } => call,
            error => panic!("{error}"),
        }
    };
    match kind {
        0 => {
            let entry = state.get(&name).await.expect("get");
            let number = |entry: crate::state::Entry| {
                String::from_utf8_lossy(&entry.value).parse().expect("a number")
            };
            Ok(Call::Read(entry.map_or(0, number)))
        }
        1 => {
            let written = state.put(name, new.to_string().into()).await;
            written.map(|_| Call::Write(new)).map_err(unknown(Call::Write(new)))
        }
        _ => {
            let compare = match expected {
                0 => Compare::missing(name.clone()),
                _ => Compare::value(name.clone(), expected.to_string()),
            };
            let txn = Txn::new().when(compare).then(Op::put(name, new.to_string()));
            let reply = state.txn(txn).await.map_err(unknown(Call::Swap(expected, new, None)))?;
            Ok(Call::Swap(expected, new, Some(reply.succeeded)))
        }
    }
}
