//! The formats that pass between a guest and its host, as `docs/guest-abi.md` defines them: the
//! kernel command line, the module archive, the control channel and HTTP/1.1.
//!
//! Everything here is pure: bytes in, values or bytes out. No clock, no socket, no `unsafe`, no
//! `std`. Both sides link this crate, so that one test suite speaks for the guest and for the host.
//! Whatever is parsed here may come from an enemy; every parser is total and bounded.

#![no_std]

extern crate alloc;

mod cmdline;
mod control;
mod cpio;
pub mod http;
mod percent;
mod words;

pub use cmdline::{
    BODY_DEFAULT, BootConfig, CAPACITY_MAX, COMMAND_LINE_MAX, CommandLineError, Ipv4Network,
    LogLevel, Seed,
};
pub use control::{
    CONTROL_LINE_MAX, ControlError, GuestLine, HostLine, Identity, LineReader, Stats,
};
pub use cpio::{Archive, ArchiveBuilder, ArchiveError, Module};
pub use percent::{percent_decode, percent_encode};
