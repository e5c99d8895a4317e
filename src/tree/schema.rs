//! The tables, and how a connection to them is opened.
//!
//! All connections go through SQLite's `unix-excl` VFS: the process holds the database alone (the data directory's lock
//! sees to that), so that locks and the WAL index cost no system calls, and several connections of this process still
//! read beside the writer.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::op::TreeError;

/// Raised when an older program could not read the tables any more.
pub const FORMAT: i64 = 1;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS local(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inodes(
  ino INTEGER PRIMARY KEY,
  mode INTEGER NOT NULL, nlink INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
  rdev INTEGER NOT NULL, size INTEGER NOT NULL,
  atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
  generation INTEGER NOT NULL, state INTEGER NOT NULL, node TEXT, hash BLOB,
  target BLOB, parent INTEGER, cookie INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS inodes_hash ON inodes(hash) WHERE hash IS NOT NULL;
CREATE TABLE IF NOT EXISTS dentries(
  parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, cookie INTEGER NOT NULL,
  PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS dentries_cookie ON dentries(parent, cookie);
CREATE INDEX IF NOT EXISTS dentries_ino ON dentries(ino);
CREATE TABLE IF NOT EXISTS xattrs(
  ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,
  PRIMARY KEY(ino, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contents(
  hash BLOB PRIMARY KEY, size INTEGER NOT NULL, blob TEXT NOT NULL, filename BLOB NOT NULL,
  node TEXT NOT NULL, worker TEXT NOT NULL,
  uploaded_at INTEGER NOT NULL, started_at INTEGER NOT NULL, done_at INTEGER NOT NULL,
  unreferenced_at INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS contents_unreferenced ON contents(unreferenced_at)
  WHERE unreferenced_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS tombstones(blob TEXT PRIMARY KEY, reaped_at INTEGER NOT NULL)
  WITHOUT ROWID;
";

/// Opens the database at `path` for writing, creating the empty tree when there is none.
pub fn open_writer(path: &Path) -> Result<Connection, TreeError> {
    let conn = connect(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
    )?;
    // The size limit truncates the WAL when it is written from its start again, so that its length says how much there is
    // to write back.
    conn.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit=0;",
    )?;
    let found: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    if found > FORMAT {
        return Err(TreeError::Database(format!(
            "the data directory was written by a newer oncefs (format {found}, this program knows {FORMAT}); upgrade this program"
        )));
    }
    if found == 0 {
        conn.execute_batch(&format!(
            "BEGIN IMMEDIATE; {TABLES}
             INSERT INTO inodes(ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, generation, state, parent)
               VALUES(1, {mode}, 2, 0, 0, 0, 4096, 0, 0, 0, 0, 0, 1);
             INSERT INTO meta VALUES('applied', 0);
             PRAGMA user_version={FORMAT}; COMMIT;",
            mode = libc::S_IFDIR | 0o755,
        ))?;
    }
    Ok(conn)
}

/// Opens one more connection for reading.
pub fn open_reader(path: &Path) -> Result<Connection, TreeError> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.execute_batch("PRAGMA query_only=1;")?;
    Ok(conn)
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, TreeError> {
    let conn = Connection::open_with_flags_and_vfs(
        path,
        flags | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        c"unix-excl",
    )?;
    conn.busy_timeout(Duration::from_secs(10))?;
    conn.set_prepared_statement_cache_capacity(128);
    conn.execute_batch(
        "PRAGMA cache_size=-8192; PRAGMA temp_store=MEMORY; PRAGMA foreign_keys=OFF;",
    )?;
    Ok(conn)
}
