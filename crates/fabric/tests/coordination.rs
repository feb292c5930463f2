//! Leases, elections, reservations and blobs over the embedded store.

use proptest::prelude::*;
use skein_fabric::{
    Amounts, BlobStore, Election, EmbeddedOptions, EmbeddedState, HeldLease, Key, Op, Plan,
    Reservations, Reserved, State, Txn, blob_reference,
};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// Longest wait for anything that must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// Long enough never to end within a test.
const LONG: Duration = Duration::from_secs(3600);

struct Store {
    _directory: tempfile::TempDir,
    embedded: EmbeddedState,
    state: Arc<dyn State>,
}

fn store() -> Store {
    let directory = tempfile::tempdir().unwrap();
    let embedded = EmbeddedState::open(directory.path(), EmbeddedOptions::default()).unwrap();
    Store { _directory: directory, state: Arc::new(embedded.clone()), embedded }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

#[tokio::test]
async fn a_held_lease_outlives_its_time_and_ends_when_it_is_released() {
    let store = store();
    let short = Duration::from_millis(900);
    let lease = HeldLease::take(store.state.clone(), short).await.unwrap();
    let key = Key::new("k").unwrap();
    store.state.txn(Txn::new().then(Op::put_leased(key.clone(), "x", lease.id()))).await.unwrap();
    // Another of the same length that nobody renews ends; this one does not.
    let unkept = store.state.grant(short).await.unwrap();
    let ended = async {
        while store.state.time_to_live(unkept).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the end of the lease", ended).await;
    assert!(!lease.lost().is_lost());
    assert!(store.state.get(&key).await.unwrap().is_some());
    let lost = lease.lost();
    lease.release().await.unwrap();
    assert!(lost.is_lost());
    assert!(store.state.get(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_revoked_or_unreachable_lease_is_lost() {
    let store = store();
    let lease = HeldLease::take(store.state.clone(), Duration::from_millis(300)).await.unwrap();
    store.state.revoke(lease.id()).await.unwrap();
    soon("the loss", lease.lost().wait()).await;
    let lease = HeldLease::take(store.state.clone(), Duration::from_millis(300)).await.unwrap();
    store.embedded.close().await;
    soon("the loss", lease.lost().wait()).await;
}

#[tokio::test]
async fn one_leads_and_a_deposed_leader_changes_nothing() {
    let store = store();
    let election = Election::new(store.state.clone());
    assert_eq!(election.leader("control").await.unwrap(), None);
    let first = election.campaign("control", "a", LONG).await.unwrap();
    let leader = election.leader("control").await.unwrap().unwrap();
    assert_eq!((leader.id.as_str(), leader.epoch), ("a", first.epoch()));
    // Another name is another election.
    election.campaign("other", "b", LONG).await.unwrap().resign().await.unwrap();

    let rival = election.clone();
    let campaign = tokio::spawn(async move { rival.campaign("control", "b", LONG).await.unwrap() });
    let key = Key::new("plan").unwrap();
    let write = |guard, text: &'static str| {
        let txn = Txn::new().when(guard).then(Op::put(key.clone(), text));
        store.state.txn(txn)
    };
    assert!(write(first.guard(), "by a").await.unwrap().succeeded);
    let (guard, epoch) = (first.guard(), first.epoch());
    first.resign().await.unwrap();
    let second = soon("the succession", campaign).await.unwrap();
    assert!(second.epoch() > epoch);
    assert!(!write(guard, "by a again").await.unwrap().succeeded, "it is fenced off");
    assert!(write(second.guard(), "by b").await.unwrap().succeeded);
}

#[tokio::test]
async fn a_dead_leader_is_succeeded() {
    let store = store();
    let election = Election::new(store.state.clone());
    // Dropped, as by a process that dies: nobody renews it.
    let first = election.campaign("control", "a", Duration::from_millis(500)).await.unwrap();
    let epoch = first.epoch();
    drop(first);
    let second = soon("the succession", election.campaign("control", "b", LONG)).await.unwrap();
    assert!(second.epoch() > epoch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_two_lead_at_once() {
    let store = store();
    let leading = Arc::new(AtomicUsize::new(0));
    let mut candidates = JoinSet::new();
    for candidate in 0..5 {
        let (election, leading) = (Election::new(store.state.clone()), leading.clone());
        candidates.spawn(async move {
            for _ in 0..10 {
                let leadership =
                    election.campaign("control", &candidate.to_string(), LONG).await.unwrap();
                assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                leading.fetch_sub(1, Ordering::SeqCst);
                leadership.resign().await.unwrap();
            }
        });
    }
    soon("all terms", candidates.join_all()).await;
}

fn memory(memory_mib: u64) -> Amounts {
    Amounts { memory_mib, ..Amounts::default() }
}

#[tokio::test]
async fn reservations_are_exact() {
    let store = store();
    let pools = Reservations::new(store.state.clone());
    let some = Amounts { memory_mib: 60, cpu_milli: 500, machines: 1 };
    let Reserved::Exhausted { free, wanted } = pools.reserve("n1", "a", some).await.unwrap() else {
        panic!("a pool without capacity has nothing");
    };
    assert_eq!((free, wanted), (Amounts::default(), some));
    let all = Amounts { memory_mib: 100, cpu_milli: 1000, machines: 3 };
    pools.set_capacity("n1", all).await.unwrap();
    for _ in 0..2 {
        assert_eq!(pools.reserve("n1", "a", some).await.unwrap(), Reserved::Reserved);
        assert_eq!(pools.usage("n1").await.unwrap().held, some);
    }
    let refused = pools.reserve("n1", "b", some).await.unwrap();
    assert_eq!(refused.code(), Some("CAPACITY_EXHAUSTED"));
    // Resizing counts what it has already as free.
    let larger = Amounts { memory_mib: 100, ..some };
    assert_eq!(pools.reserve("n1", "a", larger).await.unwrap(), Reserved::Reserved);
    // Lowered below what is held, nothing is taken away; less fits, more does not.
    pools.set_capacity("n1", Amounts { memory_mib: 50, ..all }).await.unwrap();
    assert_eq!(pools.usage("n1").await.unwrap().free().memory_mib, 0);
    let smaller = Amounts { memory_mib: 90, ..some };
    assert_eq!(pools.reserve("n1", "a", smaller).await.unwrap(), Reserved::Reserved);
    assert_ne!(pools.reserve("n1", "a", larger).await.unwrap(), Reserved::Reserved);
    let overflowing = memory(u64::MAX);
    assert_ne!(pools.reserve("n1", "b", overflowing).await.unwrap(), Reserved::Reserved);
    assert_eq!(pools.holders("n1").await.unwrap(), [("a".to_owned(), smaller)]);
    assert_eq!(pools.release("n1", "a").await.unwrap(), smaller);
    assert_eq!(pools.release("n1", "a").await.unwrap(), Amounts::default());
    assert_eq!(pools.usage("n1").await.unwrap().held, Amounts::default());
}

#[tokio::test]
async fn a_reservation_joins_another_transaction() {
    let store = store();
    let pools = Reservations::new(store.state.clone());
    pools.set_capacity("n1", memory(100)).await.unwrap();
    let key = Key::new("machine/m1").unwrap();
    let with_machine = |plan: Plan| {
        let Plan::Fits(step) = plan else { panic!("it fits") };
        let mut txn = Txn::new().then(Op::put(key.clone(), "spec"));
        txn.compares.extend(step.compares);
        txn.then.extend(step.ops);
        txn
    };
    let late = with_machine(pools.plan_reserve("n1", "m1", memory(60)).await.unwrap());
    pools.reserve("n1", "other", memory(60)).await.unwrap();
    assert!(!store.state.txn(late).await.unwrap().succeeded, "the pool has changed");
    assert!(store.state.get(&key).await.unwrap().is_none());
    let Plan::Exhausted { free, .. } = pools.plan_reserve("n1", "m1", memory(60)).await.unwrap()
    else {
        panic!("it does not fit any more");
    };
    assert_eq!(free, memory(40));
    let fits = with_machine(pools.plan_reserve("n1", "m1", memory(40)).await.unwrap());
    assert!(store.state.txn(fits).await.unwrap().succeeded);
    assert!(store.state.get(&key).await.unwrap().is_some());
    assert_eq!(pools.usage("n1").await.unwrap().held, memory(100));
}

/// What one of the concurrent holders does, one after the other: reserve so much, or release (0).
fn any_actions() -> impl Strategy<Value = Vec<Vec<u64>>> {
    prop::collection::vec(prop::collection::vec(0u64..60, 1..8), 2..6)
}

async fn contend(holders: Vec<Vec<u64>>) {
    const CAPACITY: u64 = 100;
    let store = store();
    let pools = Reservations::new(store.state.clone());
    pools.set_capacity("n1", memory(CAPACITY)).await.unwrap();
    let mut tasks = JoinSet::new();
    for (holder, actions) in holders.into_iter().enumerate() {
        let pools = pools.clone();
        tasks.spawn(async move {
            let name = format!("h{holder}");
            let mut held = 0;
            for amount in actions {
                if amount == 0 {
                    assert_eq!(pools.release("n1", &name).await.unwrap(), memory(held));
                    held = 0;
                } else if pools.reserve("n1", &name, memory(amount)).await.unwrap()
                    == Reserved::Reserved
                {
                    held = amount;
                }
                let usage = pools.usage("n1").await.unwrap();
                assert!(usage.held.memory_mib <= CAPACITY, "{usage:?}");
            }
            held
        });
    }
    let sum: u64 = tasks.join_all().await.into_iter().sum();
    assert_eq!(pools.usage("n1").await.unwrap().held, memory(sum));
    let holders = pools.holders("n1").await.unwrap();
    assert_eq!(holders.iter().map(|(_, held)| held.memory_mib).sum::<u64>(), sum);
    store.embedded.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn pools_are_never_oversold(holders in any_actions()) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(contend(holders));
    }
}

fn files(root: &Path) -> usize {
    let directories = std::fs::read_dir(root).unwrap().flatten().filter(|e| e.path().is_dir());
    directories.map(|d| std::fs::read_dir(d.path()).unwrap().count()).sum()
}

#[tokio::test]
async fn blobs_are_kept_while_they_are_pinned_or_referenced() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(directory.path()).unwrap();
    assert_eq!(BlobStore::open(directory.path()).unwrap_err().code(), "BLOBS_LOCKED");
    let nothing = || async { Ok(HashSet::new()) };
    let first = blobs.keep(&b"hello"[..], 100).await.unwrap();
    let second = blobs.keep(&b"hello"[..], 100).await.unwrap();
    assert_eq!((first.id(), first.bytes()), (second.id(), 5));
    let expect = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!(first.id().to_string(), expect);
    assert_eq!(files(directory.path()), 1, "equal contents are one file");
    assert_eq!(blobs.read(first.id(), 5).await.unwrap(), "hello");
    assert_eq!(blobs.read(first.id(), 4).await.unwrap_err().code(), "PAYLOAD_TOO_LARGE");
    drop(first);
    assert_eq!(blobs.sweep(nothing()).await.unwrap().kept, 1, "the second pin holds it");
    let id = second.id();
    // Pinned and let go while the sweep was reading the references: left for the next.
    let during = async {
        drop(second);
        drop(blobs.pin(id).unwrap());
        Ok(HashSet::new())
    };
    assert_eq!(blobs.sweep(during).await.unwrap().kept, 1);
    assert_eq!(blobs.sweep(async { Ok(HashSet::from([id])) }).await.unwrap().kept, 1);
    let swept = blobs.sweep(nothing()).await.unwrap();
    assert_eq!((swept.removed, swept.freed_bytes), (1, 5));
    assert_eq!(blobs.pin(id).unwrap_err().code(), "BLOB_NOT_FOUND");
    assert_eq!(blobs.open_blob(id).await.unwrap_err().code(), "BLOB_NOT_FOUND");
    assert!(blob_reference(id, "q/job/1/in").unwrap().as_str().starts_with("blob/2cf24d"));
}

#[tokio::test]
async fn unfinished_and_refused_blobs_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(directory.path()).unwrap();
    let error = blobs.keep(&[7; 101][..], 100).await.unwrap_err();
    assert_eq!(error.code(), "PAYLOAD_TOO_LARGE");
    let mut writer = blobs.writer(10).await.unwrap();
    writer.write(b"0123456789").await.unwrap();
    writer.write(b"x").await.unwrap_err();
    assert_eq!(writer.finish().await.unwrap_err().code(), "PAYLOAD_TOO_LARGE");
    let writer = blobs.writer(10).await.unwrap();
    drop(writer);
    assert_eq!(files(directory.path()), 0);
    // What a killed process left is cleared at the next opening.
    drop(blobs);
    std::fs::write(directory.path().join("tmp/left"), b"x").unwrap();
    let blobs = BlobStore::open(directory.path()).unwrap();
    assert_eq!(files(directory.path()), 0);
    let empty = blobs.keep(tokio::io::empty(), 0).await.unwrap();
    assert_eq!(blobs.read(empty.id(), 0).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweeps_do_not_race_writers() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(directory.path()).unwrap();
    let store = store();
    let mut writers = JoinSet::new();
    for writer in 0..4u8 {
        let (blobs, state) = (blobs.clone(), store.state.clone());
        writers.spawn(async move {
            for n in 0..25u8 {
                // Some contents are the same in all writers.
                let content = [n, if n % 2 == 0 { writer } else { 0 }];
                let blob = blobs.keep(&content[..], 10).await.unwrap();
                let reference = blob_reference(blob.id(), &format!("{writer}/{n}")).unwrap();
                state.put(reference, "".into()).await.unwrap();
                let id = blob.id();
                drop(blob);
                assert_eq!(blobs.read(id, 10).await.unwrap(), content[..]);
            }
        });
    }
    let references = || async {
        let span = skein_fabric::KeySpan::prefix("blob/")?;
        let query = skein_fabric::Query::span(span).keys_only();
        let found = store.state.range(query).await?;
        let id = |entry: &skein_fabric::Entry| entry.key.as_str()[5..69].parse().unwrap();
        Ok(found.entries.iter().map(id).collect::<HashSet<_>>())
    };
    while !writers.is_empty() {
        blobs.sweep(references()).await.unwrap();
        while let Some(outcome) = writers.try_join_next() {
            outcome.unwrap();
        }
    }
    let swept = blobs.sweep(references()).await.unwrap();
    assert_eq!(swept.kept as usize, files(directory.path()));
    assert_eq!(swept.kept, 4 * 13 + 12);
}
