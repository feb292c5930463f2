//! Lets the linker find `skein.ld`, named in `build-flags.toml`, wherever this crate lies.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-search={directory}");
    println!("cargo::rerun-if-changed=skein.ld");
}
