//! A node's secret: 32 bytes in a file of its own that only root reads. It is in no record, log or message.

use crate::error::NetError;
use rand::Rng as _;
use skein_model::WireKey;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use x25519_dalek::{PublicKey, StaticSecret};

/// Who may read the file: its owner.
const MODE: u32 = 0o600;

/// The secret key of a node on the encrypted way between nodes.
#[derive(Clone)]
pub(crate) struct SecretKey(StaticSecret);

impl SecretKey {
    fn random() -> Self {
        let mut bytes = [0; 32];
        // ChaCha12, seeded by the system: the generator for keys (rand's documentation).
        rand::rng().fill_bytes(&mut bytes);
        Self(StaticSecret::from(bytes))
    }

    /// From its bytes.
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// Its bytes, for the kernel or the program that encrypts.
    pub(crate) fn bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// What others know it by.
    pub(crate) fn public(&self) -> WireKey {
        WireKey::new(PublicKey::from(&self.0).to_bytes())
    }

    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut file = std::fs::File::open(path)?;
        // A file that was copied here may be open to others.
        file.set_permissions(std::fs::Permissions::from_mode(MODE))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Self(StaticSecret::from(bytes)))
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let draft = path.with_extension("draft");
        let _ = std::fs::remove_file(&draft);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(MODE).open(&draft)?;
        file.write_all(&self.bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

/// The public key that goes with the secret in the file `path`, which is made if it is not there, and readable for its
/// owner only.
///
/// # Errors
/// [`NetError::WireKey`]: the file cannot be read or made, or holds no key.
pub fn open_wire_key(path: &Path) -> Result<WireKey, NetError> {
    let failed = |source| NetError::WireKey { path: path.to_owned(), source };
    match SecretKey::read(path) {
        Ok(key) => Ok(key.public()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => renew_wire_key(path),
        Err(error) => Err(failed(error)),
    }
}

/// Puts another secret into the file `path`, and returns what others know it by.
///
/// # Errors
/// [`NetError::WireKey`]; the file is as it was then.
pub fn renew_wire_key(path: &Path) -> Result<WireKey, NetError> {
    let key = SecretKey::random();
    let written = key.write(path);
    written.map_err(|source| NetError::WireKey { path: path.to_owned(), source })?;
    Ok(key.public())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_stays_in_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wire.key");
        let first = open_wire_key(&path).unwrap();
        assert_eq!(open_wire_key(&path).unwrap(), first);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = renew_wire_key(&path).unwrap();
        assert_ne!(first, second);
        assert_eq!(open_wire_key(&path).unwrap(), second);
        let key = SecretKey::read(&path).unwrap();
        let secret: String = key.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!format!("{key:?}").contains(&secret));
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(open_wire_key(&path).unwrap_err().code(), "WIRE_KEY_UNUSABLE");
    }

    /// Alice's keys of RFC 7748, section 6.1.
    #[test]
    fn public_keys_are_those_of_the_standard() {
        let secret = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
        let public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
        let byte = |at: usize| u8::from_str_radix(&secret[2 * at..2 * at + 2], 16).unwrap();
        let bytes = SecretKey::new(std::array::from_fn(byte)).public().bytes();
        let found: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, public);
    }
}
