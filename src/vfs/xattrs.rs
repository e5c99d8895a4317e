//! Extended attributes: `user.*` as set by users, and the read-only `user.oncefs.*` that show where a file stands.

use super::names::bytes;
use super::{Result, Vfs, VfsError};
use crate::tree::op::XattrMode;
use crate::tree::{Op, TreeError};
use crate::types::{Ino, Time};

/// The file's SHA-256, once it is known.
pub const SHA256: &[u8] = b"user.oncefs.sha256";
/// Where the file stands: `writing`, `queued`, `processing`, `failed`, `done` or `duplicate`.
pub const STATUS: &[u8] = b"user.oncefs.status";
/// What is wrong with a file that is `failed`; there only then.
pub const ERROR: &[u8] = b"user.oncefs.error";
/// The same where trying again does not help, because the bytes are gone or damaged. Not listed.
pub const LOST: &[u8] = b"user.oncefs.lost";
/// On the root only, and not listed: the data directory of the daemon that serves this mount.
pub const DATA_DIR: &[u8] = b"user.oncefs.data_dir";

const OURS: &[u8] = b"user.oncefs.";

/// Longest name of an attribute in bytes, as in Linux.
const NAME_MAX: usize = 255;
/// Longest value in bytes, as in Linux.
const VALUE_MAX: usize = 64 << 10;

fn check(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(VfsError::Range);
    }
    // ACLs, capabilities and security labels would need enforcing; saying no is what tools understand.
    if !name.starts_with(b"user.") || name == b"user." {
        return Err(VfsError::NotSupported("extended attributes outside user.*"));
    }
    Ok(())
}

impl Vfs {
    /// The value of an attribute.
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        check(name)?;
        match name {
            SHA256 => match self.file_status(ino)?.hash {
                Some(hash) => Ok(hash.to_string().into_bytes()),
                None => Err(TreeError::NoAttribute.into()),
            },
            STATUS => Ok(self.file_status(ino)?.word.as_bytes().to_vec()),
            ERROR | LOST => {
                let status = self.file_status(ino)?;
                let error = status.error.filter(|_| status.lost || name == ERROR);
                Ok(error.ok_or(TreeError::NoAttribute)?.into_bytes())
            }
            DATA_DIR if ino == Ino::ROOT => {
                let spool = self.spool.dir();
                let dir = spool.parent().unwrap_or(spool);
                Ok(dir.as_os_str().as_encoded_bytes().to_vec())
            }
            name => Ok(self.tree.read(|q| q.xattr(ino, name))?),
        }
    }

    /// The names of all attributes, each followed by a NUL byte.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut names = self.tree.read(|q| q.xattr_names(ino))?;
        if self.attr(ino)?.inode.is_file() {
            names.push(STATUS.to_vec());
            let status = self.file_status(ino)?;
            if status.hash.is_some() {
                names.push(SHA256.to_vec());
            }
            if status.error.is_some() {
                names.push(ERROR.to_vec());
            }
        }
        Ok(names
            .into_iter()
            .flat_map(|n| n.into_iter().chain([0]))
            .collect())
    }

    /// Sets an attribute.
    pub async fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        check(name)?;
        if name.starts_with(OURS) {
            // Programs that copy all attributes take this for "not on this filesystem" and go on.
            return Err(VfsError::NotSupported("user.oncefs.* is read-only"));
        }
        if value.len() > VALUE_MAX {
            return Err(TreeError::NoSpace.into());
        }
        self.op(Op::SetXattr {
            ino,
            name: bytes(name),
            value: bytes(value),
            mode,
            now: Time::now(),
        })
        .await
        .map(drop)
    }

    /// Removes an attribute.
    pub async fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        check(name)?;
        if name.starts_with(OURS) {
            return Err(VfsError::NotSupported("user.oncefs.* is read-only"));
        }
        self.op(Op::RemoveXattr {
            ino,
            name: bytes(name),
            now: Time::now(),
        })
        .await
        .map(drop)
    }
}
