//! How a machine ended: from what is left of it to a cause. Pure.

use skein_model::ExitCause;

/// Exit codes a guest writes to its debug-exit port, as `docs/guest-abi.md` defines them.
mod guest_code {
    pub(super) const STOPPED: u8 = 0x10;
    pub(super) const PANIC: u8 = 0x11;
    pub(super) const CANNOT_START: u8 = 0x12;
    pub(super) const OUT_OF_MEMORY: u8 = 0x13;
    pub(super) const EXCEPTION: u8 = 0x14;
}

/// Longest message taken from a guest's log or QEMU's standard error, bytes.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Lines of a message: an exception prints its registers.
const MESSAGE_LINES_MAX: usize = 8;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RawExit {
    Exited(i32),
    Signalled(i32),
    /// Not a child of this process: nobody can say.
    Unknown,
}

/// What this side asked of the machine, the strongest last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asked {
    #[default]
    Nothing,
    Stop,
    Quit,
    Kill,
}

/// What is left when a machine has ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    pub(crate) asked: Asked,
    /// Reason of QEMU's last `SHUTDOWN` event.
    pub(crate) shutdown: Option<String>,
    /// Code of the guest's `stopping` line.
    pub(crate) stopping: Option<u8>,
    /// The end of the guest's log and serial port.
    pub(crate) log: String,
    /// What QEMU wrote to standard error.
    pub(crate) stderr: String,
}

/// Why the machine ended.
pub(crate) fn classify(exit: RawExit, evidence: &Evidence) -> ExitCause {
    match exit {
        RawExit::Signalled(signal) => ExitCause::Killed { signal },
        RawExit::Exited(0) => vmm_ended(evidence),
        RawExit::Exited(1) if !vmm_message(&evidence.stderr).is_empty() => {
            ExitCause::VmmFailed { message: vmm_message(&evidence.stderr) }
        }
        // isa-debug-exit: the status is the guest's byte, shifted, and 1.
        RawExit::Exited(status) => match u8::try_from(status >> 1) {
            Ok(code) if status & 1 == 1 => guest_ended(code, evidence),
            _ => vmm_failed(status, evidence),
        },
        RawExit::Unknown => unseen(evidence),
    }
}

fn guest_ended(code: u8, evidence: &Evidence) -> ExitCause {
    let message = |prefix| log_message(&evidence.log, prefix).unwrap_or_default();
    match code {
        guest_code::STOPPED => ExitCause::Stopped,
        guest_code::PANIC => ExitCause::Panicked { message: message("panic: ") },
        guest_code::CANNOT_START => ExitCause::CannotStart { message: message("fatal: ") },
        guest_code::OUT_OF_MEMORY => ExitCause::OutOfMemory,
        guest_code::EXCEPTION => ExitCause::Exception { message: message("exception: ") },
        _ => ExitCause::Panicked { message: format!("unknown exit code {code:#04x}") },
    }
}

/// QEMU ended by itself with status 0: it was told to, or the guest reset or switched itself off. A
/// reset right at the start comes before QEMU reports events, and is what remains when there is
/// neither an event nor a signal.
fn vmm_ended(evidence: &Evidence) -> ExitCause {
    if evidence.asked >= Asked::Quit {
        return ExitCause::Stopped;
    }
    let signal = signal_named(&evidence.stderr);
    match evidence.shutdown.as_deref() {
        Some("host-signal") => ExitCause::Killed { signal },
        None if signal != 0 => ExitCause::Killed { signal },
        Some("guest-reset") | None => {
            ExitCause::Exception { message: "the processor reset itself (triple fault)".into() }
        }
        Some("guest-panic") => {
            let message = log_message(&evidence.log, "panic: ").unwrap_or_default();
            ExitCause::Panicked { message }
        }
        Some("guest-shutdown" | "host-qmp-quit") => ExitCause::Stopped,
        Some(other) => ExitCause::VmmFailed { message: format!("shut down: {}", printable(other)) },
    }
}

fn vmm_failed(status: i32, evidence: &Evidence) -> ExitCause {
    let said = vmm_message(&evidence.stderr);
    let message = if said.is_empty() { format!("status {status}") } else { said };
    ExitCause::VmmFailed { message }
}

/// Nobody saw the exit status: the log and the last words decide.
fn unseen(evidence: &Evidence) -> ExitCause {
    if evidence.asked == Asked::Kill {
        return ExitCause::Killed { signal: 9 };
    }
    if let Some(code) = evidence.stopping {
        // A guest that stops in order announces the code of its service, 0 to 15, or the ABI's.
        let code = if code < guest_code::STOPPED { guest_code::STOPPED } else { code };
        return guest_ended(code, evidence);
    }
    if let Some(message) = log_message(&evidence.log, "panic: ") {
        return ExitCause::Panicked { message };
    }
    if let Some(message) = log_message(&evidence.log, "fatal: ") {
        return ExitCause::CannotStart { message };
    }
    if let Some(message) = log_message(&evidence.log, "exception: ") {
        return ExitCause::Exception { message };
    }
    match (evidence.asked, evidence.shutdown.as_deref()) {
        (Asked::Stop | Asked::Quit, _) | (_, Some("guest-shutdown" | "host-qmp-quit")) => {
            ExitCause::Stopped
        }
        _ => ExitCause::Killed { signal: signal_named(&evidence.stderr) },
    }
}

/// The last message of the log that begins with `prefix`, without it, and the lines after it.
fn log_message(log: &str, prefix: &str) -> Option<String> {
    let at_line = |at: &usize| *at == 0 || log[..*at].ends_with('\n');
    let at = log.rmatch_indices(prefix).map(|(at, _)| at).find(at_line)?;
    let text: Vec<_> = log[at + prefix.len()..].lines().take(MESSAGE_LINES_MAX).collect();
    Some(printable(&text.join("\n")))
}

/// What QEMU complained about: its standard error without the notes that belong to a healthy start.
pub(crate) fn vmm_message(stderr: &str) -> String {
    let complaint = |line: &&str| !line.contains("info: QEMU waiting for connection");
    let lines: Vec<_> = stderr.lines().filter(complaint).take(MESSAGE_LINES_MAX).collect();
    printable(&lines.join("\n"))
}

/// The signal in QEMU's "terminating on signal N", 0 when there is none.
fn signal_named(stderr: &str) -> i32 {
    let digits = stderr.rsplit_once("terminating on signal ").map_or("", |(_, rest)| rest);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// At most 1,024 bytes, without control characters: a guest's words must not steer a terminal or
/// fake a log line.
fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.trim().chars() {
        let c = match c {
            '\n' => '\n',
            c if c.is_control() => '?',
            c => c,
        };
        if out.len() + c.len_utf8() > MESSAGE_BYTES_MAX {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(exit: RawExit, evidence: &Evidence, expect: &str) {
        assert_eq!(classify(exit, evidence).to_string(), expect, "{exit:?} {evidence:?}");
    }

    fn log(log: &str) -> Evidence {
        Evidence { log: log.into(), ..Evidence::default() }
    }

    #[test]
    fn the_guest_says_how_it_ended() {
        let none = Evidence::default();
        check(RawExit::Exited(33), &none, "stopped");
        check(RawExit::Exited(39), &none, "guest out of memory");
        check(RawExit::Exited(35), &none, "guest panic: ");
        check(RawExit::Exited(255), &none, "guest panic: unknown exit code 0x7f");
        check(RawExit::Exited(1), &none, "guest panic: unknown exit code 0x00");
        let panic = log("info: x\npanic: src/a.rs:1: \u{1b}[31mno\nnot panic: here\n");
        check(RawExit::Exited(35), &panic, "guest panic: src/a.rs:1: ?[31mno\nnot panic: here");
        check(RawExit::Exited(37), &log("fatal: no net\n"), "guest cannot start: no net");
        check(RawExit::Exited(41), &log("exception: 14\n"), "processor exception: 14");
        check(RawExit::Unknown, &log("panic: x"), "guest panic: x");
        check(RawExit::Unknown, &none, "killed");
        let stopping = Evidence { stopping: Some(0), ..Evidence::default() };
        check(RawExit::Unknown, &stopping, "stopped");
    }

    #[test]
    fn qemu_says_how_it_ended() {
        let shutdown =
            |reason: &str| Evidence { shutdown: Some(reason.into()), ..Evidence::default() };
        check(RawExit::Signalled(9), &Evidence::default(), "killed by signal 9");
        check(RawExit::Exited(0), &shutdown("guest-shutdown"), "stopped");
        let reset = "processor exception: the processor reset itself (triple fault)";
        check(RawExit::Exited(0), &shutdown("guest-reset"), reset);
        check(RawExit::Exited(0), &Evidence::default(), reset);
        let stderr = "qemu: terminating on signal 15 from pid 7 (sh)\n".to_owned();
        let signal = Evidence { stderr, ..shutdown("host-signal") };
        check(RawExit::Exited(0), &signal, "killed by signal 15");
        let waiting = "qemu: info: QEMU waiting for connection on: x\n";
        let stderr = format!("{waiting}qemu: could not load kernel\n");
        let failed = Evidence { stderr, ..Evidence::default() };
        check(RawExit::Exited(1), &failed, "the VMM failed: qemu: could not load kernel");
        check(RawExit::Exited(2), &Evidence::default(), "the VMM failed: status 2");
    }

    #[test]
    fn what_was_asked_counts_when_the_status_does_not_say() {
        let asked = |asked| Evidence { asked, ..Evidence::default() };
        check(RawExit::Exited(0), &asked(Asked::Quit), "stopped");
        check(RawExit::Unknown, &asked(Asked::Stop), "stopped");
        check(RawExit::Unknown, &asked(Asked::Kill), "killed by signal 9");
    }

    proptest! {
        #[test]
        fn any_log_gives_a_bounded_cause(status in any::<i32>(), log in ".{0,2000}", stderr in ".{0,200}") {
            let log = format!("{log}\npanic: {log}");
            let evidence = Evidence { log, stderr, ..Evidence::default() };
            for exit in [RawExit::Exited(status), RawExit::Unknown] {
                let text = classify(exit, &evidence).to_string();
                prop_assert!(text.len() <= MESSAGE_BYTES_MAX + 40);
                prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
            }
        }
    }
}
