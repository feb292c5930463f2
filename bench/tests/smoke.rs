//! A whole bench, as short as it can be: it has figures, and leaves nothing on the host.

use skein_bench::{Bench, BenchError, BenchImage, Options};
use skein_vmm::AccelChoice;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::sync::oneshot;

/// The image of the echo service, built as `skein image build` does.
fn echo() -> PathBuf {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest");
    let target = "x86_64-unknown-linux-gnu";
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(&guest)
        .args(["build", "--quiet", "--release", "--target", target, "--package", "echo"])
        .arg("--config")
        .arg(guest.join("unikernel/build-flags.toml"))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status();
    assert!(status.expect("cargo runs").success(), "the echo service builds");
    guest.join("target").join(target).join("release/echo")
}

fn options(kernel: PathBuf, count: u32) -> Options {
    let image = BenchImage {
        kernel,
        modules: Vec::new(),
        memory_mib: Some(16),
        capacity: Some(4),
        port: None,
    };
    Options { image, count: Some(count), accel: AccelChoice::Tcg, qemu: None }
}

/// Names in a folder that a bench of this test may have left.
fn left(folder: &str, prefix: &str) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeSet::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Processes whose parent is this one, by their `stat`.
fn children() -> usize {
    let me = format!(" {} ", std::process::id());
    let stats = left("/proc", "").into_iter().filter_map(|pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = text.rsplit_once(") ")?;
        // State and parent.
        Some(rest[1..].starts_with(&me))
    });
    stats.filter(|mine| *mine).count()
}

/// What the test's own process has on the host: run by nextest, other tests have other processes.
fn nothing_is_left(folders: &BTreeSet<String>) {
    assert_eq!(children(), 0, "a process is left");
    let now = left("/var/tmp", "skein-bench-");
    assert!(now.is_subset(folders), "a folder is left: {now:?}, before: {folders:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bench_has_figures_and_leaves_nothing() {
    let options = options(echo(), 2);
    let folders = left("/var/tmp", "skein-bench-");
    let report = skein_bench::run(Bench::Start, &options, std::future::pending(), &|_| {});
    let report = report.await.expect("figures");
    let ids: Vec<&str> = report.checks.iter().map(|check| check.id).collect();
    assert_eq!(ids, ["start.cold", "start.warm", "start.guest"]);
    for check in &report.checks {
        assert_eq!(check.n, 2, "{}", check.id);
        assert!(check.ours > 0.0 && check.p10 <= check.p90, "{}", check.id);
    }
    assert!(report.checks[0].ratio.is_some_and(|ratio| ratio > 0.0));
    nothing_is_left(&folders);

    // Interrupted when its first machine has served.
    let (begun, stop) = oneshot::channel::<()>();
    let begun = std::sync::Mutex::new(Some(begun));
    let stop = async { drop(stop.await) };
    let tell = |line: &str| {
        if line.starts_with("start.cold") {
            drop(begun.lock().expect("no panic").take());
        }
    };
    let interrupted = skein_bench::run(Bench::Start, &options, stop, &tell).await;
    assert!(matches!(interrupted, Err(BenchError::Interrupted)), "{interrupted:?}");
    nothing_is_left(&folders);
}

#[tokio::test]
async fn a_count_that_cannot_be_is_refused() {
    let options = options("/no/kernel".into(), 0);
    let refused = skein_bench::run(Bench::Density, &options, std::future::pending(), &|_| {}).await;
    assert_eq!(refused.expect_err("no machines").code(), "BENCH_COUNT");
}
