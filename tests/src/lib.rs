//! The whole cloud on real machines: what it does, and what it survives. This library is the harness.
//!
//! A test runs inside [`run`], which starts a [`World`] (a cloud in this process, on a folder and a port of its own), hands it
//! to the test, ends it however the test ended, and then looks whether anything was left on the host: a process, a
//! namespace, an interface, a mount, a task. A test that fails tells what the cloud looked like.
//!
//! ```text
//!   run ──▶ World ──▶ skein_cloud::Cloud, skein_api::Client      machines are QEMU, images are built from guest/
//!   run_fake ──▶ FakeWorld ──▶ server and agent, machines are played and a test answers for them
//!   Process ──▶ the real `skein` binary, to be killed, or as a command line
//! ```

mod artifacts;
mod disk;
mod fake;

mod leaks;
mod ledger;

mod process;
mod raw;
mod runner;
mod wait;
mod world;

pub use artifacts::{echo_elf, repository, skein_binary};

pub use disk::SmallDisk;
pub use fake::{FakeWorld, run_fake};
pub use leaks::Leaks;
pub use ledger::{Ending, Ledger};

pub use process::{Said, Skein, Up, state_folder};
pub use raw::{RawAnswer, raw};
pub use runner::run;
pub use wait::{DEADLINE, until};
pub use world::{Setup, World, service};
