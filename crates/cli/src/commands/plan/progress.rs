//! A computation on a thread of its own: a bar on the terminal while it runs, and an early end at Ctrl-C.

use super::FRAME;
use anyhow::{Context as _, Result};
use skein_planner::Progress;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// Characters of a bar.
const WIDTH: usize = 30;

/// The exit code of what ended at Ctrl-C, as of a shell: 128 and the number of the signal.
const INTERRUPTED: u8 = 130;

/// What came out of a computation.
pub(super) struct Outcome<T> {
    pub(super) value: T,
    /// Whether it ended early because the user wished so.
    pub(super) stopped: bool,
}

impl<T> Outcome<T> {
    /// The exit code of a command that has printed what came out.
    pub(super) fn exit(&self) -> ExitCode {
        exit(self.stopped)
    }
}

/// The exit code of a command that has printed what came out, by whether it ended early.
pub(super) fn exit(stopped: bool) -> ExitCode {
    if stopped { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS }
}

/// Works, shows how far it is, and stops early at Ctrl-C; at the second one, at once and without a result.
pub(super) async fn with_progress<T: Send + 'static>(
    work: impl FnOnce(&Progress) -> T + Send + 'static,
) -> Result<Outcome<T>> {
    let progress = Arc::new(Progress::default());
    let shared = Arc::clone(&progress);
    let mut interrupts = signal(SignalKind::interrupt()).context("waiting for Ctrl-C")?;
    let mut work = tokio::task::spawn_blocking(move || work(&shared));
    let shows = std::io::stderr().is_terminal();
    let begun = Instant::now();
    loop {
        tokio::select! {
            // Cancel-safe: the handle keeps the result until it is taken.
            done = &mut work => {
                if shows {
                    eprint!("\r\x1b[K");
                }
                let value = done.context("planning")?;
                return Ok(Outcome { value, stopped: progress.is_stopped() });
            }
            // Cancel-safe: as documented; the stream keeps a signal that comes between two waits.
            Some(()) = interrupts.recv() => {
                if progress.is_stopped() {
                    std::process::exit(INTERRUPTED.into());
                }
                progress.stop();
                eprintln!("\rstopping: what is known so far follows");
            }
            // Cancel-safe: a timer.
            () = tokio::time::sleep(FRAME) => {
                if shows {
                    eprint!("\r\x1b[K{}", bar(progress.share(), begun.elapsed()));
                }
            }
        }
    }
}

/// `[#####.....] 42 %, 12 s left`; where nothing is known of the work, the time it has taken.
fn bar(share: Option<f64>, passed: Duration) -> String {
    let passed = passed.as_secs_f64();
    let Some(share) = share else { return format!("{passed:.0} s") };
    let filled = (share * WIDTH as f64) as usize;
    let mut text = format!(
        "[{}{}] {:.0} %",
        "#".repeat(filled),
        ".".repeat(WIDTH - filled.min(WIDTH)),
        share * 100.0
    );
    // Before that it would be a guess.
    if share > 0.02 && passed > 1.0 {
        let _ = write!(text, ", {:.0} s left", passed * (1.0 - share) / share);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_it_is_and_how_long_it_takes() {
        for (share, secs, expect) in [
            (None, 7, "7 s"),
            (Some(0.0), 5, "[..............................] 0 %"),
            (Some(0.5), 10, "[###############...............] 50 %, 10 s left"),
            (Some(1.0), 10, "[##############################] 100 %, 0 s left"),
        ] {
            assert_eq!(bar(share, Duration::from_secs(secs)), expect);
        }
    }
}
