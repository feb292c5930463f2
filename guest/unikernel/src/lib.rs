//! A library OS: it turns one Rust function into a machine that boots in milliseconds and serves
//! that function over HTTP.
//!
//! ```text
//! main!(handle)                 the service: request in, response out
//!   server, executor            HTTP/1.1, connections, requests up to the capacity at a time
//!   net, clock, random, log     smoltcp, time stamp counter, ChaCha20, consoles
//!   virtio, arch                devices, page tables, interrupts, PVH boot
//! ```
//!
//! One CPU, one address space, one thread. Handlers are futures: while one waits (`sleep`,
//! `yield_now`), others and the network go on; while one computes, everything else waits. A handler
//! that computes for longer than some milliseconds should call [`yield_now`] now and then.
//!
//! A machine has no file system, no processes and no user. What it may see is what
//! `docs/guest-abi.md` lists: parameters ([`param`]), data modules ([`module`]), clock ([`now`],
//! [`unix_time`]), random numbers ([`fill_random`]) and its counters ([`stats`]). A panic ends the
//! machine; the host starts another.
//!
//! Without `--cfg skein_guest` (see `build-flags.toml`) the crate is an ordinary library, so that
//! the logic of a service can be tested on the host.

#![no_std]
#![cfg_attr(not(skein_guest), allow(dead_code, reason = "hosts use the logic, not the machine"))]

extern crate alloc;

mod arch;
mod clock;
mod executor;
mod fatal;
mod heap;
mod host;
mod log_output;
#[cfg(skein_guest)]
mod machine;
mod net;
mod random;
mod server;
mod service;
mod sync;
mod virtio;

pub use clock::{now, sleep, unix_time};
pub use executor::yield_now;
pub use host::{host_name, module, modules, param, params, stats};
pub use random::{fill_random, random_u64};
pub use service::{Handler, Service};
// The types of a service's function; their home is the crate that host programs use as well.
pub use skein_wire::Stats;
pub use skein_wire::http::{Head, Request, Response};

/// Used by [`main!`].
#[doc(hidden)]
pub use service::Started;

/// Makes a service out of a function, and the crate into a machine.
///
/// The function takes a [`Request`] and gives something that becomes a [`Response`] (a `Response`,
/// text, bytes, or a `Result` of two of these); it may be `async`. With `init = function`, a `fn()`
/// runs once before the machine listens, for example to read its modules; it may return a `Result`
/// whose error ends the machine.
///
/// ```ignore
/// #![no_std]
/// #![no_main]
/// use skein_unikernel::{Request, main};
///
/// async fn hello(request: Request) -> &'static str {
///     "hello\n"
/// }
///
/// main!(hello);
/// ```
#[cfg(skein_guest)]
#[macro_export]
macro_rules! main {
    ($handler:expr) => {
        $crate::main!($handler, init = || ());
    };
    ($handler:expr, init = $init:expr) => {
        const _: () = {
            // The one symbol that the kernel part looks for; two services in one image do not link.
            #[allow(unsafe_code, reason = "the name is the interface between kernel and service")]
            #[unsafe(no_mangle)]
            fn skein_service() -> $crate::Service {
                $crate::Service::new($handler, $init)
            }
        };
    };
}

/// Makes a service out of a function. Built for the host, the program only checks that it is one,
/// and says how to build the machine.
#[cfg(not(skein_guest))]
#[macro_export]
macro_rules! main {
    ($handler:expr) => {
        $crate::main!($handler, init = || ());
    };
    ($handler:expr, init = $init:expr) => {
        fn main() {
            let service = $crate::Service::new($handler, $init);
            panic!("{service:?} runs as a machine: build it with `skein image build`");
        }
    };
}
