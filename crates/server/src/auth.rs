//! Tokens. The admin token is made at first start and kept in a file that only its owner reads; of a project's tokens only
//! digests are kept.

use sha2::{Digest, Sha256};
use skein_model::TokenDigest;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Longest token, bytes: a file of another kind is not read whole.
const TOKEN_BYTES_MAX: u64 = 1024;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("the token file {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner may read the file.
    #[error("the token file {path} can be read by others: its mode is {mode:o} and must be 600")]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file holds no token.
    #[error("the token file {path} holds no token: remove it, and a new one is made")]
    Empty {
        /// Which.
        path: PathBuf,
    },
}

/// The secret that opens the API.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(secret)")
    }
}

impl Token {
    /// Reads the token, or makes one of 256 random bits.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let fail = |source| TokenError::File { path: path.to_owned(), source };
        match File::open(path) {
            Ok(file) => Self::read(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let token = Self::random();
                let draft = path.with_extension("draft");
                let _ = std::fs::remove_file(&draft);
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&draft)
                    .map_err(fail)?;
                file.write_all(token.0.as_bytes()).map_err(fail)?;
                file.sync_all().map_err(fail)?;
                std::fs::rename(&draft, path).map_err(fail)?;
                Ok(token)
            }
            Err(error) => Err(fail(error)),
        }
    }

    fn read(path: &Path, file: File) -> Result<Self, TokenError> {
        let fail = |source| TokenError::File { path: path.to_owned(), source };
        let mode = file.metadata().map_err(fail)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(fail)?;
        let text = text.trim();
        if text.len() < 16 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TokenError::Empty { path: path.to_owned() });
        }
        Ok(Self(text.into()))
    }

    /// A new one of 256 random bits.
    pub(crate) fn random() -> Self {
        let mut text = String::with_capacity(64);
        for _ in 0..2 {
            let _ = write!(text, "{:032x}", skein_shell::random_u128());
        }
        Self(text.into())
    }

    /// The secret itself, for whoever hands it to a client.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// Whether `secret` is the token.
    pub(crate) fn accepts(&self, secret: &str) -> bool {
        secret.as_bytes().ct_eq(self.0.as_bytes()).into()
    }

    /// What is kept of a token that opens a project.
    pub(crate) fn digest(secret: &str) -> TokenDigest {
        TokenDigest(Sha256::digest(secret.as_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_made_once_and_kept_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = Token::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Token::open(&path).unwrap().secret(), token.secret());
        assert!(token.accepts(token.secret()));
        assert!(!token.accepts(""));
        assert!(!token.accepts(&format!("{}x", token.secret())));
        assert!(!format!("{token:?}").contains(token.secret()));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Token::open(&path), Err(TokenError::Exposed { .. })));
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Token::open(&path), Err(TokenError::Empty { .. })));
    }
}
