//! Builds the preload library, so that the one binary carries it.
//!
//! A crate cannot depend on another's shared library with stable cargo, and the library must be
//! optimised whatever the profile of the rest; so cargo is called once more, into a folder of its own below this
//! crate's output. That takes three seconds once, and is repeated only when the sources of the library change.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let library = here.join("../link-preload");
    for folder in ["../link-preload/src", "../link-preload/Cargo.toml"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    for folder in ["ring", "lib.rs", "negotiate.rs"] {
        println!("cargo::rerun-if-changed=../link-core/src/{folder}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    let built = build(&library, &out.join("preload"));
    let target = out.join("libskein_link_preload.so");
    std::fs::copy(&built, &target)
        .unwrap_or_else(|error| panic!("copying {} here: {error}", built.display()));
    println!("cargo::rustc-env=SKEIN_LINK_PRELOAD={}", target.display());
}

/// Runs cargo and answers the library's path.
fn build(library: &Path, target: &Path) -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    cargo
        .args(["build", "--release", "--quiet", "--offline", "--locked", "--lib"])
        // A thread that is cancelled unwinds through the library; its own panics end the process (`lib.rs`).
        .args(["--config", "profile.release.panic=\"unwind\""])
        .args(["--config", "profile.release.lto=true"])
        .args(["--config", "profile.release.codegen-units=1"])
        .args(["--config", "profile.release.debug=false"])
        .args(["--config", "profile.release.strip=\"symbols\""])
        .arg("--manifest-path")
        .arg(library.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target);
    // What is meant for the crate that is being built is not meant for this one: flags, wrappers (clippy's among them),
    // incremental state.
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let foreign = ["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PKG_", "DEP_"];
        let exact = [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_INCREMENTAL",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CLIPPY_ARGS",
            "CLIPPY_CONF_DIR",
            "CARGO_MAKEFLAGS",
            "TARGET",
            "PROFILE",
        ];
        if foreign.iter().any(|prefix| text.starts_with(prefix)) || exact.contains(&text) {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.status().expect("cargo could not be run");
    assert!(status.success(), "building the preload library failed");
    target.join("release/libskein_link_preload.so")
}
