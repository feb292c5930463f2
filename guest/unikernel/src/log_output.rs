//! Where messages go: the log console if the machine has one, else the serial port. Last words go
//! to both.

use alloc::string::String;
use core::fmt::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};
use skein_wire::LogLevel;

use crate::arch::cpu;
use crate::sync::Mutex;
use crate::virtio::console::Console;

/// Data register of the first serial port; 5 further is its status.
const SERIAL: u16 = 0x3f8;
/// Status bit: the transmitter has room.
const SERIAL_ROOM: u8 = 1 << 5;
/// 10,000 looks at a port that never gets room, some milliseconds: the port is broken.
const SERIAL_TRIES: u32 = 10_000;
/// 100 ms for the host to take the last words, nanoseconds.
const FLUSH_NS: u64 = 100_000_000;

static CONSOLE: Mutex<Option<Console>> = Mutex::new(None);

/// Sends messages to `console` from now on.
pub(crate) fn use_console(console: Console) {
    *CONSOLE.lock() = Some(console);
}

/// Makes this the target of the `log` macros.
pub(crate) fn install(level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    };
    // Fails only when called twice.
    if log::set_logger(&Output).is_ok() {
        log::set_max_level(level);
    }
}

struct Output;

impl Log for Output {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries underneath report every packet; only this crate's and the service's messages
        // are wanted.
        !metadata.target().starts_with("virtio_drivers")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let up = crate::clock::now();
        let mut line = String::with_capacity(96);
        // Writing to a String cannot fail.
        let _ = writeln!(
            line,
            "[{:5}.{:06}] {:5} {}",
            up.as_secs(),
            up.subsec_micros(),
            record.level().as_str(),
            record.args()
        );
        write(line.as_bytes());
    }

    fn flush(&self) {}
}

fn write(bytes: &[u8]) {
    // Taken means that the console's own code speaks.
    let Some(mut console) = CONSOLE.try_lock() else { return };
    let Some(console) = console.as_mut() else {
        serial(bytes);
        return;
    };
    let dropped = console.take_dropped();
    if dropped > 0 {
        let note = alloc::format!("[ the host did not read {dropped} pieces of this log ]\n");
        console.write(note.as_bytes());
    }
    console.write(bytes);
}

fn serial(bytes: &[u8]) {
    for byte in bytes {
        let room = |_: &u32| cpu::in8(SERIAL + 5) & SERIAL_ROOM != 0;
        if (0..SERIAL_TRIES).find(room).is_none() {
            return;
        }
        cpu::out8(SERIAL, *byte);
    }
}

/// Collects text in pieces that fit a console, without allocating.
struct Pieces {
    bytes: [u8; 256],
    used: usize,
}

impl Pieces {
    fn send(&mut self) {
        let bytes = &self.bytes[..self.used];
        serial(bytes);
        if let Some(mut console) = CONSOLE.try_lock()
            && let Some(console) = console.as_mut()
        {
            console.write(bytes);
        }
        self.used = 0;
    }
}

impl fmt::Write for Pieces {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.used == self.bytes.len() {
                self.send();
            }
            self.bytes[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// Writes to serial port and log console, from any state of the machine.
pub(crate) fn last_words(text: fmt::Arguments<'_>) {
    let mut pieces = Pieces { bytes: [0; 256], used: 0 };
    // The writer does not fail; a value that cannot format itself has said what it could.
    let _ = pieces.write_fmt(text);
    pieces.send();
}

/// Waits until the host has taken what was written, for at most 100 ms.
pub(crate) fn flush() {
    let end = crate::clock::now_ns().saturating_add(FLUSH_NS);
    let Some(mut console) = CONSOLE.try_lock() else { return };
    let Some(console) = console.as_mut() else { return };
    while !console.is_drained() && crate::clock::now_ns() < end {
        core::hint::spin_loop();
    }
}

/// Acknowledges the console's interrupt if it is among `pending`.
pub(crate) fn acknowledge(pending: u32) {
    if let Some(console) = CONSOLE.lock().as_mut()
        && pending & console.slot_bit() != 0
    {
        console.acknowledge();
    }
}
