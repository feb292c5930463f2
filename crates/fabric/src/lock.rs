//! One process at a time in a directory.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Why a directory was not locked.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Someone else has it.
    Held { path: PathBuf },
    /// The file system refused.
    Io { path: PathBuf, source: io::Error },
}

/// Creates the directory if it is missing and locks the file `name` in it. The lock is advisory, lasts as long as the
/// file is open, and so ends with the process however that ends. The file stays: removing it would let two
/// processes lock two files of one name.
pub(crate) fn lock(directory: &Path, name: &str) -> Result<File, LockError> {
    let io = |path: &Path, source| LockError::Io { path: path.to_path_buf(), source };
    std::fs::create_dir_all(directory).map_err(|error| io(directory, error))?;
    let path = directory.join(name);
    let mut options = File::options();
    options.create(true).truncate(false).write(true);
    let file = options.open(&path).map_err(|error| io(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LockError::Held { path }),
        Err(TryLockError::Error(error)) => Err(io(&path, error)),
    }
}
