//! Consoles against a guest that prints too much, and watchers that come late.

use super::*;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn start(ring_bytes: usize, keep: Keep) -> (Console, UnixStream, JoinHandle<()>) {
    let (ours, guest) = UnixStream::pair().expect("socket pair");
    let (console, pump) = ConsolePump::new(ours, ring_bytes, keep, CancellationToken::new());
    (console, guest, tokio::spawn(pump.run()))
}

async fn read_until(stream: &mut ConsoleStream, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let piece = timeout(PATIENCE, stream.read()).await.expect("in time").expect("not ended");
        all.push_str(&String::from_utf8_lossy(&piece.bytes));
    }
    all
}

#[tokio::test]
async fn a_late_watcher_sees_what_was_printed_before() {
    let (console, mut guest, _pump) = start(1024, Keep::Memory);
    let mut early = console.attach();
    guest.write_all(b"hello\n").await.expect("print");
    assert_eq!(read_until(&mut early, "\n").await, "hello\n");
    let mut late = console.attach();
    assert_eq!(read_until(&mut late, "\n").await, "hello\n");
    guest.write_all(b"more\n").await.expect("print");
    assert_eq!(read_until(&mut early, "\n").await, "more\n");
    drop(guest);
    assert_eq!(read_until(&mut late, "\n").await, "more\n");
    assert_eq!(timeout(PATIENCE, late.read()).await.expect("in time"), None);
    assert_eq!(console.tail(5), b"more\n");
}

#[tokio::test]
async fn what_is_typed_reaches_the_guest() {
    let (console, mut guest, pump) = start(1024, Keep::Memory);
    console.attach().send(b"ls\n").expect("typed");
    let mut heard = [0; 3];
    timeout(PATIENCE, guest.read_exact(&mut heard)).await.expect("in time").expect("read");
    assert_eq!(&heard, b"ls\n");
    let deaf = (0..10_000).find_map(|_| console.send(&[b'x'; 4096]).err());
    assert_eq!(deaf, Some(ConsoleError::Full));
    drop(guest);
    timeout(PATIENCE, pump).await.expect("in time").expect("ended");
    assert_eq!(console.send(b"x"), Err(ConsoleError::Closed));
}

#[tokio::test]
async fn a_flood_is_held_back_and_costs_bounded_memory_and_disk() {
    let dir = tempfile::tempdir().expect("directory");
    let path = Utf8PathBuf::try_from(dir.path().join("console.log")).expect("UTF-8");
    let (console, mut guest, pump) = start(4096, Keep::File(path.clone()));
    let mut watcher = console.attach();
    let line = [b'#'; 64 * 1024];
    let flood = async {
        loop {
            guest.write_all(&line).await.expect("print");
        }
    };
    let held = timeout(Duration::from_millis(1_500), flood).await;
    assert!(held.is_err(), "the guest is held back");
    // In 1.5 s: the burst, 1.5 s at the rate, and slack for a slow host.
    let end = console.shared.ring().end();
    assert!(end <= u64::from(READ_BURST + 4 * READ_PER_SECOND), "{end}");
    let piece = watcher.read().await.expect("piece");
    assert_eq!(piece.missed + 4096, end.max(piece.missed + 4096));
    pump.abort();
    assert!(pump.await.is_err());
    let kept = read_log(&path, usize::MAX / 2).expect("log").len() as u64;
    assert!(kept > 0 && kept <= 2 * CONSOLE_FILE_BYTES + READ_BYTES as u64, "{kept}");
}

#[tokio::test]
async fn the_log_is_rotated_once() {
    let dir = tempfile::tempdir().expect("directory");
    let path = Utf8PathBuf::try_from(dir.path().join("console.log")).expect("UTF-8");
    let mut log = LogFile::new(path.clone());
    let chunk = vec![b'a'; 300 * 1024];
    for _ in 0..20 {
        log.append(&chunk).await;
    }
    log.append(b"the end").await;
    assert!(!log.failed);
    let files = std::fs::read_dir(dir.path()).expect("directory").count();
    assert_eq!(files, 2);
    assert_eq!(read_log(&path, 7).expect("log"), b"the end");
    let all = read_log(&path, usize::MAX / 2).expect("log").len() as u64;
    assert!(all <= 2 * (CONSOLE_FILE_BYTES + chunk.len() as u64), "{all}");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let path = Utf8PathBuf::from("/proc/no/such/console.log");
    let (console, mut guest, _pump) = start(1024, Keep::File(path));
    guest.write_all(b"still here\n").await.expect("print");
    assert_eq!(read_until(&mut console.attach(), "\n").await, "still here\n");
}
