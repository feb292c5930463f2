//! A small disk, to be filled.

use anyhow::{Context, Result};
use camino::{Utf8Path, Utf8PathBuf};
use nix::mount::{MntFlags, MsFlags};
use std::fs::{self, File};
use std::io::Write;

/// Filled in pieces of this size, then byte by byte of a page.
const PIECE: usize = 64 * 1024;

/// A file system of its own in memory; unmounted and removed when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: Utf8PathBuf,
}

impl SmallDisk {
    /// A disk of so many MiB.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn new(mib: u32) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("skein-").tempdir_in("/tmp")?.keep();
        let path = Utf8PathBuf::from_path_buf(folder).ok().context("a UTF-8 path")?;
        let options = format!("size={mib}m,mode=0700");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mounted = nix::mount::mount(
            Some("tmpfs"),
            path.as_std_path(),
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        );
        if mounted.is_err() {
            fs::remove_dir(&path)?;
        }
        mounted.context("mounting a tmpfs")?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    fn ballast(&self) -> Utf8PathBuf {
        self.path.join("ballast")
    }

    /// Takes all space that is left.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.ballast()).context("the ballast")?;
        for size in [PIECE, 4096] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        Ok(())
    }

    /// Gives the space back.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("removing the ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.path.as_std_path(), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.path);
    }
}
