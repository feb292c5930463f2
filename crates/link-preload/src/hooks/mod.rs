//! The functions of the C library that we stand in front of. Each asks first whether a descriptor is ours, and if not - for
//! files, pipes, every socket that is no TCP connection - calls the C library's with the same arguments.
//!
//! Variadic functions are declared with the arguments that they can have: on x86-64 a caller of a variadic function
//! puts integers and pointers into the same registers.

#![expect(unreachable_pub, reason = "the functions are reached by name, from other programs")]

mod files;
mod io;
mod life;
mod options;
mod process;
mod ready;
mod several;
mod signals;
mod uring;
mod variadic;

pub(crate) use process::before_fork;

/// A descriptor beyond which none is ours; for calls that take ranges.
pub(crate) const LAST: libc::c_int = libc::c_int::MAX;
