//! What passes between the machine and its host beside HTTP: parameters, modules, counters, the
//! control channel.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use skein_wire::{Archive, BootConfig, GuestLine, HostLine, LineReader, Stats};

use crate::clock;
use crate::heap;
use crate::sync::Mutex;
use crate::virtio::console::Console;

static CONFIG: Mutex<Option<&'static BootConfig>> = Mutex::new(None);
static ARCHIVE: Mutex<Option<Archive<'static>>> = Mutex::new(None);

/// The machine's settings; defaults outside a machine.
pub(crate) fn config() -> &'static BootConfig {
    CONFIG.lock().get_or_insert_with(|| Box::leak(Box::default()))
}

/// Replaces the settings. What was there stays in memory: references to it were given out.
pub(crate) fn set_config(config: BootConfig) {
    *CONFIG.lock() = Some(Box::leak(Box::new(config)));
}

/// Makes the modules known.
pub(crate) fn set_archive(archive: Archive<'static>) {
    *ARCHIVE.lock() = Some(archive);
}

/// The value of service parameter `key` (`env.KEY=` on the command line).
#[must_use]
pub fn param(key: &str) -> Option<&'static str> {
    config().param(key)
}

/// All service parameters.
pub fn params() -> impl Iterator<Item = (&'static str, &'static str)> {
    config().env.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

/// The machine's name.
#[must_use]
pub fn host_name() -> &'static str {
    &config().host
}

/// The content of the data module at `path`. It lies in memory for the machine's life and cannot be
/// written.
#[must_use]
pub fn module(path: &str) -> Option<&'static [u8]> {
    ARCHIVE.lock().as_ref()?.get(path)
}

/// Path and content of every data module, in the order of the image.
#[must_use]
pub fn modules() -> Vec<(&'static str, &'static [u8])> {
    let archive = *ARCHIVE.lock();
    archive.iter().flat_map(Archive::modules).map(|module| (module.path, module.data)).collect()
}

/// Counters since boot.
pub(crate) struct Counters {
    /// Time asleep, ns.
    pub(crate) idle_ns: AtomicU64,
    /// Requests answered by the service.
    pub(crate) requests: AtomicU64,
    /// Requests inside the service.
    pub(crate) in_service: AtomicU64,
    /// Answers of 400 and above, broken connections.
    pub(crate) errors: AtomicU64,
}

/// The machine's counters.
pub(crate) static COUNTERS: Counters = Counters {
    idle_ns: AtomicU64::new(0),
    requests: AtomicU64::new(0),
    in_service: AtomicU64::new(0),
    errors: AtomicU64::new(0),
};

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Memory, time and request counters of this machine.
#[must_use]
pub fn stats() -> Stats {
    let uptime_us = clock::now_ns() / 1000;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Stats {
        mem_total: heap::total() as u64,
        mem_used: heap::used() as u64,
        busy_us: uptime_us.saturating_sub(read(&COUNTERS.idle_ns) / 1000),
        requests: read(&COUNTERS.requests),
        in_service: read(&COUNTERS.in_service),
        errors: read(&COUNTERS.errors),
        uptime_us,
    }
}

/// The control channel.
struct Control {
    console: Console,
    reader: LineReader,
}

static CONTROL: Mutex<Option<Control>> = Mutex::new(None);

/// Talks to the host over `console` from now on.
pub(crate) fn use_control(console: Console) {
    *CONTROL.lock() = Some(Control { console, reader: LineReader::new() });
}

/// Sends a line to the host, if there is a control channel.
pub(crate) fn tell(line: GuestLine) {
    let mut bytes = Vec::new();
    line.encode(&mut bytes);
    if let Some(mut control) = CONTROL.try_lock()
        && let Some(control) = control.as_mut()
    {
        control.console.write(&bytes);
    }
}

/// Tells the host with which code the machine is about to end, and waits until it was read, for at
/// most 100 ms. Works without the heap: the machine may end because that is exhausted.
pub(crate) fn tell_stopping(code: u8) {
    let Some(mut control) = CONTROL.try_lock() else { return };
    let Some(control) = control.as_mut() else { return };
    let mut line = *b"stopping code=000\n";
    for (digit, divisor) in [100, 10, 1].into_iter().enumerate() {
        line[14 + digit] = b'0' + code / divisor % 10;
    }
    control.console.write(&line);
    let end = clock::now_ns().saturating_add(100_000_000);
    while !control.console.is_drained() && clock::now_ns() < end {
        core::hint::spin_loop();
    }
}

/// Takes the lines that have arrived. Lines that cannot be read are dropped with a warning.
pub(crate) fn take_lines(pending: u32) -> Vec<HostLine> {
    let mut lines = Vec::new();
    let mut bad = None;
    if let Some(Control { console, reader }) = CONTROL.lock().as_mut() {
        if pending & console.slot_bit() != 0 {
            console.acknowledge();
        }
        console.read(|bytes| {
            reader.push(bytes, |line| match line.and_then(HostLine::parse) {
                Ok(line) => lines.extend(line),
                Err(error) => bad = Some(error),
            });
        });
    }
    if let Some(error) = bad {
        log::warn!("the host's line was not understood: {error}");
    }
    lines
}
