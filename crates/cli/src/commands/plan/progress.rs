//! A computation on a thread of its own: a bar on the terminal while it runs, and an early end at Ctrl-C.

use super::FRAME;
use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use skein_planner::Progress;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Steps of a bar from its beginning to its end.
const STEPS: u64 = 1000;

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
    let bar = Bar::new().context("making a progress bar")?;
    loop {
        tokio::select! {
            // Cancel-safe: the handle keeps the result until it is taken.
            done = &mut work => {
                let value = done.context("planning")?;
                return Ok(Outcome { value, stopped: progress.is_stopped() });
            }
            // Cancel-safe: as documented; the stream keeps a signal that comes between two waits.
            Some(()) = interrupts.recv() => {
                if progress.is_stopped() {
                    std::process::exit(INTERRUPTED.into());
                }
                progress.stop();
                bar.bar.suspend(|| eprintln!("stopping: what is known so far follows"));
            }
            // Cancel-safe: a timer.
            () = tokio::time::sleep(FRAME) => {
                bar.show(progress.share());
            }
        }
    }
}

/// A bar on stderr, where that is a terminal; where nothing is known of how much there is to do, the time that has passed.
struct Bar {
    bar: ProgressBar,
    of_known: ProgressStyle,
}

impl Bar {
    fn new() -> Result<Self> {
        let bar = ProgressBar::new(STEPS).with_style(ProgressStyle::with_template("{elapsed}")?);
        let of_known = ProgressStyle::with_template("[{bar:30}] {percent} %, {eta} left")?;
        Ok(Self { bar, of_known: of_known.progress_chars("#.") })
    }

    fn show(&self, share: Option<f64>) {
        match share {
            Some(share) => {
                if self.bar.position() == 0 {
                    self.bar.set_style(self.of_known.clone());
                }
                self.bar.set_position((share.clamp(0.0, 1.0) * STEPS as f64) as u64);
            }
            None => self.bar.tick(),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
