//! `skein plan` as a user meets it: tables, files for programs, mistakes in scenarios, Ctrl-C. What is printed is compared with the
//! files in `golden/plan`; `UPDATE=1` makes them anew.

use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything here may take on a loaded host.
const DEADLINE: Duration = Duration::from_secs(120);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plan")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
    command.env_remove("SKEIN_LOG").args(["plan"]).args(args).stdin(Stdio::null());
    command
}

fn plan(args: &[&str]) -> Output {
    command(args).current_dir(folder()).output().expect("skein runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Compares what was printed, to stdout and stderr, with a file.
fn golden(name: &str, output: &Output) {
    let is = format!("{}--- stderr\n{}", text(&output.stdout), text(&output.stderr));
    let is = is.replace('\r', "");
    let path = folder().join(format!("{name}.txt"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &is).expect("a golden file");
    }
    let expect = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(is, expect, "{} is another: make it again with UPDATE=1", path.display());
}

fn check(name: &str, args: &[&str]) {
    let output = plan(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    golden(name, &output);
}

#[test]
fn tables_and_comma_separated_values() {
    check("sim", &["sim", "office.toml"]);
    check("sim-csv", &["sim", "office.toml", "--csv"]);
    check("sim-csv", &["sim", "office.toml", "-o", "csv"]);
    check("solve", &["solve", "office.toml"]);
    check("solve-over", &["solve", "office.toml", "--over", "60s"]);
    check("compare", &["compare", "office.toml"]);
    check(
        "search",
        &[
            "search",
            "office.toml",
            "--vary",
            "replicas_max=1..3",
            "--goal",
            "refusal<20%",
            "--minimise",
            "replicas_max",
        ],
    );
    check("policies", &["policies", "office.toml", "--loads", "1"]);
}

#[test]
fn json_has_every_measure_once() {
    for args in [["sim", "office.toml", "-o", "json"], ["solve", "office.toml", "-o", "json"]] {
        let output = plan(&args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["scenario"], "an office");
        let service = &report["services"][0];
        let measures = match args[0] {
            "sim" => &service["measures"],
            _ => &service["solution"]["measures"],
        };
        let names: Vec<&str> = measures
            .as_array()
            .expect("measures")
            .iter()
            .map(|measure| measure[0].as_str().expect("a name"))
            .collect();
        assert!(names.contains(&"refusal") && names.contains(&"replicas"), "{names:?}");
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len());
    }
}

/// A scenario with one line replaced.
fn spoiled(from: &str, to: &str) -> (TempDir, PathBuf) {
    let good = std::fs::read_to_string(folder().join("office.toml")).expect("office.toml");
    assert!(good.contains(from), "{from}");
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("spoiled.toml");
    std::fs::write(&file, good.replacen(from, to, 1)).expect("a file");
    (folder, file)
}

#[test]
fn what_is_wrong_with_a_scenario_is_shown_in_its_line() {
    for (from, to, line, shown, says) in [
        ("count = 3", "cuont = 3", 6, "cuont = 3", "unknown field `cuont`"),
        ("queue_bound = 20", "queue_bound = \"20 jobs\"", 13, "queue_bound = \"20 jobs\"", "u32"),
        ("work_secs = {", "work_ms = {", 21, "work_ms = {", "unknown field `work_ms`"),
        ("mean = 0.5 }\nqueue", "mean = \"0.5s\" }\nqueue", 12, "mean = \"0.5s\"", "expected"),
        (
            "dereplicate_at = 0",
            "dereplicate_at = 5",
            14,
            "scaling = {",
            "dereplicate_at below replicate_above",
        ),
        (
            "name = \"search\"",
            "name = \"search\"\ninitial_node = \"n9\"",
            12,
            "initial_node = \"n9\"",
            "node n9 is not there: there are n1, n2, n3",
        ),
        (
            "service = \"search\"",
            "service = \"serch\"",
            19,
            "service = \"serch\"",
            "there are search",
        ),
        ("mean = 2 }", "mean = -2 }", 20, "mean = -2", "mean above 0"),
        (
            "cooldown_ms = 0,",
            "migration = { leave_above = 0.3, go_below = 0.5 },",
            14,
            "scaling = {",
            "go_below",
        ),
    ] {
        let (_folder, file) = spoiled(from, to);
        let output = plan(&["sim", &file.to_string_lossy()]);
        let said = text(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{to}: {said}");
        let place = format!("spoiled.toml:{line}:");
        let marked = said
            .lines()
            .any(|line| line.trim_start().starts_with('|') && line.trim_end().ends_with('^'));
        assert!(
            said.contains(&place) && said.contains(shown) && said.contains(says) && marked,
            "{to}: {place} {says}\n{said}"
        );
    }
}

#[test]
fn a_terminal_sees_how_far_a_command_is() {
    // script(1) gives it a terminal; long enough for some looks at the progress.
    let (_folder, file) = spoiled("replications = 4,", "replications = 1000,");
    let command = format!("{} plan sim {}", env!("CARGO_BIN_EXE_skein"), file.display());
    let mut script = Command::new("script");
    let output = script.args(["-qec", &command, "/dev/null"]).output().expect("script");
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("1000 replications"), "{said}");
    assert!(said.contains(" %, ") && said.contains("[#"), "{said}");
}

#[test]
fn what_cannot_be_done_is_said_beforehand() {
    let (_folder, file) = spoiled("queue_bound = 20", "queue_bound = 1000000");
    let output = plan(&["solve", &file.to_string_lossy()]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty());
    for says in ["spoiled.toml:13:", "queue_bound = 1000000", "5000000 fit", "simulate instead"] {
        assert!(said.contains(says), "{says}: {said}");
    }
    for (args, says) in [
        (&["sim", "none.toml"][..], "none.toml"),
        (
            &[
                "search",
                "office.toml",
                "--vary",
                "nodes=2",
                "--goal",
                "refusal<1%",
                "--minimise",
                "nodes",
            ],
            "PARAMETER=LOW..HIGH",
        ),
        (
            &[
                "search",
                "office.toml",
                "--vary",
                "nodes=2..3",
                "--goal",
                "speed<1",
                "--minimise",
                "nodes",
            ],
            "speed",
        ),
        (
            &[
                "search",
                "office.toml",
                "--vary",
                "nodes=1..2",
                "--goal",
                "refusal<0.0000001%",
                "--minimise",
                "nodes",
            ],
            "no point reaches the goal",
        ),
        (&["experiments", "--duration", "0"], "--duration 0"),
    ] {
        let output = plan(args);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(says), "{args:?}: {said}");
    }
}

#[test]
fn a_history_is_written_and_played_again() {
    let folder = TempDir::new().expect("a folder");
    let history = folder.path().join("history.jsonl").to_string_lossy().into_owned();
    let page = folder.path().join("page.html").to_string_lossy().into_owned();
    assert!(plan(&["sim", "office.toml", "--history", &history, "--csv"]).status.success());
    assert!(plan(&["replay", &history, "--html", &page]).status.success());
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("job_done") && page.contains("</html>") || page.contains("</script>"));
    let played = plan(&["replay", &history, "--speed", "1000000"]);
    assert!(played.status.success(), "{}", text(&played.stderr));
    assert!(text(&played.stdout).contains("served"));
    std::fs::write(&history, "{\"at\": 1}\n").expect("a file");
    let refused = plan(&["replay", &history]);
    assert!(text(&refused.stderr).contains("line 1 is not an event"));
}

#[test]
fn the_chain_is_exported() {
    let folder = TempDir::new().expect("a folder");
    let to = folder.path().to_string_lossy().into_owned();
    let output = plan(&["export", "office.toml", "--prism", &to]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for ending in ["tra", "sta", "lab", "srew", "drn"] {
        let file = folder.path().join(format!("search.{ending}"));
        assert!(std::fs::metadata(&file).is_ok_and(|it| it.len() > 100), "{}", file.display());
    }
}

/// Ends a process that a test started, whatever becomes of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a process has a handler for SIGINT.
fn listens(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|it| it & 2 != 0)
}

#[test]
fn ctrl_c_prints_what_is_known_so_far() {
    let (_folder, file) = spoiled("duration_secs = 600", "duration_secs = 1000000000");
    let mut command = command(&["sim", &file.to_string_lossy()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().expect("skein runs"));
    let begun = Instant::now();
    while !listens(running.0.id()) {
        assert!(begun.elapsed() < DEADLINE, "it does not listen to Ctrl-C");
        std::thread::yield_now();
    }
    let pid = Pid::from_child(&running.0);
    kill_process(pid, Signal::INT).expect("a signal");
    // A cell of the statistics is a million seconds here: it comes to the end of one.
    let status = loop {
        if let Some(status) = running.0.try_wait().expect("a status") {
            break status;
        }
        assert!(begun.elapsed() < DEADLINE, "it goes on after Ctrl-C");
        std::thread::yield_now();
    };
    let mut printed = String::new();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut running.0.stdout.take().expect("stdout"), &mut printed)
        .expect("text");
    std::io::Read::read_to_string(&mut running.0.stderr.take().expect("stderr"), &mut said)
        .expect("text");
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("what is known so far") && said.contains("were simulated"), "{said}");
    assert!(printed.contains("time_in_system") && printed.contains("refusal"), "{printed}");
}
