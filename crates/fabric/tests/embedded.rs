//! What only the embedded store promises: one process at a time, honest refusals, bounded memory, and the end of the
//! leases of a process that is gone.

use skein_fabric::{
    EmbeddedOptions, EmbeddedState, Event, Key, KeySpan, Op, Query, State, StateError, Txn,
    WatchFrom,
};
use std::path::Path;
use std::time::Duration;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn open(directory: &Path) -> Result<EmbeddedState, StateError> {
    EmbeddedState::open(directory, EmbeddedOptions::default())
}

#[tokio::test]
async fn one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let state = open(directory.path()).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert_eq!(error.code(), "STATE_LOCKED");
    assert!(error.to_string().contains("state.lock"), "{error}");
    state.put(key("a"), "1".into()).await.unwrap();
    state.close().await;
    state.close().await;
    assert_eq!(state.put(key("a"), "2".into()).await.unwrap_err().code(), "STATE_CLOSED");
    assert_eq!(state.get(&key("a")).await.unwrap_err().code(), "STATE_CLOSED");
    let again = open(directory.path()).unwrap();
    assert_eq!(again.get(&key("a")).await.unwrap().unwrap().value, "1");
    again.close().await;
}

#[tokio::test]
async fn watches_end_when_the_store_closes() {
    let directory = tempfile::tempdir().unwrap();
    let state = open(directory.path()).unwrap();
    let mut watch = state.watch(KeySpan::all(), WatchFrom::Now).await.unwrap();
    state.close().await;
    assert_eq!(watch.next().await.unwrap_err().code(), "STATE_CLOSED");
}

#[tokio::test]
async fn leases_of_a_former_process_end_at_opening() {
    let directory = tempfile::tempdir().unwrap();
    let state = open(directory.path()).unwrap();
    let lease = state.grant(Duration::from_secs(3600)).await.unwrap();
    for name in ["l/1", "l/2"] {
        state.txn(Txn::new().then(Op::put_leased(key(name), "x", lease))).await.unwrap();
    }
    let last = state.put(key("free"), "x".into()).await.unwrap();
    state.close().await;
    let state = open(directory.path()).unwrap();
    let found = state.range(Query::span(KeySpan::all())).await.unwrap();
    assert_eq!(found.entries.len(), 1);
    assert_eq!(found.revision, last.next(), "it is one revision");
    let mut watch = state.watch(KeySpan::all(), WatchFrom::Revision(last.next())).await.unwrap();
    let expect = [Event::Deleted(key("l/1")), Event::Deleted(key("l/2"))];
    assert_eq!(watch.next().await.unwrap().events, expect);
    let before = state.watch(KeySpan::all(), WatchFrom::Revision(last)).await.unwrap_err();
    assert_eq!(before.code(), "STATE_COMPACTED");
    assert_eq!(state.keep_alive(lease).await.unwrap_err().code(), "LEASE_NOT_FOUND");
    state.close().await;
}

#[tokio::test]
async fn slow_watchers_are_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { history_revisions_max: 100, ..EmbeddedOptions::default() };
    let state = EmbeddedState::open(directory.path(), options).unwrap();
    let mut slow = state.watch(KeySpan::all(), WatchFrom::Now).await.unwrap();
    // More bytes than wait for one watcher.
    let value = vec![b'x'; 512 * 1024];
    for n in 0..40 {
        state.put(key(&format!("k/{n}")), value.clone().into()).await.unwrap();
    }
    let mut seen = 0;
    let next = loop {
        match slow.next().await {
            Ok(batch) => {
                seen += 1;
                assert_eq!(batch.revision.get(), seen);
            }
            Err(StateError::Lagged { next }) => break next,
            Err(error) => panic!("{error}"),
        }
    };
    assert!((2..40).contains(&seen), "{seen}");
    assert_eq!(next.get(), seen + 1, "it says where to go on");
    let mut again = state.watch(KeySpan::all(), WatchFrom::Revision(next)).await.unwrap();
    assert_eq!(again.next().await.unwrap().revision, next);
    // Beyond the history it says that, too.
    for n in 0..120 {
        state.put(key(&format!("k/{n}")), "x".into()).await.unwrap();
    }
    let error = state.watch(KeySpan::all(), WatchFrom::Revision(next)).await.unwrap_err();
    assert_eq!(error.code(), "STATE_COMPACTED");
    state.close().await;
}

/// The bound of the file stands for a full disk: SQLite treats both alike.
#[tokio::test]
async fn a_full_store_refuses_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { size_bytes_max: 2 * 1024 * 1024, ..EmbeddedOptions::default() };
    let state = EmbeddedState::open(directory.path(), options).unwrap();
    let value = vec![b'x'; 200 * 1024];
    let mut kept = Vec::new();
    let error = loop {
        let name = key(&format!("k/{:03}", kept.len()));
        match state.put(name.clone(), value.clone().into()).await {
            Ok(_) => kept.push(name),
            Err(error) => break error,
        }
        assert!(kept.len() < 100);
    };
    assert_eq!(error.code(), "DISK_FULL");
    // Many at once: those that fit or free something succeed beside those that do not.
    let large = (0..4).map(|n| {
        let txn = Txn::new().then(Op::put(key(&format!("large/{n}")), value.clone()));
        state.txn(txn)
    });
    let (large, small) =
        tokio::join!(futures_util::future::join_all(large), state.put(key("small"), "x".into()),);
    assert!(large.iter().all(|o| o.as_ref().is_err_and(|e| e.code() == "DISK_FULL")));
    small.unwrap();
    for name in &kept {
        assert_eq!(state.get(name).await.unwrap().unwrap().value.len(), value.len());
    }
    state.delete(KeySpan::one(&kept[0])).await.unwrap();
    state.put(key("fits again"), value.clone().into()).await.unwrap();
    state.close().await;
    let state = EmbeddedState::open(directory.path(), options).unwrap();
    let found = state.range(Query::span(KeySpan::all()).keys_only()).await.unwrap();
    assert_eq!(found.entries.len(), kept.len() + 1, "one deleted, two added");
    state.close().await;
}

#[tokio::test]
async fn damage_is_reported_not_guessed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.db");
    std::fs::write(
        &file,
        b"this is no database, but a text that is longer than a header would be".repeat(100),
    )
    .unwrap();
    assert_eq!(open(directory.path()).unwrap_err().code(), "STATE_CORRUPT");

    std::fs::remove_file(&file).unwrap();
    let state = open(directory.path()).unwrap();
    for n in 0..200 {
        state.put(key(&format!("k/{n:03}")), vec![b'x'; 1000].into()).await.unwrap();
    }
    state.close().await;
    let whole = std::fs::read(&file).unwrap();
    // Pages in the middle overwritten, and the end cut off.
    let mut scribbled = whole.clone();
    scribbled[8192..16384].fill(0xa5);
    for damaged in [&scribbled[..], &whole[..whole.len() / 2]] {
        std::fs::write(&file, damaged).unwrap();
        let error = open(directory.path()).unwrap_err();
        assert_eq!(error.code(), "STATE_CORRUPT", "{error}");
    }
    std::fs::write(&file, &whole).unwrap();
    open(directory.path()).unwrap().close().await;
}

#[tokio::test]
async fn newer_and_foreign_databases_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).unwrap().close().await;
    let file = directory.path().join("state.db");
    let change = |sql: &str| rusqlite::Connection::open(&file).unwrap().execute_batch(sql).unwrap();
    change("PRAGMA user_version = 99");
    let error = open(directory.path()).unwrap_err();
    assert_eq!(error.code(), "STATE_NEWER");
    assert!(error.to_string().contains("99"), "{error}");
    change("PRAGMA user_version = 1; PRAGMA application_id = 7");
    assert_eq!(open(directory.path()).unwrap_err().code(), "STATE_CORRUPT");
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    let error = open(&file.join("below")).unwrap_err();
    assert_eq!(error.code(), "STATE_OPEN");
    assert!(error.to_string().contains("below"), "{error}");
}
