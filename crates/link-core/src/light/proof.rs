//! Who knows the key: the proofs of the set-up.

use super::control::{Nonce, Proof};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The secret of a cluster's agents.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// A key of 32 bytes, made by a random generator or a key derivation function.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn keyed(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        // HMAC fills a key up to the hash's block with zeros (RFC 2104, section 2).
        let mut block = [0; 64];
        block[..self.0.len()].copy_from_slice(&self.0);
        let mut mac = Hmac::<Sha256>::new(&block.into());
        for part in parts {
            mac.update(part);
        }
        mac
    }

    /// A key of its own for what `parts` name, in which no two different purposes may look alike: who knows it knows neither this
    /// one nor others that are derived from it.
    #[must_use]
    pub fn derive(&self, parts: &[&[u8]]) -> Self {
        Self(self.keyed(parts).finalize().into_bytes().into())
    }

    /// The proof of `parts`, in which no two different messages may look alike.
    pub(crate) fn prove(&self, parts: &[&[u8]]) -> Proof {
        let whole = self.keyed(parts).finalize().into_bytes();
        core::array::from_fn(|place| whole[place])
    }

    /// Whether `proof` is that of `parts`, in a time that does not tell how much of it is right.
    pub(crate) fn verify(&self, parts: &[&[u8]], proof: &Proof) -> bool {
        self.keyed(parts).verify_truncated_left(proof).is_ok()
    }

    /// Sixteen bytes that only who knows key and `seed` can foretell.
    pub(crate) fn nonce(&self, seed: &[u8; 32], number: u64) -> Nonce {
        self.prove(&[b"nonce", seed, &number.to_be_bytes()])
    }
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(..)")
    }
}
