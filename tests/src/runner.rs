//! Runs one test in a world of its own, and looks afterwards whether anything was left.

use crate::leaks::Leaks;
use crate::world::{Setup, World};
use anyhow::Result;
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Once;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A test that takes longer has failed: each is far below on a loaded host.
const LIMIT: Duration = Duration::from_secs(170);
/// How long the end of a cloud may take.
const END_LIMIT: Duration = Duration::from_secs(60);
/// Worlds of one process at a time, when tests are its threads: as many as the smallest host has cores.
static PLACES: Semaphore = Semaphore::const_new(2);

/// A runtime for one test, with logs on stderr when `SKEIN_LOG` asks for them.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| {
        let filter = std::env::var("SKEIN_LOG").unwrap_or_else(|_| "warn".to_owned());
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer();
        let _ = logs.try_init();
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime")
}

/// Runs a test in a world of its own. However it ends, the cloud is ended and the host is looked at.
///
/// # Panics
/// When the test fails, or something was left.
pub fn run(setup: Setup, test: impl AsyncFnOnce(&mut World) -> Result<()>) {
    let runtime = runtime();
    let (failure, leaks) = runtime.block_on(async {
        let _place = PLACES.acquire().await.expect("never closed");
        let mut world = World::start(setup).await.expect("the cloud starts");
        let tested = AssertUnwindSafe(tokio::time::timeout(LIMIT, test(&mut world)));
        let failure = match tested.catch_unwind().await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(format!("{error:#}")),
            Ok(Err(_)) => Some(format!("not done after {LIMIT:?}")),
            Err(panic) => Some(words(panic.as_ref())),
        };
        if failure.is_some() {
            world.describe().await;
        }
        let leaks = world.leaks();
        let mut end = "";
        if let Some(cloud) = world.take_cloud()
            && tokio::time::timeout(END_LIMIT, cloud.stop_all()).await.is_err()
        {
            end = "the cloud did not end";
        }
        let mut left = leaks.all();
        left.extend((!end.is_empty()).then(|| end.to_owned()));
        leaks.remove();
        drop(world);
        (failure, left)
    });
    let tasks = tasks_left(&runtime);
    runtime.shutdown_timeout(Duration::from_secs(5));
    if let Some(failure) = failure {
        panic!("{failure}\nleft on the host: {leaks:?}");
    }
    assert!(leaks.is_empty(), "left on the host: {leaks:?}");
    assert_eq!(tasks, 0, "tasks left");
}

/// Tasks of the runtime once they had time to end.
fn tasks_left(runtime: &tokio::runtime::Runtime) -> usize {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let alive = runtime.metrics().num_alive_tasks();
        if alive == 0 || Instant::now() > until {
            return alive;
        }
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(10)).await });
    }
}

pub(crate) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// Ends what is left of a cloud by force when dropped; for tests whose cloud is a process of its own.
#[derive(Debug)]
pub(crate) struct Remover {
    /// What it looks for.
    pub(crate) leaks: Leaks,
    /// Whether everything stays: another cloud will take it up.
    pub(crate) keep: bool,
}

impl Drop for Remover {
    fn drop(&mut self) {
        if !self.keep {
            self.leaks.remove();
        }
    }
}
