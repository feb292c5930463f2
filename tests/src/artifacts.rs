//! What tests run: the image of the echo service and the `skein` binary, built once for each run of the tests. Where
//! `SKEIN_TESTS_ECHO` or `SKEIN_TESTS_SKEIN` name one, that one is taken as it is.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Results of this process: a failure is told to each test that asks.
static BUILT: Mutex<Vec<(&str, PathBuf)>> = Mutex::new(Vec::new());

/// Names the run of the tests when nextest gives each test a process of its own.
const RUN_ID: &str = "NEXTEST_RUN_ID";

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The folder of the host's build output: this program lies in `target/PROFILE/deps`.
fn profile_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("this program's path")?;
    let folder = program.ancestors().nth(2).context("target/PROFILE")?;
    Ok(folder.to_owned())
}

/// The machine image of the echo service.
///
/// # Errors
/// It does not build.
pub fn echo_elf() -> Result<PathBuf> {
    once("echo", || {
        let guest = repository().join("guest");
        let target = "x86_64-unknown-linux-gnu";
        let mut cargo = cargo(&guest);
        cargo.args(["build", "--quiet", "--release", "--target", target, "--package", "echo"]);
        cargo.arg("--config").arg(guest.join("unikernel/build-flags.toml"));
        finish(cargo)?;
        Ok(guest.join("target").join(target).join("release/echo"))
    })
}

/// The `skein` binary, of the profile that these tests were built with.
///
/// # Errors
/// It does not build.
pub fn skein_binary() -> Result<PathBuf> {
    once("skein", || {
        let folder = profile_folder()?;
        let mut cargo = cargo(&repository());
        cargo.args(["build", "--quiet", "--package", "skein"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        finish(cargo)?;
        Ok(folder.join("skein"))
    })
}

fn cargo(folder: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(folder).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo
}

fn finish(mut cargo: Command) -> Result<()> {
    let output = cargo.output().context("running cargo")?;
    if !output.status.success() {
        bail!("{cargo:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Builds once for each run of the tests: by itself within a process, by a stamp between those of one run. One at a time:
/// cargo would wait for its lock anyway, silently.
fn once(name: &'static str, build: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
    if let Some(given) = std::env::var_os(format!("SKEIN_TESTS_{}", name.to_uppercase())) {
        return Ok(given.into());
    }
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, path)) = built.iter().find(|(known, _)| *known == name) {
        return Ok(path.clone());
    }
    let folder = profile_folder()?.join("skein-tests");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let lock = File::create(folder.join(format!("{name}.lock"))).context("the build's lock")?;
    lock.lock().context("waiting for the build's lock")?;
    let stamp = folder.join(format!("{name}.stamp"));
    let run = std::env::var(RUN_ID).unwrap_or_default();
    let stamped = fs::read_to_string(&stamp).unwrap_or_default();
    let path = match stamped.split_once('\n') {
        Some((of, path)) if !run.is_empty() && of == run => PathBuf::from(path),
        Some(_) | None => {
            let path = build()?;
            fs::write(&stamp, format!("{run}\n{}", path.display())).context("the build's stamp")?;
            path
        }
    };
    built.push((name, path.clone()));
    Ok(path)
}
