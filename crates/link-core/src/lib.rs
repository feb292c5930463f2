//! The link without an operating system.
//!
//! - [`ring`]: the rings in shared memory, and when each direction of a connection is on TCP or on its ring.
//! - [`negotiate`]: what a program's library and the broker say to each other.
//! - [`light`]: the light protocol between hosts, bytes and time in, datagrams and events out.
//! - `frames`: what comes on an interface, read where the Linux kernel puts it. For hosts only.
//!
//! No clock, socket, thread or allocation is assumed in `ring`, so that a unikernel and a Linux guest use it over a
//! shared-memory device as processes do over a memory file.

#![cfg_attr(not(test), no_std)]

#[cfg(feature = "light")]
extern crate alloc;

#[cfg(feature = "host")]
pub mod frames;
#[cfg(feature = "light")]
pub mod light;
pub mod negotiate;
pub mod ring;
