//! Whether the kernel can do what the short way between machines needs: found out by trying, once there is an answer.

use nix::errno::Errno;
use skein_shell::report;
use std::io;
use std::sync::{Mutex, PoisonError};
use tracing::{info, warn};

/// What was found out.
#[derive(Debug, Default)]
pub(super) struct Shortcut(Mutex<Option<bool>>);

impl Shortcut {
    /// What is known, or what `trial` finds. A failure that says nothing of the kernel is no answer: the long way is taken,
    /// and the next one tries again.
    pub(super) fn get_or_try(&self, trial: impl FnOnce() -> io::Result<()>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = *known {
            return known;
        }
        match trial() {
            Ok(()) => *known = Some(true),
            Err(error) if passes(&error) => {
                let error = report::chain(&error);
                warn!(%error, "connections take the long way: the short one could not be tried");
            }
            Err(error) => {
                *known = Some(false);
                let error = report::chain(&error);
                info!(%error, "connections take the long way: this kernel has no chains for interfaces to come (Linux 6.17)");
            }
        }
        known.unwrap_or(false)
    }
}

/// Whether a failure may be gone at the next attempt: something was scarce, or somebody else was at it.
fn passes(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(
            Errno::EAGAIN
                | Errno::EINTR
                | Errno::EBUSY
                | Errno::ENOBUFS
                | Errno::ENOMEM
                | Errno::EMFILE
                | Errno::ENFILE
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_stays_and_a_passing_failure_is_none() {
        let check = |trials: &[Result<(), Errno>], known: bool, tried: usize| {
            let shortcut = Shortcut::default();
            let mut count = 0;
            let mut last = false;
            for trial in trials {
                last = shortcut.get_or_try(|| {
                    count += 1;
                    trial.map_err(io::Error::from)
                });
            }
            assert_eq!((last, count), (known, tried), "{trials:?}");
        };
        check(&[Ok(()), Err(Errno::ENOMEM)], true, 1);
        check(&[Err(Errno::EOPNOTSUPP), Ok(())], false, 1);
        check(&[Err(Errno::EINVAL), Ok(())], false, 1);
        check(&[Err(Errno::ENOBUFS)], false, 1);
        check(&[Err(Errno::ENOBUFS), Err(Errno::EAGAIN), Ok(()), Ok(())], true, 3);
    }
}
