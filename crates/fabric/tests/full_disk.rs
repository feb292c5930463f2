//! A disk that is really full: a small file system in memory, mounted in a mount namespace of its own, so that it goes
//! with the process that sees it.
//!
//! Making the namespace takes root, or user namespaces. Where neither is allowed, the test says so and passes: the
//! bound of the store's size stands for a full disk in `embedded.rs`.

mod world;

use skein_fabric::{
    BlobStore, EmbeddedOptions, EmbeddedState, Key, KeySpan, Query, QueueError, State,
};
use std::path::Path;
use std::process::Command;
use world::{echo, open, submission};

const DIRECTORY: &str = "SKEIN_TEST_FULL_DISK";

/// Runs a test of this binary where the directory is a file system of 3 MiB. False if that cannot be had.
fn in_small_file_system(test: &str) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let script =
        r#"mount -t tmpfs -o size=3m tmpfs "$0" || exit 77; exec "$1" --exact "$2" --nocapture"#;
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(DIRECTORY, directory.path())
        .output();
    let Ok(output) = output else { return false };
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let refused = output.status.code() == Some(77) || text.contains("unshare failed");
    assert!(refused || output.status.success(), "{text}");
    !refused
}

fn child_directory() -> Option<std::path::PathBuf> {
    std::env::var_os(DIRECTORY).map(Into::into)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn run(name: &str) {
    if !in_small_file_system(name) {
        println!("no mount namespace here: the full disk was not tried");
    }
}

/// Takes all space that is left.
fn fill(directory: &Path) -> std::path::PathBuf {
    let ballast = directory.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    ballast
}

#[test]
fn state_in_small_file_system() {
    let Some(directory) = child_directory() else { return };
    runtime().block_on(async {
        let open = || EmbeddedState::open(&directory.join("state"), EmbeddedOptions::default());
        let state = open().unwrap();
        let key = |n: usize| Key::new(format!("k/{n:04}")).unwrap();
        let mut kept = 0;
        for _ in 0..20 {
            state.put(key(kept), vec![b'x'; 1000].into()).await.unwrap();
            kept += 1;
        }
        let ballast = fill(&directory);
        let error = loop {
            match state.put(key(kept), vec![b'x'; 50_000].into()).await {
                Ok(_) => kept += 1,
                Err(error) => break error,
            }
            assert!(kept < 1000);
        };
        assert_eq!(error.code(), "DISK_FULL");
        let found = state.range(Query::span(KeySpan::all()).keys_only()).await.unwrap();
        assert_eq!(found.entries.len(), kept, "it still answers");
        std::fs::remove_file(ballast).unwrap();
        state.put(key(kept), "goes on".into()).await.unwrap();
        state.close().await;
        let state = open().unwrap();
        let found = state.range(Query::span(KeySpan::all()).keys_only()).await.unwrap();
        assert_eq!(found.entries.len(), kept + 1);
        state.close().await;
        // No space to begin with.
        let _ballast = fill(&directory);
        let error = EmbeddedState::open(&directory.join("new"), EmbeddedOptions::default());
        assert_eq!(error.unwrap_err().code(), "DISK_FULL");
    });
}

#[test]
fn a_full_disk_loses_no_state() {
    run("state_in_small_file_system");
}

#[test]
fn queue_in_small_file_system() {
    let Some(directory) = child_directory() else { return };
    runtime().block_on(async {
        let (store, queue) = open(&directory).await;
        let now = skein_model::Timestamp::from_micros(1);
        let first = submission(&echo(), "x");
        let id = first.job.id;
        queue.submit(vec![first], now).await.pop().unwrap().unwrap();
        let ballast = fill(&directory);
        let error = queue.body(vec![7; 100_000].into()).await.unwrap_err();
        assert_eq!(error.code(), "DISK_FULL");
        let batch = (0..200).map(|_| submission(&echo(), &"x".repeat(10_000))).collect();
        let outcomes = queue.submit(batch, now).await;
        let refusals: Vec<&QueueError> =
            outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(!refusals.is_empty());
        assert!(refusals.iter().all(|error| error.code() == "DISK_FULL"), "{refusals:?}");
        let accepted = 1 + outcomes.len() - refusals.len();
        std::fs::remove_file(ballast).unwrap();
        assert_eq!(queue.depth(&echo()).await.unwrap().waiting, accepted as u64);
        queue.get(id).await.unwrap();
        let audit = queue.audit().await.unwrap();
        assert_eq!((audit.jobs, audit.faults), (accepted as u64, Vec::new()));
        queue.submit(vec![submission(&echo(), "x")], now).await.pop().unwrap().unwrap();
        let body = queue.body(vec![7; 100_000].into()).await.unwrap();
        assert_eq!(body.bytes(), 100_000);
        drop(queue);
        store.close().await;
    });
}

#[test]
fn a_full_disk_loses_no_job() {
    run("queue_in_small_file_system");
}

#[test]
fn blobs_in_small_file_system() {
    let Some(directory) = child_directory() else { return };
    runtime().block_on(async {
        let blobs = BlobStore::open(&directory.join("blobs")).unwrap();
        let error = blobs.keep(tokio::io::repeat(1), 10_000_000).await.unwrap_err();
        assert_eq!(error.code(), "DISK_FULL");
        // What was written of it is gone, so that there is space again.
        let kept = blobs.keep(&[7; 1_000_000][..], 10_000_000).await.unwrap();
        assert_eq!(kept.bytes(), 1_000_000);
    });
}

#[test]
fn a_full_disk_leaves_no_half_blob() {
    run("blobs_in_small_file_system");
}
