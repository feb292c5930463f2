//! Starting a program whose sockets take the link: the preload library on disk, and the environment that loads it.
//!
//! The library comes with the binary. It is written once, under a name with its content's hash, to a folder that only its
//! owner can write to, and found there by every later start.

use sha2::{Digest, Sha256};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The preload library.
const LIBRARY: &[u8] = include_bytes!(env!("SKEIN_LINK_PRELOAD"));

/// The library's folder, beside the broker's socket.
pub const FOLDER: &str = "link-lib";

/// Why a program could not be prepared. [`RunError::code`] is stable.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The library's folder cannot be made.
    #[error("making the folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could write into the library's folder.
    #[error(
        "{path} belongs to another user, or others may write to it: the library cannot be kept there"
    )]
    Unsafe {
        /// The folder.
        path: PathBuf,
    },
    /// The library cannot be written.
    #[error("writing the library to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The library's path cannot stand in `LD_PRELOAD`.
    #[error("{path} has a blank or a colon in it, which LD_PRELOAD cannot hold")]
    Path {
        /// The file.
        path: PathBuf,
    },
}

impl RunError {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Folder { .. } => "LINK_LIBRARY_FOLDER",
            Self::Unsafe { .. } => "LINK_LIBRARY_UNSAFE",
            Self::Write { .. } => "LINK_LIBRARY_WRITE",
            Self::Path { .. } => "LINK_LIBRARY_PATH",
        }
    }
}

/// Writes the library into a folder, if it is not there, and answers its path. The folder is made with access for its
/// owner only to write, for everybody to read: programs under other users load the library too.
///
/// # Errors
/// [`RunError`].
pub fn library(folder: &Path) -> Result<PathBuf, RunError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|source| RunError::Folder { path: folder.to_owned(), source })?;
    let meta = fs::metadata(folder)
        .map_err(|source| RunError::Folder { path: folder.to_owned(), source })?;
    let own = rustix::process::geteuid().as_raw();
    if (meta.uid() != own && meta.uid() != 0) || meta.mode() & 0o022 != 0 {
        return Err(RunError::Unsafe { path: folder.to_owned() });
    }
    let hash = Sha256::digest(LIBRARY);
    let name: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let path = folder.join(format!("skein-link-{name}.so"));
    if path.as_os_str().as_encoded_bytes().iter().any(|byte| b" :\n\t".contains(byte)) {
        return Err(RunError::Path { path });
    }
    if fs::metadata(&path).is_ok_and(|meta| meta.len() == LIBRARY.len() as u64) {
        return Ok(path);
    }
    // Under another name first: a start that runs meanwhile must not load half of it.
    let part = folder.join(format!("skein-link-{name}.{}", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&part)
        .and_then(|mut file| file.write_all(LIBRARY))
        .and_then(|()| fs::rename(&part, &path));
    written.map_err(|source| RunError::Write { path: path.clone(), source })?;
    Ok(path)
}

/// The variables with which a program starts under the library, beside those it has anyway.
pub fn environment(
    library: &Path,
    broker: &Path,
    preload: Option<&OsStr>,
) -> Vec<(OsString, OsString)> {
    let mut loaded = library.as_os_str().to_owned();
    if let Some(others) = preload.filter(|others| !others.is_empty()) {
        // Ours stands in front of the C library, and behind what the user loads himself.
        let ours = std::mem::replace(&mut loaded, others.to_owned());
        loaded.push(":");
        loaded.push(ours);
    }
    vec![("LD_PRELOAD".into(), loaded), ("SKEIN_LINK_BROKER".into(), broker.as_os_str().to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("lib");
        let first = library(&place).unwrap();
        assert_eq!(fs::read(&first).unwrap(), LIBRARY);
        let written = fs::metadata(&first).unwrap().ino();
        assert_eq!(library(&place).unwrap(), first);
        assert_eq!(fs::metadata(&first).unwrap().ino(), written);
    }

    #[test]
    fn a_folder_that_others_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(library(folder.path()).unwrap_err().code(), "LINK_LIBRARY_UNSAFE");
    }

    #[test]
    fn other_preloads_stay() {
        let variables =
            environment(Path::new("/a/ours.so"), Path::new("/b"), Some(OsStr::new("/x.so")));
        assert_eq!(variables[0].1, "/x.so:/a/ours.so");
    }
}
