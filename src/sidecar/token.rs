//! The host token. Only its SHA-256 stays in memory, and the comparison takes the same time however wrong a guess is.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::warn;

use crate::config::DataDir;
use crate::content::disk;

/// What `X-Host-Token` is compared with.
#[derive(Clone)]
pub struct Token {
    digest: [u8; 32],
}

impl Token {
    /// A token from its text: visible ASCII, as a header can carry it.
    fn new(text: &str) -> io::Result<Token> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the host token must be visible ASCII characters without spaces, at least one",
            ));
        }
        Ok(Token {
            digest: Sha256::digest(text).into(),
        })
    }

    /// Whether `given` is the token.
    pub fn matches(&self, given: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(given).into();
        given.ct_eq(&self.digest).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

/// The token that was `given`, else the one kept in the data directory, which is made at first start: 32 random bytes as
/// hexadecimal digits, mode 0600.
pub fn load_token(data: &DataDir, given: Option<&str>) -> io::Result<Token> {
    if let Some(given) = given {
        return Token::new(given);
    }
    let path = data.token();
    let explain = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    if let Some(text) = disk::read_text(&path).map_err(explain)? {
        let mode = std::fs::metadata(&path).map_err(explain)?.mode();
        if mode & 0o077 != 0 {
            warn!("{} was readable by others; now it is not", path.display());
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(explain)?;
        }
        return Token::new(&text).map_err(|e| {
            explain(io::Error::new(
                e.kind(),
                format!("{e}; remove the file to have a new one made"),
            ))
        });
    }
    let text = hex::encode(rand::random::<[u8; 32]>());
    disk::write_private(&path, format!("{text}\n").as_bytes()).map_err(explain)?;
    Token::new(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        let token = load_token(&data, None).unwrap();
        let text = std::fs::read_to_string(data.token()).unwrap();
        assert_eq!(text.trim().len(), 64);
        assert_eq!(
            std::fs::metadata(data.token()).unwrap().mode() & 0o777,
            0o600
        );
        assert!(token.matches(text.trim().as_bytes()));
        assert!(!token.matches(b"") && !token.matches(b"0"));

        std::fs::set_permissions(data.token(), Permissions::from_mode(0o644)).unwrap();
        assert!(
            load_token(&data, None)
                .unwrap()
                .matches(text.trim().as_bytes())
        );
        assert_eq!(
            std::fs::metadata(data.token()).unwrap().mode() & 0o777,
            0o600
        );
        assert!(!format!("{token:?}").contains(text.trim()));
    }

    #[test]
    fn a_given_token_goes_first_and_must_fit_a_header() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        assert!(
            load_token(&data, Some("s3cret\n"))
                .unwrap()
                .matches(b"s3cret")
        );
        assert!(!data.token().exists());
        assert!(load_token(&data, Some(" ")).is_err());
        assert!(load_token(&data, Some("a b")).is_err());
        std::fs::write(data.token(), "").unwrap();
        assert!(load_token(&data, None).is_err());
    }
}
