//! The same model in Python: SimPy, Ciw and Storm from PyPI, in an environment that the bench makes once and keeps in a cache
//! folder. Where they cannot be had, a bench says why and goes on without them.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// Installing takes a download of some 100 MB (Storm) at most.
const INSTALL_MAX: Duration = Duration::from_secs(300);

/// One run of a script.
const RUN_MAX: Duration = Duration::from_secs(120);

/// Versions that the figures of the documentation are of.
const PACKAGES: [(Peer, &str); 3] =
    [(Peer::SimPy, "simpy==4.1.2"), (Peer::Ciw, "ciw==3.2.7"), (Peer::Storm, "stormpy==2.0.0")];

/// A peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    SimPy,
    Ciw,
    Storm,
}

impl Peer {
    const fn script(self) -> &'static str {
        match self {
            Self::SimPy => include_str!("simpy_mmc.py"),
            Self::Ciw => include_str!("ciw_mmc.py"),
            Self::Storm => include_str!("storm_chain.py"),
        }
    }

    fn package(self) -> &'static str {
        PACKAGES.iter().find(|(peer, _)| *peer == self).map_or("", |it| it.1)
    }
}

/// What a script printed.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Printed {
    /// Events handled, or states.
    pub(crate) work: f64,
    /// Time that it took, without the start of Python.
    pub(crate) seconds: f64,
    /// Mean time in system, or share of full states: that it is the same model.
    pub(crate) mean: f64,
}

/// A Python with some of the peers.
#[derive(Debug)]
pub(crate) struct Python {
    folder: PathBuf,
}

/// Runs a program; what it printed, or why there is nothing.
pub(super) async fn output(
    program: &Path,
    arguments: &[&str],
    most: Duration,
) -> Result<String, String> {
    let told = format!("{} {}", program.display(), arguments.first().unwrap_or(&""));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(most, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("{told}: {error}")),
        Err(_) => return Err(format!("{told} took longer than {most:?}")),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").to_owned();
    Err(format!("{told}: {last}"))
}

impl Python {
    /// The environment in `cache`, made if it is not there.
    ///
    /// # Errors
    /// There is no Python 3 with `venv`.
    pub(crate) async fn open(cache: &Path) -> Result<Self, String> {
        let folder = cache.join("bench-python");
        let python = Self { folder };
        if !python.program().exists() {
            let at = python.folder.to_string_lossy().into_owned();
            output(Path::new("python3"), &["-m", "venv", &at], INSTALL_MAX).await?;
        }
        Ok(python)
    }

    fn program(&self) -> PathBuf {
        self.folder.join("bin/python")
    }

    /// Installs a peer, unless it is there.
    ///
    /// # Errors
    /// Why not: no way to PyPI, no build for this host.
    pub(crate) async fn install(&self, peer: Peer) -> Result<(), String> {
        let package = peer.package();
        let (name, version) = package.split_once("==").unwrap_or((package, ""));
        let program = self.program();
        let known = format!("import importlib.metadata as m; print(m.version({name:?}))");
        if output(&program, &["-c", &known], RUN_MAX).await.is_ok_and(|it| it.trim() == version) {
            return Ok(());
        }
        let quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", package];
        output(&program, &quiet, INSTALL_MAX).await.map(drop)
    }

    /// Runs a peer's script.
    ///
    /// # Errors
    /// It failed, or printed something else.
    pub(crate) async fn run(&self, peer: Peer, argument: &str) -> Result<Printed, String> {
        let text = output(&self.program(), &["-c", peer.script(), argument], RUN_MAX).await?;
        let line = text.lines().rev().find(|line| line.starts_with('{')).unwrap_or("");
        serde_json::from_str(line).map_err(|error| format!("{peer:?} printed {line:?}: {error}"))
    }
}
