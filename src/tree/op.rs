//! What can happen to the namespace. Each [`Op`] carries everything that applying it needs, times included, so that
//! applying the same ops in the same order gives the same tree on every node.

use serde::{Deserialize, Serialize};

use rusqlite::ffi::SQLITE_IOERR_DATA;

use crate::types::{BlobId, ContentHash, Generation, Ino, NodeId, Time};

/// Bytes that need not be UTF-8: a file name, a symbolic link's target, an attribute's value.
pub type Bytes = serde_bytes::ByteBuf;

/// How a rename treats an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Refuse (`RENAME_NOREPLACE`).
    NoReplace,
    /// Swap the two (`RENAME_EXCHANGE`).
    Exchange,
}

/// How setting an extended attribute treats an existing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// Refuse when it exists (`XATTR_CREATE`).
    Create,
    /// Refuse when it does not exist (`XATTR_REPLACE`).
    Replace,
}

/// How a content came into the store, kept for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBy {
    /// The node whose worker stored it.
    pub node: NodeId,
    /// The worker.
    pub worker: String,
    /// When the first file with this content was closed or uploaded.
    pub uploaded_at: Time,
    /// When the worker began.
    pub started_at: Time,
}

/// One change of the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// A new inode under a new name: file, directory, symbolic link, fifo, socket or device.
    Create {
        /// Directory.
        parent: Ino,
        /// Name in it.
        name: Bytes,
        /// Number of the new inode, from the range of the node that submits.
        ino: Ino,
        /// File type and permission bits, umask already applied.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group, unless the directory is set-group-id and passes on its own.
        gid: u32,
        /// Device number of a device node.
        rdev: u32,
        /// Target of a symbolic link.
        target: Option<Bytes>,
        /// When.
        now: Time,
    },
    /// One more name for a file.
    Link {
        /// The file.
        ino: Ino,
        /// Directory.
        parent: Ino,
        /// Name in it.
        name: Bytes,
        /// When.
        now: Time,
    },
    /// One name less for something that is no directory. With its last name the inode goes.
    Unlink {
        /// Directory.
        parent: Ino,
        /// Name in it.
        name: Bytes,
        /// When.
        now: Time,
    },
    /// Removes an empty directory.
    Rmdir {
        /// Directory.
        parent: Ino,
        /// Name in it.
        name: Bytes,
        /// When.
        now: Time,
    },
    /// Moves a name.
    Rename {
        /// From this directory.
        parent: Ino,
        /// From this name.
        name: Bytes,
        /// To this directory.
        new_parent: Ino,
        /// To this name.
        new_name: Bytes,
        /// What to do with an existing target.
        mode: RenameMode,
        /// When.
        now: Time,
    },
    /// Changes what is given, and the change time.
    SetAttr {
        /// The inode.
        ino: Ino,
        /// Permission bits.
        mode: Option<u32>,
        /// Owner.
        uid: Option<u32>,
        /// Group.
        gid: Option<u32>,
        /// Access time.
        atime: Option<Time>,
        /// Modification time.
        mtime: Option<Time>,
        /// When.
        now: Time,
    },
    /// Sets an extended attribute.
    SetXattr {
        /// The inode.
        ino: Ino,
        /// Full name with its prefix.
        name: Bytes,
        /// Value.
        value: Bytes,
        /// What to do with an existing one.
        mode: XattrMode,
        /// When.
        now: Time,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// The inode.
        ino: Ino,
        /// Full name with its prefix.
        name: Bytes,
        /// When.
        now: Time,
    },
    /// New content of this length is sealed or being written at `node`; readers elsewhere wait for its commit.
    Pending {
        /// The file.
        ino: Ino,
        /// The version of the content that the node holds. Lower than the inode's: superseded.
        generation: Generation,
        /// The node that holds it.
        node: NodeId,
        /// Length in bytes.
        size: u64,
        /// Modification time.
        mtime: Time,
        /// Change time.
        ctime: Time,
    },
    /// The content of this generation is in the store.
    Commit {
        /// The file.
        ino: Ino,
        /// The version that was stored. Any other than the one that is pending at the node `by`: superseded.
        generation: Generation,
        /// Its hash.
        hash: ContentHash,
        /// Its length in bytes.
        size: u64,
        /// The store's name for it. Refused when that was reaped.
        blob: BlobId,
        /// Who stored it; kept only when the tree did not know the content yet.
        by: StoredBy,
        /// When.
        now: Time,
    },
    /// Content that nothing refers to leaves the tree; its bytes may be deleted afterwards, by the id it had.
    Reap {
        /// The content. Still referred to: refused.
        hash: ContentHash,
        /// When.
        now: Time,
    },
    /// An object of the store that never became content, and never will: a commit that comes with it later is refused.
    /// Its bytes may be deleted afterwards. Only where each object has an id of its own.
    Bury {
        /// The object. The tree knows it as content: refused.
        blob: BlobId,
        /// When.
        now: Time,
    },
    /// The store has lost the object of a content, and has another one now. Only where each object has an id of its own.
    Replace {
        /// The content.
        hash: ContentHash,
        /// The object that is gone. Any other than the one that the tree knows: refused.
        lost: BlobId,
        /// The object that took its place. Refused when that was reaped.
        blob: BlobId,
        /// When.
        now: Time,
    },
}

/// Why an op was refused. A refused op changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// No such inode, name, or content.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory was not wanted.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// Longer than 255 bytes, or a link target longer than 4095.
    #[error("file name too long")]
    NameTooLong,
    /// Empty, `.`, `..`, or with a slash or NUL byte; or a directory moved below itself.
    #[error("invalid argument")]
    Invalid,
    /// Not permitted on this kind of inode, such as a hard link to a directory.
    #[error("operation not permitted")]
    NotPermitted,
    /// More than 2^31 names.
    #[error("too many links")]
    TooManyLinks,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The disk is full, or the extended attributes of one inode would exceed their bound.
    #[error("no space left")]
    NoSpace,
    /// The inode has moved on to a later generation.
    #[error("superseded by a later write")]
    Superseded,
    /// The stored object was removed meanwhile; store the content anew.
    #[error("the stored object was removed meanwhile")]
    Reaped,
    /// The content still has references.
    #[error("content is in use")]
    InUse,
    /// The shared log cannot be reached.
    #[error("the namespace log is unavailable: {0}")]
    Unavailable(String),
    /// The database failed.
    #[error("namespace database: {0}")]
    Database(String),
}

impl From<rusqlite::Error> for TreeError {
    fn from(e: rusqlite::Error) -> TreeError {
        match e {
            rusqlite::Error::QueryReturnedNoRows => TreeError::NotFound,
            e if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) => TreeError::NoSpace,
            rusqlite::Error::SqliteFailure(e, _) if e.extended_code == SQLITE_IOERR_DATA => {
                TreeError::Database("a page of the database or of its log is damaged".into())
            }
            e => TreeError::Database(e.to_string()),
        }
    }
}

/// Longest file name in bytes, as everywhere on Linux.
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link in bytes (`PATH_MAX` without its final NUL).
pub const TARGET_MAX: usize = 4095;
/// All extended attributes of one inode together, names and values, in bytes.
pub const XATTRS_MAX: usize = 256 * 1024;

/// The one rule for file names, for the mount and the sidecar alike.
pub fn check_name(name: &[u8]) -> Result<(), TreeError> {
    match name {
        [] | b"." | b".." => Err(TreeError::Invalid),
        n if n.len() > NAME_MAX => Err(TreeError::NameTooLong),
        n if n.contains(&b'/') || n.contains(&0) => Err(TreeError::Invalid),
        _ => Ok(()),
    }
}
