//! Questions to the namespace. They run on any connection: on the writer's they see the batch under way, on a reader's
//! the last commit.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::op::TreeError;
use crate::types::{BlobId, ContentHash, Generation, Ino, NodeId, Seq, Time};

/// A result of a question.
pub type Result<T> = std::result::Result<T, TreeError>;

/// Where the bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing was ever closed: the file is empty.
    Empty,
    /// At a node that has not stored them yet. `previous` is what the store still has.
    Pending {
        /// That node.
        node: NodeId,
        /// The content before.
        previous: Option<ContentHash>,
    },
    /// In the store.
    Stored {
        /// Under this hash.
        hash: ContentHash,
        /// Whether the store had it already when this file came.
        duplicate: bool,
    },
}

/// One inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// File type and permission bits.
    pub mode: u32,
    /// Names; for a directory two and one for each directory in it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Access time: set at creation and by utimens, not by reading.
    pub atime: Time,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
    /// Version of the content.
    pub generation: Generation,
    /// Where the content is.
    pub body: Body,
    /// The directory that holds this directory; nothing for other kinds.
    pub parent: Option<Ino>,
}

impl Inode {
    /// The file type bits.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }
}

/// What the tree knows of a stored content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its hash.
    pub hash: ContentHash,
    /// Length in bytes.
    pub size: u64,
    /// The store's name for it.
    pub blob: BlobId,
    /// The name under which it first came.
    pub filename: Vec<u8>,
    /// The node that stored it.
    pub node: NodeId,
    /// The worker that stored it.
    pub worker: String,
    /// When its first file was closed.
    pub uploaded_at: Time,
    /// When the worker began.
    pub started_at: Time,
    /// When it was stored.
    pub done_at: Time,
    /// Since when no file has it.
    pub unreferenced_at: Option<Time>,
}

/// A directory entry with the position after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dentry {
    /// Name.
    pub name: Vec<u8>,
    /// What it names.
    pub ino: Ino,
    /// Where a reader that has seen this entry goes on. Grows along the directory, never changes for an entry.
    pub cookie: u64,
    /// File type and permission bits of the inode.
    pub mode: u32,
}

const INODE: &str = "ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, generation, state, node, hash, parent";

/// State column: never closed.
pub(super) const EMPTY: i64 = 0;
/// State column: pending.
pub(super) const PENDING: i64 = 1;
/// State column: stored.
pub(super) const STORED: i64 = 2;
/// State column: stored, and known before.
pub(super) const DUPLICATE: i64 = 3;

fn hash_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<ContentHash>> {
    let bytes: Option<&[u8]> = row.get_ref(column)?.as_blob_or_null()?;
    Ok(bytes.and_then(ContentHash::from_slice))
}

fn inode_from(row: &Row<'_>) -> rusqlite::Result<Inode> {
    let state: i64 = row.get(11)?;
    let hash = hash_of(row, 13)?;
    let body = match (state, hash) {
        (PENDING, previous) => Body::Pending {
            node: NodeId(row.get::<_, Option<String>>(12)?.unwrap_or_default()),
            previous,
        },
        (STORED | DUPLICATE, Some(hash)) => Body::Stored {
            hash,
            duplicate: state == DUPLICATE,
        },
        _ => Body::Empty,
    };
    Ok(Inode {
        ino: Ino(row.get(0)?),
        mode: row.get(1)?,
        nlink: row.get(2)?,
        uid: row.get(3)?,
        gid: row.get(4)?,
        rdev: row.get(5)?,
        size: row.get(6)?,
        atime: Time(row.get(7)?),
        mtime: Time(row.get(8)?),
        ctime: Time(row.get(9)?),
        generation: Generation(row.get(10)?),
        body,
        parent: row.get::<_, Option<u64>>(14)?.map(Ino),
    })
}

const CONTENT: &str =
    "hash, size, blob, filename, node, worker, uploaded_at, started_at, done_at, unreferenced_at";

fn content_from(row: &Row<'_>) -> rusqlite::Result<Content> {
    Ok(Content {
        hash: hash_of(row, 0)?.ok_or(rusqlite::Error::InvalidQuery)?,
        size: row.get(1)?,
        blob: BlobId(row.get(2)?),
        filename: row.get(3)?,
        node: NodeId(row.get(4)?),
        worker: row.get(5)?,
        uploaded_at: Time(row.get(6)?),
        started_at: Time(row.get(7)?),
        done_at: Time(row.get(8)?),
        unreferenced_at: row.get::<_, Option<i64>>(9)?.map(Time),
    })
}

/// Questions over one connection.
#[derive(Clone, Copy)]
pub struct Query<'c>(pub(super) &'c Connection);

impl Query<'_> {
    /// The inode `ino`.
    pub fn inode(&self, ino: Ino) -> Result<Inode> {
        let mut stmt = self
            .0
            .prepare_cached(&format!("SELECT {INODE} FROM inodes WHERE ino=?1"))?;
        Ok(stmt.query_row([ino.0], inode_from)?)
    }

    /// Which generation of a file is in the store; 0 when none is. Later ones may be pending.
    pub fn stored_generation(&self, ino: Ino) -> Result<Generation> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT cookie FROM inodes WHERE ino=?1")?;
        Ok(Generation(stmt.query_row([ino.0], |r| r.get(0))?))
    }

    /// The number that `name` has in `parent`.
    pub fn child(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT ino FROM dentries WHERE parent=?1 AND name=?2")?;
        Ok(stmt
            .query_row(params![parent.0, name], |r| r.get(0))
            .optional()?
            .map(Ino))
    }

    /// The inode that `name` names in `parent`.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode> {
        let ino = self.child(parent, name)?.ok_or(TreeError::NotFound)?;
        self.inode(ino)
    }

    /// Up to `limit` entries of `parent` after position `after` (0: from the start), without `.` and `..`.
    pub fn readdir(&self, parent: Ino, after: u64, limit: usize) -> Result<Vec<Dentry>> {
        let mut stmt = self.0.prepare_cached(
            "SELECT d.name, d.ino, d.cookie, i.mode FROM dentries d INDEXED BY dentries_cookie
             JOIN inodes i ON i.ino=d.ino
             WHERE d.parent=?1 AND d.cookie>?2 ORDER BY d.cookie LIMIT ?3",
        )?;
        let rows = stmt.query_map(params![parent.0, after, limit as i64], |r| {
            Ok(Dentry {
                name: r.get(0)?,
                ino: Ino(r.get(1)?),
                cookie: r.get(2)?,
                mode: r.get(3)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT target FROM inodes WHERE ino=?1")?;
        let target: Option<Vec<u8>> = stmt.query_row([ino.0], |r| r.get(0))?;
        target.ok_or(TreeError::Invalid)
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT value FROM xattrs WHERE ino=?1 AND name=?2")?;
        stmt.query_row(params![ino.0, name], |r| r.get(0))
            .optional()?
            .ok_or(TreeError::NoAttribute)
    }

    /// The names of all extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT name FROM xattrs WHERE ino=?1 ORDER BY name")?;
        let rows = stmt.query_map([ino.0], |r| r.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// What is known of a stored content.
    pub fn content(&self, hash: &ContentHash) -> Result<Option<Content>> {
        let mut stmt = self
            .0
            .prepare_cached(&format!("SELECT {CONTENT} FROM contents WHERE hash=?1"))?;
        Ok(stmt.query_row([&hash.0[..]], content_from).optional()?)
    }

    /// Whether any file has this content, or had it before the version that it waits for.
    pub fn is_referenced(&self, hash: &ContentHash) -> Result<bool> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT EXISTS(SELECT 1 FROM inodes WHERE hash=?1)")?;
        Ok(stmt.query_row([&hash.0[..]], |r| r.get(0))?)
    }

    /// Up to `limit` contents that files have, after `after` in the order of their hashes.
    pub fn contents(&self, after: Option<&ContentHash>, limit: usize) -> Result<Vec<Content>> {
        let mut stmt = self.0.prepare_cached(&format!(
            "SELECT {CONTENT} FROM contents WHERE hash>?1 AND unreferenced_at IS NULL ORDER BY hash LIMIT ?2"
        ))?;
        let from: &[u8] = after.map_or(&[], |h| &h.0[..]);
        let rows = stmt.query_map(params![from, limit as i64], content_from)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Every content that the tree knows, by hash and size.
    pub fn each_content(&self, mut f: impl FnMut(ContentHash, u64) -> Result<()>) -> Result<()> {
        let mut stmt = self.0.prepare_cached("SELECT hash, size FROM contents")?;
        let mut rows = stmt.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(hash) = hash_of(row, 0)? {
                f(hash, row.get(1)?)?;
            }
        }
        Ok(())
    }

    /// Up to `limit` contents that no file has had since `before`.
    pub fn unreferenced(&self, before: Time, limit: usize) -> Result<Vec<Content>> {
        let mut stmt = self.0.prepare_cached(&format!(
            "SELECT {CONTENT} FROM contents WHERE unreferenced_at<=?1 ORDER BY unreferenced_at LIMIT ?2"
        ))?;
        let rows = stmt.query_map(params![before.0, limit as i64], content_from)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// How many contents no file has had since `before`, and how many bytes they have.
    pub fn unreferenced_totals(&self, before: Time) -> Result<(u64, u64)> {
        let mut stmt = self.0.prepare_cached(
            "SELECT count(*), coalesce(sum(size),0) FROM contents WHERE unreferenced_at<=?1",
        )?;
        Ok(stmt.query_row([before.0], |r| Ok((r.get(0)?, r.get(1)?)))?)
    }

    /// Up to `limit` files with this content.
    pub fn files_of(&self, hash: &ContentHash, limit: usize) -> Result<Vec<Ino>> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT ino FROM inodes WHERE hash=?1 AND state>=2 LIMIT ?2")?;
        let rows = stmt.query_map(params![&hash.0[..], limit as i64], |r| r.get(0).map(Ino))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// How many files have this content, and how many names these have together.
    pub fn references(&self, hash: &ContentHash) -> Result<(u64, u64)> {
        let mut stmt = self.0.prepare_cached(
            "SELECT count(*), coalesce(sum(nlink),0) FROM inodes WHERE hash=?1 AND state>=2",
        )?;
        Ok(stmt.query_row([&hash.0[..]], |r| Ok((r.get(0)?, r.get(1)?)))?)
    }

    /// The names of an inode, as directory and name.
    pub fn names_of(&self, ino: Ino, limit: usize) -> Result<Vec<(Ino, Vec<u8>)>> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT parent, name FROM dentries WHERE ino=?1 LIMIT ?2")?;
        let rows = stmt.query_map(params![ino.0, limit as i64], |r| {
            Ok((Ino(r.get(0)?), r.get(1)?))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The paths of an inode below the root, without a leading slash.
    pub fn paths_of(&self, ino: Ino, limit: usize) -> Result<Vec<Vec<u8>>> {
        let mut paths = Vec::new();
        for (mut dir, name) in self.names_of(ino, limit)? {
            let mut path = name;
            // The length is bounded by what the kernel takes, but a damaged tree may go round in a ring.
            while dir != Ino::ROOT && path.len() <= libc::PATH_MAX as usize {
                let Some((parent, name)) = self.names_of(dir, 1)?.pop() else {
                    break;
                };
                path = [&name[..], b"/", &path].concat();
                dir = parent;
            }
            paths.push(path);
        }
        Ok(paths)
    }

    /// Files whose content is at `node` and not stored yet.
    pub fn pending_at(&self, node: &NodeId) -> Result<Vec<Inode>> {
        let mut stmt = self.0.prepare(&format!(
            "SELECT {INODE} FROM inodes WHERE state={PENDING} AND node=?1"
        ))?;
        let rows = stmt.query_map([&node.0], inode_from)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The last log position in this state.
    pub fn applied(&self) -> Result<Seq> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT value FROM meta WHERE key='applied'")?;
        Ok(Seq(stmt.query_row([], |r| r.get(0))?))
    }

    /// The number of the last journal record in this state.
    pub(super) fn journal(&self) -> Result<u64> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT value FROM meta WHERE key='journal'")?;
        Ok(stmt.query_row([], |r| r.get(0)).optional()?.unwrap_or(0))
    }

    /// A value that belongs to this node alone.
    pub fn local(&self, key: &str) -> Result<Option<i64>> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT value FROM local WHERE key=?1")?;
        Ok(stmt.query_row([key], |r| r.get(0)).optional()?)
    }

    /// The highest inode number from the range of one node.
    pub(super) fn highest_ino(&self, range: u32) -> Result<Option<Ino>> {
        let mut stmt = self
            .0
            .prepare_cached("SELECT max(ino) FROM inodes WHERE ino>=?1 AND ino<?2")?;
        let bounds = [Ino::range_start(range), Ino::range_start(range + 1)];
        Ok(stmt
            .query_row(bounds, |r| r.get::<_, Option<u64>>(0))?
            .map(Ino))
    }

    /// How many inodes there are, and how many bytes the contents that files have take.
    pub fn totals(&self) -> Result<Totals> {
        let mut stmt = self.0.prepare_cached(
            "SELECT (SELECT count(*) FROM inodes), (SELECT count(*) FROM contents),
                    (SELECT coalesce(sum(size),0) FROM contents),
                    (SELECT coalesce(sum(size),0) FROM inodes WHERE hash IS NOT NULL)",
        )?;
        Ok(stmt.query_row([], |r| {
            Ok(Totals {
                inodes: r.get(0)?,
                contents: r.get(1)?,
                stored_bytes: r.get(2)?,
                logical_bytes: r.get(3)?,
            })
        })?)
    }
}

/// The size of the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Inodes of every kind, the root included.
    pub inodes: u64,
    /// Distinct contents.
    pub contents: u64,
    /// Bytes of the distinct contents.
    pub stored_bytes: u64,
    /// Bytes of all files, as if nothing were shared.
    pub logical_bytes: u64,
}
