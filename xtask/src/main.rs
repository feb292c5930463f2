//! `cargo run -p xtask -- tidy`: what a machine can check of the style.
//!
//! - arrows between crates point up the list of `ARCHITECTURE.md` only;
//! - the pure crates have no runtime below them;
//! - no source file is longer than its subject allows;
//! - each path that `ARCHITECTURE.md` names exists;
//! - each direct dependency has a line in `docs/deps.md`.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The crates, from the one that knows nothing to the one that knows everything. A crate may depend on those before
/// it.
const ORDER: &[&str] = &[
    "skein-wire",
    "skein-model",
    "skein-policy",
    "skein-planner",
    "skein-shell",
    "skein-fabric",
    "skein-registry",
    "skein-vmm",
    "skein-net",
    "skein-link-core",
    "skein-link-preload",
    "skein-link",
    "skein-api",
    "skein-server",
    "skein-agent",
    "skein-cloud",
    "skein-bench",
    "skein",
    "skein-tests",
    "xtask",
];

/// Crates without a runtime, a clock or files below them.
const PURE: &[&str] = &["skein-model", "skein-policy", "skein-planner", "skein-wire"];

/// Lines of a source file, its tests included.
const LINES_MAX: usize = 1000;

fn main() -> ExitCode {
    let task = std::env::args().nth(1);
    let result = match task.as_deref() {
        Some("tidy") => tidy(),
        _ => Err(anyhow::anyhow!("usage: cargo run -p xtask -- tidy")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tidy() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the root folder")?;
    let metadata = metadata(root)?;
    let mut findings = arrows(&metadata)?;
    findings.extend(dependency_lines(root, &metadata)?);
    findings.extend(long_files(root)?);
    findings.extend(missing_paths(root)?);
    if findings.is_empty() {
        println!("tidy: nothing found");
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("{} findings", findings.len());
}

fn metadata(root: &Path) -> Result<Value> {
    let out = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    if !out.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// Name, and the names of what it depends on (not only for its tests).
fn packages(metadata: &Value) -> Vec<(String, Vec<String>)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    list(&metadata["packages"])
        .iter()
        .map(|package| {
            let dependencies = list(&package["dependencies"]);
            let real = dependencies.iter().filter(|d| d["kind"].as_str() != Some("dev"));
            (text(&package["name"]), real.map(|d| text(&d["name"])).collect())
        })
        .collect()
}

fn arrows(metadata: &Value) -> Result<Vec<String>> {
    let place = |name: &str| ORDER.iter().position(|known| *known == name);
    let mut findings = Vec::new();
    for (name, dependencies) in packages(metadata) {
        let Some(own) = place(&name) else {
            findings.push(format!("crate {name} has no place in the order of crates (xtask)"));
            continue;
        };
        for dependency in &dependencies {
            if place(dependency).is_some_and(|other| other >= own) {
                findings.push(format!("{name} depends on {dependency}, which stands below it"));
            }
            if PURE.contains(&name.as_str())
                && ["tokio", "async-trait"].contains(&dependency.as_str())
            {
                findings.push(format!("{name} is pure and depends on {dependency}"));
            }
        }
    }
    Ok(findings)
}

fn dependency_lines(root: &Path, metadata: &Value) -> Result<Vec<String>> {
    let path = root.join("docs/deps.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let all: BTreeSet<String> = packages(metadata).into_iter().flat_map(|(_, d)| d).collect();
    let foreign = all.iter().filter(|name| !ORDER.contains(&name.as_str()));
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let named: BTreeSet<&str> = text.split(word).collect();
    let missing = foreign.filter(|name| !named.contains(name.as_str()));
    Ok(missing.map(|name| format!("docs/deps.md has no line for `{name}`")).collect())
}

fn long_files(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in ["crates", "guest", "xtask", "tests", "bench"] {
        sources(&root.join(folder), &mut files)?;
    }
    let mut findings = Vec::new();
    for file in files {
        let lines = fs::read_to_string(&file)?.lines().count();
        if lines > LINES_MAX {
            let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            findings.push(format!("{name}: {lines} lines; more than {LINES_MAX} are two subjects"));
        }
    }
    Ok(findings)
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() {
            if !["target", "node_modules", "corpus", "artifacts"].contains(&name) {
                sources(&path, files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Paths in backquotes that begin with one of our folders.
fn missing_paths(root: &Path) -> Result<Vec<String>> {
    let path = root.join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let ours = ["crates/", "guest/", "docs/", "tests/", "bench/", "scripts/", "xtask/", ".ci/"];
    let quoted = text.split('`').skip(1).step_by(2);
    let named = quoted.filter(|part| ours.iter().any(|folder| part.starts_with(folder)));
    let missing = named.filter(|part| !part.contains(['*', ' ', '<']) && !root.join(part).exists());
    Ok(missing
        .map(|part| format!("ARCHITECTURE.md names `{part}`, which does not exist"))
        .collect())
}
