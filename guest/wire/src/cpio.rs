//! The module archive: `newc` cpio, the format of Linux's initramfs, restricted to regular files.
//!
//! ```text
//! entry = "070701" 13 x 8 hexadecimal digits | name NUL | padding to 4 | data | padding to 4
//! archive = entry* , an entry named TRAILER!!!
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

const MAGIC: &[u8] = b"070701";
const HEADER: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// 255: the longest name of a file on the file systems that images are built from.
const NAME_MAX: usize = 255;

/// One regular file of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module<'a> {
    /// Its path inside the archive, without a leading `/` or `./`.
    pub path: &'a str,
    /// Its content.
    pub data: &'a [u8],
}

/// Why an archive cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// It ends inside an entry or without a trailer.
    #[error("module archive is cut off after byte {offset}")]
    Truncated {
        /// Where the incomplete entry begins.
        offset: usize,
    },
    /// No `newc` header where one must be.
    #[error("module archive has a malformed header at byte {offset}")]
    Header {
        /// Where the header should be.
        offset: usize,
    },
    /// A name that is empty, longer than 255 bytes, absolute, not UTF-8, or contains NUL or `..`.
    #[error("module path {path:?} is not usable")]
    Path {
        /// The name, as far as it is text.
        path: String,
    },
    /// A path that occurs twice.
    #[error("module path {path:?} occurs twice")]
    Duplicate {
        /// The path.
        path: String,
    },
    /// A file of 4 GiB or more, which the format cannot express.
    #[error("module {path:?} has {length} bytes, the format allows 4294967295")]
    TooLarge {
        /// Its path.
        path: String,
        /// Its length.
        length: usize,
    },
}

impl ArchiveError {
    /// Stable name of the failure.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "MODULE_TOO_LARGE",
            Self::Path { .. } | Self::Duplicate { .. } => "MODULE_PATH_INVALID",
            Self::Truncated { .. } | Self::Header { .. } => "MODULE_MALFORMED",
        }
    }
}

/// An archive in memory whose structure was checked from end to end.
#[derive(Clone, Copy, Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
}

impl<'a> Archive<'a> {
    /// Checks every entry up to the trailer; what follows the trailer is ignored. Empty input is an
    /// archive without files. Directories and other entries that are not regular files are passed
    /// over.
    ///
    /// # Errors
    /// [`ArchiveError`] with the place of the first fault. Paths may occur twice; the first is
    /// found.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ArchiveError> {
        let mut offset = 0;
        if !bytes.is_empty() {
            while let Some((_, next)) = entry(bytes, offset)? {
                offset = next;
            }
        }
        Ok(Self { bytes })
    }

    /// The regular files, in the order of the archive.
    pub fn modules(&self) -> impl Iterator<Item = Module<'a>> + use<'a> {
        let bytes = self.bytes;
        let mut offset = 0;
        core::iter::from_fn(move || {
            if bytes.is_empty() {
                return None;
            }
            loop {
                // `new` walked the same entries without an error.
                let (module, next) = entry(bytes, offset).ok().flatten()?;
                offset = next;
                if module.is_some() {
                    return module;
                }
            }
        })
    }

    /// The content of the file at `path`.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&'a [u8]> {
        self.modules().find(|module| module.path == path).map(|module| module.data)
    }
}

type Entry<'a> = Option<(Option<Module<'a>>, usize)>;

/// Reads the entry at `offset`: `None` at the trailer, else the file (if it is one) and the next
/// offset.
fn entry(bytes: &[u8], offset: usize) -> Result<Entry<'_>, ArchiveError> {
    let truncated = ArchiveError::Truncated { offset };
    let header = bytes.get(offset..offset.saturating_add(HEADER)).ok_or(truncated.clone())?;
    let malformed = || ArchiveError::Header { offset };
    if !header.starts_with(MAGIC) {
        return Err(malformed());
    }
    let mode = field(header, 1).ok_or_else(malformed)?;
    let size = field(header, 6).ok_or_else(malformed)?;
    let name_size = field(header, 11).ok_or_else(malformed)?;
    if name_size == 0 {
        return Err(malformed());
    }
    let name_at = offset + HEADER;
    let name_end = name_at.checked_add(name_size).ok_or(truncated.clone())?;
    let name = bytes.get(name_at..name_end).ok_or(truncated.clone())?;
    let data_at = align4(name_end).ok_or(truncated.clone())?;
    let data_end = data_at.checked_add(size).ok_or(truncated.clone())?;
    let data = bytes.get(data_at..data_end).ok_or(truncated.clone())?;
    let path = text(name)
        .ok_or_else(|| ArchiveError::Path { path: String::from_utf8_lossy(name).into_owned() })?;
    if path == TRAILER {
        return Ok(None);
    }
    let regular = mode & 0o170_000 == 0o100_000;
    if regular && !usable(path) {
        return Err(ArchiveError::Path { path: path.into() });
    }
    let next = align4(data_end).ok_or(truncated)?;
    Ok(Some((regular.then_some(Module { path, data }), next)))
}

/// The name without its NUL and a leading `./`.
fn text(name: &[u8]) -> Option<&str> {
    let (end, name) = name.split_last()?;
    if *end != 0 || name.contains(&0) {
        return None;
    }
    let name = core::str::from_utf8(name).ok()?;
    Some(name.strip_prefix("./").unwrap_or(name))
}

fn usable(path: &str) -> bool {
    (1..=NAME_MAX).contains(&path.len())
        && !path.contains('\0')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && path != TRAILER
}

/// Header field `index` counted from the inode number, 0..=12.
fn field(header: &[u8], index: usize) -> Option<usize> {
    let at = MAGIC.len() + 8 * index;
    let mut value = 0;
    for byte in &header[at..at + 8] {
        value = value << 4 | usize::from(crate::percent::hex_digit(*byte)?);
    }
    Some(value)
}

fn align4(offset: usize) -> Option<usize> {
    offset.checked_next_multiple_of(4)
}

/// Writes an archive.
#[derive(Debug, Default)]
pub struct ArchiveBuilder {
    bytes: Vec<u8>,
    paths: Vec<String>,
}

impl ArchiveBuilder {
    /// An archive without files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a regular file.
    ///
    /// # Errors
    /// [`ArchiveError::Path`] when a path component is empty, `.` or `..` or the path is longer
    /// than 255 bytes; [`ArchiveError::Duplicate`]; [`ArchiveError::TooLarge`].
    pub fn add(&mut self, path: &str, data: &[u8]) -> Result<(), ArchiveError> {
        if !usable(path) {
            return Err(ArchiveError::Path { path: path.into() });
        }
        if self.paths.iter().any(|known| known == path) {
            return Err(ArchiveError::Duplicate { path: path.into() });
        }
        let length = u32::try_from(data.len())
            .map_err(|_| ArchiveError::TooLarge { path: path.into(), length: data.len() })?;
        self.paths.push(path.into());
        self.write(path, 0o100_444, length, data);
        Ok(())
    }

    /// Appends the trailer and hands the archive over.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.write(TRAILER, 0, 0, &[]);
        self.bytes
    }

    fn write(&mut self, path: &str, mode: u32, length: u32, data: &[u8]) {
        let inode = self.paths.len();
        let name = path.len() + 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size,
        // check sum.
        let header = format!(
            "070701{inode:08X}{mode:08X}{:08X}{:08X}{:08X}{:08X}{length:08X}{:08X}{:08X}{:08X}{:08X}{name:08X}{:08X}",
            0, 0, 1, 0, 0, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut builder = ArchiveBuilder::new();
        builder.add("a.bin", b"hello").unwrap();
        builder.add("dir/empty", b"").unwrap();
        builder.finish()
    }

    #[test]
    fn reads_what_it_wrote() {
        let bytes = sample();
        let archive = Archive::new(&bytes).unwrap();
        let paths: Vec<_> = archive.modules().map(|module| module.path).collect();
        assert_eq!(paths, ["a.bin", "dir/empty"]);
        assert_eq!(archive.get("a.bin"), Some(&b"hello"[..]));
        assert_eq!(archive.get("dir/empty"), Some(&b""[..]));
        assert_eq!(archive.get("none"), None);
        assert!(Archive::new(&[]).unwrap().modules().next().is_none());
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = sample();
        let trailer = bytes.len() - 1;
        for end in 1..trailer {
            let result = Archive::new(&bytes[..end]);
            // The padding of the last name is not missed.
            if end < bytes.len() - 3 {
                assert_eq!(result.unwrap_err().code(), "MODULE_MALFORMED", "cut at {end}");
            }
        }
    }

    #[test]
    fn refuses_bad_paths() {
        let mut builder = ArchiveBuilder::new();
        let long = "x".repeat(256);
        for path in ["", "/etc", "a//b", "../x", "a/./b", "TRAILER!!!", &long, "a\0b"] {
            assert_eq!(builder.add(path, b"").unwrap_err().code(), "MODULE_PATH_INVALID", "{path}");
        }
        builder.add("x", b"").unwrap();
        assert!(matches!(builder.add("x", b""), Err(ArchiveError::Duplicate { .. })));
    }

    #[test]
    fn huge_sizes_do_not_overflow() {
        let mut bytes = sample();
        bytes[54..62].copy_from_slice(b"FFFFFFFF");
        assert!(matches!(Archive::new(&bytes), Err(ArchiveError::Truncated { offset: 0 })));
        bytes[0] = b'1';
        assert!(matches!(Archive::new(&bytes), Err(ArchiveError::Header { offset: 0 })));
    }

    proptest! {
        #[test]
        fn round_trip(files in proptest::collection::btree_map("[a-z]{1,9}(/[a-z]{1,9})?", proptest::collection::vec(any::<u8>(), 0..50), 0..6)) {
            let mut builder = ArchiveBuilder::new();
            for (path, data) in &files {
                builder.add(path, data).unwrap();
            }
            let bytes = builder.finish();
            let archive = Archive::new(&bytes).unwrap();
            let read: Vec<_> = archive.modules().map(|m| (m.path, m.data)).collect();
            let wrote: Vec<_> = files.iter().map(|(p, d)| (p.as_str(), d.as_slice())).collect();
            prop_assert_eq!(read, wrote);
        }

        #[test]
        fn damage_is_answered(at in 0usize..300, byte in any::<u8>()) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(archive) = Archive::new(&bytes) {
                archive.modules().for_each(drop);
            }
        }
    }
}
