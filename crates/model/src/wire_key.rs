//! The public key of a node on the encrypted way between nodes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A public key of WireGuard: a point of Curve25519 (RFC 7748). Its text is that of WireGuard's tools: 32 bytes in base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WireKey([u8; 32]);

impl WireKey {
    /// From its bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> [u8; 32] {
        self.0
    }
}

/// A text is no public key of WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key of WireGuard: 32 bytes in base64")]
pub struct WireKeyError;

impl FromStr for WireKey {
    type Err = WireKeyError;
    fn from_str(text: &str) -> Result<Self, WireKeyError> {
        let bytes = STANDARD.decode(text).map_err(|_| WireKeyError)?;
        bytes.try_into().map(Self).map_err(|_| WireKeyError)
    }
}

impl TryFrom<String> for WireKey {
    type Error = WireKeyError;
    fn try_from(text: String) -> Result<Self, WireKeyError> {
        text.parse()
    }
}

impl From<WireKey> for String {
    fn from(key: WireKey) -> String {
        key.to_string()
    }
}

impl fmt::Display for WireKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for WireKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back_and_nothing_else_is() {
        let key = WireKey::new([0xa5; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        for foreign in ["", "pQ==", "pQ", &"A".repeat(44), &key.to_string()[1..]] {
            assert_eq!(foreign.parse::<WireKey>(), Err(WireKeyError), "{foreign}");
        }
    }
}
