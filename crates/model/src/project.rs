//! A project: a tenant, and the tokens that open it.

use crate::name::ProjectName;
use crate::network::Exit;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A project as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectRecord {
    /// Its name.
    pub name: ProjectName,
    /// What it is for, in its owner's words; at most 256 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Where its networks of kind nat leave, and under which address, unless they have an exit of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// Longest description of anything, bytes.
pub const DESCRIPTION_MAX: usize = 256;

/// A token that opens one project, as it is stored: the secret itself is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What it is called when it is listed or withdrawn.
    pub id: TokenId,
    /// What it opens.
    pub project: ProjectName,
    /// What it is for, in its owner's words; at most 256 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// SHA-256 of the secret.
    pub digest: TokenDigest,
    /// When it was made.
    pub created_at: Timestamp,
}

/// SHA-256 of a token's secret. The secret has 256 random bits, so that no salt is needed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenDigest(pub [u8; 32]);

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

/// Name of a token: 8 hexadecimal digits, which say nothing of the secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId(u32);

impl TokenId {
    /// From random bits.
    pub const fn new(random: u32) -> Self {
        Self(random)
    }
}

/// A text is not 8 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: 8 lower-case hexadecimal digits")]
pub struct HexIdError;

/// 8 lower-case hexadecimal digits.
pub(crate) fn hex32(text: &str) -> Result<u32, HexIdError> {
    let good = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !good {
        return Err(HexIdError);
    }
    u32::from_str_radix(text, 16).map_err(|_| HexIdError)
}

impl FromStr for TokenId {
    type Err = HexIdError;
    fn from_str(text: &str) -> Result<Self, HexIdError> {
        hex32(text).map(Self)
    }
}

impl TryFrom<String> for TokenId {
    type Error = HexIdError;
    fn try_from(text: String) -> Result<Self, HexIdError> {
        text.parse()
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> String {
        id.to_string()
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
