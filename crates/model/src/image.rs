//! What a machine boots.

use crate::name::ImageName;
use crate::time::Timestamp;
use crate::units::MemoryMib;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// SHA-256 of a blob's bytes: its address in the blob store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobId([u8; 32]);

impl BlobId {
    /// From the digest itself.
    pub const fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a blob id: 64 lower-case hexadecimal digits")]
pub struct BlobIdError;

impl FromStr for BlobId {
    type Err = BlobIdError;
    fn from_str(text: &str) -> Result<Self, BlobIdError> {
        let text = text.as_bytes();
        if text.len() != 64 {
            return Err(BlobIdError);
        }
        let digit = |b: u8| match b {
            b'0'..=b'9' => Ok(b - b'0'),
            b'a'..=b'f' => Ok(b - b'a' + 10),
            _ => Err(BlobIdError),
        };
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(digest))
    }
}

impl TryFrom<String> for BlobId {
    type Error = BlobIdError;
    fn try_from(text: String) -> Result<Self, BlobIdError> {
        text.parse()
    }
}

impl From<BlobId> for String {
    fn from(id: BlobId) -> String {
        id.to_string()
    }
}

/// A data module of an image: a file the guest finds by its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRef {
    /// Path inside the machine: relative, no `..`, at most 255 bytes.
    pub path: String,
    /// Its bytes.
    pub blob: BlobId,
    /// Its length, bytes.
    pub bytes: u64,
}

/// What an image consists of and how its machines are shaped unless a service says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageManifest {
    /// Name, unique in its project.
    pub name: ImageName,
    /// The unikernel: an ELF file with a PVH note.
    pub kernel: BlobId,
    /// Length of the kernel, bytes.
    pub kernel_bytes: u64,
    /// Data modules, in the order in which they are archived.
    pub modules: Vec<ModuleRef>,
    /// Memory of a machine.
    pub memory: MemoryMib,
    /// Requests a machine serves at a time, 1 to 1,024.
    pub capacity: u32,
    /// TCP port of its HTTP server.
    pub port: u16,
    /// When it was imported.
    pub created_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_id_is_64_lower_case_digits() {
        let text = "0f".repeat(32);
        assert_eq!(text.parse::<BlobId>().map(|id| id.to_string()), Ok(text.clone()));
        for bad in [&text[1..], "", &"0F".repeat(32), &"g".repeat(64)] {
            assert_eq!(bad.parse::<BlobId>(), Err(BlobIdError));
        }
    }
}
