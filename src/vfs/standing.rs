//! Where a file stands, as a program that waits for it sees it through the mount.

use std::io;
use std::path::Path;

use super::xattrs::{ERROR, LOST, STATUS};

/// Where a file stands.
pub enum Standing {
    /// Its content is stored.
    Stored,
    /// It is not yet.
    OnItsWay,
    /// Storing it failed, for this reason, and is tried again.
    Delayed(String),
    /// Waiting does not help, for this reason, unless the same content comes from elsewhere.
    Lost(String),
}

impl Standing {
    /// That of the file at `path`, which is not followed if it is a link.
    pub fn of(path: &Path) -> io::Result<Standing> {
        Ok(match attribute(path, STATUS)?.as_str() {
            "done" | "duplicate" => Standing::Stored,
            "failed" => match attribute(path, LOST) {
                Ok(why) => Standing::Lost(why),
                Err(_) => Standing::Delayed(attribute(path, ERROR).unwrap_or_default()),
            },
            _ => Standing::OnItsWay,
        })
    }
}

/// An extended attribute as text, of the entry at `path` itself.
pub fn attribute(path: &Path, name: &[u8]) -> io::Result<String> {
    let mut value = vec![0u8; 4096];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(n);
    Ok(String::from_utf8_lossy(&value).into_owned())
}
