//! What can be tried without a cloud: help, completion, and how mistakes are told. That these tests run the binary is also why
//! a build of all tests builds it (`./test`).

use std::process::{Command, Output};

/// Runs `skein` where there is no cloud, with nothing set that would lead it to one.
fn skein(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
    for name in ["SKEIN_ACCESS", "SKEIN_URL", "SKEIN_TOKEN", "SKEIN_LOG"] {
        command.env_remove(name);
    }
    command.env("SKEIN_STATE", "/nonexistent/skein").args(args).output().expect("skein runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// The commands that `skein ARGS --help` lists.
fn commands(args: &[&str]) -> Vec<String> {
    let mut args = args.to_vec();
    args.push("--help");
    let output = skein(&args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    let help = stdout(&output);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    let name = |line: &str| line.strip_prefix("  ")?.split(' ').next().map(str::to_owned);
    listed.filter_map(name).filter(|name| !name.is_empty() && name != "help").collect()
}

#[test]
fn each_command_explains_itself() {
    let top = commands(&[]);
    for expected in ["up", "demo", "service", "job", "call", "vm", "ps", "plan", "bench"] {
        assert!(top.iter().any(|name| name == expected), "{expected} is not among {top:?}");
    }
    for name in &top {
        for inner in commands(&[name]) {
            commands(&[name, &inner]);
        }
    }
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = skein(&["completion", shell]);
        assert!(output.status.success(), "{shell}");
        assert!(stdout(&output).contains("service"), "{shell}");
    }
}

#[test]
fn without_a_cloud_the_error_says_where_it_looked() {
    let output = skein(&["ps"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "", "data only");
    assert!(stderr(&output).contains("/nonexistent/skein"), "{}", stderr(&output));
}

#[test]
fn a_server_that_is_not_there_is_one_sentence() {
    let args = ["--url", "http://127.0.0.1:1", "--token", "none", "ps"];
    let output = skein(&args);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("127.0.0.1:1"), "{}", stderr(&output));
    assert!(stderr(&output).lines().count() <= 2, "{}", stderr(&output));
}
