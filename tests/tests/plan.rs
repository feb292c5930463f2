//! The planner's other half: what a scenario says, done by a real cloud. Machines that move, and live runs that end early.

use anyhow::{Context, Result, ensure};
use skein_api::Client;
use skein_model::{EventKind, Migration};
use skein_tests::{DEADLINE, Setup, World, repository, run, service, skein_binary};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

async fn mark(client: &Client, node: &str, how: &str) -> Result<()> {
    let path = format!("/v1/nodes/{node}/{how}");
    client.raw(http::Method::POST, &path, bytes::Bytes::new()).await?;
    Ok(())
}

#[test]
fn a_machine_leaves_a_cordoned_node_under_load_and_nothing_is_lost() {
    run(Setup::nodes(2), async |world| {
        let spec = service("moves", |spec| {
            (spec.scaling.replicas_min, spec.scaling.replicas_max) = (1, 1);
            spec.scaling.migration = Some(Migration::default());
        });
        world.serve(&spec).await?;
        let old = world.ready("moves", 1).await?.remove(0);
        for round in 0..20 {
            world.submit("moves", &format!("before {round}"), "/?sleep_ms=40").await?;
        }
        mark(world.client(), &old.node, "cordon").await?;
        let moved = moved(world, &old.id).await?;
        world.settle_done().await?;
        let new = world.ready("moves", 1).await?.remove(0);
        ensure!(new.id == moved && new.node != old.node, "{old:?} became {new:?}");
        let events = world.events().await?;
        let copies = |line: &&skein_api::EventLine| matches!(&line.event, EventKind::Migrating { machine, .. } if *machine == old.id);
        let begun = events.iter().find(copies).context("a copy was begun")?;
        ensure!(begun.machine.as_ref() == Some(&new.id), "{begun:?}");
        let reason = |line: &skein_api::EventLine| format!("{:?}", line.event);
        ensure!(reason(begun).contains("cordoned"), "{begun:?}");
        let lost = events.iter().find(|line| matches!(line.event, EventKind::JobReturned { .. }));
        ensure!(lost.is_none(), "a job was done again: {lost:?}");
        mark(world.client(), &old.node, "uncordon").await
    });
}

/// The copy that took a machine's place, while jobs keep coming.
async fn moved(world: &mut World, old: &str) -> Result<String> {
    let begun = Instant::now();
    loop {
        let events = world.events().await?;
        let ours = events.into_iter().find_map(|line| match line.event {
            EventKind::Migrated { machine, .. } if line.machine.as_deref() == Some(old) => {
                Some(machine)
            }
            _ => None,
        });
        if let Some(machine) = ours {
            return Ok(machine);
        }
        ensure!(begun.elapsed() < DEADLINE, "{old} never moved");
        world.submit("moves", "meanwhile", "/?sleep_ms=20").await?;
    }
}

/// Of two nodes one is known to fail, eight seconds before it does: the only machine leaves it in time.
const MOVES: &str = r#"
name = "a node that is known to fail"
run = { seed = 1, replications = 4, duration_secs = SECS, warm_up = { kind = "none" } }
[[nodes]]
name = "weak"
time_to_failure_secs = 12
time_to_repair_secs = 60
failure_warning_secs = 8
[[nodes]]
name = "strong"
[[services]]
name = "search"
start_secs = { kind = "exponential", mean = 0.15 }
queue_bound = 50
scaling = { replicas_min = 1, replicas_max = 1, migration = { at_once = 1 } }
[[users]]
name = "people"
count = 2
service = "search"
interval_secs = { kind = "exponential", mean = 0.5 }
work_secs = { kind = "exponential", mean = 0.02 }
"#;

/// `skein plan compare --live` on a scenario.
struct Compare {
    child: Child,
    errors: BufReader<std::process::ChildStderr>,
    said: String,
    _folder: tempfile::TempDir,
}

impl Drop for Compare {
    fn drop(&mut self) {
        // Asked first: a cloud that is killed leaves its machines.
        let own = rustix::process::Pid::from_child(&self.child);
        let begun = Instant::now();
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = rustix::process::kill_process(own, rustix::process::Signal::TERM);
        }
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < DEADLINE {
            std::thread::yield_now();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Compare {
    fn start(secs: u32) -> Result<Self> {
        let folder = tempfile::TempDir::new()?;
        let scenario = folder.path().join("moves.toml");
        std::fs::write(&scenario, MOVES.replace("SECS", &secs.to_string()))?;
        let image = echo_bundle(folder.path())?;
        let mut child = Command::new(skein_binary()?)
            .args(["plan", "compare", "--live", "--accel", "tcg", "--image"])
            .arg(image)
            .arg(scenario)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let errors = BufReader::new(child.stderr.take().context("its errors")?);
        Ok(Self { child, errors, said: String::new(), _folder: folder })
    }

    /// Reads what it says on stderr up to a line with `word`.
    fn until(&mut self, word: &str) -> Result<()> {
        while !self.said.contains(word) {
            let read = self.errors.read_line(&mut self.said)?;
            ensure!(read > 0, "it ended without saying {word:?}: {}", self.said);
        }
        Ok(())
    }

    /// Its exit status and what it printed, once it has ended.
    fn end(&mut self) -> Result<(Option<i32>, String, String)> {
        let mut printed = String::new();
        self.child.stdout.take().context("its output")?.read_to_string(&mut printed)?;
        self.errors.read_to_string(&mut self.said)?;
        Ok((self.child.wait()?.code(), printed, std::mem::take(&mut self.said)))
    }
}

fn echo_bundle(folder: &Path) -> Result<PathBuf> {
    let image = folder.join("echo");
    let built = Command::new(skein_binary()?)
        .args(["image", "build"])
        .arg(repository().join("guest/services/echo"))
        .arg("--to")
        .arg(&image)
        .output()?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(image)
}

/// QEMUs below a process, and folders of live clouds: what a live run has on the host.
fn left(of: u32) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        if status.lines().any(|line| line == format!("PPid:\t{of}")) {
            found.insert(status.lines().next().unwrap_or_default().to_owned());
        }
    }
    found
}

/// The folder of the cloud that a process keeps locked, and the cloud's id, by which its networks are named.
fn cloud_of(pid: u32) -> Option<(PathBuf, String)> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let folders = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let folder = folders.filter(|path| path.starts_with("/tmp")).find(|path| path.is_dir())?;
    let id = std::fs::read_to_string(folder.join("cloud.id")).ok()?;
    Some((folder, id.trim().to_owned()))
}

#[test]
fn ctrl_c_ends_a_live_run_with_what_is_known_and_leaves_nothing() -> Result<()> {
    let mut compare = Compare::start(600)?;
    // It sends, and moves a machine; then it is told to end.
    compare.until("known to fail soon")?;
    compare.until("fails\n")?;
    let pid = compare.child.id();
    let (folder, id) = cloud_of(pid).context("the folder of its cloud")?;
    ensure!(!left(pid).is_empty(), "no machine runs");
    let own = rustix::process::Pid::from_child(&compare.child);
    rustix::process::kill_process(own, rustix::process::Signal::INT)?;
    let (status, printed, said) = compare.end()?;
    ensure!(status == Some(130), "status {status:?}: {said}");
    ensure!(said.contains("stopped after 1"), "{said}");
    let row = printed.lines().find(|line| line.contains("time_in_system")).context("a table")?;
    ensure!(row.contains('±'), "no figures: {printed}");
    ensure!(!folder.exists(), "{} is still there", folder.display());
    let namespaces = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = namespaces.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours: Vec<String> = names.filter(|name| name.contains(&id)).collect();
    ensure!(ours.is_empty() && left(pid).is_empty(), "left on the host: {ours:?}");
    Ok(())
}

#[test]
fn a_live_run_moves_machines_from_a_node_that_is_known_to_fail() -> Result<()> {
    let mut compare = Compare::start(20)?;
    let (status, printed, said) = compare.end()?;
    ensure!(status == Some(0), "status {status:?}: {said}");
    for word in ["known to fail soon: cordoned", "fails"] {
        ensure!(said.contains(word), "{said}");
    }
    let row = |name: &str| printed.lines().find(|line| line.contains(name)).map(str::to_owned);
    let lost = row(" loss").or_else(|| row("loss")).context("a row")?;
    ensure!(!lost.contains("0.0"), "requests were lost: {printed}");
    let moves = row("migration_rate").context("a row of migrations")?;
    ensure!(moves.matches("180").count() >= 2, "one migration in 20 s, in both: {moves}");
    Ok(())
}
